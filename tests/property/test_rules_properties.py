"""`nono_ebpf.policy.rules`: the index finds what a scan over all rules would find."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nono_ebpf.config.transfer import dump_policy, restore_policy
from nono_ebpf.policy.rules import HostRules, Policy, Rule, parse_allow_rule, parse_deny_rule

# Few labels and ports, so that rules and questions meet.
names = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4).map(".".join)
hosts = st.one_of(names, st.sampled_from(["10.0.0.1", "::1", "2001:db8::a"]))
patterns = st.one_of(
    st.just("*"), names, names.map("*.{}".format), st.sampled_from(["10.0.0.1", "[::1]", "[2001:db8::a]"])
)
ports = st.sampled_from([22, 80, 443, 8080])
texts = st.builds(lambda pattern, port: pattern if port is None else f"{pattern}:{port}", patterns, st.none() | ports)
allow_rules = texts.map(lambda text: parse_allow_rule(text, "allow"))
deny_rules = texts.map(lambda text: parse_deny_rule(text, "deny"))
rule_lists = st.lists(st.one_of(allow_rules, deny_rules), max_size=8)


def covers(rule: Rule, host: str) -> bool:
    if rule.pattern == "*":
        return True
    if rule.pattern.startswith("*."):
        wanted, labels = rule.pattern[2:].split("."), host.split(".")
        return len(labels) > len(wanted) and labels[-len(wanted) :] == wanted
    return rule.pattern == host


def on_port(rule: Rule, port: int | None) -> bool:
    return port is None or rule.ports is None or port in rule.ports


def specificity(rule: Rule) -> tuple[bool, int]:
    return "*" not in rule.pattern, rule.pattern.count(".") if rule.pattern != "*" else -1


@given(rule_lists, hosts, st.none() | ports)
def test_the_index_agrees_with_a_scan(rules: list[Rule], host: str, port: int | None) -> None:
    """A rule is found exactly if one fits, and none that fits is more specific."""
    fitting = [rule for rule in rules if covers(rule, host) and on_port(rule, port)]
    found = HostRules(rules).match(host, port)
    assert (found is None) == (not fitting)
    if found is not None:
        assert found in fitting
        assert specificity(found) == max(map(specificity, fitting))


@given(rule_lists, hosts)
def test_every_port_means_every_port(rules: list[Rule], host: str) -> None:
    """`match_every_port` finds a rule exactly if one without ports fits."""
    expected = [rule for rule in rules if rule.ports is None and covers(rule, host)]
    found = HostRules(rules).match_every_port(host)
    assert found in expected if expected else found is None


@given(rule_lists, hosts)
def test_all_ports_that_rules_open_are_listed(rules: list[Rule], host: str) -> None:
    """The rules of `matching` cover the same ports as all the rules that fit."""
    found = list(HostRules(rules).matching(host))
    fitting = [rule for rule in rules if covers(rule, host)]
    for port in (22, 80, 443, 8080, 9):
        assert any(on_port(rule, port) for rule in found) == any(on_port(rule, port) for rule in fitting)


@given(st.lists(allow_rules, max_size=8), st.randoms(use_true_random=False), hosts, ports)
def test_order_does_not_change_what_is_allowed(rules: list[Rule], random: object, host: str, port: int) -> None:
    """Rules are a set: any order finds a rule for the same host and port, with the port written or not."""
    shuffled = list(rules)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    first, second = HostRules(rules).match(host, port), HostRules(shuffled).match(host, port)
    assert (first and (first.pattern, first.ports)) == (second and (second.pattern, second.ports))


@given(rule_lists, rule_lists)
def test_a_policy_survives_the_pipe(allow: list[Rule], deny: list[Rule]) -> None:
    """restore_policy reads back what dump_policy wrote."""
    restored = restore_policy(dump_policy(Policy(HostRules(allow), HostRules(deny))))
    assert (restored.allow.rules, restored.deny.rules) == (tuple(allow), tuple(deny))
