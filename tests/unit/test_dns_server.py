"""The sandbox's DNS server, in front of a real nameserver and the real policy."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest
import uvloop
from kit.expect import missing
from nameserver import UNHURRIED_RESOLV_CONF, UNHURRIED_S, Nameserver, Zone, unhurried

from nono_ebpf.audit.record import SEARCH_LIST, Record
from nono_ebpf.audit.window import Window, Worth
from nono_ebpf.dns.names import V4_POOL, V6_POOL, NameTable
from nono_ebpf.dns.resolver import HostResolver
from nono_ebpf.dns.server import DnsServer
from nono_ebpf.errors import SandboxError
from nono_ebpf.model import Process
from nono_ebpf.policy.rules import HostRules, Policy, parse_allow_rule, parse_deny_rule
from nono_ebpf.policy.upstream_proxy import UpstreamProxy, parse_bypass

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from nono_ebpf.dns.limits import Limits
    from nono_ebpf.model import IPAddress

    Run = Callable[[Coroutine[Any, Any, None]], None]

CURL = Process(4242, "curl", 1000, 7)
NOWHERE = Path("/nonexistent")
ZONE: Zone = {
    ("a.test", "A"): ["203.0.113.1", "203.0.113.2"],
    ("a.test", "AAAA"): ["2001:db8::1"],
    ("same.test", "A"): ["203.0.113.1"],
    ("four.test", "A"): ["203.0.113.4"],
    ("alias.test", "CNAME"): ["edge.cdn.test."],
    ("edge.cdn.test", "CNAME"): ["four.test."],
    ("big.test", "A"): [f"203.0.113.{last}" for last in range(1, 121)],
    ("metadata.test", "A"): ["169.254.169.254"],
    ("mixed.test", "A"): ["203.0.113.9", "169.254.169.254"],
    ("loopback.test", "A"): ["127.0.0.1"],
    ("loopback.test", "AAAA"): ["::1"],
    ("mapped.test", "AAAA"): ["::ffff:203.0.113.8"],
    ("mapped-metadata.test", "AAAA"): ["::ffff:169.254.169.254"],
    ("secret.test", "TXT"): ['"command"'],
    ("secret.test", "A"): ["203.0.113.66"],
}


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Box:
    """A server with everything around it: what it asked upstream and what it recorded can be looked at."""

    server: DnsServer
    names: NameTable
    resolver: HostResolver
    upstream: Nameserver
    clock: Clock
    records: list[Record] = field(default_factory=list)

    def write(self, record: Record) -> None:
        self.records.append(record)

    async def ask(self, name: str, rdtype: str = "A", *, edns: int | None = 1232) -> dns.message.Message:
        """The answer to one question as it would arrive in a datagram."""
        query = dns.message.make_query(name, rdtype, use_edns=edns is not None, payload=edns or 0)
        return await self.ask_raw(query)

    async def ask_raw(self, query: dns.message.Message, *, udp: bool = True) -> dns.message.Message:
        wire = await self.server.answer(query.to_wire(), CURL, udp=udp)
        assert wire is not None
        response = dns.message.from_wire(wire)
        assert response.id == query.id
        return response


@asynccontextmanager
async def box(
    *allow: str,
    deny: tuple[str, ...] = (),
    zone: Zone = ZONE,
    pinned: dict[str, tuple[IPAddress, ...]] | None = None,
    names: NameTable | None = None,
    limits: Limits | None = None,
    resolv_conf: str = UNHURRIED_RESOLV_CONF,
    upstream_proxy: UpstreamProxy | None = None,
) -> AsyncIterator[Box]:
    """A sandbox's DNS side with these rules, in front of a nameserver with `zone`."""
    policy = Policy(
        HostRules([parse_allow_rule(rule, "--allow-domain") for rule in allow]),
        HostRules([parse_deny_rule(rule, "--deny-domain") for rule in deny]),
        upstream_proxy=upstream_proxy,
    )
    limits = limits or unhurried()
    with TemporaryDirectory() as directory:
        conf = Path(directory, "resolv.conf")
        conf.write_text(resolv_conf)
        async with Nameserver(zone) as upstream:
            resolver = HostResolver(
                pinned, hosts=NOWHERE, resolv_conf=conf, nameservers=[upstream.endpoint], limits=limits
            )
            names, clock = names or NameTable(), Clock()
            made = Box(None, names, resolver, upstream, clock)  # type: ignore[arg-type]  # needs `made` itself
            made.server = DnsServer(policy, resolver, names, lambda _: CURL, made, limits=limits, clock=clock)
            try:
                yield made
            finally:
                await resolver.aclose()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a scenario on the standard loop and on the one the product uses."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner.run


