"""Services in use: where they are, what is put into their requests, what the command is told, and which there are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from nono_ebpf.config.load import examine, settings
from nono_ebpf.config.options import Overrides, parse_service_endpoint
from nono_ebpf.config.presets import network_policy
from nono_ebpf.config.references import check_reference
from nono_ebpf.credentials.injection import Injection, Placement
from nono_ebpf.errors import ConfigError
from nono_ebpf.model import Identity
from nono_ebpf.policy.decide import Ask, Denial, DenialCategory, decide
from nono_ebpf.policy.endpoints import EndpointRule, Request
from nono_ebpf.policy.services import EndpointPolicy, PolicyRule

if TYPE_CHECKING:
    from nono_ebpf.config.routes import Route
    from nono_ebpf.config.settings import Settings

EXAMPLE = "https://api.example.com"
ANTHROPIC, GOOGLE = "https://api.anthropic.com:443", "https://generativelanguage.googleapis.com:443"


def load(network: dict[str, Any], **options: Any) -> Settings:
    data = json.dumps({"network": network}).encode()
    return settings(Overrides(profile="p.json", **options), lambda _: data, home="/home/a", environment={})


def mistakes(network: dict[str, Any], profile: dict[str, Any] | None = None, **options: Any) -> list[str]:
    data = json.dumps({"network": network, **(profile or {})}).encode()
    found = examine(Overrides(profile="p.json", **options), lambda _: data, home="/home/a", environment={})
    return [str(each) for each in found.problems]


def used(**definitions: dict[str, Any]) -> dict[str, Any]:
    """A network where each of `definitions` is in use; their upstream is api.example.com where they name none."""
    custom = {name: {"upstream": EXAMPLE, "credential_key": "env://K"} | keys for name, keys in definitions.items()}
    return {"credentials": list(definitions), "custom_credentials": custom}


def route(**keys: Any) -> Route:
    """The service `c`, whose definition is `keys`."""
    (found,) = load(used(c=keys)).routes
    return found


@pytest.mark.parametrize(
    ("name", "url", "reference", "placement", "variable"),
    [
        ("openai", "https://api.openai.com:443/v1", "openai", ("Authorization", "Bearer {}"), "OPENAI_API_KEY"),
        ("anthropic", ANTHROPIC, "env://ANTHROPIC_API_KEY", ("x-api-key", "{}"), "ANTHROPIC_API_KEY"),
        ("gemini", GOOGLE, "gemini", ("x-goog-api-key", "{}"), "GEMINI_API_KEY"),
        ("google-ai", GOOGLE, "keyring://nono/google-ai", ("x-goog-api-key", "{}"), "GOOGLE_API_KEY"),
        ("github", "https://api.github.com:443", "env://GITHUB_TOKEN", ("Authorization", "token {}"), "GITHUB_TOKEN"),
        ("gitlab", "https://gitlab.com:443/api", "env://GITLAB_TOKEN", ("Authorization", "Bearer {}"), "GITLAB_TOKEN"),
    ],
)
def test_a_shipped_service_is_nonos(
    name: str, url: str, reference: str, placement: tuple[str, str], variable: str
) -> None:
    """By its name alone: its host, its header field, where its credential is kept, and what its clients look for."""
    (found,) = load({"credentials": [name]}).routes
    service = found.service
    (port,) = service.host.ports or ()
    assert f"https://{service.host.pattern}:{port}{service.base_path}" == url
    assert (service.name, service.host.text, service.tls, service.endpoints) == (name, name, True, ())
    assert found.reference is not None
    assert found.reference.value == reference
    where = Placement(header=placement[0], format=placement[1])
    assert found.injection == Injection(where, where)
    assert (found.base_url_variable, found.key_variable) == (f"{name.upper().replace('-', '_')}_BASE_URL", variable)


def test_every_shipped_reference_can_be_read() -> None:
    """Nobody checks what nobody writes, but here."""
    for name, definition in network_policy().credentials.items():
        check_reference(json.loads(bytes(definition))["credential_key"], name)


def test_what_is_written_has_its_place() -> None:
    """Where a service was put into use, and where its definition says what: for whoever has to mend it."""
    found = route(tls_ca="/ca.pem")
    assert found.source == found.service.host.source == "p.json: network.credentials[0]"
    assert found.reference is not None
    assert found.reference.source == "p.json: network.custom_credentials.c.credential_key"
    assert found.tls_ca is not None
    assert (found.tls_ca.value, found.tls_ca.source) == ("/ca.pem", "p.json: network.custom_credentials.c.tls_ca")


def test_paths_begin_at_the_accounts_home() -> None:
    """`~/` is the account's, not root's."""
    found = route(tls_ca="~/ca.pem", tls_client_cert="/c.pem", tls_client_key="~/k.pem")
    paths = [each and each.value for each in (found.tls_ca, found.tls_client_cert, found.tls_client_key)]
    assert paths == ["/home/a/ca.pem", "/c.pem", "/home/a/k.pem"]


@pytest.mark.parametrize(
    ("upstream", "tls", "base_path"),
    [
        ("https://a.com", True, ""),
        ("https://a.com/", True, ""),
        ("https://a.com/v1/", True, "/v1"),
        ("https://a.com//v1/./x/../y", True, "/v1/y"),
        ("https://a.com/ä b", True, "/%C3%A4%20b"),
        ("http://127.0.0.1:8080/v1", False, "/v1"),
    ],
)
def test_a_service_may_be_below_a_path(upstream: str, tls: bool, base_path: str) -> None:
    """In its canonical form, without a slash at its end."""
    service = route(upstream=upstream).service
    assert (service.tls, service.base_path) == (tls, base_path)


def test_many_hosts_have_no_url() -> None:
    """R16: a wildcard is for clients that name a host; the variable would have none."""
    found = route(upstream="https://*.dev.example.net", env_var="KEY")
    assert found.service.host.pattern == "*.dev.example.net"
    assert (found.base_url_variable, found.key_variable) == (None, "KEY")


@pytest.mark.parametrize(
    ("keys", "variable"),
    [
        pytest.param({"credential_key": "openai_api_key"}, "OPENAI_API_KEY", id="R2-account"),
        ({"credential_key": "env://My_Token"}, "My_Token"),
        ({"credential_key": "file:///s", "env_var": "K"}, "K"),
        ({"credential_key": "k", "env_var": "other"}, "other"),
        ({"credential_key": "keyring://a/b"}, None),
    ],
)
def test_the_command_finds_the_token_where_it_looks_for_a_key(keys: dict[str, str], variable: str | None) -> None:
    """In env_var, else in the variable of the reference, else in one that is called like the account."""
    assert route(**keys).key_variable == variable


def test_the_url_is_in_a_variable_by_the_services_name() -> None:
    """R1: in capital letters, whatever else is in it."""
    (found,) = load(used(**{"my-api.v2": {}})).routes
    assert found.base_url_variable == "MY_API.V2_BASE_URL"


@pytest.mark.parametrize(
    ("definitions", "part"),
    [
        ({"c": {"credential_key": "path"}}, "the variable PATH, which may not be set; write env_var"),
        ({"c": {"credential_key": "ld_preload"}}, "the variable LD_PRELOAD, which may not be set"),
        ({"c": {"credential_key": "k", "env_var": "Ld_Preload"}}, "changes how programs run"),
        ({"c": {"env_var": "https_proxy"}}, "the variable https_proxy is what tells clients of the proxy"),
        ({"c": {"env_var": "NONO_PROXY_TOKEN"}}, "the variable NONO_PROXY_TOKEN is what tells clients"),
        ({"c": {"env_var": "SSL_CERT_FILE"}}, "SSL_CERT_FILE would have to be certificates and the session token"),
        ({"a": {}, "A": {}}, "the variable A_BASE_URL would have to be the URL of a and the URL of A"),
        ({"a": {}, "b": {"env_var": "A_BASE_URL"}}, "A_BASE_URL would have to be the URL of a and the session token"),
    ],
)
def test_a_variable_has_one_meaning(definitions: dict[str, dict[str, str]], part: str) -> None:
    """And none that changes how programs run, also when nobody wrote its name."""
    (line, *_) = mistakes(used(**definitions))
    assert part in line


def test_services_may_share_the_token() -> None:
    """Its value is the same for all of them: one key with other requests for each is two services."""
    found = load(used(a={"endpoint_rules": [{"method": "GET", "path": "/**"}]}, b={})).routes
    assert [each.key_variable for each in found] == ["K", "K"]


PROXY = {"inject_mode": "header", "inject_header": "x-api-key"}


@pytest.mark.parametrize(
    ("keys", "outbound", "client"),
    [
        pytest.param({}, Placement(), Placement(), id="R14"),
        ({"inject_header": "x-api-key"}, Placement(header="x-api-key"), Placement(header="x-api-key")),
        (
            {"inject_mode": "url_path", "path_pattern": "/bot{}/", "path_replacement": "/x{}/"},
            *[Placement("url_path", path_pattern="/bot{}/", path_replacement="/x{}/")] * 2,
        ),
        (
            {"inject_mode": "query_param", "query_param_name": "key"},
            *[Placement("query_param", query_param="key")] * 2,
        ),
        ({"inject_mode": "basic_auth"}, Placement("basic_auth"), Placement("basic_auth")),
        (
            {"credential_format": "token {}", "proxy": PROXY},
            Placement(format="token {}"),
            Placement(header="x-api-key"),
        ),
        ({"credential_format": "token {}", "proxy": {}}, *[Placement(format="token {}")] * 2),
        (
            {"credential_format": "token {}", "proxy": {"inject_mode": "basic_auth"}},
            Placement(format="token {}"),
            Placement("basic_auth"),
        ),
        (
            {"inject_mode": "basic_auth", "proxy": PROXY | {"credential_format": "k={}"}},
            Placement("basic_auth"),
            Placement(header="x-api-key", format="k={}"),
        ),
        (
            {"inject_mode": "query_param", "query_param_name": "key", "proxy": {"query_param_name": "k"}},
            Placement("query_param", query_param="key"),
            Placement("query_param", query_param="k"),
        ),
    ],
)
def test_where_a_credential_goes(keys: dict[str, Any], outbound: Placement, client: Placement) -> None:
    """And where the client shows the token: in the same place, but for what `proxy` says otherwise."""
    assert route(**keys).injection == Injection(outbound, client)


RULES = [{"method": "get", "path": "/v1/**"}]


def test_endpoint_rules_are_the_services() -> None:
    """In the form in which requests are judged."""
    assert route(endpoint_rules=RULES).service.endpoints == (EndpointRule("GET", "/v1/**"),)
    assert load(used(c={"endpoint_rules": RULES}), nono_globs=True).routes[0].service.endpoints[0].crosses


def test_an_endpoint_policy_is_kept_whole() -> None:
    """Each of its lists, what holds for all else, and why."""
    rule = {"method": "*", "path": "/x", "backend": "terminal", "timeout_secs": 5}
    policy = {"default": {"decision": "allow"}, "deny": [rule | {"reason": "no"}], "approve": [rule], "allow": [rule]}
    one = EndpointRule("*", "/x")
    assert route(endpoint_policy=policy).service.endpoint_policy == EndpointPolicy(
        "allow", (PolicyRule(one, "no"),), (PolicyRule(one),), (PolicyRule(one),)
    )


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"endpoint_rules": RULES, "endpoint_policy": {}}, "endpoint_rules: no effect: endpoint_policy takes their"),
        ({"endpoint_policy": {"default": {"decision": "approve"}}}, "endpoint_policy: nobody can be asked yet"),
        ({"endpoint_policy": {"approve": RULES}}, "endpoint_policy: nobody can be asked yet"),
        ({"upgrades": [{"path": "/ws"}]}, "upgrades: no effect yet"),
    ],
)
def test_what_a_definition_says_in_vain_is_told(keys: dict[str, Any], part: str) -> None:
    """When it is in use."""
    found = load(used(c=keys))
    assert [each for each in found.warnings if each.startswith(f"p.json: network.custom_credentials.c.{part}")]
    assert not load(used(c=keys) | {"credentials": []}, deny_domain=("x.com",)).warnings


OAUTH = {"token_url": "https://a.com/token", "client_id": "i", "client_secret": "env://S"}
SPIFFE = {"type": "jwt", "workload_api_socket": "/run/s", "audience": ["a"]}


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"auth": OAUTH}, "OAuth 2 is not supported yet"),
        ({"aws_auth": {}}, "AWS signatures are not supported yet"),
        ({"spiffe": SPIFFE}, "SPIFFE is not supported yet"),
        ({"credential_key": "cmd://gh", "env_var": "K"}, "cmd:// is not supported yet"),
        ({"credential_key": "apple-password://s/a", "env_var": "K"}, "Apple's passwords are on macOS only"),
    ],
)
def test_a_kind_that_is_not_supported_is_never_a_way_around(keys: dict[str, Any], why: str) -> None:
    """Its host is refused, also where a rule allows it, and that is told at the start."""
    network = {"allow_domain": ["api.example.com"], "credentials": ["c"]}
    network["custom_credentials"] = {"c": {"upstream": EXAMPLE} | keys}  # type: ignore[assignment]
    data = {"network": network, "credential_capture": {"gh": {"command": ["gh"]}}}
    text = json.dumps(data).encode()
    found = settings(Overrides(profile="p.json"), lambda _: text, home="/h", environment={})
    (made,) = found.routes
    assert made.unsupported.startswith(why)
    assert (made.reference, made.injection) == (None, None)
    assert (made.base_url_variable, made.key_variable) == (None, None)
    assert [each.unsupported for each in found.policy.services.values()] == [made.unsupported]
    assert found.tls_intercept.hosts == ()
    said = f"p.json: network.credentials[0]: the service c: {made.unsupported}; requests to api.example.com are refused"
    assert said in found.warnings
    request = Request("GET", "/", tls=True)
    denial = decide(found.policy, Ask("api.example.com", 443, Identity.AUTHORITY, request=request))
    assert isinstance(denial, Denial)
    assert denial.category is DenialCategory.MANAGED_CREDENTIAL_UNAVAILABLE


def test_a_provider_has_a_name_of_its_own() -> None:
    """That of a service in use would lend it the service's credential."""
    provider = {
        "type": "oauth_capture",
        "token_endpoints": [{"host": "https://a.com", "path": "/t", "response_fields": [{"path": "x"}]}],
        "api_hosts": ["https://b.com"],
    }
    (line,) = mistakes({"credentials": ["github"]}, {"credential_providers": {"github": provider}})
    assert line.startswith("p.json: network.credentials[0]: github is the name of one of credential_providers, too")


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_is_a_segment(name: str) -> None:
    """A service is asked for below its name, which no client and no proxy may resolve away."""
    assert "is no name for this" in mistakes({"custom_credentials": {name: {"upstream": EXAMPLE}}})[0]
    assert "is no name of a credential" in mistakes({"credentials": [name]})[0]


