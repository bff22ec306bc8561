"""ClientHellos of every shape: grammar first, then mutated, then cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from kit.hellos import alpn, extension, message, records, server_name

from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.wire import NEED_MORE
from nono_ebpf.wire.sniff import classify
from nono_ebpf.wire.tls_hello import ClientHello, parse_client_hello

labels = st.from_regex(r"[a-z]([a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
hosts = st.lists(labels, min_size=2, max_size=4).map(".".join)
offers = st.lists(st.binary(min_size=1, max_size=20), max_size=4)
others = st.dictionaries(st.integers(1000, 60000), st.binary(max_size=50), max_size=4)
sizes = st.lists(st.integers(1, 80), max_size=20)
cuts = st.lists(st.integers(0, 400), max_size=6)


def outcome(data: bytes) -> object:
    try:
        return parse_client_hello(data)
    except ClientProtocolError:
        return ClientProtocolError


@given(st.none() | hosts, offers, others, sizes, st.binary(max_size=10))
def test_what_was_written_is_read(
    sni: str | None, protocols: list[bytes], more: dict[int, bytes], sizes: list[int], tail: bytes
) -> None:
    """Any hello, in any records, with anything behind it, says what was put into it."""
    extensions = [extension(kind, body) for kind, body in more.items()]
    if sni is not None:
        extensions.append(server_name(sni.encode()))
    if protocols:
        extensions.append(alpn(*protocols))
    data = records(message(extensions), sizes)
    assert parse_client_hello(data + tail) == ClientHello(sni, tuple(protocols), ech=False)
    for size in range(len(data)):
        assert parse_client_hello(data[:size]) is NEED_MORE


@given(hosts, sizes, st.integers(0, 300), st.integers(0, 255))
def test_mutation_is_refused_or_understood(sni: str, sizes: list[int], where: int, value: int) -> None:
    """A changed byte gives an answer or the documented error, and cutting the stream changes neither."""
    data = bytearray(records(message((server_name(sni.encode()), alpn(b"h2"))), sizes))
    data[where % len(data)] = value
    whole = outcome(bytes(data))
    for size in range(len(data)):
        part = outcome(bytes(data[:size]))
        assert part is NEED_MORE or part == whole


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    """Anything is classified or refused as documented, and a longer prefix never changes a verdict."""
    verdict: object = NEED_MORE
    for size in range(len(data) + 1):
        try:
            now: object = classify(data[:size])
        except ClientProtocolError:
            now = ClientProtocolError
        assert verdict is NEED_MORE or now == verdict
        verdict = now
