"""How an upstream proxy and its bypass are written, and what is sent through it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nono_ebpf.errors import ConfigError
from nono_ebpf.model import Endpoint, Identity, ResolvedAddress
from nono_ebpf.policy.decide import Ask, Denial, Permit, Resolve, decide
from nono_ebpf.policy.rules import HostRules, Policy, parse_allow_rule, parse_deny_rule
from nono_ebpf.policy.upstream_proxy import joined, parse_bypass, parse_upstream_proxy

PROXY = (ResolvedAddress(ip_address("10.9.9.9")),)


def policy(*allow: str, deny: tuple[str, ...] = (), bypass: tuple[str, ...] = ()) -> Policy:
    proxy = parse_upstream_proxy("squid.corp:3128", "test")
    proxy = type(proxy)(proxy.host, proxy.port, proxy.tls, joined(parse_bypass(each, "test") for each in bypass))
    rules = HostRules(parse_allow_rule(each, "test") for each in allow)
    return Policy(rules, HostRules(parse_deny_rule(each, "test") for each in deny), upstream_proxy=proxy)


@pytest.mark.parametrize(
    ("text", "expected", "tls"),
    [
        ("proxy.corp:8080", "proxy.corp:8080", False),
        ("http://Proxy.Corp.:8080", "proxy.corp:8080", False),
        ("http://proxy.corp:8080/", "proxy.corp:8080", False),
        ("https://proxy.corp:443", "proxy.corp:443", True),
        ("[2001:db8::1]:3128", "[2001:db8::1]:3128", False),
    ],
)
def test_a_proxy_has_a_host_and_a_port(text: str, expected: str, *, tls: bool) -> None:
    """In any of the usual spellings, made canonical."""
    proxy = parse_upstream_proxy(text, "test")
    assert (str(proxy), proxy.tls) == (expected, tls)


@pytest.mark.parametrize(
    "text", ["", "proxy.corp", "proxy.corp:0", "proxy.corp:eight", "http://proxy.corp:8080/path", "socks5://proxy:1080",
             "http://user:secret@proxy.corp:8080", "proxy corp:8080", "::1:3128", "://proxy:1"]
)  # fmt: skip
def test_what_cannot_be_read_is_an_error(text: str) -> None:
    """Never "no proxy"; and a password in it is not repeated."""
    with pytest.raises(ConfigError) as error:
        parse_upstream_proxy(text, "--upstream-proxy")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "covered", "other"),
    [
        ("walmart.com", ["walmart.com"], ["a.walmart.com", "evilwalmart.com"]),
        ("*.walmart.com", ["a.walmart.com", "a.b.walmart.com"], ["walmart.com", "evilwalmart.com"]),
        (".walmart.com", ["a.walmart.com"], ["walmart.com", "evilwalmart.com"]),
        ("*", ["anything.example", "203.0.113.1"], []),
        ("10.0.0.0/8", ["10.1.2.3"], ["11.0.0.1", "10.example"]),
        ("2001:db8::/32", ["2001:db8::1"], ["2001:db9::1", "10.1.2.3"]),
        ("Walmart.COM.", ["walmart.com"], []),
        ("203.0.113.7", ["203.0.113.7"], ["203.0.113.70"]),
    ],
)
def test_bypass_entries_end_at_labels(entry: str, covered: list[str], other: list[str]) -> None:
    """U5: no entry is about a name that only ends the same."""
    bypass = parse_bypass(entry, "test")
    assert [each for each in covered if not bypass.covers(each)] == []
    assert [each for each in other if bypass.covers(each)] == []


@pytest.mark.parametrize(
    "entry", ["", "*corp", "a.*.b", "10.0.0.0/33", "10.0.0.1/8", "host:443", "*.", "*.10.0.0.1", "a/b"]
)
def test_a_bypass_entry_that_says_nothing_is_an_error(entry: str) -> None:
    """It would silently bypass nothing."""
    with pytest.raises(ConfigError):
        parse_bypass(entry, "test")


def test_a_name_goes_through_without_being_looked_up() -> None:
    """Only the proxy's own name is."""
    ask = Ask("api.example.com", 443, Identity.AUTHORITY)
    assert decide(policy("api.example.com"), ask) == Resolve("squid.corp", of_proxy=True)
    permit = decide(policy("api.example.com"), ask.answered(Resolve("squid.corp", of_proxy=True), PROXY))
    assert isinstance(permit, Permit)
    assert permit.endpoints == (Endpoint(ip_address("10.9.9.9"), 3128),)
    assert (permit.host, permit.port, str(permit.via)) == ("api.example.com", 443, "squid.corp:3128")


