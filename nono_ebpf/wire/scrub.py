"""Takes secrets out of what a server sends back: every byte of one becomes `*`, so no length changes.

A server may well repeat what it was sent: in an error, an echo, a redirect, a page for debugging. What is looked for is
the secret as it is, with its special characters escaped as in URLs (RFC 3986 §2.1), JSON (RFC 8259 §7) and HTML, and in
hexadecimal and base64 (RFC 4648, both alphabets), there also as a part of something longer. A server that means to
give it away cannot be kept from it by any list, nor can one that compresses or takes it apart.

A body may come in any pieces; what becomes of it does not depend on them. Held back is the end of a line that goes on,
as much as the longest form has: whatever it says, since who could see which beginnings are held back would guess a
secret letter by letter. Must not know what the secrets are for. What it looks for is in ordinary memory.
"""

from __future__ import annotations

import base64
import re
import string
from itertools import chain
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Ours: shorter values occur by chance, and hiding the word "password" everywhere gives more away than it hides.
MIN_SECRET_BYTES: Final = 8
_HEAD_BYTES: Final = 4  # long enough to be rare
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")

# RFC 3986 §2.3, without the tilde and the hyphen, which some escape (Django's escapejs, for one).
_PLAIN: Final = frozenset(each.encode() for each in string.ascii_letters + string.digits + "._")
_BASE64: Final = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
_IN_BASE64: Final = {
    "+": (b"+", b"-", b"%2B", b"%2b", b"\\u002b", b"\\u002B"),
    "/": (b"/", b"_", b"%2F", b"%2f", b"\\u002f", b"\\u002F", b"\\/"),
}
# application/x-www-form-urlencoded and RFC 8259 §7.
_ESCAPED_ALONE: Final = {b" ": (b"+",), b'"': (b'\\"',), b"/": (b"\\/",)}
_NAMED_IN_HTML: Final = {b'"': (b"&quot;",), b"'": (b"&apos;",), b"<": (b"&lt;",), b">": (b"&gt;",)}

_CHARSET: Final = re.compile(rb";\s*charset\s*=\s*[\"']?\s*([^\s;\"',]*)", re.IGNORECASE)
# By their names of the IANA's registry, and the customary ones; without charset, or an empty one, it is for the client
# to guess, and no client guesses anything else.
_CONTAINS_ASCII: Final = re.compile(
    rb"|utf-?8|(?:us-)?ascii|iso-?8859-?\d+|latin-?\d+|windows-?\d+|cp125\d|koi8-[ru]|gb(?:k|2312|18030)|big5(?:-hkscs)?|"
    rb"shift_?jis|euc-(?:jp|kr|tw)|tis-620|macintosh|binary",
    re.IGNORECASE,
)

# Each a piece of what is looked for, in all its spellings, of which none is the beginning of another.
_Elements = tuple[tuple[bytes, ...], ...]
_Span = tuple[int, int]


def looks_like_ascii(content_type: bytes) -> bool:
    """Whether what ASCII has looks the same in a body of that Content-Type: otherwise there is no finding anything."""
    charsets = _CHARSET.findall(content_type)
    return all(map(_CONTAINS_ASCII.fullmatch, charsets))


