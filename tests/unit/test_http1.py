"""HTTP/1 messages: what is read, what is refused, what is written."""

from __future__ import annotations

import math

import pytest

from nono_ebpf.authority import Authority
from nono_ebpf.errors import ClientProtocolError, UpstreamError
from nono_ebpf.wire import NEED_MORE, http1
from nono_ebpf.wire.http1 import RequestHead, ResponseHead
from nono_ebpf.wire.sniff import MAX_FIRST_LINE_BYTES

REQUEST = b"GET /p?q HTTP/1.1\r\nHost: a.test\r\nX-A:\t one two \r\nX-A:\r\n\r\n"
PARSED = RequestHead("GET", "/p?q", "1.1", ((b"Host", b"a.test"), (b"X-A", b"one two"), (b"X-A", b"")))
RESPONSE = b"HTTP/1.1 404 Not \xfcberall\r\nServer: x\r\n\r\n"


def request(*lines: str, line: str = "POST / HTTP/1.1", host: str = "Host: a.test") -> RequestHead:
    parsed = http1.parse_request_head("\r\n".join((line, host, *lines, "", "")).encode("latin-1"))
    assert parsed is not NEED_MORE
    return parsed[0]


def response(*lines: str, line: str = "HTTP/1.1 200 OK") -> ResponseHead:
    parsed = http1.parse_response_head("\r\n".join((line, *lines, "", "")).encode("latin-1"), "a.test:80")
    assert parsed is not NEED_MORE
    return parsed[0]


def content(body: http1.Body, data: bytes) -> tuple[bytes, bytes]:
    """What `body` takes from `data`, and what it leaves."""
    buffer = bytearray(data)
    return body.take(buffer), bytes(buffer)


