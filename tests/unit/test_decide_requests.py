"""Hosts whose requests are judged one by one: what `decide` says about requests, and about tunnels."""

from __future__ import annotations

import shlex
from ipaddress import ip_address
from urllib.parse import unquote

import pytest

from nono_ebpf.model import Identity, ResolvedAddress
from nono_ebpf.policy.decide import Ask, Denial, DenialCategory, Permit, decide
from nono_ebpf.policy.endpoints import Request, parse_endpoint_rule, permits
from nono_ebpf.policy.rules import HostRules, Policy, Rule, parse_allow_rule, parse_deny_rule
from nono_ebpf.policy.services import Service

PUBLIC = (ResolvedAddress(ip_address("93.184.216.34")),)


def limited(host: str, *endpoints: str) -> Rule:
    rules = tuple(parse_endpoint_rule(*each.split(" "), "test") for each in endpoints)
    return parse_allow_rule(host, f"agent.json: {host}", endpoints=rules)


def policy(*rules: Rule | str, managed: tuple[Rule, ...] = ()) -> Policy:
    allow = [parse_allow_rule(each, "test") if isinstance(each, str) else each for each in rules]
    services = {each.text: Service(each.text, each, unsupported="the test has none") for each in managed}
    return Policy(HostRules(allow), HostRules(), HostRules(managed), services=services)


def request(host: str, method: str, target: str, port: int = 80, also: tuple[str, ...] = ()) -> Ask:
    return Ask(host, port, Identity.HOST, also, PUBLIC, Request(method, target))


def category(verdict: object) -> DenialCategory | None:
    return verdict.category if isinstance(verdict, Denial) else None


API = limited("api.example.com", "GET /v1/**", "POST /v1/chat")
OPENAI = Rule("api.openai.com", frozenset({443}), "openai", "agent.json: network.credentials[0]", names_port=True)


def test_a_request_that_an_endpoint_rule_allows() -> None:
    """The permit has the rule, and the one form in which the request is sent."""
    verdict = decide(policy(API), request("api.example.com", "GET", "/v1//models/./x?q=1"))
    assert isinstance(verdict, Permit)
    assert (verdict.rule, verdict.target) == (API, "/v1/models/x?q=1")


@pytest.mark.parametrize(("method", "target"), [("DELETE", "/v1/models"), ("GET", "/v2"), ("GET", "/v1/..%2f..%2fv2")])
def test_any_other_request_is_denied(method: str, target: str) -> None:
    """Whatever the method, or the reading of the path, that no rule is about."""
    verdict = decide(policy(API), request("api.example.com", method, target))
    assert category(verdict) is DenialCategory.ENDPOINT_POLICY


@pytest.mark.parametrize(
    ("target", "remedy"),
    [
        ("/v2", "--allow-domain http://api.example.com/v2"),
        ("/x$(id)", "--allow-domain 'http://api.example.com/x$(id)'"),
        ("/admin/**", "--allow-domain 'http://api.example.com/admin/[*][*]'"),
        ("/admin/%2A?q=$(id)", "--allow-domain 'http://api.example.com/admin/[*]'"),
        ("/a%7Bb%5D", "--allow-domain 'http://api.example.com/a[{]b[]]'"),
        ("/a;b", None),
        ("/" + "a" * 500, None),
    ],
)
def test_what_would_allow_it_can_be_typed_into_a_shell(target: str, remedy: str | None) -> None:
    """It is the client's text: quoted, without a wildcard of its own, for this path alone; none where it takes more."""
    verdict = decide(policy(API), request("api.example.com", "GET", target))
    assert isinstance(verdict, Denial)
    assert verdict.remedy == remedy
    if remedy:
        glob = shlex.split(remedy)[1].removeprefix("http://api.example.com")
        assert permits([parse_endpoint_rule("*", glob, "test")], "GET", (unquote(target.partition("?")[0]),))


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
@pytest.mark.parametrize("written", ["localhost", "127.0.0.1", "[::1]"])
def test_loopback_has_three_names_and_one_meaning(name: str, written: str) -> None:
    """Endpoints, a credential or a denial for one of them hold for all."""
    own = tuple(ResolvedAddress(ip_address(each), own=True, pinned=True) for each in ("127.0.0.1", "::1"))
    opened = tuple(f"{each}:3000" for each in ("localhost", "127.0.0.1", "[::1]"))
    ask = Ask(name, 3000, Identity.AUTHORITY, addresses=own[:1] if name != "::1" else own[1:])
    assert isinstance(decide(policy(*opened), ask), Permit)
    judged = policy(limited(f"{written}:3000", "GET /public/**"), *opened)
    assert category(decide(judged, ask)) is DenialCategory.CONNECT_BYPASSES_L7
    service = Rule(written.strip("[]"), frozenset({3000}), "svc", "test", names_port=True)
    assert category(decide(policy(*opened, managed=(service,)), ask)) is DenialCategory.CONNECT_BYPASSES_L7
    denying = Policy(policy(*opened).allow, HostRules([parse_deny_rule(written, "test")]))
    assert category(decide(denying, ask)) is DenialCategory.HOST_DENIED


