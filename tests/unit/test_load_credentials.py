"""Credentials in profiles: which shapes are sound, and which are in use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from nono_ebpf.config.load import examine, settings
from nono_ebpf.config.options import Overrides
from nono_ebpf.config.references import check_reference, check_variable
from nono_ebpf.config.upstreams import parse_upstream
from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from nono_ebpf.config.settings import Settings


def load(profile: dict[str, Any]) -> Settings:
    data = json.dumps(profile).encode()
    return settings(Overrides(profile="p.json"), lambda _: data, home="/h", environment={})


def mistakes(profile: dict[str, Any]) -> dict[str, str]:
    data = json.dumps(profile).encode()
    found = examine(Overrides(profile="p.json"), lambda _: data, home="/h", environment={})
    return {each.where.removeprefix("p.json: "): str(each) for each in found.problems}


def custom(**keys: Any) -> dict[str, Any]:
    """A profile with the credential `c` in use."""
    credential = {"upstream": "https://api.example.com"} | keys
    return {"network": {"credentials": ["c"], "custom_credentials": {"c": credential}}}


@pytest.mark.parametrize("text", ["env://GITHUB_TOKEN", "env://_1"])
def test_a_variable_is_a_place(text: str) -> None:
    """P7: letters, digits and _."""
    check_reference(text, "s")


@pytest.mark.parametrize(
    "text",
    ["env://", "env://MY VAR", "env://MY-VAR", "env://MY.VAR", "env://$(whoami)", "env://LD_PRELOAD", "env://path"],
)
def test_a_variable_that_is_none_or_dangerous_is_refused(text: str) -> None:
    """P7: also as a variable to set for the command."""
    with pytest.raises(ConfigError):
        check_reference(text, "s")
    with pytest.raises(ConfigError):
        check_variable(text.removeprefix("env://"), "s")


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        *((f"op://{rest}", True) for rest in ("v/i/f", "v/i/s/f")),
        *(
            (f"op://{rest}", False)
            for rest in ("v/i", "v//f", "v/i/f;x", "v/i/a|b", "v/i/$x", "v/i/`x`", "v/i/f?x", "v/i/f#x")
        ),
    ],
)
def test_an_entry_of_1password(text: str, sound: bool) -> None:
    """P9: three or four segments, without anything that means something to a shell or a URL."""
    assert _is_sound(text) is sound


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("bw://item", True),
        ("bw://item/field", True),
        *((f"bw://{rest}", False) for rest in ("-item", "a=b", "a/b/c", "", "a/", "a;b")),
    ],
)
def test_an_entry_of_bitwarden(text: str, sound: bool) -> None:
    """P10: an item, perhaps a field, nothing that could be an option."""
    assert _is_sound(text) is sound


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("github_token", True),
        ("file:///run/secret", True),
        ("cmd://github", True),
        ("keyring://service/account", True),
        ("keyring://service/account?decode=go-keyring", True),
        ("apple-password://server/account", True),
        *((text, False) for text in ("", "ghp_abc-def", "ENV://X", "file://", "file:///a/../b", "cmd://a b", "x://y")),
        *((text, False) for text in ("keyring://a", "keyring://a/b?x", "keyring://a/b#c", "apple-password://a/b/c")),
    ],
)
def test_other_places_of_a_credential(text: str, sound: bool) -> None:
    """As nono writes them."""
    assert _is_sound(text) is sound


def _is_sound(text: str) -> bool:
    try:
        check_reference(text, "s")
    except ConfigError:
        return False
    return True


def test_what_is_no_reference_is_not_repeated() -> None:
    """It may be the secret itself."""
    with pytest.raises(ConfigError) as caught:
        check_reference("ghp_abc-def", "s")
    assert "ghp" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "pattern", "port"),
    [
        pytest.param("https://api.openai.com", "api.openai.com", 443, id="R16"),
        pytest.param("http://localhost/v1", "localhost", 80, id="R16-http"),
        pytest.param("https://*.dev.example.net:443", "*.dev.example.net", 443, id="R16-below"),
        pytest.param("http://127.0.0.1:8080/v1", "127.0.0.1", 8080, id="R11"),
        pytest.param("http://[::1]:8080/v1", "::1", 8080, id="R11-v6"),
        ("HTTPS://API.Example.com:8443/v1/", "api.example.com", 8443),
    ],
)
def test_a_service_has_a_host_and_a_port(url: str, pattern: str, port: int) -> None:
    """That of its scheme, when none is written."""
    rule = parse_upstream(url, "s", name="n").host
    assert (rule.pattern, rule.ports, rule.text) == (pattern, frozenset({port}), "n")


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://api.example.com", id="R11-clear"),
        pytest.param("http://0.0.0.0:1", id="R11-unspecified"),
        pytest.param("ftp://a.com", id="R15-scheme"),
        pytest.param("https://", id="R15-no-host"),
        pytest.param("https://a.com:notaport", id="R15-port"),
        pytest.param("not a url", id="R15-none"),
        *(
            "https://u:p@a.com",
            "https://a.com?x",
            "https://a.com/#x",
            "https://*",
            "https://*:443",
            "http://*.localhost",
            "https://a.com/v1%2f..",
            "https://a.com/v1;x",
            "https://a.com/%",
            "https://a.com/a\nb",
        ),
    ],
)
def test_what_is_no_service_is_refused(url: str) -> None:
    """Nor is one to which the credential would go in clear."""
    with pytest.raises(ConfigError) as caught:
        parse_upstream(url, "s")
    assert "u:p" not in str(caught.value)


def test_credentials_are_in_use_when_they_are_named() -> None:
    """P3: a definition alone is none in use, and its service is reached like any other host."""
    profile = custom(credential_key="env://K")
    del profile["network"]["credentials"]
    found = load(profile)
    assert found.routes == ()
    assert found.policy.managed.rules == ()


@pytest.mark.parametrize("name", ["openai", "anthropic", "gemini", "google-ai", "github", "gitlab"])
def test_known_services_need_no_definition(name: str) -> None:
    """Their definitions are shipped."""
    found = load({"network": {"credentials": [name]}})
    assert [route.name for route in found.routes] == [name]
    assert len(found.policy.managed.rules) == 1


def test_a_definition_of_ones_own_comes_first() -> None:
    """Under the name of a known service."""
    profile = {
        "network": {
            "credentials": ["github"],
            "custom_credentials": {"github": {"upstream": "https://git.corp.example", "credential_key": "env://K"}},
        }
    }
    assert [rule.pattern for rule in load(profile).policy.managed.rules] == ["git.corp.example"]


def test_an_unknown_credential_is_a_mistake() -> None:
    """With the nearest one."""
    assert "did you mean github?" in mistakes({"network": {"credentials": ["gihtub"]}})["network.credentials[0]"]


OAUTH = {"token_url": "https://a.com/token", "client_id": "i", "client_secret": "env://S"}
ASSERTION = {"type": "spiffe_jwt", "workload_api_socket": "/run/s", "audience": ["a"]}


@pytest.mark.parametrize(
    "keys",
    [
        {"credential_key": "env://K"},
        {"credential_key": "op://v/i/f", "env_var": "K"},
        {"auth": OAUTH},
        {"auth": {"token_url": "http://127.0.0.1:8/t", "client_assertion": ASSERTION}},
        {"aws_auth": {}},
        {"aws_auth": {"profile": "Prod", "region": "us-east-1", "service": "bedrock"}},
        {"spiffe": {"type": "jwt", "workload_api_socket": "/run/s", "audience": ["a"]}},
        {"credential_key": "k", "inject_mode": "url_path", "path_pattern": "/bot{}/", "path_replacement": "/x{}/"},
        {"credential_key": "k", "inject_mode": "query_param", "query_param_name": "api_key"},
        {"credential_key": "k", "inject_mode": "basic_auth"},
        {"credential_key": "k", "proxy": {"inject_mode": "url_path", "path_pattern": "/{}"}},
        {"credential_key": "k", "endpoint_rules": [{"method": "GET", "path": "/v1/**"}]},
        {
            "credential_key": "k",
            "endpoint_policy": {
                "default": {"decision": "approve", "backend": "terminal", "timeout_secs": 5},
                "deny": [{"method": "*", "path": "/admin/**", "reason": "no"}],
            },
        },
        {"credential_key": "k", "tls_ca": "~/ca.pem", "tls_client_cert": "/c.pem", "tls_client_key": "/k.pem"},
        {"credential_key": "k", "upgrades": [{"path": "/backend-api/codex/responses"}]},
        {"credential_key": "k", "rate_limit": {"requests_per_minute": 0}},
        {"credential_key": "k", "auth": None, "aws_auth": None, "spiffe": None, "proxy": None, "env_var": None},
    ],
)
def test_every_shape_of_a_credential_is_read(keys: dict[str, Any]) -> None:
    """Field by field as nono has them."""
    assert [route.name for route in load(custom(**keys)).routes] == ["c"]


@pytest.mark.parametrize(
    ("keys", "where", "part"),
    [
        ({}, "", "it has no source of the credential; write one of credential_key, auth, aws_auth, spiffe"),
        ({"credential_key": "k", "aws_auth": {}}, "", "it has credential_key and aws_auth"),
        ({"credential_key": "file:///s"}, ".env_var", "it is missing"),
        ({"credential_key": "k", "inject_header": "a b"}, ".inject_header", "is no name of a header field"),
        ({"credential_key": "k", "inject_header": ""}, ".inject_header", "is no name of a header field"),
        (
            {"credential_key": "k", "credential_format": "a\r\nb: c"},
            ".credential_format",
            "does not have {} once, on one line",
        ),
        ({"credential_key": "k", "credential_format": "Bearer"}, ".credential_format", "does not have {} once"),
        ({"credential_key": "k", "credential_format": "{} {}"}, ".credential_format", "does not have {} once"),
        ({"credential_key": "k", "inject_header": "Host"}, ".inject_header", "belongs to the connection"),
        ({"credential_key": "k", "inject_header": "Content_Length"}, ".inject_header", "belongs to the connection"),
        ({"credential_key": "k", "inject_header": "transfer-encoding"}, ".inject_header", "belongs to the connection"),
        (
            {"credential_key": "k", "inject_mode": "basic_auth", "credential_format": "Basic {}"},
            ".credential_format",
            "inject_mode basic_auth has a format of its own",
        ),
        (
            {"credential_key": "k", "proxy": {"inject_mode": "basic_auth", "credential_format": "{}"}},
            ".proxy.credential_format",
            "has a format of its own",
        ),
        ({"credential_key": "k", "upstream": "http://0.0.0.0:80"}, ".upstream", "in clear"),
        ({"credential_key": "k", "upstream": "http://[::]:80"}, ".upstream", "in clear"),
        ({"credential_key": "k", "tls_ca": ""}, ".tls_ca", "is no path"),
        (
            {"credential_key": "k", "endpoint_rules": [{"method": "GET", "path": "/api/[x"}]},
            ".endpoint_rules[0].path",
            "is not a path glob",
        ),
        (
            {"credential_key": "k", "endpoint_policy": {"deny": [{"method": "*", "path": "/api/[x"}]}},
            ".endpoint_policy.deny[0].path",
            "is not a path glob",
        ),
        ({"credential_key": "k", "inject_mode": "url_path"}, ".path_pattern", "inject_mode url_path needs it"),
        ({"credential_key": "k", "inject_mode": "query_param"}, ".query_param_name", "needs it"),
        ({"credential_key": "k", "inject_mode": "heder"}, ".inject_mode", "did you mean header?"),
        ({"credential_key": "k", "path_pattern": "/{}/{}"}, ".path_pattern", "does not have {} once"),
        ({"credential_key": "k", "path_pattern": "/bot/"}, ".path_pattern", "does not have {} once"),
        ({"credential_key": "k", "path_pattern": "/bot{}?x"}, ".path_pattern", "in a path without a query"),
        ({"credential_key": "k", "proxy": {"inject_mode": "query_param"}}, ".proxy.query_param_name", "it is missing"),
        ({"credential_key": "k", "env_var": "NODE_OPTIONS"}, ".env_var", "NODE_OPTIONS"),
        ({"credential_key": "k", "tls_client_cert": "/c"}, "", "tls_client_cert and tls_client_key belong together"),
        ({"credential_key": "k", "upgrades": [{"path": "relative"}]}, ".upgrades[0].path", "is no path"),
        ({"credential_key": "k", "upgrades": [{"path": "/s?x"}]}, ".upgrades[0].path", "is no path"),
        ({"credential_key": "k", "upgrades": [{"path": "/s#f"}]}, ".upgrades[0].path", "is no path"),
        (
            {"credential_key": "k", "rate_limit": {"requests_per_minute": -1}},
            ".rate_limit.requests_per_minute",
            "got another number",
        ),
        ({"auth": {"token_url": "https://a.com", "client_id": "i"}}, ".auth", "client_id and client_secret"),
        ({"auth": OAUTH | {"client_assertion": ASSERTION}}, ".auth.client_id", "client_assertion is in its place"),
        ({"auth": OAUTH | {"token_url": "http://a.com"}}, ".auth.token_url", "in clear"),
        ({"aws_auth": {"region": "US-East-1"}}, ".aws_auth.region", "write us-east-1"),
        ({"aws_auth": {"profile": "a b"}}, ".aws_auth.profile", "is not one word"),
        ({"credential_key": "cmd://git", "env_var": "K"}, ".credential_key", "which is none of credential_capture"),
    ],
)
def test_every_mistake_in_a_credential_is_located(keys: dict[str, Any], where: str, part: str) -> None:
    """E9 and E15 of paths; exactly one source; what its way into the request needs; nothing that breaks a field."""
    found = mistakes(custom(**keys))
    found.pop("network.credentials[0]", None)  # what is not sound cannot be used either
    assert list(found) == [f"network.custom_credentials.c{where}"]
    assert part in found[f"network.custom_credentials.c{where}"]


PROVIDER = {
    "type": "oauth_capture",
    "token_endpoints": [
        {
            "host": "https://platform.example.com",
            "path": "/v1/token",
            "response_fields": [{"path": "access_token", "kind": "opaque", "format": "sk-{}"}],
        }
    ],
    "api_hosts": ["https://api.example.com"],
}


def test_a_login_that_should_be_captured_does_not_pass() -> None:
    """Where tokens come from and where they are good for: neither is reached while nobody keeps them outside."""
    profile = {
        "credential_providers": {"p": PROVIDER},
        "credential_routes": [{"name": "r", "provider": "p", "env_var": "T", "base_url_env_var": "U"}],
        "network": {"allow_domain": ["*"]},
    }
    found = load(profile)
    assert {rule.pattern for rule in found.policy.managed.rules} == {"platform.example.com", "api.example.com"}
    said = "the service p: capturing logins is not supported yet; requests to {} are refused"
    for host in ("platform.example.com", "api.example.com"):
        assert any(said.format(host) in each for each in found.warnings)


def test_a_route_needs_its_provider() -> None:
    """By the name it has in the same profile, or one that it extends."""
    found = mistakes(
        {"credential_providers": {"claude": PROVIDER}, "credential_routes": [{"name": "r", "provider": "cluade"}]}
    )
    assert "did you mean claude?" in found["credential_routes[0].provider"]


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ({"command": ["gh", "auth", "token"], "timeout_secs": 300, "ttl_secs": 0}, None),
        (
            {
                "provider": {"command": ["x"], "config": {"a": 1}},
                "output": {"format": "json", "allow_headers": ["X-A"]},
            },
            None,
        ),
        ({"command": ["x"], "interaction": {"open_urls": {"allow_origins": ["https://a.com"]}}}, None),
        ({}, ""),
        ({"command": ["x"], "provider": {"command": ["y"]}}, ""),
        ({"command": [""]}, ".command[0]"),
        ({"command": ["x"], "timeout_secs": 301}, ".timeout_secs"),
        ({"command": ["x"], "ttl_secs": 1, "cache_ttl_secs": 2}, ".ttl_secs"),
        ({"command": ["x"], "output": "json"}, ".output"),
        ({"command": ["x"], "output": {"format": "json", "allow_headers": []}}, ".output.allow_headers"),
        ({"command": ["x"], "output": {"format": "json", "allow_headers": ["Host"]}}, ".output.allow_headers[0]"),
    ],
)
def test_a_command_for_a_credential(entry: dict[str, Any], where: str | None) -> None:
    """Read and checked, though nothing runs it yet."""
    found = mistakes({"credential_capture": {"c": entry}})
    assert list(found) == ([] if where is None else [f"credential_capture.c{where}"])