class TestHeads:
    def test_whole(self) -> None:
        """Names as sent, values without blanks around them, in order."""
        assert http1.parse_request_head(REQUEST) == (PARSED, len(REQUEST))

    def test_byte_by_byte_and_with_bytes_behind(self) -> None:
        """Every prefix needs more; what follows the head is not counted."""
        for size in range(len(REQUEST)):
            assert http1.parse_request_head(bytearray(REQUEST[:size])) is NEED_MORE
        assert http1.parse_request_head(REQUEST + REQUEST) == (PARSED, len(REQUEST))

    def test_one_empty_line_in_front_is_skipped(self) -> None:
        """RFC 9112 §2.2; a second one is an error."""
        assert http1.parse_request_head(b"\r\n" + REQUEST) == (PARSED, len(REQUEST) + 2)
        with pytest.raises(ClientProtocolError):
            http1.parse_request_head(b"\r\n\r\n" + REQUEST)

    def test_response(self) -> None:
        """Status and reason, which may hold any text or none."""
        expected = ResponseHead(404, b"Not \xfcberall", "1.1", ((b"Server", b"x"),))
        assert http1.parse_response_head(RESPONSE, "a.test:80") == (expected, len(RESPONSE))
        assert response(line="HTTP/1.0 200").reason == b""

    @pytest.mark.parametrize(
        "head",
        [
            "GET / HTTP/1.1\r\nHost: a\r\nX : y",
            "GET / HTTP/1.1\r\nHost: a\r\n folded",
            "GET / HTTP/1.1\r\nHost: a\r\n\tfolded",
            "GET / HTTP/1.1\r\n X: y\r\nHost: a",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\nb",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b",
            "GET / HTTP/1.1\r\nHost: a\r\nX",
            "GET / HTTP/1.1\r\nHost: a\r\n: y",
            "GET / HTTP/1.1\r\nHost: a\r\nX\0: y",
            "GET / HTTP/1.1\nHost: a",
            "GET / HTTP/1.1\r\nX: y",
            "GET / HTTP/1.1\r\nHost: a\r\nhost: a",
            "GET  / HTTP/1.1\r\nHost: a",
            "GET /a b HTTP/1.1\r\nHost: a",
            "GET / HTTP/1.1 \r\nHost: a",
            " GET / HTTP/1.1\r\nHost: a",
            "GET / HTTP/1.2\r\nHost: a",
            "GET / HTTP/2.0\r\nHost: a",
            "GET / http/1.1\r\nHost: a",
            "GET /\xfc HTTP/1.1\r\nHost: a",
            "G(T / HTTP/1.1\r\nHost: a",
            "GET /",
        ],
    )
    def test_malformed_request(self, head: str) -> None:
        """Whatever has more than one reading is a 400."""
        with pytest.raises(ClientProtocolError) as caught:
            http1.parse_request_head(head.encode("latin-1") + b"\r\n\r\n")
        assert caught.value.status == 400

    @pytest.mark.parametrize("method", ["TRACE", "TRACK", "Trace"])
    def test_echoing_methods(self, method: str) -> None:
        """TRACE would echo every field that was added on the way."""
        with pytest.raises(ClientProtocolError) as caught:
            request(line=f"{method} / HTTP/1.1")
        assert caught.value.status == 405

    def test_bound(self) -> None:
        """A head over the bound is 431, told as soon as it is over."""
        with pytest.raises(ClientProtocolError) as caught:
            http1.parse_request_head(b"GET / HTTP/1.1\r\nX: " + b"x" * http1.MAX_HEAD_BYTES)
        assert caught.value.status == 431

    @pytest.mark.parametrize("more", [b"", b" HTTP/1.1\r\nHost: a\r\n\r\n"])
    def test_bound_of_the_request_line(self, more: bytes) -> None:
        """A request line over its own bound is 414, whatever comes behind it."""
        with pytest.raises(ClientProtocolError) as caught:
            http1.parse_request_head(b"GET /" + b"x" * MAX_FIRST_LINE_BYTES + more)
        assert caught.value.status == 414

    @pytest.mark.parametrize(
        "lines",
        [
            "Proxy-Authorization : Basic s3cret",
            "Proxy-Authorization:\r\n Basic s3cret",
            "Proxy-Authorization:\r\n\tBasic: s3cret",
            "Proxy-Authorization: Basic s3cret\0",
            "s3cret",
        ],
    )
    def test_a_malformed_field_is_not_repeated(self, lines: str) -> None:
        """What is said about a bad line never has its value: it may be a secret."""
        with pytest.raises(ClientProtocolError) as caught:
            http1.parse_request_head(f"GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n".encode())
        assert "s3cret" not in str(caught.value)

    def test_bare_line_feeds_are_told_before_the_deadline(self) -> None:
        """A head that ends in LF LF will never end in CRLF CRLF."""
        with pytest.raises(ClientProtocolError):
            http1.parse_request_head(b"GET / HTTP/1.1\nHost: a\n\n")

    @pytest.mark.parametrize("head", ["HTTP/1.1 20 OK", "HTTP/1.1 600 X", "ICY 200 OK", "HTTP/1.1 200 OK\r\nX : y"])
    def test_malformed_response_is_the_upstreams_fault(self, head: str) -> None:
        """The same rules, blamed on the other side."""
        with pytest.raises(UpstreamError, match=r"^read a\.test:80: "):
            http1.parse_response_head(head.encode() + b"\r\n\r\n", "a.test:80")


