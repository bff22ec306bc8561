"""Which hosts are looked into, and the certificates that takes: what profiles and options say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from nono_ebpf.config.load import examine, settings
from nono_ebpf.config.options import Overrides
from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from nono_ebpf.config.settings import Settings

DAY = 86400


def load(network: dict[str, Any], **options: Any) -> Settings:
    data = json.dumps({"network": network}).encode()
    return settings(Overrides(profile="p.json", **options), lambda _: data, home="/h", environment={})


def mistakes(network: dict[str, Any], **options: Any) -> list[str]:
    data = json.dumps({"network": network}).encode()
    return [
        str(each)
        for each in examine(Overrides(profile="p.json", **options), lambda _: data, home="/h", environment={}).problems
    ]


def test_a_host_may_be_looked_into_for_its_own_sake() -> None:
    """As an option, which allows it, too, and in a profile; neither narrows what it may be sent."""
    network = {
        "allow_domain": ["b.com", {"domain": "a.com", "intercept": "always"}, {"domain": "c.com", "intercept": "auto"}]
    }
    found = load(network, intercept=("x.com:8443", "@openai"))
    looked_into = {rule.pattern: rule for rule in found.policy.allow.rules if rule.intercept}
    assert list(looked_into) == ["a.com", "x.com", "api.openai.com", "auth.openai.com", "chatgpt.com"]
    assert looked_into["x.com"].ports == frozenset({8443})
    assert looked_into["x.com"].source == "--intercept"
    assert all(not rule.endpoints for rule in looked_into.values())
    assert found.tls_intercept.hosts == tuple(looked_into)


def test_looking_into_a_host_narrows() -> None:
    """Another entry for it, in the same profile or as an option, does not take that away."""
    entry = {"domain": "A.com", "intercept": "always"}
    for network, options in (
        ({"allow_domain": ["a.com", entry]}, {}),
        ({"allow_domain": [entry]}, {"allow_domain": ("a.com",)}),
        ({"allow_domain": ["a.com"]}, {"intercept": ("a.com",)}),
        ({"allow_domain": [{"domain": "a.com", "paths": ["/x"]}]}, {"intercept": ("a.com",)}),
    ):
        (rule,) = load(network, **options).policy.allow.rules
        assert rule.intercept


@pytest.mark.parametrize("text", ["a b", "https://a.com/x", "@nobody", "*x"])
def test_what_is_no_host_is_not_looked_into(text: str) -> None:
    """The option is named."""
    with pytest.raises(ConfigError, match=r"^--intercept: "):
        load({}, intercept=(text,))


def test_every_host_that_may_be_looked_into_is_known() -> None:
    """By endpoints, by a service over TLS, by itself, each once; and no other host, nor one in clear."""
    custom = {
        "a": {"upstream": "https://api.a.com", "credential_key": "env://A"},
        "b": {"upstream": "https://*.b.com:8443", "credential_key": "env://B"},
        "c": {"upstream": "http://127.0.0.1:8080", "credential_key": "env://C"},
        "d": {"upstream": "https://d.com", "aws_auth": {}},
        "e": {"upstream": "https://e.com", "credential_key": "env://E"},
    }
    network = {
        "allow_domain": ["plain.com", {"domain": "*.x.com", "paths": ["/v1"]}, {"domain": "api.a.com", "paths": ["/"]}],
        "credentials": ["a", "b", "c", "d"],
        "custom_credentials": custom,
    }
    assert load(network, intercept=("y.com",)).tls_intercept.hosts == ("*.x.com", "api.a.com", "y.com", "*.b.com")


@pytest.mark.parametrize(
    ("said", "options", "ca", "leaf"),
    [
        (None, {}, DAY, DAY),
        ({}, {}, DAY, DAY),
        ({"ca_validity": "7d", "leaf_validity": "90m"}, {}, 7 * DAY, 5400),
        ({"ca_validity": "3600"}, {}, 3600, 3600),
        ({"ca_validity": "2h", "leaf_validity": "365d"}, {}, 7200, 7200),
        ({"ca_validity": "30s"}, {}, 3600, 3600),
        ({"ca_validity": "2h"}, {"proxy_ca_validity": 3}, 3 * DAY, 3 * DAY),
        (None, {"proxy_ca_validity": 365}, 365 * DAY, 365 * DAY),
    ],
)
def test_how_long_certificates_are_valid(
    said: dict[str, str] | None, options: dict[str, int], ca: int, leaf: int
) -> None:
    """A day; what the profile says; what the option says. No leaf outlives its CA, and an hour is the least."""
    found = load({} if said is None else {"tls_intercept": said}, **options).tls_intercept
    assert (found.ca_validity_s, found.leaf_validity_s) == (ca, leaf)


@pytest.mark.parametrize("text", ["366d", "8761h", "999999999d", "forever", "0d", "-1d", "1w", "1d\n", "\u0661d"])
def test_a_validity_that_nobody_means_is_a_mistake(text: str) -> None:
    """Longer than a year, or no duration at all."""
    (line,) = mistakes({"tls_intercept": {"ca_validity": text}})
    assert line.startswith("p.json: network.tls_intercept.ca_validity: ")


def test_variables_for_certificates_add_up() -> None:
    """The customary ones may be named as well."""
    found = load({"tls_intercept": {"ca_env_vars": ["MY_CA", "SSL_CERT_FILE"]}}).tls_intercept
    assert found.ca_env_vars == ("MY_CA", "SSL_CERT_FILE")


@pytest.mark.parametrize(
    ("variable", "part"),
    [
        ("LD_PRELOAD", "LD_PRELOAD changes how programs run"),
        ("node_options", "node_options changes how programs run"),
        ("HTTPS_PROXY", "the variable HTTPS_PROXY is what tells clients of the proxy"),
        ("NONO_PROXY_TOKEN", "the variable NONO_PROXY_TOKEN is what tells clients"),
        ("GITHUB_TOKEN", "the variable GITHUB_TOKEN would have to be certificates and the session token"),
        ("A-B", "letters, digits and _"),
    ],
)
def test_a_variable_for_certificates_is_for_nothing_else(variable: str, part: str) -> None:
    """Least of all for what changes how programs run."""
    (line,) = mistakes({"credentials": ["github"], "tls_intercept": {"ca_env_vars": [variable]}})
    assert part in line


def test_an_operators_ca_is_a_certificate_and_a_key() -> None:
    """Both, or neither."""
    found = load({}, proxy_ca_cert="c.pem", proxy_ca_key="k.pem").tls_intercept
    assert (found.ca_cert, found.ca_key) == ("c.pem", "k.pem")
    assert mistakes({}, proxy_ca_cert="c.pem") == ["--proxy-ca-key: it is missing: a CA is a certificate and its key"]
    assert mistakes({}, proxy_ca_key="k.pem") == ["--proxy-ca-cert: it is missing: a CA is a certificate and its key"]


def test_no_entry_of_no_proxy_leads_past_what_is_looked_into() -> None:
    """Clients that go past the proxy are looked into all the same, but an entry would say otherwise."""
    (line,) = mistakes({"allow_domain": [{"domain": "a.b.com", "intercept": "always"}], "no_proxy": [".b.com"]})
    assert "would take some clients past the proxy to a.b.com" in line
