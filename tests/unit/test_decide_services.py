"""Requests that a credential belongs into: to which service they belong, or why they go nowhere."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from nono_ebpf.config.transfer import dump_policy, restore_policy
from nono_ebpf.model import Identity, ResolvedAddress
from nono_ebpf.policy.decide import Ask, Denial, DenialCategory, Permit, decide
from nono_ebpf.policy.endpoints import Request, parse_endpoint_rule
from nono_ebpf.policy.rules import HostRules, Policy, Rule, parse_allow_rule, parse_deny_rule
from nono_ebpf.policy.services import EndpointPolicy, PolicyRule, Service

if TYPE_CHECKING:
    from collections.abc import Sequence

ADDRESS = (ResolvedAddress(ip_address("203.0.113.7")),)
GET = Request("GET", "/v1/models", tls=True)


def rules(*texts: str) -> tuple:
    return tuple(parse_endpoint_rule(*text.split(" ", 1), "test") for text in texts)


def listed(*texts: str) -> tuple[PolicyRule, ...]:
    return tuple(PolicyRule(each) for each in rules(*texts))


def service(name: str, host: str = "api.test", port: int = 443, **said: object) -> Service:
    return Service(name, Rule(host, frozenset({port}), name, "test", names_port=True), **said)  # type: ignore[arg-type]


def policy(services: Sequence[Service], allow: Sequence[Rule] = (), deny: Sequence[Rule] = ()) -> Policy:
    managed = HostRules([each.host for each in services])
    return Policy(HostRules(allow), HostRules(deny), managed, services={each.name: each for each in services})


def ask(request: Request | None = GET, host: str = "api.test", **said: object) -> Ask:
    return Ask(host, 443, Identity.SNI, addresses=ADDRESS, request=request, **said)  # type: ignore[arg-type]


def denied(found: object) -> DenialCategory:
    assert isinstance(found, Denial), found
    return found.category


def test_a_request_gets_the_service_of_its_host() -> None:
    """A credential in use is a rule for its host, and says so in the permit."""
    one = service("openai")
    found = decide(policy([one]), ask())
    assert isinstance(found, Permit)
    assert (found.service, found.target, found.rule) == (one, "/v1/models", one.host)


def test_a_service_opens_no_tunnel_and_no_other_port() -> None:
    """In a tunnel nothing could be put into a request, and elsewhere there is no rule."""
    only = policy([service("openai")])
    assert denied(decide(only, ask(None))) is DenialCategory.CONNECT_BYPASSES_L7
    assert denied(decide(only, replace(ask(), port=8443))) is DenialCategory.HOST_DENIED


def test_a_deny_rule_wins() -> None:
    """A credential does not open what is denied."""
    closed = policy([service("openai")], deny=[parse_deny_rule("api.test", "test")])
    assert denied(decide(closed, ask())) is DenialCategory.HOST_DENIED


def test_without_its_credential_nothing_goes() -> None:
    """A host whose credential can never be had is not reached without: 503 (vector R2's other half)."""
    unavailable = policy([service("openai", unsupported="OAuth 2 is not supported yet")])
    for request, category in (
        (GET, DenialCategory.MANAGED_CREDENTIAL_UNAVAILABLE),
        (None, DenialCategory.CONNECT_BYPASSES_L7),
    ):
        found = decide(unavailable, ask(request))
        assert denied(found) is category
        assert isinstance(found, Denial)
        assert found.reason == "requests to it need the credential openai: OAuth 2 is not supported yet"


def test_an_allow_rule_does_not_lead_around_the_service() -> None:
    """A request that no rule of the service allows goes nowhere, also where the host is allowed."""
    limited = service("openai", endpoints=rules("GET /v1/models"))
    both = policy([limited], allow=[parse_allow_rule("api.test", "test")])
    assert isinstance(decide(both, ask()), Permit)
    found = decide(both, ask(Request("POST", "/v1/models", tls=True)))
    assert denied(found) is DenialCategory.ENDPOINT_POLICY
    assert isinstance(found, Denial)
    assert found.remedy == "--allow-endpoint openai:POST:/v1/models"


def test_rules_of_the_host_hold_as_well() -> None:
    """Endpoints of an allow rule are a gate in front of the service."""
    gate = Rule("api.test", frozenset({443}), "api.test", "test", endpoints=rules("* /v2/**"))
    gated = policy([service("openai")], allow=[gate])
    assert denied(decide(gated, ask())) is DenialCategory.ENDPOINT_POLICY
    assert isinstance(decide(gated, ask(Request("GET", "/v2/x", tls=True))), Permit)


def test_in_clear_nothing_is_sent() -> None:
    """The credential goes over TLS alone, and that of a service in clear over nothing else."""
    assert denied(decide(policy([service("a")]), ask(replace(GET, tls=False)))) is DenialCategory.ENDPOINT_POLICY
    clear = policy([service("a", tls=False)])
    assert denied(decide(clear, ask())) is DenialCategory.ENDPOINT_POLICY
    assert isinstance(decide(clear, ask(replace(GET, tls=False))), Permit)


def test_two_services_for_one_request_are_ambiguous() -> None:
    """E18: with two that would take it, neither credential is sent."""
    found = decide(policy([service("a"), service("b")]), ask())
    assert denied(found) is DenialCategory.ENDPOINT_POLICY
    assert isinstance(found, Denial)
    assert "ambiguous" in found.reason


def test_services_of_one_host_share_it_by_their_rules() -> None:
    """Each request goes to the one whose rules allow it."""
    a, b = service("a", endpoints=rules("* /a/**")), service("b", endpoints=rules("* /b/**"))
    shared = policy([a, b])
    for name, wanted in (("a", a), ("b", b)):
        found = decide(shared, ask(Request("GET", f"/{name}/x", tls=True)))
        assert isinstance(found, Permit)
        assert found.service == wanted
    assert denied(decide(shared, ask(Request("GET", "/c", tls=True)))) is DenialCategory.ENDPOINT_POLICY


def test_a_named_service_is_the_only_one_asked() -> None:
    """Who names a service means no other of the same host."""
    found = decide(policy([service("a"), service("b")]), ask(service="b"))
    assert isinstance(found, Permit)
    assert found.service is not None
    assert found.service.name == "b"


def test_what_one_service_denies_is_denied_by_every_road() -> None:
    """Also to who names another service of that host."""
    closed = EndpointPolicy("allow", deny=listed("* /admin/**"))
    both = policy([service("a", endpoint_policy=closed), service("b", endpoints=rules("* /admin/**", "* /b"))])
    for name in (None, "a", "b"):
        asked = ask(Request("GET", "/admin/x", tls=True), service=name)
        assert denied(decide(both, asked)) is DenialCategory.ENDPOINT_POLICY
    assert isinstance(decide(both, ask(Request("GET", "/b", tls=True), service="b")), Permit)


@pytest.mark.parametrize("path", ["/ADMIN/x", "/Admin", "/admin./x", "/admin%20/x", "/admin.", "/%41dmin/x"])
def test_a_denial_is_of_what_any_server_takes_for_the_same(path: str) -> None:
    """Many have no regard to case, some none to dots and blanks behind a name; a permission means what it says."""
    closed = policy([service("a", endpoint_policy=EndpointPolicy("allow", deny=listed("* /admin/**", "* /admin")))])
    assert denied(decide(closed, ask(Request("GET", path, tls=True)))) is DenialCategory.ENDPOINT_POLICY
    opened = policy([service("a", endpoint_policy=EndpointPolicy("deny", allow=listed("* /admin/**", "* /admin")))])
    assert denied(decide(opened, ask(Request("GET", path, tls=True)))) is DenialCategory.ENDPOINT_POLICY


@pytest.mark.parametrize("path", ["/\u017fecret/x", "/SECRET/x", "/ma\u0131l", "/\u212aeys", "/Stra\u00dfe"])
def test_a_denial_knows_what_is_one_letter_in_another_case(path: str) -> None:
    """To some languages: the long s, the dotless i, the sign for kelvin, the sharp s."""
    listed_ = listed("GET /secret/**", "GET /mail", "GET /keys", "GET /STRASSE")
    closed = policy([service("a", endpoint_policy=EndpointPolicy("allow", deny=listed_))])
    assert denied(decide(closed, ask(Request("GET", quote(path), tls=True)))) is DenialCategory.ENDPOINT_POLICY


def test_a_denial_of_get_is_one_of_head() -> None:
    """Servers run the same for both; a permission of GET permits GET."""
    closed = policy([service("a", endpoint_policy=EndpointPolicy("allow", deny=listed("GET /x", "POST /y")))])
    for method, path in (("HEAD", "/x"), ("head", "/X")):
        assert denied(decide(closed, ask(Request(method, path, tls=True)))) is DenialCategory.ENDPOINT_POLICY
    for method, path in (("HEAD", "/y"), ("OPTIONS", "/x")):
        assert isinstance(decide(closed, ask(Request(method, path, tls=True))), Permit)
    opened = policy([service("a", endpoint_policy=EndpointPolicy("deny", allow=listed("GET /x")))])
    assert denied(decide(opened, ask(Request("HEAD", "/x", tls=True)))) is DenialCategory.ENDPOINT_POLICY


def test_in_clear_one_of_localhosts_addresses_is_dialled() -> None:
    """A service listens on 127.0.0.1, mostly; on ::1 anybody may, and would be given the credential."""
    both = tuple(ResolvedAddress(ip_address(each)) for each in ("::1", "127.0.0.1"))
    here = service("a", host="localhost", tls=False)
    for addresses, dialled in ((both, "127.0.0.1"), (both[:1], "::1")):
        asked = Ask("localhost", 443, Identity.SNI, request=replace(GET, tls=False), addresses=addresses)
        found = decide(policy([here]), asked)
        assert isinstance(found, Permit)
        assert [str(each.address) for each in found.endpoints] == [dialled]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "evil.localhost"])
