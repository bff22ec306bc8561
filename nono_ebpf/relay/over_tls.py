"""TLS to the upstream proxy, for a relay that moves bytes between sockets by splice(2).

The relay is given one end of a pair of unix sockets. A pump in this process moves bytes between the other end and the
TLS connection, and takes no more from either side than it can get rid of at the other.

    relay ── end ═ pair ═ ours ── pump ── TLS ── TCP ── upstream proxy

How one side ends is passed on in the words of the other, so that to the relay it is like TCP:

    close_notify                        →  end of stream
    any other end of TLS, a FIN as well →  ECONNRESET: anybody on the way can make that
    SHUT_WR                             →  close_notify, since TLS 1.3; before, that would end both directions
    close                               →  close_notify, FIN
    reset                               →  RST
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nono_ebpf.errors import UpstreamError
from nono_ebpf.relay.stream import Upstream, reason_of
from nono_ebpf.tls.contexts import why

if TYPE_CHECKING:
    from nono_ebpf.policy.upstream_proxy import UpstreamProxy

# Of plaintext or ciphertext, at a time: a TLS record. With it a connection that is stuck both ways takes 120 KiB, and
# as many as there may be half of what the process may have; larger pieces save a third of the time.
_PIECE_BYTES: Final = 16384
# What is left to send when the relay closes: a piece, and the pair's buffer.
_FAREWELL_S: Final = 10.0
# RFC 8446 §6.1: before, close_notify "MUST be answered with a close_notify", discarding what was to be sent.
_HALF_CLOSES: Final = "TLSv1.3"


async def over_tls(tcp: Upstream, via: UpstreamProxy, context: ssl.SSLContext | None) -> Upstream:
    """What `tcp` becomes once `via` at its other end has proven who it is. Owns `tcp` from its return on.

    Raises:
        UpstreamError: it has not. OSError: it is gone.
    """
    if context is None:
        raise UpstreamError("connect", tcp.target, f"nothing to verify the upstream proxy {via} by")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=via.host)
    try:
        await _shake_hands(tcp.sock, tls, incoming, outgoing)
    except ssl.SSLError as error:
        with suppress(OSError):
            tcp.sock.send(outgoing.read())  # the alert
        raise UpstreamError("connect", tcp.target, f"TLS to the upstream proxy {via} failed: {why(error)}") from error
    return TlsUpstream(tcp, _Pump(tcp, tls, incoming, outgoing))


async def _shake_hands(
    sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> None:
    loop = asyncio.get_running_loop()
    done = False
    while not done:
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
            done = True
        if outgoing.pending:
            await loop.sock_sendall(sock, outgoing.read())
        if not done:
            if data := await loop.sock_recv(sock, _PIECE_BYTES):
                incoming.write(data)
            else:
                incoming.write_eof()


class TlsUpstream(Upstream):
    """The relay's end. Ends as `Upstream` promises, except that a RST is the TLS connection's."""

    __slots__ = ("_pump",)

    def __init__(self, tcp: Upstream, pump: _Pump) -> None:
        super().__init__(pump.end, tcp.target, tcp.endpoint, tcp.proxy)
        self._pump = pump

    def reset(self) -> None:
        """As `Upstream`."""
        self._pump.abort()
        super().reset()

    def close(self) -> None:
        """As `Upstream`."""
        if self.sock.fileno() >= 0:
            super().close()
            self._pump.farewell()

    def explain(self, problem: str) -> str:
        """What ended TLS, if anything did."""
        return self._pump.problem or problem


class _End(socket.socket):
    """The relay's end of the pair."""

    def __init__(self, sock: socket.socket, pump: _Pump) -> None:
        super().__init__(fileno=sock.detach())
        self._pump = pump

    def shutdown(self, how: int, /) -> None:
        """Tell the pump instead of the kernel, in which nothing could be written here any more; see `_Pump.abort`."""
        if how == socket.SHUT_WR:
            self._pump.finish()
        else:
            super().shutdown(how)


