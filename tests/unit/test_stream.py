"""How connections end, as their peers see it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from contextlib import closing
from ipaddress import ip_address

import pytest
import uvloop
from kit.relaying import PROCESS, Relaying, Run, run, to_proxy

from nono_ebpf.model import Endpoint, FlowOrigin
from nono_ebpf.relay.stream import Stream, activity_of, connect, first_readable, tune

__all__ = ["run"]

PATIENCE_S = 60


def pair() -> tuple[socket.socket, socket.socket]:
    """A connection over loopback: the peer's end, which waits, and ours."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), timeout=PATIENCE_S)
        ours = listener.accept()[0]
    tune(ours)
    return theirs, ours


def test_close_is_orderly() -> None:
    """Everything that was sent arrives, also what the peer has not read yet."""
    theirs, ours = pair()
    with closing(theirs):
        stream = Stream(ours)
        sent = ours.send(bytes(8 << 20))
        stream.close()
        stream.close()
        received = 0
        while more := theirs.recv(1 << 20):
            received += len(more)
        assert received == sent


def test_reset_is_an_abort() -> None:
    """The peer does not take the end for an orderly one."""
    theirs, ours = pair()
    with closing(theirs):
        stream = Stream(ours)
        stream.reset()
        stream.close()
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)


def test_half_close_is_still_a_fin() -> None:
    """What resets at close does not reset at shutdown."""
    theirs, ours = pair()
    with closing(theirs):
        stream = Stream(ours)
        ours.shutdown(socket.SHUT_WR)
        assert theirs.recv(1) == b""
        theirs.sendall(b"x")
        stream.close()


def test_the_kernel_knows_who_was_answered() -> None:
    """A flow counts as answered once its client has received something; what the client says does not count."""
    theirs, ours = pair()
    with closing(theirs), closing(ours):
        theirs.sendall(b"anybody?")
        assert not activity_of(ours).answered
        ours.send(b"yes")
        assert theirs.recv(3) == b"yes"
        deadline = time.monotonic() + PATIENCE_S
        while not activity_of(ours).answered and time.monotonic() < deadline:
            time.sleep(0.001)  # until its acknowledgement has come
        assert activity_of(ours).answered
        assert activity_of(ours).idle_ms < PATIENCE_S * 1000
    assert not activity_of(ours).answered


def test_the_first_to_speak(run: Run) -> None:
    """Whoever can be read, of two the one named first; an end counts as well; a deadline if nobody can."""

    async def script() -> None:
        (one, ours), (two, ours_too) = pair(), pair()
        with closing(one), closing(two), closing(ours), closing(ours_too):
            waiting = asyncio.ensure_future(first_readable(ours, ours_too, deadline_s=PATIENCE_S))
            await asyncio.sleep(0.01)
            two.sendall(b"x")
            assert await waiting is ours_too
            assert await first_readable(ours, ours_too) is ours_too
            one.shutdown(socket.SHUT_WR)
            assert await first_readable(ours, deadline_s=PATIENCE_S) is ours
            assert await first_readable(ours, ours_too) is ours
            assert await first_readable(ours_too, ours) is ours_too
            ours_too.recv(1)
            with pytest.raises(TimeoutError):
                await first_readable(ours_too, deadline_s=0.01)

    run(script())


def test_a_read_has_one_deadline(run: Run) -> None:
    """It passes although other flows go on, and leaves a stream that can be read later."""

    async def script() -> None:
        theirs, ours = pair()
        with closing(theirs), closing(ours):
            stream = Stream(ours)
            with pytest.raises(TimeoutError):
                await stream.fill(0.01)
            theirs.sendall(b"late")
            assert await stream.fill(PATIENCE_S)
            assert stream.take_unread() == b"late"

    run(script())


def test_urgent_data_is_read_in_its_place(run: Run) -> None:
    """What a client marks as urgent is part of what it says."""

    async def script() -> None:
        theirs, ours = pair()
        with closing(theirs), closing(ours):
            stream = Stream(ours)
            theirs.send(b"GET /a", socket.MSG_OOB)
            theirs.send(b"b ")
            while len(stream.unread) < 8:
                assert await stream.fill(PATIENCE_S)
            assert stream.take_unread() == b"GET /ab "

    run(script())


def test_connecting(run: Run) -> None:
    """To a literal address of either family; a failure is the kernel's."""

    async def script() -> None:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.create_server((address, 0), family=family) as listener:
                port = listener.getsockname()[1]
                with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
                    await connect(sock, address, port)
                    assert sock.getpeername()[:2] == (address, port)
            with socket.socket(family) as kept:  # without a listener, and nobody else gets the port
                kept.bind((address, 0))
                sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                with closing(sock), pytest.raises(ConnectionRefusedError):
                    await connect(sock, address, kept.getsockname()[1])

    run(script())


def _serve_for_ever(it: Relaying, factory: object) -> None:
    try:
        with asyncio.Runner(loop_factory=factory) as runner:  # type: ignore[arg-type]
            runner.run(it.relay.serve([it._listener]))
    finally:
        os._exit(1)


@pytest.mark.parametrize("factory", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_killed_proxy_leaves_no_orderly_end(factory: object) -> None:
    """Client and server of an idle opaque flow both see an abort, so neither takes half a stream for the whole."""
    it = Relaying("a.test")
    client = socket.socket()
    client.settimeout(PATIENCE_S)
    client.bind(("127.0.0.1", 0))
    given = next(iter(it.given))
    it.origins[client.getsockname()[1]] = FlowOrigin(Endpoint(ip_address(given), it.port), PROCESS)
    with closing(it.upstream), closing(client):
        child = os.fork()
        if child == 0:
            _serve_for_ever(it, factory)
        try:
            client.connect((str(it.own.address), it.own.port))
            it._listener.close()
            it.upstream.settimeout(PATIENCE_S)
            server = it.upstream.accept()[0]
            server.settimeout(PATIENCE_S)
            client.sendall(b"\0half")
            assert server.recv(5, socket.MSG_WAITALL) == b"\0half"
            server.sendall(b"of it")
            assert client.recv(5, socket.MSG_WAITALL) == b"of it"
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for end in (client, server):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        server.close()


def test_a_refusal_arrives_whole(run: Run) -> None:
    """Also at a client that has sent more than was read."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy("CONNECT b.test:443") + bytes(100_000))
            answer = await client.receive_until(b"}\n")
            assert answer.startswith(b"HTTP/1.1 403 ")
            client.finish()
            assert await client.receive_all() == b""
            await it.ended()

    run(script())
