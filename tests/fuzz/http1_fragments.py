"""HTTP/1 connections spelled in fragments, so that changing a byte of an input changes a word of the message.

A byte below 0x80 stands for itself, one from there on for a fragment, and the byte behind 0xFF for itself as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random

_FIRST, _LITERAL = 0x80, 0xFF
# A session token, as clients show it in the place of a credential.
PHANTOM: Final = b"0123456789abcdef" * 4
_WEBSOCKET_KEY: Final = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
_WEBSOCKET_ACCEPT: Final = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"

_REQUEST_LINES: Final = (
    b"GET /p?q HTTP/1.1\r\n",
    b"POST /p HTTP/1.1\r\n",
    b"PUT /p HTTP/1.1\r\n",
    b"HEAD / HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"GET http://a.test/p HTTP/1.1\r\n",
    b"POST HTTP://A.test.:80?q HTTP/1.1\r\n",
    b"DELETE / HTTP/1.0\r\n",
    b"CONNECT a.test:443 HTTP/1.1\r\n",
)
_ODD_REQUEST_LINES: Final = (
    b"\r\nGET / HTTP/1.1\r\n",
    b"\r\n\r\nGET / HTTP/1.1\r\n",
    b"GET http://b.test/ HTTP/1.1\r\n",
    b"get  /  HTTP/1.1\r\n",
    b"GET / HTTP/1.1 \r\n",
    b"TRACE / HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)
_HOSTS: Final = (b"Host: a.test\r\n", b"hOST:A.test:80\t\r\n")
_ODD_HOSTS: Final = (
    b"",
    b"Host: b.test\r\nHost: a.test\r\n",
    b"Host : a.test\r\n",
    b"Host: a.test b.test\r\n",
    b"Host:\r\n",
    b"Host: a.test:8080\r\n",
    b"Host:\r\n a.test\r\n",
)
_FIELDS: Final = (
    b"X-A: 1\r\n",
    b"x-a:\t one \t two \r\n",
    b"X-Long:\r\n",
    b"Accept-Encoding: gzip, \xfc\r\n",
    b"Authorization: Bearer " + PHANTOM + b"\r\n",
    b"x_api_key: " + PHANTOM + b"\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive, X-A\r\n",
    b"Connection: Host, Content-Length, Transfer-Encoding\r\n",
    b"Connection: ,Upgrade,\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" + _WEBSOCKET_KEY,
    b"Keep-Alive: timeout=5\r\nProxy-Connection: close\r\n",
    b"TE: trailers\r\nTrailer: X-T\r\n",
    b"Proxy-Authorization: Basic eDp5\r\n",
    b"Set-Cookie: a=b; Path=/\r\n",
)
_ODD_FIELDS: Final = (
    b"X-A: 1\r\n folded: 2\r\n",
    b"X-A : 1\r\n",
    b" X-A: 1\r\n",
    b"X-A: 1\nX-B: 2\r\n",
    b"X-A: 1\rX-B: 2\r\n",
    b"X-A: a\0b\r\n",
    b"X-A\r\n",
    b": 1\r\n",
    b"Authorization: Bearer abc\r\n",
    b"X\xe4: 1\r\n",
    b"X-A: \x0b\x0c\x7f\x1f\r\n",
    b"X-A: \x85\xa0\r\n",
)
_LENGTHS: Final = (b"Content-Length: 5\r\n", b"content-length:\t0005 \r\n")
_NO_LENGTH: Final = b"Content-Length: 0\r\n"
_CHUNKED: Final = (b"Transfer-Encoding: chunked\r\n", b"TRANSFER-ENCODING:Chunked \r\n")
_ODD_FRAMINGS: Final = (
    b"Content-Length: 5\r\nContent-Length: 5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: 0x5\r\n",
    b"Content-Length: -0\r\n",
    b"Content-Length: 5_0\r\n",
    b"Content-Length:\r\n",
    b"Content-Length : 5\r\n",
    b"Content-Length: \x0b5\r\n",
    b"Content-Length: 18446744073709551621\r\n",
    b"Content-Length: 4294967301\r\n",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n",
    b'Transfer-Encoding: "chunked"\r\n',
    b"Transfer_Encoding: chunked\r\n",
)
_END: Final = b"\r\n"
_CONTENT: Final = b"hello"
_CHUNKS: Final = (b"5\r\nhello\r\n", b"05;a=b\r\nhello\r\n", b'A;a="b;c"\r\n0\r\n\r\nGET /\r\n')
_LAST_CHUNKS: Final = (b"0\r\n\r\n", b"000;x\r\n\r\n", b"0\r\nX-T: 1\r\nX-U:\r\n\r\n")
_ODD_CHUNKS: Final = (
    b"5 \t;a\r\nhello\r\n",
    b"5 \r\nhello\r\n",
    b" 5\r\nhello\r\n",
    b"0x5\r\nhello\r\n",
    b"+5\r\nhello\r\n",
    b"5;\nhello\r\n",
    b"5\nhello\n",
    b"5\r\nhello!\r\n",
    b"5\r\nhello\n",
    b"FFFFFFFFFFFFFFFF5\r\nhello\r\n",
    b"-0\r\n\r\n",
    b"0\r\nContent-Length: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"0\r\n X-T: 1\r\n\r\n",
    b"0\n\n",
)
_STATUS_LINES: Final = (
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 404\r\n",
    b"HTTP/1.0 200 \xfc \r\n",
    b"HTTP/1.1 204 No Content\r\n",
    b"HTTP/1.1 304 Not Modified\r\n",
)
_INTERIM: Final = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
_ODD_STATUS_LINES: Final = (
    b"HTTP/1.1 100 Continue\r\nContent-Length: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n",
    b"HTTP/1.1 101\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + _WEBSOCKET_ACCEPT,
    b"HTTP/1.1  200 OK\r\n",
    b"HTTP/1.1 +20 OK\r\n",
    b"\r\nHTTP/1.1 200 OK\r\n",
    b"HTTP/2.0 200 OK\r\n",
    b"ICY 200 OK\r\n",
)

_FRAGMENTS: Final = (
    *_REQUEST_LINES, *_ODD_REQUEST_LINES, *_HOSTS, *filter(None, _ODD_HOSTS), *_FIELDS, *_ODD_FIELDS,
    *_LENGTHS, _NO_LENGTH, *_CHUNKED, *_ODD_FRAMINGS, _END, _CONTENT,
    *_CHUNKS, *_LAST_CHUNKS, *_ODD_CHUNKS, *_STATUS_LINES, _INTERIM, *_ODD_STATUS_LINES,
)  # fmt: skip
assert len(_FRAGMENTS) <= _LITERAL - _FIRST
assert len(set(_FRAGMENTS)) == len(_FRAGMENTS)


def expanded(data: bytes) -> bytes:
    """What an input spells."""
    out, rest = bytearray(), iter(data)
    for byte in rest:
        if byte == _LITERAL:
            out += bytes([next(rest, byte)])
        elif _FIRST <= byte < _FIRST + len(_FRAGMENTS):
            out += _FRAGMENTS[byte - _FIRST]
        else:
            out.append(byte)
    return bytes(out)


def requests(random: Random) -> bytes:
    """An input that spells some requests, most of them sound; the same for the same `random`."""
    return _damaged(random, b"".join(_request(random) for _ in range(random.randint(1, 4))))


def responses(random: Random) -> bytes:
    """An input that spells some responses."""
    return _damaged(random, b"".join(_response(random) for _ in range(random.randint(1, 4))))


def _request(random: Random) -> bytes:
    head = _one(random, _REQUEST_LINES, _ODD_REQUEST_LINES) + _one(random, _HOSTS, _ODD_HOSTS)
    return head + _fields_and_body(random, framed=random.random() < 0.5)


def _response(random: Random) -> bytes:
    interim = _spelled(_INTERIM) * (random.random() < 0.2)
    return interim + _one(random, _STATUS_LINES, _ODD_STATUS_LINES) + _fields_and_body(random, framed=True)


def _fields_and_body(random: Random, *, framed: bool) -> bytes:
    fields = [_one(random, _FIELDS, _ODD_FIELDS) for _ in range(random.choice((0, 0, 1, 2, 3)))]
    framing, content = _framed(random) if framed else (b"", b"")
    fields.insert(random.randint(0, len(fields)), framing)
    return b"".join(fields) + _spelled(_END) + content


def _framed(random: Random) -> tuple[bytes, bytes]:
    """The fields that delimit a body, and the body."""
    way = random.randrange(20)
    chunks = b"".join(_one(random, _CHUNKS, _ODD_CHUNKS) for _ in range(random.randint(0, 3)))
    chunks += _one(random, _LAST_CHUNKS, _ODD_CHUNKS)
    if way < 2:
        return _spelled(_NO_LENGTH), b""
    if way < 8:
        return _one(random, _LENGTHS, _ODD_FRAMINGS), _spelled(_CONTENT)
    return _one(random, _CHUNKED, _ODD_FRAMINGS), chunks


def _one(random: Random, sound: tuple[bytes, ...], odd: tuple[bytes, ...]) -> bytes:
    return _spelled(random.choice(odd if random.random() < 0.03 else sound))


def _spelled(fragment: bytes) -> bytes:
    return bytes([_FIRST + _FRAGMENTS.index(fragment)]) if fragment else b""


def _damaged(random: Random, data: bytes) -> bytes:
    """`data`, in one case of four spelled out and with a byte that is other, missing or new."""
    if random.random() < 0.75:
        return data
    text = expanded(data)
    where = random.randrange(len(text))
    new = random.choice(
        (b"", b"\r", b"\n", b"\0", b" ", b"\t", b":", b";", b",", b"\x0b", b"\x80", random.randbytes(1))
    )
    text = text[:where] + new + text[where + random.randint(0, 1) :]
    return b"".join(bytes([_LITERAL, byte]) if byte >= _FIRST else bytes([byte]) for byte in text)
