"""Ending an event loop of a kit server without anything left of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


async def let_go() -> None:
    """End what is open, also in a handshake: a connection that outlives its loop warns when it is collected."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    left: Mapping[int, asyncio.WriteTransport] = asyncio.get_running_loop()._transports  # type: ignore[attr-defined]  # listed nowhere else
    for transport in list(left.values()):
        transport.abort()
    await asyncio.sleep(0)  # for the loop to close their sockets
