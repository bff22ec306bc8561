"""Which connections inside TLS are used again, for whom, and for how long they are kept."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from kit.relaying import LIMITS, SCRIPT_S, Peer, Run, listen, run
from kit.sandboxes import open_files
from kit.tls_peer import TlsPeer
from kit.upstream_proxies import unheard

from nono_ebpf.errors import UpstreamError
from nono_ebpf.model import Endpoint
from nono_ebpf.policy.decide import Permit
from nono_ebpf.policy.rules import parse_allow_rule
from nono_ebpf.policy.services import Service
from nono_ebpf.policy.upstream_proxy import UpstreamProxy
from nono_ebpf.relay.chain import ProxyAccess
from nono_ebpf.relay.secure_upstreams import SecureUpstreams
from nono_ebpf.relay.stream import first_readable
from nono_ebpf.tls.contexts import UpstreamContexts, context_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nono_ebpf.relay.limits import Limits
    from nono_ebpf.relay.secure import SecureUpstream

__all__ = ["run"]

RULE = parse_allow_rule("api.test", "test")
OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
LOOPBACK = ip_address("127.0.0.1")
PATIENT = replace(LIMITS, handshake_s=SCRIPT_S)


@cache
def somebody() -> trustme.CA:
    return trustme.CA()


@cache
def contexts() -> UpstreamContexts:
    return UpstreamContexts(somebody().cert_pem.bytes())


def server_context(*names: str, version: ssl.TLSVersion = V13) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    somebody().issue_cert(*names).configure_cert(context)
    context.minimum_version = context.maximum_version = version
    return context


class Site:
    """An origin server at every name, moved by hand, and the pool of its client."""

    def __init__(self, limits: Limits, access: ProxyAccess, version: ssl.TLSVersion) -> None:
        self._listener = listen()
        self.context = server_context("api.test", "other.test", "127.0.0.1", version=version)
        self.pool = SecureUpstreams(limits, access, contexts())
        self.port: int = self._listener.getsockname()[1]
        self._peers: list[Peer] = []

    def permit(self, host: str = "api.test", **more: Any) -> Permit:
        return replace(Permit(host, self.port, (Endpoint(LOOPBACK, self.port),), RULE), **more)

    async def accepted(self) -> Peer:
        self._peers.append(Peer((await asyncio.get_running_loop().sock_accept(self._listener))[0]))
        return self._peers[-1]

    async def connect(self, permit: Permit | None = None) -> tuple[SecureUpstream, TlsPeer]:
        """A new connection, over which a request and a response have gone."""
        connecting = asyncio.ensure_future(self.pool.connect(permit or self.permit()))
        server = TlsPeer(await self.accepted(), self.context)
        await server.accept()
        ours = await connecting
        await exchange(ours, server)
        return ours, server

    def close(self) -> None:
        self.pool.close()
        for each in self._peers:
            each.close()
        self._listener.close()


async def exchange(ours: SecureUpstream, server: TlsPeer) -> None:
    await ours.send(b"request", SCRIPT_S)
    assert await server.receive(7) == b"request"
    await server.send(b"response")
    while len(ours.unread) < 8:
        assert await ours.fill(SCRIPT_S)
    assert ours.take_unread() == b"response"


@asynccontextmanager
async def site(version: ssl.TLSVersion = V13, access: ProxyAccess | None = None, **limits: Any) -> AsyncIterator[Site]:
    made = Site(replace(PATIENT, **limits), access or ProxyAccess(), version)
    try:
        yield made
    finally:
        made.close()


def open_sockets() -> set[str]:
    """This process's, each by a name that is never another's: others' threads may let go of some meanwhile."""
    return {each for each in open_files(os.getpid()) if each.startswith("socket:")}


versions = pytest.mark.parametrize("version", [V12, V13], ids=["1.2", "1.3"])


# --- for whom


@versions
def test_a_connection_is_used_again(run: Run, version: ssl.TLSVersion) -> None:
    """What was given back is handed out, once, and works; the last that was used is the first to be used again."""

    async def script() -> None:
        async with site(version) as it:
            assert it.pool.idle(it.permit()) is None
            (first, _), (second, server) = await it.connect(), await it.connect()
            it.pool.give_back(first)
            it.pool.give_back(second)
            assert it.pool.idle(it.permit()) is second
            await exchange(second, server)
            assert it.pool.idle(it.permit()) is first
            assert it.pool.idle(it.permit()) is None
            first.close()
            second.close()

    run(script())


