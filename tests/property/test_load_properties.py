"""Profiles of every shape: a policy, or a ConfigError of one line; an accepted one survives being written."""

from __future__ import annotations

import json

from fuzz import profile
from hypothesis import given
from hypothesis import strategies as st

from nono_ebpf.config.load import build_policy, load_profile
from nono_ebpf.config.schema import Network, Profile
from nono_ebpf.policy.rules import HostRules

# With halves of surrogate pairs, which JSON can spell.
texts = st.text(st.characters(exclude_categories=()), max_size=12)
rules = st.sampled_from(
    ["a.com", "*.A.com.:22", "*", "[::ffff:10.0.0.1]", "@python", "@nobody", "m\u00fcnchen.de", "a..b"]
)
keys = st.sampled_from([*Network.__struct_fields__, "allow_domian"]) | texts
lists = st.lists(rules | texts, max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
networks = st.dictionaries(keys, lists | values, max_size=4)
documents = st.dictionaries(st.just("network") | texts, networks | values, max_size=2)
sound = st.builds(
    Profile,
    st.builds(
        Network,
        allow_domain=st.lists(rules.filter(lambda text: text not in {"a..b", "@nobody"}), max_size=4).map(tuple),
        deny_domain=st.lists(st.sampled_from(["b.com", "*.b.com:8443", "@npm"]), max_size=3).map(tuple),
    ),
)


@given(documents | values)
def test_any_document_is_a_policy_or_one_line(document: object) -> None:
    """Whatever JSON says, the operator gets a policy, or one line that a terminal can show."""
    profile.check(json.dumps(document).encode())


@given(st.binary(max_size=60))
def test_any_bytes_are_a_policy_or_one_line(text: bytes) -> None:
    """The same for what is no JSON, and for any text as a rule."""
    profile.check(text)


@given(sound)
def test_a_sound_profile_is_accepted(written: Profile) -> None:
    """The properties above are about something: sound profiles are read as they were meant."""
    text = json.dumps({"network": {key: getattr(written.network, key) for key in ("allow_domain", "deny_domain")}})
    assert load_profile(text.encode(), "p") == written
    policy = build_policy(written, "p", [], [])
    assert isinstance(policy.deny, HostRules)
    assert len(policy.deny.rules) >= len(written.network.deny_domain)