def addresses(response: dns.message.Message) -> list[str]:
    return [rdata.address for rrset in response.answer for rdata in rrset if hasattr(rdata, "address")]


def explained(response: dns.message.Message) -> list[tuple[int, str]]:
    return [(int(option.code), option.text) for option in response.options if option.otype == 15]


def test_a_permitted_name_gets_its_real_addresses_and_is_remembered() -> None:
    """The answer is the upstream's, in its order, and each address leads back to the name."""

    async def scenario() -> None:
        async with box("a.test") as b:
            response = await b.ask("a.test")
            assert response.rcode() == dns.rcode.NOERROR
            assert addresses(response) == ["203.0.113.1", "203.0.113.2"]
            assert response.answer[0].ttl == 60
            assert response.flags & (dns.flags.QR | dns.flags.RA | dns.flags.RD)
            assert addresses(await b.ask("a.test", "AAAA")) == ["2001:db8::1"]
            for text in ("203.0.113.1", "203.0.113.2", "2001:db8::1"):
                assert b.names.name_of(ip_address(text)) == "a.test"
            assert [record.resolved_address for record in b.records] == [
                "203.0.113.1 203.0.113.2",
                "2001:db8::1",
            ]
            first = b.records[0]
            assert (first.event, first.mode, first.decision) == ("dns", "dns", "allow")
            assert (first.target, first.rule, first.rule_source) == ("a.test", "a.test", "--allow-domain")
            assert (first.pid, first.comm) == (4242, "curl")

    asyncio.run(scenario())


def test_a_denied_name_never_leaves_the_machine() -> None:
    """NXDOMAIN with EDE 15 (RFC 8914) and a record with the process and the remedy; no upstream query."""

    async def scenario() -> None:
        async with box("a.test", deny=("no.a.test",)) as b:
            for name in ("payload.evil.test", "no.a.test"):
                for rdtype in ("A", "AAAA", "TXT", "HTTPS", "ANY", "PTR", "CNAME", "TYPE65280"):
                    response = await b.ask(name, rdtype)
                    assert response.rcode() == dns.rcode.NXDOMAIN
                    assert not response.answer
                    assert [code for code, _ in explained(response)] == [15]
            assert b.upstream.seen == []
            evil, denied = b.records
            assert (evil.target, evil.decision, evil.denial_category) == (
                "payload.evil.test",
                "deny",
                "host_denied",
            )
            assert evil.remedy == "--allow-domain payload.evil.test"
            assert (evil.pid, evil.comm, evil.uid, evil.cgroup) == (4242, "curl", 1000, 7)
            assert (denied.rule, denied.rule_source) == ("no.a.test", "--deny-domain")

    asyncio.run(scenario())


def test_the_explanation_is_only_for_clients_with_edns() -> None:
    """RFC 6891 §7: no OPT in an answer to a question without one."""

    async def scenario() -> None:
        async with box("a.test") as b:
            for name in ("evil.test", "a.test"):
                assert (await b.ask(name, edns=None)).edns == -1
                assert (await b.ask(name)).edns == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "rdtype"),
    [
        ("metadata.test", "A"),
        ("mixed.test", "A"),
        ("loopback.test", "A"),
        ("loopback.test", "AAAA"),
        ("mapped-metadata.test", "AAAA"),
    ],
)
def test_rebinding_is_refused_whatever_the_rules(name: str, rdtype: str) -> None:
    """A permitted name that points at metadata, loopback or this host gets no address at all, and is told."""

    async def scenario() -> None:
        async with box("*", f"{name}:8080") as b:
            response = await b.ask(name, rdtype)
            assert response.rcode() == dns.rcode.NXDOMAIN
            assert addresses(response) == []
            assert [code for code, _ in explained(response)] == [15]
            (record,) = b.records
            assert (record.decision, record.target) == ("deny", name)
            assert record.reason
            for text in ("169.254.169.254", "127.0.0.1", "::1", "203.0.113.9"):
                assert b.names.name_of(ip_address(text)) is None

    asyncio.run(scenario())


def test_two_names_on_one_address_stay_two_names() -> None:
    """The second one gets a synthetic address; both answers are stable."""

    async def scenario() -> None:
        async with box("*.test") as b:
            await b.ask("a.test")
            (synthetic,) = addresses(await b.ask("same.test"))
            assert ip_address(synthetic) in V4_POOL
            assert b.names.name_of(ip_address(synthetic)) == "same.test"
            assert addresses(await b.ask("same.test")) == [synthetic]
            assert "203.0.113.1" in addresses(await b.ask("a.test"))
            assert [record.resolved_address for record in b.records][1] == "203.0.113.1"

    asyncio.run(scenario())


