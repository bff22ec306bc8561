"""`nono_ebpf.policy.decide`: what may go where, and what the refused are told."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nono_ebpf.model import Endpoint, Identity, ResolvedAddress
from nono_ebpf.policy.decide import Ask, Denial, DenialCategory, Permit, Resolve, decide
from nono_ebpf.policy.rules import HostRules, Policy, parse_allow_rule, parse_deny_rule

PUBLIC = "93.184.216.34"


def policy(allow: str = "", deny: str = "") -> Policy:
    return Policy(
        HostRules(parse_allow_rule(text, "--allow-domain") for text in allow.split()),
        HostRules(parse_deny_rule(text, "--deny-domain") for text in deny.split()),
    )


def answers(*texts: str, own: bool = False, pinned: bool = False) -> tuple[ResolvedAddress, ...]:
    return tuple(ResolvedAddress(ip_address(text), own, pinned) for text in texts)


def ask(
    host: str,
    port: int | None = 443,
    addresses: tuple[ResolvedAddress, ...] | None = None,
    also: tuple[str, ...] = (),
    identity: Identity = Identity.AUTHORITY,
) -> Ask:
    return Ask(host, port, identity, also, addresses)


def denial(rules: Policy, question: Ask) -> Denial:
    verdict = decide(rules, question)
    assert isinstance(verdict, Denial)
    assert verdict.category is DenialCategory.HOST_DENIED
    return verdict


def test_an_allowed_name_is_resolved_then_permitted() -> None:
    """The permit holds the judged addresses in the order they came, with the port, and the rule."""
    rules = policy("api.example.com")
    assert decide(rules, ask("api.example.com")) == Resolve("api.example.com")
    verdict = decide(rules, ask("api.example.com", addresses=answers("2001:db8::1", PUBLIC)))
    endpoints = (Endpoint(ip_address("2001:db8::1"), 443), Endpoint(ip_address(PUBLIC), 443))
    assert verdict == Permit("api.example.com", 443, endpoints, rules.allow.rules[0])


@pytest.mark.parametrize("host", ["example.com", "10.0.0.1", "localhost", "::1"])
@pytest.mark.parametrize("port", [80, 443, None])
def test_an_empty_allow_list_denies_everything(host: str, port: int | None) -> None:
    """Without an allow rule nothing is resolved and nothing is permitted."""
    assert "no rule allows" in denial(policy(), ask(host, port)).reason


@pytest.mark.parametrize(
    ("host", "port", "remedy"),
    [
        ("api.example.com", 443, "api.example.com"),
        ("api.example.com", None, "api.example.com"),
        ("api.example.com", 8443, "api.example.com:8443"),
        ("10.0.0.1", 80, "10.0.0.1"),
        ("2001:db8::1", 443, "[2001:db8::1]"),
        ("2001:db8::1", 22, "[2001:db8::1]:22"),
        ("localhost", 80, "localhost:80"),
        ("localhost", None, "localhost:PORT"),
        ("127.0.0.1", 443, "127.0.0.1:443"),
    ],
)
def test_the_remedy_would_permit_it(host: str, port: int | None, remedy: str) -> None:
    """A denial for want of a rule names the shortest option that permits the same question."""
    refused = denial(policy("other.com"), ask(host, port))
    assert refused.remedy == f"--allow-domain {remedy}"
    permitted = decide(policy(remedy.replace("PORT", "1")), ask(host, port))
    assert isinstance(permitted, Permit | Resolve)


def test_another_port_is_explained() -> None:
    """Who is refused for the port is told which ports are allowed."""
    refused = denial(policy("a.com:443 a.com:22"), ask("a.com", 8443))
    assert refused.reason == "no rule allows port 8443 of it, only 22, 443"


def test_an_address_without_a_name_is_explained() -> None:
    """A bare address that no rule lists is refused as such."""
    assert "nothing names a host" in denial(policy("a.com"), ask(PUBLIC, identity=Identity.ADDRESS)).reason


@pytest.mark.parametrize("port", [80, 443, None])
@pytest.mark.parametrize(
    "host",
    [
        *("metadata.google.internal", "metadata.azure.internal", "metadata", "169.254.169.254", "0.0.0.0"),
        *("::", "fe80::1", "fd00:ec2::254", "100.100.100.200", "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1"),
    ],
)
def test_metadata_cannot_be_allowed(host: str, port: int | None) -> None:
    """No rule opens a metadata service, and no option is offered."""
    spelled = f"[{host}]" if ":" in host else host
    refused = denial(policy(f"* {spelled} {spelled}:443"), ask(host, port))
    assert refused.remedy is None
    assert refused.host == host


@pytest.mark.parametrize("port", [443, None])
@pytest.mark.parametrize(
    "address",
    ["169.254.1.1", "fe80::1", "0.0.0.0", "::", "64:ff9b::169.254.169.254", "2002:7f00:1::", "224.0.0.1"],
)
def test_one_denied_address_denies_the_flow(address: str, port: int | None) -> None:
    """An allowed name with a forbidden address among good ones is refused, and the address is named."""
    refused = denial(policy("a.com a.com:443"), ask("a.com", port, answers(PUBLIC, address)))
    assert str(ip_address(address)) in refused.reason
    assert refused.remedy is None


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "172.16.5.4", "104.18.7.96", "64:ff9b::808:808"])
def test_private_addresses_are_fine(address: str) -> None:
    """RFC 1918 is reachable when a rule names the host."""
    assert isinstance(decide(policy("a.com"), ask("a.com", addresses=answers(address))), Permit)


def test_no_address_is_a_denial() -> None:
    """A name without addresses is refused with that reason."""
    assert "no address" in denial(policy("a.com"), ask("a.com", addresses=())).reason


def test_deny_beats_allow() -> None:
    """A deny rule wins over any allow rule, is named with its source, and has no remedy."""
    rules = policy("* evil.com evil.com:443", "evil.com")
    refused = denial(rules, ask("evil.com"))
    assert refused.rule == rules.deny.rules[0]
    assert refused.reason == "the deny rule evil.com (--deny-domain) matches it"
    assert refused.remedy is None


def test_deny_on_one_port_leaves_the_others() -> None:
    """`--deny-domain 127.0.0.1:8975` refuses that port and no other."""
    rules = policy("127.0.0.1:8975 127.0.0.1:8787", "127.0.0.1:8975")
    assert denial(rules, ask("127.0.0.1", 8975)).rule
    assert isinstance(decide(rules, ask("127.0.0.1", 8787)), Permit)


@pytest.mark.parametrize("address", ["10.0.0.5", "64:ff9b::10.0.0.5", "2002:a00:5::1"])
def test_a_denied_address_denies_its_names(address: str) -> None:
    """A deny rule for an address holds for every name that resolves to it, in every embedding."""
    rules = policy("a.com", "10.0.0.5 [2001:db8::5]:22")
    refused = denial(rules, ask("a.com", addresses=answers(PUBLIC, address)))
    assert refused.rule == rules.deny.rules[0]
    assert str(ip_address(address)) in refused.reason
    assert isinstance(decide(rules, ask("a.com", addresses=answers("2001:db8::5"))), Permit)


@pytest.mark.parametrize("port", [443, None])
def test_every_claimed_name_is_judged(port: int | None) -> None:
    """A flow that names a second host is refused when that one is not allowed, denied, or metadata."""
    rules = policy("a.com b.com evil.com metadata", "evil.com")
    assert decide(rules, ask("a.com", port, also=("b.com",))) == Resolve("a.com")
    for other in ("c.com", "evil.com", "metadata"):
        refused = denial(rules, ask("a.com", port, also=("b.com", other)))
        assert refused.host == other
        assert "a.com" in refused.reason


def test_a_claimed_name_needs_the_same_port() -> None:
    """The second host must be allowed on the port of the flow."""
    assert denial(policy("a.com:22 b.com"), ask("a.com", 22, also=("b.com",))).host == "b.com"


def test_a_lookup_needs_some_port() -> None:
    """Port None: a rule for any port allows the lookup, and the addresses come back with port 0."""
    rules = policy("a.com:22")
    assert decide(rules, ask("a.com", None)) == Resolve("a.com")
    verdict = decide(rules, ask("a.com", None, answers(PUBLIC)))
    assert verdict == Permit("a.com", None, (Endpoint(ip_address(PUBLIC), 0),), rules.allow.rules[0])


def test_a_lookup_is_denied_when_no_port_is_left() -> None:
    """A deny rule for one port stops the lookup only when it takes the last allowed port."""
    assert decide(policy("a.com", "a.com:443"), ask("a.com", None)) == Resolve("a.com")
    assert denial(policy("a.com:443", "a.com:443"), ask("a.com", None)).rule
    assert denial(policy("a.com", "a.com"), ask("a.com", None)).rule
    assert denial(policy("", "a.com:443"), ask("a.com", None)).rule is None


@pytest.mark.parametrize("host", ["localhost", "app.localhost"])
def test_localhost_is_never_a_matter_of_dns(host: str) -> None:
    """`localhost` and names below it resolve as `localhost`, and take a rule with a port."""
    assert decide(policy("localhost:8080 *.localhost:8080"), ask(host, 8080)) == Resolve("localhost")
    loopback = answers("::1", "127.0.0.1", own=True)
    permitted = decide(policy("localhost:80 *.localhost:80"), ask(host, 80, loopback))
    assert isinstance(permitted, Permit)
    refused = denial(policy("localhost *.localhost"), ask(host, 80, loopback))
    assert refused.remedy == f"--allow-domain {host}:80"
    lookup = decide(policy("localhost localhost:9 *.localhost *.localhost:9"), ask(host, None, loopback))
    assert isinstance(lookup, Permit)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1"])
def test_a_loopback_literal_needs_its_port_listed(host: str) -> None:
    """Loopback addresses are permitted on a listed port and refused under a bare or general rule."""
    spelled = f"[{host}]" if ":" in host else host
    verdict = decide(policy(f"{spelled}:8080"), ask(host, 8080))
    assert isinstance(verdict, Permit)
    assert verdict.endpoints == (Endpoint(ip_address(host), 8080),)
    assert denial(policy(f"* {spelled}"), ask(host, 80)).remedy == f"--allow-domain {spelled}:80"


@pytest.mark.parametrize("host", ["127.0.0.1", "192.168.1.5"])
def test_a_bare_rule_does_not_hide_a_written_port(host: str) -> None:
    """A bare rule for the host and another with the port: the port counts as listed."""
    verdict = decide(policy(f"{host} {host}:443"), ask(host, 443))
    assert isinstance(verdict, Permit)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "192.168.1.5"])
def test_a_name_cannot_stand_for_this_machine(address: str) -> None:
    """Rebinding: an own address behind a name is refused, also where the rule has a port."""
    rules = policy("a.com:443")
    assert denial(rules, ask("a.com", addresses=answers(PUBLIC, address, own=True))).remedy is None


def test_loopback_is_own_whatever_the_resolver_says() -> None:
    """A loopback address that was not marked as own is refused all the same."""
    assert denial(policy("a.com:443"), ask("a.com", addresses=answers("127.0.0.1")))


def test_localhost_stands_for_loopback_only() -> None:
    """Another own address behind `localhost` is refused."""
    assert denial(policy("localhost:80"), ask("localhost", 80, answers("192.168.1.5", own=True)))


def test_a_pinned_name_may_stand_for_this_machine() -> None:
    """What the operator pinned is permitted on a listed port, and refused without one."""
    pinned = answers("192.168.1.5", own=True, pinned=True)
    assert isinstance(decide(policy("db.corp:5432"), ask("db.corp", 5432, pinned)), Permit)
    assert denial(policy("db.corp"), ask("db.corp", 443, pinned)).remedy == "--allow-domain db.corp:443"


def test_a_literal_that_a_rule_lists_is_judged_at_once() -> None:
    """A written port answers for a literal without a lookup."""
    verdict = decide(policy("10.0.0.1:22"), ask("10.0.0.1", 22))
    assert isinstance(verdict, Permit)
    assert verdict.endpoints == (Endpoint(ip_address("10.0.0.1"), 22),)


def test_a_general_rule_does_not_reach_this_machine() -> None:
    """`*` and bare rules first ask whether a literal is this machine's own address, then refuse it."""
    for rules in (policy("*"), policy("192.168.1.5")):
        assert decide(rules, ask("192.168.1.5", 80)) == Resolve("192.168.1.5")
        own = answers("192.168.1.5", own=True, pinned=True)
        assert denial(rules, ask("192.168.1.5", 80, own)).remedy == "--allow-domain 192.168.1.5:80"
        assert isinstance(decide(rules, ask("192.168.1.5", 80, answers("192.168.1.5", pinned=True))), Permit)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "192.168.1.5"])
def test_every_host_on_a_port_is_not_this_one(host: str) -> None:
    """`*:9090` opens no service of this machine; what names it does."""
    address = {"localhost": "127.0.0.1"}.get(host, host)
    own = answers(address, own=True, pinned=True)
    spelled = f"[{host}]:9090" if ":" in host else f"{host}:9090"
    assert denial(policy("*:9090"), ask(host, 9090, own)).remedy == f"--allow-domain {spelled}"
    assert isinstance(decide(policy(f"*:9090 {spelled}"), ask(host, 9090, own)), Permit)
