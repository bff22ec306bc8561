"""Groups of hosts by name, and nono's network profiles: data that is shipped, and how it is looked up.

A preset may name others. Must not know what a host rule means.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_NETWORK_POLICY = "network-policy.json"


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hosts that belong together, used as `@name` wherever a host may stand."""

    description: str
    allow_domain: tuple[str, ...]


class NetworkProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Presets that an agent needs together, named by `network_profile`."""

    description: str
    groups: tuple[str, ...]


class NetworkPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What nono's users know by name.

    `groups`: the presets that nono writes without `@`. `built_in_profiles`: the profiles inside nono itself, each with
    the network profile that has the hosts which it is for. `credentials` in the shape of `custom_credentials`.
    """

    network_profiles: dict[str, NetworkProfile]
    groups: tuple[str, ...]
    credentials: dict[str, msgspec.Raw]
    built_in_profiles: dict[str, str | None]


@cache
def presets() -> Mapping[str, Preset]:
    """Every preset by name, in alphabetical order, with the hosts of those it names."""
    files = [file for file in _directory().iterdir() if file.name.endswith(".json") and file.name != _NETWORK_POLICY]
    named = {file.name.removesuffix(".json"): file for file in files}
    read = {name: msgspec.json.decode(named[name].read_bytes(), type=Preset) for name in sorted(named)}
    return MappingProxyType({name: Preset(each.description, _hosts(each, read)) for name, each in read.items()})


@cache
def network_policy() -> NetworkPolicy:
    """What is shipped besides presets."""
    return msgspec.json.decode(_directory().joinpath(_NETWORK_POLICY).read_bytes(), type=NetworkPolicy)


def preset_name(text: str) -> str | None:
    """The name of the preset that `text` stands for where a host may stand, whether there is one or not."""
    if text.startswith("@"):
        return text[1:]
    return text if text in network_policy().groups else None


def find_preset(name: str, source: str) -> Preset:
    """Raises ConfigError, whose `where` is `source`: there is none."""
    known = presets()
    if name not in known:
        raise ConfigError(source, f"no preset is called @{name}", hint=nearest(name, known, "@"))
    return known[name]


def find_network_profile(name: str, source: str) -> NetworkProfile:
    """Raises ConfigError, whose `where` is `source`: there is none."""
    known = network_policy().network_profiles
    if name not in known:
        raise ConfigError(source, f"no network profile is called {name!a}", hint=nearest(name, known))
    return known[name]


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """What to write instead of `name`: the likeliest, or else any."""
    known = sorted(known)
    return likeliest(name, known, prefix) or f"known: {', '.join(prefix + each for each in known)}"


def likeliest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """What was meant by `name`, if one of `known` is much like it."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {prefix}{near[0]}?" if near else ""


def _directory() -> resources.abc.Traversable:
    return resources.files("nono_ebpf").joinpath("presets")


def _hosts(preset: Preset, named: Mapping[str, Preset]) -> tuple[str, ...]:
    def flat(preset: Preset) -> Iterator[str]:
        for text in preset.allow_domain:
            if text.startswith("@"):
                yield from flat(named[text[1:]])
            else:
                yield text

    return tuple(dict.fromkeys(flat(preset)))
