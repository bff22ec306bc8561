"""Bytes between two sockets, moved by the kernel."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from kit.patience import patient
from kit.relaying import LIMITS, Peer, Run, run

from nono_ebpf.relay.splice import Pipes, Spliced, splice
from nono_ebpf.relay.stream import tune

__all__ = ["run"]


class Link:
    """A client and a server, and the two sockets between them that are spliced."""

    def __init__(self, **limits: float) -> None:
        self.limits = replace(LIMITS, **limits)  # type: ignore[arg-type]  # counts are ints
        self.pipes = Pipes(self.limits)
        self.client, self._inner_client = self._pair()
        self.server, self._inner_server = self._pair()

    def _pair(self) -> tuple[Peer, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            outer = socket.create_connection(listener.getsockname())
            inner = listener.accept()[0]
        tune(inner)
        return Peer(outer), inner

    async def __aenter__(self) -> Link:
        self._splicing = asyncio.ensure_future(self._splice())
        await asyncio.sleep(0)
        return self

    async def _splice(self) -> Spliced:
        with self._inner_client, self._inner_server:
            return await splice(self._inner_client, self._inner_server, self.pipes, self.limits)

    async def ended(self) -> Spliced:
        return await self._splicing

    def cancel(self) -> None:
        self._splicing.cancel()

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
        await asyncio.wait([self._splicing])
        self.pipes.close()
        self.client.close()
        self.server.close()


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def settle() -> None:
    """Let everything that can happen now happen."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_half_close_is_passed_on_after_the_bytes_before_it(run: Run) -> None:
    """One side's end arrives behind its last byte, and the other side may go on."""

    async def script() -> None:
        async with Link() as link:
            await link.client.send(b"last words")
            link.client.finish()
            assert await link.server.receive_all() == b"last words"
            await link.server.send(b"go on")
            assert await link.client.receive(5) == b"go on"
            link.server.finish()
            assert await link.client.receive_all() == b""
            assert await link.ended() == Spliced(10, 5, "eof")

    run(script())


def test_idle_flow_holds_no_pipe(run: Run) -> None:
    """Pipes are borrowed only while bytes are in them, and used again."""

    async def script() -> None:
        async with Link() as link:
            for _ in range(3):
                await link.client.send(b"x")
                assert await link.server.receive(1) == b"x"
                await settle()
                assert link.pipes.lent == 0
            fds = open_descriptors()
            await link.client.send(b"x")
            assert await link.server.receive(1) == b"x"
            await settle()
            assert open_descriptors() == fds

    run(script())


def test_slow_reader_holds_the_sender_back(run: Run) -> None:
    """With nobody reading, the sender has to wait; once somebody reads, nothing is lost."""

    async def script() -> None:
        async with Link() as link:
            data = os.urandom(1 << 20) * 40
            sending = asyncio.ensure_future(link.client.send(data))
            while link.pipes.lent == 0:
                await asyncio.sleep(0)
            await settle()
            assert not sending.done()
            assert await link.server.receive(len(data)) == data
            await sending
            await settle()
            assert link.pipes.lent == 0

    run(script())


def test_cancelled_flow_returns_its_pipe(run: Run) -> None:
    """A pipe with bytes of an ended flow is closed, not lent to the next one."""

    async def script() -> None:
        async with Link() as link:
            sending = asyncio.ensure_future(link.client.send(bytes(40 << 20)))
            while link.pipes.lent == 0:
                await asyncio.sleep(0)
            link.cancel()
            with pytest.raises((ConnectionError, asyncio.CancelledError)):
                await link.ended()
            assert link.pipes.lent == 0
            with pytest.raises(ConnectionError):
                await sending

    run(script())


def test_reset_while_bytes_are_held(run: Run) -> None:
    """A receiver that aborts ends the flow although the lane is waiting to write, not to read."""

    async def script() -> None:
        async with Link() as link:
            sending = asyncio.ensure_future(link.client.send(bytes(40 << 20)))
            while link.pipes.lent == 0:
                await asyncio.sleep(0)
            link.server.reset()
            with pytest.raises(ConnectionError):
                await sending
            assert (await link.ended()).ended == "reset"
            assert link.pipes.lent == 0

    run(script())


def test_half_closed_flow_has_its_own_deadline(run: Run) -> None:
    """A side that has ended shortens the wait for the other one."""

    async def script() -> None:
        async with Link(half_closed_s=0.05) as link:
            link.client.finish()
            ended = await link.ended()
            assert (ended.ended, ended.problem) == ("idle", "nothing moved for 0.05 s")

    run(script())


def test_a_half_closed_flow_has_all_of_that_deadline(run: Run) -> None:
    """However long nothing had moved before."""

    async def script() -> None:
        async with Link(half_closed_s=0.1) as link:
            await asyncio.sleep(0.2)
            loop = asyncio.get_running_loop()
            began = loop.time()
            link.client.finish()
            assert (await link.ended()).ended == "idle"
            assert loop.time() - began > 0.05

    run(script())


@pytest.mark.parametrize("size", [0, 1, 5000, 20_000])
@pytest.mark.parametrize("sender", ["client", "server"])
def test_a_reset_right_behind_bytes_ends_the_flow(run: Run, sender: str, size: int) -> None:
    """Both arrive before we look: the loop tells of the two once."""

    async def script() -> None:
        async with Link() as link:
            await asyncio.sleep(0.01)
            far = link.client if sender == "client" else link.server
            assert far.sock.send(bytes(size)) == size
            far.reset()
            async with asyncio.timeout(patient(20)):
                assert (await link.ended()).ended == "reset"
            assert link.pipes.lent == 0

    run(script())


@pytest.mark.parametrize("after", [b"", b"and the rest"], ids=["at the end", "in the middle"])
def test_urgent_data_is_data(run: Run, after: bytes) -> None:
    """A byte that was sent as urgent arrives in its place with all that follows, and what stopped there is no end."""

    async def script() -> None:
        async with Link() as link:
            link.client.sock.send(b"so far")
            link.client.sock.send(b"!", socket.MSG_OOB)
            link.client.sock.send(after)
            assert await link.server.receive(7 + len(after)) == b"so far!" + after
            link.server.sock.send(b"?", socket.MSG_OOB)
            link.server.sock.send(after)
            link.server.finish()
            assert await link.client.receive_all() == b"?" + after
            link.client.finish()
            assert await link.ended() == Spliced(7 + len(after), 1 + len(after), "eof")
            assert link.pipes.lent == 0

    run(script())


def test_pipe_of_any_size_will_do() -> None:
    """A size the kernel refuses to this user only costs speed."""
    limit = int(Path("/proc/sys/fs/pipe-max-size").read_text())
    pipes = Pipes(replace(LIMITS, pipe_bytes=4096))
    pipe = pipes.borrow()
    assert 0 < pipe.size_bytes <= limit
    pipes.give_back(pipe, empty=True)
    assert pipes.borrow() is pipe
    pipes.give_back(pipe, empty=False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(pipe.write_fd, b"x")


def test_spare_pipes_are_bounded() -> None:
    """A burst does not leave its descriptors behind."""
    pipes = Pipes(replace(LIMITS, spare_pipes=1))
    first, second = pipes.borrow(), pipes.borrow()
    pipes.give_back(first, empty=True)
    pipes.give_back(second, empty=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(second.write_fd, b"x")
    pipes.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(first.write_fd, b"x")
