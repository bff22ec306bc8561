"""From what the operator wrote to a policy: profile files, options and presets.

Knows JSON and where each rule came from, so that every error and every decision can name its place. Must not
know how rules match.
"""

from __future__ import annotations

import difflib
import json
import re
from importlib import resources
from typing import TYPE_CHECKING

import msgspec

from nono_ebpf.config.schema import Network, Preset, Profile
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.rules import HostRules, Policy, Rule, parse_allow_rule, parse_deny_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_ALLOW_KEYS = ("allow_domain", "proxy_allow", "allow_proxy")
_KEYS = {"": Profile.__struct_fields__, "network": Network.__struct_fields__}
# msgspec tells the place of an error in its text only: "Expected `str`, got `int` - at `$.network.x[0]`".
# A key in front of it may look the same: the last one counts.
_PLACE = re.compile(r"(?P<problem>.*) - at `\$\.?(?P<place>[^`]*)`", re.DOTALL)
_UNKNOWN_KEY = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)


def load_profile(text: bytes, path: str) -> Profile:
    """The profile in `text`; `path` is only used to name it.

    Raises ConfigError: not JSON, a key twice, or a value of the wrong shape. `where` is the file and the path
    to the value, as in `agent.json: network.allow_domain[3]`.
    """
    document = _json(text, path)
    try:
        profile = msgspec.convert(document, Profile)
    except msgspec.ValidationError as error:
        raise _located(str(error), path) from error
    except UnicodeEncodeError as error:
        raise ConfigError(path, "a key has half of a surrogate pair", hint="write the character itself") from error
    _refuse_two_spellings(profile.network, path)
    return profile


def build_policy(profile: Profile | None, profile_path: str, allow: Sequence[str], deny: Sequence[str]) -> Policy:
    """The policy of a profile together with `--allow-domain` and `--deny-domain`; `@name` is a preset.

    Raises ConfigError: not a rule, or no such preset.
    """
    network = profile.network if profile else Network()
    allowed = [*_listed(network, profile_path, _ALLOW_KEYS), *((text, "--allow-domain") for text in allow)]
    denied = [*_listed(network, profile_path, ("deny_domain",)), *((text, "--deny-domain") for text in deny)]
    return Policy(_rules(allowed, parse_allow_rule), _rules(denied, parse_deny_rule))


def presets() -> dict[str, Preset]:
    """Every preset by name, in alphabetical order."""
    files = resources.files("nono_ebpf").joinpath("presets").iterdir()
    named = {file.name.removesuffix(".json"): file for file in files if file.name.endswith(".json")}
    return {name: msgspec.json.decode(named[name].read_bytes(), type=Preset) for name in sorted(named)}


class _Transfer(msgspec.Struct, frozen=True):
    allow: tuple[Rule, ...]
    deny: tuple[Rule, ...]


def dump_policy(policy: Policy) -> bytes:
    """`policy` for another process of ours; `restore_policy` reads it back."""
    return msgspec.json.encode(_Transfer(policy.allow.rules, policy.deny.rules))


def restore_policy(data: bytes) -> Policy:
    """The policy that `dump_policy` wrote. The rules are not parsed again: `data` has to be our own."""
    transfer = msgspec.json.decode(data, type=_Transfer)
    return Policy(HostRules(transfer.allow), HostRules(transfer.deny))


def _json(text: bytes, path: str) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                raise ConfigError(path, f"the key {key!a} is written twice")
            found[key] = value
        return found

    try:
        document: object = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ConfigError(path, f"not JSON: {error}") from error
    return document


def _located(message: str, path: str) -> ConfigError:
    match = _PLACE.fullmatch(message)
    problem, place = (match["problem"], match["place"]) if match else (message, "")
    if unknown := _UNKNOWN_KEY.fullmatch(problem):
        key = unknown["key"]
        where = f"{place}.{key}" if place else key
        return ConfigError(f"{path}: {where}", "no such key", hint=_nearest(key, _KEYS.get(place, ())))
    return ConfigError(f"{path}: {place}" if place else path, problem.replace("`", ""))


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {prefix}{near[0]}? " if near else ""
    return f"{meant}known: {', '.join(prefix + each for each in known)}"


def _refuse_two_spellings(network: Network, path: str) -> None:
    """Two names for one list: nobody can say whether the second adds to the first or replaces it."""
    used = [key for key in _ALLOW_KEYS if getattr(network, key)]
    if len(used) > 1:
        raise ConfigError(f"{path}: network.{used[1]}", f"the same as {used[0]}", hint="write one of them")


def _listed(network: Network, path: str, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    for key in keys:
        for index, text in enumerate(getattr(network, key)):
            yield text, f"{path}: network.{key}[{index}]"


def _rules(written: Iterable[tuple[str, str]], parse: Callable[[str, str], Rule]) -> HostRules:
    rules: list[Rule] = []
    for text, source in written:
        if text.startswith("@"):
            rules.extend(parse(host, text) for host in _preset(text[1:], source).allow_domain)
        else:
            rules.append(parse(text, source))
    return HostRules(rules)


def _preset(name: str, source: str) -> Preset:
    known = presets()
    if name not in known:
        raise ConfigError(source, f"no preset is called @{name}", hint=_nearest(name, known, "@"))
    return known[name]