class Scrubber:
    """Hides `values`, but for those under MIN_SECRET_BYTES. One for each body; headers in between do no harm.

    Raises ValueError: one has a control character, which ends what is held back.
    """

    def __init__(self, values: Iterable[bytes]) -> None:
        secrets = dict.fromkeys(value for value in values if len(value) >= MIN_SECRET_BYTES)
        if any(map(_CONTROL.search, secrets)):
            raise ValueError("a secret with a control character")
        self._forms = [*map(_Form, dict.fromkeys(form for secret in secrets for form in _forms(secret)))]
        self._held = b""
        self._hidden_bytes = 0  # of `_held`, at its front: the end of a secret that began before it

    def another(self) -> Scrubber:
        """One for another body, of the same values, also of those that `cover` is told: they are worked out once."""
        made = Scrubber(())
        made._forms = self._forms
        return made

    def cover(self, others: Iterable[Scrubber]) -> None:
        """Hide what any of `others` does from now on, also in bodies that have begun."""
        self._forms[:] = chain.from_iterable(each._forms for each in others)  # noqa: SLF001  # of its own class

    def occurs_in(self, *texts: bytes) -> bool:
        """Whether `text` may change one of them; False: it changes none."""
        return bool(self._spans(b"\n".join(texts)))

    def text(self, data: bytes) -> bytes:
        """`data`, which is all there is, without secrets."""
        return _hide(data, self._spans(data))

    def feed(self, data: bytes) -> bytes:
        """The next piece of a body: what can be passed on now of it and of what was held back."""
        data = self._held + data
        spans = [*self._spans(data), (0, self._hidden_bytes)]
        kept = self._unfinished(data)
        self._held = data[kept:]
        self._hidden_bytes = max([0, *(end - kept for start, end in spans if start <= kept)])
        return _hide(data[:kept], spans)

    def flush(self) -> bytes:
        """The end of the body: what was held back. The next piece begins another one."""
        data = _hide(self._held, [*self._spans(self._held), (0, self._hidden_bytes)])
        self._held, self._hidden_bytes = b"", 0
        return data

    def _unfinished(self, data: bytes) -> int:
        """Where a secret may begin that goes on behind the end of `data`. No secret has a control character in it."""
        most_bytes = max((form.most_bytes for form in self._forms), default=1) - 1
        tail = data[max(0, len(data) - most_bytes) :]
        ended = _CONTROL.search(tail[::-1])
        return len(data) - (len(tail) if ended is None else ended.start())

    def _spans(self, data: bytes) -> list[_Span]:
        return [span for form in self._forms for span in form.found(data)]


def _hide(data: bytes, spans: Iterable[_Span]) -> bytes:
    hidden: bytearray | None = None
    for start, end in spans:
        if start < (end := min(end, len(data))):
            hidden = bytearray(data) if hidden is None else hidden
            hidden[start:end] = b"*" * (end - start)
    return data if hidden is None else bytes(hidden)


class _Form:
    """One way to write a secret."""

    __slots__ = ("_elements", "_heads", "_rare", "most_bytes")

    def __init__(self, elements: _Elements) -> None:
        self._elements = elements
        self._heads = tuple(dict.fromkeys(spelling[:_HEAD_BYTES] for spelling in elements[0]))
        self.most_bytes = sum(max(map(len, spellings)) for spellings in elements)
        # What does not have this part does not have it all, and looking for that is what bytes.find is fastest at.
        self._rare = max(elements, key=lambda spellings: min(map(len, spellings)))

    def found(self, data: bytes) -> Iterator[_Span]:
        """Where it stands in `data`, those that overlap as one."""
        if not any(map(data.__contains__, self._rare)):
            return
        for head in self._heads:
            start = end = 0
            for at in _beginnings(data, head):
                if (found := self._follow(data, at)) is None:
                    continue
                if at > end:
                    yield start, end
                    start = at
                end = max(end, found)
            yield start, end

    def _follow(self, data: bytes, at: int) -> int | None:
        """Where the one that begins `at` ends; None: there is none."""
        for spellings in self._elements:
            for spelling in spellings:
                if data.startswith(spelling, at):
                    at += len(spelling)
                    break
            else:
                return None
        return at


def _beginnings(data: bytes, head: bytes) -> Iterator[int]:
    at = data.find(head)
    while at >= 0:
        yield at
        at = data.find(head, at + 1)


# ---------------------------------------------------------------- forms


