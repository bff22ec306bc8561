"""Moves bytes between two sockets through the kernel, reading none of them.

Knows splice(2), pipe(7) and half-close. Must not know what flows or why.

Each direction is a lane: socket → pipe → socket. A lane fills its pipe only when the pipe is empty and
flushes it before it reads again, so the receiver's pace is the sender's, and EAGAIN on filling can only mean
that the socket is empty. A lane borrows a pipe while bytes are in it and gives it back at once: a thousand
idle flows hold no pipe.

The end of one side is passed on with shutdown(SHUT_WR) once everything before it has been delivered, and in no other
case: what an error or the clock ended must be closed with a RST, because a FIN would let a truncated stream look whole.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from nono_ebpf.relay.stream import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from nono_ebpf.relay.limits import Limits

_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
# A read shorter than this has emptied the socket: asking again would only cost a call and an exception.
_SHORT_READ_BYTES: Final = 16384
# What fits into any empty pipe.
_URGENT_READ_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Pipe:
    """An empty pipe; `size_bytes` is what it can hold."""

    read_fd: int
    write_fd: int
    size_bytes: int

    def close(self) -> None:
        """Close both ends; bytes inside are lost."""
        try:
            os.close(self.read_fd)
        finally:
            os.close(self.write_fd)


class Pipes:
    """Lends pipes and keeps a few spare ones, since making one costs five system calls."""

    def __init__(self, limits: Limits) -> None:
        self._size_bytes, self._spare_limit = limits.pipe_bytes, limits.spare_pipes
        self._spare: list[Pipe] = []
        self.lent = 0

    def borrow(self) -> Pipe:
        """An empty pipe. Raises OSError when the process has no descriptor left."""
        pipe = self._spare.pop() if self._spare else self._make()
        self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe, *, empty: bool) -> None:
        """Take `pipe` back; one that still holds bytes is closed, or the next flow would receive them."""
        self.lent -= 1
        if empty and len(self._spare) < self._spare_limit:
            self._spare.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        """Close the spare pipes."""
        while self._spare:
            self._spare.pop().close()

    def _make(self) -> Pipe:
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        return Pipe(read_fd, write_fd, self._enlarge(write_fd))

    def _enlarge(self, write_fd: int) -> int:
        """Grow the pipe as far as we may. The default size is slower, and just as correct."""
        try:
            return fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, self._size_bytes)
        except PermissionError:  # over fs.pipe-max-size, or this user's fs.pipe-user-pages-soft is used up
            return fcntl.fcntl(write_fd, fcntl.F_GETPIPE_SZ)


@dataclass(frozen=True, slots=True)
class Spliced:
    """How it went. Bytes are those delivered to the kernel of the other side."""

    sent_bytes: int  # client to upstream
    received_bytes: int  # upstream to client
    ended: Literal["eof", "reset", "idle"]
    problem: str = ""


async def splice(
    client: socket.socket,
    upstream: socket.socket,
    pipes: Pipes,
    limits: Limits,
    count: Callable[[int, int], None] = lambda _sent, _received: None,
) -> Spliced:
    """Relay until both sides have finished, one has failed, or nothing has moved for too long.

    `count` is told in the end what was sent and received, also when the end is a cancellation.

    The sockets stay the caller's to close: with a FIN after "eof", else with a RST.
    """
    link = _Link(client, upstream, pipes, limits)
    try:
        return await link.run()
    finally:
        link.release()
        count(*link.moved_bytes())


class _Link:
    """Both lanes of a flow, and the clock that watches them."""

    def __init__(self, client: socket.socket, upstream: socket.socket, pipes: Pipes, limits: Limits) -> None:
        self.loop = asyncio.get_running_loop()
        self._limits = limits
        self._finished: asyncio.Future[Spliced] = self.loop.create_future()
        self._up = _Lane(self, client, upstream, pipes, limits.splices_per_wakeup)
        self._down = _Lane(self, upstream, client, pipes, limits.splices_per_wakeup)
        self.touch()
        self._look_again_in(self._patience_s(half_closed=True))

    async def run(self) -> Spliced:
        self._up.start()
        self._down.start()
        return await self._finished

    def release(self) -> None:
        self._timer.cancel()
        self._up.stop()
        self._down.stop()

    def moved_bytes(self) -> tuple[int, int]:
        """To the upstream, and to the client."""
        return self._up.moved_bytes, self._down.moved_bytes

    def touch(self) -> None:
        """Called by a lane that moved something, or passed its end on."""
        self._moved_at = self.loop.time()

    def lane_done(self) -> None:
        """Called by a lane that has delivered its end of stream."""
        if self._up.done and self._down.done:
            self._finish("eof")

    def fail(self, error: OSError) -> None:
        """Called by a lane whose sockets no longer work."""
        self._finish("reset", reason_of(error))

    def _finish(self, ended: Literal["eof", "reset", "idle"], problem: str = "") -> None:
        self.release()
        if not self._finished.done():
            self._finished.set_result(Spliced(*self.moved_bytes(), ended, problem))

    def _patience_s(self, *, half_closed: bool) -> float:
        return min(self._limits.idle_s, self._limits.half_closed_s) if half_closed else self._limits.idle_s

    def _check_idle(self) -> None:
        """Runs at every moment at which the last deadline could be due; what has moved since only noted the time."""
        now = self.loop.time()
        patience_s = self._patience_s(half_closed=self._up.done or self._down.done)
        left_s = self._moved_at + patience_s - now
        if left_s <= 0:
            self._finish("idle", f"nothing moved for {patience_s:g} s")
        else:
            # A lane that ends is movement: so no deadline begins that ends before the shorter patience from now.
            self._look_again_in(min(left_s, self._patience_s(half_closed=True)))

    def _look_again_in(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._check_idle)


class _Lane:
    """One direction. Watches its source while the pipe is empty, its sink while it is not."""

    __slots__ = (
        "_at_eof", "_held", "_link", "_pipe", "_pipes", "_rounds", "_sink", "_source", "_watched",
        "done", "moved_bytes",
    )  # fmt: skip

    def __init__(self, link: _Link, source: socket.socket, sink: socket.socket, pipes: Pipes, rounds: int) -> None:
        self._link, self._pipes, self._rounds = link, pipes, rounds
        self._source, self._sink = source, sink
        self._pipe: Pipe | None = None
        self._held = 0  # bytes in the pipe
        self._at_eof = False
        self._watched: socket.socket | None = None
        self.done = False
        self.moved_bytes = 0

    def start(self) -> None:
        self._watch(self._source)

    def stop(self) -> None:
        """Watch nothing and hold nothing. Idempotent; comes before the sockets are closed."""
        self._watch(None)
        self._release_pipe()

    def _pump(self) -> None:
        """Move what can be moved now; called when the source has bytes or the sink has room."""
        moved_before = self.moved_bytes
        try:
            self._move()
            if self._at_eof and not self._held:
                self._pass_end_on()
        except OSError as error:
            self._link.fail(error)
            return
        if self.done or self.moved_bytes > moved_before:
            self._link.touch()
        if self.done:
            self.stop()
            self._link.lane_done()
        else:
            self._watch(self._sink if self._held else self._source)

    def _move(self) -> None:
        pipe = self._pipe = self._pipe or self._pipes.borrow()
        try:
            for number in range(self._rounds):
                if not self._held:
                    self._fill(pipe, readable=number == 0)
                if not self._flush(pipe):
                    break
        except BlockingIOError:
            pass  # the source is empty or the sink is full: `_held` tells which is to be watched
        if not self._held:
            self._release_pipe()
        if not (self._held or self._at_eof):
            self._raise_pending()

    def _raise_pending(self) -> None:
        """libuv calls once for a socket with an error and then watches it no more, even if there were bytes to read."""
        if number := self._source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, os.strerror(number))

    def _fill(self, pipe: Pipe, *, readable: bool) -> None:
        """Take what the source has; `readable`: it has something, as the loop says. BlockingIOError: nothing."""
        try:
            self._held = os.splice(self._source.fileno(), pipe.write_fd, pipe.size_bytes, flags=_FLAGS)
        except BlockingIOError:
            if not readable:
                raise
        if not self._held:
            # At urgent data (tcp(7)) a splice stops for good: as if there was nothing, or as if that were the end.
            data = self._source.recv(_URGENT_READ_BYTES)
            self._at_eof = not data
            self._held = os.write(pipe.write_fd, data) if data else 0

    def _flush(self, pipe: Pipe) -> bool:
        """Empty the pipe into the sink.

        False when the source has nothing more for now. BlockingIOError: sink full.
        """
        more = self._held >= _SHORT_READ_BYTES
        while self._held:
            moved = os.splice(pipe.read_fd, self._sink.fileno(), self._held, flags=_FLAGS)
            self._held -= moved
            self.moved_bytes += moved
        return more

    def _pass_end_on(self) -> None:
        self._sink.shutdown(socket.SHUT_WR)
        self.done = True

    def _release_pipe(self) -> None:
        if self._pipe is not None:
            self._pipes.give_back(self._pipe, empty=not self._held)
            self._pipe = None

    def _watch(self, wanted: socket.socket | None) -> None:
        """Be called when `wanted` can be read, if it is the source, or written to, if it is the sink."""
        if wanted is self._watched:
            return
        loop = self._link.loop
        if self._watched is self._source:
            loop.remove_reader(self._source.fileno())
        elif self._watched is self._sink:
            loop.remove_writer(self._sink.fileno())
        self._watched = wanted
        if wanted is self._source:
            loop.add_reader(self._source.fileno(), self._pump)
        elif wanted is self._sink:
            loop.add_writer(self._sink.fileno(), self._pump)