def test_a_pinned_loopback_service_is_reached_through_a_synthetic_address() -> None:
    """The sandbox's own loopback is not the host's: the answer must be an address that is redirected."""

    async def scenario() -> None:
        pinned: dict[str, tuple[IPAddress, ...]] = {"db.test": (ip_address("127.0.0.1"), ip_address("::1"))}
        async with box("db.test:5432", pinned=pinned) as b:
            (four,) = addresses(await b.ask("db.test"))
            (six,) = addresses(await b.ask("db.test", "AAAA"))
            assert ip_address(four) in V4_POOL
            assert ip_address(six) in V6_POOL
            assert b.upstream.seen == []

    asyncio.run(scenario())


def test_what_goes_through_an_upstream_proxy_is_not_looked_up_here() -> None:
    """An address that nobody else has stands for the name, the same each time; what is bypassed is looked up."""

    async def scenario() -> None:
        proxy = UpstreamProxy("squid.test", 3128, bypass=parse_bypass("four.test", "test"))
        async with box("a.test", "four.test", upstream_proxy=proxy) as b:
            for rdtype, pool in (("A", V4_POOL), ("AAAA", V6_POOL)):
                (given,) = addresses(await b.ask("a.test", rdtype))
                assert ip_address(given) in pool
                assert b.names.name_of(ip_address(given)) == "a.test"
                assert addresses(await b.ask("A.test", rdtype)) == [given]
            assert b.upstream.seen == []
            assert addresses(await b.ask("four.test")) == ["203.0.113.4"]
            assert addresses(await b.ask("evil.test")) == []
            assert b.records[0].reason == "left to the upstream proxy squid.test:3128 to look up"

    asyncio.run(scenario())


def test_an_exhausted_table_is_a_server_failure() -> None:
    """No address without a name is ever told."""

    async def scenario() -> None:
        async with box("*.test", names=NameTable(limit=1)) as b:
            assert addresses(await b.ask("four.test")) == ["203.0.113.4"]
            response = await b.ask("a.test")
            assert (response.rcode(), addresses(response)) == (dns.rcode.SERVFAIL, [])
            assert explained(response)[0][0] == dns.edns.EDECode.OTHER
            assert b.records[-1].reason == "no address left to give for a name"

    asyncio.run(scenario())


def test_an_alias_chain_arrives_as_the_upstream_gave_it() -> None:
    """Clients that look at the canonical name see it; the identity stays the name that was asked."""

    async def scenario() -> None:
        async with box("alias.test") as b:
            response = await b.ask("alias.test")
            assert [rrset.to_text() for rrset in response.answer] == [
                "alias.test. 60 IN CNAME edge.cdn.test.",
                "edge.cdn.test. 60 IN CNAME four.test.",
                "four.test. 60 IN A 203.0.113.4",
            ]
            assert b.names.name_of(ip_address("203.0.113.4")) == "alias.test"

    asyncio.run(scenario())


def test_missing_names_empty_answers_and_failures_pass_through() -> None:
    """NXDOMAIN (search lists need it), NODATA and SERVFAIL are told apart and none is a denial."""

    async def scenario() -> None:
        async with box("*.test") as b:
            b.upstream.broken.add("broken.test")
            missing = await b.ask("missing.test")
            assert (missing.rcode(), explained(missing)) == (dns.rcode.NXDOMAIN, [])
            empty = await b.ask("four.test", "AAAA")
            assert (empty.rcode(), empty.answer, explained(empty)) == (dns.rcode.NOERROR, [], [])
            broken = await b.ask("broken.test")
            assert broken.rcode() == dns.rcode.SERVFAIL
            assert "SERVFAIL" in explained(broken)[0][1]
            assert [record.decision for record in b.records] == ["allow"] * 3

    asyncio.run(scenario())


def test_an_answer_is_of_the_family_that_was_asked_for() -> None:
    """An IPv4-mapped AAAA is judged as IPv4 and is no IPv6 answer."""

    async def scenario() -> None:
        async with box("*.test") as b:
            response = await b.ask("mapped.test", "AAAA")
            assert (response.rcode(), response.answer) == (dns.rcode.NOERROR, [])

    asyncio.run(scenario())


@pytest.mark.parametrize("rdtype", ["TXT", "HTTPS", "SVCB", "MX", "NS", "SOA", "ANY", "CNAME", "SRV", "AXFR"])
def test_other_types_of_a_permitted_name_are_empty(rdtype: str) -> None:
    """No text, so no channel; no HTTPS record, so no `ech`; and nothing is asked upstream."""

    async def scenario() -> None:
        async with box("secret.test") as b:
            response = await b.ask("secret.test", rdtype)
            assert (response.rcode(), response.answer) == (dns.rcode.NOERROR, [])
            assert b.upstream.seen == []

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["localhost", "app.localhost", "LOCALHOST"])
def test_localhost_is_the_sandbox_itself_and_needs_no_rule(name: str) -> None:
    """RFC 6761 §6.3: loopback for both families, nothing for other types."""

    async def scenario() -> None:
        async with box() as b:
            assert addresses(await b.ask(name)) == ["127.0.0.1"]
            assert addresses(await b.ask(name, "AAAA")) == ["::1"]
            assert (await b.ask(name, "TXT")).rcode() == dns.rcode.NOERROR
            assert (b.upstream.seen, b.records) == ([], [])

    asyncio.run(scenario())


