"""`nono_ebpf.config.validate`: everything that is wrong with a document, each with its place and what to write."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from nono_ebpf.config.validate import examine, ignored_keys


def mistakes(text: str | bytes) -> dict[str, str]:
    """What is wrong by place, without the file's name; a place has one mistake."""
    _, problems = examine(text.encode() if isinstance(text, str) else text, "p.json")
    found = {each.where.removeprefix("p.json").removeprefix(": "): str(each) for each in problems}
    assert len(found) == len(problems)
    assert all("\n" not in line for line in found.values())
    return found


def of_network(**keys: Any) -> dict[str, str]:
    """The same of a network object, places from there."""
    return {where.removeprefix("network."): line for where, line in mistakes(json.dumps({"network": keys})).items()}


@pytest.mark.parametrize(
    ("text", "where", "part"),
    [
        ('{"network": {"allow_domian": []}}', "network.allow_domian", "no such key; did you mean allow_domain?"),
        ('{"netwrok": {}}', "netwrok", "did you mean network?"),
        ('{"network": {"zzz": 1}}', "network.zzz", "known: allow_domain, allow_http2, allow_port, "),
        (
            '{"network": {"allow_domain": ["a", 1]}}',
            "network.allow_domain[1]",
            "expected a string or an object, got a number",
        ),
        ('{"network": {"deny_domain": "a"}}', "network.deny_domain", "expected an array, got a string"),
        ('{"network": {"block": "yes"}}', "network.block", "expected true or false, got a string"),
        ('{"network": null}', "network", "expected an object, got null"),
        ("[]", "", "expected an object, got an array"),
        ('{"network": {}, "network": {}}', "", "'network' is written twice"),
        ('{"meta": {"a": [{"b": 1, "b": 2}]}}', "meta.a[0]", "'b' is written twice"),
        ('{"network": {"a b\\n": 1}}', 'network["a b\\n"]', "no such key"),
        ('{"network": {"allow_domain": ["\\ud800"]}}', "network.allow_domain[0]", "half of a surrogate pair"),
        ("", "", "not JSON"),
        ("{", "", "line 1 column 2"),
        ("{} {}", "", "not JSON"),
        ('{"a": /* b }', "", "not JSON"),
        ('{"network": {"open_port": [NaN]}}', "", "NaN is no number of JSON"),
        (b"\xff\xfe{\x00}\x00", "", "not JSON"),
        (b"[" * 100_000, "", "not JSON"),
        (b" " * (1 << 20) + b"{}", "", "larger than 1048576 bytes"),
        (b'{"meta": ' + b"[" * 128 + b"]" * 128 + b"}", "", "nested more than 128 deep"),
        ('{"extends": []}', "extends", "it is empty"),
        ('{"extends": ["a", "b c"]}', "extends[1]", "names no profile"),
        ('{"extends": "-x"}', "extends", "names no profile"),
        ('{"extends": "a\\u0000/b"}', "extends", "names no profile"),
    ],
)
def test_a_mistake_is_located(text: str | bytes, where: str, part: str) -> None:
    """The file, the place in it, what was expected, in one line."""
    found = mistakes(text)
    assert list(found) == [where]
    assert part in found[where]