def test_a_general_rule_opens_no_other_port_for_tunnels() -> None:
    """Endpoints without a port hold wherever nobody wrote one out."""
    everything = Rule("*", None, "--allow-net", "--allow-net")
    tunnel = Ask("api.example.com", 8443, Identity.AUTHORITY, addresses=PUBLIC)
    assert category(decide(policy(API, everything), tunnel)) is DenialCategory.CONNECT_BYPASSES_L7
    assert isinstance(decide(policy(API, everything, "api.example.com:8443"), tunnel), Permit)


@pytest.mark.parametrize("port", [80, 443])
def test_a_tunnel_to_such_a_host_is_denied(port: int) -> None:
    """In it no request could be judged."""
    ask = Ask("api.example.com", port, Identity.AUTHORITY, addresses=PUBLIC)
    assert category(decide(policy(API), ask)) is DenialCategory.CONNECT_BYPASSES_L7


@pytest.mark.parametrize("plain", ["api.example.com", "*.example.com", "*", "api.example.com:80"])
def test_a_plain_rule_for_the_same_host_opens_nothing_more(plain: str) -> None:
    """Rules with endpoints narrow, wherever they stand and however specific the other is."""
    for rules in (policy(API, plain), policy(plain, API)):
        assert isinstance(decide(rules, request("api.example.com", "GET", "/v1/a")), Permit)
        assert category(decide(rules, request("api.example.com", "GET", "/v2"))) is DenialCategory.ENDPOINT_POLICY
        tunnel = Ask("api.example.com", 80, Identity.DNS, addresses=PUBLIC)
        assert category(decide(rules, tunnel)) is DenialCategory.CONNECT_BYPASSES_L7


def test_a_wildcard_with_endpoints_narrows_the_hosts_below() -> None:
    """Also where another rule allows one of them."""
    rules = policy(limited("*.example.com", "GET /public/**"), "www.example.com")
    assert category(decide(rules, request("www.example.com", "GET", "/private"))) is DenialCategory.ENDPOINT_POLICY
    assert isinstance(decide(rules, request("www.example.com", "GET", "/public/x")), Permit)


def test_endpoints_of_several_rules_add_up() -> None:
    """One reading of a path may be allowed by one rule, another by another."""
    rules = policy(limited("api.example.com", "GET /a/*"), limited("api.example.com", "GET /a%2F*"))
    assert isinstance(decide(rules, request("api.example.com", "GET", "/a%2fb")), Permit)


def test_every_host_that_a_request_claims_is_judged() -> None:
    """A name of the address and a Host that differ: the rules of both hold."""
    rules = policy(API, "www.example.com")
    verdict = decide(rules, request("www.example.com", "GET", "/v2", also=("api.example.com",)))
    assert category(verdict) is DenialCategory.ENDPOINT_POLICY
    assert isinstance(decide(rules, request("www.example.com", "GET", "/v1/a", also=("api.example.com",))), Permit)


def test_other_ports_and_hosts_are_not_concerned() -> None:
    """Their requests are sent as they came."""
    rules = policy(limited("api.example.com:80", "GET /v1/**"), "api.example.com:8080", "other.example")
    for ask in (request("api.example.com", "PUT", "//x", 8080), request("other.example", "PUT", "//x")):
        verdict = decide(rules, ask)
        assert isinstance(verdict, Permit)
        assert verdict.target is None


def test_such_a_host_can_be_looked_up() -> None:
    """What for is judged later."""
    assert isinstance(decide(policy(API), Ask("api.example.com", None, Identity.DNS, addresses=PUBLIC)), Permit)


@pytest.mark.parametrize("rules", [(), ("api.openai.com",), ("*",)])
def test_nothing_reaches_the_upstream_of_a_credential(rules: tuple[str, ...]) -> None:
    """A tunnel would pass the credential by; a request would lack it. Another port is another service."""
    managed = policy(*rules, managed=(OPENAI,))
    tunnel = Ask("api.openai.com", 443, Identity.AUTHORITY, addresses=PUBLIC)
    assert category(decide(managed, tunnel)) is DenialCategory.CONNECT_BYPASSES_L7
    asked = request("api.openai.com", "GET", "/", 443)
    assert category(decide(managed, asked)) is DenialCategory.MANAGED_CREDENTIAL_UNAVAILABLE
    assert isinstance(decide(managed, Ask("api.openai.com", None, Identity.DNS, addresses=PUBLIC)), Permit)
    other = decide(managed, Ask("api.openai.com", 80, Identity.AUTHORITY, addresses=PUBLIC))
    assert isinstance(other, Permit if rules else Denial)
