"""Rule sets and requests near them: generated from a seed, so that every run asks the same.

A case keeps what was meant (canonical host, port, kind of spelling) beside the text that is sent, so that nobody who
explains a verdict has to parse it. Knows no implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

Form = Literal["connect", "absolute"]
WEB = (80, 443)
PORTS = (443, 443, 80, 8443, 22)

HOSTS: dict[str, tuple[str, ...]] = {
    "example.com": ("203.0.113.7",),
    "api.example.com": ("203.0.113.7", "2001:db8::7"),
    "v1.api.example.com": ("203.0.113.8",),
    "evilexample.com": ("203.0.113.9",),
    "example.com.example.net": ("203.0.113.9",),
    "my_bucket.example.com": ("203.0.113.10",),
    "private.example.com": ("10.1.2.3",),
    "nowhere.example.com": (),
    "link-local.example.com": ("169.254.1.1",),
    "mapped.example.com": ("::ffff:169.254.169.254",),
    "translated.example.com": ("64:ff9b::a9fe:a9fe",),
    "wire-server.example.com": ("168.63.129.16",),
    "inward.example.com": ("127.0.0.1",),
    "xn--mnchen-3ya.de": ("203.0.113.11",),
    "www.xn--mnchen-3ya.de": ("203.0.113.11",),
    "printer": ("10.1.2.3",),
    "localhost": ("127.0.0.1",),
    "metadata.google.internal": ("169.254.169.254",),
    "metadata.azure.internal": ("169.254.169.254",),
    # What they resolve to does not matter: it is the name that nobody but a cloud answers.
    "metadata": ("203.0.113.20",),
    "metadata.goog": ("203.0.113.20",),
    "instance-data": ("203.0.113.20",),
}
ORDINARY = tuple(HOSTS)[:8]
LITERALS = (
    "203.0.113.7",
    "10.1.2.3",
    "127.0.0.1",
    "::1",
    "2001:db8::7",
    "169.254.169.254",
    "fe80::1",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "64:ff9b::a9fe:a9fe",
)
WILDCARDS = ("*", "*.example.com", "*.example.com", "*.api.example.com", "*.xn--mnchen-3ya.de", "*.internal")
# No host rules here; some of them mean something elsewhere.
NO_RULES = (
    "*example.com",
    "*.*.example.com",
    "api.*.com",
    "https://example.com",
    "user@example.com",
    "example.com/path",
    "example.com:0",
    "example.com:65536",
    "10.0.0.0/8",
    "2001:db8::7",
    "2130706433",
    "",
)


@dataclass(frozen=True, slots=True)
class Rule:
    """A host rule. `pattern` is canonical, None for a text that is none; `port` None when none is written.

    `rewritten`: the host is not written as the pattern is, but for upper case.
    """

    text: str
    pattern: str | None
    port: int | None

    @property
    def rewritten(self) -> bool:
        host = self.text if self.port is None else self.text.rpartition(":")[0]
        return self.pattern is not None and host.lower().strip("[]") != self.pattern

    def covers(self, host: str) -> bool:
        """Whether it is for the canonical `host`, on whatever port."""
        if self.pattern is None or self.pattern in {"*", host}:
            return self.pattern is not None
        return self.pattern.startswith("*.") and host.endswith(self.pattern[1:])


@dataclass(frozen=True, slots=True)
class Case:
    """One request under one set of rules. `authority` is sent; `host`, `port` and `spelling` say what it means."""

    allow: tuple[Rule, ...]
    deny: tuple[Rule, ...]
    form: Form
    authority: str
    host: str
    port: int
    spelling: str

    @property
    def request(self) -> str:
        """The head; `{token}` stands for the proxy's."""
        field = self.authority.rpartition("@")[2]
        line = f"CONNECT {self.authority}" if self.form == "connect" else f"GET http://{self.authority}/"
        return f"{line} HTTP/1.1\r\nHost: {field}\r\nProxy-Authorization: Bearer {{token}}\r\n\r\n"

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """What the host is, or resolves to."""
        return tuple(map(ip_address, (self.host,) if is_literal(self.host) else HOSTS.get(self.host, ())))

    def covering(self) -> list[Rule]:
        """The allow rules for the host, on whatever port."""
        return [rule for rule in self.allow if rule.covers(self.host)]

    def __str__(self) -> str:
        rules = ", ".join(rule.text for rule in self.allow)
        denied = ", ".join(rule.text for rule in self.deny)
        return f"allow [{rules}] deny [{denied}]: {self.form} {self.authority} ({self.spelling})"


def is_literal(host: str) -> bool:
    """Whether a canonical host is an address."""
    return ":" in host or host.rpartition(".")[2].isdigit()


# ---------------------------------------------------------------- spellings


def _unicode(name: str) -> str:
    return name.encode("ascii").decode("idna")


def _full_width(name: str) -> str:
    return chr(ord(name[0]) - ord("a") + ord("ａ")) + name[1:]  # noqa: RUF001  # the letter is the point


def _whole(address: str) -> int:
    return int(IPv4Address(address))


def _octal(address: str) -> str:
    return ".".join(f"{int(part):#o}".replace("o", "") for part in address.split("."))


