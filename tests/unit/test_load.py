"""`nono_ebpf.config.load`: profiles, presets and options become what a sandbox is to do, and mistakes are located."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from nono_ebpf.authority import host_address
from nono_ebpf.config.compile import numbers
from nono_ebpf.config.load import examine, settings
from nono_ebpf.config.options import Overrides
from nono_ebpf.config.presets import network_policy, presets
from nono_ebpf.config.transfer import dump_policy, restore_policy
from nono_ebpf.errors import ConfigError
from nono_ebpf.model import Identity, ResolvedAddress
from nono_ebpf.policy.decide import Ask, Denial, DenialCategory, Permit, decide
from nono_ebpf.policy.endpoints import EndpointRule, Request

if TYPE_CHECKING:
    from nono_ebpf.config.settings import Settings
    from nono_ebpf.policy.rules import Policy

PRESETS = [
    *("anthropic", "aws_bedrock", "azure", "debian", "docker", "documentation", "github", "gitlab", "go", "google-ai"),
    *("google_cloud", "huggingface", "llm_apis", "npm", "openai", "package_registries", "python", "rust", "sigstore"),
]


def load(text: str | bytes = b"{}", **options: object) -> Settings:
    """What the profile `text`, called p.json, says together with `options`."""
    data = text.encode() if isinstance(text, str) else text
    return settings(Overrides(profile="p.json", **options), lambda _: data, home="/home/a", environment={})  # type: ignore[arg-type]


def option(**options: object) -> Settings:
    """What options alone say."""
    return settings(Overrides(**options), lambda _: b"", home="/home/a", environment={})  # type: ignore[arg-type]


def network(body: str) -> str:
    return f'{{"network": {{{body}}}}}'


def asked(policy: Policy, host: str, port: int = 443, *, address: str = "203.0.113.7", target: str = "") -> object:
    """The verdict on a connection to `host`, or on a GET of `target`."""
    literal = host_address(host)
    found = ResolvedAddress(literal or ip_address(address), pinned=literal is not None)
    request = Request("GET", target) if target else None
    return decide(policy, Ask(host, port, Identity.AUTHORITY, addresses=(found,), request=request))


def reachable(policy: Policy, host: str, port: int = 443, **more: str) -> bool:
    return isinstance(asked(policy, host, port, **more), Permit)


@pytest.mark.parametrize("text", ["{}", '{"network": {}}', '{"extends": null}', '{"$schema": "x", "meta": {}}'])
def test_nothing_written_allows_nothing(text: str) -> None:
    """Neither an empty profile nor none at all makes a rule."""
    for found in (load(text), option()):
        assert found.policy.allow.rules == found.policy.deny.rules == found.policy.managed.rules == ()
        assert found.policy.upstream_proxy is None


def test_comments_and_trailing_commas_are_read() -> None:
    """As nono reads them, and not in strings."""
    text = '// a\n{"network": { /* b\n */ "allow_domain": ["a.com", "b.com",], // c, ]\n "deny_domain": ["c.com",],},}'
    assert [rule.text for rule in load(text).policy.allow.rules] == ["a.com", "b.com"]
    assert load('{"meta": "// no , } comment /*"}')


@pytest.mark.parametrize("key", ["allow_domain", "proxy_allow", "allow_proxy"])
def test_other_names_of_allow_domain(key: str) -> None:
    """nono's aliases mean the same list, and a rule's source shows the name that was written."""
    rule = load(network(f'"{key}": ["x.com", "a.com"]')).policy.allow.match("a.com", 443)
    assert rule is not None
    assert rule.source == f"p.json: network.{key}[1]"


@pytest.mark.parametrize(
    ("key", "same"),
    [
        ("open_port", ["port_allow", "allow_port"]),
        ("credentials", ["proxy_credentials"]),
        ("upstream_proxy", ["external_proxy"]),
        ("upstream_bypass", ["external_proxy_bypass"]),
    ],
)
def test_other_names_of_other_keys(key: str, same: list[str]) -> None:
    """Each alias means its key; two spellings of one key are a mistake, also when they agree."""
    value = {"open_port": "[80]", "upstream_proxy": '"p.corp:1"'}.get(key, '["github"]')
    expected = load(network(f'"{key}": {value}'))
    for name in same:
        found = load(network(f'"{name}": {value}'))
        assert numbers(found.open_ports) == numbers(expected.open_ports)
        assert found.policy.upstream_proxy == expected.policy.upstream_proxy
        assert [route.name for route in found.routes] == [route.name for route in expected.routes]
        with pytest.raises(ConfigError, match=f"p.json: network.{name}: the same as {key}; write one of them"):
            load(network(f'"{key}": {value}, "{name}": {value}'))


def test_profile_and_options_add_up() -> None:
    """Rules of the profile and of both options are in the policy, each with its source."""
    text = network('"allow_domain": ["a.com"], "deny_domain": ["b.com"]')
    policy = load(text, allow_domain=("c.com:22",), deny_domain=("d.com",)).policy
    assert [rule.source for rule in policy.allow.rules] == ["p.json: network.allow_domain[0]", "--allow-domain"]
    assert [rule.source for rule in policy.deny.rules] == ["p.json: network.deny_domain[0]", "--deny-domain"]
    assert policy.allow.match("c.com", 22)
    assert policy.deny.match("d.com", 9)


def test_the_first_mistake_is_told_and_the_others_counted() -> None:
    """With the command that lists them, which a shell takes as it stands."""
    text = b'{"network": {"block": 1, "allow_domain": ["a..b", "@x"]}}'
    with pytest.raises(ConfigError) as caught:
        settings(Overrides(profile="my agent.json"), lambda _: text, home="/h", environment={})
    assert caught.value.where == "my agent.json: network.block"
    assert str(caught.value).endswith("; 2 more: run `nono-ebpf profile check 'my agent.json'`")


@pytest.mark.parametrize(("allow", "deny", "where"), [(["a b"], [], "--allow-domain"), ([], ["*x"], "--deny-domain")])
def test_a_bad_rule_is_located(allow: list[str], deny: list[str], where: str) -> None:
    """A malformed rule names the option that holds it."""
    with pytest.raises(ConfigError) as caught:
        option(allow_domain=tuple(allow), deny_domain=tuple(deny))
    assert caught.value.where == where


@pytest.mark.parametrize("spelled", ["@github", "github"])
def test_a_preset_stands_for_its_hosts(spelled: str) -> None:
    """In allow and in deny lists, with its name in the source; nono's own groups also as nono writes them."""
    policy = option(allow_domain=(spelled,), deny_domain=("@openai",)).policy
    allowed = policy.allow.match("api.github.com", 443)
    assert allowed is not None
    assert allowed.source == "--allow-domain: @github"
    assert policy.deny.match("api.openai.com", 443)


