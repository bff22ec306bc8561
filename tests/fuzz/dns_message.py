"""Whatever bytes ask, at most one answer comes: to that question, within its size, and to no response.

No exception comes out. Only permitted names reach the host's resolver, spelled as the decision saw them. An
answer is decoded by dnspython to the question that dnspython sees in the query, and has no answer itself.
"""

from __future__ import annotations

import asyncio
import atexit
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype

from nono_ebpf.authority import canonical_host
from nono_ebpf.dns.limits import Limits
from nono_ebpf.dns.message import Question, parse_query
from nono_ebpf.dns.names import NameTable
from nono_ebpf.dns.resolver import Answer
from nono_ebpf.dns.server import DnsServer
from nono_ebpf.errors import UpstreamError
from nono_ebpf.model import ResolvedAddress
from nono_ebpf.policy.rules import HostRules, Policy, parse_allow_rule, parse_deny_rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nono_ebpf.audit.record import Record

_LIMITS = Limits()
_HEADER_BYTES = 12
_PLAIN_UDP_BYTES, _TCP_BYTES = 512, 65535
_POLICY = Policy(
    HostRules(parse_allow_rule(text, "allow") for text in ("*.ab", "ab:22")),
    HostRules(parse_deny_rule(text, "deny") for text in ("no.ab", "203.0.113.9")),
)
_LOOP = asyncio.new_event_loop()
atexit.register(_LOOP.close)


def check(data: bytes) -> None:
    """Judge `data` as a message, and as the name of a sound question for an address."""
    _check_message(data)
    _check_message(b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + data + b"\0\0\1\0\1")


