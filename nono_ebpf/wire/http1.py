"""HTTP/1.1 messages, read strictly and written from what was read.

Knows RFC 9112 (syntax and framing) and the parts of RFC 9110 it needs: fields, Host, hop-by-hop fields,
Upgrade. Must not know policy or sockets.

A relay that repairs a message lets two readers disagree about where it ends, which is request smuggling. So
whatever has more than one reading is refused, and nothing received is passed on as received: heads are
written anew from the parsed form, chunked bodies are decoded and encoded again, trailers and chunk extensions
are dropped.

Requests raise ClientProtocolError, responses UpstreamError: the two sides are parsed by the same rules and
blamed apart.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from nono_ebpf.authority import Authority, parse_authority
from nono_ebpf.errors import ClientProtocolError, InvalidAuthority, NonoError, UpstreamError
from nono_ebpf.wire import NEED_MORE, NeedMore
from nono_ebpf.wire.sniff import MAX_FIRST_LINE_BYTES

# Ours: the largest default among common servers (Apache Tomcat and httpd stay at 8 to 64 KiB).
MAX_HEAD_BYTES: Final = 65536
# httpd and Tomcat take 100, Node.js 2,000; each costs us some microseconds in which no other flow gets its turn.
MAX_FIELDS: Final = 512
MAX_CHUNK_LINE_BYTES: Final = 1024
# Handled in one go, some 5 ms. Chunks of one byte would otherwise make a quarter of a second of a read.
MAX_CHUNK_STEPS: Final = 1024
MAX_TRAILER_BYTES: Final = 16384

Fields = tuple[tuple[bytes, bytes], ...]
Fault = Callable[[str, int], NonoError]

# RFC 9110 §5.6.2 token, §5.5 field-value
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"timeout=[0-9]{1,9}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
NONO_TOKEN: Final = b"x-nono-token"
# RFC 9110 §7.6.1. "Proxy-Authorization" is for us, if for anybody, and so is our own; HTTP2-Settings belongs to the
# Upgrade we drop.
_HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
     b"proxy-authorization", b"proxy-authenticate", b"http2-settings", NONO_TOKEN)
)  # fmt: skip
# Written by us from the parsed form, so a Connection field that names them changes nothing.
_OWNED: Final = frozenset((b"host", b"content-length"))
# What says where a message ends, and whose it is, may be said in one way alone.
_FRAMING: Final = _OWNED | {b"connection", b"transfer-encoding"}
_ONE_SPELLING: Final = bytes(
    each if chr(each).isalnum() and each < 128 else ord("-") for each in bytes(range(256)).lower()
)
# Another path to IIS, Symfony and Zend, to gunicorn and CGI; another method to Rails, Django REST framework and
# Google's APIs; a second path to WebDAV (RFC 4918 §10.3), to OpenStack's and the clouds' object stores.
_OVERRIDES: Final = frozenset(
    (b"x-original-url", b"x-rewrite-url", b"script-name", b"path-info",
     b"x-http-method-override", b"x-http-method", b"x-method-override",
     b"destination", b"x-copy-from", b"x-object-manifest", b"x-symlink-target")
)  # fmt: skip
_SECOND_PATHS: Final = (b"-copy-source", b"-move-source", b"-rename-source")
# RFC 9110 §9.3.1, §9.3.2; for OPTIONS a specification may define one (§9.3.7), and none does.
_WITHOUT_CONTENT: Final = frozenset(("GET", "HEAD", "OPTIONS"))
# RFC 6455 §1.3
_WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
SWITCHING_PROTOCOLS: Final = 101
LAST_CHUNK: Final = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request line and its fields, in order; names as sent, values without surrounding blanks."""

    method: str
    target: str
    version: str  # "1.0" or "1.1"
    fields: Fields


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A status line and its fields."""

    status: int
    reason: bytes
    version: str
    fields: Fields


class Body(Protocol):
    """Finds the end of one message body in a buffer that also holds what follows it."""

    @property
    def done(self) -> bool:
        """The body is complete; what is left in the buffer belongs to the next message."""

    def take(self, buffer: bytearray) -> bytes:
        """Remove this body's bytes from the front of `buffer` and return the content among them.

        While that makes `buffer` shorter there may be more to take.
        """

    def end_of_stream(self) -> None:
        """The sender has closed. Raises the sender's error when the body is incomplete."""


