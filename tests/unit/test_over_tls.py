"""An upstream proxy inside TLS: to the relay, and to its client, it is like any connection."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from kit.patience import patient
from kit.relaying import LIMITS, Peer, Run, listen, run
from kit.tls_peer import TlsPeer

from nono_ebpf.errors import UpstreamError
from nono_ebpf.model import Endpoint
from nono_ebpf.policy.decide import Permit
from nono_ebpf.policy.rules import parse_allow_rule
from nono_ebpf.policy.upstream_proxy import UpstreamProxy
from nono_ebpf.relay import over_tls
from nono_ebpf.relay.chain import ProxyAccess
from nono_ebpf.relay.over_tls import TlsUpstream
from nono_ebpf.relay.splice import Pipes, Spliced
from nono_ebpf.relay.stream import Stream, tune
from nono_ebpf.relay.tunnel import tunnel
from nono_ebpf.relay.upstream import dial
from nono_ebpf.tls.contexts import context_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nono_ebpf.relay.stream import Upstream

__all__ = ["run"]

OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"
ASKED = b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n"
PATIENT = replace(LIMITS, upstream_proxy_s=120)
NAME = "proxy.test"
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

versions = pytest.mark.parametrize("version", [V12, V13], ids=["1.2", "1.3"])


@cache
def authority() -> trustme.CA:
    return trustme.CA()


@cache
def trusting() -> ssl.SSLContext:
    return context_for(authority().cert_pem.bytes())


def server_context(name: str, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(name).configure_cert(context)
    context.minimum_version = context.maximum_version = version
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


@dataclass
class Tunnel:
    """A client, the relay's two streams, and the proxy; `relay()` lets the bytes flow."""

    client: Peer
    ours: Stream
    upstream: Upstream
    proxy: TlsPeer
    pipes: Pipes
    task: asyncio.Task[Spliced] | None = None

    def relay(self) -> None:
        context: Any = SimpleNamespace(limits=PATIENT, pipes=self.pipes)

        async def whole() -> Spliced:
            try:
                return await tunnel(self.ours, self.upstream, context)
            finally:
                self.ours.close()
                self.upstream.close()

        self.task = asyncio.ensure_future(whole())

    async def spliced(self) -> Spliced:
        assert self.task is not None
        return await self.task


def permit(listener: socket.socket, name: str = NAME) -> Permit:
    where = Endpoint(ip_address("127.0.0.1"), listener.getsockname()[1])
    via = UpstreamProxy(name, where.port, tls=True)
    return Permit("a.test", 443, (where,), parse_allow_rule("*", "test"), via)


@asynccontextmanager
async def connecting(
    version: ssl.TLSVersion = V13, name: str = NAME
) -> AsyncIterator[tuple[asyncio.Task[Upstream], TlsPeer]]:
    """A dial under way; the proxy has not shaken hands yet, and says that it is `name`."""
    with listen() as listener:
        task = asyncio.ensure_future(dial(permit(listener), PATIENT, ProxyAccess(tls=trusting())))
        accepted = Peer((await asyncio.get_running_loop().sock_accept(listener))[0])
        try:
            yield task, TlsPeer(accepted, server_context(name, version))
        finally:
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().reset()
            task.cancel()
            accepted.close()


@asynccontextmanager
async def tunnelled(version: ssl.TLSVersion = V13, early: bytes = b"") -> AsyncIterator[Tunnel]:
    """A tunnel that is open, `early` behind the proxy's answer; nothing flows yet."""
    async with connecting(version) as (task, proxy):
        await proxy.accept()
        assert await proxy.receive(len(ASKED)) == ASKED
        await proxy.send(OPENED + early)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = Peer(socket.create_connection(listener.getsockname()))
            ours = listener.accept()[0]
        tune(ours)
        pipes = Pipes(PATIENT)
        it = Tunnel(client, Stream(ours), await task, proxy, pipes)
        try:
            yield it
        finally:
            if it.task is not None:
                it.task.cancel()
                await asyncio.wait([it.task])
            it.ours.reset()
            client.close()
            pipes.close()


