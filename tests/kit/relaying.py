"""A relay on loopback with stand-ins for everything around it, so that a flow test reads as a script.

The kernel's record is a dictionary from the client's source port, DNS and the name table are dictionaries,
the audit log is a list, and both ends of every connection are `Peer`s in the test's own hands.

    async with Relaying("a.test") as it:
        client = await it.connect("a.test")
        server = await it.accept()
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import socket
import struct
import termios
import time
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from nono_ebpf.errors import UpstreamError
from nono_ebpf.model import Endpoint, FlowOrigin, IPAddress, Process, ResolvedAddress
from nono_ebpf.policy.endpoints import parse_endpoint_rule
from nono_ebpf.policy.rules import HostRules, Policy, Rule, parse_allow_rule, parse_deny_rule
from nono_ebpf.policy.services import Service
from nono_ebpf.relay.limits import Limits
from nono_ebpf.relay.listener import Relay
from nono_ebpf.session_token import Token

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from nono_ebpf.audit.record import Record

LOOPBACK = ip_address("127.0.0.1")
PROCESS = Process(pid=4242, comm="script", uid=1000, cgroup_id=77)
# What an explicit client of the proxy shows, and the field in which it does.
TOKEN = "0123456789abcdef" * 4
AUTHORIZED = f"Proxy-Authorization: Basic {base64.b64encode(f'nono:{TOKEN}'.encode()).decode()}\r\n"
# What this sandbox was given for the names of a script: never dialled, so any address will do.
FIRST_GIVEN = int(ip_address("198.18.0.2"))
# No deadline ends before the script's own: a test goes on when something happens, not when time has passed.
SCRIPT_S = 60
LIMITS = Limits(
    sniff_s=120, first_bytes_s=120, refusal_wait_s=120, resolve_s=120, connect_s=120, keep_alive_s=120, linger_s=120,
    upstream_proxy_s=120, handshake_s=120, response_head_s=120, linger_in_all_s=120,
)  # fmt: skip

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a script on the standard loop and on the one the product uses."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    async def within_deadline(script: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(SCRIPT_S):
            await script

    with asyncio.Runner(loop_factory=factory) as runner:
        yield lambda script: runner.run(within_deadline(script))


class Peer:
    """One end of a connection, moved by hand."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, size: int) -> bytes:
        """Exactly `size` bytes, or fewer when the peer ends before."""
        data = b""
        while len(data) < size and (more := await self._recv(size - len(data))):
            data += more
        return data

    async def receive_until(self, end: bytes) -> bytes:
        """Everything up to and including `end`, byte by byte: what follows stays in the kernel."""
        data = b""
        while not data.endswith(end):
            more = await self._recv(1)
            assert more, f"ended after {data!r}"
            data += more
        return data

    async def receive_all(self) -> bytes:
        """Everything until the peer's orderly end. Raises ConnectionResetError when it was an abort."""
        data = bytearray()
        while more := await self._recv(1 << 20):
            data += more
        return bytes(data)

    async def _recv(self, size: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, size)

    def finish(self) -> None:
        """Send FIN."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


def _unacknowledged(sock: socket.socket) -> int:
    """How much of what was sent has not arrived yet (SIOCOUTQ, tcp(7))."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


def to_proxy(line: str, fields: str = AUTHORIZED) -> bytes:
    """The head of an explicit client's request; its Host says nothing."""
    return f"{line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode("latin-1")


def listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


