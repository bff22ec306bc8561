"""Any profile, option or variable is settings, or ConfigErrors of one line that can be shown on a terminal.

`settings` succeeds exactly where `examine` finds nothing wrong. An accepted profile, written out and loaded, means the
same, also after the pipe to another process and with its keys in another order; every rule in it is canonical, and
means the same when written from its parts. Merging a profile with itself changes nothing. A service is known by one
name, has its credential or says why not, and is in words what can be shown.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from nono_ebpf.authority import canonical_host, host_address
from nono_ebpf.config import shown
from nono_ebpf.config.environment import from_environment
from nono_ebpf.config.load import examine, settings
from nono_ebpf.config.merge import merge
from nono_ebpf.config.options import Overrides
from nono_ebpf.config.transfer import dump_policy, restore_policy
from nono_ebpf.config.validate import examine as examine_text
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.rules import parse_allow_rule, parse_deny_rule
from nono_ebpf.profile import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nono_ebpf.config.load import Findings
    from nono_ebpf.config.settings import Settings
    from nono_ebpf.policy.rules import Policy, Rule

_PATH, _BASE = "agent.json", "base.json"


def _service(**keys: object) -> dict[str, Any]:
    """A profile with the service `c` in use."""
    definition = {"upstream": "https://a.com", "credential_key": "env://K"} | keys
    return {"network": {"credentials": ["c"], "custom_credentials": {"c": definition}}}


# Where one text may stand in a profile.
_PLACES: tuple[Callable[[str], Any], ...] = (
    lambda text: {"network": {"allow_domain": [text]}},
    lambda text: {"network": {"deny_domain": [text]}},
    lambda text: {"network": {"allow_domain": [{"domain": "a.com", "endpoints": [{"method": text, "path": text}]}]}},
    lambda text: {"network": {"no_proxy": [text], "allow_domain": ["a.b.com"]}},
    lambda text: {"network": {"upstream_proxy": text, "upstream_bypass": [text]}},
    lambda text: {"network": {"network_profile": text, "credentials": [text], "upstream_auth": text}},
    lambda text: {"network": {"custom_credentials": {text: {"upstream": text, "credential_key": text}}}},
    lambda text: _service(upstream=text),
    lambda text: _service(credential_key=text),
    lambda text: _service(env_var=text, inject_header=text, credential_format=text),
    lambda text: _service(inject_mode="url_path", path_pattern=text, path_replacement=text),
    lambda text: _service(endpoint_policy={"allow": [{"method": "*", "path": text, "reason": text}]}, tls_ca=text),
    lambda text: {"network": {"tls_intercept": {"ca_validity": text, "leaf_validity": text, "ca_env_vars": [text]}}},
    lambda text: {"network": {"allow_domain": [{"domain": text, "intercept": "always"}], "credentials": ["github"]}},
    lambda text: {"extends": [text, "base"]},
    lambda text: {text: text, "network": {text: text}},
)


def check(data: bytes) -> None:
    """Judge `data` as a profile, as every text in a sound profile, as options, and as variables."""
    overrides = Overrides(profile=_PATH)
    _check_both_ways_to_ask(overrides, data, _examined(overrides, data))
    _check_profile(data)
    text = data.decode("utf-8", "surrogatepass") if _decodes(data) else data.decode("latin-1")
    for place in _PLACES:
        _check_profile(json.dumps(place(text)).encode())
    _check_options(text)
    _check_environment(text)


def seeds() -> Iterator[bytes]:
    """Profiles with every key, rules of every kind, mistakes of every kind; rules alone."""
    yield b'{"network": {"allow_domain": ["api.example.com", "@github"], "deny_domain": ["gist.github.com"]}}'
    yield b'{"network": {"proxy_allow": ["*.example.com:8443", "*"], "deny_domain": []}}'
    yield b'{"network": {"allow_proxy": ["[2001:db8::7]:22", "203.0.113.7:22", "m\xc3\xbcnchen.de"]}}'
    yield b'{"network": {"allow_domain": ["a"], "proxy_allow": ["b"]}}'
    yield b'{"network": {"allow_domian": [1, 2.5, true, null, "\\u00fc\\ud83d\\ude00"]}, "netwrok": {}}'
    yield b'{"network": {}, "network": {"deny_domain": "a"}}'
    yield b'{"extends": ["base", "default"], "network": {"network_profile": "minimal", "block": true}, "meta": {}}'
    yield b'{"network": {"allow_domain": [{"host": "a.com", "paths": ["/v1/{a,[b-c]*}/**"]}, {"domain": "@npm"}]}} // x'
    yield b'{"network": {"open_port": [80, 1.0], "open_port_range": [[1, 3]], "no_proxy": [".x.y"]}}'
    yield b'{"network": {"connect_port": [8], "listen_port": [8], "listen_port_range": [[3, 1]]}}'
    yield b'{"network": {"upstream_proxy": "https://p:1", "upstream_bypass": ["*.c", "10.0.0.0/8"]}}'
    yield b'{"network": {"external_proxy": "p:1", "upstream_auth": "env://X"}}'
    yield (
        b'{"network": {"credentials": ["c"], "custom_credentials": {"c": {"upstream": "https://a.b/c", "proxy": {},'
        b'"auth": {"token_url": "https://t", "client_id": "i", "client_secret": "s", "extra_params": {"x": "y"}}}}}}'
    )
    yield (
        b'{"network": {"credentials": ["github", "c"], "tls_intercept": {"ca_validity": "2h", "ca_env_vars": ["X"]},'
        b'"custom_credentials": {"c": {"upstream": "http://[::1]:8/v1/", "credential_key": "keyring://s/a", "env_var":'
        b'"K", "inject_mode": "url_path", "path_pattern": "/bot{}/", "proxy": {"inject_header": "x-api-key"},'
        b'"endpoint_policy": {"default": {"decision": "approve"}, "deny": [{"method": "*", "path": "/x"}]}}}}}'
    )
    yield b'{"credential_capture": {"g": {"command": ["a"], "output": {"format": "json", "allow_headers": ["X"]}}}}'
    yield (
        b'{"credential_providers": {"p": {"type": "oauth_capture", "api_hosts": ["https://a"], "token_endpoints": [{'
        b'"host": "https://b", "path": "/t", "response_fields": [{"path": "x"}]}]}}, "credential_routes": [{"name":'
        b'"r", "provider": "p"}]}'
    )
    yield from (b"{}", b"[]", b"[[[[[]]]]]", b'{"network": null}', b"\xef\xbb\xbf{}", b"1e999", b"@python", b"@pyhton")
    yield from (b"a.com", b"*.a.com:22", b"*:443", b"::1", b"[::ffff:10.0.0.1]:80", b"10.0.0.0/8", b"A.com.", b"xn--a")
    yield from (
        b"http://a.com:80/v1/**",
        b"http://p.corp:3128",
        b"env://X",
        b"../x.json",
        b".a.b, *, c.d:8",
        b"github:GET:/repos/**",
        b"GET:/x",
        b"https://a.com/v1/",
        b"Bearer {}",
        b"/bot{}/",
        b"90m",
        b"developer",
    )


def _decodes(data: bytes) -> bool:
    """Also with half a surrogate pair, which JSON can spell and no other text we read can hold."""
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _read(data: bytes) -> Callable[[str], bytes]:
    files = {_PATH: data, _BASE: b'{"network": {"allow_domain": ["base.com"], "credentials": ["github"]}}'}

    def read(path: str) -> bytes:
        if path not in files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return files[path]

    return read


def _examined(overrides: Overrides, data: bytes = b"{}") -> Findings:
    """What is found, every line of which can be shown."""
    found = examine(overrides, _read(data), home="/home/a", environment={})
    for line in (*map(str, found.problems), *found.settings.warnings):
        _check_it_can_be_shown(line)
    return found


def _check_both_ways_to_ask(overrides: Overrides, data: bytes, found: Findings) -> None:
    try:
        loaded = settings(overrides, _read(data), home="/home/a", environment={})
    except ConfigError as error:
        line = str(error)
    else:
        line = ""
        assert loaded.policy.allow.rules == found.settings.policy.allow.rules
    assert bool(line) == bool(found.problems), "only one of them fails"
    _check_it_can_be_shown(line or "nothing")


def _check_profile(data: bytes) -> None:
    found = _examined(Overrides(profile=_PATH), data)
    assert merge(found.merged, found.merged) == found.merged
    for _, value, source in rows(found.merged):
        json.dumps(value)
        assert source
    if found.problems:
        return
    policy = found.settings.policy
    _check_it_is_kept(data, policy)
    _check_services(found.settings)
    opened = {each.source for each in found.settings.open_ports}
    for rule in policy.allow.rules:
        if rule.source not in opened:
            _check_rule(rule, parse_allow_rule)
    for rule in policy.deny.rules:
        _check_rule(rule, parse_deny_rule)


def _check_options(text: str) -> None:
    for given in (
        Overrides(allow_domain=(text,), deny_domain=(text,)),
        Overrides(upstream_proxy=text, upstream_bypass=(text,), upstream_auth=text),
        Overrides(profile=_PATH, network_profile=text, extends=(text,)),
        Overrides(credential=(text, "github"), allow_endpoint=(text, f"github:{text}"), intercept=(text,)),
        Overrides(profile=text, block_net=True, allow_net=True),
    ):
        _examined(given)


def _check_services(found: Settings) -> None:
    supported = [route for route in found.routes if not route.unsupported]
    # Of several that have one name, none is supported: a provider of tokens with many hosts.
    assert found.policy.services == {route.name: route.service for route in found.routes}
    assert len({route.name for route in supported}) == len(supported)
    assert {rule.text for rule in found.policy.managed.rules} == {route.name for route in found.routes}
    assert all(route.reference and route.injection for route in supported)
    assert not any(route.reference or route.key_variable for route in found.routes if route.unsupported)
    for route in found.routes:
        json.dumps(shown.facts(route))
        assert route.service.base_path == route.service.base_path.rstrip("/")
        assert len(route.service.host.ports or ()) == 1


def _check_environment(text: str) -> None:
    for environment in ({"HTTPS_PROXY": text}, {"https_proxy": "p:1", "NO_PROXY": text}):
        try:
            found = from_environment(environment)
        except ConfigError as error:
            _check_it_can_be_shown(str(error))
        else:
            assert found is None or canonical_host(found.host) == found.host


def _check_it_can_be_shown(line: str) -> None:
    assert line.splitlines() == [line], f"more than one line: {line!a}"
    assert line.isprintable() or not any(unicodedata.category(each) in {"Cc", "Cs"} for each in line), (
        f"control characters: {line!a}"
    )


def _check_it_is_kept(data: bytes, policy: Policy) -> None:
    profile = examine_text(data, _PATH)[0].profile
    written = msgspec.json.encode(profile)
    again, problems = examine_text(written, _PATH)
    assert problems == []
    assert again.profile == profile
    backwards = json.dumps(_backwards(json.loads(written))).encode()
    for same in (
        examine(Overrides(profile=_PATH), _read(written), home="/home/a", environment={}).settings.policy,
        examine(Overrides(profile=_PATH), _read(backwards), home="/home/a", environment={}).settings.policy,
        restore_policy(dump_policy(policy)),
    ):
        assert [_meaning(rule) for rule in same.allow.rules] == [_meaning(rule) for rule in policy.allow.rules]
        assert [_meaning(rule) for rule in same.deny.rules] == [_meaning(rule) for rule in policy.deny.rules]
        assert {rule.pattern for rule in same.managed.rules} == {rule.pattern for rule in policy.managed.rules}
        assert _served(same) == _served(policy)
        assert same.upstream_proxy == policy.upstream_proxy


def _backwards(value: Any) -> Any:
    """The same object with its keys in another order."""
    if isinstance(value, dict):
        return {key: _backwards(each) for key, each in reversed(value.items())}
    return [_backwards(each) for each in value] if isinstance(value, list) else value


def _meaning(rule: Rule) -> tuple[object, ...]:
    """All but how its place is spelled."""
    return rule.pattern, rule.ports, rule.text, rule.names_port, rule.endpoints, rule.intercept


def _served(policy: Policy) -> dict[str, object]:
    return {name: replace(each, host=replace(each.host, source="")) for name, each in policy.services.items()}


def _check_rule(rule: Rule, parse: Callable[[str, str], Rule]) -> None:
    """The rule written from its parts is itself."""
    domain = rule.pattern.removeprefix("*.")
    assert domain == "*" or canonical_host(domain) == domain
    assert rule.pattern == domain or host_address(domain) is None
    written = f"[{rule.pattern}]" if ":" in rule.pattern else rule.pattern
    if rule.names_port:
        written = f"{written}:{next(iter(rule.ports or ()))}"
    again = parse(written, rule.source)
    assert again.pattern == rule.pattern
    assert again.ports == rule.ports or not rule.names_port