# ---------------------------------------------------------------- heads


def parse_request_head(data: bytes | bytearray) -> tuple[RequestHead, int] | NeedMore:
    """The head at the front of `data` and its size in bytes.

    Raises:
        ClientProtocolError: malformed or ambiguous (400), too large (414, 431), a method that is never relayed
        (405).
    """
    # RFC 9112 §2.2: a server "SHOULD ignore at least one empty line (CRLF) received prior to the
    # request-line".
    skip = 2 if data[:2] == b"\r\n" else 0
    longest = skip + MAX_FIRST_LINE_BYTES + 2
    if len(data) >= longest and data.find(b"\r\n", skip, longest) < 0:
        raise ClientProtocolError(f"request line longer than {MAX_FIRST_LINE_BYTES} bytes", status=414)
    block = _head_block(data, skip, _client_fault)
    if block is NEED_MORE:
        return NEED_MORE
    line, fields = _split_head(block, _client_fault)
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise ClientProtocolError("bad HTTP/1 request line")
    method, target, minor = (part.decode("ascii") for part in match.groups())
    head = RequestHead(method, target, f"1.{minor}", fields)
    _check_request(head)
    return head, skip + len(block) + 4


def _check_request(head: RequestHead) -> None:
    for name, _ in head.fields:
        if (folded := one_spelling(name)) in _FRAMING and folded != name.lower():
            raise ClientProtocolError(f"{name.decode('ascii')} is {folded.decode()} to some servers")
    # RFC 9110 §9.3.8: TRACE echoes the request, with every field that was added on the way; TRACK is its old
    # twin.
    if head.method.upper() in {"TRACE", "TRACK"}:
        raise ClientProtocolError(f"{head.method} is not relayed", status=405)
    hosts = field_values(head.fields, b"host")
    if len(hosts) > 1:
        raise ClientProtocolError("more than one Host field")
    # RFC 9112 §3.2: "A server MUST respond with a 400 to any HTTP/1.1 request message that lacks a Host
    # header field"
    if not hosts and head.version == "1.1":
        raise ClientProtocolError("HTTP/1.1 request without Host")


def parse_response_head(data: bytes | bytearray, upstream: str) -> tuple[ResponseHead, int] | NeedMore:
    """The head at the front of `data` and its size in bytes. Raises UpstreamError, naming `upstream`."""
    fault = upstream_fault(upstream)
    block = _head_block(data, 0, fault)
    if block is NEED_MORE:
        return NEED_MORE
    line, fields = _split_head(block, fault)
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise fault("bad HTTP/1 status line", 502)
    minor, status, reason = match.groups()
    return ResponseHead(int(status), reason or b"", f"1.{minor.decode()}", fields), len(block) + 4


def _head_block(data: bytes | bytearray, start: int, fault: Fault) -> bytes | NeedMore:
    """The lines of a head without the CRLFCRLF that ends it."""
    end = data.find(b"\r\n\r\n", start, start + MAX_HEAD_BYTES)
    if end >= 0:
        return bytes(data[start:end])
    if len(data) - start >= MAX_HEAD_BYTES:
        raise fault(f"HTTP head larger than {MAX_HEAD_BYTES} bytes", 431)
    # Otherwise a client that ends its lines with LF alone would wait for its deadline instead of its answer.
    if data.count(b"\n", start) != data.count(b"\r\n", start):
        raise fault("bare LF in HTTP head", 400)
    return NEED_MORE