class TestFraming:
    def test_request_without_any(self) -> None:
        """A request has no body unless it says so."""
        assert http1.request_body(request()).done

    @pytest.mark.parametrize("lines", [["Content-Length: 3"], ["content-length:3  "]])
    def test_length(self, lines: list[str]) -> None:
        """Exactly that many bytes, what follows stays."""
        body = http1.request_body(request(*lines))
        assert content(body, b"ab") == (b"ab", b"")
        assert not body.done
        assert content(body, b"cGET") == (b"c", b"GET")
        assert body.done

    @pytest.mark.parametrize(
        ("lines", "status"),
        [
            (["Content-Length: 1", "Transfer-Encoding: chunked"], 400),
            (["Content-Length: 1", "Content-Length: 1"], 400),
            (["Content-Length: 1, 1"], 400),
            (["Content-Length: -1"], 400),
            (["Content-Length: +1"], 400),
            (["Content-Length: 0x1"], 400),
            (["Content-Length: 1_0"], 400),
            (["Content-Length: \xb2"], 400),
            (["Content-Length:"], 400),
            (["Content-Length: " + "9" * 19], 400),
            (["Transfer-Encoding: gzip, chunked"], 501),
            (["Transfer-Encoding: identity"], 501),
            (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], 501),
            (["Transfer-Encoding: \x0bchunked"], 400),
            (["Transfer-Encoding:"], 501),
        ],
    )
    def test_ambiguous(self, lines: list[str], status: int) -> None:
        """More than one way to find the end, or none, is an error; the response's is the server's."""
        with pytest.raises(ClientProtocolError) as caught:
            http1.request_body(request(*lines))
        assert caught.value.status == status
        with pytest.raises(UpstreamError):
            http1.response_body(response(*lines), "GET", "a.test:80")

    def test_chunked_in_http_1_0(self) -> None:
        """RFC 9112 §6.1: such a message has faulty framing."""
        with pytest.raises(ClientProtocolError):
            http1.request_body(request("Transfer-Encoding: chunked", line="POST / HTTP/1.0"))

    @pytest.mark.parametrize(
        ("method", "line"),
        [
            ("HEAD", "HTTP/1.1 200 OK"),
            ("GET", "HTTP/1.1 204 X"),
            ("GET", "HTTP/1.1 304 X"),
            ("GET", "HTTP/1.1 100 X"),
        ],
    )
    def test_responses_without_a_body(self, method: str, line: str) -> None:
        """Some responses have none, whatever their fields say (RFC 9112 §6.3)."""
        assert http1.response_body(response("Content-Length: 9", line=line), method, "a").done

    def test_response_until_close(self) -> None:
        """Without framing a response lasts to the end of the connection."""
        body = http1.response_body(response(), "GET", "a")
        assert content(body, b"all") == (b"all", b"")
        assert not body.done
        body.end_of_stream()
        assert body.done

    def test_early_end(self) -> None:
        """An end before the body's end is the sender's error."""
        for line in ("Content-Length: 1", "Transfer-Encoding: chunked"):
            with pytest.raises(ClientProtocolError):
                http1.request_body(request(line)).end_of_stream()


CHUNKED = b"5;a=b\r\nhello\r\n1 ; x\r\n \r\n5\r\nworld\r\n000\r\nTrailer: x\r\n\r\n"


class TestChunked:
    def body(self) -> http1.Body:
        return http1.request_body(request("Transfer-Encoding: chunked"))

    def test_whole_with_bytes_behind(self) -> None:
        """Content out, extensions and trailers gone, the next message left."""
        body = self.body()
        assert content(body, CHUNKED + b"GET") == (b"hello world", b"GET")
        assert body.done

    def test_byte_by_byte(self) -> None:
        """Any segmentation has the same content."""
        body, buffer, out = self.body(), bytearray(), b""
        for byte in CHUNKED:
            assert not body.done
            buffer.append(byte)
            out += body.take(buffer)
        assert (out, bytes(buffer), body.done) == (b"hello world", b"", True)

    @pytest.mark.parametrize(
        "data",
        [
            b"\r\n", b"g\r\n", b"-1\r\n", b"0x1\r\n", b" 1\r\n", b"1 \r\n", b"+1\r\n", b"1\n", b"1\r1",
            b"1;\0\r\n",
            b"1;a\nb\r\n", b"1\r\nab\r\n", b"1\r\na\n", b"1\r\na\r\r", b"f" * 16 + b"\r\n",
            b"1;" + b"x" * 2000, b"0\r\nX : y\r\n", b"0\r\n folded: x\r\n", b"0\r\nX\r\n",
            b"0\r\n" + b"X: " + b"y" * 20000, b"0\r\n" + b"X: yyyyyyyyyyyyyyyyyyy\r\n" * 1000,
        ],
    )  # fmt: skip
    def test_malformed(self, data: bytes) -> None:
        """Lines have one spelling and a bound."""
        with pytest.raises(ClientProtocolError):
            content(self.body(), data)

    def test_encoding(self) -> None:
        """What we write, we read; no content is no chunk, since the empty one ends the body."""
        assert http1.encode_chunk(b"") == b""
        body = self.body()
        assert content(body, http1.encode_chunk(b"x" * 300) + http1.LAST_CHUNK) == (b"x" * 300, b"")
        assert body.done


