"""`nono_ebpf.authority`: one spelling of each host, and a refusal for what could be read in two ways."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nono_ebpf.authority import Authority, canonical_host, host_address, parse_authority, split_port
from nono_ebpf.errors import InvalidAuthority

LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("API.OpenAI.COM", "api.openai.com"),
        ("storage.googleapis.com.", "storage.googleapis.com"),
        ("_dmarc.my_bucket.example", "_dmarc.my_bucket.example"),
        ("r3---sn-4g5e6nez.googlevideo.com", "r3---sn-4g5e6nez.googlevideo.com"),
        ("localhost", "localhost"),
        ("db.1a", "db.1a"),
        ("münchen.de", "xn--mnchen-3ya.de"),
        ("MÜNCHEN.de", "xn--mnchen-3ya.de"),
        ("mu\u0308nchen.de", "xn--mnchen-3ya.de"),
        ("XN--MNCHEN-3YA.de", "xn--mnchen-3ya.de"),
        ("straße.de", "xn--strae-oqa.de"),
        ("\uff45\uff58\uff41\uff4d\uff50\uff4c\uff45\u3002com", "example.com"),
        ("goo\u00adgle.com", "google.com"),
        ("\u212aelvin.example", "kelvin.example"),
        (LONGEST, LONGEST),
        (LONGEST + ".", LONGEST),
    ],
)
def test_every_spelling_of_a_name_has_one_form(text: str, canonical: str) -> None:
    """Case, one trailing dot, width and Unicode form do not make another host."""
    assert canonical_host(text) == canonical
    assert host_address(canonical) is None


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("\uff11\uff12\uff17.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[2001:DB8:0:0:1:0:0:1]", "2001:db8::1:0:0:1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("[::FFFF:7f00:1]", "127.0.0.1"),
    ],
)
def test_every_spelling_of_an_address_has_one_form(text: str, canonical: str) -> None:
    """Literals come out as a dotted quad or RFC 5952 text, IPv4-mapped ones as IPv4."""
    assert canonical_host(text) == canonical
    assert host_address(canonical) == ip_address(canonical)


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "..", "a..b", "a..", ".a", "a.。", "*", "*.a", "-a", "a-", "a.-b.c", "a-.com"),
        *("a b", " a", "a ", "a\tb", "a\nb", "a\r\n", "evil\0.google.com", "a\x7f", "a\x1b[0m", "a\x85"),
        *("a/b", "a\\b", "a%b", "a@b", "a#b", "a?b", "a:b", "a,b", "a[b]", "a\uff0fb", "a\uff05b", "\u2100"),
        *("a" * 64, "a" * 64 + ".com", LONGEST + "e", LONGEST + "..", "x" * 100_000, "ü" * 60 + ".de"),
        *("xn--", "xn--a", "xn--example-.com", "xn--mnchen-3ya-.de", "xn--99zzzzzz", "\udc80", "\u200d.com"),
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    """Characters, lengths and labels outside the grammar are refused, not cleaned up."""
    with pytest.raises(InvalidAuthority):
        canonical_host(text)


@pytest.mark.parametrize(
    "text",
    [
        *("2130706433", "0x7f000001", "0X7F.1", "0177.0.0.1", "127.1", "127.0.1", "1.2.3.4.5", "256.1.1.1"),
        *(
            "1.2.3.04",
            "00.0.0.0",
            "1",
            "a.1",
            "a.b.0x",
            "0x7f.0.0.0x1",
            "1.2.3.4..",
            "\uff11\uff12\uff17.\uff11",
            "1.2.3.-4",
        ),
        *(
            "[127.0.0.1]",
            "[::1",
            "::1]",
            "[]",
            "[::1].",
            "[[::1]]",
            "::1%eth0",
            "[fe80::1%25eth0]",
            "fe80::1%1",
        ),
        *(
            ":",
            ":::",
            "1::2::3",
            "::g",
            "::1/64",
            "[a]",
            "::ffff:1.2.3.04",
            "::ffff:1.2.3",
            "12345::",
            "::\u0661",
        ),
    ],
)
def test_odd_addresses_are_refused(text: str) -> None:
    """What one client reads as an address and another as a name (or not at all) has no canonical form."""
    with pytest.raises(InvalidAuthority):
        canonical_host(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("API.OpenAI.com", "api.openai.com:443"),
        ("api.openai.com:8443", "api.openai.com:8443"),
        ("api.openai.com.:8443", "api.openai.com:8443"),
        ("[::1]", "[::1]:443"),
        ("[::1]:8443", "[::1]:8443"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        ("h:1", "h:1"),
        ("h:65535", "h:65535"),
    ],
)
def test_an_authority_is_canonical(text: str, expected: str) -> None:
    """Host and port come out in one form, which reads back as the same authority."""
    authority = parse_authority(text, 443)
    assert str(authority) == expected
    assert parse_authority(expected, None) == authority


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":443",
            "h:",
            "h:0",
            "h:00",
            "h:080",
            "h:65536",
            "h:99999999999",
            "h:abc",
            "h:+1",
            "h:-1",
            "h: 1",
        ),
        *("h:1 ", "h:1\n", "h:٤٤٣", "h:1_0", "h:0x50", "::1", "::1:8080", "h:1:2", "user@h:443", "u:p@h:443"),
        *(
            "[::1",
            "[::1]443",
            "[::1]x:1",
            "[::1]:",
            "[::1]]:1",
            "[::1]:1:2",
            "[h]:1",
            "/",
            "http://h",
            "h:443/",
        ),
    ],
)
def test_an_ambiguous_authority_is_refused(text: str) -> None:
    """Ports other than 1-65535 in plain digits, IPv6 without brackets, userinfo and leftovers are refused."""
    with pytest.raises(InvalidAuthority):
        parse_authority(text, 443)


def test_a_port_may_be_required() -> None:
    """Without a default port, an authority without one is refused and one with it is not."""
    assert parse_authority("h:8443", None) == Authority("h", 8443)
    for text in ("h", "[::1]"):
        with pytest.raises(InvalidAuthority, match="a port is required"):
            parse_authority(text, None)


def test_the_port_is_cut_off_unjudged() -> None:
    """`split_port` leaves the host as written."""
    assert split_port("*.X:22") == ("*.X", 22)
    assert split_port("[::1]") == ("[::1]", None)


def test_the_error_shows_the_text_escaped_and_bounded() -> None:
    """Hostile text cannot write control characters into a message, nor flood it."""
    with pytest.raises(InvalidAuthority) as caught:
        canonical_host("\x1b]0;\x07" + "é" * 10_000)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