def test_a_credential_is_for_one_spelling_of_loopback(host: str) -> None:
    """Somebody else may listen where another spelling leads: no credential, and nothing without it either."""
    local = policy([service("local", "localhost", tls=False)], allow=[parse_allow_rule("localhost:443", "test")])
    request = replace(GET, tls=False)
    own = (ResolvedAddress(ip_address("127.0.0.1"), own=True, pinned=True),)
    assert isinstance(decide(local, replace(ask(request, "localhost"), addresses=own)), Permit)
    assert denied(decide(local, replace(ask(request, host), addresses=own))) is DenialCategory.ENDPOINT_POLICY


def test_the_most_specific_host_wins() -> None:
    """A wildcard's credential is not sent to a host that has one of its own."""
    found = decide(policy([service("wide", "*.test"), service("own")]), ask())
    assert isinstance(found, Permit)
    assert found.service is not None
    assert found.service.name == "own"


@pytest.mark.parametrize(
    ("said", "permitted"),
    [
        # E10: the same path in all three lists.
        ({"deny": ["* /v1/**"], "approve": ["* /v1/**"], "allow": ["* /v1/**"]}, False),
        ({"approve": ["* /v1/**"], "allow": ["* /v1/**"]}, False),
        ({"allow": ["* /v1/**"]}, True),
        ({"allow": ["* /v2/**"]}, False),
        ({"default": "allow"}, True),
        ({"default": "approve"}, False),
        ({"default": "allow", "deny": ["POST /v1/**"]}, True),
        ({"default": "allow", "deny": ["GET /v1/*"]}, False),
    ],
)
def test_endpoint_policies(said: dict, permitted: bool) -> None:
    """Denials before approvals before permissions before the default; nobody can be asked to approve."""
    lists = {key: value if key == "default" else listed(*value) for key, value in said.items()}
    found = decide(policy([service("a", endpoint_policy=EndpointPolicy(**lists))]), ask())
    assert isinstance(found, Permit) is permitted
    if not permitted:
        assert denied(found) is DenialCategory.ENDPOINT_POLICY


