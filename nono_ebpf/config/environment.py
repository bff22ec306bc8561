"""The upstream proxy that the environment names, for `--upstream-proxy env`.

HTTPS_PROXY, then https_proxy, read once: `[http[s]://]HOST:PORT[/]`, where https is TLS to the proxy itself, as in the
option. An empty variable counts as one. NO_PROXY, then no_proxy: each entry is for the host and for every name below
it, `*` for all. Nothing is left out that cannot be read: what should go through a proxy never goes direct by mistake.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nono_ebpf.policy.upstream_proxy import Bypass, UpstreamProxy, joined, parse_bypass, parse_upstream_proxy

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROXY = ("HTTPS_PROXY", "https_proxy")


def from_environment(environment: Mapping[str, str]) -> UpstreamProxy | None:
    """None when there is none. Raises ConfigError, whose `where` is the variable: it cannot be read."""
    name, text = _first(environment, *_PROXY)
    if not text.strip():
        return None
    proxy = parse_upstream_proxy(text.strip(), name)
    return replace(proxy, bypass=_bypass(*_first(environment, "NO_PROXY", "no_proxy")))


def why_none(environment: Mapping[str, str]) -> str:
    """A clause, where `from_environment` finds no proxy."""
    name, hidden = _PROXY
    if environment.get(hidden, "").strip():
        return f"{name} is empty, and hides {hidden}"
    return f"{name} is not set"


def _first(environment: Mapping[str, str], *names: str) -> tuple[str, str]:
    return next(((name, environment[name]) for name in names if name in environment), (names[0], ""))


def _bypass(name: str, text: str) -> Bypass:
    entries = [each.strip().lstrip(".") for each in text.split(",")]
    return joined(_with_names_below(parse_bypass(each, name)) for each in entries if each)


def _with_names_below(entry: Bypass) -> Bypass:
    """A suffix at a label's boundary, where the entry is a host. An address has no names below it."""
    return replace(entry, below=entry.below | entry.hosts)