def test_reverse_lookups_know_only_what_this_sandbox_was_given() -> None:
    """Both reverse trees are answered from the table; nothing else is found or forwarded."""

    async def scenario() -> None:
        async with box("*.test") as b:
            await b.ask("a.test")
            await b.ask("a.test", "AAAA")
            asked = len(b.upstream.seen)
            for text in ("203.0.113.1", "2001:db8::1"):
                response = await b.ask(ip_address(text).reverse_pointer, "PTR")
                assert [rrset[0].to_text() for rrset in response.answer] == ["a.test."]
            for name in ("9.113.0.203.in-addr.arpa", "data.1.0.0.127.in-addr.arpa", "x.ip6.arpa"):
                assert (await b.ask(name, "PTR")).rcode() == dns.rcode.NXDOMAIN
            assert len(b.upstream.seen) == asked

    asyncio.run(scenario())


@pytest.mark.parametrize("name", [".", "1.2.3.4", "a b.test", r"a\.b.test", r"\000.test", "-.test", "a..test"])
def test_what_is_no_host_name_does_not_exist(name: str) -> None:
    """Even with every host permitted: no rule can be about it."""

    async def scenario() -> None:
        async with box("*") as b:
            with suppress(dns.exception.DNSException):  # "a..test" has no wire form to begin with
                response = await b.ask(name)
                assert response.rcode() == dns.rcode.NXDOMAIN
                assert explained(response) == [(15, "not a host name")]
                assert [record.reason for record in b.records] == ["not a host name"]
            assert b.upstream.seen == []

    asyncio.run(scenario())


def test_the_question_comes_back_as_it_was_spelled() -> None:
    """0x20: the case of the question is kept in question and answer, while policy and table are canonical."""

    async def scenario() -> None:
        async with box("a.test") as b:
            response = await b.ask("A.tEsT")
            assert response.question[0].name.to_text() == "A.tEsT."
            assert response.answer[0].name.to_text() == "A.tEsT."
            assert b.upstream.seen == [("a.test", "A", "udp")]
            assert b.names.name_of(ip_address("203.0.113.1")) == "a.test"

    asyncio.run(scenario())


@pytest.mark.parametrize(("edns", "fits"), [(None, 512), (512, 512), (100, 512), (1000, 1000), (65535, 1232)])
def test_a_datagram_is_never_longer_than_the_client_takes(edns: int | None, fits: int) -> None:
    """What does not fit is cut with TC set; the same question over TCP gets everything."""

    async def scenario() -> None:
        async with box("big.test", limits=unhurried(addresses=120)) as b:
            query = dns.message.make_query("big.test", "A", use_edns=edns is not None, payload=edns or 0)
            wire = await b.server.answer(query.to_wire(), CURL, udp=True)
            assert wire is not None
            assert len(wire) <= fits
            response = dns.message.from_wire(wire)
            assert response.flags & dns.flags.TC
            whole = await b.ask_raw(query, udp=False)
            assert not whole.flags & dns.flags.TC
            assert len(addresses(whole)) == 120

    asyncio.run(scenario())


def test_an_answer_that_fits_is_not_cut() -> None:
    """TC appears only where something is missing."""

    async def scenario() -> None:
        async with box("a.test") as b:
            assert not (await b.ask("a.test", edns=None)).flags & dns.flags.TC

    asyncio.run(scenario())


def mutated(**changes: Any) -> bytes:
    query = dns.message.make_query("a.test", "A", id=0x1234)
    for name, value in changes.items():
        setattr(query, name, value)
    return query.to_wire()


def with_counts(*counts: int) -> bytes:
    wire = mutated()
    return wire[:4] + b"".join(count.to_bytes(2, "big") for count in counts) + wire[12:]


