"""Requests inside TLS, by whatever road, byte by byte as an attacker would write them. Standard library only."""

from __future__ import annotations

import errno
import select
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from attacks.base import PATIENCE_S, PAUSE_S, shown
from attacks.requests import proxy, spoken

if TYPE_CHECKING:
    from collections.abc import Callable

# `pieces`: what is said inside TLS. How it is begun: `server_name` (None: without), `alpn`, `newest` (a version of
# TLS), `unverified`, `cut` (the ClientHello in pieces of so many bytes).
Conversation = dict[str, Any]


def context(how: Conversation) -> ssl.SSLContext:
    """A client's that trusts what the sandbox does, or nobody and everybody."""
    nameless = "server_name" in how and how["server_name"] is None
    return _context(bool(how.get("unverified")), nameless, tuple(how.get("alpn", ())), how.get("newest"))


@cache  # reading the system's certificates takes longer than a conversation
def _context(unverified: bool, nameless: bool, alpn: tuple[str, ...], newest: str | None) -> ssl.SSLContext:
    made = ssl.create_default_context()
    if unverified:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if nameless:
        made.check_hostname = False
    if alpn:
        made.set_alpn_protocols(list(alpn))
    if newest:
        made.maximum_version = ssl.TLSVersion[newest]
        made.minimum_version = ssl.TLSVersion.TLSv1
        made.set_ciphers("ALL:@SECLEVEL=0")
    return made


def redirected(host: str, port: int, conversations: list[Conversation]) -> list[str]:
    """What comes back in each conversation with `host`, which knows of no proxy."""
    return [_told(lambda: socket.create_connection((host, port), PATIENCE_S), host, each) for each in conversations]


def tunnelled(authority: str, conversations: list[Conversation]) -> list[str]:
    """The same in tunnels that the proxy is asked for."""
    return [_told(lambda: _tunnel(authority), authority.rpartition(":")[0], each) for each in conversations]


def by_socks(authority: str, conversations: list[Conversation]) -> list[str]:
    """The same in tunnels of SOCKS5."""
    return [_told(lambda: _by_socks(authority), authority.rpartition(":")[0], each) for each in conversations]


def in_the_clear(host: str, port: int, requests: list[list[str]]) -> list[str]:
    """Plain HTTP where TLS is expected."""
    return [spoken((host, port), [shown(piece) for piece in pieces]) for pieces in requests]


def uploads(host: str, port: int, sizes: list[int]) -> list[str]:
    """What comes for a body of each size, on a connection of its own, all at once, and another request behind it."""
    address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    with ThreadPoolExecutor(len(sizes)) as pool:
        return list(pool.map(partial(_upload, host, (address, port), threading.Lock()), sizes))


def _upload(host: str, at: tuple[str, int], alone: threading.Lock, size: int) -> str:
    head = f"POST /v1/%s HTTP/1.1\r\nHost: {host}\r\nContent-Length: %d\r\n\r\n"
    with alone:  # whoever is kept from speaking by the others for too long is let go
        opened = socket.create_connection(at, PATIENCE_S)
        stream = opened if at[1] == 80 else context({}).wrap_socket(opened, server_hostname=host)
    with opened, stream:
        stream.setblocking(False)
        got = _pumped(stream, (head % ("up", size)).encode() + b"B" * size)
        return (got + _pumped(stream, (head % ("two", 0)).encode())).decode("latin-1")


def _pumped(stream: socket.socket, data: bytes) -> bytes:
    """The response to `data`, which is sent while it comes, and after it to its end."""
    got, view, end = b"", memoryview(data), time.monotonic() + PATIENCE_S
    while (view or not got.endswith(b"ok")) and time.monotonic() < end:
        try:
            if view:
                view = view[stream.send(view[:65536]) :]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            view = view[:0]
        try:
            if not (more := stream.recv(65536)):
                break
            got += more
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            select.select([stream], [stream] if view else [], [], PAUSE_S)
        except OSError:
            break
    return got


def _tunnel(authority: str) -> socket.socket:
    opened = socket.create_connection(proxy(), PATIENCE_S)
    head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer <token>\r\n\r\n"
    opened.sendall(shown(head).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = opened.recv(1)
        if not more:
            raise ConnectionError(answer.decode("latin-1"))
        answer += more
    if b" 200 " not in answer.split(b"\r\n")[0]:
        raise ConnectionError(answer.decode("latin-1"))
    return opened


def _by_socks(authority: str) -> socket.socket:
    host, _, port = authority.rpartition(":")
    name = host.encode()
    opened = socket.create_connection(proxy(), PATIENCE_S)
    opened.sendall(b"\5\1\2" + shown("\1\4nono\x40<token>").encode("latin-1"))
    opened.sendall(b"\5\1\0\3" + bytes([len(name)]) + name + int(port).to_bytes(2))
    answer = b""
    while len(answer) < 14 and (more := opened.recv(14 - len(answer))):
        answer += more
    if answer[:6] != b"\5\2\1\0\5\0":
        raise ConnectionError(answer.hex())
    return opened


def _told(connect: Callable[[], socket.socket], host: str, how: Conversation) -> str:
    try:
        with connect() as opened:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _Secured(opened, how, how.get("server_name", host)).conversed()
    except ssl.SSLError as error:
        return f"TLS: {error.reason or error}"
    except EOFError:
        return "ended"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0) or f"{type(error).__name__}: {error}"


class _Secured:
    """TLS by hand, so that its bytes can be sent in any pieces and one half be ended.

    Sending tells of no reset: what was answered before can be read, and reading tells it (`attacks.base.say`).
    """

    def __init__(self, opened: socket.socket, how: Conversation, name: str | None) -> None:
        self._opened, self._how = opened, how
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context(how).wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._cut = how.get("cut", 0)
        self._was_reset = False

    def conversed(self) -> str:
        """What comes back."""
        self._until_done(self._tls.do_handshake)
        for index, piece in enumerate(self._how["pieces"]):
            if index:
                time.sleep(PAUSE_S)
            self._tls.write(shown(piece).encode("latin-1"))
            self._flush()
        with suppress(OSError):
            self._opened.shutdown(socket.SHUT_WR)
        return self._rest()

    def _rest(self) -> str:
        got = b""
        try:
            while data := self._until_done(lambda: self._tls.read(65536)):
                got += data
        except (OSError, EOFError) as error:
            said = errno.errorcode.get(getattr(error, "errno", 0) or 0, type(error).__name__)
            return got.decode("latin-1") or said
        return got.decode("latin-1")

    def _until_done(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._flush()
                self._incoming.write(self._received())
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError:
                self._flush()
                raise
            else:
                self._flush()
                return done

    def _received(self) -> bytes:
        if data := self._opened.recv(65536):
            return data
        raise ConnectionResetError(errno.ECONNRESET, "while sending") if self._was_reset else EOFError

    def _flush(self) -> None:
        data = self._outgoing.read()
        # The first flight is the ClientHello.
        size, self._cut = self._cut or len(data), 0
        for start in range(0, len(data), size or 1):
            self._send(data[start : start + size])
            if size < len(data):
                time.sleep(PAUSE_S / 10)

    def _send(self, data: bytes) -> None:
        try:
            self._opened.sendall(data)
        except ConnectionResetError:
            self._was_reset = True
        except BrokenPipeError:
            pass