def _split_head(block: bytes, fault: Fault) -> tuple[bytes, Fields]:
    line, *rest = block.split(b"\r\n")
    if len(rest) > MAX_FIELDS:
        raise fault(f"more than {MAX_FIELDS} HTTP fields", 431)
    return line, tuple(_parse_field(each, fault) for each in rest)


def _parse_field(line: bytes, fault: Fault) -> tuple[bytes, bytes]:
    """One field line.

    A blank before the colon and a folded line are not tokens, a bare CR, LF or NUL is no value.
    """
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    if not colon or not _TOKEN.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
        # Nothing of it is repeated: it may be a secret, one that a server sends back included.
        raise fault("bad HTTP field line", 400)
    return name, value


def _client_fault(problem: str, status: int) -> NonoError:
    return ClientProtocolError(problem, status=status)


def upstream_fault(upstream: str) -> Fault:
    """Blames `upstream`, whatever status the same mistake would earn a client."""
    return lambda problem, _status: UpstreamError("read", upstream, problem)


# ---------------------------------------------------------------- fields


def field_values(fields: Fields, name: bytes) -> list[bytes]:
    """Every value of the field `name` (lower case)."""
    size = len(name)
    return [value for key, value in fields if len(key) == size and key.lower() == name]


def list_tokens(fields: Fields, name: bytes) -> set[bytes]:
    """The members of a comma-separated field (RFC 9110 §5.6.1), lower case."""
    values = field_values(fields, name)
    if not values:
        return set()
    return {member.strip(b" \t") for member in b",".join(values).lower().split(b",")} - {b""}


def wants_close(head: RequestHead | ResponseHead) -> bool:
    """The sender will not use the connection again (RFC 9112 §9.3). HTTP/1.0 keep-alive is not offered."""
    return head.version == "1.0" or b"close" in list_tokens(head.fields, b"connection")


def kept_alive_s(head: ResponseHead) -> float:
    """How long the sender keeps an idle connection open, seconds, as it says in Keep-Alive (RFC 2068 §19.7.1.1)."""
    said = [int(each[8:]) for each in list_tokens(head.fields, b"keep-alive") if _KEEP_ALIVE_TIMEOUT.fullmatch(each)]
    return min(said, default=math.inf)


def end_to_end(fields: Fields) -> Iterable[tuple[bytes, bytes]]:
    """The fields to pass on: neither hop-by-hop, nor nominated by Connection, nor written by ourselves."""
    dropped = _HOP_BY_HOP | _OWNED | list_tokens(fields, b"connection")
    return ((name, value) for name, value in fields if name.lower() not in dropped)


# ---------------------------------------------------------------- request targets


def host_field_authority(head: RequestHead, default_port: int) -> Authority | None:
    """What the Host field names; None without one. Raises ClientProtocolError."""
    hosts = field_values(head.fields, b"host")
    return _authority(hosts[0].decode("latin-1"), default_port) if hosts else None


def connect_authority(head: RequestHead) -> Authority:
    """The target of CONNECT, in authority-form. Raises ClientProtocolError.

    RFC 9112 §3.2.3 requires the port; some clients leave out that of https.
    """
    request_body(head)
    return _authority(head.target, 443)


def split_absolute_form(target: str) -> tuple[str, str, str] | None:
    """Scheme, authority and origin-form of an absolute-form target (RFC 9112 §3.2.2), else None."""
    scheme, separator, rest = target.partition("://")
    if not separator or not scheme.isalpha():
        return None
    cut = min((i for i in (rest.find("/"), rest.find("?"), rest.find("#")) if i >= 0), default=len(rest))
    authority, path = rest[:cut], rest[cut:]
    return scheme.lower(), authority, path if path.startswith("/") else "/" + path


def absolute_authority(text: str, default_port: int = 80) -> Authority:
    """The authority of a URI. Raises ClientProtocolError."""
    return _authority(text, default_port)


