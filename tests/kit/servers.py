"""The servers of the test world, on one event loop in a thread of the test process.

Their sockets are opened in the world's namespace (`kit.namespaces`), so they need no process of their own and
a test reads what they saw from a list. They know nothing of nono-ebpf. HTTP is aiohttp's; DNS is dnspython's
(RFC 1035); git is git-http-backend(1) behind a CGI bridge (RFC 3875).
"""

from __future__ import annotations

import asyncio
import hashlib
import select
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.zone
from aiohttp import web
from kit import zone
from kit.loops import let_go
from kit.patience import patient

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

Service = Literal["http", "https", "git", "echo", "sum", "banner", "udp", "dns"]
OpenStream = Callable[[int], socket.socket]
OpenDatagram = Callable[[str, int], socket.socket]
StreamHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BANNER = b"220 banner.example.com ready\r\n"
DEADLINE_S = patient(90)
TURNS = 10  # of the loop: a connection is accepted, read, understood and handled in one after the other


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that arrived: at which address, and what it was (Host field, query name, payload)."""

    service: Service
    address: str
    what: str


def _local_address(transport: asyncio.BaseTransport) -> str:
    address: str = transport.get_extra_info("sockname")[0]
    return address.removeprefix("::ffff:")


class Servers:
    """All servers. `seen` grows as things arrive; `on_echo` is called while an echo connection is open."""

    def __init__(self, stream: OpenStream, datagram: OpenDatagram, tls: ssl.SSLContext, repositories: Path) -> None:
        self.seen: list[Seen] = []
        self.on_echo: Callable[[], None] = lambda: None
        self._stream, self._datagram, self._tls, self._repositories = stream, datagram, tls, repositories
        self._sni: WeakKeyDictionary[object, str | None] = WeakKeyDictionary()
        self._zones = [
            dns.zone.from_text(zone.zone_text(apex), apex, relativize=False) for apex in ("example.com", "example.net")
        ]
        self._waiting = select.poll()  # for datagrams
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready: threading.Event = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def start(self) -> None:
        """Return when every server accepts. Raises RuntimeError when one did not come up."""
        self._thread.start()
        if not self._ready.wait(DEADLINE_S):
            raise RuntimeError("the world's servers did not come up")

    def forget(self) -> None:
        """Begin anew. What has arrived by now was sent before, whether it has been looked at yet or not."""
        asyncio.run_coroutine_threadsafe(self._take_in(), self._loop).result(DEADLINE_S)
        self.seen.clear()
        self.on_echo = lambda: None

    async def _take_in(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        while self._waiting.poll(0):
            await asyncio.sleep(0)

    def close(self) -> None:
        """Close every socket and end the thread."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)
        self._loop.close()

    async def _serve(self) -> None:
        runner = await self._start_http()
        streams = [
            await asyncio.start_server(handler, sock=self._stream(port))
            for port, handler in self._stream_services().items()
        ]
        datagrams = [await self._start_dns(), await self._start_sink()]
        self._ready.set()
        await self._stop.wait()
        for server in streams:
            server.close()
        for transport in datagrams:
            transport.close()
        await runner.cleanup()
        await let_go()

    def _stream_services(self) -> dict[int, StreamHandler]:
        return {
            zone.ECHO_PORT: self._guarded(self._echo),
            zone.SUM_PORT: self._guarded(self._sum),
            zone.BANNER_PORT: self._guarded(self._banner),
            53: self._guarded(self._dns_stream),
        }

    def _guarded(self, handler: StreamHandler) -> StreamHandler:
        """`handler`, its connection closed in every case; a client that goes away is nothing to report."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        return handle

    def _note(self, service: Service, transport: asyncio.BaseTransport, what: str) -> None:
        self.seen.append(Seen(service, _local_address(transport), what))

    # --- HTTP, HTTPS, git

    async def _start_http(self) -> web.AppRunner:
        self._tls.sni_callback = self._remember_sni
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/bytes/{count:[0-9]+}", self._bytes)
        app.router.add_route("*", "/git/{path:.*}", self._git)
        app.router.add_route("*", "/{path:.*}", self._who)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, self._stream(zone.HTTP_PORT), backlog=512).start()
        await web.SockSite(runner, self._stream(zone.HTTPS_PORT), ssl_context=self._tls, backlog=512).start()
        return runner

    def _remember_sni(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        self._sni[connection] = name

    def _note_http(self, request: web.Request) -> None:
        assert request.transport is not None
        service: Service = "https" if request.secure else "http"
        self._note(service, request.transport, f"{request.method} {request.host}{request.rel_url}")

    async def _who(self, request: web.Request) -> web.Response:
        """What was asked, as JSON: which SNI, which Host, on which address."""
        self._note_http(request)
        body = await request.read()
        assert request.transport is not None
        connection = request.transport.get_extra_info("ssl_object")
        return web.json_response(
            {
                "sni": None if connection is None else self._sni.get(connection),
                "host": request.host,
                "address": _local_address(request.transport),
                "method": request.method,
                "path": str(request.rel_url),
                "headers": dict(request.headers),
                "length": len(body),
                "sha256": hashlib.sha256(body).hexdigest(),
            },
        )

    async def _bytes(self, request: web.Request) -> web.Response:
        self._note_http(request)
        return web.Response(body=b"n" * int(request.match_info["count"]))

    async def _git(self, request: web.Request) -> web.Response:
        """The CGI bridge, enough of RFC 3875 for git-http-backend."""
        self._note_http(request)
        environ = _cgi_environ(request, self._repositories)
        body = await request.read()
        return _cgi_response(await asyncio.to_thread(_git_backend, environ, body))

    # --- plain TCP and UDP

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.on_echo()
        while data := await reader.read(65536):
            self._note("echo", writer.transport, data[:80].decode("latin-1"))
            writer.write(data)
            await writer.drain()

    async def _sum(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read to the end of the client's half, then answer "LENGTH SHA256"."""
        digest, length = hashlib.sha256(), 0
        while data := await reader.read(1 << 20):
            digest.update(data)
            length += len(data)
        self._note("sum", writer.transport, str(length))
        writer.write(f"{length} {digest.hexdigest()}\n".encode())
        await writer.drain()

    async def _banner(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._note("banner", writer.transport, "connected")
        writer.write(BANNER)
        while line := await reader.readline():
            writer.write(b"250 " + line)
            await writer.drain()

    async def _start_sink(self) -> asyncio.DatagramTransport:
        def arrived(data: bytes, transport: asyncio.DatagramTransport, _: Any) -> None:
            self._note("udp", transport, data.decode("latin-1"))

        return await self._start_datagram("::", zone.SINK_UDP_PORT, arrived)

    async def _start_datagram(self, address: str, port: int, arrived: Callable[..., None]) -> asyncio.DatagramTransport:
        opened = self._datagram(address, port)
        self._waiting.register(opened, select.POLLIN)
        transport, _ = await self._loop.create_datagram_endpoint(lambda: _Datagrams(arrived), sock=opened)
        return transport

    # --- DNS

    async def _start_dns(self) -> asyncio.DatagramTransport:
        def arrived(data: bytes, transport: asyncio.DatagramTransport, client: Any) -> None:
            query = dns.message.from_wire(data)
            transport.sendto(_fit(self._answer(query, transport), query), client)

        return await self._start_datagram(zone.DNS_V4, 53, arrived)

    async def _dns_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            length = int.from_bytes(await reader.readexactly(2))
            query = dns.message.from_wire(await reader.readexactly(length))
            answer = self._answer(query, writer.transport).to_wire(max_size=65535)
            writer.write(len(answer).to_bytes(2) + answer)

    def _answer(self, query: dns.message.Message, transport: asyncio.BaseTransport) -> dns.message.Message:
        question = query.question[0]
        self._note("dns", transport, f"{question.name} {dns.rdatatype.to_text(question.rdtype)}")
        answer = dns.message.make_response(query)
        served = next((each for each in self._zones if question.name.is_subdomain(_apex(each))), None)
        if served is None:
            answer.set_rcode(dns.rcode.REFUSED)
            return answer
        answer.flags |= dns.flags.AA
        _fill(answer, served, question.name, question.rdtype)
        return answer


def _fill(
    answer: dns.message.Message, served: dns.zone.Zone, name: dns.name.Name, rdtype: dns.rdatatype.RdataType
) -> None:
    """The answer section of RFC 1034 section 4.3.2, aliases followed in the zone; the SOA when empty."""
    alias = served.get_rrset(name, dns.rdatatype.CNAME)
    if alias is not None and rdtype != dns.rdatatype.CNAME:
        answer.answer.append(alias)
        _fill(answer, served, alias[0].target, rdtype)
        return
    found = served.get_rrset(name, rdtype)
    if found is not None:
        answer.answer.append(found)
        return
    soa = served.get_rrset(_apex(served), dns.rdatatype.SOA)
    assert soa is not None
    answer.authority.append(soa)
    if not any(known.is_subdomain(name) for known in served.nodes):
        answer.set_rcode(dns.rcode.NXDOMAIN)


def _apex(served: dns.zone.Zone) -> dns.name.Name:
    assert served.origin is not None
    return served.origin


def _fit(answer: dns.message.Message, query: dns.message.Message) -> bytes:
    """The answer as a datagram: truncated with TC set when it does not fit (RFC 2181 section 9)."""
    limit = query.payload if query.edns >= 0 else 512
    try:
        return answer.to_wire(max_size=limit)
    except dns.exception.TooBig:
        short = dns.message.make_response(query)
        short.flags |= dns.flags.AA | dns.flags.TC
        return short.to_wire()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, arrived: Callable[..., None]) -> None:
        self._arrived = arrived

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._arrived(data, self._transport, addr)


def _cgi_environ(request: web.Request, repositories: Path) -> dict[str, str]:
    environ = {
        "PATH": "/usr/bin:/bin",
        "GIT_PROJECT_ROOT": str(repositories),
        "GIT_HTTP_EXPORT_ALL": "1",
        "REQUEST_METHOD": request.method,
        "PATH_INFO": "/" + request.match_info["path"],
        "QUERY_STRING": request.query_string,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "REMOTE_ADDR": "192.0.2.1",
    }
    if protocol := request.headers.get("Git-Protocol"):
        environ["GIT_PROTOCOL"] = protocol
    return environ


def _git_backend(environ: dict[str, str], body: bytes) -> bytes:
    backend = ["git", "http-backend"]
    return subprocess.run(backend, env=environ, input=body, capture_output=True, check=True).stdout


def _cgi_response(output: bytes) -> web.Response:
    head, _, body = output.partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
    status = int(fields.pop("Status", "200 OK").split()[0])
    return web.Response(status=status, headers=fields, body=body)
