"""Dialling by way of an upstream proxy, which is played by hand."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from kit.relaying import LIMITS, Peer, Run, listen, run
from kit.upstream_proxies import unheard

from nono_ebpf.errors import UpstreamError
from nono_ebpf.model import Endpoint
from nono_ebpf.policy.decide import Permit
from nono_ebpf.policy.rules import parse_allow_rule
from nono_ebpf.policy.upstream_proxy import UpstreamProxy
from nono_ebpf.relay.chain import ProxyAccess
from nono_ebpf.relay.upstream import dial

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

    from nono_ebpf.relay.limits import Limits
    from nono_ebpf.relay.stream import Upstream

__all__ = ["run"]

OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"
SECRET = b"Basic YWxpY2U6czNjcjN0"
AUTHORIZED = ProxyAccess(SECRET)
PATIENT = replace(LIMITS, upstream_proxy_s=30)


def permit(listener: socket.socket, host: str = "a.test", port: int = 443) -> Permit:
    where = Endpoint(ip_address("127.0.0.1"), listener.getsockname()[1])
    via = UpstreamProxy("proxy.test", where.port)
    return Permit(host, port, (where,), parse_allow_rule("*", "test"), via)


class Dialling:
    """A dial under way; `proxy` is where it arrived, its request read."""

    def __init__(self, task: asyncio.Task[Upstream], proxy: Peer, request: bytes, name: str) -> None:
        self.task, self.proxy, self.request, self.name = task, proxy, request, name

    async def failure(self) -> str:
        """Why it failed; the proxy's connection has been aborted, so that nobody takes it for a tunnel."""
        with pytest.raises(UpstreamError) as caught:
            await self.task
        assert caught.value.phase == "connect"
        with pytest.raises(ConnectionResetError):
            await self.proxy.receive_all()
        return caught.value.problem.replace(self.name, "PROXY")


@asynccontextmanager
async def dialling(
    host: str = "a.test", port: int = 443, access: ProxyAccess | None = None, limits: Limits = PATIENT
) -> AsyncIterator[Dialling]:
    with listen() as listener:
        wanted = permit(listener, host, port)
        task = asyncio.ensure_future(dial(wanted, limits, access or ProxyAccess()))
        proxy = Peer((await asyncio.get_running_loop().sock_accept(listener))[0])
        try:
            yield Dialling(task, proxy, await proxy.receive_until(b"\r\n\r\n"), str(wanted.via))
        finally:
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().reset()
            task.cancel()
            proxy.close()


@pytest.mark.parametrize(
    ("host", "port", "target"),
    [
        ("a.test", 443, b"a.test:443"),
        ("xn--mnchen-3ya.de", 5432, b"xn--mnchen-3ya.de:5432"),
        ("192.0.2.7", 80, b"192.0.2.7:80"),
        ("2001:db8::7", 22, b"[2001:db8::7]:22"),
    ],
)
def test_asks_for_the_name(run: Run, host: str, port: int, target: bytes) -> None:
    """The request names the destination as it is, and says nothing else: looking it up is the proxy's affair."""

    async def script() -> None:
        async with dialling(host, port) as it:
            assert it.request == b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, target)

    run(script())


def test_the_tunnel(run: Run) -> None:
    """Once it is open both sides talk through it; it is told apart from the proxy, and the handshake is not counted."""

    async def script() -> None:
        async with dialling() as it:
            await it.proxy.send(OPENED)
            upstream = await it.task
            assert (upstream.target, upstream.proxy) == ("a.test:443", it.name)
            assert str(upstream.endpoint) == f"127.0.0.1:{it.name.rpartition(':')[2]}"
            assert (upstream.sent_bytes, upstream.received_bytes, upstream.unread) == (0, 0, b"")
            await upstream.send(b"hello", 30)
            assert await it.proxy.receive(5) == b"hello"
            await it.proxy.send(b"world")
            assert await upstream.fill(30)
            assert upstream.unread == b"world"

    run(script())


