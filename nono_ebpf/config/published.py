"""The JSON Schema of a profile, for editors: completion, descriptions, and a mark on what is wrong.

Made from the types, with what those cannot say added: other names of keys, and what is wrong between keys.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import inspect

from nono_ebpf.config.schema import ALIASES, CREDENTIAL_SOURCES, Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12). It accepts whatever `validate` does, and refuses what a shape alone shows."""
    made = msgspec.json.schema(Profile)
    for struct in _structs(inspect.type_info(Profile)):
        _add_names(made["$defs"][struct.cls.__name__], struct)
    made["$defs"]["CustomCredential"]["oneOf"] = [_written(key) for key in CREDENTIAL_SOURCES]
    return {"$schema": _DRAFT, "title": "Profile of nono-ebpf", **made}


def _add_names(definition: dict[str, Any], struct: inspect.StructType) -> None:
    """The other names of keys, one of which may stand, and of a required key one has to."""
    conditions: list[dict[str, Any]] = []
    for each in struct.fields:
        extra = each.type.extra if isinstance(each.type, inspect.Metadata) else None
        names: tuple[str, ...] = (extra or {}).get(ALIASES, ())
        if not names:
            continue
        for name in names:
            definition["properties"][name] = definition["properties"][each.encode_name] | {
                "description": f"Another name of {each.encode_name}."
            }
        spellings = (each.encode_name, *names)
        conditions += [{"not": {"required": list(pair)}} for pair in combinations(spellings, 2)]
        if each.required:
            definition["required"].remove(each.encode_name)
            conditions.append({"anyOf": [{"required": [name]} for name in spellings]})
    if conditions:
        definition["allOf"] = conditions


def _written(key: str) -> dict[str, Any]:
    """An object that has `key`, and not as null."""
    return {"required": [key], "properties": {key: {"not": {"type": "null"}}}}


def _structs(kind: inspect.Type) -> Iterator[inspect.StructType]:
    """Every struct that is used in `kind`, once."""
    found: dict[type, inspect.StructType] = {}
    pending: list[Any] = [kind]
    while pending:
        match pending.pop():
            case inspect.StructType() as struct if struct.cls not in found:
                found[struct.cls] = struct
                pending += [each.type for each in struct.fields]
            case inspect.Metadata(type=inner) | inspect.VarTupleType(item_type=inner):
                pending.append(inner)
            case inspect.DictType(value_type=inner):
                pending.append(inner)
            case inspect.UnionType(types=several):
                pending += several
    yield from found.values()
