"""Whatever bytes the sandbox sends: at most one answer, to the question asked, and never an exception."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
from hypothesis import example, given
from hypothesis import strategies as st

from nono_ebpf.dns.message import Question, parse_query
from nono_ebpf.dns.names import NameTable
from nono_ebpf.dns.resolver import Answer
from nono_ebpf.dns.server import DnsServer
from nono_ebpf.policy.rules import HostRules, Policy, parse_allow_rule

if TYPE_CHECKING:
    from nono_ebpf.audit.record import Record

LABEL = st.text("abAB01-_.*@ \\\x00\xff", min_size=1, max_size=12)
NAMES = st.lists(LABEL, max_size=5).map(lambda labels: [label.encode("latin-1") for label in labels])
RDTYPES = st.sampled_from([1, 2, 5, 6, 12, 15, 16, 28, 33, 41, 64, 65, 249, 250, 251, 252, 255, 65280])


class Upstream:
    """Knows one address for every name, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def resolve(self, host: str, rdtype: dns.rdatatype.RdataType) -> Answer:
        self.asked.append(host)
        return Answer(dns.rcode.NOERROR, (), 60)

    def search_list(self) -> tuple[str, ...]:
        return ("corp.example",)


class Sink:
    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        self.records.append(record)


def server(upstream: Upstream, sink: Sink) -> DnsServer:
    policy = Policy(HostRules([parse_allow_rule("*.ab.ab", "test")]), HostRules())
    return DnsServer(policy, upstream, NameTable(), lambda _: None, sink)


def answer(wire: bytes, *, udp: bool = True) -> tuple[bytes | None, Upstream, Sink]:
    upstream, sink = Upstream(), Sink()
    return asyncio.run(server(upstream, sink).answer(wire, None, udp=udp)), upstream, sink


def check(wire: bytes, answered: bytes | None) -> None:
    if answered is None:
        return
    response = dns.message.from_wire(answered)
    assert response.id == int.from_bytes(wire[:2], "big")
    assert response.flags & dns.flags.QR
    assert len(answered) <= 1232


@given(st.binary(max_size=600))
@example(b"\0\0\1\0\0\1\0\0\0\0\0\1\0\0\1\0\1\0\0\x29\x04\xd0\0\0\0\0\0\4\0\x0f\0\0")
@example(b"\0\0\1\0\0\1\0\0\0\0\0\1\0\0\1\0\1\0\0\x29\x04\xd0\0\0\0\0\0\7\0\x0f\0\3\0\0\xff")
@example(b"\0\0\1\0\0\1\0\0\0\0\0\1\0\0\1\0\1\0\0\xfa\0\xff\0\0\0\0\0\0")
def test_any_bytes(wire: bytes) -> None:
    """Noise is dropped or answered with its own id, and never forwarded unless it is a permitted question."""
    answered, upstream, _ = answer(wire)
    check(wire, answered)
    assert all(host.endswith(".ab.ab") for host in upstream.asked)


@given(st.binary(max_size=200), st.integers(0, 0xFFFF), st.integers(0, 3))
def test_any_question_behind_a_sound_header(tail: bytes, flags: int, additional: int) -> None:
    """The same for bytes that claim to be one question."""
    wire = b"\x12\x34" + flags.to_bytes(2, "big") + bytes([0, 1, 0, 0, 0, 0, 0, additional]) + tail
    answered, upstream, _ = answer(wire)
    check(wire, answered)
    assert all(host.endswith(".ab.ab") for host in upstream.asked)


@given(NAMES, RDTYPES, st.booleans(), st.integers(0, 65535), st.booleans())
@example([b"Ab", b"aB", b"AB"], 1, True, 1232, True)
@example([b"x.ab", b"ab"], 1, True, 1232, True)
@example([b"x", b"ab.ab"], 1, True, 1232, True)
def test_any_name(labels: list[bytes], rdtype: int, edns: bool, payload: int, udp: bool) -> None:
    """The question comes back letter for letter; only names below ab.ab reach the upstream, canonical."""
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    question += rdtype.to_bytes(2, "big") + b"\0\1"
    opt = b"\0\0\x29" + payload.to_bytes(2, "big") + bytes(6) if edns else b""
    wire = b"\x12\x34\1\0\0\1\0\0\0\0\0" + bytes([edns]) + question + opt
    answered, upstream, sink = answer(wire, udp=udp)
    assert answered is not None
    check(wire, answered)
    assert answered[12 : 12 + len(question)] == question
    assert (dns.message.from_wire(answered).edns >= 0) == edns
    plain = b".".join(labels).lower()
    permitted = plain.endswith(b".ab.ab") and isinstance(parse_query(wire), Question)
    for host in upstream.asked:
        assert permitted
        assert host.encode() == plain
        assert [label.lower() for label in labels] == plain.split(b".")
    assert all(record.target is not None for record in sink.records)


@given(NAMES, st.integers(0, 40))
def test_cutting_a_query_never_makes_another_question(labels: list[bytes], cut: int) -> None:
    """A prefix of a question is an error or nothing, never a shorter name."""
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0\0\1\0\1"
    wire = b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + question
    assert not isinstance(parse_query(wire[: max(0, len(wire) - 1 - cut)]), Question)
    assert not isinstance(parse_query(wire + b"\0"), Question)


def test_the_fake_upstream_is_asked_for_permitted_names() -> None:
    """The properties above are about something: a permitted name does arrive, a denied one does not."""
    for name, asked in (("x.ab.ab", ["x.ab.ab"]), ("ab.ab", []), ("x.example", [])):
        _, upstream, _ = answer(dns.message.make_query(name, "A").to_wire())
        assert upstream.asked == asked
