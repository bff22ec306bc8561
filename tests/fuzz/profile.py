"""Any profile is a policy, or a ConfigError of one line that can be shown on a terminal.

An accepted profile, written out and loaded, is the same policy, also after the pipe to another process; every
rule in it is canonical, and means the same when written from its parts.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import msgspec

from nono_ebpf.authority import canonical_host, host_address
from nono_ebpf.config.load import build_policy, dump_policy, load_profile, restore_policy
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.rules import parse_allow_rule, parse_deny_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nono_ebpf.config.schema import Profile
    from nono_ebpf.policy.rules import Policy, Rule

_PATH = "agent.json"


def check(data: bytes) -> None:
    """Judge `data` as a profile, and as the one rule of a sound profile, allowed and denied."""
    _check_profile(data)
    text = data.decode("utf-8", "surrogatepass") if _decodes(data) else data.decode("latin-1")
    for key in ("allow_domain", "deny_domain"):
        _check_profile(_quoted(key, text))


def seeds() -> Iterator[bytes]:
    """Profiles with every key, rules of every kind, mistakes of every kind; rules alone."""
    yield b'{"network": {"allow_domain": ["api.example.com", "@github"], "deny_domain": ["gist.github.com"]}}'
    yield b'{"network": {"proxy_allow": ["*.example.com:8443", "*"], "deny_domain": []}}'
    yield b'{"network": {"allow_proxy": ["[2001:db8::7]:22", "203.0.113.7:22", "m\xc3\xbcnchen.de"]}}'
    yield b'{"network": {"allow_domain": ["a"], "proxy_allow": ["b"]}}'
    yield b'{"network": {"allow_domian": [1, 2.5, true, null, "\\u00fc\\ud83d\\ude00"]}, "netwrok": {}}'
    yield b'{"network": {}, "network": {"deny_domain": "a"}}'
    yield from (b"{}", b"[]", b"[[[[[]]]]]", b'{"network": null}', b"\xef\xbb\xbf{}", b"1e999", b"@python", b"@pyhton")
    yield from (b"a.com", b"*.a.com:22", b"*:443", b"::1", b"[::ffff:10.0.0.1]:80", b"10.0.0.0/8", b"A.com.", b"xn--a")


def _decodes(data: bytes) -> bool:
    """Also with half a surrogate pair, which JSON can spell and no other text we read can hold."""
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _quoted(key: str, text: str) -> bytes:
    escaped = "".join(f"\\u{unit:04x}" for unit in memoryview(text.encode("utf-16", "surrogatepass")[2:]).cast("H"))
    return f'{{"network": {{"{key}": ["{escaped}"]}}}}'.encode()


def _check_profile(data: bytes) -> None:
    try:
        profile = load_profile(data, _PATH)
        policy = build_policy(profile, _PATH, [], [])
    except ConfigError as error:
        _check_it_can_be_shown(str(error))
        return
    _check_it_is_kept(profile, policy)
    for rule in policy.allow.rules:
        _check_rule(rule, parse_allow_rule)
    for rule in policy.deny.rules:
        _check_rule(rule, parse_deny_rule)
    for warning in policy.warnings():
        _check_it_can_be_shown(warning)


def _check_it_can_be_shown(line: str) -> None:
    assert line.splitlines() == [line], f"more than one line: {line!a}"
    assert not any(unicodedata.category(each) in {"Cc", "Cs"} for each in line), f"control characters: {line!a}"


def _check_it_is_kept(profile: Profile, policy: Policy) -> None:
    again = load_profile(msgspec.json.encode(profile), _PATH)
    assert again == profile
    for same in (build_policy(again, _PATH, [], []), restore_policy(dump_policy(policy))):
        assert same.allow.rules == policy.allow.rules
        assert same.deny.rules == policy.deny.rules


def _check_rule(rule: Rule, parse: Callable[[str, str], Rule]) -> None:
    """The rule written from its parts is itself."""
    domain = rule.pattern.removeprefix("*.")
    assert domain == "*" or canonical_host(domain) == domain
    assert rule.pattern == domain or host_address(domain) is None
    written = f"[{rule.pattern}]" if ":" in rule.pattern else rule.pattern
    ports = sorted(rule.ports or ())
    again = parse(f"{written}:{ports[0]}" if len(ports) == 1 else written, rule.source)
    assert (again.pattern, again.ports) == (rule.pattern, rule.ports)
