"""`nono_ebpf.config.published`: the schema accepts what `nono-ebpf` does, and editors get something to show."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from nono_ebpf.config.load import examine
from nono_ebpf.config.options import Overrides
from nono_ebpf.config.presets import network_policy
from nono_ebpf.config.published import json_schema

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def network(**keys: Any) -> dict[str, Any]:
    return {"network": keys}


def custom(**keys: Any) -> dict[str, Any]:
    return network(custom_credentials={"c": {"upstream": "https://a.example.com", **keys}})


OAUTH = {"token_url": "https://a.com/token", "client_id": "i", "client_secret": "env://S"}
PROVIDER = {
    "type": "oauth_capture",
    "token_endpoints": [{"host": "https://a.com", "path": "/t", "response_fields": [{"path": "access_token"}]}],
    "api_hosts": ["https://b.com"],
}
VALID: list[Any] = [
    {},
    {"$schema": "./profile.schema.json", "extends": "default", "meta": {"name": "x"}},
    {"extends": ["default", "codex"]},
    {"extends": None},
    {"filesystem": {"allow": ["."]}, "secrets": {"a": "B"}, "undo": {}, "policy": {}, "interactive": True},
    network(block=True, allow_http2=False, network_profile="developer"),
    network(network_profile=None, credentials=None, tls_intercept=None, upstream_proxy=None),
    network(allow_domain=["a.com", "@github", "*.b.com:22", "*", "*:22", "[::1]:80", "münchen.de", "llm_apis"]),
    network(proxy_allow=["a.com"]),
    network(allow_proxy=[{"domain": "a.com"}, {"domain": "a.com", "endpoints": [{"method": "get", "path": "/**"}]}]),
    network(allow_domain=[{"host": "a.com", "paths": ["/v1/*", "**"]}]),
    network(allow_domain=[{"domain": "a.com", "intercept": "always"}, {"domain": "b.com", "intercept": "auto"}]),
    network(deny_domain=["*.ads.example.com"]),
    network(proxy_credentials=["github", "openai"]),
    network(port_allow=[80, 65535.0], listen_port=[1], connect_port=[8443]),
    network(open_port_range=[[3000, 3010], [5, 5]], listen_port_range=[]),
    network(no_proxy=["redis", ".svc.cluster.local"]),
    network(
        tls_intercept={"ca_lifecycle": "trusted", "ca_validity": "24h", "leaf_validity": "30", "ca_env_vars": ["X"]}
    ),
    network(external_proxy="p.corp:3128", external_proxy_bypass=["*.corp"], upstream_auth="env://X"),
    custom(credential_key="env://K", inject_header="x-api-key", credential_format="{}"),
    custom(credential_key="op://v/i/f", env_var="K", inject_mode="url_path", path_pattern="/bot{}/"),
    custom(credential_key="keyring://s/a?decode=go-keyring", inject_mode="basic_auth"),
    custom(credential_key="k", credential_format="a{b}{}", tls_ca="~/ca.pem", tls_client_cert="c", tls_client_key="k"),
    custom(auth=OAUTH),
    custom(aws_auth={"region": "us-east-1"}, credential_key=None),
    custom(spiffe={"type": "jwt", "workload_api_socket": "/run/s", "audience": ["a"]}),
    custom(
        credential_key="k", endpoint_policy={"default": {"decision": "deny"}, "allow": [{"method": "*", "path": "/"}]}
    ),
    custom(credential_key="k", upgrades=[{"path": "/ws"}], rate_limit={"requests_per_minute": 60, "burst": 1}),
    {"credential_capture": {"g": {"command": ["gh", "auth", "token"], "output": "text", "stdin": "request_json"}}},
    {"credential_providers": {"p": PROVIDER}, "credential_routes": [{"name": "r", "provider": "p"}]},
]
INVALID: list[Any] = [
    None,
    [],
    "x",
    {"netwrok": {}},
    {"network": None},
    {"network": []},
    {"extends": []},
    {"extends": ""},
    {"extends": "a b"},
    {"extends": ["-a"]},
    {"extends": 1},
    {"extends": ["a", None]},
    network(allow_domian=[]),
    network(block="yes"),
    network(block=1),
    network(network_profile="develper"),
    network(network_profile=1),
    network(allow_domain="a.com"),
    network(allow_domain=[1]),
    network(allow_domain=[{}]),
    network(allow_domain=["*a.com"]),
    network(allow_domain=["a.*.com"]),
    network(allow_domain=[{"domain": "**"}]),
    network(deny_domain=["a.com:*"]),
    network(deny_domain=[""]),
    network(allow_domain=[{"domain": "a.com", "host": "a.com"}]),
    network(allow_domain=[{"domain": "a.com", "endpoint": []}]),
    network(allow_domain=[{"domain": "a.com", "endpoints": [{"method": "GET"}]}]),
    network(allow_domain=[{"domain": "a.com", "endpoints": [{"method": "G T", "path": "/"}]}]),
    network(allow_domain=[{"domain": "a.com", "paths": ["v1"]}]),
    network(allow_domain=[{"domain": "a.com", "intercept": "never"}]),
    network(allow_domain=[{"domain": "a.com", "intercept": True}]),
    network(allow_domain=["a.com"], proxy_allow=["a.com"]),
    network(proxy_allow=[], allow_proxy=[]),
    network(deny_domain=[{"domain": "a.com"}]),
    network(deny_domain=None),
    network(credentials=["a b"]),
    network(open_port=[0]),
    network(open_port=[65536]),
    network(open_port=[1.5]),
    network(open_port=[True]),
    network(open_port=["80"]),
    network(open_port_range=[[1]]),
    network(open_port_range=[[1, 2, 3]]),
    network(open_port_range=[[0, 2]]),
    network(tls_intercept={"ca_lifecycle": "sesion"}),
    network(tls_intercept={"ca_validity": "1 day"}),
    network(tls_intercept={"ca_validity": "0s"}),
    network(tls_intercept={"ca_env_vars": ["A-B"]}),
    network(upstream_auth="keyring"),
    network(custom_credentials={"a b": {"upstream": "https://a.com", "credential_key": "k"}}),
    network(custom_credentials={"..": {"upstream": "https://a.com", "credential_key": "k"}}),
    network(custom_credentials={"c": {"credential_key": "k"}}),
    custom(),
    custom(credential_key=None),
    custom(credential_key="k", aws_auth={}),
    custom(credential_key="k", inject_mode="heder"),
    custom(credential_key="k", inject_header="a b"),
    custom(credential_key="k", credential_format="a\nb: c"),
    custom(credential_key="k", credential_format="Bearer"),
    custom(credential_key="k", credential_format="{}{}"),
    custom(credential_key="k", tls_ca=""),
    custom(credential_key="k", path_pattern="/x/"),
    custom(credential_key="k", query_param_name="a b"),
    custom(credential_key="k", upgrades=[{"path": "ws"}]),
    custom(credential_key="k", rate_limit={}),
    custom(credential_key="k", rate_limit={"requests_per_minute": -1}),
    custom(credential_key="k", endpoint_policy={"default": "deny"}),
    custom(auth={"client_id": "i"}),
    custom(spiffe={"type": "x509", "workload_api_socket": "/s", "audience": []}),
    {"credential_capture": {"g": {"command": ["x"], "timeout_secs": 301}}},
    {"credential_capture": {"g": {"command": ["x"], "output": "json"}}},
    {"credential_providers": {"p": PROVIDER | {"api_hosts": []}}},
    {"credential_providers": {"p": PROVIDER | {"api_hosts": ["https://a.com/x"]}}},
    {"credential_routes": [{"name": "r"}]},
]


def is_sound(document: Any) -> bool:
    def read(path: str) -> bytes:
        if path != "p.json":
            raise FileNotFoundError(path)
        return json.dumps(document).encode()

    return not examine(Overrides(profile="p.json"), read, home="/h", environment={}).problems


@pytest.mark.parametrize("document", VALID, ids=json.dumps)
def test_what_is_accepted_is_valid(document: Any) -> None:
    """An editor does not mark what works."""
    assert is_sound(document)
    VALIDATOR.validate(document)


@pytest.mark.parametrize("document", INVALID, ids=json.dumps)
def test_what_a_shape_shows_to_be_wrong_is_invalid(document: Any) -> None:
    """An editor marks it before anybody runs it."""
    assert not is_sound(document)
    assert not VALIDATOR.is_valid(document)


def test_the_schema_is_one() -> None:
    """Of its draft, without a reference that leads nowhere."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["title"]


def test_every_property_says_what_it_is() -> None:
    """Of what people write: the profile, its network, hosts, credentials."""
    for name in (
        "Profile",
        "Network",
        "AllowDomain",
        "Endpoint",
        "CustomCredential",
        "TlsIntercept",
        "CredentialRoute",
    ):
        for key, told in SCHEMA["$defs"][name]["properties"].items():
            assert told.get("description"), f"{name}.{key}"


def test_names_that_are_known_are_completed() -> None:
    """Network profiles, and what a literal may be."""
    properties = SCHEMA["$defs"]["Network"]["properties"]
    assert properties["network_profile"]["anyOf"][0]["enum"] == sorted(network_policy().network_profiles)
    assert SCHEMA["$defs"]["TlsIntercept"]["properties"]["ca_lifecycle"]["enum"] == ["session", "trusted"]
    assert "proxy_allow" in properties