def test_a_lookup_of_such_a_name_is_permitted_without_an_address() -> None:
    """The resolver has an address stand for it."""
    permit = decide(policy("api.example.com"), Ask("api.example.com", None, Identity.DNS))
    assert isinstance(permit, Permit)
    assert permit.via is not None
    assert permit.endpoints == ()


@pytest.mark.parametrize("host", ["evil.example", "metadata.google.internal", "169.254.169.254", "fd00:ec2::254"])
def test_policy_comes_first(host: str) -> None:
    """What is denied is denied before any proxy is looked up."""
    assert isinstance(decide(policy("api.example.com"), Ask(host, 443, Identity.AUTHORITY)), Denial)
    assert isinstance(decide(policy("*", deny=("evil.example",)), Ask(host, 443, Identity.AUTHORITY)), Denial)


@pytest.mark.parametrize("host", ["localhost", "app.localhost", "127.0.0.1", "::1", "10.1.2.3", "in.corp"])
def test_what_is_near_is_dialled_directly(host: str) -> None:
    """Loopback always, the rest because the bypass says so; judged as without a proxy."""
    rules = policy(f"[{host}]:443" if ":" in host else f"{host}:443", bypass=("10.0.0.0/8", "*.corp"))
    plain = Policy(rules.allow, rules.deny)
    ask = Ask(host, 443, Identity.AUTHORITY)
    verdict = decide(rules, ask)
    assert verdict == decide(plain, ask)
    assert isinstance(verdict, Resolve) or verdict.via is None


def test_a_literal_address_of_this_machine_is_not_reached_through_the_proxy() -> None:
    """Whose it is is asked first; a rule without a port does not open it."""
    ask = Ask("192.0.2.5", 443, Identity.AUTHORITY)
    rules = policy("*")
    question = decide(rules, ask)
    assert question == Resolve("192.0.2.5")
    own = ask.answered(question, (ResolvedAddress(ip_address("192.0.2.5"), own=True, pinned=True),))
    assert isinstance(decide(rules, own), Denial)
    foreign = ask.answered(question, (ResolvedAddress(ip_address("192.0.2.5"), pinned=True),))
    assert decide(rules, foreign) == Resolve("squid.corp", of_proxy=True)


def test_a_proxy_at_a_metadata_address_is_refused() -> None:
    """A name of the corporate proxy that resolves to such a thing is somebody's trick."""
    ask = Ask(
        "api.example.com", 443, Identity.AUTHORITY, proxy_addresses=(ResolvedAddress(ip_address("169.254.169.254")),)
    )
    assert isinstance(decide(policy("api.example.com"), ask), Denial)


@pytest.mark.parametrize("bypass", [(), ("*",)])
def test_the_proxy_itself_is_no_destination(bypass: tuple[str, ...]) -> None:
    """By its name, by its address, or by another name for that: in a tunnel to it any host could be asked for."""
    rules = policy("*.corp:3128", "squid.corp:3128", "10.9.9.9:3128", "*:3128", bypass=bypass)
    assert isinstance(decide(rules, Ask("squid.corp", 3128, Identity.AUTHORITY)), Denial)
    for host in ("10.9.9.9", "alias.corp") if bypass else ("10.9.9.9",):
        ask = Ask(host, 3128, Identity.AUTHORITY)
        while isinstance(verdict := decide(rules, ask), Resolve):
            ask = ask.answered(verdict, PROXY)
        assert isinstance(verdict, Denial)
        other = Ask(host, 3129, Identity.AUTHORITY, addresses=PROXY, proxy_addresses=PROXY)
        assert isinstance(decide(policy(f"{host}:3129", bypass=bypass), other), Permit)
