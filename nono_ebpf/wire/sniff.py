"""Which language does a client speak? Told from its first bytes alone.

Knows the openings of TLS and HTTP/1; everything else is opaque and travels unread. Must not know ports or
policy: TLS on port 22 is TLS.

HTTP is claimed for a first line with `HTTP/` and a digit behind a blank, or with a method and a path, however else it
is spelled: what some lenient
server would take for a request (a blank line before it, odd spacing, lower case) must reach the strict parser and be
refused there, not pass as opaque. Text protocols that share a first word (Redis `GET key`, memcached `get key`, STOMP
`CONNECT`) have no such line and stay opaque, and so does the HTTP/2 preface.
A line that is not whole yet is waited for if it begins with a word without lower-case letters, as every registered
method is (RFC 9110 §16.1.1): otherwise any client that opens with a word and then waits would be kept waiting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.wire import NEED_MORE, NeedMore
from nono_ebpf.wire.tls_hello import NOT_TLS, ClientHello, parse_client_hello

# Ours: twice what common servers accept for a request line (8 KiB).
MAX_FIRST_LINE_BYTES: Final = 16384

_BLANKS: Final = b" \t\r\n\x0b\x0c"
# A request line cut off anywhere before its LF.
_LINE_PREFIX = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Z]+(?:[ \t\x0b\x0c\r][^\n]*)?")
_REQUEST_LINE = re.compile(rb"[\x21-\x7e][^\n]*[ \t\x0b\x0c\r]HTTP/[0-9]", re.IGNORECASE)
# Without a version, or with another protocol's: some servers answer these as well.
_METHODS = rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|TRACE|CONNECT)"
_BARE_REQUEST = re.compile(_METHODS + rb"[ \t\x0b\x0c\r]+(?:/|http)", re.IGNORECASE)
_METHOD_WORDS: Final = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT")
_HTTP2_PREFACE_LINE: Final = b"PRI * HTTP/2.0\r"  # RFC 9113 §3.4


@dataclass(frozen=True, slots=True)
class Tls:
    """A whole, well-formed ClientHello is at the front."""

    hello: ClientHello


@dataclass(frozen=True, slots=True)
class Http:
    """An HTTP/1 request line is at the front; the head behind it may be incomplete or wrong."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Neither, whatever follows."""


Sniffed = Tls | Http | Opaque


def classify(buffer: bytes | bytearray) -> Sniffed | NeedMore:
    """Tell the language of a client by everything it has sent so far.

    Raises:
        ClientProtocolError: it began as TLS and is malformed, or as HTTP with a request line that is too long
        (414).
    """
    if not buffer:
        return NEED_MORE
    hello = parse_client_hello(buffer)
    if hello is NEED_MORE:
        return NEED_MORE
    if hello is not NOT_TLS:
        return Tls(hello)
    return _classify_text(buffer)


def _classify_text(buffer: bytes | bytearray) -> Http | Opaque | NeedMore:
    start = len(buffer) - len(buffer.lstrip(_BLANKS))
    end = buffer.find(b"\n", start)
    if start < len(buffer) and 0 <= end - start < MAX_FIRST_LINE_BYTES:
        line = bytes(buffer[start:end])
        claimed = _REQUEST_LINE.match(line) or _BARE_REQUEST.match(line)
        return Http() if claimed and line != _HTTP2_PREFACE_LINE else Opaque()
    if start < len(buffer) and not _may_be_request(bytes(buffer[start : start + MAX_FIRST_LINE_BYTES])):
        return Opaque()
    if len(buffer) < MAX_FIRST_LINE_BYTES:
        return NEED_MORE
    raise ClientProtocolError(f"request line longer than {MAX_FIRST_LINE_BYTES} bytes", status=414)


def _may_be_request(line: bytes) -> bool:
    """Whether a line that is not whole yet could become one that is claimed for HTTP."""
    if _LINE_PREFIX.fullmatch(line):
        return True
    word = re.split(rb"[ \t\r\x0b\x0c]", line[:16], maxsplit=1)
    said = word[0].upper()
    return said in _METHOD_WORDS if len(word) > 1 else any(each.startswith(said) for each in _METHOD_WORDS)