def pump_of(upstream: Upstream) -> over_tls._Pump:
    assert isinstance(upstream, TlsUpstream)
    return upstream._pump


@versions
def test_bytes_pass(run: Run, version: ssl.TLSVersion) -> None:
    """More than any buffer holds, both ways at once, and none is changed; the first come with the proxy's answer."""
    up, down = os.urandom(6_000_011), os.urandom(7_000_003)

    async def script() -> None:
        async with tunnelled(version, early=b"220 ready\r\n") as it:
            it.relay()
            assert await it.client.receive(11) == b"220 ready\r\n"
            async with asyncio.TaskGroup() as group:
                group.create_task(it.client.send(up))
                group.create_task(it.proxy.send(down))
                sent = group.create_task(it.proxy.receive(len(up)))
                received = group.create_task(it.client.receive(len(down)))
            assert sent.result() == up
            assert received.result() == down

    run(script())


@versions
def test_the_proxys_end_is_passed_on(run: Run, version: ssl.TLSVersion) -> None:
    """After close_notify, and behind everything sent, the client sees a FIN, and may still send where TLS allows it."""

    async def script() -> None:
        async with tunnelled(version) as it:
            it.relay()
            await it.proxy.send(b"all of it")
            await it.proxy.finish()
            assert await it.client.receive_all() == b"all of it"
            if version is V13:
                await it.client.send(b"still here")
                assert await it.proxy.receive(10) == b"still here"
            it.client.finish()
            assert (await it.spliced()).ended == "eof"
            assert await it.proxy.receive_all() == b""

    run(script())


def test_the_clients_end_is_passed_on(run: Run) -> None:
    """In TLS 1.3 as a close_notify, after which the proxy still answers."""

    async def script() -> None:
        async with tunnelled() as it:
            it.relay()
            await it.client.send(b"question")
            it.client.finish()
            assert await it.proxy.receive_all() == b"question"
            await it.proxy.send(b"answer")
            await it.proxy.finish()
            assert await it.client.receive_all() == b"answer"
            assert (await it.spliced()).ended == "eof"
            assert await it.proxy.tcp.receive_all() == b""  # FIN

    run(script())


def test_before_tls_1_3_the_clients_end_waits(run: Run) -> None:
    """There a close_notify would have cut the answer off."""

    async def script() -> None:
        async with tunnelled(V12) as it:
            it.relay()
            await it.client.send(b"question")
            it.client.finish()
            assert await it.proxy.receive(8) == b"question"
            pump = pump_of(it.upstream)
            while not pump._relay_finished:
                await asyncio.sleep(0.01)
            assert not pump._said_goodbye
            await it.proxy.send(b"answer")
            await it.proxy.finish()
            assert await it.client.receive_all() == b"answer"
            assert (await it.spliced()).ended == "eof"
            assert await it.proxy.receive_all() == b""

    run(script())