@pytest.mark.parametrize(
    ("wire", "rcode"),
    [
        (with_counts(0, 0, 0, 0), dns.rcode.FORMERR),
        (with_counts(2, 0, 0, 0), dns.rcode.FORMERR),
        (with_counts(1, 1, 0, 0), dns.rcode.FORMERR),
        (with_counts(1, 0, 1, 0), dns.rcode.FORMERR),
        (with_counts(1, 0, 0, 1), dns.rcode.FORMERR),
        (mutated()[:-1], dns.rcode.FORMERR),
        (mutated() + b"\0", dns.rcode.FORMERR),
        (mutated()[:12] + b"\xc0\x0c\0\1\0\1", dns.rcode.FORMERR),
        (mutated(flags=4 << 11), dns.rcode.NOTIMP),
        (mutated(flags=5 << 11), dns.rcode.NOTIMP),
        (mutated()[:-1] + b"\3", dns.rcode.REFUSED),
        (mutated()[:-1] + b"\xff", dns.rcode.REFUSED),
    ],
    ids=[
        "no question",
        "two questions",
        "an answer",
        "an authority",
        "a missing additional",
        "cut",
        "trailing",
        "pointer loop",
        "NOTIFY",
        "UPDATE",
        "class CH",
        "class ANY",
    ],
)
def test_only_one_question_of_class_in_is_a_query(wire: bytes, rcode: dns.rcode.Rcode) -> None:
    """RFC 9619, RFC 1035 §4.1.1: everything else has its own error, with the id that was sent."""

    async def scenario() -> None:
        async with box("a.test") as b:
            answer = await b.server.answer(wire, CURL, udp=True)
            assert answer is not None
            response = dns.message.from_wire(answer)
            assert (response.id, response.rcode(), response.answer) == (0x1234, rcode, [])
            assert response.flags & dns.flags.QR
            assert b.upstream.seen == []

    asyncio.run(scenario())


def test_a_later_edns_version_is_answered_with_ours() -> None:
    """RFC 6891 §6.1.3."""

    async def scenario() -> None:
        async with box("a.test") as b:
            query = dns.message.make_query("a.test", "A", use_edns=1)
            response = await b.ask_raw(query)
            assert (response.rcode(), response.edns) == (dns.rcode.BADVERS, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("wire", [b"", b"x", b"\0" * 11, mutated(flags=dns.flags.QR), b"\0" * 5000])
def test_what_is_no_query_gets_no_answer(wire: bytes) -> None:
    """Short datagrams, responses (two servers must not answer each other) and oversized messages."""

    async def scenario() -> None:
        async with box("a.test") as b:
            assert await b.server.answer(wire, CURL, udp=True) is None

    asyncio.run(scenario())


def test_a_resolver_that_never_answers_does_not_hold_a_query_for_ever() -> None:
    """A question has a deadline of its own."""

    async def scenario() -> None:
        async with box("a.test", limits=unhurried(query_s=0.01)) as b:
            b.upstream.silent.add("a.test")
            response = await b.ask("a.test")
            assert (response.rcode(), explained(response)) == (dns.rcode.SERVFAIL, [(0, "no answer in time")])

    asyncio.run(scenario())


def test_a_search_list_probe_is_recorded_but_not_as_something_anybody_asked() -> None:
    """`a.test.corp.example` is a resolver's own idea; `evil.corp.example` is not."""

    async def scenario() -> None:
        async with box("a.test", resolv_conf="search corp.example\n") as b:
            for name in ("a.test.corp.example", "evil.corp.example", "corp.example"):
                assert (await b.ask(name)).rcode() == dns.rcode.NXDOMAIN
            assert [(record.denial_category, record.remedy) for record in b.records] == [
                (SEARCH_LIST, None),
                ("host_denied", "--allow-domain evil.corp.example"),
                ("host_denied", "--allow-domain corp.example"),
            ]
            assert b.upstream.seen == []

    asyncio.run(scenario())


def test_a_loop_of_equal_lookups_is_one_record_a_minute() -> None:
    """Repetition is not recorded, another name is, and after the window so is the first again."""

    async def scenario() -> None:
        async with box("a.test") as b:
            for _ in range(50):
                await b.ask("evil.test")
                await b.ask("evil.test", "AAAA")
                await b.ask("a.test")
            await b.ask("worse.test")
            assert [record.target for record in b.records] == ["evil.test", "a.test", "worse.test"]
            b.clock.now_s += 60
            await b.ask("evil.test")
            assert [record.target for record in b.records][3:] == ["evil.test"]

    asyncio.run(scenario())


def test_a_flood_of_names_is_a_bounded_number_of_records() -> None:
    """The log says that there was more than it holds, once."""

    async def scenario() -> None:
        async with box(limits=unhurried(records_per_window=10)) as b:
            for number in range(100):
                await b.ask(f"n{number}.test")
            assert len(b.records) == 11
            assert b.records[-1].reason
            assert "more lookups" in b.records[-1].reason

    asyncio.run(scenario())


def test_the_window_forgets_everything_at_its_end() -> None:
    """Its memory is bounded by its limit, and the overflow is told once per window."""
    clock = Clock()
    window = Window(2, 60.0, clock)
    keys = ("a", "a", "b", "c", "d")
    first = [Worth.RECORD, Worth.NOTHING, Worth.RECORD, Worth.OVERFLOW, Worth.NOTHING]
    assert [window.judge(key) for key in keys] == first
    clock.now_s += 59.9
    assert window.judge("a") is Worth.NOTHING
    clock.now_s += 0.1
    assert [window.judge(key) for key in keys] == first


# --- sockets ---


def on_loopback(family: socket.AddressFamily) -> socket.socket:
    """A datagram socket; not every machine has IPv6."""
    with ExitStack() as on_failure:
        try:
            sock = on_failure.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        except OSError as error:
            missing("ipv6" if family == socket.AF_INET6 else "ipv4", f"there is no loopback of that family: {error}")
        on_failure.pop_all()
    return sock


@asynccontextmanager
async def udp(b: Box, family: socket.AddressFamily = socket.AF_INET) -> AsyncIterator[tuple[str, int]]:
    """The server on a datagram socket of loopback."""
    sock = on_loopback(family)
    address = sock.getsockname()[:2]
    task = asyncio.create_task(b.server.serve_udp(sock))
    try:
        yield address
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
    assert sock.fileno() == -1


@asynccontextmanager
async def tcp(
    b: Box,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, asyncio.Task[None]]]:
    """A connection to the server, and the task that serves it."""
    ours, theirs = socket.socketpair()
    task = asyncio.create_task(b.server.handle_tcp(theirs, CURL))
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        yield reader, writer, task
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        await task
        await asyncio.sleep(0)


