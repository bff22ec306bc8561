"""The session token: made, kept, compared."""

from __future__ import annotations

import pytest

from nono_ebpf.session_token import Token, make


@pytest.mark.parametrize("count", [pytest.param(100, id="T1")])
def test_a_new_token(count: int) -> None:
    """256 bits as 64 lower-case hexadecimal digits, and never the same twice."""
    tokens = {make() for _ in range(count)}
    assert len(tokens) == count
    for text in tokens:
        assert len(text) == 64
        assert set(text) <= set("0123456789abcdef")


def test_only_the_token_itself_matches() -> None:
    """Not a part of it, not more than it, not another spelling, not nothing."""
    text = make()
    right = text.encode()
    token = Token(text)
    assert token.matches(right)
    for wrong in (None, b"", right[:-1], right + b"0", right.upper(), b" " + right, make().encode(), b"\xff" * 64):
        assert not token.matches(wrong)


@pytest.mark.parametrize("text", ["", "abc123", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"])
def test_a_weak_token_is_none(text: str) -> None:
    """Nothing but what `make` makes is taken, so no mistake lets an empty password in."""
    with pytest.raises(ValueError, match="64"):
        Token(text)


def test_a_token_shows_itself_to_nobody() -> None:
    """No text form has it, and neither has the error about a bad one."""
    text = make()
    token = Token(text)
    for shown in (repr(token), str(token), f"{token}", repr([token])):
        assert text not in shown
    with pytest.raises(ValueError, match="digits") as caught:
        Token(text.upper())
    assert text.upper() not in str(caught.value)
