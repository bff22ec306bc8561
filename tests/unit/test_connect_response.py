"""What a proxy answers to CONNECT: one status, and one byte where the tunnel begins."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nono_ebpf.errors import UpstreamError
from nono_ebpf.wire import NEED_MORE
from nono_ebpf.wire.connect_response import MAX_HEAD_BYTES, ConnectResponse, parse_connect_response

PROXY = "proxy.test:3128"
SQUID = b"HTTP/1.1 200 Connection established\r\n\r\n"
TINYPROXY = b"HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n"


def parse(data: bytes) -> object:
    return parse_connect_response(data, PROXY)


def verdict(data: bytes) -> object:
    try:
        return parse(data)
    except UpstreamError as error:
        return str(error)


def head_of(size: int) -> bytes:
    start, end = b"HTTP/1.1 200 OK\r\nX: ", b"\r\n\r\n"
    return start + b"a" * (size - len(start) - len(end)) + end


@pytest.mark.parametrize("head", [SQUID, TINYPROXY, b"HTTP/1.1 200\r\n\r\n", b"HTTP/1.1 200 \r\nA:\r\n\r\n"])
def test_ends_with_its_head(head: bytes) -> None:
    """However the answer is cut; what follows it is the tunnel's, whatever it looks like."""
    whole = parse(head + b"\r\n\r\nHTTP/1.1 407 x\r\n\r\n")
    assert isinstance(whole, tuple)
    assert (whole[0].status, whole[1]) == (200, len(head))
    assert parse(head) == whole
    assert {parse(head[:size]) for size in range(len(head))} == {NEED_MORE}


def test_content_is_not_looked_for() -> None:
    """RFC 9110 §9.3.6: what a successful answer says about its content means nothing."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert parse(head + b"abc") == (ConnectResponse(200, "OK", False), len(head))


def test_the_longest_head() -> None:
    """The bound is met to the byte; whoever goes on is refused before the end comes."""
    size = MAX_HEAD_BYTES
    assert parse(head_of(size) + b"tunnel") == (ConnectResponse(200, "OK", False), size)
    assert parse(head_of(size + 1)[: size - 1]) is NEED_MORE
    for longer in (head_of(size + 1), head_of(size + 1)[:size], head_of(2 * size)):
        with pytest.raises(UpstreamError, match=r"^connect proxy\.test:3128: answers with a head larger than 8192 "):
            parse(longer)


@pytest.mark.parametrize("first", [b"SSH-2.0-x\r\n", b"\x15\x03\x03", b"220 smtp", b"HTTP/2", b"http/1.1 200", b"\r\n"])
def test_other_protocols_are_not_waited_for(first: bytes) -> None:
    """At the first byte that cannot be HTTP/1: the rest may never come."""
    with pytest.raises(UpstreamError, match=r"does not answer in HTTP/1$"):
        parse(first)


@pytest.mark.parametrize(
    "line",
    [
        *(b"HTTP/1.1", b"HTTP/1.1 ", b"HTTP/1.1 20", b"HTTP/1.1 2000", b"HTTP/1.1 2O0 OK", b"HTTP/1.1 -20 OK"),
        *(b"HTTP/1.1  200 OK", b"HTTP/1.1\t200 OK", b"HTTP/1.10 200 OK", b"HTTP/1.x 200 OK", b"HTTP/1.1 099 x"),
        *(b"HTTP/1.1 200 O\0K", b"HTTP/1.1 200 O\rK", b"HTTP/1.1 200OK", b"HTTP/1. 200 OK"),
    ],
)
def test_bad_status_lines(line: bytes) -> None:
    """What is no status line is never taken for success."""
    with pytest.raises(UpstreamError, match=r"bad HTTP/1 status line$"):
        parse(line + b"\r\n\r\n")


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\n", b"HTTP/1.1 200 OK\r\nA: b\n\r\n", b"HTTP/1.1 200 OK\r\n\n"])
def test_a_bare_line_feed_ends_no_line(head: bytes) -> None:
    """Somebody else would find another end of the head; it is refused without waiting for ours."""
    with pytest.raises(UpstreamError, match="bare LF"):
        parse(head)


def test_its_words_are_fit_to_be_shown() -> None:
    """No control character, nothing beyond ASCII, and not much."""
    parsed = parse(b"HTTP/1.1 403 \x80\x9b31m\xe2\x80\xae\tx" + b"y" * 500 + b"\r\n\r\n")
    assert isinstance(parsed, tuple)
    assert parsed[0].reason.startswith("??31m????x")
    assert set(parsed[0].reason) == set("?31mxy")
    assert len(parsed[0].reason) == 60


@pytest.mark.parametrize(
    ("fields", "other"),
    [
        (b"", False),
        (b"Proxy-Authenticate: Basic realm=x\r\n", False),
        (b"Proxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n", True),
        (b"Proxy-Authenticate: Negotiate\r\nPROXY-AUTHENTICATE:\tbasic\r\n", False),
        (b'Proxy-Authenticate: Digest realm="a, b", Basic realm="c"\r\n', False),
        (b"Proxy-Authenticate: Basically\r\n", True),
        (b"WWW-Authenticate: Negotiate\r\n", False),
    ],
)
def test_ways_to_give_credentials(fields: bytes, other: bool) -> None:
    """Whether Basic is among them, in any case and any of the field's two forms of a list."""
    parsed = parse(b"HTTP/1.1 407 x\r\n" + fields + b"\r\n")
    assert isinstance(parsed, tuple)
    assert parsed[0].wants_other_than_basic is other


answers = st.lists(
    st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 407 No", b"\r\n", b"\r", b"\n", b"A: b", b"\0", b"\x16\x03", b" "])
).map(b"".join)


@given(answers | st.binary(max_size=40))
@example(b"HTTP/1.1 200 OK\r\n\r\n\n")
@example(b"HTTP/1.1 200 OK\n\r\n\r\n")
def test_cuts_change_nothing(data: bytes) -> None:
    """Every prefix has the verdict of the whole, or none yet."""
    whole = verdict(data)
    assert all(verdict(data[:size]) in (NEED_MORE, whole) for size in range(len(data)))
