"""Kinds of values in a profile: what a text or number has to be, wherever it stands.

Each is a type for `nono_ebpf.config.schema` with a description for people, a pattern for editors where one can say it,
and the check that decides. A check takes the value and where it stands, and raises ConfigError.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from msgspec import Meta

from nono_ebpf.config.no_proxy import parse_entry
from nono_ebpf.config.presets import find_network_profile, find_preset, network_policy, preset_name
from nono_ebpf.config.references import check_reference, check_variable
from nono_ebpf.config.upstreams import parse_origin, parse_upstream
from nono_ebpf.credentials.references import parse_readable
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.endpoints import parse_endpoint_rule
from nono_ebpf.policy.rules import parse_allow_rule, parse_deny_rule
from nono_ebpf.policy.upstream_proxy import parse_bypass, parse_upstream_proxy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Check = Callable[[Any, str], object]

LIMIT = "limit"  # of an annotation
# A segment of a path, which no server resolves.
SERVICE_NAME = r"^(?!\.\.?$)[A-Za-z0-9_.-]+$"
_TOKEN = r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$"  # noqa: S105  # RFC 9110 §5.6.2
# What says where a profile is, and what may be its name.
_PROFILE = r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$|/|\.jsonc?$"
# An asterisk stands in front, alone or before a dot.
_HOST_PATTERN = r"^([^*]|\*$|\*[.:])[^*]*$"
_HOSTS = (
    "A host: NAME, *.NAME (any depth below it, not itself), an address, * for every host, each with :PORT for that "
    "port alone; or @NAME for a preset. nono's own groups are also known without the @."
)
_DURATION = "^[1-9][0-9]{0,8}[smhd]?$"
_UNITS: Mapping[str, int] = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DAYS_MAX = 365  # nono's, of --proxy-ca-validity
# Of a profile's name, nono takes letters, digits and hyphens.
_PROFILE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")
# Hop-by-hop, what frames a message, and what we write ourselves: no credential stands in these.
_FRAMING = frozenset(
    (
        *("host", "content-length", "transfer-encoding", "connection", "proxy-authorization", "proxy-authenticate"),
        *("upgrade", "te", "trailer", "keep-alive", "proxy-connection", "expect", "accept-encoding", "x-nono-token"),
    )
)


def _one(_value: object) -> int:
    return 1


class Limit(NamedTuple):
    """How much there may be of a kind in a profile and its bases: `weight` of each value, `most` of them together.

    Ours, and far beyond any that somebody wrote: the time that some take grows with the square of their number.
    """

    most: int
    of: str
    weight: Callable[[Any], int] = _one

    def __str__(self) -> str:
        return f"a profile and its bases have at most {self.most} {self.of}"


def _spelled_out(path: str) -> int:
    """At least as many characters as there are in what a glob stands for, every choice written out."""
    choices = prod([part.count(",") + 1 for part in path.split("{")[1:]])
    return len(path) * choices << min(path.count("**"), 16)


def is_profile_name(text: str) -> bool:
    """Whether `text` may be the name of a profile, rather than a path of one."""
    return bool(_PROFILE_NAME.fullmatch(text))


def is_profile_path(text: str) -> bool:
    """Whether `text` says where a profile is."""
    return ("/" in text or text.endswith((".json", ".jsonc"))) and "\0" not in text


def check_profile(text: str, source: str) -> None:
    """Raises ConfigError: neither a name nor a path of a profile."""
    if not (is_profile_name(text) or is_profile_path(text)):
        hint = "write the name of a profile (letters, digits and -), or the path of a .json file"
        raise ConfigError(source, f"{text[:300]!a} names no profile", hint=hint)


def check_allowed(text: str, source: str) -> None:
    """Raises ConfigError: neither an allow rule nor a preset."""
    if (name := preset_name(text)) is not None:
        find_preset(name, source)
    elif "://" in text:
        hint = 'write the host alone, or {"domain": HOST, "endpoints": [{"method": "*", "path": PATH}]}'
        raise ConfigError(source, f"{text[:300]!a} is a URL, not a host", hint=hint)
    else:
        parse_allow_rule(text, source)


def check_denied(text: str, source: str) -> None:
    """Raises ConfigError: neither a deny rule nor a preset."""
    if (name := preset_name(text)) is not None:
        find_preset(name, source)
    else:
        parse_deny_rule(text, source)


def _check_method(text: str, source: str) -> None:
    parse_endpoint_rule(text, "/", source)


def _check_path(text: str, source: str) -> None:
    parse_endpoint_rule("*", text, source)


def parse_duration(text: str, source: str) -> int:
    """Seconds. Raises ConfigError, whose `where` is `source`."""
    if not re.fullmatch(_DURATION, text):
        raise ConfigError(source, f"{text[:300]!a} is no duration", hint="as in 30s, 15m, 24h or 1d")
    seconds = int(text.rstrip("smhd")) * _UNITS.get(text[-1], 1)
    if seconds > DAYS_MAX * _UNITS["d"]:
        raise ConfigError(source, f"{text} is too long", hint=f"write {DAYS_MAX}d or less")
    return seconds


def _check_range(ports: list[int], source: str) -> None:
    first, last = ports
    if first > last:
        raise ConfigError(source, f"{first} is above {last}", hint=f"write [{last}, {first}]")


def _check_header(text: str, source: str) -> None:
    _check_token(text, source)
    # To servers that make variables of fields, `-` and `_` are one (RFC 3875 §4.1.18).
    if text.lower().replace("_", "-") in _FRAMING:
        raise ConfigError(source, f"{text!a} belongs to the connection, not to a credential")


def _matching(pattern: str, problem: str, hint: str) -> Check:
    compiled = re.compile(pattern.removeprefix("^").removesuffix("$"))

    def check(text: str, source: str) -> None:
        if not compiled.fullmatch(text):
            raise ConfigError(source, f"{text[:300]!a} {problem}", hint=hint)

    return check


def _kind(
    title: str,
    description: str,
    check: Check,
    *examples: str,
    pattern: str = "",
    names: Sequence[str] = (),
    limit: Limit | None = None,
) -> Meta:
    more: dict[str, Any] = {"pattern": pattern} if pattern else {}
    if names:
        more["enum"] = list(names)
    return Meta(
        title=title,
        description=description,
        examples=list(examples) or None,
        extra_json_schema=more or None,
        extra={"check": check} | ({LIMIT: limit} if limit else {}),
    )


def _pattern(title: str, description: str, pattern: str, problem: str, hint: str, *examples: str) -> Meta:
    return _kind(title, description, _matching(pattern, problem, hint), *examples, pattern=pattern)


_check_token = _matching(_TOKEN, "is no name of a header field", "it has letters, digits and !#$%&'*+-.^_`|~ only")

AllowedHost = Annotated[
    str,
    _kind(
        "Allowed host",
        _HOSTS,
        check_allowed,
        *("api.example.com", "*.example.com", "@github"),
        pattern=_HOST_PATTERN,
        limit=Limit(5000, "hosts that are allowed"),
    ),
]
DeniedHost = Annotated[
    str,
    _kind("Denied host", _HOSTS, check_denied, *("gist.github.com", "*.ads.example.com"), pattern=_HOST_PATTERN),
]
Method = Annotated[
    str,
    _kind("HTTP method", "In any case; * is every method.", _check_method, "GET", "*", pattern=_TOKEN),
]
PathGlob = Annotated[
    str,
    _kind(
        "Path",
        "* is any part of one segment, ** any number of segments, ? one character, [a-z] and {a,b} are choices.",
        _check_path,
        *("/v1/**", "/repos/*/issues"),
        pattern="^[/*]",
        limit=Limit(100_000, "characters of paths, with every choice spelled out", _spelled_out),
    ),
]
Port = Annotated[
    int, Meta(title="Port", description="A TCP port.", ge=1, le=65535, extra={LIMIT: Limit(2000, "ports")})
]
PortRange = Annotated[
    tuple[Port, Port],
    Meta(
        title="Ports",
        description="The first and the last of a range of TCP ports.",
        examples=[[3000, 3010]],
        extra={"check": _check_range} | {LIMIT: Limit(500, "ranges of ports")},
    ),
]
NoProxyEntry = Annotated[
    str,
    _kind(
        "NO_PROXY entry",
        "A name of one label, an address, or .domain (*.domain) for the names below it.",
        parse_entry,
        *("redis", ".svc.cluster.local"),
        limit=Limit(200, "entries of no_proxy"),
    ),
]
UpstreamProxyAddress = Annotated[
    str,
    _kind(
        "Upstream proxy",
        "HOST:PORT, http://HOST:PORT, or https://HOST:PORT for TLS to the proxy. No credentials: see upstream_auth.",
        parse_upstream_proxy,
        "proxy.corp.example:3128",
    ),
]
BypassEntry = Annotated[
    str,
    _kind(
        "Bypass",
        "A host, *.domain, an address or a network.",
        parse_bypass,
        *("*.corp.example", "10.0.0.0/8"),
        limit=Limit(1000, "entries of upstream_bypass"),
    ),
]
ReadableReference = Annotated[
    str,
    _kind(
        "Reference to a secret",
        "env://NAME or file:///path, never the secret itself.",
        parse_readable,
        *("env://PROXY_AUTH", "file:///run/secrets/proxy"),
        pattern="^(env|file)://",
    ),
]
Reference = Annotated[
    str,
    _kind(
        "Reference to a secret",
        "env://NAME, file:///path, op://vault/item/field, bw://item/field, keyring://service/account, "
        "systemd-creds://NAME, credentials-directory://NAME, cmd://NAME or the name of an account in the keyring; "
        "never the secret itself.",
        check_reference,
        *("env://GITHUB_TOKEN", "file:///run/secrets/github", "github_token"),
    ),
]
Variable = Annotated[
    str,
    _kind("Environment variable", "Its name.", check_variable, "GITHUB_TOKEN", pattern="^[A-Za-z0-9_]+$"),
]
Header = Annotated[str, _kind("Header field", "Its name.", _check_header, "Authorization", pattern=_TOKEN)]
Format = Annotated[
    str,
    _pattern(
        "Template",
        "{} stands for the secret.",
        r"^(?:(?!\{\})[ -~])*\{\}(?:(?!\{\})[ -~])*$",
        "does not have {} once, on one line of ASCII",
        "as in Bearer {}",
        *("Bearer {}", "token {}"),
    ),
]
PathPattern = Annotated[
    str,
    _pattern(
        "Path with a secret",
        "{} stands for the secret.",
        r"""^[!"$->@-z|~]*\{\}[!"$->@-z|~]*$""",
        "does not have {} once, in a path without a query",
        "as in /bot{}/",
        "/bot{}/",
    ),
]
QueryParameter = Annotated[
    str,
    _pattern(
        "Query parameter",
        "Its name.",
        "^[A-Za-z0-9_-]+$",
        "is no name of a query parameter",
        "it has letters, digits, _ and - only",
        "api_key",
    ),
]
Duration = Annotated[
    str,
    _kind(
        "Duration",
        "A number and s, m, h or d; without one, seconds. At most 365d.",
        parse_duration,
        "24h",
        pattern=_DURATION,
    ),
]
ServiceUrl = Annotated[
    str,
    _kind(
        "Service",
        "https://HOST[:PORT][/PATH], or http:// for a service on this machine's loopback.",
        parse_upstream,
        "https://api.example.com/v1",
        pattern="^[Hh][Tt][Tt][Pp][Ss]?://[^?#]+$",
    ),
]
Origin = Annotated[
    str,
    _kind(
        "Origin",
        "https://HOST[:PORT]",
        parse_origin,
        "https://api.example.com",
        pattern="^[Hh][Tt][Tt][Pp][Ss]://[^/?#]+/?$",
        limit=Limit(500, "origins"),
    ),
]
UpgradePath = Annotated[
    str,
    _pattern(
        "Path", "Absolute, without a query.", "^/[^?#]*$", "is no path", "write /PATH without a query", "/v1/realtime"
    ),
]
ServiceName = Annotated[
    str,
    _pattern(
        "Credential",
        f"One of custom_credentials, or of {', '.join(network_policy().credentials)}.",
        SERVICE_NAME,
        "is no name of a credential",
        "it has letters, digits, _, - and . only",
        "github",
    ),
]
NetworkProfileName = Annotated[
    str,
    _kind(
        "Network profile",
        "Presets that belong together.",
        find_network_profile,
        names=sorted(network_policy().network_profiles),
    ),
]
ProfileName = Annotated[
    str,
    _kind(
        "Base profile",
        "NAME (NAME.json beside this file, else in ~/.config/nono/profiles), or the path of a .json file.",
        check_profile,
        *("base", "./shared/base.json"),
        pattern=_PROFILE,
    ),
]
FilePath = Annotated[
    str,
    _pattern(
        "File", "Its path; ~/ is the account's home.", r"^[^\0]+$", "is no path", "write /path or ~/path", "~/ca.pem"
    ),
]
Word = Annotated[str, Meta(description="Not empty.", min_length=1)]
