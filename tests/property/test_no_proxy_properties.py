"""`nono_ebpf.config.no_proxy`: no client's reading of NO_PROXY reaches a host whose requests have to be judged."""

from __future__ import annotations

import urllib.request
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nono_ebpf.authority import host_address
from nono_ebpf.config.no_proxy import Entry, NoProxy, compute, parse_entry
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.address import ALWAYS_DENIED_NAMES, always_denied

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

# Few labels that are suffixes of each other, so that entries, rules and hosts meet.
labels = st.sampled_from(["a", "b", "ab", "local", "localhost", "internal", "metadata"])
names = st.lists(labels, min_size=1, max_size=3).map(".".join)
addresses = st.sampled_from(
    ["10.0.0.1", "110.0.0.1", "127.0.0.1", "127.0.0.5", "::1", "2001:db8::1", "169.254.169.254"]
)
hosts = st.one_of(names, addresses)
patterns = st.one_of(st.just("*"), names, names.map("*.{}".format), addresses)
pattern_lists = st.lists(patterns, max_size=4)
entry_texts = st.one_of(hosts, names.map(".{}".format), names.map("*.{}".format))


def _valid(text: str) -> Entry | None:
    try:
        return parse_entry(text, "no_proxy")
    except ConfigError:
        return None


entry_lists = st.lists(entry_texts.map(_valid), max_size=4).map(lambda found: list(filter(None, found)))
NOTHING = NoProxy("", "")


def computed(allowed: list[str], judged: list[str], managed: list[str], entries: list[Entry]) -> NoProxy:
    """The variables; nothing where the entries are refused."""
    try:
        return compute(allowed=[*allowed, *judged], judged=judged, managed=managed, entries=entries)
    except ConfigError:
        assume(bool(entries))
        return NOTHING


# --- the readings


def by_curl(value: str, host: str) -> bool:
    """libcurl since 7.86, lib/noproxy.c: exact, or in whole labels below, a leading dot ignored."""
    tokens = [token.strip(".") for token in value.replace(",", " ").split()]
    if host_address(host):
        return any(_same_address(token, host) for token in tokens)
    return "*" in tokens or any(host == token or host.endswith(f".{token}") for token in tokens)


def by_urllib(value: str, host: str) -> bool:
    """Python's own."""
    written = f"[{host}]" if ":" in host else host
    return bool(urllib.request.proxy_bypass_environment(written, {"no": value}))  # type: ignore[attr-defined]  # typeshed has none


def by_go(value: str, host: str) -> bool:
    """golang.org/x/net/http/httpproxy, as far as it reads the value: `.x` and `*.x` are below x, `x` is both."""
    tokens = value.split(",")
    if host_address(host):
        return any(_same_address(token, host) for token in tokens)
    below = [token.removeprefix("*").removeprefix(".") for token in tokens if token]
    return "*" in tokens or host in tokens or any(host.endswith(f".{name}") for name in below)


def by_suffix(value: str, host: str) -> bool:
    """python-requests, old wget and many a script: whatever the host ends in."""
    return any(host.endswith(token.removeprefix("*")) for token in value.split(",") if token)


READINGS = [by_curl, by_urllib, by_go, by_suffix]


def _same_address(token: str, host: str) -> bool:
    try:
        return ip_address(token.strip("[]")) == ip_address(host)
    except ValueError:
        return False


def named_by(pattern: str, prefix: str) -> str:
    """A host that the pattern is for."""
    if pattern == "*":
        return f"{prefix}.example"
    return pattern.replace("*", prefix)


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.__name__)
@given(pattern_lists, pattern_lists, pattern_lists, entry_lists, names)
def test_no_reading_covers_a_judged_host(
    reading: Callable[[str, str], bool],
    allowed: list[str],
    judged: list[str],
    managed: list[str],
    entries: list[Entry],
    prefix: str,
) -> None:
    """Whatever is allowed and written: the entries are refused, or the value leaves judged and managed hosts alone."""
    value = computed(allowed, judged, managed, entries).no_proxy
    for pattern in (*judged, *managed):
        host = named_by(pattern, prefix)
        assert not reading(value, host), (value, host)


@given(pattern_lists, pattern_lists, pattern_lists, entry_lists)
def test_nothing_unsafe_is_written(
    allowed: list[str], judged: list[str], managed: list[str], entries: list[Entry]
) -> None:
    """Every element is a valid entry in canonical form, for nothing that is always denied."""
    value = computed(allowed, judged, managed, entries)
    for text in filter(None, value.no_proxy.split(",")):
        assert parse_entry(text, "computed").text == text
        address = host_address(text) if not text.startswith(".") else None
        assert not (address and always_denied(address))
    assert not any(by_curl(value.no_proxy, name) for name in ALWAYS_DENIED_NAMES)


@given(pattern_lists, pattern_lists, pattern_lists, entry_lists, st.randoms(use_true_random=False))
def test_order_and_repetition_of_rules_do_not_matter(
    allowed: list[str], judged: list[str], managed: list[str], entries: list[Entry], order: random.Random
) -> None:
    """Rules are sets."""
    mixed = ([*allowed, *allowed], [*judged, *judged], [*managed, *managed])
    for rules in mixed:
        order.shuffle(rules)
    assert computed(mixed[0], mixed[1], mixed[2], entries) == computed(allowed, judged, managed, entries)


@given(pattern_lists, entry_lists)
def test_every_element_has_a_reason(allowed: list[str], entries: list[Entry]) -> None:
    """It is loopback, an allowed host, or was written; each stands once; both variables are alike."""
    value = computed(allowed, [], [], entries)
    listed = value.no_proxy.split(",") if value.no_proxy else []
    assert len(set(listed)) == len(listed)
    assert set(listed) <= {"localhost", "127.0.0.1", *allowed, *(entry.text for entry in entries)}
    assert value.nono_no_proxy.replace("*.", ".") == value.no_proxy
    if value is not NOTHING:
        assert {entry.text for entry in entries} <= set(listed)


@given(pattern_lists, pattern_lists, patterns)
def test_another_judged_host_only_takes_away(allowed: list[str], judged: list[str], more: str) -> None:
    """Judging more never lets a client past the proxy that did not pass before."""
    before = computed(allowed, judged, [], []).no_proxy.split(",")
    after = compute(allowed=[*allowed, *judged], judged=[*judged, more], managed=[], entries=[]).no_proxy.split(",")
    assert set(filter(None, after)) <= set(before)