@pytest.mark.parametrize(
    "path", ["/v1/secret", "/v1/%73ecret", "/v1/x/../secret", "/v1//secret", "/v1/a%2f..%2fsecret"]
)
def test_a_denied_path_is_denied_in_every_spelling(path: str) -> None:
    """What any server could take for a denied path is denied."""
    said = EndpointPolicy("allow", deny=listed("* /v1/secret"))
    assert isinstance(decide(policy([service("a", endpoint_policy=said)]), ask(Request("GET", path, tls=True))), Denial)


def test_a_request_that_names_two_hosts_gets_no_credential() -> None:
    """Also when both are allowed."""
    both = policy([service("a")], allow=[parse_allow_rule("cdn.test", "test")])
    assert isinstance(decide(both, ask(also=("cdn.test",))), Denial)
    assert isinstance(decide(both, ask(host="cdn.test", also=("api.test",))), Denial)


def test_an_intercepted_host_opens_no_tunnel() -> None:
    """Every request to it is looked at, whichever rule allows it."""
    looked_at = Rule("api.test", frozenset({443}), "api.test", "test", intercept=True)
    for allow in ([looked_at], [looked_at, parse_allow_rule("api.test", "test"), parse_allow_rule("*", "test")]):
        seen = policy([], allow=allow)
        assert denied(decide(seen, ask(None))) is DenialCategory.CONNECT_BYPASSES_L7
        assert isinstance(decide(seen, ask()), Permit)


def test_services_survive_the_way_to_another_process() -> None:
    """What the proxy judges by is what was checked."""
    said = EndpointPolicy("allow", deny=listed("POST /v1/**"))
    sent = policy(
        [service("a", endpoints=rules("GET /x")), service("b", "b.test", endpoint_policy=said, base_path="/v1")]
    )
    assert restore_policy(dump_policy(sent)).services == sent.services
