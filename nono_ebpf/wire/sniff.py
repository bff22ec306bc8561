"""Which language does a client speak? Told from its first bytes alone.

Knows the openings of TLS and HTTP/1; everything else is opaque and travels unread. Must not know ports or
policy: TLS on port 22 is TLS.

HTTP/1 is claimed only for a whole line `method target HTTP/1.x` (RFC 9112 §3), so the text protocols that
share its first word (Redis `GET key`, memcached `get key`, STOMP `CONNECT`) stay opaque, and so does the
HTTP/2 preface. Methods are taken without lower-case letters, as every registered one is (RFC 9110 §16.1.1):
without that, any client that opens with a word and then waits would look like the beginning of a request for
ever.
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

# A request line cut off anywhere before its LF. Spacing is taken loosely on purpose: a line that a lenient
# server would read as a request must reach the strict parser and be refused there, not pass as opaque.
_LINE_PREFIX = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Z]+(?:[ \t][\t\x20-\x7e\x80-\xff]*)?\r?")
_VERSION = re.compile(rb"HTTP/1\.[0-9]")


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
    end = buffer.find(b"\n", 0, MAX_FIRST_LINE_BYTES)
    line_end = min(len(buffer), MAX_FIRST_LINE_BYTES) if end < 0 else end
    if not _LINE_PREFIX.fullmatch(buffer, 0, line_end):
        return Opaque()
    if end >= 0:
        words = buffer[:end].split()
        return Http() if len(words) > 1 and _VERSION.fullmatch(words[-1]) else Opaque()
    if len(buffer) < MAX_FIRST_LINE_BYTES:
        return NEED_MORE
    raise ClientProtocolError(f"request line longer than {MAX_FIRST_LINE_BYTES} bytes", status=414)
