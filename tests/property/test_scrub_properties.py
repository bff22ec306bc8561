"""Bodies with secrets in any form, cut anywhere."""

from __future__ import annotations

from fuzz.scrub import check_cuts
from hypothesis import example, given
from hypothesis import strategies as st

from nono_ebpf.wire.scrub import MIN_SECRET_BYTES, Scrubber, _forms

PRINTABLE = sorted({*range(0x20, 0x100)} - {0x7F, ord("*")})
# Few different characters, so that secrets repeat themselves, overlap, and begin everywhere.
secrets = st.one_of(
    st.text('ab&%\\/+ "\u00e9', min_size=MIN_SECRET_BYTES, max_size=14).map(str.encode),
    st.lists(st.sampled_from(PRINTABLE), min_size=MIN_SECRET_BYTES, max_size=12).map(bytes),
)
noise = st.one_of(st.text('ab&#;%25\\u0/+ "', max_size=6).map(str.encode), st.binary(max_size=4))


@st.composite
def bodies(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Secrets, and a body in which they stand in any form, whole and cut off, between other text."""
    values = draw(st.lists(secrets, min_size=1, max_size=3))
    body = draw(noise)
    for _ in range(draw(st.integers(0, 4))):
        form = draw(st.sampled_from([form for value in values for form in _forms(value)]))
        written = b"".join(draw(st.sampled_from(spellings)) for spellings in form)
        body += written[draw(st.integers(0, 3)) :] if draw(st.booleans()) else written
        body = body[: len(body) - draw(st.sampled_from([0, 0, 0, 1, 5]))] + draw(noise)
    return values, body


@given(bodies(), st.lists(st.integers(0, 200), max_size=8))
@example(([b"aaaaaaaa"], b"a" * 30), [3, 11])
@example(([b"abcdefghijklmnop", b"cdefghij"], b"<abcdefghijk>"), [12, 13])
@example(([b"\xff" * 8], b"&#65533;" * 7 + b"x"), [])
@example(([b"%2525252"], b"%25%2525252525252%25252"), [7, 8, 9])
def test_the_pieces_do_not_matter(case: tuple[list[bytes], bytes], cuts: list[int]) -> None:
    """Whole, byte by byte or cut anywhere: the same comes out, of the same length, and nothing of it too late."""
    check_cuts(*case, cuts)


@given(bodies())
def test_no_value_is_left(case: tuple[list[bytes], bytes]) -> None:
    """A scrubbed body has none of the values, and is left alone when it is scrubbed again."""
    values, body = case
    scrubber = Scrubber(values)
    hidden = scrubber.text(body)
    assert not any(value in hidden for value in values)
    assert all(new in (old, ord("*")) for new, old in zip(hidden, body, strict=True))
    assert scrubber.text(hidden) == hidden


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_other_text_is_left_alone(pieces: list[bytes]) -> None:
    """A body without the secret comes out as it went in."""
    scrubber = Scrubber([b"sk-0123456789abcdefghijk"])
    assert b"".join([*map(scrubber.feed, pieces), scrubber.flush()]) == b"".join(pieces)