def framed(name: str, ident: int, rdtype: str = "A") -> bytes:
    return dns.message.make_query(name, rdtype, id=ident).to_wire(prepend_length=True)


async def read_message(reader: asyncio.StreamReader) -> dns.message.Message:
    size = int.from_bytes(await reader.readexactly(2), "big")
    return dns.message.from_wire(await reader.readexactly(size))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_datagrams_are_answered_to_their_sender(family: socket.AddressFamily, run: Run) -> None:
    """On both families and both event loops, also after garbage, and the asker is asked with the peer."""

    async def scenario() -> None:
        async with box("a.test") as b, udp(b, family) as (address, port):
            askers: list[tuple[str, int]] = []
            b.server._asker = lambda peer: askers.append(peer)
            query = dns.message.make_query("a.test", "A")
            with socket.socket(family, socket.SOCK_DGRAM) as client:  # open, or what it is told could reach the next
                for garbage in (b"", b"\xff" * 40, b"\0" * 12, os.urandom(600)):
                    client.sendto(garbage, (address, port))
                source = client.getsockname()[1]
                response = await dns.asyncquery.udp(query, address, port=port, timeout=UNHURRIED_S)
            assert addresses(response) == ["203.0.113.1", "203.0.113.2"]
            assert all(len(peer) == 2 and peer[0] == address for peer in askers)
            assert source in {peer[1] for peer in askers}
            assert b.records[-1].pid is None

    run(scenario())


def test_slow_names_do_not_hold_up_others(run: Run) -> None:
    """A query that waits for the upstream does not block the socket, and the oldest of too many makes way."""

    async def scenario() -> None:
        async with box("*.test", limits=unhurried(outstanding_queries=1)) as b, udp(b) as (address, port):
            b.upstream.gate.clear()
            slow = dns.message.make_query("a.test", "A")
            waiting = asyncio.create_task(dns.asyncquery.udp(slow, address, port=port, timeout=0.2))
            while not b.upstream.seen:
                await asyncio.sleep(0)
            quick = dns.message.make_query("localhost", "A")
            assert addresses(await dns.asyncquery.udp(quick, address, port=port, timeout=UNHURRIED_S)) == ["127.0.0.1"]
            b.upstream.gate.set()
            with pytest.raises(dns.exception.Timeout):
                await waiting
            again = await dns.asyncquery.udp(slow, address, port=port, timeout=UNHURRIED_S)
            assert len(addresses(again)) == 2
            assert [name for name, _, _ in b.upstream.seen] == ["a.test"]

    run(scenario())


def test_invented_names_are_rationed_and_spelled_out_ones_are_not(run: Run) -> None:
    """The excess is a server failure that says why, is not forwarded, and is one record a window."""

    async def scenario() -> None:
        limits = unhurried(new_names_of_process=2, new_names_of_process_per_s=0)
        async with box("*.test", "four.test", limits=limits) as b:
            for n in range(6):
                last = await b.ask(f"invented{n}.test")
            assert last.rcode() == dns.rcode.SERVFAIL
            assert "too many new names" in explained(last)[0][1]
            assert {name for name, _, _ in b.upstream.seen} == {"invented0.test", "invented1.test"}
            assert addresses(await b.ask("four.test")) == ["203.0.113.4"]
            (record,) = [each for each in b.records if each.denial_category == "rate"]
            assert (record.target, record.pid, record.decision) == ("invented2.test", 4242, "deny")

    run(scenario())


