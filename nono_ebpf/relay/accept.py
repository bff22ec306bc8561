"""Accepts connections and gives each a task of its own. Must not know what is done with them."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from typing import TYPE_CHECKING, Final

from nono_ebpf.relay.stream import tune

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterable

    from nono_ebpf.relay.limits import Limits

# accept(2): out of descriptors or memory, which ending connections give back.
_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Acceptor:
    """Serves `listeners` (listening, the caller's to close): a task of `handle` for each connection.

    To be made in the loop that will serve. `handle` owns the connection until it returns; then it is closed. It raises
    nothing but cancellation.
    `make_room` is called when a connection waits that nothing is left for; it may end others. Otherwise the newcomer
    waits in the backlog until one ends.
    """

    def __init__(
        self,
        listeners: Iterable[socket.socket],
        handle: Callable[[socket.socket], Awaitable[None]],
        limits: Limits,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._listeners, self._handle, self._limits, self._make_room = deque(listeners), handle, limits, make_room
        self._loop = asyncio.get_running_loop()
        self._tasks = asyncio.TaskGroup()
        self._broken: asyncio.Future[None] = self._loop.create_future()
        self._watching = False
        self._free = limits.flows
        self._idle = asyncio.Event()
        self._idle.set()

    async def serve(self) -> None:
        """Until cancelled, which ends every connection. Raises OSError when a listener itself is broken.

        Called once.
        """
        for listener in self._listeners:
            tune(listener)
        try:
            async with self._tasks:
                self._watch()
                try:
                    await self._broken
                finally:
                    self._ignore()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def drain(self, timeout_s: float) -> None:
        """Until whoever waits was accepted and nobody is served any more, at most `timeout_s`."""
        if self._watching:
            for listener in self._listeners:
                self._accept_from(listener)
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return

    # Listeners are watched all the time, but for when a newcomer could not be accepted anyway: to begin and end it for
    # each connection would cost more than accepting one.

    def _watch(self) -> None:
        if not self._watching and not self._broken.done():
            self._watching = True
            self._listeners.rotate()  # the first takes what has become free
            for listener in self._listeners:
                self._loop.add_reader(listener.fileno(), self._somebody_waits, listener)

    def _ignore(self) -> None:
        if self._watching:
            self._watching = False
            for listener in self._listeners:
                self._loop.remove_reader(listener.fileno())

    def _somebody_waits(self, listener: socket.socket) -> None:
        if self._free:
            self._accept_from(listener)
        else:
            self._ignore()
            self._make_room()

    def _accept_from(self, listener: socket.socket) -> None:
        for _ in range(min(self._limits.accepts_per_wakeup, self._free)):
            connection = self._accept(listener)
            if connection is None:
                return
            connection.setblocking(False)
            self._free -= 1
            self._idle.clear()
            self._tasks.create_task(self._run(connection))

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        """The next waiting connection; None when there is none, or not now."""
        try:
            return listener.accept()[0]
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            self._ignore()
            if error.errno in _EXHAUSTED:
                self._make_room()
                self._loop.call_later(self._limits.accept_backoff_s, self._watch)
            elif not self._broken.done():
                self._broken.set_exception(error)
            return None

    async def _run(self, connection: socket.socket) -> None:
        try:
            with connection:
                await self._handle(connection)
        finally:
            self._free += 1
            self._watch()
            if self._free == self._limits.flows:
                self._idle.set()