def test_an_option_puts_a_service_into_use() -> None:
    """Besides those of the profile, each once."""
    found = load(used(c={}), credential=("github", "c", "github"))
    assert [(each.name, each.source) for each in found.routes] == [
        ("c", "p.json: network.credentials[0]"),
        ("github", "--credential"),
    ]


def test_no_option_takes_nothing_away() -> None:
    """Only an empty list of a profile does."""
    assert [each.name for each in load(used(c={}), credential=()).routes] == ["c"]


def test_an_option_that_names_no_credential_is_a_mistake() -> None:
    """With the nearest one."""
    assert mistakes({}, credential=("gihtub",)) == [
        "--credential: no credential is called 'gihtub'; did you mean github?"
    ]


@pytest.mark.parametrize(
    ("text", "service", "method", "path"),
    [
        ("github:GET:/repos/*/issues", "github", "GET", "/repos/*/issues"),
        ("openai:*:/v1/chat/completions", "openai", "*", "/v1/chat/completions"),
        ("a:get:/x:y", "a", "get", "/x:y"),
    ],
)
def test_an_endpoint_as_an_option(text: str, service: str, method: str, path: str) -> None:
    """SERVICE:METHOD:/path; what else there is of colons is the path's."""
    found = parse_service_endpoint(text, "s")
    assert (found.service, found.endpoint.method, found.endpoint.path) == (service, method, path)


