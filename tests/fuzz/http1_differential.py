"""What we accept on a connection, h11 accepts and reads alike; what we send on, both read as what was judged.

An input is a kind of connection, one byte, and several messages in fragments (`http1_fragments`). They are read in
one piece and in others: the messages, their fields, contents and ends, and whether another may follow, are the same
for every cut and for both readers. What we refuse, h11 may read as it likes. What is sent on for it has no field
that was not received or is not of our own making, loses none but those of one hop, and no byte of a body becomes a
message; with a credential in it, that is there once, and no field takes it out.
"""

from __future__ import annotations

import re
import zlib
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Final

from fuzz.http1_connections import Message, Ours, Reading, Second, read
from fuzz.http1_fragments import PHANTOM, expanded, requests, responses

from nono_ebpf.authority import Authority
from nono_ebpf.credentials.injection import Injection, Placement, Presented, inject, read_phantom
from nono_ebpf.credentials.secret import Secret
from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.policy.endpoints import parse_path
from nono_ebpf.relay.explicit import addressed_to_proxy
from nono_ebpf.relay.http import Redirected
from nono_ebpf.session_token import Token
from nono_ebpf.wire import http1

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fuzz.http1_connections import NamedFields, Span

    from nono_ebpf.relay.exchange import Addressed

    Asked = tuple[http1.RequestHead, ...]


class Stricter(StrEnum):
    """Where h11 refuses what we accept, and is wrong to."""

    EMPTY_LINE = "an empty line before a request, which RFC 9112 §2.2 has a server ignore"
    BLANK_BEFORE_EXTENSION = "a blank between a chunk's size and its extension (RFC 9112 §7.1.1)"
    FRAMING_IN_TRAILER = "a trailer named as a framing field is: it delimits nothing, and we drop it (RFC 9110 §6.5.1)"
    FRAMING_IN_INTERIM = "a malformed framing field in a 1xx, which has no body whatever it says (RFC 9112 §6.3)"


_HOST: Final = (b"Host", b"up.test")
_GET: Final = http1.RequestHead("GET", "/", "1.1", (_HOST,))
_OLD_GET: Final = http1.RequestHead("GET", "/", "1.0", (_HOST,))
_HEAD: Final = http1.RequestHead("HEAD", "/", "1.1", (_HOST,))
_POST: Final = http1.RequestHead("POST", "/", "1.1", (_HOST, (b"Content-Length", b"0")))
_CLOSING: Final = http1.RequestHead("GET", "/", "1.1", (_HOST, (b"Connection", b"close")))
_WEBSOCKET: Final = http1.RequestHead(
    "GET",
    "/",
    "1.1",
    (
        _HOST,
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Version", b"13"),
        (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    ),
)
# By an input's first byte: what the responses in it answer, over and over. Any other first byte: requests.
_ANSWERS: Final[dict[bytes, Asked]] = {
    b"G": (_GET,),
    b"H": (_HEAD,),
    b"M": (_GET, _HEAD, _POST),
    b"O": (_OLD_GET,),
    b"C": (_CLOSING,),
    b"W": (_WEBSOCKET,),
}
_REQUESTS: Final = b"R"
# Ours. Below every bound of either reader that a connection as a whole could reach.
_STREAM_BYTES: Final = 16384
# What we send may have a field more than what we take.
_MANY_FIELDS: Final = 256
_UPSTREAM: Final = Authority("up.test", 80)
_ADDRESSINGS: Final = (Redirected(80, None), addressed_to_proxy)

_BEARER: Final = Injection(Placement(), Placement())
_SECRET: Final = Secret(b"sk-credential")
_CREDENTIAL: Final = b"Bearer sk-credential"
_TOKEN: Final = Token(PHANTOM.decode())
_CREDENTIALS: Final = frozenset((b"authorization", b"x_api_key"))

_ONE_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
     b"proxy-authorization", b"proxy-authenticate", b"http2-settings", b"x-nono-token")
)  # fmt: skip
_REWRITTEN: Final = frozenset((b"host", b"content-length"))
_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]+)([ \t]*)(.*)", re.DOTALL)
_FRAMING_LINE: Final = re.compile(rb"(?:content-length|transfer-encoding):.*\r\n", re.IGNORECASE)


