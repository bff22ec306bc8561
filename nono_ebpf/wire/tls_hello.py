"""The first message of a TLS client, as far as routing needs it.

Knows the record layer (RFC 8446 §5.1), the ClientHello (§4.1.2) and its server_name (RFC 6066 §3) and ALPN
(RFC 7301 §3.1) extensions. Must not know policy, and nothing here decrypts or answers.

A hello may be spread over many records and any number of TCP segments; its meaning is that of the reassembled
message. What has begun as TLS and is not well formed is an error, never "something else": a server that
parses more loosely than we do would otherwise see a name that we did not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

from nono_ebpf.authority import canonical_host
from nono_ebpf.errors import ClientProtocolError, InvalidAuthority
from nono_ebpf.wire import NEED_MORE, NeedMore

# RFC 8446 §5.1 and §4
_RECORD_HEADER_BYTES: Final = 5
_CONTENT_HANDSHAKE: Final = 22
_VERSION_MAJOR: Final = 3
_MAX_FRAGMENT_BYTES: Final = 1 << 14
_HANDSHAKE_HEADER_BYTES: Final = 4
_CLIENT_HELLO: Final = 1
_VERSION_AND_RANDOM_BYTES: Final = 2 + 32
_MAX_SESSION_ID_BYTES: Final = 32
# IANA "TLS ExtensionType Values"
_EXT_SERVER_NAME: Final = 0
_EXT_ALPN: Final = 16
_EXT_ENCRYPTED_CLIENT_HELLO: Final = 0xFE0D
_NAME_TYPE_HOST_NAME: Final = 0

# Ours. A hello with post-quantum shares and a resumption ticket stays under 4 KiB in one or two records; 64
# KiB and 128 records leave room for deliberate fragmentation and bound what one flow can make us read again
# and again.
MAX_HELLO_BYTES: Final = 65536
MAX_HELLO_RECORDS: Final = 128


class Verdict(Enum):
    """The answer for a stream that is not TLS at all."""

    NOT_TLS = "not tls"


NotTls = Literal[Verdict.NOT_TLS]
NOT_TLS: Final = Verdict.NOT_TLS


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a ClientHello says in the clear.

    `sni`: canonical host, None when the client sent no server_name. `alpn`: the offers in order, GREASE
    included. `ech`: an encrypted_client_hello extension is present; browsers send a meaningless one by
    default (GREASE), so it is no evidence of a second, hidden name, and `sni` is then the outer one.
    """

    sni: str | None
    alpn: tuple[bytes, ...]
    ech: bool


def begins_as_tls(data: bytes | bytearray) -> bool:
    """True when the bytes so far can only be the start of a TLS handshake record."""
    return len(data) > 1 and data[0] == _CONTENT_HANDSHAKE and data[1] == _VERSION_MAJOR


def parse_client_hello(data: bytes | bytearray) -> ClientHello | NeedMore | NotTls:
    """Read the hello at the start of `data`, everything that was received on the connection so far.

    Bytes behind the record that completes the hello (early data) are left alone.

    Raises:
        ClientProtocolError: it began as TLS and is malformed, ambiguous or larger than the bounds above.
    """
    if data and data[0] != _CONTENT_HANDSHAKE:
        return NOT_TLS
    if len(data) < 2:
        return NEED_MORE
    if not begins_as_tls(data):
        return NOT_TLS
    message = _reassemble(data)
    return NEED_MORE if message is NEED_MORE else _parse_message(message)


def _reassemble(data: bytes | bytearray) -> bytes | NeedMore:
    """Join the handshake fragments of the leading records, once one whole handshake message is there.

    Until then nothing but headers is looked at: it may take as many calls as there are bytes.
    """
    fragments: list[slice] = []
    start = bytearray()
    position = joined_bytes = 0
    for _ in range(MAX_HELLO_RECORDS):
        header = data[position : position + _RECORD_HEADER_BYTES]
        _check_record_header(header)
        if len(header) < _RECORD_HEADER_BYTES:
            return NEED_MORE
        begin = position + _RECORD_HEADER_BYTES
        position = begin + int.from_bytes(header[3:5], "big")
        start += data[begin : min(position, begin + _HANDSHAKE_HEADER_BYTES - len(start))]
        size = _message_bytes(start)
        if len(data) < position:
            return NEED_MORE
        fragments.append(slice(begin, position))
        joined_bytes += position - begin
        if size is not None and joined_bytes >= size:
            _refuse_if(joined_bytes > size, "another message behind the ClientHello in its record")
            return b"".join([data[each] for each in fragments])
    raise ClientProtocolError(f"TLS ClientHello spread over more than {MAX_HELLO_RECORDS} records")


