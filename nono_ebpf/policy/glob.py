"""Path globs, all of a host in one matcher, in time that grows with the path alone: the path is hostile.

`*` is any part of one segment, `**` any number of segments, `?` one character of a segment, `[a-z]` and `[!a-z]` one of
a set, `{a,b}` a choice. `/a/**` is what lies below `/a`, `/a/**/b` is `/a/b` too. In nono `*` and `?` cross slashes:
`crosses`. The states of the matcher are the bits of an integer, one for each element of the glob (Baeza-Yates and
Gonnet, "A New Approach to Text Searching", 1992).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAX_LENGTH, _MAX_CHOICES = 1024, 128
_MARKED = re.compile(r"\[[!^]?\]?[^\]/]*\]|\*+")
# Between brackets these are taken by the letter.
_HIDDEN = str.maketrans("*{},", "\x04\x05\x06\x07")
_SHOWN = str.maketrans("\x04\x05\x06\x07", "*{},")
_CHOICE = re.compile(r"\{([^{}]*)\}")
# What stands for stars while choices are spelled out: no path that is judged has control characters.
_SOME, _ALL, _SOME_SEGMENTS = "\x01", "\x02", "\x03"
_SEGMENTS = f"/{_ALL}/"
_ELEMENT = re.compile(
    r"(?P<stars>[\x01\x02]*\x03|[\x01\x02]+)|(?P<one>\?)|\[(?P<not>[!^]?)(?P<set>\]?[^\]/]*)\]|(?P<plain>[^\[\]])",
    re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_RANGE = re.compile(r"(.)-(.)|(.)", re.DOTALL)


# What one character may be: this one, or what a function accepts.
_Accepts = str | Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class _Element:
    accepts: _Accepts
    repeats: bool = False


class Globs:
    """Any number of globs, compiled into one matcher. Each is a text, and whether `*` crosses slashes in it.

    Raises ValueError for one that is not closed, or has too many choices.
    """

    def __init__(self, globs: Iterable[tuple[str, bool]]) -> None:
        elements: list[_Element | None] = []  # None is the end of one of them
        for text, crosses in globs:
            if len(text) > _MAX_LENGTH or _CONTROL.search(text):
                raise ValueError(f"it has control characters, or more than {_MAX_LENGTH} in all")
            for each in _choices(text):
                elements += [*_elements(each, crosses=crosses), None]
        # Bit i of a state: what was read fits everything before element i.
        ends = [i for i, each in enumerate(elements) if each is None]
        self._ends = _bits(ends)
        self._starts = _bits([0, *(i + 1 for i in ends[:-1])]) if ends else 0
        self._repeating = _bits([i for i, each in enumerate(elements) if each and each.repeats])
        places: dict[_Accepts, list[int]] = {}
        for i, element in enumerate(elements):
            if element:
                places.setdefault(element.accepts, []).append(i)
        self._literal = {accepts: _bits(found) for accepts, found in places.items() if isinstance(accepts, str)}
        self._judged = [(accepts, _bits(found)) for accepts, found in places.items() if not isinstance(accepts, str)]

    def matches(self, path: str) -> bool:
        """Whether the whole of `path` is as one of them says."""
        masks: dict[str, int] = {}
        state = self._skipping(self._starts)
        for character in path:
            mask = masks.get(character)
            if mask is None:
                mask = masks[character] = self._accepting(character)
            fits = state & mask
            state = self._skipping((fits & ~self._repeating) << 1 | fits & self._repeating)
            if not state:
                return False
        return bool(state & self._ends)

    def _skipping(self, state: int) -> int:
        """What repeats may be absent. No two that repeat stand side by side, so once is enough."""
        return state | (state & self._repeating) << 1

    def _accepting(self, character: str) -> int:
        mask = self._literal.get(character, 0)
        for accepts, bits in self._judged:
            if accepts(character):
                mask |= bits
        return mask


@cache
def compile_globs(globs: tuple[tuple[str, bool], ...]) -> Globs:
    """The same for the same, for as long as the process lives: globs are the operator's."""
    return Globs(globs)


def _bits(places: list[int]) -> int:
    """An integer with these bits."""
    octets = bytearray(places[-1] // 8 + 1 if places else 0)
    for place in places:
        octets[place // 8] |= 1 << place % 8
    return int.from_bytes(octets, "little")


def _choices(text: str) -> Iterator[str]:
    """Every spelling without braces, and with `/**/` also as a single slash. Stars are told apart before they meet."""
    marked = _MARKED.sub(_mark, text)
    pending, made = [marked], 0
    while pending:
        made += 1
        if made > _MAX_CHOICES:
            raise ValueError("it has too many choices")
        each = pending.pop()
        if match := _CHOICE.search(each):
            pending += [each[: match.start()] + choice + each[match.end() :] for choice in match[1].split(",")]
        elif "{" in each or "}" in each:
            raise ValueError("a brace has no counterpart")
        elif _SEGMENTS in each:
            before, _, after = each.partition(_SEGMENTS)
            pending += [f"{before}/{after}", f"{before}/{_SOME_SEGMENTS}{after}"]
        else:
            yield each


def _mark(match: re.Match[str]) -> str:
    if match[0].startswith("["):
        return match[0].translate(_HIDDEN)
    return _SOME if len(match[0]) == 1 else _ALL


def _elements(text: str, *, crosses: bool) -> Iterator[_Element]:
    at = 0
    while at < len(text):
        match = _ELEMENT.match(text, at)
        if match is None:
            raise ValueError(f"{text[at]} has no counterpart")
        at = match.end()
        if match["stars"]:
            across = crosses or _ALL in match["stars"] or _SOME_SEGMENTS in match["stars"]
            yield _Element(_anything if across else _in_segment, repeats=True)
            if match["stars"].endswith(_SOME_SEGMENTS):
                yield _Element("/")
        elif match["one"]:
            yield _Element(_anything if crosses else _in_segment)
        elif match["set"] is not None:
            yield _Element(_one_of(match["set"].translate(_SHOWN), negated=bool(match["not"])))
        else:
            yield _Element(match["plain"])


def _anything(_character: str) -> bool:
    return True


def _in_segment(character: str) -> bool:
    return character != "/"


def _one_of(members: str, *, negated: bool) -> Callable[[str], bool]:
    ranges = [(low or single, high or single) for low, high, single in _RANGE.findall(members)]
    if any(low > high for low, high in ranges):
        raise ValueError(f"a range of [{members}] is reversed")

    def accepts(character: str) -> bool:
        return character != "/" and any(low <= character <= high for low, high in ranges) != negated

    return accepts
