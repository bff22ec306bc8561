"""Everything that is wrong with a profile, at once: each mistake with its file, its place and what to write instead.

The types of `nono_ebpf.config.schema` say what is expected where; this walks a document along them. What is sound of a
document is kept, so that a mistake in one place hides none in another. Must not know what a profile means.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from msgspec import inspect

from nono_ebpf.config.document import parse, twice_written
from nono_ebpf.config.kinds import LIMIT
from nono_ebpf.config.presets import nearest
from nono_ebpf.config.schema import ALIASES, IGNORED, Config, Profile
from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nono_ebpf.config.kinds import Limit

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_$-]+")
_MAX_SHOWN = 60
_MAX_NAME = 256  # ours, in characters: each place below a name repeats it
_MAX_MISTAKES = 500  # in one file: nobody reads more
_TYPE: Final = cast("inspect.StructType", inspect.type_info(Profile))
# What stands for a value that is not sound.
_UNSOUND: Final = object()


@dataclass(frozen=True, slots=True)
class Document:
    """What is sound of the profile in the file `path`, and how its places are written there."""

    profile: Profile
    path: str
    _keys: Mapping[str, str] = field(default_factory=dict)
    _indexes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def place(self, *parts: str | int) -> str:
        """Where a value stands, with the keys and indexes of the file: `agent.json: network.proxy_allow[3]`."""
        canonical = written = ""
        for part in parts:
            if isinstance(part, int):
                kept = self._indexes.get(canonical)
                written = _joined(written, kept[part] if kept else part)
            else:
                written = _joined(written, self._keys.get(_joined(canonical, part), part))
            canonical = _joined(canonical, part)
        return f"{self.path}: {written}" if written else self.path


def examine(text: bytes, path: str, counted: Counter[Limit] | None = None) -> tuple[Document, list[ConfigError]]:
    """The profile in `text` without what is unsound, and why that is; `path` is only used to name it.

    `counted`: how much there was of what is limited, in this file and in others.
    """
    try:
        document = parse(text, path)
    except ConfigError as error:
        return Document(Profile(), path), [error]
    walk = _Walk(path, Counter() if counted is None else counted)
    for parts, key in islice(twice_written(document), _MAX_MISTAKES):
        walk.note(_Place().at(*parts), f"the key {_cut(key, _MAX_SHOWN)!a} is written twice")
    found = walk.value(document, _TYPE, _Place())
    if walk.is_full:
        walk.problems.append(ConfigError(path, "there are more mistakes than these"))
    profile = Profile() if found is _UNSOUND else msgspec.convert(found, Profile)
    return Document(profile, path, walk.keys, walk.indexes), walk.problems


def ignored_keys(profile: Profile) -> list[str]:
    """The keys of `profile` that are about other things than the network."""
    return [
        each.encode_name
        for each in _TYPE.fields
        if _annotations(each.type).get(IGNORED)
        and each.encode_name != "$schema"
        and getattr(profile, each.name) is not msgspec.UNSET
    ]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value stands in the document, and where it will stand in what is kept of it."""

    written: str = ""
    canonical: str = ""

    def at(self, *parts: str | int) -> _Place:
        place = self
        for part in parts:
            place = place.below(part, part)
        return place

    def below(self, written: str | int, canonical: str | int) -> _Place:
        return _Place(_joined(self.written, written), _joined(self.canonical, canonical))