def _check_record_header(header: bytes | bytearray) -> None:
    """Refuse what cannot become the header of a handshake record.

    An incomplete header is judged as far as it goes.
    """
    _refuse_if(len(header) > 0 and header[0] != _CONTENT_HANDSHAKE, "a record that is not handshake")
    _refuse_if(len(header) > 1 and header[1] != _VERSION_MAJOR, "a record of an unknown protocol version")
    if len(header) == _RECORD_HEADER_BYTES:
        length = int.from_bytes(header[3:5], "big")
        # RFC 8446 §5.1: "Implementations MUST NOT send zero-length fragments of Handshake types"
        _refuse_if(not 0 < length <= _MAX_FRAGMENT_BYTES, f"a record of {length} bytes")


def _message_bytes(message: bytearray) -> int | None:
    """Size of the whole handshake message with its header, None while the header is incomplete."""
    _refuse_if(len(message) > 0 and message[0] != _CLIENT_HELLO, "another handshake message")
    if len(message) < _HANDSHAKE_HEADER_BYTES:
        return None
    size = _HANDSHAKE_HEADER_BYTES + int.from_bytes(message[1:4], "big")
    _refuse_if(size > MAX_HELLO_BYTES, f"{size} bytes, more than {MAX_HELLO_BYTES}")
    return size


def _parse_message(message: bytes) -> ClientHello:
    reader = _Reader(message[_HANDSHAKE_HEADER_BYTES:])
    reader.take(_VERSION_AND_RANDOM_BYTES)
    session_id = reader.vector(1)
    _refuse_if(len(session_id) > _MAX_SESSION_ID_BYTES, "session id too long")
    suites = reader.vector(2)
    _refuse_if(len(suites) < 2 or len(suites) % 2 != 0, "bad cipher suite list")
    _refuse_if(not reader.vector(1), "no compression method")
    # RFC 5246 §7.4.1.2: a TLS 1.2 hello may end here.
    extensions = _parse_extensions(reader.vector(2)) if reader.left else {}
    _refuse_if(bool(reader.left), "bytes behind the extensions")
    return ClientHello(
        sni=_parse_server_name(extensions.get(_EXT_SERVER_NAME)),
        alpn=_parse_alpn(extensions.get(_EXT_ALPN)),
        ech=_EXT_ENCRYPTED_CLIENT_HELLO in extensions,
    )


def _parse_extensions(block: bytes) -> dict[int, bytes]:
    extensions: dict[int, bytes] = {}
    reader = _Reader(block)
    while reader.left:
        kind = reader.number(2)
        # RFC 8446 §4.2: "There MUST NOT be more than one extension of the same type in a given extension
        # block."
        _refuse_if(kind in extensions, f"extension {kind} twice")
        extensions[kind] = reader.vector(2)
    return extensions


def _parse_server_name(body: bytes | None) -> str | None:
    """The one host_name of the extension.

    RFC 6066 §3: no two names of one type; no other type was ever defined.
    """
    if body is None:
        return None
    outer = _Reader(body)
    names = _Reader(outer.vector(2))
    kind, name = names.number(1), names.vector(2)
    _refuse_if(bool(names.left), "more than one server name")
    _refuse_if(bool(outer.left), "bytes behind the server name list")
    _refuse_if(kind != _NAME_TYPE_HOST_NAME, f"server name of unknown type {kind}")
    return _host(name)


def _host(name: bytes) -> str:
    try:
        return canonical_host(name.decode("ascii"))
    except (UnicodeDecodeError, InvalidAuthority) as error:
        raise ClientProtocolError(f"TLS ClientHello: bad server name {name[:300]!r}") from error


def _parse_alpn(body: bytes | None) -> tuple[bytes, ...]:
    if body is None:
        return ()
    outer = _Reader(body)
    offers = _Reader(outer.vector(2))
    _refuse_if(bool(outer.left), "bytes behind the ALPN list")
    names: list[bytes] = []
    while offers.left:
        names.append(offers.vector(1))
    _refuse_if(not names or not all(names), "empty ALPN offer")
    return tuple(names)


class _Reader:
    """Takes numbers and length-prefixed vectors off the front of a block.

    Running out is the client's error.
    """

    __slots__ = ("_block", "_position")

    def __init__(self, block: bytes) -> None:
        self._block, self._position = block, 0

    @property
    def left(self) -> int:
        return len(self._block) - self._position

    def take(self, count: int) -> bytes:
        _refuse_if(count > self.left, "a length points past the end")
        self._position += count
        return self._block[self._position - count : self._position]

    def number(self, width: int) -> int:
        """An unsigned integer of `width` bytes, network byte order."""
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> bytes:
        """A vector whose length stands in front of it in `width` bytes (RFC 8446 §3.4)."""
        return self.take(self.number(width))


def _refuse_if(condition: bool, problem: str) -> None:
    if condition:
        raise ClientProtocolError(f"TLS ClientHello: {problem}")
