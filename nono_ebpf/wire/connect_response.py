"""An HTTP proxy's response to CONNECT, whose head ends where the tunnel begins (RFC 9110 §9.3.6, RFC 9112 §4).

Knows where that is, and the status. Must not know whom the tunnel is to or what the status means for it.

Beyond the status line nothing is asked of the fields: of a successful response a client ignores Content-Length and
Transfer-Encoding, and of any other the connection is given up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from nono_ebpf.errors import UpstreamError
from nono_ebpf.wire import NEED_MORE, NeedMore

# Ours; common proxies send some hundred bytes, and their error pages are content.
MAX_HEAD_BYTES: Final = 8192
# A reason phrase is shown to people; the longest registered one has 31 characters.
_SHOWN_REASON: Final = 60

_START: Final = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_NOT_SHOWN = re.compile(rb"[^\x20-\x7e]")
# RFC 9110 §11.7.1: a list of challenges, each beginning with its scheme.
_BASIC = re.compile(rb"\r\nproxy-authenticate:(?:[^\r\n]*,)?[ \t]*basic(?=[ \t,\r])", re.IGNORECASE)
_CHALLENGE = re.compile(rb"\r\nproxy-authenticate:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ConnectResponse:
    """A response's head. `reason` is fit to be shown: printable ASCII, and not long.

    `wants_other_than_basic`: it asks for credentials, and Basic (RFC 7617) is not among the ways to give them.
    """

    status: int
    reason: str
    wants_other_than_basic: bool


def parse_connect_response(data: bytes | bytearray, proxy: str) -> tuple[ConnectResponse, int] | NeedMore:
    """The head at the front of `data` and its size in bytes; what follows is the tunnel's.

    Raises:
        UpstreamError: phase "connect", naming `proxy`; its `problem` is a clause about the proxy.
    """
    # Before its end: whoever speaks another protocol may never send one.
    if not data.startswith(_START[: len(data)]):
        raise UpstreamError("connect", proxy, "does not answer in HTTP/1")
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    # Some would take it for the end of a line, and so find another end of the head.
    if _BARE_LF.search(data, 0, end if end >= 0 else MAX_HEAD_BYTES):
        raise UpstreamError("connect", proxy, "answers with a bare LF in its head")
    if end < 0:
        if len(data) >= MAX_HEAD_BYTES:
            raise UpstreamError("connect", proxy, f"answers with a head larger than {MAX_HEAD_BYTES} bytes")
        return NEED_MORE
    head = bytes(data[: end + 2])
    match = _STATUS_LINE.fullmatch(head[: head.index(b"\r\n")])
    if match is None:
        raise UpstreamError("connect", proxy, "answers with a bad HTTP/1 status line")
    status, reason = match.groups()
    shown = _NOT_SHOWN.sub(b"?", (reason or b"")[:_SHOWN_REASON]).decode("ascii")
    other = _CHALLENGE.search(head) is not None and _BASIC.search(head) is None
    return ConnectResponse(int(status), shown, other), end + 4