def test_what_is_no_group_of_nono_is_a_host() -> None:
    """A preset of ours needs its @: the word alone is a name like any other."""
    assert [rule.pattern for rule in option(allow_domain=("npm",)).policy.allow.rules] == ["npm"]


def test_an_unknown_preset_is_explained() -> None:
    """The nearest preset is offered, or all are listed."""
    with pytest.raises(ConfigError, match=r"^--allow-domain: no preset is called @pyhton; did you mean @python\?$"):
        option(allow_domain=("@pyhton",))
    with pytest.raises(ConfigError, match=r"known: @anthropic, @aws_bedrock, "):
        option(allow_domain=("@zzz",))


def test_the_presets_are_these() -> None:
    """Every documented preset exists, says what it is for, and lists hosts."""
    assert list(presets()) == PRESETS
    assert all(preset.description and preset.allow_domain for preset in presets().values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_sound(name: str) -> None:
    """Its rules parse, none is listed twice, and none deserves a warning."""
    found = option(allow_domain=(f"@{name}",))
    assert found.warnings == ()
    patterns = [(rule.pattern, rule.ports) for rule in found.policy.allow.rules]
    assert len(patterns) == len(set(patterns))


@pytest.mark.parametrize("name", ["claude-code", "codex", "developer", "enterprise", "minimal", "opencode"])
def test_a_network_profile_is_its_presets(name: str) -> None:
    """In a profile and as an option, with where it was named and the preset in the source."""
    groups = network_policy().network_profiles[name].groups
    for found, source in (
        (load(network(f'"network_profile": "{name}"')), "p.json: network.network_profile"),
        (option(network_profile=name), "--network-profile"),
    ):
        assert {rule.source for rule in found.policy.allow.rules} == {f"{source}: @{group}" for group in groups}
        assert reachable(found.policy, "api.anthropic.com")
        assert not reachable(found.policy, "example.com")


def test_an_option_replaces_the_network_profile() -> None:
    """It does not add to it."""
    found = load(network('"network_profile": "enterprise"'), network_profile="minimal")
    assert not reachable(found.policy, "github.com")


@pytest.mark.parametrize(
    ("allow", "deny", "host", "port", "expected"),
    [
        pytest.param(["API.OpenAI.COM"], [], "api.openai.com", 443, True, id="H1"),
        pytest.param(["api.openai.com"], [], "evil.com", 443, False, id="H2"),
        pytest.param(["*.googleapis.com"], [], "storage.googleapis.com", 443, True, id="H3"),
        pytest.param(["*.googleapis.com"], [], "googleapis.com", 443, False, id="H3-apex"),
        pytest.param(["169.254.169.254"], [], "169.254.169.254", 443, False, id="H4"),
        pytest.param(["metadata.google.internal"], [], "metadata.google.internal", 443, False, id="H5"),
        pytest.param(["*"], ["*.ads.example.com"], "tracker.ads.example.com", 443, False, id="H12"),
        pytest.param(["*"], ["*.ads.example.com"], "ads.example.com", 443, True, id="H12-apex"),
        pytest.param(["evil.com"], ["evil.com"], "evil.com", 443, False, id="H13"),
        pytest.param(["*:8787", "127.0.0.1:8975"], ["127.0.0.1:8975"], "127.0.0.1", 8975, False, id="H14"),
        pytest.param(["*", "127.0.0.1:8787"], ["127.0.0.1:8975"], "127.0.0.1", 8787, True, id="H14-other"),
        pytest.param([], [], "example.com", 443, False, id="H15"),
        pytest.param(["*"], ["m\\u00fcnchen.de"], "xn--mnchen-3ya.de", 443, False, id="H17"),
        pytest.param(["*.googleapis.com."], [], "storage.googleapis.com", 443, True, id="H21"),
        pytest.param(["platform.claude.com:443"], [], "platform.claude.com", 443, True, id="H23"),
        pytest.param(["platform.claude.com:443"], [], "platform.claude.com", 8443, False, id="H23-other"),
        pytest.param(["metadata.google.internal:443"], [], "metadata.google.internal", 443, False, id="H24"),
    ],
)
def test_hosts_as_a_profile_names_them(allow: list[str], deny: list[str], host: str, port: int, expected: bool) -> None:
    """Lists of a profile and the same lists as options have one meaning."""
    lists = [", ".join(f'"{each}"' for each in texts) for texts in (allow, deny)]
    text = network(f'"allow_domain": [{lists[0]}], "deny_domain": [{lists[1]}]')
    assert reachable(load(text).policy, host, port) is expected
    spelled = [tuple(each.encode().decode("unicode_escape") for each in texts) for texts in (allow, deny)]
    assert reachable(option(allow_domain=spelled[0], deny_domain=spelled[1]).policy, host, port) is expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        pytest.param("10.0.0.1", True, id="H6"),
        pytest.param("169.254.1.1", False, id="H7"),
        pytest.param("fe80::1", False, id="H8"),
        pytest.param("::ffff:169.254.169.254", False, id="H9"),
        pytest.param("::ffff:104.18.7.96", True, id="H10"),
    ],
)
def test_addresses_of_an_allowed_name(address: str, expected: bool) -> None:
    """Every host being allowed, what a name resolves to is judged all the same."""
    assert reachable(load(network('"allow_domain": ["*"]')).policy, "a.com", address=address) is expected