class _Walk:
    """One document on its way along the types."""

    def __init__(self, path: str, counted: Counter[Limit]) -> None:
        self._path, self._counted = path, counted
        self.problems: list[ConfigError] = []
        self.keys: dict[str, str] = {}
        self.indexes: dict[str, tuple[int, ...]] = {}

    @property
    def is_full(self) -> bool:
        """Whether there are so many mistakes that no more are looked for."""
        return len(self.problems) >= _MAX_MISTAKES

    def note(self, place: _Place, problem: str, hint: str = "") -> object:
        """Write a mistake down; the value is unsound."""
        self.problems.append(ConfigError(self._source(place), problem, hint=hint))
        return _UNSOUND

    def value(self, value: object, kind: inspect.Type, place: _Place) -> object:
        """`value` as `msgspec.convert` will take it for `kind`, or that it is unsound."""
        said = _annotations(kind)
        kind = _bare(kind)
        if said.get(IGNORED):
            return True
        if self.is_full:
            return _UNSOUND
        if isinstance(kind, inspect.UnionType):
            branch = next((each for each in kind.types if _accepts(each, value)), None)
            return self._unexpected(value, kind, place) if branch is None else self.value(value, branch, place)
        if not _accepts(kind, value):
            return self._unexpected(value, kind, place)
        if (limit := said.get(LIMIT)) and self._exceeds(limit, value):
            return self.note(place, "that is too much", str(limit))
        found = self._of_kind(value, kind, place)
        if found is not _UNSOUND and "check" in said:
            try:
                said["check"](found, self._source(place))
            except ConfigError as error:
                self.problems.append(error)
                return _UNSOUND
        return found

    def _exceeds(self, limit: Limit, value: object) -> bool:
        self._counted[limit] += limit.weight(value)
        return self._counted[limit] > limit.most

    def _of_kind(self, value: Any, kind: inspect.Type, place: _Place) -> object:  # noqa: ANN401  # JSON
        match kind:
            case inspect.StructType():
                return self._struct(value, kind, place)
            case inspect.DictType():
                return self._dict(value, kind, place)
            case inspect.VarTupleType():
                return self._list(value, kind, place)
            case inspect.TupleType():
                return self._tuple(value, kind, place)
            case inspect.LiteralType() if value not in kind.values:
                problem = f"{json.dumps(_cut(value, _MAX_SHOWN))} is not known here"
                return self.note(place, problem, nearest(value, map(str, kind.values)))
            case inspect.IntType():
                within = (kind.ge is None or kind.ge <= value) and (kind.le is None or value <= kind.le)
                return int(value) if within else self._unexpected(value, kind, place)
            case inspect.StrType():
                return self._text(value, kind, place)
        return value

    def _text(self, value: str, kind: inspect.StrType, place: _Place) -> object:
        if not _is_text(value):
            return self.note(place, "it has half of a surrogate pair", "write the character itself")
        return self.note(place, "it is empty") if len(value) < (kind.min_length or 0) else value

    def _struct(self, value: dict[str, object], kind: inspect.StructType, place: _Place) -> object:
        before = len(self.problems)
        fields = {name: each for each in kind.fields for name in (each.encode_name, *_aliases(each))}
        found: dict[str, object] = {}
        written: dict[str, str] = {}
        for key, item in value.items():
            if self.is_full:
                return _UNSOUND
            if key not in fields:
                self.note(place.below(key, key), "no such key", nearest(key, fields))
                continue
            each = fields[key]
            name = each.encode_name
            below = place.below(key, name)
            if name in written:
                self.note(below, f"the same as {written[name]}", "write one of them")
                continue
            written[name] = self.keys[below.canonical] = key
            if (sound := self.value(item, each.type, below)) is not _UNSOUND:
                found[name] = sound
        required = [each.encode_name for each in kind.fields if each.required]
        self._note_missing(required, written, [key for key in value if key not in fields], place)
        if any(name not in found for name in required):
            return _UNSOUND
        return self._consistent(found, cast("type[Config]", kind.cls), place) if len(self.problems) == before else found

    def _note_missing(self, required: list[str], written: Iterable[str], unknown: list[str], place: _Place) -> None:
        """A key that was meant and misspelled has been noted already."""
        for name in required:
            if name not in written and not difflib.get_close_matches(name, unknown, n=1):
                self.note(place, f"{name} is missing")

    def _consistent(self, found: dict[str, object], cls: type[Config], place: _Place) -> object:
        problems = list(msgspec.convert(found, cls).problems())
        for each in problems:
            self.note(place.at(*filter(None, each.key.split("."))), each.text, each.hint)
        return _UNSOUND if problems else found

    def _dict(self, value: dict[str, object], kind: inspect.DictType, place: _Place) -> object:
        pattern = kind.key_type.pattern if isinstance(kind.key_type, inspect.StrType) else None
        found: dict[str, object] = {}
        for key, item in value.items():
            if self.is_full:
                return _UNSOUND
            below = place.below(key, key)
            if len(key) > _MAX_NAME:
                self.note(below, f"the name has more than {_MAX_NAME} characters")
            elif not _is_text(key) or (pattern and not re.fullmatch(pattern.removesuffix("$"), key)):
                self.note(
                    below, f"{_cut(key, _MAX_SHOWN)!a} is no name for this", "letters, digits and _" if pattern else ""
                )
            elif (sound := self.value(item, kind.value_type, below)) is not _UNSOUND:
                found[key] = sound
        return found

    def _list(self, value: list[object], kind: inspect.VarTupleType, place: _Place) -> object:
        if len(value) < (kind.min_length or 0):
            return self.note(place, "it is empty", "leave the key out, or write an entry")
        kept: list[object] = []
        indexes: list[int] = []
        for index, item in enumerate(value):
            if self.is_full:
                return _UNSOUND
            if (sound := self.value(item, kind.item_type, place.below(index, len(kept)))) is not _UNSOUND:
                kept.append(sound)
                indexes.append(index)
        if len(kept) < len(value):
            self.indexes[place.canonical] = tuple(indexes)
        return _UNSOUND if len(kept) < (kind.min_length or 0) else kept

    def _tuple(self, value: list[object], kind: inspect.TupleType, place: _Place) -> object:
        if len(value) != len(kind.item_types):
            return self.note(place, f"expected {len(kind.item_types)} values, got {len(value)}")
        found = [
            self.value(item, each, place.at(i))
            for i, (item, each) in enumerate(zip(value, kind.item_types, strict=True))
        ]
        return _UNSOUND if any(each is _UNSOUND for each in found) else found

    def _unexpected(self, value: object, kind: inspect.Type, place: _Place) -> object:
        return self.note(place, f"expected {_expected(kind)}, got {_sort(value, kind)}")

    def _source(self, place: _Place) -> str:
        return f"{self._path}: {place.written}" if place.written else self._path


