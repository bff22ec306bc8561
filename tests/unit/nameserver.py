"""A small authoritative nameserver on loopback, UDP and TCP on one port, that counts what it is asked.

It lives on the event loop of the test that opens it. `zone` maps (name, type) to what the record says;
a name in it without the asked type is NODATA, any other name is NXDOMAIN, both with a SOA.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

import asyncio_dgram
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from nono_ebpf.dns.limits import Limits
from nono_ebpf.model import Endpoint

Zone = dict[tuple[str, str], list[str]]
# Nothing is asked twice, and nobody gives up, because the process was held up for a while.
UNHURRIED_S = 120
UNHURRIED_RESOLV_CONF = f"options timeout:{UNHURRIED_S}\n"
SOA = "ns.example. admin.example. 1 3600 600 86400 20"  # RFC 2308: negative answers live 20 s


def unhurried(**limits: Any) -> Limits:
    """The limits of a test that goes on when something happens, not when time has passed; `limits` replace some."""
    deadlines = dict.fromkeys(("lookup_s", "query_s", "tcp_idle_s", "tcp_write_s"), UNHURRIED_S)
    return Limits(**deadlines | limits)


@dataclass
class Nameserver:
    """`seen` lists (name, type, transport). `gate` holds answers back until it is set."""

    zone: Zone
    ttl_s: int = 60
    broken: set[str] = field(default_factory=set)  # names answered SERVFAIL
    silent: set[str] = field(default_factory=set)  # names not answered at all
    long: set[str] = field(default_factory=set)  # names whose UDP answer is truncated
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    edns: set[int] = field(default_factory=set)  # payload sizes offered to us
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Nameserver:
        self.gate.set()
        while not await self._open():
            continue
        self._tasks: set[asyncio.Task[None]] = set()
        self._tasks.add(asyncio.create_task(self._datagrams()))
        return self

    async def _open(self) -> bool:
        """Whether the port that is free for TCP is for UDP as well: somebody else may have it."""
        self._tcp = await asyncio.start_server(self._stream, "127.0.0.1", 0, family=socket.AF_INET)
        port = self._tcp.sockets[0].getsockname()[1]
        try:
            self._udp = await asyncio_dgram.bind(("127.0.0.1", port))
        except OSError:
            self._tcp.close()
            return False
        self.endpoint = Endpoint(IPv4Address("127.0.0.1"), port)
        return True

    async def __aexit__(self, *_: object) -> None:
        self._tcp.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._tcp.wait_closed()
        self._udp.close()
        for _ in range(3):  # transports that were closed on either side finish in the next turns of the loop
            await asyncio.sleep(0)

    async def _datagrams(self) -> None:
        while True:
            data, client = await self._udp.recv()
            task = asyncio.create_task(self._datagram(data, client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _datagram(self, data: bytes, client: Any) -> None:
        if (answer := await self._answer(data, "udp")) is not None:
            await self._udp.send(answer, client)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(task := asyncio.current_task())
        task.add_done_callback(self._tasks.discard)
        try:
            size = int.from_bytes(await reader.readexactly(2), "big")
            if (answer := await self._answer(await reader.readexactly(size), "tcp")) is not None:
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await writer.drain()
        except asyncio.IncompleteReadError:  # it left without a question
            return
        finally:
            writer.close()
        await writer.wait_closed()

    async def _answer(self, wire: bytes, transport: str) -> bytes | None:
        query = dns.message.from_wire(wire)
        name, rdtype = query.question[0].name.to_text(omit_final_dot=True), query.question[0].rdtype
        self.seen.append((name, dns.rdatatype.to_text(rdtype), transport))
        self.edns.add(query.payload)
        await self.gate.wait()
        if name in self.silent:
            return None
        response = dns.message.make_response(query)
        if name in self.broken:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif name in self.long and transport == "udp":
            response.flags |= dns.flags.TC
        else:
            self._fill(response, name, dns.rdatatype.to_text(rdtype))
        return response.to_wire(max_size=65535, want_shuffle=False)

    def _fill(self, response: dns.message.Message, name: str, rdtype: str) -> None:
        while target := self.zone.get((name, "CNAME")):
            response.answer.append(self._rrset(name, "CNAME", target))
            name = target[0].removesuffix(".")
        if found := self.zone.get((name, rdtype)):
            response.answer.append(self._rrset(name, rdtype, found))
            return
        if not any(owner == name for owner, _ in self.zone):
            response.set_rcode(dns.rcode.NXDOMAIN)
        response.authority.append(dns.rrset.from_text(name.rpartition(".")[2] + ".", 900, "IN", "SOA", SOA))

    def _rrset(self, name: str, rdtype: str, texts: list[str]) -> dns.rrset.RRset:
        return dns.rrset.from_text_list(name + ".", self.ttl_s, "IN", rdtype, texts)