def seeds() -> Iterator[bytes]:
    """Questions for permitted, denied and odd names, with and without EDNS, and what is no question."""
    for name in ("x.ab", "many.ab", "no.ab", "fails.ab", "alias.X.Ab", "rebind.ab", "localhost", "x.ab.corp.example"):
        for rdtype in ("A", "AAAA"):
            yield dns.message.make_query(name, rdtype, use_edns=rdtype == "A", payload=1232).to_wire()
    for name in ("2.0.18.198.in-addr.arpa", "1.0.0.127.in-addr.arpa", "x.ip6.arpa"):
        yield dns.message.make_query(name, "PTR").to_wire()
    for rdtype in ("HTTPS", "TXT", "ANY", "AXFR", "CNAME"):
        yield dns.message.make_query("x.ab", rdtype).to_wire()
    options = [dns.edns.ECSOption("192.0.2.0"), dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")]
    yield dns.message.make_query("x.ab", "A", use_edns=0, options=options, want_dnssec=True).to_wire()
    yield dns.message.make_query("x.ab", "A", use_edns=1).to_wire()
    yield dns.message.make_query("x.ab", "A", rdclass="CH").to_wire()
    yield dns.message.make_response(dns.message.make_query("x.ab", "A")).to_wire()
    yield b"\0\1\x28\0\0\1\0\0\0\0\0\0\1x\2ab\0\0\6\0\1"
    yield b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\4\0\1\0\1"
    yield from (b"\1x\2ab", b"\3\\.x\2ab", b"\1x\2Ab\0\0\1\0\1\0", b"\x0bxn--mnchen-\2ab", b"\1\xff\2ab")


class _Upstream:
    """Answers by the first label of a name, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def resolve(self, host: str, rdtype: dns.rdatatype.RdataType) -> Answer:
        self.asked.append(host)
        match host.partition(".")[0]:
            case "fails":
                raise UpstreamError("resolve", host, "no answer\n\u2028")
            case "none":
                return Answer(dns.rcode.NXDOMAIN, (), 30)
            case "rebind":
                return _answer(rdtype, [169 << 24 | 254 << 16 | 43518])
            case "alias":
                return _answer(rdtype, [0xCB007101], cnames=("a" * 63 + ".ab", "b.example"))
            case "many":
                return _answer(rdtype, range(0xC6336400, 0xC6336450))
        return _answer(rdtype, [0xCB007100 + len(host) % 16])

    def search_list(self) -> tuple[str, ...]:
        return ("corp.example",)


def _answer(rdtype: dns.rdatatype.RdataType, numbers: list[int] | range, cnames: tuple[str, ...] = ()) -> Answer:
    v4 = rdtype == dns.rdatatype.A
    addresses = [IPv4Address(each) if v4 else IPv6Address((0x20010DB8 << 96) + each) for each in numbers]
    return Answer(dns.rcode.NOERROR, tuple(map(ResolvedAddress, addresses)), 60, cnames)


class _Sink:
    """Keeps what is recorded."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        self.records.append(record)


def _check_message(wire: bytes) -> None:
    for udp in (True, False):
        upstream, sink = _Upstream(), _Sink()
        server = DnsServer(_POLICY, upstream, NameTable(), lambda _: None, sink)
        answered = _LOOP.run_until_complete(server.answer(wire, None, udp=udp))
        for host in upstream.asked:
            assert canonical_host(host) == host
            assert host == "ab" or (host.endswith(".ab") and host != "no.ab")
        assert len(upstream.asked) <= 1
        if answered is None:
            _check_silence(wire)
        else:
            _check_answer(wire, answered, udp=udp, asked=upstream.asked)
            again = _LOOP.run_until_complete(server.answer(answered, None, udp=udp))
            assert again is None, "an answer is answered"


def _check_silence(wire: bytes) -> None:
    """Only what is no query, or larger than any, goes without an answer."""
    small = len(wire) < _HEADER_BYTES
    assert small or len(wire) > _LIMITS.query_bytes or wire[2] & 0x80, "a query without an answer"


def _check_answer(wire: bytes, answered: bytes, *, udp: bool, asked: list[str]) -> None:
    assert not wire[2] & 0x80, "an answer to a response"
    assert len(answered) <= (_most_udp_bytes(wire) if udp else _TCP_BYTES)
    response = dns.message.from_wire(answered)
    assert response.id == int.from_bytes(wire[:2], "big")
    assert response.flags & dns.flags.QR
    assert response.flags & dns.flags.RD == int.from_bytes(wire[2:4], "big") & dns.flags.RD
    assert response.opcode() == (wire[2] >> 3) & 0xF
    query = _decoded(wire)
    if query is None:
        assert response.rcode() in {dns.rcode.FORMERR, dns.rcode.NOTIMP}
        assert len(answered) == _HEADER_BYTES, "an error repeats what could not be read"
        assert not asked
        return
    assert [str(each) for each in response.question] == [str(each) for each in query.question], "another question"
    assert (response.edns >= 0) == (query.edns >= 0)
    _check_records(query, response)
    if asked:
        assert isinstance(parse_query(wire), Question)
        assert query.question[0].name.to_text(omit_final_dot=True).lower() == asked[0]


def _most_udp_bytes(wire: bytes) -> int:
    query = _decoded(wire)
    offered = query.payload if query is not None and query.edns >= 0 else 0
    return max(_PLAIN_UDP_BYTES, min(offered, _LIMITS.udp_answer_bytes))


def _decoded(wire: bytes) -> dns.message.Message | None:
    """The query as dnspython reads it, if it is one question and nothing that answers."""
    try:
        query = dns.message.from_wire(wire)
    except dns.exception.DNSException:
        return None
    plain = query.opcode() == dns.opcode.QUERY and not query.answer and not query.authority
    # Counted in the header: dnspython joins equal questions.
    return query if plain and wire[4:10] == b"\0\1\0\0\0\0" else None


def _check_records(query: dns.message.Message, response: dns.message.Message) -> None:
    """The answers are a chain of aliases from the name asked for, then records of the type asked for."""
    owner, rdtype = query.question[0].name, query.question[0].rdtype
    for rrset in response.answer:
        assert rrset.name == owner
        if rrset.rdtype == dns.rdatatype.CNAME:
            owner = rrset[0].target
        else:
            assert rrset.rdtype == rdtype
            assert rdtype in {dns.rdatatype.A, dns.rdatatype.AAAA, dns.rdatatype.PTR}
    assert not response.authority
