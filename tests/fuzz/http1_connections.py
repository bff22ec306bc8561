"""Two readers of everything that one side of an HTTP/1 connection sends: ours, as the relay uses it, and h11.

Both give a Reading: the messages in order, and what became of the connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import h11
from fuzz.http1_reading import H11_HEAD_BYTES, UPSTREAM

from nono_ebpf.errors import ClientProtocolError, UpstreamError
from nono_ebpf.wire import NEED_MORE, http1

if TYPE_CHECKING:
    from collections.abc import Iterable

    Head = http1.RequestHead | http1.ResponseHead
    H11Head = h11.Request | h11.InformationalResponse | h11.Response

NamedFields = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Message:
    """One message. `goes_on`: after it, another one may come; false until it is complete."""

    line: tuple[str | int | bytes, ...]
    fields: NamedFields  # names in lower case
    content: bytes = b""
    complete: bool = False
    goes_on: bool = False


@dataclass(slots=True)
class Reading:
    """What a reader made of a connection. `behind`: the bytes that are no message's; the rest only when `refused`."""

    messages: list[Message] = field(default_factory=list)
    refused: bool = False
    over: bool = False
    behind: bytes = b""


class Reader(Protocol):
    """Reads what comes, as far as it is there."""

    reading: Reading

    def feed(self, data: bytes) -> None:
        """More of it, never nothing."""

    def end(self) -> None:
        """The sender has closed."""


def read(reader: Reader, parts: Iterable[bytes], *, end: bool = True) -> Reading:
    """What `reader` makes of `parts`, and of the end behind them."""
    for part in filter(None, parts):
        reader.feed(part)
    if end:
        reader.end()
    return reader.reading


# ---------------------------------------------------------------- ours


@dataclass(slots=True)
class Span:
    """Where a message stands in what was read, and its parsed form. `pieces`: its content, as it was taken."""

    head: Head
    start: int
    body_start: int
    end: int
    body: http1.Body | None  # None: what never has one
    pieces: list[bytes] = field(default_factory=list)


class Ours:
    """Our parser, asked in the order in which the relay asks it.

    `asked`: the requests that responses answer, over and over; None when requests are read.
    """

    def __init__(self, asked: tuple[http1.RequestHead, ...] | None = None) -> None:
        self.reading, self.spans = Reading(), list[Span]()
        self._asked, self._answered = asked, 0
        self._buffer, self._position = bytearray(), 0
        self._open: Span | None = None

    @property
    def request(self) -> http1.RequestHead:
        """The request whose response is due."""
        assert self._asked
        return self._asked[self._answered % len(self._asked)]

    def feed(self, data: bytes) -> None:
        self._buffer += data
        try:
            while not self.reading.over and not self.reading.refused and self._step():
                pass
        except (ClientProtocolError, UpstreamError) as error:
            self._refused(error)
        self.reading.behind = bytes(self._buffer)

    def end(self) -> None:
        if self._open is None or self._open.body is None or self.reading.refused:
            return
        try:
            self._open.body.end_of_stream()
        except (ClientProtocolError, UpstreamError) as error:
            self._refused(error)
        else:
            self._complete(self._open)

    def _refused(self, error: ClientProtocolError | UpstreamError) -> None:
        assert isinstance(error, ClientProtocolError if self._asked is None else UpstreamError)
        self.reading.refused = True

    def _step(self) -> bool:
        """One head, or one piece of a body; False when more has to come."""
        return self._take_head() if self._open is None else self._take_body(self._open)

    def _take_head(self) -> bool:
        parsed: tuple[Head, int] | object = (
            http1.parse_request_head(self._buffer)
            if self._asked is None
            else http1.parse_response_head(self._buffer, UPSTREAM)
        )
        if parsed is NEED_MORE:
            return False
        assert isinstance(parsed, tuple)
        head, size = parsed
        span = Span(head, self._position, self._position + size, self._position + size, self._body_of(head))
        self._removed(size)
        self.spans.append(span)
        self.reading.messages.append(_message(head))
        self._open = span
        if span.body is None or span.body.done:
            self._complete(span)
        return True

    def _body_of(self, head: Head) -> http1.Body | None:
        if isinstance(head, http1.RequestHead):
            if head.method == "CONNECT":
                http1.connect_authority(head)
            return http1.request_body(head)
        if head.status == http1.SWITCHING_PROTOCOLS:
            asked = http1.asks_for_websocket(self.request) and http1.accepts_websocket(head, self.request)
            if not asked:
                raise UpstreamError("read", UPSTREAM, "switched protocols without being asked")
        return None if head.status < 200 else http1.response_body(head, self.request.method, UPSTREAM)

    def _take_body(self, span: Span) -> bool:
        assert span.body is not None
        held = len(self._buffer)
        content = span.body.take(self._buffer)
        self._position += held - len(self._buffer)
        span.end = self._position
        span.pieces.append(content)
        self.reading.messages[-1].content += content
        if span.body.done:
            self._complete(span)
        return span.body.done or 0 < len(self._buffer) < held

    def _removed(self, size: int) -> None:
        del self._buffer[:size]
        self._position += size

    def _complete(self, span: Span) -> None:
        message, self._open = self.reading.messages[-1], None
        message.complete = True
        interim = isinstance(span.head, http1.ResponseHead) and span.head.status < 200
        message.goes_on = interim or not http1.wants_close(span.head)
        if _begins_tunnel(span.head) or isinstance(span.body, http1.CloseBody):
            message.goes_on = False
        self.reading.over = not message.goes_on
        self._answered += not interim


