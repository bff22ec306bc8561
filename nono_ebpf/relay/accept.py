"""Accepts connections and gives each a task of its own. Must not know what is done with them."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Final

from nono_ebpf.relay.stream import first_readable, tune

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Sequence

    from nono_ebpf.relay.limits import Limits

# accept(2): out of descriptors or memory, which ending connections give back.
_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Acceptor:
    """Serves `listeners` (listening, non-blocking, the caller's to close): a task of `handle` for each.

    `handle` owns the connection until it returns; then it is closed. It raises nothing but cancellation.
    `make_room` is called when a connection waits that nothing is left for; it may end others. Otherwise the newcomer
    waits in the backlog until one ends.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        handle: Callable[[socket.socket], Awaitable[None]],
        limits: Limits,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._listeners, self._handle, self._limits, self._make_room = listeners, handle, limits, make_room
        self._slots = asyncio.Semaphore(limits.flows)
        self._serving = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def serve(self) -> None:
        """Until cancelled, which ends every connection. Raises OSError when a listener itself is broken."""
        async with asyncio.TaskGroup() as group:
            for listener in self._listeners:
                group.create_task(self._accept_from(listener, group))

    async def drain(self, timeout_s: float) -> None:
        """Until whoever waits was accepted and nobody is served any more, at most `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(0)  # what is in the backlog now is accepted before this task goes on
                await self._idle.wait()
        except TimeoutError:
            return

    async def _accept_from(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        while True:
            await first_readable(listener)
            if self._slots.locked():
                self._make_room()
            for _ in range(self._limits.accepts_per_wakeup):
                await self._slots.acquire()
                connection = await self._accept(listener)
                if connection is None:
                    self._slots.release()
                    break
                self._serving += 1
                self._idle.clear()
                group.create_task(self._run(connection))
                if self._slots.locked():
                    break

    async def _accept(self, listener: socket.socket) -> socket.socket | None:
        """The next waiting connection; None when there is none, or not now."""
        try:
            return listener.accept()[0]
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            self._make_room()
            await asyncio.sleep(self._limits.accept_backoff_s)
            return None

    async def _run(self, connection: socket.socket) -> None:
        try:
            with connection:
                tune(connection)
                await self._handle(connection)
        except OSError:
            # Only `tune` gets here, when the client is gone before we look: nobody is left to be told.
            return
        finally:
            self._slots.release()
            self._serving -= 1
            if not self._serving:
                self._idle.set()