@pytest.mark.parametrize("fields", [b"", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_the_first_bytes_of_the_tunnel_stay(run: Run, fields: bytes) -> None:
    """What a server that speaks first has said right behind the answer is left for whoever looks at the socket."""

    async def script() -> None:
        async with dialling() as it:
            await it.proxy.send(OPENED[:-2] + fields + b"\r\n220 ready\r\n\r\n")
            upstream = await it.task
            assert upstream.unread == b""
            assert upstream.sock.recv(100) == b"220 ready\r\n\r\n"

    run(script())


def test_an_answer_in_pieces(run: Run) -> None:
    """Every byte in a segment of its own is the same answer; none of the tunnel's is swallowed with it."""

    async def script() -> None:
        async with dialling() as it:
            for each in OPENED + b"hi":
                await it.proxy.send(bytes([each]))
                await asyncio.sleep(0.001)
            upstream = await it.task
            while len(upstream.unread) < 2:
                assert await upstream.fill(30)
            assert upstream.unread == b"hi"

    run(script())


def test_any_success_will_do(run: Run) -> None:
    """RFC 9110 §9.3.6: any 2xx; what comes before it (§15.2) is passed over."""

    async def script() -> None:
        async with dialling() as it:
            await it.proxy.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nLink: y\r\n\r\nHTTP/1.0 299\r\n\r\n!")
            assert (await it.task).sock.recv(100) == b"!"

    run(script())


def test_interim_responses_have_an_end(run: Run) -> None:
    """A proxy that sends nothing else is given up."""

    async def script() -> None:
        async with dialling(limits=replace(PATIENT, interim_responses=2)) as it:
            await it.proxy.send(b"HTTP/1.1 100 x\r\n\r\n" * 3 + OPENED)
            assert await it.failure() == "the upstream proxy PROXY sends interim responses without end"

    run(script())


@pytest.mark.parametrize(
    ("status", "port", "problem"),
    [
        (b"407 No", 443, "407 No: it wants credentials: --upstream-auth"),
        (b"403 Forbidden", 443, "403 Forbidden: it does not permit this host; hosts in --upstream-bypass are reached "),
        (b"403 Forbidden", 22, "403 Forbidden: proxies often permit CONNECT to port 443 only; it would have to permit"),
        (b"405 Nope", 80, "405 Nope: proxies often permit CONNECT to port 443 only; it would have to permit port 80"),
        (b"503 \x9b2J\xff", 443, "503 ?2J?: it cannot reach the host"),
        (b"302 Found", 443, "302 Found"),
        (b"101 Switching", 443, "101 Switching"),
        (b"400 ", 443, "400"),
        (b"999 x", 443, "999 x: it cannot reach the host"),
    ],
)
def test_refusals(run: Run, status: bytes, port: int, problem: str) -> None:
    """One line says who refused, what it said, fit to be shown, and what would help; the error names the host."""

    async def script() -> None:
        async with dialling(port=port) as it:
            await it.proxy.send(b"HTTP/1.1 %b\r\nConnection: close\r\n\r\n<html>" % status)
            said = await it.failure()
            assert said.startswith(f"the upstream proxy PROXY answered {problem}")
            error = it.task.exception()
            assert isinstance(error, UpstreamError)
            assert (error.target, error.phase) == (f"a.test:{port}", "connect")
            assert error.__cause__ is None

    run(script())


@pytest.mark.parametrize("authorization", [pytest.param(SECRET, id="U3")])
def test_credentials_are_sent(run: Run, authorization: bytes) -> None:
    """As they are, in the one field for them."""

    async def script() -> None:
        async with dialling(access=ProxyAccess(authorization)) as it:
            fields = it.request.split(b"\r\n")[1:-2]
            assert fields == [b"Host: a.test:443", b"Proxy-Authorization: Basic YWxpY2U6czNjcjN0"]

    run(script())


@pytest.mark.parametrize("status", [401, pytest.param(407, id="U3"), 418, 599])
def test_credentials_are_not_shown(run: Run, status: int) -> None:
    """Neither by us nor in the words of a proxy that repeats them."""
    assert repr(AUTHORIZED) == "ProxyAccess(tls=None)"

    async def script() -> None:
        async with dialling(access=AUTHORIZED) as it:
            await it.proxy.send(b"HTTP/1.1 %d no %b (alice:s3cr3t)\r\n\r\n" % (status, SECRET))
            said = await it.failure()
            assert said.startswith(f"the upstream proxy PROXY answered {status}")
            assert "YWxp" not in said
            assert "s3cr3t" not in said
            assert (": it does not take the credentials of --upstream-auth" in said) == (status in {401, 407})

    run(script())


def test_another_scheme_is_told(run: Run) -> None:
    """A proxy that wants what we do not have gets no advice that would not help."""

    async def script() -> None:
        async with dialling() as it:
            await it.proxy.send(b"HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\n\r\n")
            assert "not in the one way that we have, Basic" in await it.failure()

    run(script())


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "does not answer in HTTP/1"),
        (b"HTTP/1.1 2OO OK\r\n\r\n", "answers with a bad HTTP/1 status line"),
        (b"HTTP/1.1 200 OK\n\n", "answers with a bare LF in its head"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * (8192 - 23) + b"\r\n\r\n", "answers with a head larger than 8192 bytes"),
    ],
)
def test_what_is_no_answer(run: Run, answer: bytes, problem: str) -> None:
    """Is told with the name of the proxy."""

    async def script() -> None:
        async with dialling() as it:
            await it.proxy.send(answer)
            assert await it.failure() == f"the upstream proxy PROXY {problem}"

    run(script())


