"""TLS on either side is a stream like any other: what arrives, how it ends, and what is said when it cannot begin."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import select
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import uvloop
from kit.expect import require
from kit.patience import patient
from kit.proxies import free_port
from kit.relaying import LIMITS, Peer, Run, listen, run
from kit.tls_peer import TlsPeer

from nono_ebpf.errors import ClientProtocolError, UpstreamError
from nono_ebpf.model import Endpoint
from nono_ebpf.relay import refuse, secure
from nono_ebpf.relay.secure import SecureStream, SecureUpstream, accept
from nono_ebpf.relay.stream import Stream, Upstream, tune
from nono_ebpf.tls.authority import CertificateAuthority
from nono_ebpf.tls.contexts import ServerContexts, UpstreamContexts, context_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    # Either of our ends.
    Ours = SecureStream | SecureUpstream

__all__ = ["run"]

NAME, WAIT_S = "api.test", 60.0
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
LOOPBACK = ip_address("127.0.0.1")
# Of records, pieces and reads, none is a multiple.
MUCH = 3_000_001

versions = pytest.mark.parametrize("version", [V12, V13], ids=["1.2", "1.3"])
sides = pytest.mark.parametrize("side", ["client", "upstream"])


@cache
def authority() -> CertificateAuthority:
    return CertificateAuthority([NAME, "127.0.0.1", "*.wide.test"])


@cache
def contexts() -> ServerContexts:
    return ServerContexts(authority())


@cache
def somebody() -> trustme.CA:
    return trustme.CA()


@cache
def trusting() -> ssl.SSLContext:
    return UpstreamContexts(authority().certificate_pem + somebody().cert_pem.bytes())(None)


def client_context(version: ssl.TLSVersion = V13, trusted: bytes | None = None) -> ssl.SSLContext:
    context = context_for(authority().certificate_pem if trusted is None else trusted)
    context.minimum_version = context.maximum_version = version
    return context


def server_context(name: str = NAME, version: ssl.TLSVersion = V13, **more: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    somebody().issue_cert(name, **more).configure_cert(context)
    context.minimum_version = context.maximum_version = version
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


def connected() -> tuple[Peer, socket.socket]:
    """A connection over loopback: the peer's end, and ours."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # one that waits: the peer is through before we are
        theirs = socket.create_connection(listener.getsockname(), timeout=WAIT_S)
        ours = listener.accept()[0]
    tune(theirs)
    tune(ours)
    return Peer(theirs), ours


def upstream_of(sock: socket.socket) -> Upstream:
    return Upstream(sock, f"{NAME}:443", Endpoint(LOOPBACK, 443))


