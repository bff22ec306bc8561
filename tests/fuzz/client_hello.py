"""A ClientHello, however it is spelled and cut, has one server name: that which OpenSSL sees, or it is refused.

Only ClientProtocolError comes out; prefixes and bytes behind change no verdict; NEED_MORE can always be ended,
below a bound; a parsed name is canonical, and the only one in the hello.
"""

from __future__ import annotations

import ssl
import sys
import warnings
from typing import TYPE_CHECKING

from fuzz.prefixes import check_cuts
from kit import hellos

from nono_ebpf.authority import canonical_host
from nono_ebpf.errors import ClientProtocolError, InvalidAuthority
from nono_ebpf.wire import NEED_MORE
from nono_ebpf.wire.tls_hello import (
    MAX_HELLO_BYTES,
    MAX_HELLO_RECORDS,
    NOT_TLS,
    ClientHello,
    begins_as_tls,
    parse_client_hello,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# Every record full of the message but the last, which may hold one byte of it and 2^14 - 1 behind it.
_MOST_BYTES = MAX_HELLO_BYTES + (1 << 14) + 5 * MAX_HELLO_RECORDS


def check(data: bytes) -> None:
    """Judge `data` as a stream, as the extensions of a sound hello, and as its server name."""
    _check_stream(data)
    if len(data) <= 1 << 14:
        _check_stream(hellos.records(hellos.message((data,))))
        _check_stream(hellos.records(hellos.message((hellos.server_name(data),)), data[:6]))


def seeds() -> Iterator[bytes]:
    """Hellos of this machine's OpenSSL and of the kit, whole and in pieces; extensions alone; names alone."""
    for versions in (
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2),
        (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3),
    ):
        yield openssl_hello("www.example.com", *versions)
    odd = (
        hellos.extension(hellos.SUPPORTED_GROUPS, hellos.vector(2, b"\0\x1d\0\x17")),
        hellos.extension(hellos.ENCRYPTED_CLIENT_HELLO, bytes(40)),
        hellos.extension(0x1A1A, b"\0"),
    )
    for name in (None, "a.test", "A.Test.", "xn--mnchen-3ya.de", "203.0.113.7", "a_b.r3---x.test"):
        yield hellos.client_hello(name, hellos.alpn(b"h2", b"http/1.1"), *odd)
    spread = hellos.message((hellos.server_name(b"a.test"), hellos.alpn(b"h2")))
    yield hellos.records(spread, [1, 2, 3, 40])
    yield hellos.records(spread) + b"\x17\x03\x03\0\1x"
    yield hellos.records(hellos.message(None))
    yield hellos.records(hellos.message((hellos.server_name(b"a.test"),)) + b"\1\0")
    yield hellos.server_name(b"a.test") + hellos.alpn(b"h2")
    yield hellos.server_name(b"a.test") + hellos.server_name(b"b.test")
    yield hellos.server_name(b"a.test", b"b.test")
    yield hellos.server_name(b"a.test", kind=1)
    yield from (b"a.test", b"XN--MNCHEN-3YA.DE.", b"1.2.3.4", b"0x7f.1", b"[::1]", b"::ffff:1.2.3.4")