def check(data: bytes) -> None:
    """Judge `data` as what one side of a connection sends."""
    exceptions_met(data)


def exceptions_met(data: bytes) -> tuple[set[Stricter], Reading]:
    """Judge `data`; where h11 was stricter, and what we read."""
    asked, stream = _ANSWERS.get(data[:1]), expanded(data[1:])[:_STREAM_BYTES]
    asked_upstream = asked and tuple(map(_asked_upstream, asked))
    ours = Ours(asked)
    reading = read(ours, [stream])
    for parts in _cuts(stream):
        _same_for_another_cut(read(Ours(asked), parts), reading)
    met: set[Stricter] = set()
    for_h11 = _without_what_h11_refuses(ours.spans, stream, met)
    for parts in ([for_h11], *_cuts(for_h11)):
        _h11_agrees(reading, read(Second(asked_upstream), parts))
    if any(len(message.fields) > _MANY_FIELDS for message in reading.messages):
        return met, reading
    if asked is None:
        for addressing in _ADDRESSINGS:
            _check_requests_sent_on(ours.spans, reading, addressing)
        _check_requests_with_a_credential(ours.spans, reading)
    else:
        _check_responses_sent_on(ours.spans, reading, asked)
    return met, reading


def seeds() -> Iterator[bytes]:
    """Connections of every kind."""
    for number in range(120):
        yield connection(number)


def connection(number: int) -> bytes:
    """An input of the grammar: always the same for the same number."""
    random = Random(number)
    if random.random() < 0.6:
        return _REQUESTS + requests(random)
    return random.choice(list(_ANSWERS)) + responses(random)


def _asked_upstream(head: http1.RequestHead) -> http1.RequestHead:
    """What the server is asked for a client that asks `head`."""
    websocket = http1.asks_for_websocket(head)
    parsed = http1.parse_request_head(http1.request_bytes(head, head.target, _UPSTREAM, websocket=websocket))
    assert isinstance(parsed, tuple)
    return parsed[0]


