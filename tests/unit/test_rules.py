"""`nono_ebpf.policy.rules`: how rules are written and found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.rules import WEB_PORTS, HostRules, Policy, Rule, parse_allow_rule, parse_deny_rule

if TYPE_CHECKING:
    from collections.abc import Callable


def allows(*texts: str) -> HostRules:
    return HostRules(parse_allow_rule(text, "test") for text in texts)


def denies(*texts: str) -> HostRules:
    return HostRules(parse_deny_rule(text, "test") for text in texts)


@pytest.mark.parametrize(
    ("text", "pattern", "port"),
    [
        ("API.OpenAI.COM", "api.openai.com", None),
        ("api.openai.com.:8443", "api.openai.com", 8443),
        ("*.GoogleAPIs.com", "*.googleapis.com", None),
        ("*.münchen.de:22", "*.xn--mnchen-3ya.de", 22),
        ("*", "*", None),
        ("*:8443", "*", 8443),
        ("127.0.0.1:8975", "127.0.0.1", 8975),
        ("[::1]", "::1", None),
        ("[::FFFF:10.0.0.1]:80", "10.0.0.1", 80),
    ],
)
def test_a_rule_has_one_meaning(text: str, pattern: str, port: int | None) -> None:
    """Patterns are canonical; without a port an allow rule is for 80 and 443, a deny rule for every port."""
    ports = None if port is None else frozenset({port})
    assert parse_allow_rule(text, "s") == Rule(pattern, ports or WEB_PORTS, text, "s", names_port=port is not None)
    assert parse_deny_rule(text, "s") == Rule(pattern, ports, text, "s", names_port=port is not None)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "www*.com",
            "foo.*",
            "*foo",
            "*foo.com",
            "foo.*.com",
            "*.",
            "*.*.com",
            "**.com",
            "**",
            "*.*",
        ),
        *(
            "*.127.0.0.1",
            "*.0.0.1",
            "*.[::1]",
            "*.1",
            ".example.com",
            "a b",
            "a\0b",
            "https://a",
            "a/b",
            "a:0",
        ),
        *("a:http", "a:80,443", "::1", "::1:80", "10.0.0.0/8", "*.a..b", "u@a", "2130706433", "*:", "a:*"),
    ],
)
@pytest.mark.parametrize("parse", [parse_allow_rule, parse_deny_rule])
def test_a_rule_that_cannot_mean_one_thing_is_refused(parse: Callable[[str, str], Rule], text: str) -> None:
    """The operator is told where the rule stands and how rules are written."""
    with pytest.raises(ConfigError, match=r"is not a host rule: .*; write host, host:port") as caught:
        parse(text, "p.json: network.allow_domain[3]")
    assert caught.value.where == "p.json: network.allow_domain[3]"


@pytest.mark.parametrize(
    ("rule", "host", "port"),
    [
        ("API.OpenAI.COM", "api.openai.com", 443),
        ("api.openai.com", "api.openai.com", 80),
        ("*.googleapis.com", "storage.googleapis.com", 443),
        ("*.googleapis.com", "a.b.c.googleapis.com", 443),
        ("platform.claude.com:443", "platform.claude.com", 443),
        ("*:8443", "10.0.0.1", 8443),
        ("*", "2001:db8::1", 443),
        ("*.com", "evil.com", 443),
    ],
)
def test_an_allow_rule_matches(rule: str, host: str, port: int) -> None:
    """Exact, below a domain at any depth, or everything; on the rule's port, and for a lookup on no port."""
    found = allows(rule).match(host, port)
    assert found is not None
    assert found.text == rule
    assert allows(rule).match(host, None) == found


@pytest.mark.parametrize(
    ("rule", "host", "port"),
    [
        ("api.openai.com", "evil.com", 443),
        ("api.openai.com", "x.api.openai.com", 443),
        ("api.openai.com", "openai.com", 443),
        ("github.com", "evilgithub.com", 443),
        ("*.github.com", "evilgithub.com", 443),
        ("*.trusted.net", "nottrusted.net", 443),
        ("*.googleapis.com", "googleapis.com", 443),
        ("*.example.org", "evil.example.org.attacker.com", 443),
        ("api.openai.com", "api.openai.com", 8443),
        ("platform.claude.com:443", "platform.claude.com", 8443),
        ("*", "anything.example", 22),
        ("127.0.0.1", "27.0.0.1", 80),
    ],
)
def test_an_allow_rule_does_not_match(rule: str, host: str, port: int) -> None:
    """Neither the apex of a wildcard, nor a part of a label, nor another port."""
    assert allows(rule).match(host, port) is None


def test_no_rules_match_nothing() -> None:
    """An empty list has no rule for any host or port."""
    assert HostRules().match("example.com", 443) is None
    assert HostRules().match("example.com", None) is None
    assert HostRules().match_every_port("example.com") is None


def test_deny_rules_match_as_nono_does() -> None:
    """A bare host on every port, below a domain but not the domain, and host:port on that port only."""
    rules = denies("*.ads.example.com", "127.0.0.1:8975", "münchen.de")
    assert rules.match("tracker.ads.example.com", 1234)
    assert rules.match("xn--mnchen-3ya.de", 22)
    assert rules.match("127.0.0.1", 8975)
    assert not rules.match("ads.example.com", 443)
    assert not rules.match("127.0.0.1", 8787)
    assert rules.match_every_port("tracker.ads.example.com")
    assert not rules.match_every_port("127.0.0.1")


def test_the_most_specific_rule_answers() -> None:
    """Exact before the longer domain before the shorter before `*`, as long as the port fits."""
    rules = allows("*", "*.example.com", "*.b.example.com", "a.b.example.com", "*.example.com:22", "*:22")
    texts = [rule.text for rule in rules.matching("a.b.example.com")]
    assert texts == ["a.b.example.com", "*.b.example.com", "*.example.com:22", "*.example.com", "*:22", "*"]
    assert rules.match("a.b.example.com", 22) == parse_allow_rule("*.example.com:22", "test")
    assert rules.match("a.b.example.com", 443) == parse_allow_rule("a.b.example.com", "test")
    assert rules.match("other.org", 22) == parse_allow_rule("*:22", "test")


@pytest.mark.parametrize("order", [("h", "h:443"), ("h:443", "h")])
def test_a_written_port_answers_before_the_default(order: tuple[str, str]) -> None:
    """`h` and `h:443` together: the rule that writes the port is the one found, in either order."""
    found = allows(*order).match("h", 443)
    assert found is not None
    assert found.names_port


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("*", "allows every host"),
        ("*:22", "allows every host"),
        ("*.com", "every host below .com"),
        ("metadata.google.internal:443", "always denied"),
        ("169.254.169.254", "always denied"),
        ("[64:ff9b::a9fe:a9fe]", "always denied"),
        ("localhost", "need a port"),
        ("127.0.0.1", "need a port"),
    ],
)
def test_the_operator_is_warned(text: str, part: str) -> None:
    """Rules that allow very much, or nothing at all, are named with their source."""
    [warning] = Policy(allows(text), denies()).warnings()
    assert warning.startswith("test: ")
    assert part in warning


def test_ordinary_rules_are_not_warned_about() -> None:
    """No noise: hosts, domains, private addresses, listed local ports and deny rules are fine."""
    allow = allows("a.com", "*.a.com", "10.0.0.1", "localhost:8080", "[::1]:80", "registry")
    assert Policy(allow, denies("*", "*.com", "localhost")).warnings() == []
