"""NO_PROXY: the hosts that clients are told not to ask the proxy for.

A courtesy, like the proxy variables themselves: what goes past the proxy is redirected to it and judged all the
same. No two clients read the variable alike. `x` is that host to all, to most also every name that ends in `.x`,
to some every one that ends in `x`; `.x` may include `x` itself; `*.x`, ports and networks are understood by few.
So what is written has one meaning, and nothing is written that any of these readings would stretch over a host
whose requests are judged one by one. Pure; hosts and patterns are in the form of `nono_ebpf.policy.rules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nono_ebpf.authority import canonical_host, host_address, split_port
from nono_ebpf.errors import ConfigError, InvalidAuthority
from nono_ebpf.policy.address import ALWAYS_DENIED_NAMES, always_denied

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_EXPECTED: Final = "write a name of one label, an address, or .domain for the names below it"
_MISTAKES: Final = (
    ("://", "it is a URL"),
    (",", "it is a list: every host is an entry of its own"),
    ("@", "it has credentials in it"),
    ("/", "it has a path, or is a network, which few clients understand"),
    ("?", "it has a query"),
    ("#", "it has a fragment"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: the canonical `host`, or with `below` the names below it. `source`: where it was written.

    `prefix` is how the latter was spelled, `*.` or `.`.
    """

    host: str
    prefix: str = ""
    source: str = ""

    @property
    def below(self) -> bool:
        """Whether it is for the names below `host`, and not for itself."""
        return bool(self.prefix)

    @property
    def text(self) -> str:
        """The spelling that every client understands."""
        return f".{self.host}" if self.below else self.host

    def __str__(self) -> str:
        return f"{self.prefix}{self.host}"


@dataclass(frozen=True, slots=True)
class NoProxy:
    """The values of NO_PROXY and NONO_NO_PROXY: the same entries, `*.x` spelled as `.x` in the first."""

    no_proxy: str
    nono_no_proxy: str


# The sandbox's own servers; and what `open_port` opens, which is reached at the same addresses.
_OWN: Final = (Entry("localhost"), Entry("127.0.0.1"))


def parse_entry(text: str, source: str) -> Entry:
    """One entry of `no_proxy`. Raises ConfigError, whose `where` is `source`."""
    try:
        entry = _parsed(text, source)
    except InvalidAuthority as error:
        problem: str | None = error.problem
    else:
        problem = _problem(entry)
        if problem is None:
            return entry
    raise ConfigError(source, f"{text!a} cannot be in NO_PROXY: {problem}", hint=_EXPECTED)


def overlaps(entry: Entry, pattern: str) -> bool:
    """Whether `entry`, read as it is meant, is also for a host that the rule `pattern` names.

    `*` names none, and loopback is the sandbox's own before it is a rule's.
    """
    if pattern == "*" or _is_loopback(entry.host):
        return False
    wild = pattern.startswith("*.")
    mine, theirs = f".{entry.host}", f".{pattern.removeprefix('*.')}"
    if entry.below and wild:
        return mine.endswith(theirs) or theirs.endswith(mine)
    if mine == theirs:
        return entry.below == wild
    return (entry.below and theirs.endswith(mine)) or (wild and mine.endswith(theirs))


def may_cover(entry: Entry, pattern: str) -> bool:
    """Whether any client could take a host that the rule `pattern` names for one of `entry`.

    All of loopback counts as one host, which no wildcard alone names.
    """
    if _is_loopback(entry.host) and (pattern == "*" or _is_loopback(pattern)):
        return pattern != "*"
    if pattern == "*":
        return True
    if not pattern.startswith("*."):
        return pattern == entry.host or pattern.endswith(entry.text)
    domain = pattern[1:]
    return domain.endswith(entry.text) or entry.host.endswith(domain)


def compute(
    *, allowed: Iterable[str], judged: Iterable[str], managed: Iterable[str], entries: Sequence[Entry]
) -> NoProxy:
    """The variables for a sandbox.

    `allowed`, `judged`, `managed`: patterns of the rules that allow, of those among them that allow certain requests
    only, and of those for which a credential is kept. Raises ConfigError: an entry overlaps one of them.
    """
    hosts, closed = sorted(set(allowed)), sorted({*judged, *managed})
    for entry in entries:
        _check(entry, hosts, closed)
    exact = [Entry(pattern) for pattern in hosts if "*" not in pattern]
    known = [entry for entry in (*_OWN, *exact) if not (_problem(entry) or _covered(entry, closed))]
    kept: dict[str, Entry] = {}
    for entry in (*known, *entries):
        kept.setdefault(entry.text, entry)  # of two spellings of one meaning, the first
    return NoProxy(",".join(kept), ",".join(map(str, kept.values())))


def _parsed(text: str, source: str) -> Entry:
    if text == "*":
        raise InvalidAuthority(text, "it would be every host")
    if any(character.isspace() for character in text):
        raise InvalidAuthority(text, "it has a blank in it")
    for mark, why in _MISTAKES:
        if mark in text:
            raise InvalidAuthority(text, why)
    prefix = next((each for each in ("*.", ".") if text.startswith(each)), "")
    rest = text.removeprefix(prefix)
    if "*" in rest:
        raise InvalidAuthority(text, "a wildcard is a leading *. and nothing else")
    host = canonical_host(_without_port(rest))
    if prefix and host_address(host):
        raise InvalidAuthority(text, "an address has no names below it")
    return Entry(host, prefix, source)


def _without_port(text: str) -> str:
    if text.count(":") > 1 and not text.startswith("["):
        return text
    host, port = split_port(text)
    if port is not None:
        raise InvalidAuthority(text, "it has a port, which few clients understand")
    return host


def _problem(entry: Entry) -> str | None:
    """What is wrong with a well-formed entry, as a clause."""
    if address := host_address(entry.host):
        denied = always_denied(address)
        return f"it is {denied}" if denied else None
    for name in sorted(ALWAYS_DENIED_NAMES):
        if f".{name}".endswith(f".{entry.host}"):
            return f"it covers {name}, which is always denied"
    if "." in entry.host and not entry.below:
        return "most clients take it for every name below it, too"
    return None


def _check(entry: Entry, allowed: Iterable[str], closed: Iterable[str]) -> None:
    for pattern in closed:
        if may_cover(entry, pattern):
            why = f"{entry} would take some clients past the proxy to {pattern}, where each request is to be judged"
            raise ConfigError(entry.source, why, hint="remove it")
    for pattern in allowed:
        if overlaps(entry, pattern):
            hint = "remove it: what is allowed needs no entry, with or without the proxy's help"
            raise ConfigError(entry.source, f"{entry} overlaps {pattern}, which a rule allows", hint=hint)


def _covered(entry: Entry, patterns: Iterable[str]) -> bool:
    return any(may_cover(entry, pattern) for pattern in patterns)


def _is_loopback(pattern: str) -> bool:
    """Whether the host, or every name that the pattern is for, is this machine itself. RFC 6761 §6.3."""
    if pattern == "*":
        return False
    host = pattern.removeprefix("*.")
    address = host_address(host)
    return address.is_loopback if address else f".{host}".endswith(".localhost")