def test_a_proxy_that_leaves(run: Run) -> None:
    """In the middle of its answer, with a FIN or a RST."""

    async def script() -> None:
        async with dialling() as it:
            await it.proxy.send(OPENED[:-1])
            it.proxy.finish()
            assert await it.failure() == "the upstream proxy PROXY closes the connection without an answer"
        async with dialling() as it:
            await it.proxy.send(OPENED[:-1])
            it.proxy.reset()
            with pytest.raises(UpstreamError, match=r"the upstream proxy .* failed: Connection reset by peer"):
                await it.task

    run(script())


@pytest.mark.parametrize("drips", [False, True])
def test_one_deadline_for_all(run: Run, drips: bool) -> None:
    """Neither silence nor an answer that comes byte by byte lasts longer, and it is told apart as a timeout."""

    async def answer(listener: socket.socket) -> None:
        with closing(Peer((await asyncio.get_running_loop().sock_accept(listener))[0])) as proxy:
            await proxy.send(b"HTTP/1.1 200 OK\r\nX: ")
            while drips:
                await proxy.send(b"x")
                await asyncio.sleep(0.01)
            await proxy.receive_all()

    async def script() -> None:
        with listen() as listener:
            answering = asyncio.ensure_future(answer(listener))
            with pytest.raises(UpstreamError, match=r"opened no tunnel within 0\.3 s$") as caught:
                await dial(permit(listener), replace(PATIENT, upstream_proxy_s=0.3))
            assert isinstance(caught.value.__cause__, TimeoutError)
            answering.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):  # wherever in it the deadline was
                await answering

    run(script())


def test_the_deadline_is_for_the_connection_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is not there is not waited for as long as a host."""

    async def never(where: Endpoint) -> socket.socket:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("nono_ebpf.relay.upstream._connect", never)

    async def script() -> None:
        with listen() as listener, pytest.raises(UpstreamError, match="opened no tunnel within"):
            await dial(permit(listener), replace(PATIENT, upstream_proxy_s=0.05))

    run(script())


def test_a_proxy_that_is_down(run: Run) -> None:
    """Is told apart from a host that is."""

    async def script() -> None:
        with unheard() as down:
            wanted = permit(down)
            with pytest.raises(UpstreamError) as caught:
                await dial(wanted, PATIENT)
        assert str(caught.value) == f"connect a.test:443: the upstream proxy {wanted.via} failed: Connection refused"
        with pytest.raises(UpstreamError, match=r"the upstream proxy .* has no address$"):
            await dial(replace(wanted, endpoints=()), PATIENT)

    run(script())


def test_a_cancelled_dial_leaves_nothing(run: Run) -> None:
    """The proxy sees an abort."""

    async def script() -> None:
        async with dialling() as it:
            it.task.cancel()
            with pytest.raises(ConnectionResetError):
                await it.proxy.receive_all()
            with pytest.raises(asyncio.CancelledError):
                await it.task

    run(script())


def test_tls_is_never_left_out(run: Run) -> None:
    """Without anything to verify the proxy by, nothing is said to it."""

    async def script() -> None:
        with listen() as listener:
            wanted = permit(listener)
            assert wanted.via is not None
            task = asyncio.ensure_future(dial(replace(wanted, via=replace(wanted.via, tls=True)), PATIENT, AUTHORIZED))
            proxy = Peer((await asyncio.get_running_loop().sock_accept(listener))[0])
            with pytest.raises(UpstreamError, match="nothing to verify the upstream proxy"):
                await task
            with pytest.raises(ConnectionResetError):
                await proxy.receive_all()
            proxy.close()

    run(script())