class TestWriting:
    def test_request(self) -> None:
        """Our Host first, end-to-end fields in order, our framing last."""
        head = request(
            "Content-Length: 3", "connection: x-drop, host, content-length", "X-Drop: 1", "X-Keep: 1",
            "TE: trailers",
            "Keep-Alive: 1", "Proxy-Connection: x", "Proxy-Authorization: x", "Upgrade: h2c", "Trailer: x",
        )  # fmt: skip
        written = http1.request_bytes(head, "/", Authority("a.test", 80), websocket=False)
        assert written == b"POST / HTTP/1.1\r\nHost: a.test\r\nX-Keep: 1\r\nContent-Length: 3\r\n\r\n"

    def test_host_field(self) -> None:
        """Port 80 is not written, an IPv6 literal is bracketed."""
        assert http1.host_field(Authority("a.test", 80)) == b"a.test"
        assert http1.host_field(Authority("a.test", 8080)) == b"a.test:8080"
        assert http1.host_field(Authority("::1", 80)) == b"[::1]"

    def test_response(self) -> None:
        """Framing is ours, repeated fields stay apart."""
        head = response("Set-Cookie: a", "Set-Cookie: b", "Connection: close", "Content-Length: 1")
        assert http1.response_bytes(head, close=True, chunked=False) == (
            b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 1\r\nConnection: close\r\n\r\n"
        )

    def test_no_length_in_1xx_and_204(self) -> None:
        """RFC 9110 §8.6."""
        head = response("Content-Length: 0", line="HTTP/1.1 204 No Content")
        assert b"Content-Length" not in http1.response_bytes(head, close=False, chunked=False)


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            ("http://a.test", ("http", "a.test", "/")),
            ("HTTP://a.test/x?y", ("http", "a.test", "/x?y")),
            ("http://a.test?y", ("http", "a.test", "/?y")),
            ("http://u@a.test:1/x", ("http", "u@a.test:1", "/x")),
            ("https://a.test/", ("https", "a.test", "/")),
            ("/http://a.test/", None),
            ("a.test:443", None),
            ("*", None),
        ],
    )
    def test_absolute_form(self, target: str, expected: tuple[str, str, str] | None) -> None:
        """Scheme, authority and what is left for the origin."""
        assert http1.split_absolute_form(target) == expected

    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            pytest.param("API.OpenAI.com", "api.openai.com:443", id="C1"),
            pytest.param("api.openai.com:8443", "api.openai.com:8443", id="C2"),
            pytest.param("[::1]", "[::1]:443", id="C3"),
            pytest.param("[::1]:8443", "[::1]:8443", id="C3-port"),
            pytest.param("[0:0:0:0:0:0:0:1]", "[::1]:443", id="C3-canonical"),
            pytest.param("[::ffff:203.0.113.7]:443", "203.0.113.7:443", id="mapped"),
            pytest.param("example.com", "example.com:443", id="C8"),
            pytest.param("internal:8443", "internal:8443", id="C8-port"),
            pytest.param("example.com.:443", "example.com:443", id="dot"),
        ],
    )
    def test_connect(self, target: str, expected: str) -> None:
        """CONNECT names a host, which has one spelling, and a port, which is that of https when it is left out."""
        assert str(http1.connect_authority(request(line=f"CONNECT {target} HTTP/1.1"))) == expected

    @pytest.mark.parametrize(
        ("target", "field"),
        [
            pytest.param("/", "", id="C9"),
            ("http://a.test:1", ""),
            ("a.test:", ""),
            ("a.test:0", ""),
            ("a.test:abc", ""),
            ("::1:443", ""),
            ("[::1", ""),
            ("[::1]443", ""),
            ("a.test:443", "Content-Length: 1"),
            ("a.test:443", "Transfer-Encoding: chunked"),
        ],
    )
    def test_connect_that_is_none(self, target: str, field: str) -> None:
        """Anything but host and port, and any body, is malformed."""
        with pytest.raises(ClientProtocolError) as caught:
            http1.connect_authority(request(*filter(None, [field]), line=f"CONNECT {target} HTTP/1.1"))
        assert caught.value.status == 400