@versions
@pytest.mark.parametrize("half_closed", [False, True])
@pytest.mark.parametrize("ending", ["FIN", "RST", "garbage"])
def test_a_broken_connection_is_no_end(run: Run, version: ssl.TLSVersion, half_closed: bool, ending: str) -> None:
    """Whatever ends TLS but close_notify is a RST to the client, whether or not it has finished itself; we know why."""

    async def script() -> None:
        async with tunnelled(version) as it:
            it.relay()
            await it.proxy.send(b"half")
            assert await it.client.receive(4) == b"half"
            if half_closed:
                it.client.finish()
                await asyncio.sleep(0.05)
            match ending:
                case "FIN":
                    it.proxy.tcp.finish()
                case "RST":
                    it.proxy.tcp.reset()
                case _:
                    await it.proxy.tcp.send(b"HTTP/1.1 200 OK\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                await it.client.receive_all()
            spliced = await it.spliced()
            assert spliced.ended == "reset"
            why = it.upstream.explain(spliced.problem)
            reason = {"FIN": "unexpected eof", "RST": "Connection reset by peer"}.get(ending, "")
            assert why.startswith(f"TLS to the upstream proxy broke: {reason}")

    run(script())


def test_what_came_before_the_break_arrives(run: Run) -> None:
    """The relay reads it, and then an error, not an end, which names the cause."""

    async def script() -> None:
        async with tunnelled() as it:
            await it.proxy.send(b"x" * 500_000)
            it.proxy.tcp.finish()
            with pytest.raises(
                UpstreamError, match=r"^read a\.test:443: TLS to the upstream proxy broke: unexpected eof$"
            ):
                await read_all(it.upstream)
            assert it.upstream.unread == b"x" * 500_000

    run(script())


@versions
def test_a_break_right_behind_bytes_is_seen(run: Run, version: ssl.TLSVersion) -> None:
    """Both arrive before we look: the loop tells of the two once."""

    async def script() -> None:
        async with tunnelled(version) as it:
            it.relay()
            await asyncio.sleep(0.05)
            await it.proxy.send(b"half")
            it.proxy.tcp.reset()
            async with asyncio.timeout(patient(20)):
                assert (await it.spliced()).ended == "reset"

    run(script())


async def read_all(upstream: Upstream) -> None:
    while await upstream.fill(30):
        pass


@versions
@pytest.mark.parametrize("half_closed", [False, True])
def test_a_reset_is_an_abort(run: Run, version: ssl.TLSVersion, half_closed: bool) -> None:
    """Also when there is nothing more to send: the proxy does not take it for the whole."""

    async def script() -> None:
        async with tunnelled(version) as it:
            await it.upstream.send(b"half", 30)
            if half_closed:
                it.upstream.sock.shutdown(socket.SHUT_WR)
            assert await it.proxy.receive(4) == b"half"
            it.upstream.reset()
            it.upstream.reset()
            it.upstream.close()
            with pytest.raises(ConnectionResetError):
                await it.proxy.tcp.receive_all()

    run(script())


@versions
def test_close_is_orderly(run: Run, version: ssl.TLSVersion) -> None:
    """Everything that was sent arrives, then close_notify, then FIN; and no descriptor is left."""

    async def script() -> None:
        async with tunnelled(version) as it:
            await it.upstream.send(b"y" * 150_000, 30)
            it.upstream.close()
            it.upstream.close()
            assert await it.proxy.receive_all() == b"y" * 150_000
            assert await it.proxy.tcp.receive_all() == b""
            pump = pump_of(it.upstream)
            assert {pump._ours.fileno(), pump.end.fileno(), pump._tcp.sock.fileno()} == {-1}

    run(script())


def test_close_does_not_last(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that does not take what is left is given up."""
    monkeypatch.setattr(over_tls, "_FAREWELL_S", 0.05)

    async def script() -> None:
        async with tunnelled() as it:
            await fill(it.upstream.sock)
            it.upstream.close()
            pump = pump_of(it.upstream)
            while pump._tcp.sock.fileno() >= 0:
                await asyncio.sleep(0.01)
            with pytest.raises(ConnectionResetError):
                await it.proxy.receive_all()

    run(script())


async def fill(sock: socket.socket) -> int:
    """Send until nothing more is taken; how much was."""
    taken, refused = 0, 0
    while refused < 20:
        try:
            taken += sock.send(bytes(65536))
            refused = 0
        except BlockingIOError:
            refused += 1
            await asyncio.sleep(0.01)
    return taken


def test_each_side_waits_for_the_other(run: Run) -> None:
    """Bytes that nobody takes at one end are not taken at the other: a piece is all that is in hand."""

    async def script() -> None:
        async with tunnelled() as it:
            pump = pump_of(it.upstream)
            await fill(it.upstream.sock)
            assert 0 < len(pump._to_proxy) <= over_tls._PIECE_BYTES + 1000
            assert pump._ours.fileno() not in pump._read_from, "it would be told of it again and again"
            sending = asyncio.ensure_future(it.proxy.send(bytes(32 << 20)))
            while not pump._to_relay:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            assert not sending.done()
            assert len(pump._to_relay) <= over_tls._PIECE_BYTES
            sending.cancel()

    run(script())


def test_a_dropped_end_is_an_abort(run: Run) -> None:
    """Whoever loses the relay's end without a word has not ended in order."""

    async def script() -> None:
        async with tunnelled() as it:
            it.upstream.sock.close()
            with pytest.raises(ConnectionResetError):
                await it.proxy.receive_all()

    run(script())


@pytest.mark.parametrize("name", ["other.test", "*.proxy.test"])
def test_the_name_is_verified(run: Run, name: str) -> None:
    """A certificate for somebody else is refused before anything is asked."""

    async def script() -> None:
        async with connecting(name=name) as (task, proxy):
            assert await proxy.refused() == "SSLV3_ALERT_BAD_CERTIFICATE"
            with pytest.raises(UpstreamError, match=r"proxy\.test:\d+ failed: Hostname mismatch, .*t'$"):
                await task

    run(script())


def test_the_issuer_is_verified(run: Run) -> None:
    """A certificate that nobody we trust has issued is refused, with what would help."""

    async def script() -> None:
        with listen() as listener:
            access = ProxyAccess(b"Basic YTpi", context_for(None))
            task = asyncio.ensure_future(dial(permit(listener), PATIENT, access))
            accepted = Peer((await asyncio.get_running_loop().sock_accept(listener))[0])
            proxy = TlsPeer(accepted, server_context(NAME, V13))
            assert await proxy.refused() == "TLSV1_ALERT_UNKNOWN_CA"
            with pytest.raises(UpstreamError, match=r"--upstream-ca names a private CA$"):
                await task
            accepted.close()

    run(script())


def test_literal_addresses_are_verified(run: Run) -> None:
    """A proxy named by its address has that address in its certificate."""

    async def script() -> None:
        with listen() as listener:
            wanted = permit(listener, "127.0.0.1")
            task = asyncio.ensure_future(dial(wanted, PATIENT, ProxyAccess(tls=trusting())))
            accepted = Peer((await asyncio.get_running_loop().sock_accept(listener))[0])
            proxy = TlsPeer(accepted, server_context("127.0.0.1", V13))
            await proxy.accept()
            await proxy.send(OPENED)
            (await task).reset()
            accepted.close()

    run(script())


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what it answers is not TLS"),
        (b"", "unexpected eof while reading"),
    ],
)
def test_what_is_no_tls(run: Run, said: bytes, why: str) -> None:
    """Is told as what it is."""

    async def script() -> None:
        async with connecting() as (task, proxy):
            await proxy.tcp.send(said)
            proxy.tcp.finish()
            with pytest.raises(UpstreamError, match=rf"TLS to the upstream proxy .* failed: {why}$"):
                await task

    run(script())


