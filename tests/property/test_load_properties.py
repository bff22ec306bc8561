"""Profiles of every shape: settings, or ConfigErrors of one line each; and the schema accepts what is accepted."""

from __future__ import annotations

import json

import jsonschema
from fuzz import profile
from hypothesis import given
from hypothesis import strategies as st

from nono_ebpf.config.load import examine
from nono_ebpf.config.options import Overrides
from nono_ebpf.config.published import json_schema
from nono_ebpf.config.schema import AllowDomain, CustomCredential, Network, Profile
from nono_ebpf.config.validate import examine as examine_text

VALIDATOR = jsonschema.Draft202012Validator(json_schema())
# With halves of surrogate pairs, which JSON can spell.
texts = st.text(st.characters(exclude_categories=()), max_size=12)
rules = st.sampled_from(
    [
        "a.com",
        "*.A.com.:22",
        "*",
        "[::ffff:10.0.0.1]",
        "@python",
        "@nobody",
        "m\u00fcnchen.de",
        "a..b",
        "https://a.com",
        "/x",
    ]
)
keys = (
    st.sampled_from([*Network.__struct_fields__, *AllowDomain.__struct_fields__, *CustomCredential.__struct_fields__])
    | st.sampled_from(["allow_domian", "proxy_allow", "external_proxy"])
    | texts
)
numbers = st.integers() | st.sampled_from([0, 1, 80, 65535, 65536, 80.0, 1e300])
lists = st.lists(rules | texts | numbers, max_size=4)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
networks = st.dictionaries(keys, lists | values, max_size=4)
documents = st.dictionaries(
    st.sampled_from(["network", "extends", "credential_capture", "meta"]) | texts, networks | values, max_size=2
)
sound = st.fixed_dictionaries(
    {
        "allow_domain": st.lists(st.sampled_from(["a.com", "*.A.com.:22", "*", "@python", "llm_apis"]), max_size=4),
        "deny_domain": st.lists(st.sampled_from(["b.com", "*.b.com:8443", "@npm"]), max_size=3),
    }
)


@given(documents | values)
def test_any_document_is_settings_or_lines(document: object) -> None:
    """Whatever JSON says, the operator gets settings, or lines that a terminal can show."""
    profile.check(json.dumps(document).encode())


@given(st.binary(max_size=60))
def test_any_bytes_are_settings_or_lines(text: bytes) -> None:
    """The same for what is no JSON, and for any text as a rule, an option or a variable."""
    profile.check(text)


@given(documents)
def test_the_schema_accepts_what_is_accepted(document: dict[str, object]) -> None:
    """An editor marks nothing that works."""
    data = json.dumps(document).encode()
    found = examine(Overrides(profile="p.json"), lambda _: data, home="/h", environment={})
    if not found.problems:
        VALIDATOR.validate(json.loads(data))


@given(sound)
def test_a_sound_profile_is_accepted(network: dict[str, list[str]]) -> None:
    """The properties above are about something: sound profiles are read as they were meant."""
    data = json.dumps({"network": network}).encode()
    document, problems = examine_text(data, "p")
    assert problems == []
    expected = Network(allow_domain=tuple(network["allow_domain"]), deny_domain=tuple(network["deny_domain"]))
    assert document.profile == Profile(network=expected)
    policy = examine(Overrides(profile="p"), lambda _: data, home="/h", environment={}).settings.policy
    assert len(policy.deny.rules) >= len(set(network["deny_domain"]))