def check_origin_form(head: RequestHead, target: str) -> None:
    """Refuse a target with a fragment, or neither a path nor the `*` of OPTIONS (RFC 9112 §3.2.1, §3.2.4)."""
    if "#" in target or not (target.startswith("/") or (target == "*" and head.method == "OPTIONS")):
        raise ClientProtocolError("request target is not a path")


def one_spelling(name: bytes) -> bytes:
    """Of all field names that servers may take for the same: in CGI (RFC 3875 §4.1.18) `-` and `_` are one, and some
    make a `_` of every other character, too.
    """
    return name.translate(_ONE_SPELLING)


def check_means_one_request(head: RequestHead) -> None:
    """Refuse what some servers take for other methods or paths than those of the request line, or for two requests."""
    for name, _ in head.fields:
        if (folded := one_spelling(name)) in _OVERRIDES or folded.endswith(_SECOND_PATHS):
            raise ClientProtocolError(f"{name.decode('ascii')} could make another request of one that is judged")
    if head.method.upper() in _WITHOUT_CONTENT and not request_body(head).done:
        raise ClientProtocolError(f"{head.method} with a body could hide another request in it; leave the body out")


def _authority(text: str, default_port: int) -> Authority:
    try:
        return parse_authority(text, default_port)
    except InvalidAuthority as error:
        # Userinfo is refused, and is not repeated in logs and answers: it holds passwords.
        shown = text.rpartition("@")[2][:300]
        raise ClientProtocolError(f"bad authority {shown!a}: {error.problem}") from error


def host_field(authority: Authority, *, tls: bool = False) -> bytes:
    """The Host field's value for an http:// or https:// authority: its default port is left out (RFC 9110 §4.2.3)."""
    default = 443 if tls else 80
    text = str(authority)
    return (text.removesuffix(f":{default}") if authority.port == default else text).encode("ascii")


# ---------------------------------------------------------------- bodies


def request_body(head: RequestHead) -> Body:
    """How the body of a request is delimited (RFC 9112 §6.3).

    Raises ClientProtocolError for more than one way.
    """
    framing = _framing(head, _client_fault)
    # RFC 9110 §9.3.6: CONNECT has no content. Bytes that one reader takes for a body, another takes for the tunnel.
    if head.method == "CONNECT" and framing is not None and not framing.done:
        raise ClientProtocolError("CONNECT with a body")
    return framing if framing is not None else LengthBody(0, _client_fault)


def response_body(head: ResponseHead, method: str, upstream: str) -> Body:
    """How the body of the response to a `method` request is delimited (RFC 9112 §6.3).

    Raises UpstreamError.
    """
    fault = upstream_fault(upstream)
    framing = _framing(head, fault)
    if method == "HEAD" or head.status < 200 or head.status in {204, 304}:
        return LengthBody(0, fault)
    return framing if framing is not None else CloseBody()


def _framing(head: RequestHead | ResponseHead, fault: Fault) -> Body | None:
    codings, lengths = (field_values(head.fields, name) for name in (b"transfer-encoding", b"content-length"))
    if codings:
        if lengths:
            raise fault("both Transfer-Encoding and Content-Length", 400)
        if head.version == "1.0":
            raise fault("Transfer-Encoding in HTTP/1.0", 400)
        # The last coding must be chunked, and we undo no other.
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise fault("a Transfer-Encoding other than chunked", 501)
        return ChunkedBody(fault)
    if lengths:
        return LengthBody(_content_length(lengths, fault), fault)
    return None


def _content_length(lengths: list[bytes], fault: Fault) -> int:
    # RFC 9110 §8.6 lets a recipient merge equal duplicates; we refuse, as whoever sends two cannot be trusted
    # with one.
    if len(lengths) > 1 or not _CONTENT_LENGTH.fullmatch(lengths[0]):
        raise fault("bad or repeated Content-Length", 400)
    return int(lengths[0])