def test_invented_names_cannot_use_up_the_addresses(run: Run) -> None:
    """The last part of the table is for names that a rule spells out."""

    async def scenario() -> None:
        async with box("*.test", "four.test", names=NameTable(limit=8)) as b:
            assert (await b.ask("big.test")).rcode() == dns.rcode.SERVFAIL
            assert (await b.ask("same.test")).rcode() == dns.rcode.SERVFAIL
            assert len(addresses(await b.ask("four.test"))) == 1

    run(scenario())


def test_running_out_of_descriptors_is_a_server_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server outlives it."""

    async def scenario() -> None:
        async with box("a.test") as b:

            async def exhausted(host: str, rdtype: dns.rdatatype.RdataType) -> None:
                raise OSError(24, "Too many open files")

            monkeypatch.setattr(b.resolver, "resolve", exhausted)
            response = await b.ask("a.test")
            assert (response.rcode(), explained(response)[0][1]) == (dns.rcode.SERVFAIL, "Too many open files")

    run(scenario())


def test_a_truncated_answer_can_be_had_over_tcp(run: Run) -> None:
    """The retry that TC asks for works."""

    async def scenario() -> None:
        limits = unhurried(addresses=120)
        async with box("big.test", limits=limits) as b, udp(b) as (address, port), tcp(b) as (reader, writer, _):
            query = dns.message.make_query("big.test", "A")
            truncated = await dns.asyncquery.udp(query, address, port=port, timeout=UNHURRIED_S)
            assert truncated.flags & dns.flags.TC
            writer.write(query.to_wire(prepend_length=True))
            assert len(addresses(await read_message(reader))) == 120

    run(scenario())


def test_a_connected_socket_is_not_a_server(run: Run) -> None:
    """It would serve one client only; refused, and closed."""

    async def scenario() -> None:
        async with box() as b:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect(("127.0.0.1", 9))
            with pytest.raises(SandboxError):
                await b.server.serve_udp(sock)
            await asyncio.sleep(0)

    run(scenario())


def test_queries_on_one_connection_are_pipelined(run: Run) -> None:
    """Several at once, byte by byte, a slow one overtaken by a quick one, each answered once."""

    async def scenario() -> None:
        async with box("*.test") as b, tcp(b) as (reader, writer, _):
            b.upstream.gate.clear()
            for byte in framed("a.test", 1) + framed("a.test", 2, "TXT") + framed("localhost", 3):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            assert {(await read_message(reader)).id for _ in range(2)} == {2, 3}
            b.upstream.gate.set()
            slow = await read_message(reader)
            assert (slow.id, len(addresses(slow))) == (1, 2)

    run(scenario())


def test_answers_still_arrive_after_the_client_has_finished_sending(run: Run) -> None:
    """A half-closed connection gets what it asked for, then the end."""

    async def scenario() -> None:
        async with box("a.test") as b, tcp(b) as (reader, writer, _):
            writer.write(framed("a.test", 7))
            writer.write_eof()
            assert (await read_message(reader)).id == 7
            assert await reader.read() == b""

    run(scenario())


def test_a_pipeline_without_end_is_not_read_without_end(run: Run) -> None:
    """Unanswered queries of one connection are bounded; the rest stays in the client's socket."""

    async def scenario() -> None:
        limits = unhurried(tcp_pipelined=2)
        async with box("*.test", limits=limits) as b, tcp(b) as (reader, writer, _):
            b.upstream.gate.clear()
            for number in range(5):
                writer.write(framed(f"n{number}.test", number))
            await writer.drain()
            while len(b.upstream.seen) < 2:
                await asyncio.sleep(0)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(b.upstream.seen) == 2
            b.upstream.gate.set()
            assert {(await read_message(reader)).id for _ in range(5)} == set(range(5))

    run(scenario())


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\x20half", b"\xff\xff" + b"x" * 100])
def test_silence_halves_and_oversized_messages_end_a_connection(sent: bytes, run: Run) -> None:
    """Without the client's help: an idle deadline covers everything it can leave out."""

    async def scenario() -> None:
        async with box(limits=unhurried(tcp_idle_s=0.01)) as b, tcp(b) as (reader, writer, task):
            writer.write(sent)
            await task
            with suppress(OSError):
                assert await reader.read() == b""
            assert not b.server._sessions

    run(scenario())