@pytest.mark.parametrize(
    ("key", "value", "where", "part"),
    [
        ("allow_domain", ["a..b"], "allow_domain[0]", "write host, host:port, *.domain or [IPv6]:port"),
        ("allow_domain", ["@pyhton"], "allow_domain[0]", "did you mean @python?"),
        ("allow_domain", ["https://a.com/x"], "allow_domain[0]", "is a URL, not a host"),
        ("allow_domain", [{}], "allow_domain[0]", "domain is missing"),
        ("allow_domain", [{"host": "a..b"}], "allow_domain[0].host", "is not a host rule"),
        ("allow_domain", [{"host": "a", "domain": "a"}], "allow_domain[0].domain", "the same as host"),
        ("allow_domain", [{"domain": "a", "paths": ["x"]}], "allow_domain[0].paths[0]", "matches no path"),
        ("deny_domain", [{"domain": "a"}], "deny_domain[0]", "expected a string, got an object"),
        ("network_profile", "develper", "network_profile", "did you mean developer?"),
        ("credentials", ["a/b"], "credentials[0]", "is no name of a credential"),
        ("open_port", [0], "open_port[0]", "expected a number from 1 to 65535, got another number"),
        ("open_port", [65536], "open_port[0]", "got another number"),
        ("open_port", [True], "open_port[0]", "got true or false"),
        ("open_port", [80.5], "open_port[0]", "got another number"),
        ("open_port", ["80"], "open_port[0]", "got a string"),
        ("open_port_range", [[5, 3]], "open_port_range[0]", "5 is above 3; write [3, 5]"),
        ("listen_port_range", [[1]], "listen_port_range[0]", "expected 2 values, got 1"),
        ("listen_port_range", [[1, "2"]], "listen_port_range[0][1]", "got"),
        ("no_proxy", ["*"], "no_proxy[0]", "every host"),
        ("upstream_proxy", "proxy.corp", "upstream_proxy", "a port is required"),
        ("upstream_proxy", "socks5://p:1080", "upstream_proxy", "is no scheme of an HTTP proxy"),
        ("upstream_proxy", "http://u:p@p:1080", "upstream_proxy", "it has credentials in it"),
        ("upstream_bypass", ["10.0.0.1/8"], "upstream_bypass[0]", "is not a network"),
        ("upstream_auth", "keyring_name", "upstream_auth", "neither a variable nor a file"),
        ("tls_intercept", {"ca_lifecycle": "sesion"}, "tls_intercept.ca_lifecycle", "did you mean session?"),
        ("tls_intercept", {"ca_validity": "1 day"}, "tls_intercept.ca_validity", "as in 30s, 15m, 24h or 1d"),
        ("tls_intercept", {"ca_env_vars": ["LD_PRELOAD"]}, "tls_intercept.ca_env_vars[0]", "LD_PRELOAD"),
        ("custom_credentials", {"a b": {}}, 'custom_credentials["a b"]', "is no name for this"),
        ("custom_credentials", {"a": {}}, "custom_credentials.a", "upstream is missing"),
    ],
)
def test_a_value_that_cannot_be_meant_is_located(key: str, value: Any, where: str, part: str) -> None:
    """Of every key, with what to write instead where that is known."""
    found = of_network(**{key: value})
    assert list(found) == [where]
    assert part in found[where]


def test_an_invalid_glob_is_a_mistake() -> None:
    """E9: where it stands, and why."""
    endpoints = [{"method": "GET", "path": "/api/[invalid"}, {"method": "G T", "path": "/{a"}]
    found = of_network(allow_domain=[{"domain": "a.com", "endpoints": endpoints}])
    assert list(found) == [
        "allow_domain[0].endpoints[0].path",
        "allow_domain[0].endpoints[1].method",
        "allow_domain[0].endpoints[1].path",
    ]
    assert "is not a path glob" in found["allow_domain[0].endpoints[0].path"]


def test_all_mistakes_are_found_at_once() -> None:
    """None hides another, at whatever depth."""
    text = """{"netwrok": {}, "credential_routes": [{"name": "a"}], "credential_capture": {"x": {"command": []}},
    "network": {"allow_domain": ["a..b", 3, "ok.com", {"domian": "x", "endpoints": 1}], "block": 1, "open_port": [0],
    "custom_credentials": {"c": {"upstream": "http://x.com", "inject_header": "a b", "auth": {"token_url": 5}}}}}"""
    assert sorted(mistakes(text)) == [
        "credential_capture.x",
        "credential_routes[0]",
        "network.allow_domain[0]",
        "network.allow_domain[1]",
        "network.allow_domain[3].domian",
        "network.allow_domain[3].endpoints",
        "network.block",
        "network.custom_credentials.c.auth.token_url",
        "network.custom_credentials.c.inject_header",
        "network.custom_credentials.c.upstream",
        "network.open_port[0]",
        "netwrok",
    ]


def test_what_is_sound_is_kept_with_its_place() -> None:
    """Behind what is dropped, an entry still knows its index in the file."""
    document, _ = examine(b'{"network": {"proxy_allow": [1, "a.com", 2, "b.com"]}}', "p.json")
    assert document.profile.network.allow_domain == ("a.com", "b.com")
    assert document.place("network", "allow_domain", 1) == "p.json: network.proxy_allow[3]"


def test_a_misspelled_key_is_not_missing_as_well() -> None:
    """One mistake is one line."""
    found = of_network(allow_domain=[{"domain": "a.com", "endpoints": [{"methd": "GET", "path": "/"}]}])
    assert list(found) == ["allow_domain[0].endpoints[0].methd"]


