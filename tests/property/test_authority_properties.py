"""`nono_ebpf.authority` over texts that nobody thought of."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

import idna
from hypothesis import example, given
from hypothesis import strategies as st

from nono_ebpf.authority import (
    MAX_NAME_LENGTH,
    canonical_host,
    host_address,
    join_host_port,
    parse_authority,
)
from nono_ebpf.errors import InvalidAuthority

NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*")

# ASCII to the full-width forms, U+FF01 to U+FF5E.
WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}

labels = st.from_regex(r"[a-z_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True).filter(
    lambda label: not label.startswith("xn--")
)
names = st.lists(labels, min_size=1, max_size=5).map(".".join)
addresses = st.ip_addresses()
ports = st.integers(1, 65535)
# Shaped like hosts, then with the characters that attacks are made of.
hostile = st.text(st.sampled_from("aZ0178xX.-_:[]%/@\\ \0\r\n*\u3002\uff0e\uff11\u00ad\u200d\u00fc\u00df\u0131\u212a"))
almost_a_labels = st.text(st.sampled_from("abz019-"), max_size=12).map(lambda tail: f"xn--{tail}.com")
anything = st.one_of(st.text(), hostile, almost_a_labels, names, addresses.map(str))


def form(text: str) -> str | None:
    try:
        return canonical_host(text)
    except InvalidAuthority:
        return None


@given(anything)
@example("xn--a.com")
@example("0x.0x")
@example("\udfff.com")
def test_a_host_is_canonical_or_refused(text: str) -> None:
    """Any text is an InvalidAuthority or has a form: a plain name or an address, and its own form."""
    host = form(text)
    if host is None:
        return
    assert canonical_host(host) == host
    if (address := host_address(host)) is None:
        assert NAME.fullmatch(host)
        assert len(host) <= MAX_NAME_LENGTH
    else:
        assert str(address) == host
        assert not (isinstance(address, IPv6Address) and address.ipv4_mapped)


@given(anything)
def test_ascii_case_and_one_trailing_dot_do_not_matter(text: str) -> None:
    """Upper and lower case and one trailing dot lead to the same host, or to the same refusal."""
    host = form(text)
    if text.isascii():
        assert form(text.upper()) == form(text.lower()) == host
    if host is not None and ":" not in host:
        assert form(text + ".") in (host, None)
        assert form(host + ".") == host
        assert form(host + "..") is None


@given(names, st.sampled_from(".\u3002\uff0e\uff61"), st.booleans())
def test_width_and_the_kind_of_dot_do_not_matter(name: str, dot: str, wide: bool) -> None:
    """Full-width letters and the four dots of UTS #46 (section 2.3) are one host with the plain name."""
    written = name.translate(WIDE) if wide else name
    assert canonical_host(written.replace("\uff0e" if wide else ".", dot)) == name


@given(st.text(st.characters(categories=["Ll", "Lo", "Nd"]), min_size=1, max_size=12), st.booleans())
def test_u_labels_and_a_labels_are_one_host(label: str, upper: bool) -> None:
    """An internationalised name as it is read, as it is sent, and in upper case as it is sent, is one host."""
    host = form(f"{label}.example")
    if host is not None:
        assert canonical_host(idna.decode(host)) == host
        assert canonical_host(host.upper() if upper else f"{host}.") == host


@given(names)
def test_plain_names_are_kept(name: str) -> None:
    """A lower-case name of letters, digits, `-` and `_` is its own form."""
    assert canonical_host(name) == name


@given(st.text(st.characters(categories=["Ll", "Lo", "Nd", "Pd"]), min_size=1, max_size=20))
def test_unicode_names_agree_with_idna(label: str) -> None:
    """Where the IDNA library has an A-label for a name, it is ours; what it refuses, we refuse."""
    text = f"{label}.example"
    try:
        expected: str | None = idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
    except idna.IDNAError:
        expected = None
    ours = form(text)
    # Ours is wider in one respect: hyphens in third and fourth place of an ASCII label.
    assert ours == expected or (expected is None and ours is not None and ours[2:4] == "--")


@given(addresses)
def test_addresses_have_one_form(address: IPv4Address | IPv6Address) -> None:
    """Compressed, exploded, upper-case and bracketed spellings are one host, mapped IPv4 is IPv4."""
    real = (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address
    spellings = [str(address), address.exploded, str(address).upper()]
    if address.version == 6:
        spellings += [f"[{spelling}]" for spelling in spellings]
    assert {canonical_host(spelling) for spelling in spellings} == {str(real)}
    assert host_address(str(real)) == real


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "{:#x}", "0{:o}"]))
def test_numbers_are_never_hosts(value: int, spelling: str) -> None:
    """inet_aton(3)'s spellings of an IPv4 address as one number have no form."""
    assert form(spelling.format(value)) is None


@given(st.one_of(names, addresses.map(str).map(canonical_host)), ports)
def test_an_authority_survives_its_text(host: str, port: int) -> None:
    """parse_authority reads back what str() wrote."""
    authority = parse_authority(join_host_port(host, port), None)
    assert (authority.host, authority.port) == (host, port)
    assert parse_authority(str(authority), 1) == authority


@given(anything, st.one_of(st.none(), ports))
def test_an_authority_is_canonical_or_refused(text: str, default_port: int | None) -> None:
    """Any text is an authority with a canonical host and a port in range, or an InvalidAuthority."""
    try:
        authority = parse_authority(text, default_port)
    except InvalidAuthority:
        return
    assert canonical_host(authority.host) == authority.host
    assert 1 <= authority.port <= 65535
    if (literal := host_address(authority.host)) is not None:
        assert ip_address(authority.host) == literal
