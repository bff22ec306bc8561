"""`nono_ebpf.policy.decide` over any policy and any question."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import idna
from hypothesis import example, given
from hypothesis import strategies as st

from nono_ebpf.authority import canonical_host, host_address, join_host_port
from nono_ebpf.errors import ConfigError, InvalidAuthority
from nono_ebpf.model import Identity, ResolvedAddress
from nono_ebpf.policy.address import ALWAYS_DENIED_NAMES, always_denied
from nono_ebpf.policy.decide import Ask, Denial, Permit, Resolve, decide
from nono_ebpf.policy.rules import HostRules, Policy, Rule, parse_allow_rule, parse_deny_rule

if TYPE_CHECKING:
    from collections.abc import Callable

# Few of each, so that rules, questions and answers meet.
NAMES = ["a.com", "b.a.com", "localhost", "metadata"]
LITERALS = ["10.0.0.1", "127.0.0.1", "169.254.169.254", "64:ff9b::a00:1"]
PORTS = [22, 443]

hosts = st.sampled_from(NAMES + LITERALS)
spelled = st.sampled_from(["*", "*.a.com", *NAMES, *(f"[{each}]" if ":" in each else each for each in LITERALS)])
ports = st.sampled_from(PORTS)
texts = st.builds(lambda host, port: f"{host}:{port}" if port else host, spelled, st.none() | ports)
allow_rules = texts.map(lambda text: parse_allow_rule(text, "allow"))
deny_rules = texts.map(lambda text: parse_deny_rule(text, "deny"))
policies = st.builds(
    Policy, st.lists(allow_rules, max_size=5).map(HostRules), st.lists(deny_rules, max_size=3).map(HostRules)
)
addresses = st.builds(
    ResolvedAddress,
    st.one_of(st.sampled_from(LITERALS).map(ip_address), st.ip_addresses()),
    own=st.booleans(),
    pinned=st.booleans(),
)
asks = st.builds(
    Ask,
    hosts,
    st.none() | ports,
    st.sampled_from(Identity),
    also=st.lists(hosts, max_size=2).map(tuple),
    addresses=st.none() | st.lists(addresses, max_size=3).map(tuple),
)


# Where IPv6 hides an IPv4 address: (prefix, bits to the right of it, bits to flip). RFC 4291 §2.5.5 (mapped,
# compatible), RFC 6052, RFC 2765 §2.1, RFC 5214 §6.1, RFC 3056, RFC 4380 §4: server, and client inverted, the other
# one of both being 203.0.113.7.
HIDING_PLACES = [
    ("::ffff:0:0", 0, 0),
    ("::", 0, 0),
    ("64:ff9b::", 0, 0),
    ("::ffff:0:0:0", 0, 0),
    ("2001:db8::5efe:0:0", 0, 0),
    ("2001:db8::200:5efe:0:0", 0, 0),
    ("2002::", 80, 0),
    ("2001::34ff:8ef8", 64, 0),
    ("2001:0:cb00:7107::", 0, 0xFFFFFFFF),
]


def openness(policy: Policy, ask: Ask) -> int:
    """0 denied, 1 worth resolving, 2 permitted. A literal resolves to itself, so it is asked about again."""
    verdict = decide(policy, ask)
    literal = host_address(ask.host)
    if isinstance(verdict, Resolve) and literal is not None:
        itself = ResolvedAddress(literal, own=literal.is_loopback, pinned=True)
        verdict = decide(policy, replace(ask, addresses=(itself,)))
    return {Denial: 0, Resolve: 1, Permit: 2}[type(verdict)]


@given(policies, asks)
def test_an_answer_fits_its_question(policy: Policy, ask: Ask) -> None:
    """Always one of three answers; endpoints are exactly the addresses that were judged, in their order."""
    match decide(policy, ask):
        case Resolve(host):
            assert ask.addresses is None
            assert host in (ask.host, "localhost")
        case Denial() as no:
            assert no.host in (ask.host, *ask.also)
            assert no.reason
            assert no.reason.isprintable()
            assert not (no.rule and no.remedy)
        case Permit() as ok:
            literal = host_address(ask.host)
            expected = [each.address for each in ask.addresses] if ask.addresses is not None else [literal]
            assert [endpoint.address for endpoint in ok.endpoints] == expected
            assert {endpoint.port for endpoint in ok.endpoints} == {ask.port or 0}
            assert ok.rule in policy.allow.rules


@given(policies, asks)
def test_nothing_permitted_is_always_denied(policy: Policy, ask: Ask) -> None:
    """No rule leads to metadata or to a denied address, nor to loopback without a written port."""
    verdict = decide(policy, ask)
    if isinstance(verdict, Permit):
        assert not ALWAYS_DENIED_NAMES & {ask.host, *ask.also}
        assert not any(always_denied(endpoint.address) for endpoint in verdict.endpoints)
        own = any(endpoint.address.is_loopback for endpoint in verdict.endpoints)
        assert not own or verdict.rule.names_port


@given(policies, asks, deny_rules)
def test_a_deny_rule_never_permits_more(policy: Policy, ask: Ask, rule: object) -> None:
    """With one more deny rule no answer is more open."""
    stricter = Policy(policy.allow, HostRules([*policy.deny.rules, rule]))  # type: ignore[list-item]  # a Rule
    assert openness(stricter, ask) <= openness(policy, ask)


@given(policies, asks.filter(lambda ask: ask.port is not None), deny_rules)
def test_no_allow_rule_takes_a_denial_back(policy: Policy, ask: Ask, rule: Rule) -> None:
    """What a deny rule matches is denied, whatever is allowed beside it and however precisely."""
    if HostRules([rule]).match(ask.host, ask.port):
        texts = ("*", f"*:{ask.port}", join_host_port(ask.host, ask.port or 0))
        most = [parse_allow_rule(text, "allow") for text in texts]
        allowed = HostRules([*policy.allow.rules, *most])
        for question in (ask, replace(ask, also=(), addresses=None)):
            assert isinstance(decide(Policy(allowed, HostRules([*policy.deny.rules, rule])), question), Denial)


@given(
    st.sampled_from(["a.com", "b.a.com", "xn--mnchen-3ya.de", "10.0.0.1", "2001:db8::a"]),
    st.sampled_from([str, str.upper, "{}.".format, "[{}]".format, "::ffff:{}".format, idna.decode]),
    ports,
)
def test_a_denied_host_is_denied_however_it_was_written(host: str, write: Callable[[str], str], port: int) -> None:
    """The rule's spelling and the client's are the operator's and the client's own affair."""
    try:
        rule = parse_deny_rule(write(f"[{host}]" if ":" in host else host), "deny")
        claimed = canonical_host(write(host))
    except (ConfigError, InvalidAuthority, idna.IDNAError):
        return
    allowed = HostRules(parse_allow_rule(text, "allow") for text in ("*", f"*:{port}", join_host_port(host, port)))
    policy = Policy(allowed, HostRules([rule]))
    assert claimed == host
    for ask in (
        Ask(host, port, Identity.SNI),
        Ask(host, None, Identity.DNS),
        Ask("b.test", port, Identity.DNS, (host,)),
    ):
        assert isinstance(decide(policy, ask), Denial)


# ::1 is not 0.0.0.1, of which there is no other need.
@given(st.ip_addresses(v=4).filter(lambda address: int(address) >> 24), st.sampled_from(HIDING_PLACES), ports)
def test_a_denied_address_is_denied_inside_ipv6(address: IPv4Address, place: tuple[str, int, int], port: int) -> None:
    """As the answer for a permitted name and as a listed literal, wherever a translator or tunnel finds it."""
    prefix, shift, flip = place
    hiding = IPv6Address(int(IPv6Address(prefix)) | ((int(address) ^ flip) << shift))
    literal = canonical_host(str(hiding))
    allowed = HostRules(parse_allow_rule(text, "allow") for text in (f"a.com:{port}", join_host_port(literal, port)))
    policy = Policy(allowed, HostRules([parse_deny_rule(str(address), "deny")]))
    answer = (ResolvedAddress(ip_address(literal), pinned=True),)
    for host in ("a.com", literal):
        assert isinstance(decide(policy, Ask(host, port, Identity.DNS, addresses=answer)), Denial)


@given(policies, asks, allow_rules)
@example(
    Policy(HostRules([parse_allow_rule("*:443", "allow")]), HostRules()),
    Ask("127.0.0.1", 443, Identity.ADDRESS),
    parse_allow_rule("127.0.0.1", "allow"),
)
@example(
    Policy(HostRules([parse_allow_rule("*", "allow")]), HostRules([parse_deny_rule("10.0.0.1", "deny")])),
    Ask("64:ff9b::a00:1", None, Identity.DNS),
    parse_allow_rule("*:22", "allow"),
)
def test_an_allow_rule_never_permits_less(policy: Policy, ask: Ask, rule: object) -> None:
    """With one more allow rule no answer is more closed."""
    wider = Policy(HostRules([*policy.allow.rules, rule]), policy.deny)  # type: ignore[list-item]  # a Rule
    before, after = openness(policy, ask), openness(wider, ask)
    assert after >= before


@given(asks, st.lists(deny_rules, max_size=3))
def test_no_allow_rule_permits_nothing(ask: Ask, denied: list[object]) -> None:
    """An empty allow list denies every question."""
    assert isinstance(decide(Policy(HostRules(), HostRules(denied)), ask), Denial)  # type: ignore[arg-type]  # Rules


@given(policies, asks, hosts)
def test_claiming_more_hosts_never_permits_more(policy: Policy, ask: Ask, other: str) -> None:
    """One more claimed name cannot open anything."""
    assert openness(policy, replace(ask, also=(*ask.also, other))) <= openness(policy, ask)


@given(policies, asks.map(lambda ask: replace(ask, also=())))
def test_a_lookup_is_denied_only_when_every_port_is(policy: Policy, ask: Ask) -> None:
    """A name is looked up (port None) if, and only if, a flow to it could be permitted on some port."""
    unresolved = replace(ask, addresses=None)
    flows = max(openness(policy, replace(unresolved, port=port)) for port in (80, *PORTS))
    lookup = openness(policy, replace(unresolved, port=None))
    if host_address(ask.host) is None:
        assert (lookup > 0) == (flows > 0)
