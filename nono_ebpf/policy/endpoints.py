"""Endpoint rules: which requests a host may be sent, by method and path.

A path has one canonical form, which is what is sent, and one or more readings: what some server may take it for
(an escaped slash for a slash, `..;x` for `..`, a twice escaped dot for a dot). A request is permitted when every
reading is, so it does not matter which of them the server believes. Pure; must not know hosts.

Sources: RFC 3986 §2.4 (when to decode), §5.2.4 (dot segments), §6.2.2 (normal form), §3.3 (parameters of a segment).
Globs are `nono_ebpf.policy.glob`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.glob import compile_glob

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ANY_METHOD = "*"

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Slash, backslash, per cent and semicolon: escaped, they are data to some servers and syntax to others.
_AMBIGUOUS_ESCAPE = re.compile(r"%(2F|5C|25|3B)", re.IGNORECASE)
_PARAMETERS = re.compile(r";[^/]*")
_NO_SEGMENT = frozenset(("", ".", ".."))
# RFC 3986 §3.3 pchar and the slash: everything else is written escaped.
_PATH_SAFE = "/!$&'()*+,;=:@-._~%"
_MAX_PATH_CHARACTERS = 8192  # each is looked at once for every reading and rule
_DECODINGS = 2  # a server behind a server: each undoes one


@dataclass(frozen=True, slots=True)
class Request:
    """What a request asks for: its method as sent, and its origin-form target (RFC 9112 §3.2.1)."""

    method: str
    target: str


@dataclass(frozen=True, slots=True)
class EndpointRule:
    """One method, upper case or `*`, and one path glob. `crosses`: a single `*` crosses slashes too, as in nono."""

    method: str
    path: str
    crosses: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def matches(self, method: str, reading: str) -> bool:
        """Whether it is about this method (in any case) and this reading of a path."""
        glob = compile_glob(self.path, crosses=self.crosses)
        return self.method in {ANY_METHOD, method.upper()} and glob.matches(reading)


def parse_endpoint_rule(method: str, path: str, source: str, *, crosses: bool = False) -> EndpointRule:
    """Raises ConfigError, whose `where` is `source`: no method, or a glob that cannot match or is not closed."""
    if not _TOKEN.fullmatch(method):
        raise ConfigError(source, f"{method!a} is not an HTTP method", hint='write one, such as "GET", or "*" for any')
    if not path.startswith(("/", "**")) and path != "*":
        raise ConfigError(source, f"{path!a} matches no path", hint="a path glob begins with /, as in /v1/**")
    if "#" in path or _BROKEN_ESCAPE.search(path):
        raise ConfigError(source, f"{path!a} is not a path glob: it has a fragment or an escape that is cut off")
    glob = _plain(without_dots(path) if path.startswith("/") else path)
    try:
        compile_glob(glob, crosses=crosses)
    except ValueError as error:
        raise ConfigError(source, f"{path!a} is not a path glob: {error}") from error
    return EndpointRule(method.upper(), glob, crosses)


@dataclass(frozen=True, slots=True)
class Path:
    """A request's path: the canonical target to send, and every reading, without a trailing slash."""

    target: str
    readings: tuple[str, ...]


def parse_path(target: str) -> Path | None:
    """Of an origin-form target; the query stays as it is. None: too long, or with an escape that no path needs."""
    path, mark, query = target.partition("?")
    if not path.startswith("/"):
        return Path(target, (path,))  # the `*` of OPTIONS
    if len(path) > _MAX_PATH_CHARACTERS or _BROKEN_ESCAPE.search(path):
        return None
    plain = _plain(path)
    canonical = without_dots(plain)
    readings = tuple(dict.fromkeys(_readings(canonical)))
    if any(map(_CONTROL.search, readings)):
        return None
    slash = "/" if canonical != "/" and plain.rpartition("/")[2] in _NO_SEGMENT else ""
    sent = quote(canonical + slash, safe=_PATH_SAFE, errors="surrogateescape")
    return Path(sent + mark + query, readings)


def permits(rules: Iterable[EndpointRule], method: str, readings: Iterable[str]) -> bool:
    """Whether each reading has a rule that is about it."""
    rules = tuple(rules)
    return all(any(rule.matches(method, reading) for rule in rules) for reading in readings)


def _plain(path: str) -> str:
    """Decoded once, but for what would change what the path is made of: that stays escaped, in upper case."""
    escaped = path.replace("\\", "%5C")  # RFC 3986 §2: no character of a URI
    kept = _AMBIGUOUS_ESCAPE.sub(lambda match: "%25" + match[1].upper(), escaped)
    return unquote(kept, errors="surrogateescape")


def _readings(text: str) -> Iterator[str]:
    """What servers make of `text`: they decode, take backslashes for slashes, or drop the parameters of segments."""
    for _ in range(_DECODINGS + 1):
        for spelled in (text, text.replace("\\", "/")):
            yield without_dots(spelled)
            yield without_dots(_PARAMETERS.sub("", spelled))
        text = unquote(text, errors="surrogateescape")


def without_dots(path: str) -> str:
    """Without empty segments and dots; `..` at the root stays there (RFC 3986 §5.2.4)."""
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in _NO_SEGMENT:
            segments.append(segment)
    return "/" + "/".join(segments)