def openssl_hello(name: str, oldest: ssl.TLSVersion, newest: ssl.TLSVersion) -> bytes:
    """What this machine's OpenSSL sends first when it speaks these versions."""
    context = ssl.create_default_context()
    context.minimum_version, context.maximum_version = oldest, newest
    context.set_alpn_protocols(["h2", "http/1.1"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a server")


def _verdict(data: bytes | bytearray) -> object:
    try:
        return parse_client_hello(data)
    except ClientProtocolError:
        return ClientProtocolError


def _check_stream(data: bytes) -> None:
    verdict = check_cuts(data, _verdict)
    if verdict is NEED_MORE:
        _check_it_can_end(data)
    else:
        assert _verdict(data + b"\x16\x03\x01\xff\xff\0") == verdict, "bytes behind the hello matter"
    # What has begun as TLS never becomes something else, and nothing else becomes TLS.
    assert (verdict is NOT_TLS) == (
        (len(data) > 0 and data[:1] != b"\x16") or (len(data) > 1 and not begins_as_tls(data))
    )
    if isinstance(verdict, ClientHello):
        assert verdict.sni is None or canonical_host(verdict.sni) == verdict.sni
        assert all(verdict.alpn)
        # OpenSSL is strict here; a server that is not could take any of them.
        assert {_canonical(name.decode("latin-1")) for name in _every_name(data)} == {verdict.sni} - {None}
    _check_against_openssl(data, verdict)


def _every_name(data: bytes) -> Iterator[bytes]:
    """Every name in every server_name extension of the accepted hello in `data`, whatever else is there."""
    rest = _vector(_handshake(data)[1:], 3)[0][34:]
    for width in (1, 2, 1):
        rest = _vector(rest, width)[1]
    extensions = _vector(rest, 2)[0]
    while extensions:
        kind, (body, extensions) = extensions[:2], _vector(extensions[2:], 2)
        names = body[2:] if kind == b"\0\0" else b""
        while names:
            name, names = _vector(names[1:], 2)
            yield name


def _handshake(data: bytes) -> bytes:
    fragments = b""
    while data[:1] == b"\x16":
        fragment, data = _vector(data[3:], 2)
        fragments += fragment
    return fragments


def _vector(data: bytes, width: int) -> tuple[bytes, bytes]:
    """The content behind a length of `width` bytes, and what follows it."""
    end = width + int.from_bytes(data[:width], "big")
    return data[width:end], data[end:]


def _check_it_can_end(data: bytes) -> None:
    """Whoever is asked for more can send something that ends the waiting, without passing the bound."""
    verdict: object = NEED_MORE
    while verdict is NEED_MORE:
        assert len(data) < _MOST_BYTES
        data += _next_bytes(data)
        verdict = _verdict(data)


def _next_bytes(data: bytes) -> bytes:
    """Zeros to the end of the record that has begun, or as much of a header as is missing."""
    position = 0
    while position + 5 <= len(data):
        end = position + 5 + int.from_bytes(data[position + 3 : position + 5], "big")
        if end > len(data):
            return bytes(end - len(data))
        position = end
    return b"\x16\x03\x01\x40\0"[len(data) - position :]


def _check_against_openssl(data: bytes, verdict: object) -> None:
    """What OpenSSL as a server takes for the name, we see in its canonical form, or refuse."""
    seen = _OPENSSL.names(data)
    if not seen:
        return
    [name] = seen
    assert verdict is not NEED_MORE, f"OpenSSL answers a hello for {name!r}, we wait"
    if isinstance(verdict, ClientHello):
        assert verdict.sni == _canonical(name), f"OpenSSL sees {name!r}, we see {verdict.sni!r}"
    elif verdict is NOT_TLS:
        # The hello of SSL 2 has no extensions, so no name that could be hidden from us.
        assert name is None, f"OpenSSL sees {name!r}, we see no TLS"


def _canonical(name: str | None) -> str | None:
    try:
        return None if name is None else canonical_host(name)
    except InvalidAuthority:
        return f"not a host: {name}"


class _OpenSSL:
    """A server with every version and cipher this OpenSSL has, which stops as soon as it knows the name."""

    def __init__(self) -> None:
        self._seen: list[str | None] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._context.minimum_version = ssl.TLSVersion.TLSv1
        self._context.set_ciphers("ALL:@SECLEVEL=0")
        self._context.sni_callback = self._stop

    def _stop(self, _: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int:
        self._seen.append(name)
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    def names(self, data: bytes) -> list[str | None]:
        """The name in the hello at the front of `data`; nothing when OpenSSL refuses it or waits for more."""
        self._seen = []
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(data)
        # A name that is not ASCII cannot be told to the callback, and is reported there.
        reported, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            self._context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
        except ssl.SSLError:
            return self._seen
        finally:
            sys.unraisablehook = reported
        raise AssertionError("a handshake that nobody could finish")


_OPENSSL = _OpenSSL()