def _joined(place: str, part: str | int) -> str:
    if isinstance(part, int):
        return f"{place}[{part}]"
    part = _cut(part, _MAX_NAME)
    if not _PLAIN_KEY.fullmatch(part):
        return f"{place}[{json.dumps(part)}]"
    return f"{place}.{part}" if place else part


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[:size]}..."


def _sort(value: object, expected: inspect.Type) -> str:
    """What `value` is, without saying it: the file may be another than was meant, and have secrets in it."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "another number" if isinstance(_bare(expected), inspect.IntType) else "a number"
    return next(name for types, name in _SORTS if isinstance(value, types))


def _bare(kind: inspect.Type) -> inspect.Type:
    return _bare(kind.type) if isinstance(kind, inspect.Metadata) else kind


def _annotations(kind: inspect.Type) -> Mapping[str, Any]:
    return (kind.extra or {}) if isinstance(kind, inspect.Metadata) else {}


def _aliases(each: inspect.Field) -> tuple[str, ...]:
    names: tuple[str, ...] = _annotations(each.type).get(ALIASES, ())
    return names


def _is_text(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= each <= "\udfff" for each in text)


def _accepts(kind: inspect.Type, value: object) -> bool:
    """Whether `value` is of the JSON type that `kind` is written as."""
    kind = _bare(kind)
    if isinstance(kind, inspect.IntType):
        return (isinstance(value, int) and not isinstance(value, bool)) or (
            isinstance(value, float) and value.is_integer()
        )
    types, _ = _JSON[type(kind)]
    return isinstance(value, types)


def _expected(kind: inspect.Type) -> str:
    kind = _bare(kind)
    if isinstance(kind, inspect.UnionType):
        return " or ".join(_expected(each) for each in kind.types)
    if isinstance(kind, inspect.IntType) and kind.ge is not None:
        return f"a number from {kind.ge} to {kind.le}" if kind.le is not None else f"a number of {kind.ge} or more"
    return _JSON[type(kind)][1]


_SORTS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (str, "a string"),
    (dict, "an object"),
    (list, "an array"),
    (type(None), "null"),
)
_JSON: Mapping[type[inspect.Type], tuple[tuple[type, ...], str]] = {
    inspect.AnyType: ((object,), "anything"),
    inspect.BoolType: ((bool,), "true or false"),
    inspect.DictType: ((dict,), "an object"),
    inspect.IntType: ((int,), "a number"),
    inspect.LiteralType: ((str,), "a string"),
    inspect.NoneType: ((type(None),), "null"),
    inspect.StrType: ((str,), "a string"),
    inspect.StructType: ((dict,), "an object"),
    inspect.TupleType: ((list,), "an array"),
    inspect.VarTupleType: ((list,), "an array"),
}
