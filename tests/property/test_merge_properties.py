"""Merging profiles: what holds whatever they say. Above all, it never opens what one of them keeps closed."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nono_ebpf.config.load import Findings, examine
from nono_ebpf.config.merge import Merged, merge, of_document
from nono_ebpf.config.options import Overrides
from nono_ebpf.config.validate import examine as examine_text
from nono_ebpf.model import Identity, ResolvedAddress
from nono_ebpf.policy.decide import Ask, Permit, decide
from nono_ebpf.policy.rules import HostRules, Policy

HOSTS = [
    "a.com",
    "A.com.",
    "a.com:443",
    "a.com:8443",
    "b.a.com",
    "*.a.com",
    "*",
    "@openai",
    "xn--mnchen-3ya.de",
    "münchen.de",
]
ASKED = [
    ("a.com", 443),
    ("a.com", 8443),
    ("a.com", 80),
    ("b.a.com", 443),
    ("api.openai.com", 443),
    ("xn--mnchen-3ya.de", 443),
]
hosts = st.sampled_from(HOSTS)
endpoints = st.fixed_dictionaries(
    {"method": st.sampled_from(["GET", "post", "*"]), "path": st.sampled_from(["/", "/v1/**", "/v1/*", "/x"])}
)
domains = hosts | st.fixed_dictionaries(
    {
        "domain": hosts,
        "endpoints": st.lists(endpoints, max_size=2),
        "intercept": st.sampled_from(["auto", "always"]),
    }
)
ports = st.lists(st.sampled_from([80, 443, 3000, 8443]), max_size=3)
custom = st.sampled_from(["https://a.com", "https://b.com"]).map(lambda url: {"upstream": url, "credential_key": "k"})
networks = st.fixed_dictionaries(
    {},
    optional={
        "block": st.booleans(),
        "allow_http2": st.booleans(),
        "network_profile": st.sampled_from([None, "minimal", "developer"]),
        "allow_domain": st.lists(domains, max_size=4),
        "deny_domain": st.lists(st.sampled_from(["a.com", "*.a.com:443", "@openai"]), max_size=2),
        "credentials": st.lists(st.sampled_from(["github", "openai", "c"]), max_size=2),
        "custom_credentials": st.dictionaries(st.sampled_from(["c", "openai"]), custom, max_size=2),
        "open_port": ports,
        "listen_port": ports,
        "connect_port": ports,
        "no_proxy": st.lists(st.sampled_from(["redis", ".x.y"]), max_size=2),
        "tls_intercept": st.just({}),
        "upstream_proxy": st.sampled_from(["p.corp:1", "q.corp:2"]),
        "upstream_bypass": st.lists(st.sampled_from(["*.c", "d"]), max_size=2),
        "upstream_auth": st.sampled_from(["env://A", "env://B"]),
    },
)


def merged(network: dict[str, Any], path: str) -> Merged:
    document, problems = examine_text(json.dumps({"network": network}).encode(), path)
    assert problems == []
    return of_document(document)


def without_credentials(found: Merged) -> Merged:
    """An empty list takes away what is below it, and so it matters what was merged first."""
    return replace(found, credentials=None)


def found(base: dict[str, Any], child: dict[str, Any], **options: Any) -> Findings:
    files = {"p.json": {"extends": "base", "network": child}, "base.json": {"network": base}}
    return examine(
        Overrides(profile="p.json", **options), lambda path: json.dumps(files[path]).encode(), home="/h", environment={}
    )


def alone(network: dict[str, Any]) -> Policy:
    text = json.dumps({"network": network}).encode()
    return examine(Overrides(profile="p.json"), lambda _: text, home="/h", environment={}).settings.policy


def is_tunnelled(policy: Policy, host: str, port: int) -> bool:
    answer = (ResolvedAddress(ip_address("203.0.113.7")),)
    return isinstance(decide(policy, Ask(host, port, Identity.AUTHORITY, addresses=answer)), Permit)


@given(networks, networks, networks)
def test_the_order_of_merging_does_not_matter_but_for_credentials(
    a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
) -> None:
    """Base with child first, or child with grandchild: values and their sources are the same."""
    first, second, third = merged(a, "a"), merged(b, "b"), merged(c, "c")
    left, right = merge(merge(first, second), third), merge(first, merge(second, third))
    assert without_credentials(left) == without_credentials(right)


@given(networks, networks)
def test_merging_again_changes_nothing(a: dict[str, Any], b: dict[str, Any]) -> None:
    """With itself, with nothing, and with a base that was merged already."""
    first, second = merged(a, "a"), merged(b, "b")
    assert merge(first, first) == first == merge(Merged(), first) == merge(first, Merged())
    once = without_credentials(merge(first, second))
    assert without_credentials(merge(first, once)) == once


@given(networks, st.randoms())
def test_the_order_of_keys_does_not_matter(network: dict[str, Any], random: Any) -> None:
    """Of an object, JSON says nothing about it."""
    keys = list(network)
    random.shuffle(keys)
    assert merged({key: network[key] for key in keys}, "p") == merged(network, "p")


@given(networks, networks)
def test_what_is_denied_or_narrowed_stays_so(base: dict[str, Any], child: dict[str, Any]) -> None:
    """Deny rules and endpoints of either are obeyed in both together, also beside `--allow-net`."""
    for policy in (found(base, child).settings.policy, found(base, child, allow_net=True).settings.policy):
        for one in (alone(base), alone(child)):
            for host, port in ASKED:
                if one.deny.match(host, port):
                    assert policy.deny.match(host, port)
                if _narrowed(one, host, port):
                    assert not is_tunnelled(policy, host, port)


def _narrowed(policy: Policy, host: str, port: int) -> bool:
    return bool(policy.allow.with_endpoints(host, port))


@given(networks, networks)
def test_nothing_is_allowed_that_neither_allows(base: dict[str, Any], child: dict[str, Any]) -> None:
    """The rules of both are all there is."""
    policy = found({**base, "connect_port": []}, {**child, "connect_port": []}).settings.policy
    ones = (alone({**base, "connect_port": []}), alone({**child, "connect_port": []}))
    for host, port in ASKED:
        if policy.allow.match(host, port):
            assert any(one.allow.match(host, port) for one in ones)


@given(networks, networks, st.lists(hosts, max_size=3))
def test_an_option_adds_to_profiles(base: dict[str, Any], child: dict[str, Any], allow: list[str]) -> None:
    """And never tunnels to a host that a profile narrowed."""
    before, after = found(base, child), found(base, child, allow_domain=tuple(allow))
    for host, port in ASKED:
        if _narrowed(before.settings.policy, host, port):
            assert not is_tunnelled(after.settings.policy, host, port)
        if before.settings.policy.allow.match(host, port):
            assert after.settings.policy.allow.match(host, port)


@given(networks, networks)
def test_block_net_leaves_nothing(base: dict[str, Any], child: dict[str, Any]) -> None:
    """Whatever the profiles say."""
    policy = found(base, child, block_net=True, allow_net=True).settings.policy
    assert isinstance(policy.allow, HostRules)
    assert not any(is_tunnelled(policy, host, port) for host, port in ASKED)


@given(networks, networks)
def test_every_value_has_a_source(base: dict[str, Any], child: dict[str, Any]) -> None:
    """Every rule and every value names the file it came from."""
    policy = found(base, child).settings.policy
    for rule in (*policy.allow.rules, *policy.deny.rules, *policy.managed.rules):
        assert rule.source.startswith(("p.json: network.", "base.json: network."))
