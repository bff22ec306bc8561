"""What of a response is hidden, what is let through at once, and what is held back."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest

from nono_ebpf.wire.scrub import MIN_SECRET_BYTES, Scrubber, _Form

KEY = b"sk-Test_0123456789.abcdefXYZ"
ODD = 'pä$s w/or+d\\"%&<x>~'.encode()
EVENT = b'data: {"delta":{"content":"Hello"}}\n\n'


def scrubbed(data: bytes, *values: bytes) -> bytes:
    return Scrubber(values or (KEY,)).text(data)


def in_pieces(scrubber: Scrubber, *pieces: bytes) -> list[bytes]:
    return [*map(scrubber.feed, pieces), scrubber.flush()]


def visible(data: bytes) -> bytes:
    return data.replace(b"*", b"")


@pytest.mark.parametrize(
    "value", [KEY, ODD, b"%25%2541\\\\u0025\\n", bytes(range(128, 148)), "\U0001f511\U0001f511".encode()]
)
def test_the_value_as_it_is(value: bytes) -> None:
    """Every byte of it, wherever it stands and however often, and nothing else."""
    stars = b"*" * len(value)
    for data in (b"[%b]", b"%b", b"[%b", b"%b]"):
        assert scrubbed(data.replace(b"%b", value), value) == data.replace(b"%b", stars)
    assert scrubbed(b"<" + value * 3 + b">", value) == b"<" + stars * 3 + b">"
    assert scrubbed(value[:-1] + b"<" + value[1:], value) == value[:-1] + b"<" + value[1:]


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(quote(ODD, safe=""), id="quote"),
        pytest.param(quote(ODD), id="quote-path"),
        pytest.param(quote(ODD, safe="").lower(), id="quote-lower"),
        pytest.param(quote_plus(ODD), id="form"),
        pytest.param(quote(ODD, safe="~()*!'$&+,/:;=?@"), id="encodeURI"),
        pytest.param(json.dumps(ODD.decode())[1:-1], id="json"),
        pytest.param(json.dumps(ODD.decode(), ensure_ascii=False)[1:-1], id="json-utf8"),
        pytest.param(json.dumps(ODD.decode())[1:-1].replace("/", r"\/"), id="json-php"),
        pytest.param(
            json.dumps(ODD.decode())[1:-1].replace("&", r"\u0026").replace("<", r"\u003C").replace(">", r"\u003e"),
            id="json-go",
        ),
        pytest.param(html.escape(ODD.decode()), id="html"),
        pytest.param(html.escape(ODD.decode()).replace("&amp;", "&#38;"), id="html-numbers"),
        pytest.param(
            ODD.decode().encode("ascii", "xmlcharrefreplace").decode().replace("w/or+d", "w&#x2F;or&#43;d"), id="xml"
        ),
        pytest.param(ODD.hex(), id="hex"),
        pytest.param(ODD.hex().upper(), id="HEX"),
    ],
)
def test_the_value_escaped(written: str) -> None:
    """As encoders of URLs, JSON and HTML write it, each in its own way, and in hexadecimal."""
    data = f"[{written}]".encode()
    assert scrubbed(data, ODD) == b"[" + b"*" * (len(data) - 2) + b"]"


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("before", range(7))
@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("value", [KEY, KEY + b"1", KEY + b"22", bytes((251, 255, 190)) * 4])
def test_the_value_in_base64(encode: object, before: int, after: int, value: bytes) -> None:
    """Whatever stands around it before it is encoded: nothing that is about it alone stays."""
    assert callable(encode)
    plain = b"user:::"[:before] + value + b"\xff\0~"[:after]
    data = encode(plain)
    hidden = scrubbed(data, value)
    assert len(hidden) == len(data)
    first, last = -(-8 * before // 6), -(-8 * (before + len(value)) // 6)
    assert hidden == data[:first] + b"*" * (last - first) + data[last:]


@pytest.mark.parametrize("escape", [lambda text: quote(text, safe=""), lambda text: text.replace("/", r"\/")])
def test_base64_that_is_escaped(escape: object) -> None:
    """Base64 has two characters that URLs and JSON escape."""
    assert callable(escape)
    value = bytes((251, 255, 190)) * 4
    written = escape(base64.b64encode(value).decode()).encode()
    assert visible(scrubbed(written, value)) == b""


def test_a_login() -> None:
    """The whole as the Authorization field has it, and the password alone."""
    login = b"bot:p4ssw0rd-of-some-length"
    password = login.partition(b":")[2]
    echoed = b'{"authorization":"Basic ' + base64.b64encode(login) + b'","password":"' + password + b'"}'
    assert visible(scrubbed(echoed, login, password)) == b'{"authorization":"Basic ","password":""}'
    assert visible(scrubbed(b"Basic " + base64.b64encode(b"x:" + password), password)) == b"Basic eDp=="


def test_whether_there_is_anything_to_hide() -> None:
    """In any of the texts, in whatever form; none is taken together with its neighbour."""
    scrubber = Scrubber([KEY, ODD])
    for written in (KEY, quote(ODD).encode(), base64.b64encode(b"a" + KEY), json.dumps(ODD.decode()).encode()):
        assert scrubber.occurs_in(b"x-request-id", written, b"")
        assert scrubber.text(written) != written
    assert not scrubber.occurs_in(b"OK", b"x-key", b"abcdef", KEY[:9], KEY[9:])


def test_short_values_are_left_alone() -> None:
    """They would be found where they are none."""
    short = b"x" * (MIN_SECRET_BYTES - 1)
    assert scrubbed(short * 5, short, b"") == short * 5
    assert in_pieces(Scrubber((short,)), b"xx", b"x") == [b"xx", b"x", b""]


def test_secrets_that_overlap() -> None:
    """What belongs to any of them is hidden."""
    assert scrubbed(b"<abcdefghijkl>", b"abcdefgh", b"efghijkl") == b"<************>"
    assert scrubbed(b"<abcdefghijkl>", b"abcdefghijkl", b"cdefghij") == b"<************>"
    assert scrubbed(b"<abababababababa>", b"abababab") == b"<**************a>"
    overlapping = Scrubber((b"abcdefghijklmnop", b"cdefghij"))
    assert in_pieces(overlapping, b"\n<abcdefghijk", b"X\n") == [b"\n", b"<ab********kX\n", b""]


def test_an_event_goes_out_at_once() -> None:
    """What ends in a line end is not held back for a moment."""
    scrubber = Scrubber((KEY,))
    assert in_pieces(scrubber, EVENT, EVENT, b"data: " + KEY + b"\n\n") == [
        *(EVENT, EVENT, b"data: " + b"*" * len(KEY) + b"\n\n"),
        b"",
    ]


def test_the_end_of_a_line_waits() -> None:
    """Whatever it says, as much of it as could be a part of a secret, until it goes on or ends."""
    scrubber = Scrubber((KEY,))
    assert in_pieces(scrubber, b"a\nkey: ", KEY[:-1], KEY[-1:] + b"!", b"\tb\n") == [
        *(b"a\n", b"", b"", b"key: " + b"*" * len(KEY) + b"!\tb\n"),
        b"",
    ]
    long = b"x" * 5000
    passed, *rest = in_pieces(scrubber, long, b"")
    assert len(KEY) <= len(long) - len(passed) < 10 * len(KEY)
    assert [passed, *rest] == [passed, b"", long[len(passed) :]]


def test_what_waits_tells_nothing() -> None:
    """Who has a server repeat what it is sent, in pieces, cannot see how much of a guess is right."""
    for form in (KEY, KEY.hex().encode(), quote(KEY, safe="").encode(), base64.b64encode(KEY)):
        for right in range(1, len(form)):
            passed = [in_pieces(Scrubber((KEY,)), b"\nkey: ", begun)[:2] for begun in (form[:right], b"-" * right)]
            assert passed[0] == passed[1]


def test_a_secret_with_a_control_character_is_none() -> None:
    """No request can carry it; and behind a line end nothing is held back."""
    with pytest.raises(ValueError, match="control"):
        Scrubber((KEY + b"\n" + KEY,))


def test_one_body_after_the_other() -> None:
    """The end of a body is the end of what it began, and field values in between do not matter."""
    scrubber = Scrubber((KEY,))
    assert in_pieces(scrubber, b"\n" + KEY[:9]) == [b"\n", KEY[:9]]
    assert scrubber.feed(KEY[9:] + b"\n") == KEY[9:] + b"\n"
    scrubber.feed(KEY[:9])
    assert scrubber.text(b"x" + KEY) == b"x" + b"*" * len(KEY)
    assert scrubber.feed(KEY[9:] + b"\n") == b"*" * len(KEY) + b"\n"


def test_another_body_at_the_same_time() -> None:
    """It is looked for the same, and has nothing to do with what the first one holds back."""
    first = Scrubber((KEY,))
    first.feed(KEY[:9])
    hidden = b"*" * len(KEY) + b"\n"
    assert in_pieces(first.another(), KEY[9:] + b"\n", KEY + b"\n") == [KEY[9:] + b"\n", hidden, b""]
    assert first.feed(KEY[9:] + b"\n") == hidden


def test_what_is_to_be_hidden_later() -> None:
    """A body that has begun goes on for hours: it may show what was sent only then."""
    known = Scrubber((KEY,))
    body = known.another()
    assert body.feed(b"a\n") == b"a\n"
    known.cover([Scrubber((KEY,)), Scrubber((b"another-key",))])
    assert in_pieces(body, b"another", b"-key\n", KEY) == [b"", b"*" * 11 + b"\n", b"", b"*" * len(KEY)]


@pytest.mark.parametrize(
    ("value", "piece"),
    [
        (b"s" * 40 + b"x", b"s"),
        (b"s" * 40, b"s"),
        (b"ab" * 20 + b"c", b"ab"),
        (b"+" * 20, b"+"),
        (b"%" * 20, b"%25"),
        (b"\\" * 20, b"\\"),
        (KEY, KEY[:-1]),
    ],
)
def test_a_hostile_body_takes_no_more_than_its_size(
    value: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte of the worst is tried a bounded number of times, whole or in pieces, and little is held back."""
    tried = 0
    follow = _Form._follow

    def counted(form: _Form, data: bytes, at: int) -> object:
        nonlocal tried
        tried += 1
        return follow(form, data, at)

    monkeypatch.setattr(_Form, "_follow", counted)
    scrubber = Scrubber((value,))
    for count in (500, 8000):
        tried = 0
        scrubber.feed(piece * count)
        assert tried <= 10 * len(piece) * count + 1000
    for _ in range(8000):
        tried = 0
        scrubber.feed(piece)
        assert tried <= 60 * len(value)
        assert len(scrubber._held) < 6 * len(value)