def _cuts(data: bytes) -> list[list[bytes]]:
    """Some ways to receive `data` in pieces: always the same for the same bytes."""
    random = Random(zlib.crc32(data))
    few = sorted(random.randint(0, len(data)) for _ in range(3))
    many = sorted(random.randint(0, len(data)) for _ in range(len(data) // 8))
    return [_cut(data, few), _cut(data, many)]


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


# ---------------------------------------------------------------- received


def _same_for_another_cut(other: Reading, reading: Reading) -> None:
    assert (other.refused, other.over, len(other.messages)) == (reading.refused, reading.over, len(reading.messages))
    for mine, its in zip(reading.messages, other.messages, strict=True):
        assert (mine.line, mine.fields, mine.complete, mine.goes_on) == (
            its.line,
            its.fields,
            its.complete,
            its.goes_on,
        )
        # What is before a mistake may be taken when it comes apart from it.
        assert mine.content == its.content or (reading.refused and not mine.complete)
    assert reading.refused or other.behind == reading.behind


def _h11_agrees(reading: Reading, second: Reading) -> None:
    """Every message of ours, and those only, unless one of the readers has refused what follows."""
    assert len(second.messages) >= len(reading.messages), f"h11 reads {second}"
    for mine, its in zip(reading.messages, second.messages, strict=False):
        assert (mine.line, _as_h11_writes(mine)) == (its.line, its.fields), f"h11 reads {its}"
        if mine.complete:
            assert (mine.content, its.complete, mine.goes_on) == (its.content, True, its.goes_on), f"h11 reads {its}"
        else:
            assert mine.content.startswith(its.content) or its.content.startswith(mine.content), f"h11 reads {its}"
            assert reading.refused or not its.complete, f"h11 reads {its}"
    if not reading.refused:
        assert len(second.messages) == len(reading.messages), f"h11 reads {second}"
        assert not reading.over or reading.behind == second.behind


def _as_h11_writes(message: Message) -> NamedFields:
    """The fields with the coding's name in lower case, and without those which an interim response must not have."""
    interim = isinstance(status := message.line[0], int) and status < 200
    fields = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in message.fields]
    return [field for field in fields if not (interim and field[0] in _FRAMING)]


def _without_what_h11_refuses(spans: list[Span], stream: bytes, met: set[Stricter]) -> bytes:
    """`stream` without the places where h11 is stricter, which are noted in `met`."""
    out, position = b"", 0
    for span in spans:
        assert span.start == position
        out += _head_for_h11(span, stream[span.start : span.body_start], met)
        body = stream[span.body_start : span.end]
        out += _chunks_for_h11(body, met) if isinstance(span.body, http1.ChunkedBody) else body
        position = span.end
    return out + stream[position:]


def _head_for_h11(span: Span, raw: bytes, met: set[Stricter]) -> bytes:
    if isinstance(span.head, http1.RequestHead):
        if raw.startswith(b"\r\n"):
            met.add(Stricter.EMPTY_LINE)
        return raw.removeprefix(b"\r\n")
    if span.head.status < 200 and _FRAMING_LINE.search(raw):
        met.add(Stricter.FRAMING_IN_INTERIM)
        return _without_framing(raw)
    return raw


def _chunks_for_h11(raw: bytes, met: set[Stricter]) -> bytes:
    """`raw`, the begin of a chunked body, read by the letter of the grammar, since we have accepted it."""
    out, rest = b"", raw
    while b"\r\n" in rest:
        line, _, rest = rest.partition(b"\r\n")
        match = _CHUNK_LINE.fullmatch(line)
        assert match
        size, blank, extension = match.groups()
        if blank:
            met.add(Stricter.BLANK_BEFORE_EXTENSION)
        out += size + extension + b"\r\n"
        if not int(size, 16):
            if _FRAMING_LINE.search(rest):
                met.add(Stricter.FRAMING_IN_TRAILER)
            return out + _without_framing(rest)
        behind = int(size, 16) + 2
        out, rest = out + rest[:behind], rest[behind:]
    return out + rest


def _without_framing(lines: bytes) -> bytes:
    return b"".join(line for line in lines.splitlines(keepends=True) if not _FRAMING_LINE.fullmatch(line))


# ---------------------------------------------------------------- sent on


def _check_requests_sent_on(
    spans: list[Span], reading: Reading, addressing: Callable[[http1.RequestHead], Addressed]
) -> None:
    """An upstream that gets all of these requests reads each as what was judged, and no other."""
    sent = b""
    judged: list[tuple[Message, Addressed, bool]] = []
    for span, message in zip(spans, reading.messages, strict=True):
        assert isinstance(span.head, http1.RequestHead)
        try:
            addressed = addressing(span.head)
        except ClientProtocolError:
            break
        if span.head.method == "CONNECT":
            break
        websocket = http1.asks_for_websocket(span.head)
        sent += http1.request_bytes(span.head, addressed.target, addressed.authority, websocket=websocket)
        sent += _body_sent_on(span, message, chunked=isinstance(span.body, http1.ChunkedBody))
        judged.append((message, addressed, websocket))
    for again in (read(Ours(), [sent]), read(Ours(), _cut(sent, _few(sent))), read(Second(), [sent])):
        assert len(again.messages) == len(judged), f"not what was judged: {again}"
        for received, (message, addressed, websocket) in zip(again.messages, judged, strict=True):
            assert received.line == (message.line[0], addressed.target, "1.1")
            hosts = [value for name, value in received.fields if name == b"host"]
            assert hosts == [http1.host_field(addressed.authority)]
            own = _framing(message)
            own += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")] if websocket else []
            _same_fields(message, received, own)
            _same_content(message, received)
            assert received.goes_on == message.complete


def _check_requests_with_a_credential(spans: list[Span], reading: Reading) -> None:
    """The same where a credential is put in, in TLS: it is the only one, whatever fields say about fields."""
    sent = b""
    judged: list[tuple[Message, str]] = []
    for span, message in zip(spans, reading.messages, strict=True):
        assert isinstance(span.head, http1.RequestHead)
        try:
            addressed = _ADDRESSINGS[0](span.head)
        except ClientProtocolError:
            break
        path = parse_path(addressed.target)
        if path is None or span.head.method == "CONNECT":
            break
        shown = read_phantom(_BEARER, span.head.fields, path.target, _TOKEN)
        if shown.presented is Presented.FOREIGN:
            break
        fields, target = inject(_BEARER, shown, _SECRET, name="api")
        authority = addressed.authority
        sent += http1.request_bytes(span.head, target, authority, websocket=False, tls=True, fields=fields)
        sent += _body_sent_on(span, message, chunked=isinstance(span.body, http1.ChunkedBody))
        judged.append((message, target))
    for again in (read(Ours(), [sent]), read(Second(), [sent])):
        assert len(again.messages) == len(judged), f"not what was judged: {again}"
        for received, (message, target) in zip(again.messages, judged, strict=True):
            assert received.line == (message.line[0], target, "1.1")
            assert [value for name, value in received.fields if name == b"authorization"] == [_CREDENTIAL]
            _same_fields(_without_credentials(message), _without_credentials(received), _framing(message))
            _same_content(message, received)


def _without_credentials(message: Message) -> Message:
    """In any other field, too, a phantom may be, or may have been taken out."""
    kept = [each for each in message.fields if each[0] not in _CREDENTIALS and PHANTOM not in each[1]]
    return Message(message.line, kept)


def _few(data: bytes) -> list[int]:
    random = Random(zlib.crc32(data))
    return sorted(random.randint(0, len(data)) for _ in range(5))


def _check_responses_sent_on(spans: list[Span], reading: Reading, asked: Asked) -> None:
    """A client that asked gets each response as it was, and knows where it ends."""
    sent, ends, answered = b"", False, 0
    passed: list[tuple[Message, NamedFields]] = []
    for span, message in zip(spans, reading.messages, strict=True):
        assert isinstance(span.head, http1.ResponseHead)
        request = asked[answered % len(asked)]
        if span.body is None:
            if request.version == "1.1":
                sent += http1.response_bytes(span.head, close=False, chunked=False)
                upgrade = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
                passed.append((message, upgrade if span.head.status == http1.SWITCHING_PROTOCOLS else []))
            continue
        answered += 1
        chunked = isinstance(span.body, http1.ChunkedBody) and request.version == "1.1"
        until_close = isinstance(span.body, http1.ChunkedBody | http1.CloseBody) and not chunked
        ends = until_close or http1.wants_close(request)
        sent += http1.response_bytes(span.head, close=ends, chunked=chunked)
        sent += _body_sent_on(span, message, chunked=chunked)
        own = [(b"transfer-encoding", b"chunked")] if chunked else [] if until_close else _length(span.head)
        passed.append((message, [*own, *([(b"connection", b"close")] if ends else [])]))
        ends &= message.complete
        if ends:
            break
    for reader in (Ours(asked), Second(asked)):
        again = read(reader, [sent], end=ends)
        assert len(again.messages) == len(passed), f"not what was answered: {again}"
        for received, (message, own) in zip(again.messages, passed, strict=True):
            assert received.line == (*message.line[:2], "1.1")
            _same_fields(message, received, own)
            _same_content(message, received)


def _length(head: http1.ResponseHead) -> NamedFields:
    # RFC 9110 §8.6: no Content-Length in 204.
    lengths = [] if head.status == 204 else http1.field_values(head.fields, b"content-length")
    return [(b"content-length", each) for each in lengths]


def _framing(message: Message) -> NamedFields:
    return [field for field in _as_h11_writes(message) if field[0] in _FRAMING]


def _body_sent_on(span: Span, message: Message, *, chunked: bool) -> bytes:
    if not chunked:
        return b"".join(span.pieces)
    return b"".join(map(http1.encode_chunk, span.pieces)) + (http1.LAST_CHUNK if message.complete else b"")


def _same_fields(before: Message, after: Message, own: NamedFields) -> None:
    """What is for every hop, in order; besides that what is ours to say, and nothing else."""
    nominating = b",".join(value for name, value in before.fields if name == b"connection")
    nominated = {each.strip(b" \t") for each in nominating.lower().split(b",")}
    dropped = _ONE_HOP | _REWRITTEN | nominated
    kept = [field for field in before.fields if field[0] not in dropped]
    assert [field for field in after.fields if field[0] not in dropped] == kept
    assert sorted(field for field in after.fields if field[0] in dropped - {b"host"}) == sorted(own)


def _same_content(before: Message, after: Message) -> None:
    assert (before.content, before.complete) == (after.content, after.complete)