class LengthBody:
    """A body of a known number of bytes, possibly none."""

    __slots__ = ("_fault", "remaining")

    def __init__(self, size: int, fault: Fault) -> None:
        self.remaining, self._fault = size, fault

    @property
    def done(self) -> bool:
        """Nothing is missing."""
        return not self.remaining

    def take(self, buffer: bytearray) -> bytes:
        """Up to `remaining` bytes."""
        piece = _cut(buffer, min(self.remaining, len(buffer)))
        self.remaining -= len(piece)
        return piece

    def end_of_stream(self) -> None:
        """Complete only when nothing is missing."""
        if self.remaining:
            raise self._fault(f"body ends {self.remaining} bytes early", 400)


class CloseBody:
    """A response body that lasts until the server closes."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def take(self, buffer: bytearray) -> bytes:
        """Everything."""
        return _cut(buffer, len(buffer))

    def end_of_stream(self) -> None:
        """This is how it ends."""
        self.done = True


class _Chunk(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    DONE = auto()


class ChunkedBody:
    """The chunked transfer coding (RFC 9112 §7.1).

    Content out, extensions and trailers checked and dropped.
    """

    __slots__ = ("_fault", "_remaining", "_state", "_trailer_bytes")

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._state = _Chunk.SIZE
        self._remaining = 0  # bytes of the current chunk that have not come yet
        self._trailer_bytes = 0

    @property
    def done(self) -> bool:
        """The empty line behind the last chunk has been read."""
        return self._state is _Chunk.DONE

    def take(self, buffer: bytearray) -> bytes:
        """The content of the chunks, or part of one, at the front."""
        pieces: list[bytes] = []
        for _ in range(MAX_CHUNK_STEPS):
            if self.done or not self._step(buffer, pieces):
                break
        return b"".join(pieces)

    def end_of_stream(self) -> None:
        """Complete only behind the trailer section."""
        if not self.done:
            raise self._fault("chunked body ends early", 400)

    def _step(self, buffer: bytearray, pieces: list[bytes]) -> bool:
        """One transition; False when the buffer does not hold enough for it."""
        if self._state is _Chunk.DATA:
            return self._take_data(buffer, pieces)
        limit = 0 if self._state is _Chunk.DATA_END else MAX_CHUNK_LINE_BYTES
        if self._state is _Chunk.TRAILER:
            limit = MAX_TRAILER_BYTES - self._trailer_bytes
        line = self._take_line(buffer, limit)
        if line is None:
            return False
        if self._state is _Chunk.SIZE:
            self._remaining = self._chunk_size(line)
            self._state = _Chunk.DATA if self._remaining else _Chunk.TRAILER
        elif self._state is _Chunk.DATA_END:
            self._state = _Chunk.SIZE
        elif line:
            _parse_field(line, self._fault)
            self._trailer_bytes += len(line) + 2
        else:
            self._state = _Chunk.DONE
        return True

    def _take_data(self, buffer: bytearray, pieces: list[bytes]) -> bool:
        piece = _cut(buffer, min(self._remaining, len(buffer)))
        pieces.append(piece)
        self._remaining -= len(piece)
        if not self._remaining:
            self._state = _Chunk.DATA_END
        return not self._remaining

    def _take_line(self, buffer: bytearray, limit: int) -> bytes | None:
        """The line at the front, at most `limit` bytes without its CRLF; None when it is not complete yet."""
        end = buffer.find(b"\r\n", 0, limit + 2)
        if end < 0:
            self._check_partial_line(buffer, limit)
            return None
        line = _cut(buffer, end)
        del buffer[:2]
        return line

    def _check_partial_line(self, buffer: bytearray, limit: int) -> None:
        partial = buffer[: limit + 2].removesuffix(b"\r")
        if len(buffer) >= limit + 2 or len(partial) > limit or b"\n" in partial or b"\r" in partial:
            raise self._fault("bad or oversized line in chunked body", 400)

    def _chunk_size(self, line: bytes) -> int:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise self._fault("bad chunk size", 400)
        return int(match.group(1), 16)


def encode_chunk(content: bytes) -> bytes:
    """One chunk; nothing for no content, since an empty chunk would be the last."""
    return b"%x\r\n%b\r\n" % (len(content), content) if content else b""


def _cut(buffer: bytearray, size: int) -> bytes:
    piece = bytes(memoryview(buffer)[:size])
    del buffer[:size]
    return piece


# ---------------------------------------------------------------- writing


def request_bytes(
    head: RequestHead,
    target: str,
    authority: Authority,
    *,
    websocket: bool,
    tls: bool = False,
    last: bool = False,
    fields: Iterable[tuple[bytes, bytes]] | None = None,
) -> bytes:
    """The head to send upstream: origin-form target, our Host, our framing.

    `websocket` keeps that Upgrade; `last` asks the server to close behind its response. `fields`: the end-to-end fields
    to send, if not those of `head`.

    No Via (RFC 9110 §7.6.3) is added: the client did not choose an intermediary, and servers change their
    answers for one.
    """
    line = f"{head.method} {target} HTTP/1.1".encode("ascii")
    sent = [(b"Host", host_field(authority, tls=tls)), *(end_to_end(head.fields) if fields is None else fields)]
    if websocket:
        sent += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    elif last:
        sent.append((b"Connection", b"close"))
    return _write(line, [*sent, *_framing_fields(head)])


def response_bytes(head: ResponseHead, *, close: bool, chunked: bool) -> bytes:
    """The head to send to the client.

    `chunked`: the body follows in chunks; `close`: the connection ends with it.
    """
    line = b"HTTP/1.1 %d %b" % (head.status, head.reason)
    fields = list(end_to_end(head.fields))
    if head.status == SWITCHING_PROTOCOLS:
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    elif chunked:
        fields.append((b"Transfer-Encoding", b"chunked"))
    # RFC 9110 §8.6: no Content-Length in 1xx and 204.
    elif head.status >= 200 and head.status != 204:
        fields += [(b"Content-Length", each) for each in field_values(head.fields, b"content-length")]
    if close:
        fields.append((b"Connection", b"close"))
    return _write(line, fields)


def _framing_fields(head: RequestHead) -> list[tuple[bytes, bytes]]:
    if field_values(head.fields, b"transfer-encoding"):
        return [(b"Transfer-Encoding", b"chunked")]
    return [(b"Content-Length", each) for each in field_values(head.fields, b"content-length")]


def _write(line: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"\r\n".join((line, *(b"%b: %b" % field for field in fields), b"", b""))


# ---------------------------------------------------------------- WebSocket


def asks_for_websocket(head: RequestHead) -> bool:
    """A well-formed opening handshake (RFC 6455 §4.1).

    Any other Upgrade is dropped, which is always allowed.
    """
    return (
        head.method == "GET"
        and head.version == "1.1"
        and b"upgrade" in list_tokens(head.fields, b"connection")
        and [value.lower() for value in field_values(head.fields, b"upgrade")] == [b"websocket"]
        and len(field_values(head.fields, b"sec-websocket-key")) == 1
        and request_body(head).done
    )


def accepts_websocket(head: ResponseHead, request: RequestHead) -> bool:
    """The 101 answers this very handshake (RFC 6455 §4.2.2); anything else is somebody's idea of a tunnel."""
    (key,) = field_values(request.fields, b"sec-websocket-key")
    digest = hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest()
    return (
        b"upgrade" in list_tokens(head.fields, b"connection")
        and [value.lower() for value in field_values(head.fields, b"upgrade")] == [b"websocket"]
        and field_values(head.fields, b"sec-websocket-accept") == [base64.b64encode(digest)]
    )
