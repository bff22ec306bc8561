"""What a rule denies stays denied, in every spelling of the host and of the addresses it has.

The input is text: the first line asks for a host and port, every further line is a rule that allows, or with a
sign in front `-` a rule that denies, `+` another host of the same flow, `=` an address that the host resolves to.

Only InvalidAuthority and ConfigError come out. A host has one form, which is its own form. A deny rule never
permits more, and no allow rule takes it back; what is permitted, and what is not, follows from the rules read label
by label.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import idna

from nono_ebpf.authority import canonical_host, host_address, join_host_port, parse_authority
from nono_ebpf.errors import ConfigError, InvalidAuthority
from nono_ebpf.model import Identity, ResolvedAddress
from nono_ebpf.policy.address import ALWAYS_DENIED_NAMES
from nono_ebpf.policy.decide import Ask, Denial, Permit, Resolve, decide
from nono_ebpf.policy.rules import HostRules, Policy, Rule, parse_allow_rule, parse_deny_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nono_ebpf.model import IPAddress

# Ours: what an operator would write in an afternoon; more lines only repeat the same question.
_MOST_LINES = 12
_DOTS = "\u3002\uff0e\uff61"
_WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
_PUBLIC = ip_address("203.0.113.77")


@dataclass(frozen=True, slots=True)
class _Case:
    """One input, read."""

    ask: Ask
    allow: tuple[Rule, ...]
    deny: tuple[Rule, ...]
    addresses: tuple[ResolvedAddress, ...]


def check(data: bytes) -> None:
    """Judge the host in the first line, and the policy in the others."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")[:_MOST_LINES]
    for line in lines:
        _check_spellings(line.lstrip("-+="))
    case = _read(lines)
    if case is None:
        return
    _check_denied_everywhere(case)
    _check_rules(case)


def seeds() -> Iterator[bytes]:
    """Hosts in many spellings, rules of every kind that cover them, and addresses that hide others."""
    yield b"api.example.com:443\napi.example.com\n*.example.com:22\n-*.com\n-gist.example.com:8443\n=203.0.113.7"
    yield "M\u00fcnchen.DE.:443\nxn--mnchen-3ya.de\n-m\u00fcnchen.de:22\n+b.test\n*\n=2001:db8::7".encode()
    yield "\uff41.b\u3002c\n*.b.c\n*.c:80\n-\u00df.c\n-*.xn--a.c".encode()
    yield b"203.0.113.7:22\n203.0.113.7:22\n*:22\n-198.51.100.1\n=64:ff9b::198.51.100.1"
    yield b"[::ffff:10.0.0.1]:80\n10.0.0.1\n-[2002:a00:1::]\n-10.0.0.2:81"
    yield b"[2001:0:a00:1::f5ff:fffe]:443\n*\n-10.0.0.1\n=::1\n=127.0.0.1"
    yield b"x.localhost:8080\nlocalhost:8080\n*.localhost:8080\n=127.0.0.1\n=::1"
    yield b"metadata.google.internal\n*\n=169.254.169.254"
    yield b"a_b.r3---x.test:1\n*.test:1\n-*.b.test\n-b.r3---x.test\n-test"
    yield b"0x7f.1\n-2130706433\n-u@a\n-a:0\n-*.*.a\n-*.1"


# ---------------------------------------------------------------- one host


def _form(text: str) -> str | None:
    try:
        return canonical_host(text)
    except InvalidAuthority:
        return None


def _check_spellings(text: str) -> None:
    """`text` is one host or none, alone and with a port; every spelling of that host is that host, or none."""
    _check_authority(text)
    host = _form(text)
    if host is None:
        return
    assert canonical_host(host) == host
    assert host.isascii()
    assert host == host.lower()
    if host_address(host) is None:
        assert not any(each.isspace() or each in "/:@[]%*\\" for each in host)
    for spelling in _spellings(host):
        assert _form(spelling) in {host, None}, f"{spelling!a} is {_form(spelling)}, not {host}"
    assert _form(f"{host}.") == (None if ":" in host else host)
    assert _form(f"{host}..") is None
    assert _form(host.upper()) == host


