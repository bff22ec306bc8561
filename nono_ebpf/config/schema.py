"""The shape of a profile and of a preset, and nothing about what they mean.

Field names are nono's. Every field may be left out; an unknown one is an error.
"""

from __future__ import annotations

import msgspec


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything an operator writes as JSON."""


class Network(Config, frozen=True):
    """`network` of a profile. `proxy_allow` and `allow_proxy` are nono's other names for `allow_domain`."""

    allow_domain: tuple[str, ...] = ()
    proxy_allow: tuple[str, ...] = ()
    allow_proxy: tuple[str, ...] = ()
    deny_domain: tuple[str, ...] = ()


class Profile(Config, frozen=True):
    """A profile file."""

    network: Network = Network()


class Preset(Config, frozen=True):
    """Hosts that belong together, used as `@name` wherever a host may stand."""

    description: str
    allow_domain: tuple[str, ...]
