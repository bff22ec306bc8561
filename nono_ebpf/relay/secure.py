"""Connections inside TLS that are streams like any other: what is read is plaintext, and so is what is sent.

Knows the order of TLS's own messages; their bytes are OpenSSL's, which never sees the socket. Must not know what the
bytes mean.

    socket ── recv ─→ incoming ─→ OpenSSL ─→ unread
    socket ←─ send ── outgoing ←─ OpenSSL ←─ send()

How a side ends:

    close, linger     close_notify and FIN
    reset             RST
    close_notify      the end of the stream, from either side
    FIN alone         from a client: the end, since no request is whole only because it ended. From an upstream: an
                      error, since some responses are, and anybody on the way can make a FIN
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nono_ebpf.errors import ClientProtocolError, UpstreamError
from nono_ebpf.relay.stream import Stream, Upstream, reason_of, settle
from nono_ebpf.tls.contexts import why

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

# RFC 8446 §5.1: the most plaintext that a record has.
_RECORD_BYTES: Final = 16384
# Of plaintext encrypted, or of ciphertext read, before another flow gets its turn: under a tenth of a millisecond.
_PIECE_BYTES: Final = 65536
# What is given to OpenSSL at a time. A buffer of its keeps the size it once had, for as long as the connection lasts.
_MOUTHFUL_BYTES: Final = 16384
# What TLS itself may have to say to a peer that does not listen.
_MAX_UNSENT_BYTES: Final = 16384
# For a close_notify behind what the client has not read yet.
_FAREWELL_S: Final = 10.0
_MAX_FAREWELLS: Final = 256
# Reads of an idle connection's tickets and the like. Who has more to say is not quiet.
_QUIET_READS: Final = 4
_OF_TRUST: Final = frozenset(("unknown ca", "bad certificate", "certificate unknown"))


class _Tls:
    """The connection of `under` as OpenSSL sees it: plaintext on one side, ciphertext on the other.

    `ended`: nothing comes any more. Once reading failed, it fails again. `torn`: something was to be sent, and nobody
    knows how much of it was.
    """

    __slots__ = (
        "_broken", "_draining", "_incoming", "_outgoing", "_said_goodbye", "_unsent", "_waiting", "_watching",
        "ended", "sock", "tls", "torn", "under",
    )  # fmt: skip

    def __init__(self, under: Stream, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self.under, self.sock, self.tls = under, under.sock, tls
        self._incoming, self._outgoing = incoming, outgoing
        self._unsent = b""
        self._broken: OSError | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._watching: asyncio.AbstractEventLoop | None = None
        self.ended = self.torn = self._draining = self._said_goodbye = False

    # ------------------------------------------------------------ reading

    def take(self, raw: bytes = b"") -> bytes:
        """What can be decrypted now that `raw` has arrived; b"": nothing, or `ended`. Raises OSError."""
        if self._broken is not None:
            raise self._broken
        pieces: list[bytes] = []
        if self._incoming.pending:  # what came behind the handshake
            self._decrypt(pieces)
        for start in range(0, len(raw), _MOUTHFUL_BYTES):
            self._incoming.write(raw[start : start + _MOUTHFUL_BYTES] if len(raw) > _MOUTHFUL_BYTES else raw)
            self._decrypt(pieces)
        if self._outgoing.pending:  # what TLS itself answers, as to a KeyUpdate
            self._answer()
        if self._broken is not None and not pieces:
            raise self._broken
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _decrypt(self, pieces: list[bytes]) -> None:
        try:
            while self._incoming.pending and not (self.ended or self._broken):
                if piece := self.tls.read(_RECORD_BYTES):
                    pieces.append(piece)
                else:
                    self.ended = True
        except ssl.SSLWantReadError:
            return
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            self._broken = _broke(error)

    def _answer(self) -> None:
        with suppress(OSError):  # a socket that is broken says so to whoever reads on
            if self._draining or self.push():
                return
        if len(self._unsent) + self._outgoing.pending > _MAX_UNSENT_BYTES:
            self._broken = ConnectionError("TLS broke: nobody listens to what it answers")

    async def receive(self, size: int, due: float) -> bytes:
        """Ciphertext, once there is some; b"": its end. Raises OSError, TimeoutError at `due`, on the loop's clock."""
        while True:
            try:
                return self.sock.recv(size)
            except BlockingIOError:
                await self._readable(due)

    async def _readable(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        if self._watching is None:
            # From now on: to begin and to end costs more than the rest of a wait.
            loop.add_reader(self.sock.fileno(), self._note)
            self._watching = loop
        self._waiting = loop.create_future()
        expiry = loop.call_at(due, settle, self._waiting, TimeoutError())
        try:
            await self._waiting
        finally:
            expiry.cancel()
            self._waiting = None

    def _note(self) -> None:
        """There is something to receive."""
        if self._waiting is None:
            self.unwatch()  # or the loop would say so again and again
        else:
            settle(self._waiting)

    def unwatch(self) -> None:
        """To be called before the socket is closed, or becomes somebody else's."""
        if self._watching is not None:
            self._watching.remove_reader(self.sock.fileno())
            self._watching = None

    # ------------------------------------------------------------ sending

    def encrypt(self, piece: memoryview) -> None:
        """Have `piece` ready to be sent. Raises OSError."""
        ready = [self._unsent]
        try:
            while piece:
                piece = piece[self.tls.write(piece[:_MOUTHFUL_BYTES]) :]
                ready.append(self._outgoing.read())
        except ssl.SSLError as error:
            raise _broke(error) from error
        self._unsent = b"".join(ready)

    def push(self) -> bool:
        """Send what is ready, as far as the socket takes it; False when that is not all. Raises OSError."""
        if self._draining or self.torn:
            return False
        data = self._unsent + self._outgoing.read()
        if data:
            with suppress(BlockingIOError):
                data = data[self.sock.send(data) :]
            self._unsent = data
        return not data

    async def drain(self, deadline_s: float) -> None:
        """Send what is ready, all of it. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._draining = True
        try:
            async with asyncio.timeout(deadline_s):
                while data := self._unsent + self._outgoing.read():
                    self._unsent = b""
                    await loop.sock_sendall(self.sock, data)
        finally:
            self._draining = False

    def say_goodbye(self) -> None:
        """Have a close_notify ready; behind what is not whole there is no place for one."""
        if self._said_goodbye or self.torn or self._broken:
            return
        self._said_goodbye = True
        with suppress(ssl.SSLError):  # it would wait for the answer
            self.tls.unwrap()

    @property
    def unsent(self) -> bytes:
        """What was ready and the socket has not taken; nothing where some of it is lost."""
        return b"" if self.torn else self._unsent


class _Secured(Stream):
    """What both ends have in common. `sock` is the connection's socket: what it carries is ciphertext.

    `received_bytes` and `sent_bytes` are of plaintext. A read may give one record more than it was asked for.
    """

    __slots__ = ()

    _tls: _Tls

    async def _read(self, size: int, deadline_s: float) -> bytes:
        tls = self._tls
        loop = asyncio.get_running_loop()
        due = loop.time() + deadline_s
        data = tls.take()
        while not (data or tls.ended):
            raw = await tls.receive(min(size, _PIECE_BYTES), due)
            if not raw:
                return self._at_fin()
            data = tls.take(raw)
            if not (data or tls.ended):
                # Part of a record. It costs us more than it costs whoever sends nothing else.
                if loop.time() >= due:
                    raise TimeoutError
                await asyncio.sleep(0)
        return data

    def _at_fin(self) -> bytes:
        return b""

    async def send(self, data: bytes | bytearray, deadline_s: float) -> None:
        """As `Stream`. In pieces, of which the first few are in the kernel before the last is encrypted."""
        tls = self._tls
        try:
            view = memoryview(data)
            for start in range(0, len(view), _PIECE_BYTES):
                if start:
                    await asyncio.sleep(0)
                tls.encrypt(view[start : start + _PIECE_BYTES])
                if not tls.push():
                    await tls.drain(deadline_s)
        except OSError as error:
            tls.torn = True
            self._failed("write", error)
        except BaseException:
            tls.torn = True
            raise
        self.sent_bytes += len(data)

    async def linger(self, quiet_s: float, deadline_s: float) -> None:
        """As `Stream`, with a close_notify before the FIN. What is read away stays encrypted."""
        tls = self._tls
        try:
            async with asyncio.timeout(deadline_s):
                tls.say_goodbye()
                if not tls.push():
                    await tls.drain(deadline_s)
                self.sock.shutdown(socket.SHUT_WR)
                loop = asyncio.get_running_loop()
                while await tls.receive(_PIECE_BYTES, loop.time() + quiet_s):  # noqa: ASYNC110  # as there
                    await asyncio.sleep(0)
        except OSError:
            return

    def reset(self) -> None:
        """As `Stream`."""
        self._tls.unwatch()
        self._tls.under.reset()

    def close(self) -> None:
        """As `Stream`, with a close_notify before the FIN."""
        self._tls.unwatch()
        if self.sock.fileno() >= 0:
            self._tls.say_goodbye()
            with suppress(OSError):
                self._tls.push()
        self._tls.under.close()


class SecureStream(_Secured):
    """A client to whom we are the host that it asked for."""

    __slots__ = ("_tls",)

    def __init__(self, tls: _Tls) -> None:
        super().__init__(tls.sock)
        self._tls = tls

    def close(self) -> None:
        """As `Stream`. To a client that is slow to take what was sent, close_notify and FIN are sent later."""
        tls = self._tls
        tls.unwatch()
        try:
            if self.sock.fileno() >= 0:
                tls.say_goodbye()
                with suppress(OSError):
                    tls.push()
                if tls.unsent:
                    _Farewell(self.sock, tls.unsent)
        finally:
            tls.under.close()


class _Farewell:
    """Owns a socket until it has taken `data`, for a few seconds; then ends it, with a FIN only if it has."""

    open = 0

    def __init__(self, sock: socket.socket, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        if _Farewell.open >= _MAX_FAREWELLS:
            return
        _Farewell.open += 1
        self._data, self._remove_writer = data, loop.remove_writer
        self._stream = Stream(socket.socket(fileno=sock.detach()))
        loop.add_writer(self._stream.sock.fileno(), self._push)
        self._timer = loop.call_later(_FAREWELL_S, self._end)

    def _push(self) -> None:
        try:
            self._data = self._data[self._stream.sock.send(self._data) :]
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        if not self._data:
            self._end()

    def _end(self) -> None:
        _Farewell.open -= 1
        self._timer.cancel()
        self._remove_writer(self._stream.sock.fileno())
        if self._data:
            self._stream.reset()
        else:
            self._stream.close()


class SecureUpstream(_Secured, Upstream):
    """An upstream that has proven to be the host that was permitted.

    `key`: whatever says for whom the connection may be used again. `remember`: is given the session at an orderly end.
    """

    __slots__ = ("_tls", "_under", "key", "remember")

    def __init__(self, tls: _Tls, under: Upstream) -> None:
        super().__init__(tls.sock, under.target, under.endpoint, under.proxy)
        self._tls, self._under = tls, under
        self.key: Hashable = None
        self.remember: Callable[[ssl.SSLSession], None] | None = None

    @property
    def session(self) -> ssl.SSLSession | None:
        """What the next connection to the same server can begin with. TLS 1.3 sends it when it likes."""
        session = self._tls.tls.session
        return session if session is not None and session.has_ticket else None

    def is_quiet(self) -> bool:
        """Neither closed nor talking out of turn: what comes then belongs to no request. Tickets belong to TLS."""
        tls = self._tls
        try:
            self.unread += tls.take()
            for _ in range(_QUIET_READS):
                if self.unread or tls.ended or not (raw := self.sock.recv(_RECORD_BYTES)):
                    return False
                self.unread += tls.take(raw)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """As `Stream`."""
        if self.sock.fileno() >= 0 and self.remember is not None and (session := self.session) is not None:
            self.remember(session)
        super().close()

    def explain(self, problem: str) -> str:
        """As the connection below has it, which may be TLS to an upstream proxy."""
        return self._under.explain(problem)

    def _at_fin(self) -> bytes:
        raise ConnectionError("the connection ended without a close_notify, which may have cut something off")


def _broke(error: ssl.SSLError) -> ConnectionError:
    return ConnectionError(f"TLS broke: {why(error)}")


# ------------------------------------------------------------ handshakes


async def accept(client: Stream, context: ssl.SSLContext, deadline_s: float) -> SecureStream:
    """What `client`, whose ClientHello may be unread, becomes once it believes who we are. Owns it from its return on.

    Raises:
        ClientProtocolError: it does not, or is gone. It has been told, and nothing more can be said; `client` stays
        the caller's to end.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    try:
        async with asyncio.timeout(deadline_s):
            whole = await _shake_hands(client, tls, incoming, outgoing, deadline_s)
    except ssl.SSLError as error:
        raise ClientProtocolError(f"TLS handshake: {_complaint(error)}") from error
    except TimeoutError as error:
        raise ClientProtocolError(f"TLS handshake: not finished within {deadline_s:g} s", status=408) from error
    except OSError as error:
        raise ClientProtocolError(f"TLS handshake: the client is gone: {reason_of(error)}") from error
    if not whole:
        raise ClientProtocolError("TLS handshake: the client ended the connection, as some do that do not trust us")
    return SecureStream(_Tls(client, tls, incoming, outgoing))


def _complaint(error: ssl.SSLError) -> str:
    """Who is not content, and with what."""
    _, alert, description = (error.reason or "").partition("_ALERT_")
    if not alert:
        return why(error)
    said = description.lower().replace("_", " ")
    hint = "; it does not trust this sandbox's certificate authority" if said in _OF_TRUST else ""
    return f"the client refuses with the alert {said}{hint}"


async def secure(
    upstream: Upstream, host: str, context: ssl.SSLContext, session: ssl.SSLSession | None, deadline_s: float
) -> SecureUpstream:
    """What `upstream` becomes once it has proven to be the canonical `host`. Owns it from its return on.

    `session`: of an earlier connection to the same host by the same context, or the proof is somebody else's.

    Raises:
        UpstreamError: phase "connect"; it has proven nothing, or is gone. `upstream` stays the caller's to end.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=host, session=session)
    try:
        async with asyncio.timeout(deadline_s):
            whole = await _shake_hands(upstream, tls, incoming, outgoing, deadline_s)
    except ssl.SSLError as error:
        raise UpstreamError("connect", upstream.target, f"TLS failed: {why(error)}") from error
    except TimeoutError as error:
        problem = f"TLS failed: no handshake within {deadline_s:g} s"
        raise UpstreamError("connect", upstream.target, problem) from error
    except UpstreamError as error:
        raise UpstreamError("connect", upstream.target, f"TLS failed: {error.problem}") from error.__cause__
    if not whole:
        raise UpstreamError("connect", upstream.target, "TLS failed: it closed the connection during the handshake")
    return SecureUpstream(_Tls(upstream, tls, incoming, outgoing), upstream)


async def _shake_hands(
    stream: Stream, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, deadline_s: float
) -> bool:
    """False when the stream ends before. Raises ssl.SSLError when one of the two is not content."""
    incoming.write(stream.take_unread())
    while True:
        done = False
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            with suppress(OSError):
                stream.sock.send(outgoing.read())  # the alert
            raise
        if outgoing.pending:
            await stream.send(outgoing.read(), deadline_s)
        if done:
            return True
        if not await stream.fill(deadline_s):
            return False
        incoming.write(stream.take_unread())
