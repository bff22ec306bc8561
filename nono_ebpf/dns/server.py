"""The only DNS server a sandbox can reach, RFC 1035 over UDP and TCP (RFC 7766).

    question → a name? → localhost or reverse table, else
               policy → the host's resolver → policy → name table → answer

Nothing is resolved before the policy has let the name through, and no question travels further than its name
and address type, so DNS carries nothing out. Every other record type is answered empty: TXT would be a
channel back, and HTTPS/SVCB would carry `ech` (RFC 9848), which hides from us whom a client then speaks to.

Knows asyncio and the order of these steps. Must not know how names are resolved (`NameResolver`), who owns a
source port (`Asker`) or where records go (`AuditSink`). Sockets are handed in, bound or accepted inside the
sandbox's network namespace; each is owned, and closed, by the method that gets it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import dns.rcode
import dns.rdatatype

from nono_ebpf.audit.record import SEARCH_LIST, open_record
from nono_ebpf.audit.window import Window, Worth
from nono_ebpf.dns.datagrams import Datagrams
from nono_ebpf.dns.limits import Limits
from nono_ebpf.dns.message import Question, Reply, parse_query, to_wire
from nono_ebpf.dns.names import address_of_reverse_name
from nono_ebpf.dns.ration import Ration
from nono_ebpf.dns.resolver import is_localhost
from nono_ebpf.errors import UpstreamError
from nono_ebpf.model import Identity, Process
from nono_ebpf.policy.decide import Ask, Denial, Permit, Resolve, decide

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from nono_ebpf.audit.record import Record
    from nono_ebpf.dns.names import NameTable
    from nono_ebpf.dns.resolver import Answer
    from nono_ebpf.model import IPAddress
    from nono_ebpf.policy.rules import Policy

_MAX_MESSAGE_BYTES = 65535  # RFC 1035 §4.2.2: a 16-bit length
_LOCALHOST: dict[dns.rdatatype.RdataType, tuple[IPAddress, ...]] = {
    dns.rdatatype.A: (ipaddress.IPv4Address("127.0.0.1"),),
    dns.rdatatype.AAAA: (ipaddress.IPv6Address("::1"),),
}
_VERSION_OF = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 6}
_RATIONED = "too many new names under wildcard rules were asked for; a name that a rule spells out is not rationed"
_NO_ADDRESS_LEFT = "no address left to give for a name"
_REVERSE_ZONES = (".in-addr.arpa", ".ip6.arpa")

Asker = Callable[[tuple[str, int]], Process | None]


class NameResolver(Protocol):
    """What the host makes of a name; `nono_ebpf.dns.resolver.HostResolver` is one."""

    async def resolve(self, host: str, rdtype: dns.rdatatype.RdataType) -> Answer:
        """The answer for A or AAAA. Raises UpstreamError when there is none."""

    def search_list(self) -> Sequence[str]:
        """The domains that resolvers on this host append to names."""


class AuditSink(Protocol):
    """Takes finished records."""

    def write(self, record: Record) -> None:
        """Keep `record`."""


class DnsServer:
    """Answers one sandbox. `asker` tells who owns a source address and port, as far as the kernel knows."""

    def __init__(
        self,
        policy: Policy,
        resolver: NameResolver,
        names: NameTable,
        asker: Asker,
        audit: AuditSink,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._resolver = resolver
        self._names = names
        self._asker = asker
        self._clock = clock
        self._limits = limits or Limits()
        self._log = _LookupLog(audit, self._limits, clock)
        self._ration = Ration(policy, self._limits, clock)
        self._sessions: dict[_TcpSession, None] = {}  # whoever asked last stands last

    def admit(self, host: str, process: Process | None) -> bool:
        """Whether `process` may have the permitted `host` looked up now; a refusal is recorded."""
        admitted = self._ration.admit(host, process)
        if not admitted:
            self._log.rationed(host, process)
        return admitted

    async def serve_udp(self, sock: socket.socket) -> None:
        """Answer the datagrams of the bound `sock` until cancelled, then close it."""

        async def answer(wire: bytes, process: Process | None) -> bytes | None:
            return await self.answer(wire, process, udp=True)

        await Datagrams(sock, self._asker, answer, self._limits, self._clock).serve()

    async def handle_tcp(self, connection: socket.socket, process: Process | None) -> None:
        """Answer the queries of an accepted `connection` until either side is done, then close it.

        Answers are sent as they become known, in any order (RFC 7766 §6.2.1.1).
        """
        if len(self._sessions) >= self._limits.tcp_connections:
            self._end_the_idlest()
        connection.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=connection, limit=self._limits.query_bytes)
        session = _TcpSession(self, reader, writer, process, self._limits)
        self._sessions[session] = None
        try:
            await session.run()
        finally:
            self._sessions.pop(session, None)

    def _end_the_idlest(self) -> None:
        self._end(next((each for each in self._sessions if not each.unanswered), next(iter(self._sessions))))

    def _end(self, session: _TcpSession) -> None:
        del self._sessions[session]
        session.end()

    def asks(self, session: _TcpSession) -> None:
        """A question has come over `session`. Where too many wait, the process that has most of them loses some."""
        if session in self._sessions:
            del self._sessions[session]
            self._sessions[session] = None
        waiting: Counter[int | None] = Counter()
        for each in self._sessions:
            waiting[each.pid] += each.unanswered
        if waiting.total() >= self._limits.tcp_outstanding:
            largest, _ = waiting.most_common(1)[0]
            self._end(max((each for each in self._sessions if each.pid == largest), key=lambda each: each.unanswered))

    async def answer(self, wire: bytes, process: Process | None, *, udp: bool) -> bytes | None:
        """The answer to one message; None when it deserves none. Never raises for anything in `wire`."""
        if len(wire) > self._limits.query_bytes:
            return None
        question = parse_query(wire)
        if not isinstance(question, Question):
            return question
        max_bytes = question.udp_bytes(self._limits.udp_answer_bytes) if udp else _MAX_MESSAGE_BYTES
        return to_wire(question, await self._reply_in_time(question, process), max_bytes)

    async def _reply_in_time(self, question: Question, process: Process | None) -> Reply:
        try:
            async with asyncio.timeout(self._limits.query_s):
                return await self._reply(question, process)
        except TimeoutError:
            return _failed("no answer in time")
        except OSError as error:
            # Nothing of ours is left to answer with, descriptors say; the server must outlive that.
            return _failed(error.strerror or type(error).__name__)

    async def _reply(self, question: Question, process: Process | None) -> Reply:
        host = question.host()
        if host is None:
            return self._not_a_host(question, process)
        if is_localhost(host):
            return Reply(addresses=_LOCALHOST.get(question.rdtype, ()))
        if question.rdtype == dns.rdatatype.PTR and host.endswith(_REVERSE_ZONES):
            return self._pointer(host)
        verdict = decide(self._policy, Ask(host, None, Identity.DNS))
        if isinstance(verdict, Denial):
            return self._blocked(host, verdict, process)
        if question.rdtype not in _VERSION_OF:
            return Reply()
        if isinstance(verdict, Permit) and verdict.via is not None:
            return self._stand_in(verdict, question.rdtype, process)
        return await self._addresses(host, question.rdtype, process)

    def _stand_in(self, permit: Permit, rdtype: dns.rdatatype.RdataType, process: Process | None) -> Reply:
        """The upstream proxy will look the name up; here an address stands for it that nobody else has."""
        invented = not self._ration.spelled_out(permit.host)
        given = self._names.give_synthetic(permit.host, _VERSION_OF[rdtype], invented=invented)
        if given is None:
            self._log.allowed(permit.host, rdtype, process, reason=_NO_ADDRESS_LEFT)
            return _failed(_NO_ADDRESS_LEFT)
        self._log.allowed(permit.host, rdtype, process, reason=f"left to the upstream proxy {permit.via} to look up")
        return Reply(addresses=given)

    async def _addresses(self, host: str, rdtype: dns.rdatatype.RdataType, process: Process | None) -> Reply:
        if not self.admit(host, process):
            return _failed(_RATIONED)
        try:
            answer = await self._resolver.resolve(host, rdtype)
        except UpstreamError as error:
            self._log.allowed(host, rdtype, process, reason=error.problem)
            return _failed(error.problem)
        if not answer.addresses:
            self._log.allowed(host, rdtype, process, reason=_emptiness(answer))
            return Reply(answer.rcode, cnames=answer.cnames, ttl_s=answer.ttl_s)
        match decide(self._policy, Ask(host, None, Identity.DNS, addresses=answer.addresses)):
            case Permit() as permit:
                return self._given(permit, answer, rdtype, process)
            case Denial() as denial:
                return self._blocked(host, denial, process)
            case Resolve():
                # It has the addresses. Should it ask again, nothing was permitted.
                return _failed("undecided")

    def _given(self, permit: Permit, answer: Answer, rdtype: dns.rdatatype.RdataType, process: Process | None) -> Reply:
        # An IPv4-mapped AAAA was judged as the IPv4 address it is, and is not an answer of this family.
        judged = [each.address for each in permit.endpoints if each.address.version == _VERSION_OF[rdtype]]
        given = self._names.give(permit.host, judged, invented=not self._ration.spelled_out(permit.host))
        if given is None:
            self._log.allowed(permit.host, rdtype, process, reason=_NO_ADDRESS_LEFT)
            return _failed(_NO_ADDRESS_LEFT)
        self._log.permitted(permit, rdtype, process)
        return Reply(addresses=given, cnames=answer.cnames, ttl_s=answer.ttl_s)

    def _pointer(self, host: str) -> Reply:
        address = address_of_reverse_name(host)
        name = self._names.name_of(address) if address is not None else None
        return Reply(dns.rcode.NXDOMAIN) if name is None else Reply(pointer=name)

    def _not_a_host(self, question: Question, process: Process | None) -> Reply:
        reason = "not a host name"
        self._log.invalid(question.name.to_text(omit_final_dot=True), reason, process)
        return Reply(dns.rcode.NXDOMAIN, blocked=reason)

    def _blocked(self, host: str, denial: Denial, process: Process | None) -> Reply:
        if self._only_searched(host):
            self._log.searched(host, denial, process)
        else:
            self._log.denied(host, denial, process)
        return Reply(dns.rcode.NXDOMAIN, blocked=denial.reason)

    def _only_searched(self, host: str) -> bool:
        """Whether `host` is a permitted name with a domain of the search list behind it.

        A resolver asks for these on its own; nobody meant them.
        """
        for domain in self._resolver.search_list():
            name = host.removesuffix(f".{domain}")
            if name != host and not isinstance(decide(self._policy, Ask(name, None, Identity.DNS)), Denial):
                return True
        return False


class _TcpSession:
    """One TCP connection with its queries."""

    def __init__(
        self,
        server: DnsServer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        process: Process | None,
        limits: Limits,
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._process = process
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.tcp_pipelined)
        self._sending = asyncio.Lock()
        self.unanswered = 0
        self._task: asyncio.Task[None] | None = None
        # drain() then means "the kernel has it all", so aborting afterwards loses nothing.
        writer.transport.set_write_buffer_limits(0)

    @property
    def pid(self) -> int | None:
        """Whose it is, where that is known."""
        return self._process.pid if self._process else None

    def end(self) -> None:
        """Close, now, and forget what was asked."""
        self._writer.transport.abort()
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """Until either side is done, or `end` was called."""
        self._task = asyncio.create_task(self._serve())
        await asyncio.gather(self._task, return_exceptions=True)
        if not self._task.cancelled():
            self._task.result()

    async def _serve(self) -> None:
        try:
            async with asyncio.TaskGroup() as queries:
                while (wire := await self._next()) is not None:
                    self._server.asks(self)
                    await self._slots.acquire()
                    self.unanswered += 1
                    queries.create_task(self._answer(wire))
        finally:
            self._writer.transport.abort()

    async def _next(self) -> bytes | None:
        """The next message; None at the end, when the client is idle for too long, or sends too much."""
        try:
            async with asyncio.timeout(self._limits.tcp_idle_s):
                size = int.from_bytes(await self._reader.readexactly(2), "big")
                return await self._reader.readexactly(size) if size <= self._limits.query_bytes else None
        except (asyncio.IncompleteReadError, OSError):
            # OSError includes TimeoutError.
            return None

    async def _answer(self, wire: bytes) -> None:
        try:
            answer = await self._server.answer(wire, self._process, udp=False)
            if answer is not None:
                await self._send(len(answer).to_bytes(2, "big") + answer)
        finally:
            self.unanswered -= 1
            self._slots.release()

    async def _send(self, data: bytes) -> None:
        try:
            async with self._sending, asyncio.timeout(self._limits.tcp_write_s):
                if self._writer.is_closing():
                    # Another answer's deadline has passed; writing now is an error on uvloop.
                    return
                self._writer.write(data)
                await self._writer.drain()
        except OSError:
            # The client has gone or does not read. Aborting ends `_next` as well.
            self._writer.transport.abort()


class _LookupLog:
    """Turns lookups into records: each kind once per window and process, and a bounded number in all."""

    def __init__(self, audit: AuditSink, limits: Limits, clock: Callable[[], float]) -> None:
        self._audit = audit
        self._window = Window(limits.records_per_window, limits.record_window_s, clock)

    def allowed(self, host: str, rdtype: dns.rdatatype.RdataType, process: Process | None, *, reason: str) -> None:
        """A permitted name that got no address."""
        record = _record(host, process)
        record.decision, record.reason = "allow", reason
        self._write(record, rdtype)

    def permitted(self, permit: Permit, rdtype: dns.rdatatype.RdataType, process: Process | None) -> None:
        """A permitted name with its real addresses."""
        record = _record(permit.host, process)
        record.decision = "allow"
        record.rule, record.rule_source = permit.rule.text, permit.rule.source
        record.resolved_address = " ".join(str(each.address) for each in permit.endpoints)
        self._write(record, rdtype)

    def denied(self, host: str, denial: Denial, process: Process | None) -> None:
        """A name that the policy refuses, before or after it was resolved."""
        self._write(_denial_record(host, denial, process), denial.reason)

    def searched(self, host: str, denial: Denial, process: Process | None) -> None:
        """A name that only a search list made."""
        record = _denial_record(host, denial, process)
        record.denial_category, record.remedy = SEARCH_LIST, None
        self._write(record, SEARCH_LIST)

    def invalid(self, name: str, reason: str, process: Process | None) -> None:
        """A name no rule could be about."""
        record = _record(name, process)
        record.reason = reason
        self._write(record, reason)

    def rationed(self, host: str, process: Process | None) -> None:
        """A name too many; one of them stands for all that a process asks for."""
        record = _record(host, process)
        record.denial_category, record.reason = "rate", _RATIONED
        self._write_once_for(("rationed", record.pid), record)

    def _write(self, record: Record, kind: object) -> None:
        self._write_once_for((record.target, record.pid, kind), record)

    def _write_once_for(self, key: tuple[object, ...], record: Record) -> None:
        worth = self._window.judge(key)
        if worth is Worth.OVERFLOW:
            overflow = _record(None, None)
            overflow.reason = "more lookups than are recorded; the rest of this minute's are left out"
            self._audit.write(overflow)
        elif worth is Worth.RECORD:
            self._audit.write(record)


def _record(target: str | None, process: Process | None) -> Record:
    record = open_record("dns", "dns", process)
    record.target, record.identity = target, Identity.DNS.value
    return record


def _denial_record(host: str, denial: Denial, process: Process | None) -> Record:
    record = _record(host, process)
    record.denial_category = denial.category.value
    record.reason, record.remedy = denial.reason, denial.remedy
    if denial.rule is not None:
        record.rule, record.rule_source = denial.rule.text, denial.rule.source
    return record


def _failed(reason: str) -> Reply:
    return Reply(dns.rcode.SERVFAIL, failed=reason)


def _emptiness(answer: Answer) -> str:
    return "no such name" if answer.rcode == dns.rcode.NXDOMAIN else "no address of this family"
