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
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.glob import compile_globs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ANY_METHOD = "*"

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Slash, backslash, per cent and semicolon: escaped, they are data to some servers and syntax to others.
_AMBIGUOUS_ESCAPE = re.compile(r"%(2F|5C|25|3B)", re.IGNORECASE)
_PARAMETERS = re.compile(r";[^/]*")
# A server that is handed a decoded path takes what follows for a query or a fragment.
_END_OF_PATH = re.compile(r"[?#].*", re.DOTALL)
# Two bytes of UTF-8 for what has one (RFC 3629 §10): a dot or a slash to old decoders, text to nobody.
_OVERLONG = re.compile(r"%C[01]%[89AB]|%E0%[89]|%F0%8", re.IGNORECASE)
_ESCAPED_WILDCARD = re.compile(r"%(2A|3F|5B|5D|7B|7D)", re.IGNORECASE)
_PART_OF_SEGMENT = re.compile(r"[^/{,]\*\*|\*\*+[^/},]")
_MAX_READINGS = 32  # those of a path that somebody means are a handful
_NO_SEGMENT = frozenset(("", ".", ".."))
# RFC 3986 §3.3 pchar and the slash: everything else is written escaped.
_PATH_SAFE = "/!$&'()*+,;=:@-._~%"
_MAX_PATH_CHARACTERS = 4096  # each is looked at once for every reading
_DECODINGS = 2  # a server behind a server: each undoes one


@dataclass(frozen=True, slots=True)
class Request:
    """What a request asks for: its method as sent, and its origin-form target (RFC 9112 §3.2.1). `tls`: inside TLS."""

    method: str
    target: str
    tls: bool = False


@dataclass(frozen=True, slots=True)
class EndpointRule:
    """One method, upper case or `*`, and one path glob. `crosses`: a single `*` crosses slashes too, as in nono."""

    method: str
    path: str
    crosses: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def parse_endpoint_rule(method: str, path: str, source: str, *, crosses: bool = False) -> EndpointRule:
    """Raises ConfigError, whose `where` is `source`: no method, or a glob that cannot match or is not closed."""
    if not _TOKEN.fullmatch(method):
        raise ConfigError(source, f"{method!a} is not an HTTP method", hint='write one, such as "GET", or "*" for any')
    if not path.startswith(("/", "**")) and path != "*":
        raise ConfigError(source, f"{path!a} matches no path", hint="a path glob begins with /, as in /v1/**")
    if why := _mistaken(path):
        raise ConfigError(source, f"{path!a} is not a path glob: {why}")
    glob = _plain(path).rstrip("/") or "/"
    try:
        compile_globs(((glob, crosses),))
    except ValueError as error:
        raise ConfigError(source, f"{path!a} is not a path glob: {error}") from error
    return EndpointRule(method.upper(), glob, crosses)


def _mistaken(glob: str) -> str | None:
    """What would make it mean something else than it seems to."""
    if "#" in glob or _BROKEN_ESCAPE.search(glob):
        return "it has a fragment, or an escape that is cut off"
    if _ESCAPED_WILDCARD.search(glob):
        return "a wildcard is taken by the letter in brackets, as in [*], not when it is escaped"
    if _OVERLONG.search(glob) or any(0xDC80 <= ord(each) <= 0xDCFF for each in _plain(glob)):
        return "it has an escape that is not UTF-8"
    if any(segment in {".", ".."} for segment in _plain(glob).split("/")):
        return "requests are matched without . and .. in them"
    if "//" in glob:
        return "requests are matched without empty segments"
    if _PART_OF_SEGMENT.search(glob):
        return "** is whole segments: write /** behind a slash"
    return None


@dataclass(frozen=True, slots=True)
class Path:
    """A request's path: the canonical target to send, and every reading, without a trailing slash."""

    target: str
    readings: tuple[str, ...]


@lru_cache(maxsize=256)  # a request asks twice, and clients ask for the same again
def parse_path(target: str) -> Path | None:
    """Of an origin-form target; the query stays as it is. None: too long, or with an escape that no path needs."""
    path, mark, query = target.partition("?")
    if not path.startswith("/"):
        return Path(target, (path,))  # the `*` of OPTIONS
    if len(path) > _MAX_PATH_CHARACTERS or _BROKEN_ESCAPE.search(path) or _OVERLONG.search(path):
        return None
    plain = _plain(path)
    canonical = without_dots(plain)
    readings = _readings(canonical)
    if not readings or any(map(_CONTROL.search, readings)):
        return None
    slash = "/" if canonical != "/" and plain.rpartition("/")[2] in _NO_SEGMENT else ""
    sent = quote(canonical + slash, safe=_PATH_SAFE, errors="surrogateescape")
    return Path(sent + mark + query, readings)


def glob_of(target: str) -> str:
    """The glob that is about the path of a canonical target, and no other."""
    path = target.partition("?")[0]
    return _ESCAPED_WILDCARD.sub(lambda match: f"[{unquote(match[0])}]", path.replace("*", "%2A"))


def permits(rules: Iterable[EndpointRule], method: str, readings: Iterable[str]) -> bool:
    """Whether each reading has a rule that is about it and `method`, in any case."""
    methods = {ANY_METHOD, method.upper()}
    globs = compile_globs(tuple([(rule.path, rule.crosses) for rule in rules if rule.method in methods]))
    return all(map(globs.matches, readings))


def _plain(path: str) -> str:
    """Decoded once, but for what would change what the path is made of: that stays escaped, in upper case."""
    escaped = path.replace("\\", "%5C")  # RFC 3986 §2: no character of a URI
    kept = _AMBIGUOUS_ESCAPE.sub(lambda match: "%25" + match[1].upper(), escaped)
    return unquote(kept, errors="surrogateescape")


def _readings(text: str) -> tuple[str, ...]:
    """What servers make of `text`, in whatever order they do what they do. (): that is more than can be judged."""
    found: dict[str, None] = {}
    level = [text]
    for _ in range(_DECODINGS + 1):
        for each in level:  # which grows
            level += [made for made in dict.fromkeys(_made_of(each)) if made not in level]
            if len(level) > _MAX_READINGS:
                return ()
        found |= dict.fromkeys(map(without_dots, level))
        level = list(dict.fromkeys([unquote(each, errors="surrogateescape") for each in level]))
    return tuple(found)


def _made_of(text: str) -> Iterator[str]:
    """One step of a server: it resolves dots, takes backslashes for slashes, drops parameters, or ends at a query."""
    yield without_dots(text)
    if "\\" in text:
        yield text.replace("\\", "/")
    if ";" in text:
        yield _PARAMETERS.sub("", text)
    if "?" in text or "#" in text:
        yield _END_OF_PATH.sub("", text)


def without_dots(path: str) -> str:
    """Without empty segments and dots; `..` at the root stays there (RFC 3986 §5.2.4)."""
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in _NO_SEGMENT:
            segments.append(segment)
    return "/" + "/".join(segments)