def _message(head: Head) -> Message:
    first = (head.method, head.target) if isinstance(head, http1.RequestHead) else (head.status, head.reason)
    return Message((*first, head.version), [(name.lower(), value) for name, value in head.fields])


def _begins_tunnel(head: Head) -> bool:
    return head.method == "CONNECT" if isinstance(head, http1.RequestHead) else head.status == 101


# ---------------------------------------------------------------- h11


class Second:
    """h11. As a server it answers each request with nothing; as a client it asks what `asked` has, over and over."""

    def __init__(self, asked: tuple[http1.RequestHead, ...] | None = None) -> None:
        self.reading = Reading()
        self._connection = h11.Connection(h11.SERVER if asked is None else h11.CLIENT, H11_HEAD_BYTES)
        self._asked, self._answered, self._ended = asked, 0, False
        self._ask()

    def _ask(self) -> None:
        if self._asked is None:
            return
        head = self._asked[self._answered % len(self._asked)]
        self._connection.send(h11.Request(method=head.method, target=head.target, headers=list(head.fields)))
        self._connection.send(h11.EndOfMessage())

    def feed(self, data: bytes) -> None:
        self._connection.receive_data(data)
        self._proceed()
        self.reading.behind = self._connection.trailing_data[0]

    def end(self) -> None:
        self._ended = True
        if not self.reading.over:
            # Nothing is what h11 takes for the end.
            self._connection.receive_data(b"")
            self._proceed()

    def _proceed(self) -> None:
        while not self.reading.over and not self.reading.refused:
            try:
                event = self._connection.next_event()
            except h11.RemoteProtocolError:
                self.reading.refused = True
                return
            if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                return
            self._take(event)

    def _take(self, event: object) -> None:
        messages = self.reading.messages
        if isinstance(event, h11.Request | h11.InformationalResponse | h11.Response):
            messages.append(_message_of_h11(event))
            if isinstance(event, h11.InformationalResponse):
                self._finish(messages[-1], goes_on=event.status_code != http1.SWITCHING_PROTOCOLS)
        elif isinstance(event, h11.Data):
            messages[-1].content += bytes(event.data)
        else:
            assert isinstance(event, h11.EndOfMessage)
            self._end_of_message(messages[-1])

    def _end_of_message(self, message: Message) -> None:
        if self._asked is None and message.line[0] != "CONNECT":
            self._connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            self._connection.send(h11.EndOfMessage())
        self._finish(message, goes_on=self._connection.their_state is h11.DONE and not self._ended)
        if message.goes_on:
            self._answered += 1
            self._connection.start_next_cycle()
            self._ask()

    def _finish(self, message: Message, *, goes_on: bool) -> None:
        message.complete, message.goes_on, self.reading.over = True, goes_on, not goes_on


def _message_of_h11(head: H11Head) -> Message:
    version = head.http_version.decode()
    if isinstance(head, h11.Request):
        return Message((head.method.decode(), head.target.decode(), version), list(head.headers))
    return Message((head.status_code, head.reason, version), list(head.headers))