def test_ports_of_allowed_and_denied_hosts_are_kept() -> None:
    """P6: nono strips them from what it allows; here a port that is written is the only one."""
    policy = option(allow_domain=("evil.com:443",), deny_domain=("evil.com:8443",)).policy
    assert [(rule.pattern, rule.ports) for rule in policy.allow.rules] == [("evil.com", frozenset({443}))]
    assert [(rule.pattern, rule.ports) for rule in policy.deny.rules] == [("evil.com", frozenset({8443}))]


@pytest.mark.parametrize("entry", ['{"domain": "x.com", "endpoints": [{"method": "get", "path": "/v1/**"}]}'])
def test_a_host_with_endpoints_allows_these_requests_only(entry: str) -> None:
    """A request that matches, no other, and no tunnel."""
    found = load(network(f'"allow_domain": [{entry}]'))
    assert found.policy.allow.rules[0].endpoints == (EndpointRule("GET", "/v1/**"),)
    assert reachable(found.policy, "x.com", 80, target="/v1/a/b")
    denial = asked(found.policy, "x.com", 80, target="/v2")
    assert isinstance(denial, Denial)
    assert denial.category is DenialCategory.ENDPOINT_POLICY
    denial = asked(found.policy, "x.com")
    assert isinstance(denial, Denial)
    assert denial.category is DenialCategory.CONNECT_BYPASSES_L7
    assert found.tls_intercept.hosts == ("x.com",)
    assert found.warnings == ()


