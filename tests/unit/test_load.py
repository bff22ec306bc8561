"""`nono_ebpf.config.load`: profiles, presets and options become a policy, and mistakes are located."""

from __future__ import annotations

import pytest

from nono_ebpf.config.load import build_policy, dump_policy, load_profile, presets, restore_policy
from nono_ebpf.config.schema import Network, Profile
from nono_ebpf.errors import ConfigError

PRESETS = [
    *("anthropic", "debian", "docker", "github", "gitlab", "go", "google-ai", "huggingface", "npm", "openai"),
    *("python", "rust"),
]


def test_a_profile_is_read() -> None:
    """The network object is read, and what is left out has a value."""
    text = b'{"network": {"allow_domain": ["a.com", "@python"], "deny_domain": ["b.com"]}}'
    assert load_profile(text, "p") == Profile(Network(allow_domain=("a.com", "@python"), deny_domain=("b.com",)))
    assert load_profile(b"{}", "p") == Profile()
    assert load_profile(b'{"network": {}}', "p") == Profile()


@pytest.mark.parametrize("key", ["allow_domain", "proxy_allow", "allow_proxy"])
def test_other_names_of_allow_domain(key: str) -> None:
    """nono's aliases mean the same list, and a rule's source shows the name that was written."""
    profile = load_profile(f'{{"network": {{"{key}": ["x.com", "a.com"]}}}}'.encode(), "p.json")
    rule = build_policy(profile, "p.json", [], []).allow.match("a.com", 443)
    assert rule is not None
    assert rule.source == f"p.json: network.{key}[1]"


@pytest.mark.parametrize(
    ("text", "where", "part"),
    [
        (b'{"network": {"allow_domian": []}}', "p.json: network.allow_domian", "did you mean allow_domain?"),
        (b'{"netwrok": {}}', "p.json: netwrok", "did you mean network?"),
        (b'{"network": {"zzz": 1}}', "p.json: network.zzz", "known: allow_domain, allow_proxy, deny_domain"),
        (
            b'{"network": {"allow_domain": ["a", 1]}}',
            "p.json: network.allow_domain[1]",
            "Expected str, got int",
        ),
        (b'{"network": {"deny_domain": "a"}}', "p.json: network.deny_domain", "Expected array, got str"),
        (b'{"network": null}', "p.json: network", "Expected object, got null"),
        (b"[]", "p.json", "Expected object, got array"),
        (b'{"network": {}, "network": {}}', "p.json", "'network' is written twice"),
        (
            b'{"network": {"allow_domain": ["a"], "proxy_allow": ["b"]}}',
            "p.json: network.proxy_allow",
            "the same",
        ),
        (b"", "p.json", "not JSON"),
        (b"{", "p.json", "line 1 column 2"),
        (b"{} {}", "p.json", "not JSON"),
        (b"\xff\xfe{\x00}\x00", "p.json", "not JSON"),
        (b"[" * 100_000, "p.json", "not JSON"),
    ],
)
def test_a_mistake_is_located(text: bytes, where: str, part: str) -> None:
    """Every mistake is a ConfigError that names the file, the path inside it, and what was expected."""
    with pytest.raises(ConfigError) as caught:
        load_profile(text, "p.json")
    assert caught.value.where == where
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_profile_and_options_add_up() -> None:
    """Rules of the profile and of both options are in the policy, each with its source."""
    profile = Profile(Network(allow_domain=("a.com",), deny_domain=("b.com",)))
    policy = build_policy(profile, "p.json", ["c.com:22"], ["d.com"])
    assert [rule.source for rule in policy.allow.rules] == [
        "p.json: network.allow_domain[0]",
        "--allow-domain",
    ]
    assert [rule.source for rule in policy.deny.rules] == ["p.json: network.deny_domain[0]", "--deny-domain"]
    assert policy.allow.match("c.com", 22)
    assert policy.deny.match("d.com", 9)


def test_nothing_written_allows_nothing() -> None:
    """No profile and no option make a policy without rules."""
    policy = build_policy(None, "", [], [])
    assert policy.allow.rules == policy.deny.rules == ()


@pytest.mark.parametrize(("allow", "deny", "where"), [(["a b"], [], "--allow-domain"), ([], ["*x"], "--deny-domain")])
def test_a_bad_rule_is_located(allow: list[str], deny: list[str], where: str) -> None:
    """A malformed rule names the option that holds it."""
    with pytest.raises(ConfigError) as caught:
        build_policy(None, "", allow, deny)
    assert caught.value.where == where


def test_a_preset_stands_for_its_hosts() -> None:
    """`@name` adds the preset's hosts with the preset as source, in allow and in deny lists."""
    policy = build_policy(None, "", ["@github"], ["@openai"])
    allowed = policy.allow.match("api.github.com", 443)
    assert allowed is not None
    assert allowed.source == "@github"
    assert policy.deny.match("api.openai.com", 443)


def test_an_unknown_preset_is_explained() -> None:
    """The nearest preset is offered, and all are listed."""
    with pytest.raises(ConfigError, match=r"^--allow-domain: .*did you mean @python\? known: @anthropic, "):
        build_policy(None, "", ["@pyhton"], [])


def test_the_presets_are_these() -> None:
    """Every documented preset exists, says what it is for, and lists hosts."""
    assert list(presets()) == PRESETS
    assert all(preset.description and preset.allow_domain for preset in presets().values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_sound(name: str) -> None:
    """Its rules parse, none is listed twice, and none deserves a warning."""
    policy = build_policy(None, "", [f"@{name}"], [])
    assert policy.warnings() == []
    patterns = [(rule.pattern, rule.ports) for rule in policy.allow.rules]
    assert len(patterns) == len(set(patterns))


def test_a_policy_survives_the_pipe() -> None:
    """Another process gets the same rules, in the same order, with the same answers."""
    policy = build_policy(None, "", ["a.com", "*.b.com:22", "*", "münchen.de"], ["c.com", "d.com:5", "10.0.0.1"])
    restored = restore_policy(dump_policy(policy))
    assert restored.allow.rules == policy.allow.rules
    assert restored.deny.rules == policy.deny.rules
    assert restored.deny.match("c.com", 7) == policy.deny.match("c.com", 7)
    assert restored.deny.lists_addresses
