"""From what the operator wrote, in profiles and in options, to what a sandbox is to do.

Every mistake is found here, and every value knows where it came from. Must not know how rules match.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nono_ebpf.config.compile import Compiler
from nono_ebpf.config.environment import from_environment, why_none
from nono_ebpf.config.extends import Library
from nono_ebpf.config.options import FROM_ENVIRONMENT, Overrides, merged_with, service_endpoints
from nono_ebpf.config.routes import PathRules
from nono_ebpf.config.settings import Settings
from nono_ebpf.config.validate import ignored_keys
from nono_ebpf.config.warn import warnings
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.rules import HostRules, Policy, Rule, parse_deny_rule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nono_ebpf.config.extends import Read
    from nono_ebpf.config.merge import Merged
    from nono_ebpf.policy.upstream_proxy import UpstreamProxy


@dataclass(frozen=True, slots=True)
class Findings:
    """All there is to say: `settings` of what is sound, what is not, and by file the keys that mean nothing here."""

    settings: Settings
    merged: Merged
    problems: tuple[ConfigError, ...]
    ignored: Mapping[str, list[str]] = field(default_factory=dict)


def settings(overrides: Overrides, read: Read, *, home: str, environment: Mapping[str, str]) -> Settings:
    """What `overrides` and the profiles that they name say. `read` is given paths and has the rights of the account.

    `home` is the account's, `environment` that of whoever started us. Raises ConfigError: the first mistake, and how
    many more there are.
    """
    found = examine(overrides, read, home=home, environment=environment)
    if found.problems:
        raise _first(found.problems, overrides.profile)
    return found.settings


def examine(overrides: Overrides, read: Read, *, home: str, environment: Mapping[str, str]) -> Findings:
    """The same, with every mistake in place of the first. Never raises ConfigError."""
    library = Library(read, home)
    problems = library.problems
    merged = merged_with(library.resolve(overrides.profile, overrides.extends), overrides, problems)
    around = PathRules(overrides.nono_globs, home)
    compiler = Compiler(merged, around, service_endpoints(overrides, problems), problems)
    upstream_proxy = _upstream_proxy(compiler, overrides, environment, library.warnings)
    found = _settings(compiler, overrides, upstream_proxy)
    if overrides.block_net:
        found = _blocked(found)
    elif found.upstream_auth is not None and upstream_proxy is None and not problems:
        problems.append(_useless(found.upstream_auth.source))
    said = (*library.warnings, *warnings(merged, library.documents.values(), found))
    ignored = {path: ignored_keys(document.profile) for path, document in library.documents.items()}
    return Findings(replace(found, warnings=tuple(dict.fromkeys(said))), merged, tuple(problems), ignored)


def _settings(compiler: Compiler, overrides: Overrides, upstream_proxy: UpstreamProxy | None) -> Settings:
    merged, routes = compiler.merged, compiler.routes()
    opened = list(compiler.opened())
    allow, managed = list(compiler.allowed()), [route.service.host for route in routes]
    everything = [_EVERYTHING] if overrides.allow_net else []
    return Settings(
        policy=Policy(
            HostRules([*allow, *opened, *everything]),
            HostRules(compiler.denied()),
            HostRules(managed),
            upstream_proxy,
            {route.name: route.service for route in routes},
        ),
        no_proxy=compiler.no_proxy([*allow, *opened], managed),
        upstream_auth=merged.upstream_auth,
        open_ports=compiler.open_ports(),
        listen_ports=compiler.listen_ports(),
        connect_ports=compiler.connect_ports(),
        allow_http2=merged.allow_http2 is not None,
        tls_intercept=compiler.interception(overrides, allow, routes),
        routes=routes,
        shared_secrets=overrides.shared_secrets,
    )


def _blocked(found: Settings) -> Settings:
    """Nothing at all, whatever the profiles say."""
    nothing = Policy(HostRules(), HostRules([parse_deny_rule("*", "--block-net")]))
    return Settings(policy=nothing, no_proxy=found.no_proxy, listen_ports=found.listen_ports)


def _upstream_proxy(
    compiler: Compiler, overrides: Overrides, environment: Mapping[str, str], said: list[str]
) -> UpstreamProxy | None:
    """That of the environment where the option says so, or else the profile's: what should go through one does."""
    proxy = compiler.upstream_proxy()
    if overrides.upstream_proxy != FROM_ENVIRONMENT:
        return proxy
    try:
        named = from_environment(environment)
    except ConfigError as error:
        compiler.problems.append(error)
        return proxy
    if named is not None:
        return compiler.with_bypass(named)
    road = "directly" if proxy is None else f"through {proxy}"
    said.append(f"--upstream-proxy env: {why_none(environment)}, so hosts are reached {road}")
    return proxy


def _useless(source: str) -> ConfigError:
    """Told only when all else is sound: a proxy that is mistaken is none either."""
    hint = "name one with upstream_proxy or --upstream-proxy"
    return ConfigError(source, "there is no upstream proxy to use it for", hint=hint)


def _first(problems: Sequence[ConfigError], profile: str | None) -> ConfigError:
    first, more = problems[0], len(problems) - 1
    if not more:
        return first
    rest = f"{more} more"
    if profile is not None and not first.where.startswith("--"):
        rest += f": run `nono-ebpf profile check {shlex.quote(profile)}`"
    return ConfigError(first.where, first.problem, hint=f"{first.hint}; {rest}" if first.hint else rest)


# More than a rule can be written for: every port.
_EVERYTHING = Rule("*", None, "--allow-net", "--allow-net")