@pytest.mark.parametrize("secret", [5, ["s3cret"], {"a": "s3cret"}])
def test_a_value_that_may_be_a_secret_is_not_repeated(secret: Any) -> None:
    """Nor is what was written where a reference belongs."""
    auth = {"token_url": "https://a.com", "client_id": "i", "client_secret": secret}
    found = of_network(
        custom_credentials={"a": {"upstream": "https://a.com", "auth": auth}},
        upstream_auth="s3cret:5",
    )
    assert len(found) == 2
    assert not any("s3cret" in line or "got 5" in line for line in found.values())


def test_what_is_not_about_the_network_is_left_alone() -> None:
    """Accepted whatever it holds, and listed."""
    text = b'{"$schema": "x", "filesystem": {"allow": [1]}, "secrets": null, "interactive": 5, "network": {}}'
    document, problems = examine(text, "p.json")
    assert problems == []
    assert ignored_keys(document.profile) == ["filesystem", "env_credentials", "interactive"]


@pytest.mark.parametrize("value", ["s3cret", 5432167, ["s3cret"], {"s3cret": 1}, None, True, 1.5])
def test_a_value_of_another_type_is_not_repeated(value: Any) -> None:
    """The file may be another than was meant, with secrets in it."""
    sorts = "a string|another number|an array|an object|null|true or false"
    for key in ("block", "allow_domain", "tls_intercept", "open_port"):
        for line in of_network(**{key: value}).values():
            assert "s3cret" not in line.removeprefix('p.json: network["s3cret"]').partition(".s3cret")[0]
            assert "5432167" not in line
    (line,) = of_network(open_port=[value if value != 5432167 else 70000]).values()
    assert re.search(f"got ({sorts})$", line)


def test_long_values_and_names_are_cut_in_what_is_said() -> None:
    """A line stays a line, and a place a place."""
    long = "x" * 10_000
    for found in (
        of_network(tls_intercept={"ca_lifecycle": long}),
        of_network(**{long: 1}),
        of_network(custom_credentials={long: {"upstrm": 1}}),
        mistakes(f'{{"meta": {{"{long}": [{{"{long}": 1, "{long}": 1}}]}}}}'),
    ):
        assert found
        assert all(len(line) < 1500 for line in found.values())


def test_no_more_mistakes_are_listed_than_somebody_reads() -> None:
    """Their number is bounded, and that there are more is said; so is what every place of them repeats."""
    for text in (
        json.dumps({f"k{index}": 1 for index in range(2000)}),
        json.dumps({"network": {"allow_domain": [1] * 2000}}),
        json.dumps({"network": {"custom_credentials": {f"k {index}": 1 for index in range(2000)}}}),
        '{"meta": [' + '{"a": 1, "a": 1},' * 2000 + "0]}",
    ):
        _, problems = examine(text.encode(), "p.json")
        assert len(problems) == 501
        assert str(problems[-1]) == "p.json: there are more mistakes than these"


@pytest.mark.parametrize(
    ("network", "where", "limit"),
    [
        ({"allow_domain": [f"h{i}.com" for i in range(5001)]}, "allow_domain[5000]", "5000 hosts that are allowed"),
        ({"no_proxy": [f"h{i}" for i in range(201)]}, "no_proxy[200]", "200 entries of no_proxy"),
        (
            {"upstream_bypass": [f"h{i}.com" for i in range(1001)]},
            "upstream_bypass[1000]",
            "1000 entries of upstream_bypass",
        ),
        ({"open_port": list(range(1, 2002))}, "open_port[2000]", "2000 ports"),
        ({"open_port_range": [[i, 65535] for i in range(1, 502)]}, "open_port_range[500]", "500 ranges of ports"),
        (
            {"allow_domain": [{"domain": "a.com", "paths": [f"/{i}/{'{a,b}' * 6}/{'x' * 300}" for i in range(5)]}]},
            "allow_domain[0].paths[4]",
            "100000 characters of paths, with every choice spelled out",
        ),
    ],
)
def test_what_takes_time_is_limited(network: dict[str, Any], where: str, limit: str) -> None:
    """Where the work grows with the square of a number, or with choices, there is an end that is told."""
    found = of_network(**network)
    assert list(found) == [where]
    assert found[where].endswith(f"that is too much; a profile and its bases have at most {limit}")