class _Pump:
    """Both directions, by the loop's callbacks. Each has one piece in hand at most, and takes another when it is gone.

    `problem`: why TLS ended, if it did not end in order.
    """

    def __init__(self, tcp: Upstream, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._loop = asyncio.get_running_loop()
        self._tcp, self._tls, self._incoming, self._outgoing = tcp, tls, incoming, outgoing
        self._ours, end = socket.socketpair()
        self.end = _End(end, self)
        for each in (self._ours, self.end):
            each.setblocking(False)
        self._to_proxy = self._to_relay = b""
        self._relay_finished = self._relay_closed = self._said_goodbye = self._proxy_finished = self._over = False
        self._broken = self.problem = ""
        self._timer: asyncio.TimerHandle | None = None
        ours, theirs = self._ours.fileno(), tcp.sock.fileno()
        self._readers = {ours: self._pull, theirs: self._take}
        self._writers = {theirs: self._push_on, ours: self._hand_over}
        self._read_from: frozenset[int] = frozenset()
        self._written_to: frozenset[int] = frozenset()
        self._decrypt()  # what came behind the handshake

    # ------------------------------------------------------------ what the relay does

    def finish(self) -> None:
        """What is in the pair now is all that the relay had to send."""
        self._relay_finished = True
        self._pull()

    def farewell(self) -> None:
        """The relay has closed its end: send what is in the pair and close, within a bound."""
        if self._over:
            return
        self._relay_finished = self._relay_closed = True
        self._to_relay = b""
        self._timer = self._loop.call_later(_FAREWELL_S, self.abort)
        self._pull()

    def abort(self) -> None:
        """End both sides at once."""
        if self._over:
            return
        self._stop()
        self._tcp.reset()
        # A unix socket fails with ECONNRESET when its peer is closed with something unread: this, if nothing else is.
        with suppress(OSError):
            self.end.send(b"\0")
        self._ours.close()

    def _break(self, why: str) -> None:
        self.problem = f"TLS to the upstream proxy broke: {why}"
        self.abort()

    def _stop(self) -> None:
        self._over = True
        self._watch(frozenset(), frozenset())
        if self._timer is not None:
            self._timer.cancel()

    # ------------------------------------------------------------ from the relay to the proxy

    def _pull(self) -> None:
        """Take a piece; when the relay has finished, all that is left."""
        while not (self._to_proxy or self._over):
            try:
                data = self._ours.recv(_PIECE_BYTES)
            except BlockingIOError:
                if not self._relay_finished:
                    break
                data = b""
            except OSError:  # closed with something unread
                self.abort()
                return
            if not data:
                self._say_goodbye()
                break
            self._encrypt(data)
            if not self._relay_finished:
                break
        self._go_on()

    def _encrypt(self, data: bytes) -> None:
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            self._break(why(error))
        else:
            self._push()

    def _push(self) -> None:
        self._to_proxy += self._outgoing.read()
        try:
            sent = self._tcp.sock.send(self._to_proxy)
        except BlockingIOError:
            return
        except OSError as error:
            self._break(reason_of(error))
        else:
            self._to_proxy = self._to_proxy[sent:]

    def _push_on(self) -> None:
        self._push()
        self._pull()

    def _say_goodbye(self) -> None:
        if not self._relay_finished:
            self.abort()  # whoever closes the end of the pair without a word has not ended in order
        elif not self._said_goodbye and (self._relay_closed or self._tls.version() == _HALF_CLOSES):
            self._said_goodbye = True
            with suppress(ssl.SSLError):  # it would wait for the answer, which is not what is missing
                self._tls.unwrap()
            self._push()

    # ------------------------------------------------------------ from the proxy to the relay

    def _take(self) -> None:
        try:
            data = self._tcp.sock.recv(_PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._break(reason_of(error))
            return
        if data:
            self._incoming.write(data)
            # libuv calls once for a socket with an error and then watches it no more, even if there were bytes to read.
            number = self._tcp.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._decrypt()
            if self._over:
                return
            if self._outgoing.pending:  # what TLS itself answers, as to a KeyUpdate
                self._push()
            if number and not self._proxy_finished:
                self._broken = self._broken or os.strerror(number)
                self._hand_over()
            self._go_on()
        else:  # since after a close_notify nothing is read any more
            self._break("unexpected eof")

    def _decrypt(self) -> None:
        pieces = []
        try:
            while piece := self._tls.read(_PIECE_BYTES):
                pieces.append(piece)
            self._proxy_finished = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._proxy_finished = True
        except ssl.SSLError as error:
            self._broken = why(error)
        self._to_relay = b"".join(pieces)
        self._hand_over()

    def _hand_over(self) -> None:
        """Give the relay what is in hand, and behind it the end."""
        try:
            self._to_relay = self._to_relay[self._ours.send(self._to_relay) :] if self._to_relay else b""
        except BlockingIOError:
            pass
        except OSError:  # the relay has closed, as will be seen at the other direction's end
            self._to_relay = b""
        if self._broken and not self._to_relay:
            self._break(self._broken)
        elif self._proxy_finished and not self._to_relay:
            self._ours.shutdown(socket.SHUT_WR)
        self._go_on()

    # ------------------------------------------------------------ waiting

    def _go_on(self) -> None:
        """Wait for each direction's source, or for its sink while a piece is in hand; or end, when all is done."""
        if self._over:
            return
        if self._relay_closed and self._said_goodbye and not self._to_proxy:
            self._stop()
            self._tcp.close()
            self._ours.close()
            return
        ours, theirs = self._ours.fileno(), self._tcp.sock.fileno()
        takes = not (self._to_relay or self._proxy_finished or self._broken or self._relay_closed)
        takes = takes and len(self._to_proxy) <= 2 * _PIECE_BYTES  # TLS answers some of what it takes
        read_from = {ours: not (self._to_proxy or self._relay_finished), theirs: takes}
        written_to = {theirs: bool(self._to_proxy), ours: bool(self._to_relay)}
        self._watch(*(frozenset(fd for fd, wanted in each.items() if wanted) for each in (read_from, written_to)))

    def _watch(self, read_from: frozenset[int], written_to: frozenset[int]) -> None:
        for fd in self._read_from - read_from:
            self._loop.remove_reader(fd)
        for fd in read_from - self._read_from:
            self._loop.add_reader(fd, self._readers[fd])
        for fd in self._written_to - written_to:
            self._loop.remove_writer(fd)
        for fd in written_to - self._written_to:
            self._loop.add_writer(fd, self._writers[fd])
        self._read_from, self._written_to = read_from, written_to
