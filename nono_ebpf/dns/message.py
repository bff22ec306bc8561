"""DNS messages from and to the sandbox, RFC 1035 §4, EDNS (RFC 6891) and Extended DNS Errors (RFC 8914).

Knows the wire format, through dnspython. Must not know policy, sockets or time. Whatever the bytes are,
`parse_query` answers; it never raises.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from nono_ebpf.authority import canonical_host, host_address
from nono_ebpf.errors import InvalidAuthority

if TYPE_CHECKING:
    from nono_ebpf.model import IPAddress

# RFC 1035 §4.1.1: id, flags, and the number of entries in each of the four sections.
_HEADER = struct.Struct("!6H")
_QR, _RD, _RA = dns.flags.QR, dns.flags.RD, dns.flags.RA
_IN = dns.rdataclass.IN
# RFC 1035 §4.2.1: what a client without EDNS takes over UDP.
_PLAIN_UDP_BYTES = 512
# RFC 8914 §2 sets no bound; the text must leave room for the answer in the smallest datagram.
_TEXT_BYTES = 160


@dataclass(frozen=True, slots=True)
class Question:
    """One question of class IN, in a message we can answer. `name` has the client's own spelling."""

    message: dns.message.Message
    name: dns.name.Name
    rdtype: dns.rdatatype.RdataType

    def host(self) -> str | None:
        """The canonical host that is asked about; None when the name is none, or is an address."""
        text = self.name.to_text(omit_final_dot=True)
        try:
            host = canonical_host(text)
        except InvalidAuthority:
            return None
        # An escaped or folded name would be judged under one spelling and resolved under another.
        return host if host == text.lower() and host_address(host) is None else None

    def udp_bytes(self, limit: int) -> int:
        """The largest answer this client takes in a datagram, at most `limit`."""
        offered = self.message.payload if self.message.edns >= 0 else 0
        return max(_PLAIN_UDP_BYTES, min(offered, limit))


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it is a message.

    `cnames` is the alias chain that leads to `addresses`, which are of the family that was asked for.
    `blocked` and `failed` explain an error to a client that speaks EDNS.
    """

    rcode: dns.rcode.Rcode = dns.rcode.NOERROR
    addresses: tuple[IPAddress, ...] = ()
    cnames: tuple[str, ...] = ()
    pointer: str | None = None
    ttl_s: int = 0
    blocked: str | None = None
    failed: str | None = None


def parse_query(wire: bytes) -> Question | bytes | None:
    """The question in `wire`; or the error to send back; or None for what deserves no answer.

    No answer: less than a header, and responses, or two servers could answer each other for ever.
    """
    if len(wire) < _HEADER.size:
        return None
    _, flags, questions, answers, authorities, _ = _HEADER.unpack_from(wire)
    if flags & _QR:
        return None
    if dns.opcode.from_flags(flags) != dns.opcode.QUERY:
        return _bare(wire, dns.rcode.NOTIMP)
    # RFC 9619: a query has exactly one question. Nothing we serve has anything in the two next sections.
    if (questions, answers, authorities) != (1, 0, 0):
        return _bare(wire, dns.rcode.FORMERR)
    try:
        message = dns.message.from_wire(wire)
    except dns.exception.DNSException:
        return _bare(wire, dns.rcode.FORMERR)
    return _question(message)


def _question(message: dns.message.Message) -> Question | bytes:
    asked = message.question[0]
    question = Question(message, asked.name, asked.rdtype)
    if message.edns > 0:
        # RFC 6891 §6.1.3
        return to_wire(question, Reply(dns.rcode.BADVERS))
    if asked.rdclass != _IN:
        return to_wire(question, Reply(dns.rcode.REFUSED))
    return question


def _bare(wire: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """An answer that repeats nothing but the id, the opcode and RD: the rest may not be parseable."""
    ident, flags = struct.unpack_from("!2H", wire)
    kept = flags & (_RD | 0x7800)
    return _HEADER.pack(ident, kept | _QR | _RA | rcode, 0, 0, 0, 0)


def to_wire(question: Question, reply: Reply, max_bytes: int = _PLAIN_UDP_BYTES) -> bytes:
    """The answer, in at most `max_bytes`: what does not fit is left out and TC set (RFC 2181 §9)."""
    message = dns.message.make_response(question.message, recursion_available=True, our_payload=4096, pad=0)
    message.set_rcode(reply.rcode)
    message.answer.extend(_answer(question, reply))
    if question.message.edns >= 0:
        _explain(message, reply)
    return message.to_wire(max_size=max_bytes, prefer_truncation=True, want_shuffle=False)


def _answer(question: Question, reply: Reply) -> list[dns.rrset.RRset]:
    rrsets = []
    owner = question.name
    for alias in reply.cnames:
        rrsets.append(_rrset(owner, reply, dns.rdatatype.CNAME, f"{alias}."))
        owner = dns.name.from_text(alias)
    if reply.addresses:
        rrsets.append(_rrset(owner, reply, question.rdtype, *map(str, reply.addresses)))
    if reply.pointer is not None:
        rrsets.append(_rrset(owner, reply, dns.rdatatype.PTR, f"{reply.pointer}."))
    return rrsets


def _rrset(owner: dns.name.Name, reply: Reply, rdtype: dns.rdatatype.RdataType, *texts: str) -> dns.rrset.RRset:
    return dns.rrset.from_text_list(owner, reply.ttl_s, _IN, rdtype, texts)


def _explain(message: dns.message.Message, reply: Reply) -> None:
    if reply.blocked is not None:
        option = dns.edns.EDEOption(dns.edns.EDECode.BLOCKED, _short(reply.blocked))
    elif reply.failed is not None:
        option = dns.edns.EDEOption(dns.edns.EDECode.OTHER, _short(reply.failed))
    else:
        return
    message.use_edns(0, 0, 4096, message.request_payload, options=[option])


def _short(text: str) -> str:
    return text.encode("ascii", "backslashreplace")[:_TEXT_BYTES].decode()