def _short(address: str) -> str:
    first, _, _, last = address.split(".")
    return f"{first}.{last}"


OF_NAMES: dict[str, Callable[[str], str]] = {
    "upper": str.upper,
    "mixed": str.title,
    "dot": "{}.".format,
    "dots": "{}..".format,
    "first dot": ".{}".format,
    "full-width": _full_width,
    "userinfo": "user@{}".format,
    "password": "user:pass@{}".format,
    "hyphen": "-{}".format,
}
OF_IDNA: dict[str, Callable[[str], str]] = {"unicode": _unicode, "unicode upper": lambda name: _unicode(name).upper()}
OF_IPV4: dict[str, Callable[[str], str]] = {
    "mapped": "[::ffff:{}]".format,
    "decimal": lambda address: str(_whole(address)),
    "hexadecimal": lambda address: hex(_whole(address)),
    "octal": _octal,
    "dot": "{}.".format,
}
OF_LOOPBACK: dict[str, Callable[[str], str]] = {"short": _short}
OF_IPV6: dict[str, Callable[[str], str]] = {
    "long": lambda address: f"[{IPv6Address(address).exploded}]",
    "upper": lambda address: f"[{address.upper()}]",
    "bare": str,
    "zone": "[{}%lo]".format,
}


def spellings_of(host: str) -> dict[str, Callable[[str], str]]:
    """Other ways to write a canonical host."""
    if ":" in host:
        return OF_IPV6
    if is_literal(host):
        return OF_IPV4 | (OF_LOOPBACK if host.startswith("127.") else {})
    return OF_NAMES | (OF_IDNA if "xn--" in host else {})


def plain(host: str) -> str:
    """The host as one writes it beside a port."""
    return f"[{host}]" if ":" in host else host


# ---------------------------------------------------------------- generated

_RULE_SPELLINGS = ("upper", "mixed", "dot", "unicode", "mapped", "long")


def rule_sets(random: Random, count: int, cases_each: int) -> list[list[Case]]:
    """`count` lists of cases with the same rules."""
    return [_cases(random, cases_each) for _ in range(count)]


def _cases(random: Random, count: int) -> list[Case]:
    allow, deny = _rules(random)
    return [_case(random, allow, deny) for _ in range(count)]


def _rules(random: Random) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    kind = random.choices(("allow", "both", "all but", "broken", "none"), (45, 15, 25, 8, 7))[0]
    if kind == "none":
        return (), ()
    if kind == "all but":
        address = random.choice(LITERALS[:2])
        return tuple(_rule(random, "*") for _ in range(2)), (_rule(random), _rule(random, address))
    allow = tuple(_rule(random) for _ in range(random.randint(1, 3)))
    if kind == "broken":
        return (*allow, Rule(random.choice(NO_RULES), None, None)), ()
    return allow, tuple(_rule(random) for _ in range(random.randint(1, 2))) if kind == "both" else ()


def _rule(random: Random, pattern: str = "") -> Rule:
    kinds = (ORDINARY, WILDCARDS, tuple(HOSTS), LITERALS)
    pattern = pattern or random.choice(random.choices(kinds, (4, 4, 2, 2))[0])
    port = random.choice((None, None, None, *PORTS))
    star, host = ("*.", pattern[2:]) if pattern.startswith("*.") else ("", pattern)
    text = star + (host if host == "*" else _spelled_rule(random, host))
    return Rule(text if port is None else f"{text}:{port}", pattern, port)


def _spelled_rule(random: Random, host: str) -> str:
    ways = {name: spell for name, spell in spellings_of(host).items() if name in _RULE_SPELLINGS}
    if random.random() < 0.3 and ways:
        return random.choice(list(ways.values()))(host)
    return plain(host)


def _case(random: Random, allow: tuple[Rule, ...], deny: tuple[Rule, ...]) -> Case:
    form: Form = random.choice(("connect", "connect", "connect", "absolute"))
    rule = random.choice((*allow, *deny, Rule("", None, None)))
    host = _host_near(random, rule.pattern) if rule.pattern else random.choice(ORDINARY)
    port = rule.port if rule.port and random.random() < 0.7 else random.choice(PORTS)
    way = random.choices(("plain", "host", "port"), (6, 5, 2))[0]
    if way == "port":
        spelling, suffix, port = random.choice(
            (("no port", "", 443 if form == "connect" else 80), ("port 0", ":0", 0), ("port 65536", ":65536", 0))
        )
        return Case(allow, deny, form, plain(host) + suffix, host, port, spelling)
    spelling, spell = ("plain", plain) if way == "plain" else random.choice(list(spellings_of(host).items()))
    return Case(allow, deny, form, f"{spell(host)}:{port}", host, port, spelling)


def _host_near(random: Random, pattern: str) -> str:
    """A host that `pattern` covers, or one that a sloppy reader would take for such."""
    if pattern == "*":
        return random.choice(random.choice((ORDINARY, tuple(HOSTS), LITERALS)))
    domain = pattern.removeprefix("*.")
    if is_literal(domain):
        return domain
    below = [name for name in HOSTS if name.endswith(f".{domain}")]
    others = (*below, f"deep.below.{domain}", f"evil{domain}", f"{domain}.example.net")
    return random.choice((domain, domain, domain, *others))