def service(name: str) -> Service:
    return Service(name, RULE)


@pytest.mark.parametrize("differs", ["host", "port", "service", "no service", "via", "endpoint"])
def test_a_connection_is_for_one_purpose(run: Run, differs: str) -> None:
    """Not for another host, though it is at the same address; nor for another port or service, by another road, or
    where its address is not permitted any more.
    """

    async def script() -> None:
        async with site() as it:
            permit = it.permit(service=service("one"))
            ours, _ = await it.connect(permit)
            it.pool.give_back(ours)
            other = {
                "host": replace(permit, host="other.test"),
                "port": replace(permit, port=1),
                "service": replace(permit, service=service("two")),
                "no service": replace(permit, service=None),
                "via": replace(permit, via=UpstreamProxy("proxy.test", 3128)),
                "endpoint": replace(permit, endpoints=(Endpoint(ip_address("127.0.0.2"), it.port),)),
            }[differs]
            assert it.pool.idle(other) is None
            again = replace(permit, endpoints=(Endpoint(ip_address("127.0.0.2"), 1), *permit.endpoints))
            assert it.pool.idle(again) is ours
            ours.close()

    run(script())


@pytest.mark.parametrize("disturbance", ["data", "close_notify", "FIN", "RST"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_not_quiet_is_closed(run: Run, disturbance: str, when: str) -> None:
    """Whether the server spoke out of turn, or ended, before the connection was given back or while it was idle."""

    async def script() -> None:
        async with site() as it:
            ours, server = await it.connect()
            if when == "after":
                it.pool.give_back(ours)
            match disturbance:
                case "data":
                    await server.send(b"x")
                case "close_notify":
                    await server.finish()
                case "FIN":
                    server.tcp.finish()
                case "RST":
                    server.tcp.reset()
            await first_readable(ours.sock, deadline_s=SCRIPT_S)
            if when == "before":
                it.pool.give_back(ours)
                assert ours.sock.fileno() == -1
            assert it.pool.idle(it.permit()) is None
            assert ours.sock.fileno() == -1

    run(script())


def test_what_was_not_read_is_not_passed_on(run: Run) -> None:
    """Whoever gives back a connection with something in hand has lost count of its messages."""

    async def script() -> None:
        async with site() as it:
            ours, _ = await it.connect()
            ours.unread += b"x"
            it.pool.give_back(ours)
            assert it.pool.idle(it.permit()) is None
            assert ours.sock.fileno() == -1

    run(script())


def test_what_is_closed_already_is_not_kept(run: Run) -> None:
    """Nor what was reset."""

    async def script() -> None:
        async with site() as it:
            for end in ("close", "reset"):
                ours, _ = await it.connect()
                getattr(ours, end)()
                it.pool.give_back(ours)
                assert it.pool.idle(it.permit()) is None

    run(script())


# --- how many, and for how long


def test_idle_connections_are_bounded(run: Run) -> None:
    """For each host, and in all; the longest idle give way."""

    async def script() -> None:
        async with site(idle_upstreams=3, idle_upstreams_per_host=2) as it:
            api = [(await it.connect())[0] for _ in range(3)]
            for each in api:
                it.pool.give_back(each)
            assert [each.sock.fileno() >= 0 for each in api] == [False, True, True]
            other = it.permit("other.test")
            others = [(await it.connect(other))[0] for _ in range(2)]
            for each in others:
                it.pool.give_back(each)
            assert [each.sock.fileno() >= 0 for each in (*api, *others)] == [False, False, True, True, True]
            assert it.pool.idle(it.permit()) is api[2]
            assert it.pool.idle(it.permit()) is None
            api[2].close()

    run(script())


def test_idle_connections_are_closed_in_time(run: Run) -> None:
    """Each when it has been idle for so long, in order; nobody has to ask."""

    async def script() -> None:
        async with site(idle_upstream_s=0.2) as it:
            (first, server), (second, _) = await it.connect(), await it.connect()
            it.pool.give_back(first)
            await asyncio.sleep(0.1)
            it.pool.give_back(second)
            assert await server.receive_all() == b""
            assert second.sock.fileno() >= 0 or first.sock.fileno() < 0
            while second.sock.fileno() >= 0:
                await asyncio.sleep(0.01)
            assert it.pool.idle(it.permit()) is None
            assert it.pool._timer is None
            third, _ = await it.connect()
            it.pool.give_back(third)  # and the clock starts again
            while third.sock.fileno() >= 0:
                await asyncio.sleep(0.01)

    run(script())


def test_a_connection_that_its_server_is_about_to_close_is_not_used(run: Run) -> None:
    """A request that may not be repeated would be lost; the others still find theirs."""

    async def script() -> None:
        async with site(closing_margin_s=5) as it:
            kept = [await it.connect() for _ in range(3)]
            for (each, _), seconds in zip(kept, (3600, 5.2, 5), strict=True):
                it.pool.give_back(each, seconds)
            assert await kept[2][1].receive_all() == b""  # at once
            await asyncio.sleep(0.3)
            assert it.pool.idle(it.permit()) is kept[0][0]
            assert await kept[1][1].receive_all() == b""
            kept[0][0].close()

    run(script())


def test_close_closes_everything(run: Run) -> None:
    """In order, and also what is given back afterwards."""

    async def script() -> None:
        async with site() as it:
            before = open_sockets()
            (idle, server), (used, other) = await it.connect(), await it.connect()
            assert len(open_sockets() - before) >= 4
            it.pool.give_back(idle)
            it.pool.close()
            it.pool.close()
            it.pool.give_back(used)
            for each in (server, other):
                assert await each.receive_all() == b""
                each.tcp.close()
            assert open_sockets() <= before

    run(script())


# --- how it begins


@versions
@pytest.mark.parametrize("end", ["give_back", "close"])
def test_the_next_connection_resumes(run: Run, version: ssl.TLSVersion, end: str) -> None:
    """Whether the last one was given back or its server wanted it closed; for the same host and service only."""

    async def script() -> None:
        async with site(version) as it:
            ours, server = await it.connect()
            assert not server.tls.session_reused
            it.pool.give_back(ours) if end == "give_back" else ours.close()
            again, server = await it.connect()
            assert server.tls.session_reused
            for other in (it.permit("other.test"), it.permit(service=service("one"))):
                different, server = await it.connect(other)
                assert not server.tls.session_reused
                different.close()
            again.close()

    run(script())


def test_sessions_are_bounded(run: Run) -> None:
    """Those of the hosts that were asked for last are kept."""

    async def script() -> None:
        async with site(tls_sessions=1) as it:
            for permit in (it.permit(), it.permit("other.test")):
                (await it.connect(permit))[0].close()
            for permit, reused in ((it.permit("other.test"), True), (it.permit(), False)):
                ours, server = await it.connect(permit)
                assert server.tls.session_reused is reused
                ours.reset()  # says nothing about sessions

    run(script())


def test_a_session_proves_nothing_about_others(run: Run) -> None:
    """Another server behind the same name has to show a certificate, since it cannot resume."""

    async def script() -> None:
        async with site() as it:
            (await it.connect())[0].close()
            it.context = server_context("other.test")
            connecting = asyncio.ensure_future(it.pool.connect(it.permit()))
            server = TlsPeer(await it.accepted(), it.context)
            assert await server.refused() == "SSLV3_ALERT_BAD_CERTIFICATE"
            with pytest.raises(UpstreamError, match="Hostname mismatch"):
                await connecting
            assert not it.pool._sessions

    run(script())


@pytest.mark.parametrize("end", ["FIN", "RST", "silence", "cancelled"])
def test_a_handshake_that_fails_leaves_nothing(run: Run, end: str) -> None:
    """No descriptor, no session; the server sees a RST."""

    async def script() -> None:
        async with site(handshake_s=0.1 if end == "silence" else SCRIPT_S) as it:
            before = open_sockets()
            connecting = asyncio.ensure_future(it.pool.connect(it.permit()))
            peer = await it.accepted()
            await peer.receive(1)
            match end:
                case "FIN":
                    peer.finish()
                case "RST":
                    peer.reset()
                case "cancelled":
                    connecting.cancel()
            with pytest.raises((UpstreamError, asyncio.CancelledError)):
                await connecting
            if end != "RST":
                with pytest.raises(ConnectionResetError):
                    await peer.receive_all()
                peer.close()
            assert open_sockets() <= before

    run(script())


def test_nobody_there_is_told(run: Run) -> None:
    """As for any other connection."""

    async def script() -> None:
        async with site() as it:
            with unheard() as down, pytest.raises(UpstreamError, match=r"^connect api\.test:\d+: Connection refused$"):
                await it.pool.connect(it.permit(endpoints=(Endpoint(LOOPBACK, down.getsockname()[1]),)))

    run(script())


# --- by way of an upstream proxy


class Nested(TlsPeer):
    """TLS inside TLS."""

    async def _until_done(self, step: Any) -> Any:
        outer: Any = self.tcp
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await outer._read(1 << 16):
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                await self._flush()
                return result


async def connect_through(it: Site, permit: Permit, *, tls: bool) -> tuple[SecureUpstream, TlsPeer, Any, Peer]:
    """Our end, the origin's, the proxy's, and what the proxy's is in; all by the same socket."""
    connecting = asyncio.ensure_future(it.pool.connect(permit))
    tcp = await it.accepted()
    outer: Any = tcp
    if tls:
        outer = TlsPeer(tcp, it.context)
        await outer.accept()
    asked = b""
    while not asked.endswith(b"\r\n\r\n"):
        asked += await outer.receive(1)
    assert asked.startswith(b"CONNECT api.test:443 HTTP/1.1\r\n")
    await outer.send(OPENED)
    inner = Nested(outer, it.context) if tls else TlsPeer(outer, it.context)
    await inner.accept()
    return await connecting, inner, outer, tcp


@pytest.mark.parametrize("tls", [False, True], ids=["in clear", "inside TLS"])
@pytest.mark.parametrize("end", ["close", "reset"])
def test_through_an_upstream_proxy(run: Run, tls: bool, end: str) -> None:
    """TLS to the origin is inside the tunnel, and inside TLS to the proxy where that is spoken: used again, and ended
    in order at both layers, or at once.
    """
    access = ProxyAccess(tls=context_for(somebody().cert_pem.bytes()) if tls else None)

    async def script() -> None:
        async with site(access=access, upstream_proxy_s=SCRIPT_S) as it:
            permit = replace(it.permit(via=UpstreamProxy("127.0.0.1", it.port, tls)), port=443)
            ours, inner, outer, tcp = await connect_through(it, permit, tls=tls)
            assert ours.proxy == str(permit.via)
            await exchange(ours, inner)
            it.pool.give_back(ours)
            assert it.pool.idle(replace(permit, via=None)) is None
            assert it.pool.idle(permit) is ours
            await exchange(ours, inner)
            if end == "close":
                ours.close()
                assert await inner.receive_all() == b""
                assert await outer.receive_all() == b""
                assert await tcp.receive_all() == b""
            else:
                ours.reset()
                with pytest.raises(ConnectionResetError):
                    await tcp.receive_all()

    run(script())


def test_many_at_once(run: Run) -> None:
    """Requests that go on beside each other get connections of their own, which those that follow share."""

    async def script() -> None:
        async with site() as it:

            async def serve() -> None:
                async def answer(peer: Peer) -> None:
                    server = TlsPeer(peer, it.context)
                    await server.accept()
                    with suppress(ssl.SSLError, OSError):
                        while await server.receive(7):
                            await server.send(b"response")

                while True:
                    answering.append(asyncio.ensure_future(answer(await it.accepted())))

            answering: list[asyncio.Task[None]] = []
            serving = asyncio.ensure_future(serve())
            used: set[int] = set()

            async def client() -> None:
                for _ in range(20):
                    ours = it.pool.idle(it.permit()) or await it.pool.connect(it.permit())
                    used.add(id(ours))
                    kept.append(ours)
                    await ours.send(b"request", SCRIPT_S)
                    while len(ours.unread) < 8:
                        assert await ours.fill(SCRIPT_S)
                    assert ours.take_unread() == b"response"
                    it.pool.give_back(ours)

            kept: list[SecureUpstream] = []
            await asyncio.gather(*(client() for _ in range(8)))
            assert len(used) <= 8
            serving.cancel()
            for each in answering:
                each.cancel()

    run(script())