def test_a_refusal_after_the_handshake_is_told(run: Run) -> None:
    """In TLS 1.3 a proxy that wants a certificate of ours says so when we believe we are through."""

    async def script() -> None:
        async with connecting() as (task, proxy):
            context = server_context(NAME, V13)
            context.verify_mode = ssl.CERT_REQUIRED
            authority().configure_trust(context)
            strict = TlsPeer(proxy.tcp, context)
            with pytest.raises(ssl.SSLError):
                await strict.accept()
            await strict._flush()
            with pytest.raises(UpstreamError, match=r"the upstream proxy broke: it wants a client certificate"):
                await task

    run(script())


def test_what_is_verified_by() -> None:
    """Names, dates and issuers, by TLS 1.2 at least, and by nothing that would have to be looked for later."""
    context = context_for(b"# T\xc3\xbcrktrust\n" + authority().cert_pem.bytes())
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is V12
    assert context.cert_store_stats()["x509_ca"] == context_for(None).cert_store_stats()["x509_ca"] + 1


def test_roots_that_are_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a distribution has no bundle, its certificates are loaded at once, before they are out of reach."""
    certificate = tmp_path / "root.pem"
    authority().cert_pem.write_to_path(str(certificate))
    named = subprocess.run(["openssl", "x509", "-hash", "-noout", "-in", certificate], capture_output=True, check=True)
    (tmp_path / f"{named.stdout.decode().strip()}.0").symlink_to(certificate)
    (tmp_path / "01234567.0").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert context_for(None).cert_store_stats()["x509_ca"] == 1
