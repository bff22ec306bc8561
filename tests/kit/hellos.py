"""ClientHellos by hand (RFC 8446 §4.1.2), well-formed unless the caller's parts are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SERVER_NAME, ALPN, SUPPORTED_GROUPS, ENCRYPTED_CLIENT_HELLO = 0, 16, 10, 0xFE0D


def vector(width: int, content: bytes) -> bytes:
    """`content` behind its length in `width` bytes."""
    return len(content).to_bytes(width, "big") + content


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, body)


def server_name(*names: bytes, kind: int = 0) -> bytes:
    """A server_name extension (RFC 6066 §3)."""
    return extension(SERVER_NAME, vector(2, b"".join(bytes((kind,)) + vector(2, name) for name in names)))


def alpn(*offers: bytes) -> bytes:
    """An application_layer_protocol_negotiation extension (RFC 7301 §3.1)."""
    return extension(ALPN, vector(2, b"".join(vector(1, offer) for offer in offers)))


def message(extensions: Iterable[bytes] | None) -> bytes:
    """A ClientHello with its handshake header; None: without an extensions block, as TLS 1.2 allows."""
    body = b"\x03\x03" + bytes(32) + vector(1, bytes(32)) + vector(2, b"\x13\x01\x13\x02") + vector(1, b"\0")
    if extensions is not None:
        body += vector(2, b"".join(extensions))
    return b"\x01" + vector(3, body)


def records(handshake: bytes, sizes: Sequence[int] = ()) -> bytes:
    """`handshake` in records of the given fragment sizes, what is left over in one more."""
    out, position = b"", 0
    for size in (*sizes, len(handshake)):
        if fragment := handshake[position : position + size]:
            out += b"\x16\x03\x01" + vector(2, fragment)
        position += size
    return out


def client_hello(sni: str | None, *more: bytes) -> bytes:
    """One record with a hello for `sni`."""
    names = () if sni is None else (server_name(sni.encode()),)
    return records(message((*names, *more)))
