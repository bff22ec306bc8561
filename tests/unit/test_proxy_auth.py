"""What a request offers as proof, in every spelling."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from nono_ebpf.wire.proxy_auth import offered_secret, offered_token

if TYPE_CHECKING:
    from nono_ebpf.wire.http1 import Fields


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def fields(*lines: str) -> Fields:
    return tuple(
        (name.encode(), value.encode("latin-1")) for name, _, value in (line.partition(": ") for line in lines)
    )


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        pytest.param("Proxy-Authorization: Bearer abc123", b"abc123", id="T2"),
        pytest.param("proxy-authorization: BEARER abc123", b"abc123", id="T2-case"),
        pytest.param("Proxy-Authorization: Bearer wrong", b"wrong", id="T2-wrong"),
        pytest.param(f"Proxy-Authorization: {basic('nono:abc123')}", b"abc123", id="T3"),
        pytest.param(f"Proxy-Authorization: {basic('whatever:abc123')}", b"abc123", id="T3-any-user"),
        pytest.param(f"Proxy-Authorization: {basic('nono:wrong')}", b"wrong", id="T3-wrong"),
        (f"Proxy-Authorization: {basic(':abc123')}", b"abc123"),
        (f"Proxy-Authorization: {basic('a:b:c')}", b"b:c"),
        (f"PROXY-AUTHORIZATION: {basic('nono:abc123').replace('Basic', 'bAsIc')}", b"abc123"),
        (f"Proxy-Authorization: {basic('nono:abc123').replace(' ', '   ')}", b"abc123"),
        (f"Proxy-Authorization: {basic('nono:')}", b""),
    ],
)
def test_offered(line: str, secret: bytes) -> None:
    """Basic and Bearer, whatever the case of name and scheme and whoever the user."""
    assert offered_secret(fields("Host: a", line)) == secret


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([], id="T3-missing"),
        ["Proxy-Authorization: "],
        ["Proxy-Authorization: Basic"],
        ["Proxy-Authorization: Bearer"],
        ["Proxy-Authorization: abc123"],
        ["Proxy-Authorization: Digest username=nono"],
        ["Proxy-Authorization: Bearer abc 123"],
        ["Proxy-Authorization: Bearer abc,123"],
        ["Proxy-Authorization: Bearerabc123"],
        ["Proxy-Authorization: Bearer\tabc123"],
        [f"Proxy-Authorization: {basic('nono:abc123')} "],
        [f"Proxy-Authorization: {basic('nono:abc123')}\xff"],
        ["Proxy-Authorization: Basic bm9ub"],
        ["Proxy-Authorization: Basic bm9ubzphYmMxMjM=="],
        ["Proxy-Authorization: Basic bm9u-jphYmMxMjM="],
        [f"Proxy-Authorization: {basic('abc123')}"],
        [f"Proxy-Authorization: {basic('nono:abc123')}", f"Proxy-Authorization: {basic('nono:abc123')}"],
        ["Proxy-Authorization: Bearer abc123", "proxy-authorization: Bearer wrong"],
        ["Authorization: Bearer abc123"],
        ["X-Nono-Token: abc123"],
    ],
)
def test_not_offered(lines: list[str]) -> None:
    """No field, two of them, another scheme, and what is not quite one of ours, are no offer."""
    assert offered_secret(fields(*lines)) is None


def test_the_other_field() -> None:
    """X-Nono-Token holds it as it is, and counts when there is one."""
    assert offered_token(fields("x-nono-TOKEN: abc123")) == b"abc123"
    assert offered_token(fields("Host: a")) is None
    assert offered_token(fields("X-Nono-Token: abc123", "x-nono-token: abc123")) is None
