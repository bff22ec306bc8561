"""aiohttp: argv is the address of a service, a name, and fields to send, as "Name: value". Prints what came back.

The last response is one that the service holds back by that name.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

BODY = [bytes([number % 251]) * 1000 for number in range(2000)]


async def pieces() -> AsyncIterator[bytes]:
    """A body whose length nobody knows."""
    for piece in BODY:
        yield piece


async def told(response: aiohttp.ClientResponse) -> Any:
    """What came back."""
    return await response.json() if response.ok else await response.text()


async def main(base: str, name: str, *lines: str) -> list[Any]:
    """Ask."""
    fields = {"X-Client": name} | dict(line.split(": ", 1) for line in lines)
    timeout = aiohttp.ClientTimeout(400)
    async with aiohttp.ClientSession(headers=fields, trust_env=True, timeout=timeout) as session:
        async with session.get(f"{base}/who") as response:
            who = await told(response)
        async with session.post(f"{base}/upload", data=pieces(), expect100=True) as response:
            upload = await told(response)
        async with session.get(f"{base}/who", headers={"X-Hold": name}) as response:
            return [who, upload, await told(response)]


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
