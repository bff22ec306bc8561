"""What is hidden of a body does not depend on how it is cut, and no value is left in it; nothing changes its length.

The input is a secret, up to the first line feed, and a body. What comes out early is never more than what is certain,
and what is held back is no more than the longest form of the secret.
"""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import quote

from nono_ebpf.wire.scrub import MIN_SECRET_BYTES, Scrubber

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Ours: a form of a longer one makes the input all by itself.
_MOST_SECRET_BYTES = 64
_MOST_BODY_BYTES = 512
# The longest spelling of one byte is &#65533; for one that is not UTF-8.
_MOST_PER_BYTE = 8


def check(data: bytes) -> None:
    """Scrub the body of `data` in several ways."""
    secret, _, body = data.partition(b"\n")
    secret, body = secret[:_MOST_SECRET_BYTES], body[:_MOST_BODY_BYTES]
    if any(each < 0x20 or each == 0x7F for each in secret):
        return  # no request can carry it, and it is not looked for
    check_cuts([secret], body, [len(body) // 3, len(body) // 2, len(body) - 1])
    if len(secret) < MIN_SECRET_BYTES:
        assert Scrubber([secret]).text(body) == body
        return
    for written in _written(secret):
        hidden = Scrubber([secret]).text(b"<" + written + b">" + body)
        assert hidden[1 : len(written) + 1] == b"*" * len(written)


def seeds() -> Iterator[bytes]:
    """Secrets of every kind, in bodies that have them whole, cut off, and nearly."""
    for secret in (
        b"sk-0123456789",
        b'user:pa%25/\\w"ord',
        b"aaaaaaaaaa",
        b"\xff\xfe\xfd//++\x80",
        "schl\u00fcssel".encode(),
    ):
        for written in (secret, *_written(secret)):
            yield secret + b"\n" + written
            yield secret + b"\n" + written[1:] + written[:-1] + written + written
        yield secret + b"\n" + base64.b64encode(b"x:" + secret) + base64.urlsafe_b64encode(b"x" + secret)


def check_cuts(values: list[bytes], body: bytes, cuts: Iterable[int]) -> None:
    """The same comes out of `body` whole, byte by byte, and cut at `cuts`."""
    whole = Scrubber(values).text(body)
    assert len(whole) == len(body)
    for places in (range(1, len(body)), cuts, ()):
        _check_pieces(values, list(_pieces(body, places)), whole)


def _check_pieces(values: list[bytes], pieces: list[bytes], whole: bytes) -> None:
    scrubber = Scrubber(values)
    most = _MOST_PER_BYTE * max(map(len, values), default=0)
    fed, passed = 0, b""
    for piece in pieces:
        fed += len(piece)
        passed += scrubber.feed(piece)
        assert whole.startswith(passed)
        assert fed - len(passed) < max(most, 1)
    assert passed + scrubber.flush() == whole
    assert scrubber.flush() == b""


def _pieces(body: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    places = [0, *sorted({place for place in cuts if 0 < place < len(body)}), len(body)]
    yield from (body[start:end] for start, end in pairwise(places))


def _written(secret: bytes) -> Iterator[bytes]:
    yield secret
    yield secret.hex().encode()
    yield quote(secret, safe="").encode()
    yield base64.b64encode(secret).rstrip(b"=")
    try:
        text = json.dumps(secret.decode())[1:-1]
    except UnicodeDecodeError:
        return
    # Escapes of control characters have short forms, and no request can carry one.
    if secret.decode().isprintable():
        yield text.encode()