@pytest.mark.parametrize("name", ["Content_Length", "transfer_encoding", "Content.Length"])
def test_another_name_for_what_frames_a_message(name: str) -> None:
    """Servers behind CGI take it for the real one, and what it says for the message's end."""
    with pytest.raises(ClientProtocolError, match="to some servers"):
        request(f"{name}: 5")


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ([], math.inf),
        (["Keep-Alive: timeout=5, max=100"], 5),
        (["Keep-Alive: max=100,\tTimeout=5", "Keep-Alive: timeout=3"], 3),
        (["Keep-Alive: timeout=0"], 0),
        (["Keep-Alive: 5", "Keep-Alive: timeout=-1, timeout=, timeout=5s, xtimeout=5"], math.inf),
    ],
)
def test_how_long_a_server_keeps_a_connection(fields: list[str], seconds: float) -> None:
    """What it says in seconds; anything else is as if it said nothing."""
    assert http1.kept_alive_s(response(*fields)) == seconds


class TestWebSocket:
    # The example of RFC 6455 §1.3.
    FIELDS = (
        "Connection: keep-alive, Upgrade",
        "Upgrade: WebSocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    ACCEPT = (
        "Connection: upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    )

    def test_handshake(self) -> None:
        """The standard's own example is a handshake and its answer."""
        asked = request(*self.FIELDS, line="GET / HTTP/1.1")
        assert http1.asks_for_websocket(asked)
        assert http1.accepts_websocket(response(*self.ACCEPT, line="HTTP/1.1 101 X"), asked)
        for missing in range(3):
            fields = [field for index, field in enumerate(self.ACCEPT) if index != missing]
            assert not http1.accepts_websocket(response(*fields, line="HTTP/1.1 101 X"), asked)

    def test_anything_else_is_not(self) -> None:
        """Another method, version, token, a missing part or a body is no handshake."""
        for missing in range(3):
            fields = [field for index, field in enumerate(self.FIELDS) if index != missing]
            assert not http1.asks_for_websocket(request(*fields, line="GET / HTTP/1.1"))
        assert not http1.asks_for_websocket(request(*self.FIELDS))
        assert not http1.asks_for_websocket(request(*self.FIELDS, line="GET / HTTP/1.0"))
        assert not http1.asks_for_websocket(request(*self.FIELDS, "Upgrade: h2c", line="GET / HTTP/1.1"))
        assert not http1.asks_for_websocket(request(*self.FIELDS, "Content-Length: 1", line="GET / HTTP/1.1"))


def test_the_number_of_fields_is_bounded() -> None:
    """A head of tiny fields costs more to read than its size shows."""
    field = b"a:\r\n"
    within = b"GET / HTTP/1.1\r\nHost: a\r\n" + field * (http1.MAX_FIELDS - 1) + b"\r\n"
    parsed = http1.parse_request_head(within)
    assert parsed is not NEED_MORE
    assert len(parsed[0].fields) == http1.MAX_FIELDS
    with pytest.raises(ClientProtocolError) as caught:
        http1.parse_request_head(within[:-2] + field + b"\r\n")
    assert caught.value.status == 431
    with pytest.raises(UpstreamError):
        http1.parse_response_head(b"HTTP/1.1 200 OK\r\n" + field * (http1.MAX_FIELDS + 1) + b"\r\n", "a.test")


def test_tiny_chunks_are_taken_a_part_at_a_time() -> None:
    """However small the chunks, one call is short; the next ones find everything that is left."""
    count = http1.MAX_CHUNK_STEPS
    buffer = bytearray(b"1\r\nx\r\n" * count + b"0\r\n\r\nnext")
    body = http1.request_body(RequestHead("POST", "/", "1.1", ((b"Host", b"a"), (b"Transfer-Encoding", b"chunked"))))
    pieces = [body.take(buffer)]
    assert 0 < len(pieces[0]) < count
    while not body.done:
        held = len(buffer)
        pieces.append(body.take(buffer))
        assert len(buffer) < held
    assert (b"".join(pieces), bytes(buffer)) == (b"x" * count, b"next")


@pytest.mark.parametrize("ending", [b"\n", b"\n\r\n"])
def test_a_bare_lf_is_told_at_once(ending: bytes) -> None:
    """Nothing that follows could make it well formed, so nobody waits for it."""
    with pytest.raises(ClientProtocolError, match="bare LF"):
        http1.parse_request_head(b"GET / HTTP/1.1\nHost: a" + ending)