@pytest.mark.parametrize(
    "text",
    ["github:GET", "github", ":GET:/path", "github:GET:", "github:GET:repos", "github::/x", "a:G T:/", "a:*:/[x"],
)
def test_an_endpoint_that_is_none_is_refused(text: str) -> None:
    """One line that shows the form."""
    with pytest.raises(ConfigError, match=r"^--allow-endpoint: "):
        parse_service_endpoint(text, "--allow-endpoint")


def test_endpoints_add_to_those_of_their_service() -> None:
    """And to no other's; with an endpoint policy, to what that allows."""
    network = used(a={"endpoint_rules": RULES}, b={}, c={"endpoint_policy": {"deny": RULES}})
    options = tuple(f"{name}:POST:/y" for name in "ac")
    a, b, c = (each.service for each in load(network, allow_endpoint=options).routes)
    assert list(map(str, a.endpoints)) == ["GET /v1/**", "POST /y"]
    assert b.endpoints == ()
    assert c.endpoint_policy is not None
    assert [str(each.endpoint) for each in c.endpoint_policy.allow] == ["POST /y"]
    assert [str(each.endpoint) for each in c.endpoint_policy.deny] == ["GET /v1/**"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("github:GET:/x", "no service in use is called 'github'; add --credential github"),
        ("d:GET:/x", "no service in use is called 'd'; add --credential d"),
        ("cc:GET:/x", "no service in use is called 'cc'; did you mean c?"),
        ("c:GET", "names no requests of a service"),
    ],
)
def test_endpoints_of_a_service_that_is_not_in_use_are_a_mistake(text: str, part: str) -> None:
    """They would narrow nothing, and whoever wrote them believes they do."""
    network = used(c={})
    network["custom_credentials"]["d"] = network["custom_credentials"]["c"]
    (line,) = mistakes(network, allow_endpoint=(text,))
    assert line.startswith("--allow-endpoint: ")
    assert part in line


def test_a_secret_in_place_of_its_reference_is_not_repeated() -> None:
    """Whoever wrote it into the profile by mistake has it in no log besides."""
    (line, *_) = mistakes(used(c={"credential_key": "ghp_abc-def"}))
    assert "ghp" not in line


def test_a_services_file_may_be_shared_when_the_operator_says_so() -> None:
    """Not otherwise."""
    assert not load({}).shared_secrets
    assert load({}, shared_secrets=True).shared_secrets


def test_blocked_is_blocked() -> None:
    """No service is in use where nothing is to be reached."""
    found = load(used(c={}), block_net=True)
    assert (found.routes, found.policy.services, found.tls_intercept.hosts) == ((), {}, ())