def test_a_client_that_does_not_read_is_let_go(run: Run) -> None:
    """Answers are not kept for it beyond a deadline."""

    async def scenario() -> None:
        limits = unhurried(tcp_write_s=0.05)
        async with box("big.test", limits=limits) as b:
            ours, theirs = socket.socketpair()
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            ours.setblocking(False)
            task = asyncio.create_task(b.server.handle_tcp(theirs, CURL))
            pending = framed("big.test", 1) * 200
            while not task.done():
                with suppress(OSError):
                    pending = pending[ours.send(pending) :]
                await asyncio.sleep(0)
            await task
            ours.close()
            assert not b.server._sessions

    run(scenario())


def test_connections_are_bounded(run: Run) -> None:
    """One more than the limit ends the one that has asked nothing for the longest time."""

    async def scenario() -> None:
        async with (
            box(limits=unhurried(tcp_connections=2)) as b,
            tcp(b) as (reader, writer, _),
            tcp(b) as (silent, _, ended),
        ):
            writer.write(framed("localhost", 1))
            await read_message(reader)
            async with tcp(b) as (extra, extra_writer, _):
                await ended
                assert await silent.read() == b""
                for question, answers in ((writer, reader), (extra_writer, extra)):
                    question.write(framed("localhost", 2))
                    assert (await read_message(answers)).id == 2

    run(scenario())


def test_a_connection_with_a_question_under_way_is_not_idle(run: Run) -> None:
    """Who holds connections open without a question gives way before who waits for an answer."""

    async def scenario() -> None:
        async with (
            box("a.test", limits=unhurried(tcp_connections=2)) as b,
            tcp(b) as (reader, writer, _),
            tcp(b) as (_, idle, ended),
        ):
            b.upstream.gate.clear()
            writer.write(framed("a.test", 1))
            while not b.upstream.seen:
                await asyncio.sleep(0)
            idle.write(framed("localhost", 3))
            async with tcp(b):
                await ended
            b.upstream.gate.set()
            assert len(addresses(await read_message(reader))) == 2

    run(scenario())


def test_who_is_ended_takes_what_it_asked_along(run: Run) -> None:
    """A connection that gives way leaves no question behind, or a flood of connections would pile them up."""

    async def scenario() -> None:
        async with box("*.test", limits=unhurried(tcp_connections=1)) as b, tcp(b) as (_, writer, ended):
            b.upstream.gate.clear()
            for number in range(8):
                writer.write(framed(f"n{number}.test", number))
            while len(b.upstream.seen) < 8:
                await asyncio.sleep(0)
            before = len(asyncio.all_tasks())
            async with tcp(b):
                await ended
                assert len(asyncio.all_tasks()) <= before - 8
            b.upstream.gate.set()

    run(scenario())


def test_questions_of_all_connections_are_bounded(run: Run) -> None:
    """They may all be answered in one turn of the loop: the connection with most of them ends."""

    async def scenario() -> None:
        limits = unhurried(tcp_outstanding=6)
        async with box("*.test", limits=limits) as b, tcp(b) as (reader, few, _), tcp(b) as (_, many, ended):
            b.upstream.gate.clear()
            few.write(framed("few.test", 1))
            while not b.upstream.seen:
                await asyncio.sleep(0)
            for number in range(6):
                many.write(framed(f"n{number}.test", number))
            await ended
            b.upstream.gate.set()
            assert (await read_message(reader)).id == 1

    run(scenario())


FRESH = """
import asyncio, sys
import uvloop
import dns.message, dns.edns
import test_dns_server as t
from nono_ebpf.dns.resolver import preload

class NoImports:
    def find_spec(self, name, path=None, target=None):
        sys.exit(f"imported {name}")

async def main():
    async with t.box("a.test", "big.test") as b, t.udp(b), t.tcp(b) as (reader, writer, _):
        queries = [
            dns.message.make_query(name, rdtype, use_edns=0, options=[dns.edns.ECSOption("203.0.113.0", 24)])
            for name in ("a.test", "A.test", "evil.test", "localhost", "xn--bcher-kva.test", "7.in-addr.arpa")
            for rdtype in ("A", "AAAA", "HTTPS", "TXT", "PTR", "TYPE65280")
        ]
        sys.meta_path[:] = [NoImports()]
        for query in queries:
            await b.ask_raw(query)
        for wire in (t.mutated(flags=5 << 11), t.mutated()[:-1], t.with_counts(1, 0, 0, 1)):
            await b.server.answer(wire, None, udp=True)
        writer.write(t.framed("big.test", 1))
        await t.read_message(reader)
    print("done")

preload()
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


def test_after_preload_an_answer_imports_nothing() -> None:
    """The serving process cannot read its own installation: every kind of question is answered without."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", FRESH], env=environment, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("done\n", "", 0)