def test_hosts_and_paths_are_short_for_endpoints() -> None:
    """`host` is `domain`, and `paths` are endpoints with any method."""
    short = load(network('"allow_domain": [{"host": "x.com", "paths": ["/v1/*", "/v2"]}]')).policy.allow.rules
    assert short[0].endpoints == (EndpointRule("*", "/v1/*"), EndpointRule("*", "/v2"))
    assert short[0].pattern == "x.com"


def test_no_endpoints_are_any_connection_and_a_warning() -> None:
    """E1: as in nono, but said aloud."""
    found = load(network('"allow_domain": [{"domain": "x.com", "endpoints": []}]'))
    assert reachable(found.policy, "x.com")
    assert (
        "p.json: network.allow_domain[0]: it lists no endpoints, so any connection to x.com is allowed"
        in found.warnings
    )


@pytest.mark.parametrize(("crosses", "expected"), [(False, False), (True, True)])
def test_an_asterisk_crosses_slashes_where_nono_globs_are_asked_for(crosses: bool, expected: bool) -> None:
    """And nowhere else."""
    text = network('"allow_domain": [{"domain": "x.com", "endpoints": [{"method": "*", "path": "/a/*"}]}]')
    assert reachable(load(text, nono_globs=crosses).policy, "x.com", 80, target="/a/b/c") is expected


def test_a_preset_with_endpoints_has_them_for_every_host() -> None:
    """And a plain entry for one of the hosts does not take them away."""
    entry = '{"domain": "@openai", "endpoints": [{"method": "GET", "path": "/v1"}]}'
    policy = load(network(f'"allow_domain": ["api.openai.com", {entry}]')).policy
    assert not reachable(policy, "api.openai.com")
    assert reachable(policy, "api.openai.com", 80, target="/v1")


def test_a_network_profile_does_not_widen_what_endpoints_narrow() -> None:
    """A host of a preset that has endpoints elsewhere is no longer tunnelled."""
    entry = '{"domain": "api.github.com", "endpoints": [{"method": "GET", "path": "/repos/**"}]}'
    policy = load(network(f'"network_profile": "developer", "allow_domain": [{entry}]')).policy
    assert not reachable(policy, "api.github.com")
    assert reachable(policy, "github.com")


def test_connect_ports_are_for_hosts_without_a_port() -> None:
    """Besides 80 and 443; a port that is written stays the only one."""
    found = load(network('"allow_domain": ["a.com", "b.com:22"], "connect_port": [8443]'), allow_connect_port=(9000,))
    ports = {rule.pattern: rule.ports for rule in found.policy.allow.rules}
    assert ports == {"a.com": frozenset({80, 443, 8443, 9000}), "b.com": frozenset({22})}
    assert not found.policy.allow.rules[0].names_port