def _check_authority(text: str) -> None:
    try:
        authority = parse_authority(text, 443)
    except InvalidAuthority:
        return
    assert parse_authority(str(authority), None) == authority
    assert canonical_host(authority.host) == authority.host
    assert 0 < authority.port < 65536


def _spellings(host: str) -> Iterator[str]:
    """Other ways to write the canonical `host`, as clients and attackers do."""
    yield from (host.upper(), host.title(), f"{host}.", host.translate(_WIDE), f"[{host}]")
    yield from (host.replace(".", dot) for dot in _DOTS)
    address = host_address(host)
    if isinstance(address, IPv4Address):
        yield from (f"::ffff:{host}", f"[::FFFF:{host}]", f"0:0:0:0:0:ffff:{host}")
    elif isinstance(address, IPv6Address):
        yield from (address.exploded, f"[{address.exploded.upper()}]")
    else:
        yield ".".join(_u_label(label) for label in host.split("."))


def _u_label(label: str) -> str:
    try:
        return idna.ulabel(label)
    except idna.IDNAError:
        return label


# ---------------------------------------------------------------- rules


def _read(lines: list[str]) -> _Case | None:
    """The case in `lines`; a line that is no rule, host or address is left out. None: the first is no host."""
    try:
        asked = parse_authority(lines[0], 443)
    except InvalidAuthority:
        return None
    also, allow, deny, addresses = [], [], [], []
    for line in lines[1:]:
        if line[:1] == "+":
            also.append(_form(line[1:]))
        elif line[:1] == "=":
            addresses.append(_address(line[1:]))
        elif line[:1] == "-":
            deny.append(_rule(line[1:], parse_deny_rule))
        else:
            allow.append(_rule(line, parse_allow_rule))
    return _Case(
        Ask(asked.host, asked.port, Identity.AUTHORITY, tuple(filter(None, also))),
        tuple(filter(None, allow)),
        tuple(filter(None, deny)),
        tuple(filter(None, addresses)),
    )


def _rule(text: str, parse: Callable[[str, str], Rule]) -> Rule | None:
    try:
        return parse(text, "line")
    except ConfigError:
        return None


def _address(text: str) -> ResolvedAddress | None:
    host = _form(text)
    address = host_address(host) if host is not None else None
    return ResolvedAddress(address, own=address.is_loopback) if address is not None else None


def _verdict(policy: Policy, ask: Ask, addresses: tuple[ResolvedAddress, ...]) -> Permit | Denial:
    """The verdict of whoever resolves and asks again, as the relay does."""
    verdict = decide(policy, ask)
    if isinstance(verdict, Resolve):
        literal = host_address(ask.host)
        if literal is not None:
            addresses = (ResolvedAddress(literal, own=literal.is_loopback, pinned=True),)
        verdict = decide(policy, replace(ask, addresses=addresses))
    assert not isinstance(verdict, Resolve), "it has the addresses"
    return verdict


def _check_denied_everywhere(case: _Case) -> None:
    """A deny rule for the host, written in any way, beats rules that allow everything, for every spelling."""
    host, port = case.ask.host, case.ask.port or 0
    everything = [parse_allow_rule(text, "line") for text in ("*", f"*:{port}", join_host_port(host, port))]
    for written in (host, *_spellings(host)):
        rule = _rule(f"[{written}]" if ":" in written and written[:1] != "[" else written, parse_deny_rule)
        if rule is not None:
            policy = Policy(HostRules(everything), HostRules([rule]))
            assert isinstance(_verdict(policy, case.ask, case.addresses), Denial)
            assert isinstance(decide(policy, replace(case.ask, port=None)), Denial)
            assert isinstance(decide(policy, Ask("other.test", port, Identity.DNS, also=(host,))), Denial)
    address = host_address(host)
    if isinstance(address, IPv4Address):
        _check_denied_inside(address, everything, port)


