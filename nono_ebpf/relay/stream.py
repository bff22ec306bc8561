"""One TCP connection as the relay sees it: a socket, and what was read from it but not consumed.

Knows sockets and the event loop. Must not know what the bytes mean.

Contract of a stream: one owner; bytes leave `unread` only by the owner's hand, so nothing is parsed twice or
lost; `close()` and `reset()` may be called at any time and more than once, and always close; a deadline that passes
raises TimeoutError.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from nono_ebpf.errors import UpstreamError, UpstreamPhase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nono_ebpf.model import Endpoint

# socket(7): struct linger { int l_onoff; int l_linger; }. With zero seconds, close(2) sends RST instead of
# FIN.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_FINISH_ON_CLOSE: Final = struct.pack("ii", 0, 0)
# struct tcp_info, linux/tcp.h: tcpi_last_data_sent, tcpi_last_data_recv, tcpi_bytes_acked.
_TCP_INFO: Final = struct.Struct("=44xI4xI64xQ")
# More than nearly every head, and what a flow can hold beyond the longest one.
_HEAD_READ_BYTES: Final = 16384
_LINGER_READ_BYTES: Final = 65536


def tune(connection: socket.socket) -> None:
    """Prepare a socket for relaying. What a listening one accepts has the same options, but may block.

    Without TCP_NODELAY on both sides, the small last segment of a TLS handshake waits some 40 ms for the
    peer's delayed ACK. Keep-alive finds peers that vanished without a FIN. Urgent data stays where it is in the
    stream (RFC 6093), or a read would leave it out.
    """
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


@dataclass(frozen=True, slots=True)
class Activity:
    """`answered`: the peer has received something from us. `idle_ms`: since anything was carried, either way.

    Of what is not answered `idle_ms` is its age: what a client says into the void is no progress.
    """

    answered: bool
    idle_ms: int


def activity_of(connection: socket.socket) -> Activity:
    """What the kernel remembers, so that nobody has to count. A socket that is gone has been idle for ever."""
    try:
        raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        sent_ms, received_ms, acked_bytes = _TCP_INFO.unpack(raw)
    except OSError:
        return Activity(answered=False, idle_ms=0)
    return Activity(True, min(sent_ms, received_ms)) if acked_bytes else Activity(False, sent_ms)


async def connect(connection: socket.socket, address: str, port: int) -> None:
    """Connect a non-blocking socket to a literal address. Raises OSError.

    A loop's own sock_connect takes the address for a name, and asks for it in one of the few threads that there are.
    """
    try:
        connection.connect((address, port))
    except BlockingIOError:
        await _writable(connection)
        if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error)) from None


async def first_readable(*connections: socket.socket, deadline_s: float | None = None) -> socket.socket:
    """Wait until one of `connections` has bytes, its end or an error to read.

    On a tie the earlier argument wins. Raises TimeoutError after `deadline_s`.
    """
    # Mostly somebody has spoken already, and asking is one call where having the loop watch two sockets is sixteen.
    poll = select.poll()
    for each in connections:
        poll.register(each, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(0)}
    if not ready:
        due = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
        ready = await _readable(connections, due)
    return next(each for each in connections if each.fileno() in ready)


async def _readable(connections: Sequence[socket.socket], due: float | None) -> set[int]:
    """The descriptors of those that can be read first. Raises TimeoutError when the loop's clock is at `due`."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    ready: set[int] = set()

    def note(fd: int) -> None:
        ready.add(fd)
        settle(readable)

    for each in connections:
        loop.add_reader(each.fileno(), note, each.fileno())
    # A tenth of what asyncio.timeout() costs, which has a task to cancel.
    expiry = None if due is None else loop.call_at(due, settle, readable, TimeoutError())
    try:
        await readable
    finally:
        if expiry is not None:
            expiry.cancel()
        for each in connections:
            loop.remove_reader(each.fileno())
    return ready


async def _writable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    writable: asyncio.Future[None] = loop.create_future()
    loop.add_writer(connection.fileno(), settle, writable)
    try:
        await writable
    finally:
        loop.remove_writer(connection.fileno())