def test_open_ports_are_the_hosts_loopback() -> None:
    """Each port and range, by every name of loopback, and no other port."""
    found = load(network('"open_port": [3000], "open_port_range": [[4000, 4002]]'), open_port=(5000,))
    assert numbers(found.open_ports) == {3000, 4000, 4001, 4002, 5000}
    assert [each.source for each in found.open_ports][::2] == [
        "p.json: network.open_port[0]",
        "p.json: network.open_port_range[0]",
    ]
    for host in ("localhost", "127.0.0.1", "::1"):
        for port, expected in ((3000, True), (4001, True), (5000, True), (4003, False), (443, False)):
            assert reachable(found.policy, host, port, address="127.0.0.1") is expected


def test_ports_that_several_ranges_have_are_opened_once() -> None:
    """However they overlap: rules and numbers are no more than there are ports, and each has the place it came from."""
    ranges = ", ".join(f"[{first}, {first + 400}]" for first in range(1, 201))
    found = load(network(f'"open_port": [150], "open_port_range": [{ranges}], "listen_port_range": [{ranges}]'))
    everything = frozenset(range(1, 601))
    assert numbers(found.open_ports) == numbers(found.listen_ports) == everything
    for host in ("localhost", "127.0.0.1", "::1"):
        rules = [rule for rule in found.policy.allow.rules if rule.pattern == host]
        assert sum(len(rule.ports or ()) for rule in rules) == 600
        assert frozenset().union(*(rule.ports or () for rule in rules)) == everything
    rule = found.policy.allow.match("localhost", 402)
    assert rule is not None
    assert (rule.text, rule.source) == ("open_port 2-402", "p.json: network.open_port_range[1]")


def test_listen_ports_allow_no_connection() -> None:
    """They are for whoever restricts listening."""
    found = load(network('"listen_port": [3000], "listen_port_range": [[4000, 4001]]'), listen_port=(5000,))
    assert numbers(found.listen_ports) == {3000, 4000, 4001, 5000}
    assert found.policy.allow.rules == ()


@pytest.mark.parametrize("text", ["{}", network('"allow_domain": ["*"], "open_port": [3000]')])
def test_block_net_wins_over_everything(text: str) -> None:
    """Whatever the profile and other options say; and the reason is told."""
    found = load(text, block_net=True, allow_net=True, allow_domain=("a.com",), open_port=(80,))
    denial = asked(found.policy, "a.com")
    assert isinstance(denial, Denial)
    assert "--block-net" in denial.reason
    assert not reachable(found.policy, "localhost", 3000, address="127.0.0.1")
    assert found.open_ports == ()


def test_block_is_no_more_than_an_empty_list() -> None:
    """What the profile lists, and options, are allowed all the same."""
    assert reachable(load(network('"block": true, "allow_domain": ["a.com"]')).policy, "a.com")
    assert reachable(load(network('"block": true'), allow_domain=("a.com",)).policy, "a.com")
    assert not reachable(load(network('"block": true')).policy, "a.com")


def test_allow_net_is_everything_but_what_is_denied() -> None:
    """Every port of every host; metadata services, this host's own addresses and deny rules as ever."""
    policy = load(network('"deny_domain": ["b.com"]'), allow_net=True).policy
    assert reachable(policy, "a.com", 12345)
    assert not reachable(policy, "b.com")
    assert not reachable(policy, "169.254.169.254", 80)
    assert not reachable(policy, "localhost", 80, address="127.0.0.1")


