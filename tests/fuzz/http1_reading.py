"""What the two HTTP/1 targets share: both readers of a message, and what they must agree on.

The second reader is h11.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11
from fuzz.prefixes import cuts

from nono_ebpf.errors import ClientProtocolError, UpstreamError
from nono_ebpf.wire import http1

if TYPE_CHECKING:
    from collections.abc import Callable

UPSTREAM = "up.test:80"
# h11's own bound on a head is lower than ours; what it says is wanted for every head that we accept.
H11_HEAD_BYTES = 2 * http1.MAX_HEAD_BYTES
_BAD_LINE = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0|\n[ \t]")
_FRAMING = {b"content-length", b"transfer-encoding"}


@dataclass(frozen=True, slots=True)
class Read:
    """What one reader makes of a message and what is behind it. `fields` has names in lower case."""

    line: tuple[str | int | bytes, ...]
    fields: list[tuple[bytes, bytes]]
    content: bytes
    done: bool
    behind: bytes


def request_head(data: bytes | bytearray) -> object:
    try:
        return http1.parse_request_head(data)
    except ClientProtocolError:
        return ClientProtocolError


def response_head(data: bytes | bytearray) -> object:
    try:
        return http1.parse_response_head(data, UPSTREAM)
    except UpstreamError:
        return UpstreamError


def check_head(raw: bytes, head: http1.RequestHead | http1.ResponseHead) -> None:
    """`raw` has no line that another reader ends elsewhere, and is `head` again when written from it."""
    assert raw.endswith(b"\r\n\r\n")
    assert not _BAD_LINE.search(raw)
    first = raw.partition(b"\r\n")[0]
    again = b"\r\n".join([first, *(b"%b: %b" % field for field in head.fields), b"", b""])
    parsed = request_head(again) if isinstance(head, http1.RequestHead) else response_head(again)
    assert parsed == (head, len(again))


def framing_fields(head: http1.RequestHead | http1.ResponseHead) -> list[bytes]:
    return [name.lower() for name, _ in head.fields if name.lower() in _FRAMING]


def check_one_framing(head: http1.RequestHead | http1.ResponseHead) -> None:
    assert len(framing_fields(head)) <= 1


def check_body(
    make: Callable[[], http1.Body], data: bytes, documented: type[Exception]
) -> tuple[bytes, bool, bytes] | None:
    """What a body takes of `data`, whether it is complete, and what it leaves; None when it is malformed.

    The same for every cut.
    """
    whole = _taken(make(), [data], documented)
    for size in cuts(data):
        assert _taken(make(), [data[:size], data[size:]], documented) == whole
    if whole is not None:
        content, done, behind = whole
        assert data.endswith(behind)
        assert done or not behind or isinstance(make(), http1.ChunkedBody)
        assert len(content) + len(behind) <= len(data)
    return whole


def _taken(body: http1.Body, parts: list[bytes], documented: type[Exception]) -> tuple[bytes, bool, bytes] | None:
    buffer, content = bytearray(), b""
    try:
        for part in parts:
            buffer += part
            before = -1
            while len(buffer) != before:
                before = len(buffer)
                content += body.take(buffer)
    except documented:
        return None
    return content, body.done, bytes(buffer)


def h11_reads(connection: h11.Connection, data: bytes) -> Read | None:
    """The message at the front of `data` as h11 reads it, as far as it is there; None when h11 refuses it."""
    if not data:
        # To h11 no data is the end of the stream.
        return None
    connection.receive_data(data)
    head: h11.Request | h11.InformationalResponse | h11.Response | None = None
    content, done = b"", False
    try:
        while not done and not isinstance(event := connection.next_event(), type(h11.NEED_DATA)):
            if isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                done = True
            elif isinstance(event, h11.Request | h11.InformationalResponse | h11.Response):
                head = event
                done = isinstance(event, h11.InformationalResponse)
    except h11.RemoteProtocolError:
        return None
    if head is None:
        return None
    version = head.http_version.decode()
    if isinstance(head, h11.Request):
        line: tuple[str | int | bytes, ...] = (head.method.decode(), head.target.decode(), version)
    else:
        line = (head.status_code, head.reason, version)
    return Read(line, list(head.headers), content, done, connection.trailing_data[0])


def check_agreement(
    head: http1.RequestHead | http1.ResponseHead, content: tuple[bytes, bool, bytes] | None, second: Read
) -> None:
    ours = [(name.lower(), value) for name, value in head.fields]
    # h11 writes the coding's name in lower case.
    assert [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in ours] == second.fields
    if content is not None:
        taken, done, behind = content
        assert (taken, done) == (second.content, second.done), f"h11 reads {second}"
        assert not done or behind == second.behind