def start(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.ensure_future(coroutine)


@asynccontextmanager
async def secured(side: str, version: ssl.TLSVersion = V13) -> AsyncIterator[tuple[Ours, TlsPeer]]:
    """Our end toward a client or an upstream, and that one's own."""
    peer, sock = connected()
    try:
        if side == "client":
            theirs = TlsPeer(peer, client_context(version), NAME)
            begun = start(accept(Stream(sock), contexts().context_for(NAME), WAIT_S))
        else:
            theirs = TlsPeer(peer, server_context(version=version))
            begun = start(secure.secure(upstream_of(sock), NAME, trusting(), None, WAIT_S))
        await theirs.accept()
        ours = await begun
        yield ours, theirs
    finally:
        ours.reset()
        peer.close()


async def read_all(stream: Stream) -> bytes:
    while await stream.fill(WAIT_S):
        pass
    return stream.take_unread()


async def read(stream: Stream, size: int, at_once: int = 1 << 18) -> bytes:
    while len(stream.unread) < size and await stream.fill(WAIT_S, at_once):
        pass
    return stream.take_unread()


async def something_came(sock: socket.socket) -> None:
    """Wait for bytes, an end or an error, and leave them where they are."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while not poll.poll(0):
        await asyncio.sleep(0.001)


def raising(error: type[Exception]) -> Callable[[bytes], int]:
    def fail(_data: bytes) -> int:
        raise error

    return fail


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# --- what arrives


@sides
@versions
def test_bytes_arrive_as_they_were(run: Run, side: str, version: ssl.TLSVersion) -> None:
    """Both ways at once and more than any buffer holds; the counters are of plaintext."""

    async def script() -> None:
        async with secured(side, version) as (ours, theirs):
            up, down = noise(MUCH), noise(MUCH + 1)
            sending = start(ours.send(down, WAIT_S))
            told = start(theirs.send(up))
            reading = start(read(ours, len(up)))
            assert await theirs.receive(len(down)) == down
            assert await reading == up
            await asyncio.gather(sending, told)
            assert (ours.received_bytes, ours.sent_bytes) == (len(up), len(down))

    run(script())


@sides
def test_small_pieces_arrive_at_once(run: Run, side: str) -> None:
    """A byte is a record of its own and does not wait for another."""

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            for number in range(50):
                await ours.send(bytes([number]), WAIT_S)
                assert await theirs.receive(1) == bytes([number])
                await theirs.send(bytes([number]) * 2)
                assert await read(ours, 2) == bytes([number]) * 2

    run(script())


@sides
def test_a_record_may_come_byte_by_byte(run: Run, side: str) -> None:
    """What is not whole is waited for, and nothing of it is lost."""

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            theirs.tls.write(b"x" * 300)
            for byte in theirs._outgoing.read():
                await theirs.tcp.send(bytes([byte]))
                await asyncio.sleep(0)
            assert await read(ours, 300) == b"x" * 300

    run(script())


@sides
def test_a_piece_of_a_record_is_not_waited_for_forever(run: Run, side: str) -> None:
    """The deadline is for something to read, not for bytes."""

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            theirs.tls.write(b"x" * 300)
            record = theirs._outgoing.read()

            async def drip() -> None:
                for byte in record[:20]:
                    await theirs.tcp.send(bytes([byte]))
                    await asyncio.sleep(0.01)

            dripping = start(drip())
            with pytest.raises((TimeoutError, UpstreamError), match=r"^$|timed out"):
                await ours.fill(0.05)
            await dripping
            await theirs.tcp.send(record[20:])
            assert await read(ours, 300) == b"x" * 300

    run(script())


@sides
def test_the_loop_watches_on_between_two_waits(side: str) -> None:
    """To begin and to end would be most of what a wait costs. Where something comes that nobody waits for it ends."""

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            await theirs.send(b"x")
            assert await read(ours, 1) == b"x"  # and what TLS has to say to begin with
            for _ in range(3):
                reading = start(ours.fill(WAIT_S))
                await asyncio.sleep(0)
                assert ours._tls._watching is not None
                await theirs.send(b"y")
                assert await reading
                assert ours._tls._watching is not None
            await theirs.send(b"z")
            while ours._tls._watching is not None:
                await asyncio.sleep(0)
            assert not asyncio.get_running_loop().remove_reader(ours.sock.fileno())
            assert await read(ours, 4) == b"yyyz"

    uvloop.run(script())  # the loop that the product uses; asyncio's own tells of what has been read meanwhile


@pytest.mark.parametrize("end", ["close", "reset"])
@sides
def test_no_socket_is_watched_that_is_closed(run: Run, side: str, end: str) -> None:
    """The next one has its number, and would not be heard."""

    async def script() -> None:
        async with secured(side) as (ours, _):
            fd = ours.sock.fileno()
            reading = start(ours.fill(WAIT_S))
            while ours._tls._watching is None:
                await asyncio.sleep(0)
            getattr(ours, end)()
            assert not asyncio.get_running_loop().remove_reader(fd)
            reading.cancel()

    run(script())


def test_pieces_without_end_are_not_waited_for_either(run: Run) -> None:
    """Nor do they keep others from their turn: a peer may be as fast as we are."""
    turns = 0

    async def another_piece(_size: int, _due: float) -> bytes:
        return b"x"

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def script() -> None:
        async with secured("client") as (ours, _):
            whole = ours._tls
            undecided: Any = SimpleNamespace(receive=another_piece, take=lambda _raw=b"": b"", ended=False)
            ours._tls = undecided
            counting = start(count())
            with pytest.raises(TimeoutError):
                await ours.fill(0.3)
            assert turns > 1
            counting.cancel()
            ours._tls = whole

    run(script())


@sides
def test_buffers_of_tls_stay_small(run: Run, side: str) -> None:
    """OpenSSL keeps the size that they once had, so no more than a record is put into one at a time."""

    class Watched:
        """Bytes on their way through OpenSSL, and the most that there were."""

        def __init__(self, bio: ssl.MemoryBIO) -> None:
            self._bio, self.most = bio, 0

        @property
        def pending(self) -> int:
            return self._bio.pending

        def read(self) -> bytes:
            self.most = max(self.most, self._bio.pending)
            return self._bio.read()

        def write(self, data: bytes) -> int:
            self.most = max(self.most, self._bio.pending + len(data))
            return self._bio.write(data)

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            incoming, outgoing = Watched(ours._tls._incoming), Watched(ours._tls._outgoing)
            watched: Any = (incoming, outgoing)
            ours._tls._incoming, ours._tls._outgoing = watched
            receiving = start(theirs.receive(MUCH))
            await ours.send(noise(MUCH), WAIT_S)
            assert await receiving == noise(MUCH)
            telling = start(theirs.send(noise(MUCH)))
            assert await read(ours, MUCH) == noise(MUCH)
            await telling
            for each in (incoming, outgoing):
                assert 1000 < each.most <= 16384 + 300

    run(script())


@sides
def test_what_comes_with_the_handshake_is_read(run: Run, side: str) -> None:
    """In the same segment as its last message, behind which the socket is empty."""

    async def script() -> None:
        peer, sock = connected()
        if side == "client":
            theirs = TlsPeer(peer, client_context(), NAME)
            begun = start(accept(Stream(sock), contexts().context_for(NAME), WAIT_S))
        else:
            theirs = TlsPeer(peer, server_context())
            begun = start(secure.secure(upstream_of(sock), NAME, trusting(), None, WAIT_S))
        if side == "client":

            def step() -> None:
                theirs.tls.do_handshake()
                theirs.tls.write(b"early")

            await theirs._until_done(step)
        else:
            await theirs.accept()
            await theirs.send(b"early")
        ours = await begun
        assert await read(ours, 5) == b"early"
        ours.reset()
        peer.close()

    run(script())


def test_a_hello_that_was_read_already_counts(run: Run) -> None:
    """Whoever sniffed it has left it in `unread`, whole or in part."""

    async def script() -> None:
        for part in (1, 100, 10_000):
            peer, sock = connected()
            theirs = TlsPeer(peer, client_context(), NAME)
            shaking = start(theirs.accept())
            client = Stream(sock)
            await client.fill(WAIT_S, part)
            ours = await accept(client, contexts().context_for(NAME), WAIT_S)
            await shaking
            assert not client.unread
            await ours.send(b"hello", WAIT_S)
            assert await theirs.receive(5) == b"hello"
            ours.close()
            peer.close()

    run(script())


@sides
def test_a_peer_that_does_not_read_is_waited_for(run: Run, side: str) -> None:
    """`send` returns when the kernel has everything, and holds one piece until then; a deadline ends the wait."""

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            ours.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            theirs.tcp.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # which does not grow
            data = noise(4 << 20)
            sending = start(ours.send(data, WAIT_S))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not sending.done()
            assert len(ours._tls._unsent) + ours._tls._outgoing.pending < 200_000
            assert await theirs.receive(len(data)) == data
            await sending
            with pytest.raises((TimeoutError, UpstreamError), match=r"^$|timed out"):
                await ours.send(data, 0.05)

    run(script())


@sides
def test_others_have_their_turn(run: Run, side: str) -> None:
    """While much is encrypted that the kernel takes at once, the loop goes round."""

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            counting = start(count())
            receiving = start(theirs.receive(1 << 20))
            await ours.send(bytes(1 << 20), WAIT_S)
            assert turns >= 15
            await receiving
            counting.cancel()

    run(script())


def memory_of(stream: Ours) -> int:
    """What the buffers of TLS hold, read or not."""
    return len(stream._tls._unsent) + stream._tls._outgoing.pending + stream._tls._incoming.pending


@sides
def test_a_read_takes_no_more_than_it_was_asked_for(run: Run, side: str) -> None:
    """And a record; the rest stays in the kernel, and in the peer."""

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            telling = start(theirs.send(noise(MUCH)))
            received = 0
            while received < MUCH:
                await ours.fill(WAIT_S, 20_000)
                assert len(ours.unread) <= 20_000 + 16384
                assert memory_of(ours) <= 16384 + 300
                received += len(ours.take_unread())
            await telling

    run(script())


# --- how it ends


@sides
@versions
def test_close_says_goodbye(run: Run, side: str, version: ssl.TLSVersion) -> None:
    """Behind everything that was sent; then a FIN. More than once is once."""

    async def script() -> None:
        async with secured(side, version) as (ours, theirs):
            await theirs.send(b"x")
            await read(ours, 1)  # and what TLS had to say: what lies unread in the kernel is answered by a RST
            await ours.send(b"last", WAIT_S)
            ours.close()
            ours.close()
            assert await theirs.receive_all() == b"last"
            assert await theirs.tcp.receive_all() == b""

    run(script())


@sides
def test_reset_is_an_abort(run: Run, side: str) -> None:
    """A RST and no close_notify: what was sent before was not all."""

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            await ours.send(b"part", WAIT_S)
            ours.reset()
            ours.close()
            with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                await theirs.receive_all()
            with pytest.raises(OSError, match=r"Bad file descriptor|closed"):
                ours.sock.send(b"x")

    run(script())


@sides
def test_a_process_that_dies_resets(run: Run, side: str) -> None:
    """The socket aborts from the start, which only an orderly end takes back."""

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            await ours.send(b"part", WAIT_S)
            ours.sock.close()  # as the kernel does
            with pytest.raises(ConnectionResetError):
                await theirs.receive_all()

    run(script())


@versions
def test_the_last_word_arrives(run: Run, version: ssl.TLSVersion) -> None:
    """Though the client keeps sending what nobody will read: a text, close_notify, FIN."""

    async def script() -> None:
        async with secured("client", version) as (ours, theirs):
            await theirs.send(bytes(200_000))
            saying = start(refuse.say_last(ours, b"no", LIMITS))
            assert await theirs.receive_all() == b"no"
            theirs.tcp.finish()
            await saying
            assert await theirs.tcp.receive_all() == b""
            assert ours.sock.fileno() == -1

    run(script())


@sides
@versions
def test_a_close_notify_is_the_end(run: Run, side: str, version: ssl.TLSVersion) -> None:
    """Of the stream, from either side and with the connection still there; what came before is read first."""

    async def script() -> None:
        async with secured(side, version) as (ours, theirs):
            await theirs.send(b"before")
            await theirs.finish()
            assert await read_all(ours) == b"before"
            assert ours.at_eof
            assert not await ours.fill(WAIT_S)
            if version is V13:
                await ours.send(b"after", WAIT_S)
                assert await theirs.receive(5) == b"after"

    run(script())


def test_a_clients_fin_is_the_end(run: Run) -> None:
    """Many clients end without a close_notify, and nothing of theirs is whole only because it ended."""

    async def script() -> None:
        async with secured("client") as (ours, theirs):
            await theirs.send(b"before")
            theirs.tcp.finish()
            assert await read_all(ours) == b"before"
            assert not await ours.fill(WAIT_S)
            await ours.send(b"answer", WAIT_S)
            assert await theirs.receive(6) == b"answer"

    run(script())


@pytest.mark.parametrize("torn", [False, True], ids=["between records", "within one"])
@versions
def test_an_upstreams_fin_is_an_error(run: Run, version: ssl.TLSVersion, torn: bool) -> None:
    """Without a close_notify before it: a body that ends with the connection may have been cut off."""

    async def script() -> None:
        async with secured("upstream", version) as (ours, theirs):
            await theirs.send(b"before")
            if torn:
                theirs.tls.write(b"more")
                await theirs.tcp.send(theirs._outgoing.read()[:-1])
            theirs.tcp.finish()
            with pytest.raises(UpstreamError, match=r"^read api\.test:443: .*without a close_notify.*cut"):
                await read_all(ours)
            assert ours.take_unread() == b"before"

    run(script())


@sides
def test_a_reset_is_an_error(run: Run, side: str) -> None:
    """In the words of whoever has to know."""

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            theirs.tcp.reset()
            error = UpstreamError if side == "upstream" else ConnectionResetError
            with pytest.raises(error, match="Connection reset by peer"):
                await ours.fill(WAIT_S)
            with pytest.raises((UpstreamError, BrokenPipeError)):
                await ours.send(b"x", WAIT_S)

    run(script())


@sides
def test_nonsense_is_an_error(run: Run, side: str) -> None:
    """What was read before it is kept, and nothing comes after it; its sender is told by an alert."""

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            await theirs.send(b"before")
            await theirs.tcp.send(b"\x17\x03\x03\x00\x20" + bytes(32))
            with pytest.raises((UpstreamError, ConnectionError), match="TLS broke: decryption failed"):
                await read_all(ours)
            assert ours.take_unread() == b"before"
            with pytest.raises((UpstreamError, ConnectionError), match="TLS broke"):
                await ours.fill(WAIT_S)
            with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
                await theirs.receive(1)

    run(script())


async def stuffed() -> tuple[SecureStream, TlsPeer, int]:
    """A client that has not read anything yet, and for which nothing more fits; how much it was sent."""
    peer, sock = connected()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs = TlsPeer(peer, client_context(), NAME)
    begun = start(accept(Stream(sock), contexts().context_for(NAME), WAIT_S))
    await theirs.accept()
    ours = await begun
    sent, stuck = 0, 0
    while stuck < 100:  # the kernel still moves some: also a fifth of a second later, when it probes a closed window
        if ours._tls.push():
            ours._tls.encrypt(memoryview(bytes(10_000)))
            sent += 10_000
            stuck = 0
        else:
            stuck += 1
            await asyncio.sleep(0.01)
    return ours, theirs, sent


def test_a_slow_client_gets_its_goodbye_later(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A close_notify that does not fit behind a long answer is not left out: without it the answer would look cut."""
    monkeypatch.setattr(secure, "_FAREWELL_S", WAIT_S)

    async def script() -> None:
        ours, theirs, sent = await stuffed()
        ours.close()
        assert (ours.sock.fileno(), secure._Farewell.open) == (-1, 1)
        assert len(await theirs.receive_all()) == sent
        assert await theirs.tcp.receive_all() == b""
        assert secure._Farewell.open == 0
        theirs.tcp.close()

    run(script())


@pytest.mark.parametrize("most", [0, 1])
def test_nobody_is_waited_for_forever(run: Run, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A client that never takes what was sent loses it after a moment; when there are too many of them, at once."""
    monkeypatch.setattr(secure, "_FAREWELL_S", 0.05)
    monkeypatch.setattr(secure, "_MAX_FAREWELLS", most)

    async def script() -> None:
        ours, theirs, _ = await stuffed()
        ours.close()
        assert secure._Farewell.open == most
        while secure._Farewell.open:
            await asyncio.sleep(0.01)
        with pytest.raises((ConnectionResetError, ssl.SSLError)):
            await theirs.receive_all()
        theirs.tcp.close()

    run(script())


def test_who_leaves_is_not_waited_for(run: Run) -> None:
    """A client that resets while its goodbye waits."""

    async def script() -> None:
        ours, theirs, _ = await stuffed()
        ours.close()
        theirs.tcp.reset()
        while secure._Farewell.open:
            await asyncio.sleep(0.01)

    run(script())


@pytest.mark.parametrize("turns", [2, 200], ids=["between records", "within one"])
@sides
def test_what_was_cut_off_is_not_followed_by_a_goodbye(run: Run, side: str, turns: int) -> None:
    """A `send` that was cancelled leaves something that must not look whole."""

    async def script() -> None:
        async with secured(side) as (ours, theirs):
            sending = start(ours.send(noise(16 << 20), WAIT_S))
            for _ in range(turns):
                await asyncio.sleep(0)
            assert not sending.done()
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            ours.close()
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await theirs.receive_all()

    run(script())


# --- TLS's own messages


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_is_served(run: Run, tmp_path: Path, version: str) -> None:
    """By a real client: it verifies us, we read what it says, it reads what we say. In 1.3 it changes its keys."""
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority().certificate_pem)

    async def script() -> None:
        with listen() as listener:
            openssl = await asyncio.create_subprocess_exec(
                *(require("openssl"), "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}"),
                *("-CAfile", str(trusted), "-servername", NAME, "-verify_hostname", NAME, "-verify_return_error"),
                *(version, "-alpn", "h2,http/1.1", "-no_ign_eof"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert openssl.stdin is not None
            assert openssl.stdout is not None
            sock = (await asyncio.get_running_loop().sock_accept(listener))[0]
            tune(sock)
            ours = await accept(Stream(sock), contexts().context_for(NAME), WAIT_S)
            openssl.stdin.write(b"hello\n")
            assert await read(ours, 6) == b"hello\n"
            # A KeyUpdate that asks for one of ours; a renegotiation, which is refused. A command is a read of its own.
            command, noted = (b"K\n", b"KEYUPDATE\n") if version == "-tls1_3" else (b"R\n", b"RENEGOTIATING\n")
            openssl.stdin.write(command)
            said = await openssl.stdout.readuntil(noted)
            openssl.stdin.write(b"again\n")
            with suppress(ConnectionError):  # in 1.2 it ends where it is refused
                assert await read(ours, 6) == (b"again\n" if version == "-tls1_3" else b"")
                await ours.send(b"good answer", WAIT_S)
            ours.close()
            said += await openssl.stdout.read()
            await openssl.wait()
            assert b"Verification: OK" in said
            assert b"ALPN protocol: http/1.1" in said
            assert (b"good answer" in said) == (version == "-tls1_3")

    run(script())


def test_who_does_not_listen_to_our_answers_is_left(run: Run) -> None:
    """What TLS has to answer has a bound, too: it is no way to make us hold memory."""

    async def script() -> None:
        async with secured("client") as (ours, theirs):
            stuck: Any = SimpleNamespace(send=raising(BlockingIOError), recv=ours.sock.recv, fileno=ours.sock.fileno)
            ours._tls.sock = stuck
            ours._tls._outgoing.write(bytes(16_000))
            await theirs.send(b"x")
            assert await read(ours, 1) == b"x"
            ours._tls._outgoing.write(bytes(1000))
            with pytest.raises(ConnectionError, match="nobody listens"):
                await ours.fill(WAIT_S)

    run(script())


# --- handshakes that fail: a client's


async def refused_by(theirs: TlsPeer, sock: socket.socket, deadline_s: float = WAIT_S) -> ClientProtocolError:
    client = Stream(sock)
    accepting = start(accept(client, contexts().context_for(NAME), deadline_s))
    with suppress(ssl.SSLError, OSError):
        await theirs.accept()
    with suppress(OSError):
        await theirs._flush()  # the alert
    with pytest.raises(ClientProtocolError) as caught:
        await accepting
    client.close()
    return caught.value


@versions
def test_a_client_that_does_not_trust_us(run: Run, version: ssl.TLSVersion) -> None:
    """Its alert is told, and what is the matter."""

    async def script() -> None:
        peer, sock = connected()
        theirs = TlsPeer(peer, client_context(version, somebody().cert_pem.bytes()), NAME)
        error = await refused_by(theirs, sock)
        assert str(error) == (
            "TLS handshake: the client refuses with the alert unknown ca; "
            "it does not trust this sandbox's certificate authority"
        )
        peer.close()

    run(script())


def test_a_client_that_wants_another_name(run: Run) -> None:
    """The same for a certificate that it does not take."""

    async def script() -> None:
        peer, sock = connected()
        error = await refused_by(TlsPeer(peer, client_context(), "other.test"), sock)
        assert "the client refuses with the alert bad certificate" in str(error)
        peer.close()

    run(script())


@pytest.mark.parametrize(
    ("said", "problem", "alert"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "TLS handshake: http request", b""),
        (b"\x16\x03\x01\x00\x05hello", "TLS handshake: ", b"\x15\x03"),
        (b"", "the client ended the connection", b""),
        (b"\x16\x03\x01", "the client ended the connection", b""),
    ],
    ids=["HTTP", "nonsense", "nothing", "part"],
)
def test_what_is_no_hello(run: Run, said: bytes, problem: str, alert: bytes) -> None:
    """Is told as what it is, and answered by an alert where there is somebody to understand it."""

    async def script() -> None:
        peer, sock = connected()
        client = Stream(sock)
        accepting = start(accept(client, contexts().context_for(NAME), WAIT_S))
        await peer.send(said)
        peer.finish()
        with pytest.raises(ClientProtocolError) as caught:
            await accepting
        assert problem in str(caught.value)
        client.close()
        with suppress(ConnectionResetError):
            assert (await peer.receive_all()).startswith(alert)
        peer.close()

    run(script())


def test_an_old_client_is_told_which_versions_there_are(run: Run) -> None:
    """By the alert, and so are we."""
    context = client_context(V12)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1

    async def script() -> None:
        peer, sock = connected()
        theirs = TlsPeer(peer, context, NAME)
        client = Stream(sock)
        accepting = start(accept(client, contexts().context_for(NAME), WAIT_S))
        with pytest.raises(ssl.SSLError, match="TLSV1_ALERT_PROTOCOL_VERSION"):
            await theirs.accept()
        with pytest.raises(ClientProtocolError, match="TLS handshake: unsupported protocol"):
            await accepting
        client.close()
        peer.close()

    run(script())


def test_a_client_that_leaves(run: Run) -> None:
    """By a RST, in the middle."""

    async def script() -> None:
        peer, sock = connected()
        client = Stream(sock)
        accepting = start(accept(client, contexts().context_for(NAME), WAIT_S))
        await peer.send(b"\x16\x03\x01")
        await asyncio.sleep(0)
        peer.reset()
        with pytest.raises(ClientProtocolError, match="the client is gone: Connection reset by peer"):
            await accepting
        client.close()

    run(script())


def test_a_client_that_stays_silent(run: Run) -> None:
    """Has no longer than the deadline; one byte after the other is no better."""

    async def script() -> None:
        peer, sock = connected()
        client = Stream(sock)

        async def drip() -> None:
            for _ in range(20):
                await peer.send(b"\x16\x03\x01\x40\x00" if _ == 0 else b"\x01")
                await asyncio.sleep(0.01)

        dripping = start(drip())
        with pytest.raises(ClientProtocolError, match=r"not finished within 0\.1 s") as caught:
            await accept(client, contexts().context_for(NAME), 0.1)
        assert caught.value.status == 408
        await dripping
        client.reset()
        peer.close()

    run(script())


# --- handshakes that fail: an upstream's


async def failing(
    context: ssl.SSLContext | None, name: str = NAME, said: bytes = b"", deadline_s: float = WAIT_S
) -> UpstreamError:
    """What `secure` makes of an upstream with that context, or one that says that."""
    peer, sock = connected()
    upstream = upstream_of(sock)
    securing = start(secure.secure(upstream, name, trusting(), None, deadline_s))
    if context is not None:
        theirs = TlsPeer(peer, context)
        with suppress(ssl.SSLError, OSError):
            await theirs.accept()
        with suppress(OSError):
            await theirs._flush()  # the alert
    elif said:
        await peer.send(said)
        peer.finish()
    with pytest.raises(UpstreamError) as caught:
        await securing
    upstream.reset()
    peer.close()
    return caught.value


def expired() -> ssl.SSLContext:
    return server_context(not_after=datetime.now(UTC) - timedelta(days=1), not_before=datetime(2020, 1, 1, tzinfo=UTC))


def foreign() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(NAME).configure_cert(context)
    return context


def old() -> ssl.SSLContext:
    context = server_context(version=V12)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


@pytest.mark.parametrize(
    ("make", "name", "problem"),
    [
        (foreign, NAME, "unable to get local issuer certificate; --upstream-ca names a private CA"),
        (expired, NAME, "certificate has expired"),
        (lambda: server_context("other.test"), NAME, "Hostname mismatch, certificate is not valid for 'api.test'"),
        (server_context, "127.0.0.1", "IP address mismatch, certificate is not valid for '127.0.0.1'"),
        (old, NAME, "alert protocol version"),
    ],
    ids=["nobody's", "expired", "another's", "not the address's", "old"],
)
def test_an_upstream_has_to_prove_who_it_is(
    run: Run, make: Callable[[], ssl.SSLContext], name: str, problem: str
) -> None:
    """What is missing is told, and nothing is sent."""
    context = make()

    async def script() -> None:
        error = await failing(context, name)
        assert error.phase == "connect"
        assert problem in str(error) or (make is foreign and "self-signed certificate in" in str(error))
        assert str(error).startswith("connect api.test:443: TLS failed: ")

    run(script())


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "TLS failed: what it answers is not TLS"),
        (b"\x16\x03", "TLS failed: it closed the connection during the handshake"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "TLS failed: alert handshake failure"),
    ],
    ids=["no TLS", "closes", "refuses"],
)
def test_an_upstream_that_does_not_speak_tls(run: Run, said: bytes, problem: str) -> None:
    """Is told as what it is."""

    async def script() -> None:
        assert problem in str(await failing(None, said=said))

    run(script())


def test_an_upstream_that_stays_silent(run: Run) -> None:
    """Is a gateway timeout to the client."""

    async def script() -> None:
        error = await failing(None, deadline_s=0.05)
        assert str(error) == "connect api.test:443: TLS failed: no handshake within 0.05 s"
        assert refuse.unreachable(error).status == 504

    run(script())


def test_an_upstream_that_resets(run: Run) -> None:
    """During the handshake: in the kernel's words, as a failure to connect."""

    async def script() -> None:
        peer, sock = connected()
        upstream = upstream_of(sock)
        securing = start(secure.secure(upstream, NAME, trusting(), None, WAIT_S))
        await peer.receive(1)
        peer.reset()
        with pytest.raises(UpstreamError, match=r"^connect api\.test:443: TLS failed: Connection reset by peer$"):
            await securing
        upstream.reset()

    run(script())


@versions
@pytest.mark.parametrize("name", [NAME, "127.0.0.1", "x.wide.test", "under_score.wide.test"])
def test_names_and_addresses_are_verified(run: Run, name: str, version: ssl.TLSVersion) -> None:
    """Each by its own kind of name in the certificate; an address is not sent as a server name (RFC 6066 §3)."""
    named: list[str | None] = []

    async def script() -> None:
        peer, sock = connected()
        context = ServerContexts(authority()).context_for(name)
        context.minimum_version = context.maximum_version = version
        context.sni_callback = lambda _tls, said, _context: named.append(said)
        theirs = TlsPeer(peer, context)
        securing = start(secure.secure(upstream_of(sock), name, trusting(), None, WAIT_S))
        await theirs.accept()
        ours = await securing
        assert named == [None if name[0].isdigit() else name]
        ours.reset()
        peer.close()

    run(script())


def test_an_openssl_server_is_believed(run: Run, tmp_path: Path) -> None:
    """And understood, with HTTP/1.1 agreed on."""
    issued = somebody().issue_cert(NAME)
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))

    async def script() -> None:
        port = free_port()
        server = await asyncio.create_subprocess_exec(
            *(require("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(tmp_path / "server.pem")),
            *("-key", str(tmp_path / "server.pem"), "-alpn", "h2,http/1.1", "-www", "-naccept", "1"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        loop = asyncio.get_running_loop()
        while True:
            sock = socket.socket()
            tune(sock)
            try:
                await loop.sock_connect(sock, ("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                sock.close()
                await asyncio.sleep(0.05)
        ours = await secure.secure(upstream_of(sock), NAME, trusting(), None, WAIT_S)
        assert ours._tls.tls.selected_alpn_protocol() == "http/1.1"
        await ours.send(b"GET / HTTP/1.0\r\n\r\n", WAIT_S)
        assert (await read_all(ours)).startswith(b"HTTP/1.0 200 ok")
        ours.close()
        await server.wait()

    run(script())


def test_curl_is_served(run: Run, tmp_path: Path) -> None:
    """With nothing but the authority's certificate, and told the whole of a long answer."""
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority().certificate_pem)
    body = noise(MUCH)

    async def script() -> None:
        with listen() as listener:
            curl = await asyncio.create_subprocess_exec(
                *(require("curl"), "-sS", "--cacert", str(trusted), "--max-time", str(patient(30))),
                *("--connect-to", f"::127.0.0.1:{listener.getsockname()[1]}", f"https://{NAME}/"),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            sock = (await asyncio.get_running_loop().sock_accept(listener))[0]
            tune(sock)
            ours = await accept(Stream(sock), contexts().context_for(NAME), WAIT_S)
            while b"\r\n\r\n" not in ours.unread:
                await ours.fill(WAIT_S)
            # Until the connection closes, so that its end has to be understood.
            await ours.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body, WAIT_S)
            ours.close()
            received, _ = await curl.communicate()
            assert (curl.returncode, received) == (0, body)

    run(script())


# --- sessions, and what is quiet


@versions
def test_a_session_is_resumed(run: Run, version: ssl.TLSVersion) -> None:
    """What the server sent the last time spares the next connection the proof."""
    context = server_context(version=version)

    async def script() -> None:
        session = None
        reused = []
        for _ in range(2):
            peer, sock = connected()
            theirs = TlsPeer(peer, context)
            securing = start(secure.secure(upstream_of(sock), NAME, trusting(), session, WAIT_S))
            await theirs.accept()
            ours = await securing
            await theirs.send(b"answer")
            await read(ours, 6)
            reused.append(theirs.tls.session_reused)
            session = ours.session
            ours.close()
            peer.close()
        assert reused == [False, True]

    run(script())


@versions
def test_tickets_do_not_disturb(run: Run, version: ssl.TLSVersion) -> None:
    """A connection on which only TLS itself has said something is quiet, before and after."""

    async def script() -> None:
        async with secured("upstream", version) as (ours, _):
            assert isinstance(ours, SecureUpstream)
            if version is V13:  # behind the handshake; before, they are a part of it
                await something_came(ours.sock)
            assert ours.is_quiet()
            assert ours.is_quiet()
            assert ours.session is not None

    run(script())


@pytest.mark.parametrize("disturbance", ["data", "unread", "close_notify", "FIN", "RST", "nonsense", "flood"])
def test_what_is_not_quiet(run: Run, disturbance: str) -> None:
    """Whatever came belongs to no request, and an end is an end."""

    async def script() -> None:
        async with secured("upstream") as (ours, theirs):
            assert isinstance(ours, SecureUpstream)
            await theirs.send(b"x")
            assert await read(ours, 1) == b"x"  # and the tickets, which would be no disturbance
            assert ours.is_quiet()
            match disturbance:
                case "data":
                    await theirs.send(b"x")
                case "unread":
                    ours.unread += b"x"
                case "close_notify":
                    await theirs.finish()
                case "FIN":
                    theirs.tcp.finish()
                case "RST":
                    theirs.tcp.reset()
                case "nonsense":
                    await theirs.tcp.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
                case "flood":
                    await theirs.tcp.send(b"\x17\x03\x03\x40\x00" * 20_000)
            if disturbance != "unread":
                await something_came(ours.sock)
            assert not ours.is_quiet()
            assert not ours.is_quiet()

    run(script())


def test_nothing_is_left_open(run: Run) -> None:
    """Connections that ended in every way leave no descriptor behind."""

    async def script() -> None:
        async with secured("client"):
            pass
        gc.collect()  # what other tests have left
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for side in ("client", "upstream"):
            for end in ("close", "reset"):
                async with secured(side) as (ours, _):
                    getattr(ours, end)()
            with suppress(ClientProtocolError, UpstreamError):
                await failing(foreign())
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208

    run(script())