def test_allow_net_leaves_endpoints_of_a_host_alone() -> None:
    """What a profile narrows stays narrow."""
    entry = '{"domain": "x.com", "endpoints": [{"method": "GET", "path": "/v1"}]}'
    policy = load(network(f'"allow_domain": [{entry}]'), allow_net=True).policy
    assert not reachable(policy, "x.com")
    assert reachable(policy, "x.com", 80, target="/v1")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('"allow_http2": true', "p.json: network.allow_http2: no effect yet"),
        ('"tls_intercept": {"ca_lifecycle": "trusted"}', "p.json: network.tls_intercept.ca_lifecycle: no effect"),
        ('"tls_intercept": {"ca_validity": "30s"}', "p.json: network.tls_intercept.ca_validity: an hour is the least"),
        ('"allow_domain": [{"domain": "*", "intercept": "always"}]', "TLS to every host may be intercepted"),
        (
            '"credentials": ["github"], "deny_domain": ["*.github.com"]',
            "p.json: network.credentials[0]: the service github: nothing reaches it: the deny rule *.github.com",
        ),
        ('"allow_domain": ["*"]', "p.json: network.allow_domain[0]: * allows every host"),
        ('"block": true, "allow_domain": ["a.com"]', "p.json: network.block: what is listed is allowed all the same"),
        ("", "nothing is reachable: no host is allowed (nono would allow every one)"),
    ],
)
def test_what_has_no_effect_is_told(text: str, part: str) -> None:
    """Nobody finds out by surprise."""
    assert any(warning.startswith(part) for warning in load(network(text)).warnings)


@pytest.mark.parametrize(
    "text",
    [
        '"credentials": ["github"]',
        '"tls_intercept": {}, "credentials": ["openai"]',
        '"allow_domain": [{"domain": "a.com", "intercept": "always"}]',
        '"allow_domain": [{"domain": "a.com", "paths": ["/v1"]}]',
    ],
)
def test_what_has_its_effect_needs_no_warning(text: str) -> None:
    """Services are reachable, and hosts with endpoints are judged inside TLS."""
    assert load(network(text)).warnings == ()


def test_a_policy_survives_the_pipe() -> None:
    """Another process gets the same rules, in the same order, with the same answers."""
    text = network(
        '"allow_domain": [{"domain": "e.com", "endpoints": [{"method": "GET", "path": "/v1/{a,b}"}]}, "a.com"],'
        '"credentials": ["openai"], "upstream_proxy": "https://p.corp:1", "upstream_bypass": ["*.corp", "10.0.0.0/8"]'
    )
    allow = ("*.b.com:22", "*", "münchen.de")
    policy = load(text, allow_domain=allow, deny_domain=("c.com", "d.com:5", "10.0.0.1"), open_port=(3000,)).policy
    restored = restore_policy(dump_policy(policy))
    assert restored.allow.rules == policy.allow.rules
    assert restored.deny.rules == policy.deny.rules
    assert restored.managed.rules == policy.managed.rules
    assert restored.upstream_proxy == policy.upstream_proxy
    assert restored.services == policy.services
    assert restored.deny.match("c.com", 7) == policy.deny.match("c.com", 7)
    assert restored.deny.lists_addresses
    assert restored.allow.has_endpoints


def test_no_mistake_hides_another() -> None:
    """What is sound of a profile is obeyed while everything wrong with it is collected."""
    text = network('"allow_domain": ["a.com", 1, "b..c"], "credentials": [2, "nobody"], "no_proxy": ["*", ".a.com"]')
    found = examine(Overrides(profile="p.json"), lambda _: text.encode(), home="/h", environment={})
    assert [each.where for each in found.problems] == [
        "p.json: network.allow_domain[1]",
        "p.json: network.allow_domain[2]",
        "p.json: network.credentials[0]",
        "p.json: network.no_proxy[0]",
        "p.json: network.credentials[1]",
    ]
    assert reachable(found.settings.policy, "a.com")


def test_an_entry_of_no_proxy_that_an_allowed_host_overlaps_is_a_mistake() -> None:
    """Known only when all the rules are."""
    with pytest.raises(ConfigError, match=r"^p\.json: network\.no_proxy\[1\]: .*overlaps a\.b\.com"):
        load(network('"allow_domain": ["a.b.com"], "no_proxy": [".x.com", ".b.com"]'))


def test_no_proxy_has_what_is_safe() -> None:
    """Loopback, allowed hosts of one label, and what the profile lists."""
    found = load(network('"allow_domain": ["redis", "a.com"], "no_proxy": ["*.internal.example"]'))
    assert found.no_proxy.no_proxy == "localhost,127.0.0.1,redis,.internal.example"
    assert found.no_proxy.nono_no_proxy == "localhost,127.0.0.1,redis,*.internal.example"