def _check_denied_inside(address: IPv4Address, allow: list[Rule], port: int) -> None:
    """A denied IPv4 address is denied inside every IPv6 address that a translator or a tunnel unwraps."""
    deny = HostRules([parse_deny_rule(str(address), "line")])
    for form in _forms(address):
        host = canonical_host(str(form))
        allowed = HostRules([*allow, parse_allow_rule(join_host_port(host, port), "line")])
        as_literal = Ask(host, port, Identity.ADDRESS)
        as_answer = Ask("other.test", port, Identity.DNS)
        for ask in (as_literal, as_answer):
            verdict = _verdict(Policy(allowed, deny), ask, (ResolvedAddress(form),))
            assert isinstance(verdict, Denial), f"{ask.host} on {form}, which carries the denied {address}"


def _forms(address: IPv4Address) -> Iterator[IPv6Address]:
    value = int(address)
    for text in ("64:ff9b::", "::ffff:0:0", "::ffff:0:0:0", "2001:db8::5efe:0:0", "fe80::200:5efe:0:0"):
        yield IPv6Address(int(IPv6Address(text)) | value)
    yield IPv6Address(0x2002 << 112 | value << 80 | 1)
    yield IPv6Address(0x20010000 << 96 | value << 64 | 0x1234)
    yield IPv6Address(0x20010000 << 96 | int(_PUBLIC) << 64 | value ^ 0xFFFFFFFF)


def _check_rules(case: _Case) -> None:
    """The verdict fits the rules as this file reads them, and one rule more changes it in its own direction."""
    policy = Policy(HostRules(case.allow), HostRules(case.deny))
    verdict = _verdict(policy, case.ask, case.addresses)
    names = (case.ask.host, *case.ask.also)
    if isinstance(verdict, Permit):
        endpoints: list[IPAddress] = [each.address for each in verdict.endpoints]
        assert endpoints
        for name in names:
            assert any(_covers(rule, name, case.ask.port) for rule in case.allow)
        # A wildcard is about names, and says nothing about the address that a name has.
        for claimed in (*names, *map(str, endpoints)):
            about = [rule for rule in case.deny if claimed in names or rule.lists_address]
            assert not any(_covers(rule, claimed, case.ask.port) for rule in about)
    elif any(_covers(rule, name, case.ask.port) for rule in case.deny for name in names):
        wider = HostRules([*case.allow, *(parse_allow_rule(text, "line") for text in ("*", f"*:{case.ask.port}"))])
        assert isinstance(_verdict(Policy(wider, policy.deny), case.ask, case.addresses), Denial)
    elif all(_is_open(case, name) for name in names):
        assert isinstance(decide(policy, case.ask), Resolve), "a rule that fits is overlooked"
    for index in range(len(case.deny)):
        laxer = Policy(policy.allow, HostRules(case.deny[:index] + case.deny[index + 1 :]))
        if isinstance(_verdict(laxer, case.ask, case.addresses), Denial):
            assert isinstance(verdict, Denial), f"{case.deny[index]} permits"


def _is_open(case: _Case, name: str) -> bool:
    """Whether `name` is allowed and not denied, as far as names go."""
    if name in ALWAYS_DENIED_NAMES or host_address(name) is not None:
        return False
    allowed, denied = (any(_covers(each, name, case.ask.port) for each in rules) for rules in (case.allow, case.deny))
    return allowed and not denied


def _covers(rule: Rule, host: str, port: int | None) -> bool:
    """Whether `rule` is about `host` and `port`, read label by label."""
    if rule.ports is not None and port not in rule.ports:
        return False
    if rule.pattern == "*":
        return True
    wanted, labels = rule.pattern.split("."), host.split(".")
    if wanted[0] == "*":
        return len(labels) >= len(wanted) and labels[1 - len(wanted) :] == wanted[1:]
    return labels == wanted