def settle(future: asyncio.Future[None], error: Exception | None = None) -> None:
    """The wait is over, if it was not before."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


class Stream:
    """The client's side of a flow; takes a connected, tuned socket and owns it.

    OSErrors pass through: when the client is gone there is nobody to answer.
    Any end but `close` is a RST, also that of a process which was killed: a FIN would make what was cut off look whole.
    """

    __slots__ = ("at_eof", "received_bytes", "sent_bytes", "sock", "unread")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._set_linger(_RESET_ON_CLOSE)
        self.unread = bytearray()
        self.at_eof = False
        self.sent_bytes = self.received_bytes = 0

    async def fill(self, deadline_s: float, size: int = _HEAD_READ_BYTES) -> bool:
        """Read up to `size` bytes more into `unread`, waiting at most `deadline_s`.

        False at the end of the stream.
        """
        try:
            data = await self._read(size, deadline_s)
        except OSError as error:
            self._failed("read", error)
        self.unread += data
        self.received_bytes += len(data)
        self.at_eof = not data
        return bool(data)

    async def fill_line(self, deadline_s: float, enough_bytes: int) -> bool:
        """`fill` until there is an end of line more, or `enough_bytes`: before, a head is no more whole than it was."""
        seen = len(self.unread)
        while await self.fill(deadline_s):
            if self.unread.find(b"\n", seen) >= 0 or len(self.unread) >= enough_bytes:
                return True
            seen = len(self.unread)
        return False

    async def _read(self, size: int, deadline_s: float) -> bytes:
        due = None
        while True:
            try:
                return self.sock.recv(size)
            except BlockingIOError:
                due = due or asyncio.get_running_loop().time() + deadline_s
                await _readable((self.sock,), due)

    async def send(self, data: bytes | bytearray, deadline_s: float) -> None:
        """Hand all of `data` to the kernel; waits for the peer to read, which is the back-pressure."""
        try:
            sent = self._send_now(data)
            if sent < len(data):
                async with asyncio.timeout(deadline_s):
                    await asyncio.get_running_loop().sock_sendall(self.sock, memoryview(data)[sent:])
        except OSError as error:
            self._failed("write", error)
        self.sent_bytes += len(data)

    def _send_now(self, data: bytes | bytearray) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def _failed(self, phase: UpstreamPhase, error: OSError) -> NoReturn:  # noqa: ARG002 - Upstream's needs it
        raise error

    def take_unread(self) -> bytes:
        """Everything read and not consumed; it is the caller's from now on."""
        data = bytes(self.unread)
        self.unread.clear()
        return data

    async def linger(self, quiet_s: float, deadline_s: float) -> None:
        """Send FIN and read the rest away until the peer ends, or sends nothing for `quiet_s`: the last answer arrives.

        Closing with unread bytes sends a RST.
        """
        try:
            self.sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(deadline_s):
                while await self._read(_LINGER_READ_BYTES, quiet_s):  # noqa: ASYNC110  # it waits for the socket
                    await asyncio.sleep(0)  # who has more would keep others from their turn
        except OSError:
            # The peer left or keeps talking past the deadline; the answer has had its chance either way.
            return

    def reset(self) -> None:
        """Close with a RST. What was sent and not delivered yet is lost."""
        self.sock.close()

    def close(self) -> None:
        """Close with a FIN behind everything that was sent (RST when unread bytes are left in the kernel)."""
        if self.sock.fileno() >= 0:
            self._set_linger(_FINISH_ON_CLOSE)
            self.sock.close()

    def _set_linger(self, linger: bytes) -> None:
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except OSError:
            # Only a socket that is no longer connected refuses this, and nobody is left to be told.
            return


class Upstream(Stream):
    """The far side of a flow, connected to `endpoint`; its failures are UpstreamErrors that name `target`.

    `proxy`: the upstream proxy ("host:port") whose endpoint it is.
    """

    __slots__ = ("endpoint", "proxy", "target")

    def __init__(self, sock: socket.socket, target: str, endpoint: Endpoint, proxy: str | None = None) -> None:
        super().__init__(sock)
        self.target, self.endpoint, self.proxy = target, endpoint, proxy

    def explain(self, problem: str) -> str:
        """Why it failed, where more is known than `problem`, the kernel's words."""
        return problem

    def _failed(self, phase: UpstreamPhase, error: OSError) -> NoReturn:
        raise UpstreamError(phase, self.target, self.explain(reason_of(error))) from error


def reason_of(error: OSError) -> str:
    """The kernel's words for `error`. asyncio puts its own into `strerror`, another loop others."""
    if error.errno:
        return os.strerror(error.errno)
    return "timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