class Relaying:
    """The relay and what surrounds it.

    `names` are permitted on the one upstream's port, and their address is loopback. `allow` may say
    `{port}` for that port. Hosts in `endpoints` are permitted there for requests like "GET /v1/**", those in `managed`
    need the credential of that name, which cannot be had. `lookups` are the names the resolver was asked for.
    """

    def __init__(
        self,
        *names: str,
        allow: tuple[str, ...] = (),
        deny: tuple[str, ...] = (),
        endpoints: Mapping[str, tuple[str, ...]] | None = None,
        managed: Mapping[str, str] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self.upstream, self._listener = listen(), listen()
        self.port: int = self.upstream.getsockname()[1]
        self.own = Endpoint(LOOPBACK, self._listener.getsockname()[1])
        self.hosts: dict[str, tuple[ResolvedAddress, ...]] = {}
        self.given: dict[IPAddress, str] = {}
        self.origins: dict[int, FlowOrigin] = {}
        self.lookups: list[str] = []
        self.records: list[Record] = []
        for name in (*names, *(endpoints or ()), *(managed or ())):
            self.host(name)
        rules = [f"{name}:{self.port}" for name in names] + [text.format(port=self.port) for text in allow]
        allowed = [parse_allow_rule(text, "test") for text in rules]
        allowed += [self._judged(name, requests) for name, requests in (endpoints or {}).items()]
        ports = frozenset({self.port})
        hosts = {text: Rule(name, ports, text, "test", names_port=True) for name, text in (managed or {}).items()}
        self.policy = Policy(
            HostRules(allowed),
            HostRules(parse_deny_rule(text, "test") for text in deny),
            HostRules(hosts.values()),
            services={text: Service(text, rule, unsupported="the test has none") for text, rule in hosts.items()},
        )
        self.relay = Relay(self.policy, self, self, self, self, limits, [self.own], Token(TOKEN))
        self._open: list[Peer] = []

    def _judged(self, name: str, requests: tuple[str, ...]) -> Rule:
        rules = tuple(parse_endpoint_rule(*request.split(" "), "test") for request in requests)
        return parse_allow_rule(f"{name}:{self.port}", "test", endpoints=rules)

    def host(self, name: str, *addresses: ResolvedAddress) -> None:
        """Let `name` have `addresses` (loopback, pinned by the operator) and this sandbox know it."""
        self.hosts[name] = addresses or (ResolvedAddress(LOOPBACK, own=True, pinned=True),)
        self.given[ip_address(FIRST_GIVEN + len(self.given))] = name

    # The stand-ins.

    def take(self, connection: socket.socket) -> FlowOrigin | None:
        return self.origins.pop(connection.getpeername()[1], None)

    def name_of(self, address: IPAddress) -> str | None:
        return self.given.get(address)

    async def lookup(self, host: str) -> tuple[ResolvedAddress, ...]:
        self.lookups.append(host)
        if host not in self.hosts:
            raise UpstreamError("resolve", host, "no such name")
        return self.hosts[host]

    def write(self, record: Record) -> None:
        self.records.append(record)

    # The script's verbs.

    async def connect(self, to: str, port: int | None = None) -> Peer:
        """A redirected client that dialled what it was given for the name `to`, or the address `to`."""
        address = next((given for given, name in self.given.items() if name == to), None) or ip_address(to)
        return await self._connect(FlowOrigin(Endpoint(address, port or self.port), PROCESS))

    async def connect_to_proxy(self, saying: bytes = b"") -> Peer:
        """A client that knows of the proxy. What it is `saying` is there before the connection is taken."""
        return await self._connect(FlowOrigin(self.own, PROCESS), saying)

    def expect_proxy_client(self, source_port: int) -> None:
        """Somebody else's client, which will connect to the proxy from that port."""
        self.origins[source_port] = FlowOrigin(self.own, PROCESS)

    async def connect_unknown(self) -> Peer:
        """A connection that the kernel has no record of."""
        return await self._connect(None)

    async def _connect(self, origin: FlowOrigin | None, saying: bytes = b"") -> Peer:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        if origin is not None:
            self.origins[sock.getsockname()[1]] = origin
        at = (str(self.own.address), self.own.port)
        if saying:
            sock.connect(at)
            sock.sendall(saying)
            while _unacknowledged(sock):
                time.sleep(0.001)
        peer = self._kept(sock)
        if not saying:
            await asyncio.get_running_loop().sock_connect(sock, at)
        return peer

    async def accept(self) -> Peer:
        """The upstream's next connection."""
        return self._kept((await asyncio.get_running_loop().sock_accept(self.upstream))[0])

    async def nobody_called(self) -> bool:
        """No connection waits at the upstream."""
        try:
            self.upstream.accept()[0].close()
        except BlockingIOError:
            return True
        return False

    async def ended(self) -> list[Record]:
        """The records of everything that happened, once every flow has ended."""
        await self.relay.drain(SCRIPT_S)
        return self.records

    def _kept(self, sock: socket.socket) -> Peer:
        self._open.append(Peer(sock))
        return self._open[-1]

    async def __aenter__(self) -> Relaying:
        self._serving = asyncio.ensure_future(self.relay.serve([self._listener]))
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._serving
        for peer in self._open:
            peer.close()
        for listener in (self.upstream, self._listener):
            listener.close()
