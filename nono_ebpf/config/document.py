"""A profile file as text: JSON, with the comments and trailing commas that nono takes.

Knows nothing of what may be written in it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, NoReturn

from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Ours: a profile is some kilobytes. nono's: its reader of JSON goes no deeper.
MAX_BYTES, _MAX_DEPTH = 1 << 20, 128
_STRING = r'"(?:[^"\\]|\\.)*+"?'
_COMMENTS = re.compile(rf"(?P<kept>{_STRING})|//[^\n]*|/\*(?:.*?\*/|(?P<open>.*))", re.DOTALL)
_COMMAS = re.compile(rf"(?P<kept>{_STRING})|,(?=\s*[}}\]])", re.DOTALL)
_LINES = re.compile(r"[^\n]")


class JsonObject(dict[str, object]):
    """A JSON object that remembers which keys were written more than once."""

    twice: tuple[str, ...] = ()


def parse(text: bytes, path: str) -> object:
    """The value that the file at `path` has. Raises ConfigError: it is no JSON, or too large to be meant."""
    if len(text) > MAX_BYTES:
        raise ConfigError(path, f"it is larger than {MAX_BYTES} bytes")
    try:
        decoded = text.decode("utf-8")
        document: object = json.loads(
            _without(_COMMAS, _without(_COMMENTS, decoded)),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise ConfigError(path, f"not JSON: {error}") from error
    if _is_too_deep(document):
        raise ConfigError(path, f"it is nested more than {_MAX_DEPTH} deep")
    return document


def twice_written(document: object) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every key that is written again in its object, and the way there."""
    # A way is a link to the container's own, so that it costs no more where a million values have it in common.
    pending: list[tuple[_Link | None, object]] = [(None, document)]
    while pending:
        link, value = pending.pop()
        if isinstance(value, JsonObject):
            yield from ((_way(link), key) for key in value.twice)
        pending += [((link, part), each) for part, each in _containers(value)]


# The link of the container around, and the key or index there.
_Link = tuple["_Link | None", str | int]


def _way(link: _Link | None) -> tuple[str | int, ...]:
    parts: list[str | int] = []
    while link is not None:
        link, part = link
        parts.append(part)
    return tuple(reversed(parts))


def _containers(value: object) -> list[tuple[str | int, object]]:
    """The objects and arrays right inside of `value`."""
    if isinstance(value, JsonObject):
        return [(key, each) for key, each in value.items() if isinstance(each, (dict, list))]
    if isinstance(value, list):
        return [(index, each) for index, each in enumerate(value) if isinstance(each, (dict, list))]
    return []


def _is_too_deep(document: object) -> bool:
    level = [document]
    for _ in range(_MAX_DEPTH):
        level = [each for value in level for _, each in _containers(value)]
        if not level:
            return False
    return True


def _without(what: re.Pattern[str], text: str) -> str:
    """`text` with blanks in place of what is matched, so that the places in an error are those in the file."""

    def blank(match: re.Match[str]) -> str:
        groups = match.groupdict()
        keep = groups["kept"] is not None or groups.get("open") is not None
        return match[0] if keep else _LINES.sub(" ", match[0])

    return what.sub(blank, text)


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    found = JsonObject(pairs)
    if len(found) < len(pairs):
        found.twice = tuple(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
