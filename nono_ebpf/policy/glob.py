"""Path globs, matched in time that grows with the path alone, whatever the glob: the path is hostile.

`*` is any part of one segment, `**` any number of segments, `?` one character of a segment, `[a-z]` and `[!a-z]` one of
a set, `{a,b}` a choice. `/a/**` is what lies below `/a`, `/a/**/b` is `/a/b` too. In nono `*` and `?` cross slashes:
`crosses`. The states of the matcher are the bits of an integer, one for each element of the glob (Baeza-Yates and
Gonnet, "A New Approach to Text Searching", 1992).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_LENGTH, _MAX_CHOICES = 1024, 256
_STARS = re.compile(r"\*+")
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


@dataclass(frozen=True, slots=True)
class _Element:
    accepts: Callable[[str], bool]
    repeats: bool = False


class Glob:
    """A compiled glob. Raises ValueError for one that is not closed, or has too many choices."""

    def __init__(self, text: str, *, crosses: bool = False) -> None:
        if len(text) > _MAX_LENGTH or _CONTROL.search(text):
            raise ValueError(f"it has control characters, or more than {_MAX_LENGTH} in all")
        spelled = list(_choices(text))
        self._alternatives = [_Sequence(list(_elements(each, crosses=crosses))) for each in spelled]

    def matches(self, path: str) -> bool:
        """Whether the whole of `path` is as the glob says."""
        return any(each.matches(path) for each in self._alternatives)


@cache
def compile_glob(text: str, *, crosses: bool) -> Glob:
    """The same for the same, for as long as the process lives: globs are the operator's."""
    return Glob(text, crosses=crosses)


class _Sequence:
    """Elements in a row. Bit i of a state: what was read fits everything before element i."""

    def __init__(self, elements: list[_Element]) -> None:
        self._elements = elements
        self._repeating = sum(1 << i for i, each in enumerate(elements) if each.repeats)
        self._accepting: dict[str, int] = {}

    def matches(self, text: str) -> bool:
        state = self._skipping(1)
        for character in text:
            fits = state & self._accepting_mask(character)
            state = self._skipping((fits & ~self._repeating) << 1 | fits & self._repeating)
            if not state:
                return False
        return bool(state >> len(self._elements) & 1)

    def _skipping(self, state: int) -> int:
        """What repeats may be absent. No two that repeat stand side by side, so once is enough."""
        return state | (state & self._repeating) << 1

    def _accepting_mask(self, character: str) -> int:
        mask = self._accepting.get(character)
        if mask is None:
            mask = sum(1 << i for i, each in enumerate(self._elements) if each.accepts(character))
            if len(self._accepting) < _MAX_LENGTH:
                self._accepting[character] = mask
        return mask


def _choices(text: str) -> Iterator[str]:
    """Every spelling without braces, and with `/**/` also as a single slash. Stars are told apart before they meet."""
    marked = _STARS.sub(lambda match: _SOME if len(match[0]) == 1 else _ALL, text)
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
                yield _Element("/".__eq__)
        elif match["one"]:
            yield _Element(_anything if crosses else _in_segment)
        elif match["set"] is not None:
            yield _Element(_one_of(match["set"], negated=bool(match["not"])))
        else:
            yield _Element(match["plain"].__eq__)


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
