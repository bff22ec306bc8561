"""SOCKS5 as far as a proxy needs it that asks for a password and makes TCP connections.

Knows RFC 1928 (greeting, request, replies) and RFC 1929 (user name and password). Must not know whose password it
is, or what is allowed. A client's messages follow each other and have a length each, at most a few hundred bytes:
every parser takes one off the front, and what is behind it belongs to the next message, or to the tunnel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from nono_ebpf.authority import Authority, canonical_host
from nono_ebpf.errors import ClientProtocolError, InvalidAuthority
from nono_ebpf.wire import NEED_MORE, NeedMore

VERSION: Final = 5
USERNAME_PASSWORD: Final = 2  # RFC 1928 §3, METHOD

# RFC 1928 §3: the server's choice of a method; 0xFF is none.
USE_PASSWORD: Final = bytes((VERSION, USERNAME_PASSWORD))
NO_METHOD: Final = bytes((VERSION, 0xFF))
# RFC 1929 §2: "A STATUS field of X'00' indicates success."
WELCOME: Final = bytes((1, 0))
WRONG_PASSWORD: Final = bytes((1, 1))

_PASSWORD_VERSION: Final = 1
_CONNECT: Final = 1
_IPV4, _DOMAIN, _IPV6 = 1, 3, 4  # ATYP, RFC 1928 §5


class Reply(IntEnum):
    """REP, RFC 1928 §6."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    TIMED_OUT = 6  # "TTL expired", for which there is no other use
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


@dataclass(frozen=True, slots=True)
class Login:
    """What a client says it is. The password is in no text form of it."""

    username: bytes
    password: bytes = field(repr=False)


def parse_greeting(data: bytes | bytearray) -> tuple[frozenset[int], int] | NeedMore:
    """The methods that the client at the front of `data` offers, and the size of the message.

    Raises ClientProtocolError: another version.
    """
    _check(data, 0, VERSION, "version")
    if len(data) < 2 or len(data) < (size := 2 + data[1]):
        return NEED_MORE
    return frozenset(data[2:size]), size


def parse_login(data: bytes | bytearray) -> tuple[Login, int] | NeedMore:
    """User name and password (RFC 1929 §2), and the size of the message. Raises ClientProtocolError."""
    _check(data, 0, _PASSWORD_VERSION, "version of the password message")
    if len(data) < 2 or len(data) < 3 + data[1]:
        return NEED_MORE
    split = 2 + data[1]
    if len(data) < (size := split + 1 + data[split]):
        return NEED_MORE
    return Login(bytes(data[2:split]), bytes(data[split + 1 : size])), size


def parse_request(data: bytes | bytearray) -> tuple[Authority | Reply, int] | NeedMore:
    """Where the client wants a connection to, and the size of the message.

    Of what we do not serve, the reply, and the size of what tells. Raises ClientProtocolError: malformed, or not the
    name of a host.
    """
    _check(data, 0, VERSION, "version")
    if len(data) > 1 and data[1] != _CONNECT:
        return Reply.COMMAND_NOT_SUPPORTED, 2
    _check(data, 2, 0, "reserved octet")
    if len(data) < 4:
        return NEED_MORE
    if data[3] not in {_IPV4, _DOMAIN, _IPV6}:
        return Reply.ADDRESS_TYPE_NOT_SUPPORTED, 4
    if len(data) < 5:
        return NEED_MORE
    start = 5 if data[3] == _DOMAIN else 4
    end = start + {_IPV4: 4, _DOMAIN: data[4], _IPV6: 16}[data[3]]
    if len(data) < end + 2:
        return NEED_MORE
    port = int.from_bytes(data[end : end + 2], "big")
    if not port:
        raise ClientProtocolError("SOCKS5 request for port 0")
    return Authority(_host(data[3], bytes(data[start:end])), port), end + 2


def reply_bytes(reply: Reply) -> bytes:
    """The answer to a request (RFC 1928 §6). The address we are bound to means nothing to a client: 0.0.0.0:0."""
    return bytes((VERSION, reply, 0, _IPV4)) + bytes(6)


def _check(data: bytes | bytearray, position: int, expected: int, what: str) -> None:
    if len(data) > position and data[position] != expected:
        raise ClientProtocolError(f"SOCKS5 {what} is {data[position]}, not {expected}")


def _host(kind: int, raw: bytes) -> str:
    if kind == _DOMAIN:
        return _name(raw)
    # An IPv4-mapped address becomes IPv4.
    return canonical_host(str(IPv4Address(raw) if kind == _IPV4 else IPv6Address(raw)))


def _name(raw: bytes) -> str:
    text = raw.decode("latin-1")
    try:
        # Brackets belong into a URI, and for what is not ASCII no encoding was ever agreed on.
        name = canonical_host(text) if text.isascii() and "[" not in text else None
    except InvalidAuthority as error:
        raise ClientProtocolError(f"SOCKS5 request for a bad host {text!a}: {error.problem}") from error
    if name is None:
        raise ClientProtocolError(f"SOCKS5 request for a bad host {text!a}")
    return name
