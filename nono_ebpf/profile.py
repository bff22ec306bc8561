"""`nono-ebpf profile`: whether profiles are sound, what they add up to, and the schema for editors."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nono_ebpf.config import load, shown
from nono_ebpf.config.files import read_profile
from nono_ebpf.config.merge import Domain, Merged, Sourced
from nono_ebpf.config.options import Overrides
from nono_ebpf.config.published import json_schema
from nono_ebpf.credentials.references import parse_reference, redacted
from nono_ebpf.errors import ConfigError, printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from nono_ebpf.config.load import Findings
    from nono_ebpf.config.routes import Route

_SOUND, _UNSOUND = 0, 2
# Keys that stand beside `network`.
_BESIDE = ("credential_capture", "credential_providers", "credential_routes")
_REFERENCE = re.compile(r"[a-z-]+://")

# A place in the merged profile, what stands there, and where that was written.
Row = tuple[str, object, str]


def main(options: argparse.Namespace) -> int:
    """0, or 2 when something is wrong with a profile."""
    match options.action:
        case "check":
            return _check(options.files, as_json=options.json)
        case "show":
            return _show(options.file, options.extends, as_json=options.json)
        case _:
            _write_json(json_schema())
            return _SOUND


def rows(merged: Merged) -> Iterator[Row]:
    """Every value of a merged profile. A secret that somebody wrote into one is not shown."""
    for each in fields(merged):
        key = each.name if each.name in _BESIDE else f"network.{each.name}"
        value = getattr(merged, each.name)
        if isinstance(value, tuple):
            for index, item in enumerate(value):
                yield from _entry(f"{key}[{index}]", item)
        elif isinstance(value, Sourced):
            yield from _sourced(key, value)
        elif value:
            for name, item in value.items():
                yield from _sourced(_below(key, name), item)


def services(routes: Sequence[Route]) -> Iterator[Row]:
    """What the credentials in use come to."""
    for index, route in enumerate(routes):
        for key, value in shown.facts(route).items():
            yield f"services[{index}].{key}", value, route.source


def _entry(place: str, item: Domain | Sourced[Any]) -> Iterator[Row]:
    if isinstance(item, Sourced):
        yield from _sourced(place, item)
    elif not (item.endpoints or item.intercept):
        yield place, item.host, item.source
    else:
        yield f"{place}.domain", item.host, item.source
        if item.intercept:
            yield f"{place}.intercept", "always", item.source
        for index, endpoint in enumerate(item.endpoints):
            yield f"{place}.endpoints[{index}]", msgspec.to_builtins(endpoint.value), endpoint.source


def _sourced(place: str, value: Sourced[Any]) -> Iterator[Row]:
    if isinstance(value.value, tuple) and value.value and isinstance(value.value[0], Sourced):
        for index, item in enumerate(value.value):
            yield from _sourced(f"{place}[{index}]", item)
    else:
        yield from _flat(place, msgspec.to_builtins(value.value), value.source)


def _flat(place: str, value: object, source: str) -> Iterator[Row]:
    if not isinstance(value, dict):
        yield place, _shown(place, value), source
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from _flat(_below(place, key), item, _below(source, key))


def _shown(place: str, value: object) -> object:
    """Of a reference not the part that says what is there. An OAuth client's secret and further parameters are the two
    places where a secret itself may stand.
    """
    if place.endswith(".credential_key") and isinstance(value, str):
        return redacted(parse_reference(value, place))
    secret = place.endswith(".client_secret") or ".extra_params" in place
    return "(not shown)" if secret and not (isinstance(value, str) and _REFERENCE.match(value)) else value


def _below(place: str, key: str) -> str:
    return f"{place}.{key}" if re.fullmatch(r"[\w$-]+", key) else f"{place}[{json.dumps(key)}]"


def _check(files: Sequence[str], *, as_json: bool) -> int:
    found = {file: _look_into(file) for file in files}
    if as_json:
        _write_json([_facts(file, each) for file, each in found.items()])
    else:
        sys.stdout.writelines(f"{line}\n" for file, each in found.items() for line in _lines(file, each))
    return _UNSOUND if any(each.problems for each in found.values()) else _SOUND


def _look_into(file: str, extends: Sequence[str] = ()) -> Findings:
    options = Overrides(profile=file, extends=tuple(extends))
    found = load.examine(options, read_profile, home=str(Path.home()), environment={})
    return replace(found, problems=tuple(_of_argument(each, file) for each in found.problems))


def _of_argument(error: ConfigError, file: str) -> ConfigError:
    """Here the profile is no option's value."""
    if error.where != "--profile":
        return error
    return ConfigError(file, error.problem.removeprefix(f"{file}: "), hint=error.hint)


def _lines(file: str, found: Findings) -> Iterator[str]:
    for problem in found.problems:
        yield str(problem)
    if found.problems:
        yield f"{printable(file)}: {len(found.problems)} mistake{'s' * (len(found.problems) > 1)}"
        return
    yield f"{printable(file)}: ok"
    for route in found.settings.routes:
        yield f"{printable(file)}: service {printable(shown.line(route))}"
    for path, keys in found.ignored.items():
        if keys:
            yield f"{printable(path)}: not about the network: ignored: {', '.join(keys)}"
    for warning in found.settings.warnings:
        yield f"warning: {printable(warning)}"


def _facts(file: str, found: Findings) -> dict[str, Any]:
    return {
        "file": file,
        "ok": not found.problems,
        "errors": [_problem(each) for each in found.problems],
        "warnings": list(found.settings.warnings),
        "services": [shown.facts(route) for route in found.settings.routes],
        "ignored": {path: keys for path, keys in found.ignored.items() if keys},
    }


def _problem(error: ConfigError) -> dict[str, str]:
    facts = {"where": error.where, "problem": error.problem}
    return facts | {"hint": error.hint} if error.hint else facts


def _show(file: str, extends: Sequence[str], *, as_json: bool) -> int:
    found = _look_into(file, extends)
    if found.problems:
        sys.stderr.writelines(f"{line}\n" for line in _lines(file, found))
        return _UNSOUND
    table = [*rows(found.merged), *services(found.settings.routes)]
    if as_json:
        _write_json([{"path": place, "value": value, "source": source} for place, value, source in table])
    else:
        sys.stdout.writelines(f"{line}\n" for line in _table(table, aligned=sys.stdout.isatty()))
    return _SOUND


def _table(table: Sequence[Row], *, aligned: bool) -> Iterator[str]:
    """Columns for people; tabs between them for programs."""
    cells = [(place, json.dumps(value), printable(source)) for place, value, source in table]
    if not aligned:
        yield from ("\t".join(each) for each in cells)
        return
    widths = [max((len(each[column]) for each in cells), default=0) for column in (0, 1)]
    for place, value, source in cells:
        yield f"{place:<{widths[0]}}  {value:<{widths[1]}}  {source}"


def _write_json(value: Sequence[Any] | Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
