"""Servers that keep every byte they get and answer what a test says, each host on its own address and in its own TLS.

Requests are read by h11, strictly: what it cannot read was no request that we sent. `asked` has what was read, `raw`
what came on each connection, `broken` why a connection carried nothing.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import h11
from kit.patience import patient

SILENCE_S = patient(180)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as h11 reads it: names in lower case."""

    host: str
    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    body: bytes

    def values(self, name: str) -> list[str]:
        """Those of every field `name`."""
        return [value for each, value in self.fields if each == name]


@dataclass(slots=True)
class Carried:
    """What came on one connection to `host`. `unreadable`: h11 refused some of it."""

    host: str
    data: bytearray = field(default_factory=bytearray)
    unreadable: bool = False


Answer = Callable[[Asked], Sequence[bytes]]


class Scripted:
    """All of them.

    `answer`: the pieces of a response; it is asked once the whole request is there, `early` once its head is, and None
    from that means: not yet. An empty piece ends the connection in good order. Before an early answer, and behind it,
    nothing is read for `pause_s`.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.raw: list[Carried] = []
        self.broken: list[tuple[str, str]] = []
        self.answer: Answer = lambda _: [OK]
        self.early: Callable[[Asked], Sequence[bytes] | None] = lambda _: None
        self.pause_s = 0.0
        self._listeners: list[socket.socket] = []
        self._open: set[socket.socket] = set()

    def serve(self, host: str, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        """Answer for `host`, inside TLS if there is a context. Owns the listener."""
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(host, listener, context), daemon=True).start()

    def forget(self) -> None:
        """Begin a new test."""
        self.asked, self.raw, self.broken = [], [], []
        self.answer, self.early, self.pause_s = lambda _: [OK], lambda _: None, 0.0

    def close(self) -> None:
        """Answer nobody any more."""
        for each in [*self._listeners, *self._open]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    # ------------------------------------------------------------ one connection

    def _accept(self, host: str, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                accepted.settimeout(SILENCE_S)
                self._open.add(accepted)
                threading.Thread(target=self._serve, args=(host, accepted, context), daemon=True).start()

    def _serve(self, host: str, accepted: socket.socket, context: ssl.SSLContext | None) -> None:
        try:
            with accepted, self._secured(accepted, context) as stream:
                self._converse(host, stream)
        except (OSError, ValueError) as error:
            self.broken.append((host, str(error)))
        finally:
            self._open.discard(accepted)

    def _secured(self, accepted: socket.socket, context: ssl.SSLContext | None) -> socket.socket:
        return accepted if context is None else context.wrap_socket(accepted, server_side=True)

    def _converse(self, host: str, stream: socket.socket) -> None:
        carried = Carried(host)
        connection = h11.Connection(h11.SERVER)
        while True:
            event = self._event(carried, connection, stream)
            if not isinstance(event, h11.Request):
                return
            head, asked = _asked(host, event), self.asked  # what began in a test is that test's
            answered = self.early(head)
            if answered is not None:
                time.sleep(self.pause_s)
                _send(stream, answered)
                time.sleep(self.pause_s)
            body = b""
            while not isinstance(event := self._event(carried, connection, stream), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    return
                body += event.data
            whole = Asked(head.host, head.method, head.target, head.fields, body)
            asked.append(whole)
            if answered is None:
                answered = self.answer(whole)
                _send(stream, answered)
            if b"" in answered:
                _end(stream)
                return
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE:
                return
            connection.start_next_cycle()

    def _event(self, carried: Carried, connection: h11.Connection, stream: socket.socket) -> object:
        try:
            while (event := connection.next_event()) is h11.NEED_DATA:
                data = stream.recv(65536)
                self._keep(carried, data, begins=connection.their_state is h11.IDLE)
                connection.receive_data(data)
        except h11.RemoteProtocolError:
            # Not what is only cut off: whoever notices a mistake late resets the connection.
            carried.unreadable = not connection.trailing_data[1]
            return None
        return event

    def _keep(self, carried: Carried, data: bytes, *, begins: bool) -> None:
        """What comes on a connection of before `forget` is kept by itself, from where a request begins; its end is
        nothing that came.
        """
        if not data:
            return
        if not any(each is carried for each in self.raw):
            if not begins:
                return
            carried.data.clear()
            self.raw.append(carried)
        carried.data += data


def _asked(host: str, request: h11.Request) -> Asked:
    fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers)
    return Asked(host, request.method.decode(), request.target.decode(), fields, b"")


def _end(stream: socket.socket) -> None:
    if isinstance(stream, ssl.SSLSocket):
        stream.unwrap()
    stream.shutdown(socket.SHUT_WR)


def _send(stream: socket.socket, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        stream.sendall(piece)
