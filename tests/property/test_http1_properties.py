"""HTTP/1 messages of every shape: written and read back, mutated, and cut."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from nono_ebpf.authority import Authority
from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.wire import NEED_MORE, http1
from nono_ebpf.wire.http1 import RequestHead

tokens = st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}", fullmatch=True)
# Neither framing, nor hop-by-hop, nor Host: those are not passed on as they came.
names = tokens.map(lambda text: f"X-{text}".encode())
values = st.from_regex(r"([!-~]([ -~]{0,20}[!-~])?)?", fullmatch=True).map(str.encode)
fields = st.lists(st.tuples(names, values), max_size=6)
targets = st.from_regex(r"/[!\"$-~]{0,20}", fullmatch=True)
pieces = st.lists(st.binary(min_size=1, max_size=40), max_size=5)


@given(tokens.filter(lambda text: text.upper() not in {"TRACE", "TRACK"}), targets, fields, st.binary(max_size=9))
def test_what_was_written_is_read(method: str, target: str, fields: list[tuple[bytes, bytes]], tail: bytes) -> None:
    """Parsing what we write gives what we wrote, at any length of what follows."""
    head = RequestHead(method, target, "1.1", ((b"Host", b"a.test"), *fields))
    data = http1.request_bytes(head, target, Authority("a.test", 80), websocket=False)
    assert http1.parse_request_head(data + tail) == (head, len(data))
    for size in range(len(data)):
        assert http1.parse_request_head(data[:size]) is NEED_MORE


@given(st.integers(0, 200), st.integers(0, 255))
@example(14, 10)
def test_mutated_head_has_one_reading(where: int, value: int) -> None:
    """A changed byte is refused or read; what is read and written again is read the same."""
    data = bytearray(b"POST /path HTTP/1.1\r\nHost: a.test\r\nX-One: 1\r\nContent-Length: 5\r\n\r\n")
    data[where % len(data)] = value
    try:
        parsed = http1.parse_request_head(bytes(data))
        if parsed is NEED_MORE:
            return
        head = parsed[0]
        body = http1.request_body(head)
    except ClientProtocolError:
        return
    again = http1.parse_request_head(http1.request_bytes(head, head.target, Authority("a.test", 80), websocket=False))
    assert again is not NEED_MORE
    assert again[0].method == head.method
    assert http1.request_body(again[0]).done == body.done
    assert b"\n" not in b"".join(value for _, value in head.fields)


@given(pieces, st.lists(st.integers(1, 30), min_size=1, max_size=40), st.binary(max_size=5))
def test_chunked_content_survives_any_cut(pieces: list[bytes], cuts: list[int], tail: bytes) -> None:
    """Encoding and decoding is identity for every segmentation, and leaves what follows."""
    data = b"".join(map(http1.encode_chunk, pieces)) + http1.LAST_CHUNK + tail
    body = http1.ChunkedBody(lambda problem, status: ClientProtocolError(problem, status=status))
    buffer, out, position = bytearray(), b"", 0
    for cut in (*cuts, len(data)):
        buffer += data[position : position + cut]
        position += cut
        out += body.take(buffer)
    assert (out, bytes(buffer), body.done) == (b"".join(pieces), tail, True)


@given(st.binary(max_size=100))
def test_arbitrary_chunks(data: bytes) -> None:
    """Anything is content or the documented error, and cutting decides nothing."""

    def read(parts: list[bytes]) -> object:
        body = http1.ChunkedBody(lambda problem, status: ClientProtocolError(problem, status=status))
        buffer, out = bytearray(), b""
        try:
            for part in parts:
                buffer += part
                out += body.take(buffer)
        except ClientProtocolError:
            return ClientProtocolError
        return out, bytes(buffer), body.done

    assert read([data]) == read([data[i : i + 1] for i in range(len(data))])