def _forms(secret: bytes) -> Iterator[_Elements]:
    for escapes in (_UNESCAPED, _IN_JSON, _IN_URL, _IN_HTML):
        yield _runs(escapes.get(each) or _spellings(each) for each in _characters(secret))
    for before in range(3):
        yield _runs(_in_base64(secret, before))
    yield ((secret.hex().encode(),),)
    yield ((secret.hex().upper().encode(),),)


def _runs(elements: Iterable[tuple[bytes, ...]]) -> _Elements:
    """Neighbours with one spelling each are one."""
    found: list[tuple[bytes, ...]] = []
    for spellings in elements:
        if found and len(spellings) == len(found[-1]) == 1:
            found[-1] = (found[-1][0] + spellings[0],)
        else:
            found.append(spellings)
    return tuple(found)


# The characters that escapes begin with: what they stand for depends on who wrote them.
_UNESCAPED: Final = {b"%": (b"%",), b"\\": (b"\\",), b"&": (b"&", b"%26", b"\\u0026")}
_IN_JSON: Final = {b"%": (b"%", b"\\u0025"), b"&": (b"&", b"\\u0026"), b"\\": (b"\\\\", b"\\u005c", b"\\u005C")}
_IN_URL: Final = {b"%": (b"%25",), b"&": (b"&", b"%26"), b"\\": (b"%5C", b"%5c")}
_IN_HTML: Final = _UNESCAPED | {b"&": (b"&amp;", b"&#38;", b"&#x26;")}


def _characters(secret: bytes) -> Iterator[bytes]:
    """What is escaped as one: characters of UTF-8, or bytes where it is none."""
    try:
        yield from (each.encode() for each in secret.decode())
    except UnicodeDecodeError:
        yield from (bytes((each,)) for each in secret)


def _spellings(character: bytes) -> tuple[bytes, ...]:
    """`character`, neither of those above, as it is and escaped."""
    if character in _PLAIN:
        return (character,)
    escaped = [character, *_ESCAPED_ALONE.get(character, ())]
    percent = "".join(f"%{each:02x}" for each in character)
    text = character.decode("utf-8", "replace")
    unicode = "".join(f"\\u{unit:04x}" for unit in _utf_16(text))
    # Twice: a target that is a parameter of another, as a redirect to a login has it.
    for each in (percent, percent.replace("%", "%25"), unicode):
        escaped += [each.encode(), each.upper().replace("U", "u").encode()]
    escaped += [f"&#{number};".encode() for each in text for number in _in_html(ord(each))]
    return tuple(dict.fromkeys((*escaped, *_NAMED_IN_HTML.get(character, ()))))


def _utf_16(text: str) -> Iterator[int]:
    """The code units (RFC 2781 §2.1), by hand: Python would load its codec from a file."""
    for each in map(ord, text):
        if each < 0x10000:
            yield each
        else:
            yield from (0xD800 + (each - 0x10000 >> 10), 0xDC00 + (each - 0x10000 & 0x3FF))


def _in_html(code: int) -> tuple[str, ...]:
    """HTML, §13.5: character references by number."""
    return str(code), f"{code:03}", f"x{code:x}", f"x{code:X}"


def _in_base64(secret: bytes, before: int) -> Iterator[tuple[bytes, ...]]:
    """The characters that are about `secret` alone where `before` bytes stand in front of it, and the last one.

    The last may be about what follows as well. One that is also about what stands in front keeps four bits at most:
    it is let through, or any text would have to be held back when it ends in the wrong letter.
    """
    written = base64.b64encode(bytes(before) + secret).decode()
    size, shared_bits = divmod(8 * (before + len(secret)), 6)
    for each in written[-(-8 * before // 6) : size]:
        yield _IN_BASE64.get(each, (each.encode(),))
    if shared_bits:
        known = _BASE64.index(written[size]) >> 6 - shared_bits
        alike = _BASE64[known << 6 - shared_bits : known + 1 << 6 - shared_bits]
        yield tuple(spelling for each in alike for spelling in _IN_BASE64.get(each, (each.encode(),)))
