"""The datagrams of one bound UDP socket, and what to do when there are too many.

A full socket buffer drops everybody's. So a flood is read away as fast as it comes, and what one socket or one process
sends beyond a share is dropped before anything is made of it. Knows sockets and the event loop; must not know DNS.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from nono_ebpf.errors import SandboxError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Hashable

    from nono_ebpf.dns.limits import Limits
    from nono_ebpf.model import Process

# recvfrom(2) for AF_INET and AF_INET6: (address, port) or (address, port, flow info, scope id).
Peer = tuple[Any, ...]


class Shares:
    """How often each key has occurred in the present moment."""

    def __init__(self, limit: int, length_s: float) -> None:
        self._limit, self._length_s = limit, length_s
        self._ends_s = 0.0
        self._counts: dict[Hashable, int] = {}

    def pass_time(self, now_s: float) -> None:
        """Forget everything when the moment is over."""
        if now_s >= self._ends_s:
            self._counts.clear()
            self._ends_s = now_s + self._length_s

    def exceeded(self, key: Hashable) -> bool:
        """Count `key` once more. True when that is more often than the limit."""
        count = self._counts[key] = self._counts.get(key, 0) + 1
        return count > self._limit


class Datagrams:
    """Takes what arrives at `sock` and answers it; owns the socket.

    `asker` tells who sent from an address, `answer` what to send back: None for nothing. Raises SandboxError for a
    socket that is connected, so serves one client only.
    """

    def __init__(
        self,
        sock: socket.socket,
        asker: Callable[[tuple[str, int]], Process | None],
        answer: Callable[[bytes, Process | None], Coroutine[Any, Any, bytes | None]],
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        if _is_connected(sock):
            sock.close()
            raise SandboxError("the DNS socket is connected to one client")
        sock.setblocking(False)
        self._sock, self._asker, self._answer, self._limits, self._clock = sock, asker, answer, limits, clock
        # One more than is answered, or a longer one would pass for its own beginning.
        self._buffer = memoryview(bytearray(limits.query_bytes + 1))
        self._sockets = Shares(limits.datagrams_share, limits.moment_s)
        self._processes = Shares(limits.datagrams_share, limits.moment_s)
        self._outstanding: dict[asyncio.Task[None], int | None] = {}  # and whose, the oldest first

    async def serve(self) -> None:
        """Until cancelled; then the socket is closed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                loop.add_reader(self._sock.fileno(), self._take, tasks)
                await asyncio.Event().wait()
        finally:
            loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _take(self, tasks: asyncio.TaskGroup) -> None:
        for shares in (self._sockets, self._processes):
            shares.pass_time(self._clock())
        for _ in range(self._limits.datagrams_per_wakeup):
            try:
                size, peer = self._sock.recvfrom_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                continue  # about an earlier answer
            if not self._sockets.exceeded(peer):
                self._begin(tasks, bytes(self._buffer[:size]), peer)

    def _begin(self, tasks: asyncio.TaskGroup, data: bytes, peer: Peer) -> None:
        # Asked for at once: the port may be another program's a moment later.
        process = self._asker((peer[0], peer[1]))
        pid = process.pid if process else None
        if self._processes.exceeded(pid):
            return
        if len(self._outstanding) >= self._limits.outstanding_queries:
            self._drop_one()
        task = tasks.create_task(self._reply(data, process, peer))
        self._outstanding[task] = pid
        task.add_done_callback(lambda task: self._outstanding.pop(task, None))

    def _drop_one(self) -> None:
        """The oldest of the process that has most waiting."""
        largest, _ = Counter(self._outstanding.values()).most_common(1)[0]
        oldest = next(task for task, pid in self._outstanding.items() if pid == largest)
        del self._outstanding[oldest]
        oldest.cancel()

    async def _reply(self, data: bytes, process: Process | None, peer: Peer) -> None:
        answer = await self._answer(data, process)
        if answer is None:
            return
        try:
            self._sock.sendto(answer, peer)
        except OSError:
            # Whoever asked has gone, or does not read; a UDP client asks again.
            return


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
