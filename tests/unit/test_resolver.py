"""What a name means to this host, asked of a real nameserver on loopback."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import dns.rcode
import dns.rdatatype
import pytest
import uvloop
from nameserver import UNHURRIED_RESOLV_CONF, Nameserver, Zone, unhurried

from nono_ebpf.dns import resolver as module
from nono_ebpf.dns.hosts import Reread, parse_hosts
from nono_ebpf.dns.limits import Limits
from nono_ebpf.dns.resolver import Answer, HostResolver, is_localhost, is_own_address, resolved
from nono_ebpf.errors import UpstreamError
from nono_ebpf.model import ResolvedAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from nono_ebpf.model import IPAddress

    Run = Callable[[Coroutine[Any, Any, None]], None]

A, AAAA = dns.rdatatype.A, dns.rdatatype.AAAA
ZONE: Zone = {
    ("a.test", "A"): ["203.0.113.1", "203.0.113.2"],
    ("a.test", "AAAA"): ["2001:db8::1"],
    ("four.test", "A"): ["203.0.113.4"],
    ("text.test", "TXT"): ['"x"'],
    ("alias.test", "CNAME"): ["middle.test."],
    ("middle.test", "CNAME"): ["a.test."],
    ("dangling.test", "CNAME"): ["nowhere.test."],
    ("mapped.test", "AAAA"): ["::ffff:127.0.0.1"],
    ("big.test", "A"): [f"203.0.113.{last}" for last in range(1, 200)],
}


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a scenario on the standard loop and on the one the product uses."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner.run


@pytest.fixture
def no_files(tmp_path: Path) -> dict[str, Path]:
    """This machine's own files must not decide a test, nor how long it is held up."""
    (tmp_path / "resolv.conf").write_text(UNHURRIED_RESOLV_CONF)
    return {"hosts": tmp_path / "hosts", "resolv_conf": tmp_path / "resolv.conf"}


def asking(
    upstream: Nameserver,
    files: dict[str, Path],
    pinned: dict[str, tuple[IPAddress, ...]] | None = None,
    *,
    limits: Limits | None = None,
    **more: Any,
) -> HostResolver:
    return HostResolver(pinned, nameservers=[upstream.endpoint], limits=limits or unhurried(), **files, **more)


def texts(addresses: tuple[ResolvedAddress, ...]) -> list[str]:
    return [str(each.address) for each in addresses]


def test_both_families_are_looked_up_and_ipv6_comes_first(run: Run, no_files: dict[str, Path]) -> None:
    """A lookup asks A and AAAA once each, over UDP with EDNS, and keeps the server's order."""

    async def scenario() -> None:
        async with Nameserver(ZONE) as upstream:
            resolver = asking(upstream, no_files)
            found = await resolver.lookup("a.test")
            assert texts(found) == ["2001:db8::1", "203.0.113.1", "203.0.113.2"]
            assert not any(each.own or each.pinned for each in found)
            assert sorted(upstream.seen) == [("a.test", "A", "udp"), ("a.test", "AAAA", "udp")]
            assert upstream.edns == {1232}

    run(scenario())


def test_names_are_absolute(run: Run, no_files: dict[str, Path]) -> None:
    """A search list in resolv.conf is never applied to a name that was judged as it is."""
    no_files["resolv_conf"].write_text(f"search corp.test\noptions ndots:5\n{UNHURRIED_RESOLV_CONF}")

    async def scenario() -> None:
        async with Nameserver({("db.corp.test", "A"): ["203.0.113.1"]}) as upstream:
            resolver = asking(upstream, no_files)
            with pytest.raises(UpstreamError, match="no such name"):
                await resolver.lookup("db")
            assert {name for name, _, _ in upstream.seen} == {"db"}

    run(scenario())


def test_an_alias_chain_is_followed_and_told(run: Run, no_files: dict[str, Path]) -> None:
    """The chain arrives in order, with the addresses at its end."""

    async def scenario() -> None:
        async with Nameserver(ZONE) as upstream:
            resolver = asking(upstream, no_files)
            answer = await resolver.resolve("alias.test", A)
            assert answer.cnames == ("middle.test", "a.test")
            assert texts(answer.addresses) == ["203.0.113.1", "203.0.113.2"]

    run(scenario())


def test_no_such_name_and_no_data_are_told_apart(run: Run, no_files: dict[str, Path]) -> None:
    """NXDOMAIN is an error of a lookup, NODATA is an empty answer; a dangling alias does not exist."""

    async def scenario() -> None:
        async with Nameserver(ZONE) as upstream:
            resolver = asking(upstream, no_files)
            assert (await resolver.resolve("missing.test", A)).rcode == dns.rcode.NXDOMAIN
            for name in ("missing.test", "dangling.test"):
                with pytest.raises(UpstreamError, match="no such name") as caught:
                    await resolver.lookup(name)
                assert (caught.value.phase, caught.value.target) == ("resolve", name)
            assert await resolver.lookup("text.test") == ()
            assert await resolver.resolve("four.test", AAAA) == Answer(dns.rcode.NOERROR, ttl_s=20)
            assert texts(await resolver.lookup("four.test")) == ["203.0.113.4"]

    run(scenario())


def test_server_failure_silence_and_nonsense_are_upstream_errors(run: Run, no_files: dict[str, Path]) -> None:
    """Whatever goes wrong at the nameserver has one error, and a failure is not remembered."""
    impatient = Limits(lookup_s=0.2)

    async def scenario() -> None:
        async with Nameserver(ZONE, broken={"a.test"}, silent={"four.test"}) as upstream:
            resolver = asking(upstream, no_files)
            with pytest.raises(UpstreamError, match="SERVFAIL"):
                await resolver.lookup("a.test")
            with pytest.raises(UpstreamError, match="in time"):
                await asking(upstream, no_files, limits=impatient).lookup("four.test")
            upstream.broken.clear()
            assert len(await resolver.lookup("a.test")) == 3
            endpoint = upstream.endpoint
        with pytest.raises(UpstreamError):
            await HostResolver(nameservers=[endpoint], limits=impatient, **no_files).lookup("a.test")

    run(scenario())


def test_one_broken_family_does_not_hide_the_other(no_files: dict[str, Path]) -> None:
    """Servers that fail AAAA are common: the A answer counts. Without any address the failure does."""
    good = Answer(dns.rcode.NOERROR, (ResolvedAddress(ip_address("203.0.113.1")),))
    bad = UpstreamError("resolve", "a.test", "SERVFAIL")
    empty = Answer(dns.rcode.NOERROR)
    assert module._combined("a.test", [bad, good]) == good.addresses
    for answers in ([bad, empty], [empty, bad], [bad, bad], [good, asyncio.CancelledError()]):
        with pytest.raises((UpstreamError, asyncio.CancelledError)):
            module._combined("a.test", answers)


def test_a_truncated_answer_is_asked_for_again_over_tcp(run: Run, no_files: dict[str, Path]) -> None:
    """More than fits a datagram still arrives whole."""

    async def scenario() -> None:
        async with Nameserver(ZONE, long={"big.test"}) as upstream:
            resolver = asking(upstream, no_files, limits=unhurried(addresses=199))
            assert len((await resolver.resolve("big.test", A)).addresses) == 199
            assert upstream.seen == [("big.test", "A", "udp"), ("big.test", "A", "tcp")]

    run(scenario())


def test_of_very_many_addresses_some_are_kept(run: Run, no_files: dict[str, Path]) -> None:
    """A permitted host's nameserver may be hostile: each one is judged, remembered and dialled."""

    async def scenario() -> None:
        async with Nameserver(ZONE, long={"big.test"}) as upstream:
            resolver = asking(upstream, no_files)
            assert len((await resolver.resolve("big.test", A)).addresses) == 32

    run(scenario())


def test_answers_live_as_long_as_they_say(run: Run, no_files: dict[str, Path]) -> None:
    """A cached answer is used until its TTL has passed, counting down, and not a second longer."""
    clock = Clock()

    async def scenario() -> None:
        async with Nameserver(ZONE, ttl_s=60) as upstream:
            resolver = asking(upstream, no_files, clock=clock)
            assert (await resolver.resolve("a.test", A)).ttl_s == 60
            clock.now_s += 59
            assert (await resolver.resolve("a.test", A)).ttl_s == 1
            assert len(upstream.seen) == 1
            clock.now_s += 1
            assert (await resolver.resolve("a.test", A)).ttl_s == 60
            assert len(upstream.seen) == 2

    run(scenario())


def test_a_long_ttl_is_shortened_and_a_negative_one_obeyed(run: Run, no_files: dict[str, Path]) -> None:
    """No answer is trusted for longer than the limit; NXDOMAIN lives as the zone's SOA says."""
    clock = Clock()

    async def scenario() -> None:
        async with Nameserver(ZONE, ttl_s=86400) as upstream:
            resolver = asking(upstream, no_files, clock=clock)
            assert (await resolver.resolve("a.test", A)).ttl_s == Limits().ttl_s
            assert (await resolver.resolve("missing.test", A)).ttl_s == 20
            clock.now_s += 20
            await resolver.resolve("missing.test", A)
            assert len(upstream.seen) == 3

    run(scenario())


def test_a_ttl_of_zero_lasts_a_moment_and_the_cache_is_bounded(run: Run, no_files: dict[str, Path]) -> None:
    """A zone can neither have each question sent to it, nor fill the memory."""

    async def scenario() -> None:
        async with Nameserver(ZONE, ttl_s=0) as upstream:
            clock = Clock()
            limits = unhurried(cached_answers=1)
            resolver = asking(upstream, no_files, limits=limits, clock=clock)
            for _ in range(3):
                await resolver.resolve("a.test", A)
            assert len(upstream.seen) == 1
            clock.now_s += limits.least_ttl_s
            await resolver.resolve("a.test", A)
            assert len(upstream.seen) == 2
            await resolver.resolve("a.test", AAAA)
            assert list(resolver._cache._held) == [("a.test", AAAA)]

    run(scenario())


def test_equal_lookups_at_once_are_one_question(run: Run, no_files: dict[str, Path]) -> None:
    """Many clients of one name cost one query, and the first to give up does not take the others along."""

    async def scenario() -> None:
        async with Nameserver(ZONE) as upstream:
            upstream.gate.clear()
            resolver = asking(upstream, no_files)
            first = asyncio.create_task(resolver.resolve("a.test", A))
            others = [asyncio.create_task(resolver.resolve("a.test", A)) for _ in range(20)]
            while not upstream.seen:
                await asyncio.sleep(0)
            first.cancel()
            upstream.gate.set()
            answers = await asyncio.gather(*others)
            assert {answer.addresses for answer in answers} == {answers[0].addresses}
            assert len(upstream.seen) == 1
            assert not resolver._under_way

    run(scenario())


def test_the_number_of_lookups_under_way_is_bounded(run: Run, no_files: dict[str, Path]) -> None:
    """More names at once than the limit fail at once instead of taking sockets; closing ends the rest."""

    async def scenario() -> None:
        async with Nameserver(ZONE) as upstream:
            upstream.gate.clear()
            limits = unhurried(outstanding_lookups=1)
            resolver = asking(upstream, no_files, limits=limits)
            waiting = asyncio.create_task(resolver.resolve("a.test", A))
            while not upstream.seen:
                await asyncio.sleep(0)
            with pytest.raises(UpstreamError, match="too many"):
                await resolver.resolve("four.test", A)
            await resolver.aclose()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not resolver._under_way

    run(scenario())


def test_pinned_names_are_asked_of_nobody(run: Run, no_files: dict[str, Path]) -> None:
    """What the operator wrote is the answer, for both families, and is marked as such."""
    pinned: dict[str, tuple[IPAddress, ...]] = {"a.test": (ip_address("127.0.0.1"),)}

    async def scenario() -> None:
        async with Nameserver(ZONE) as upstream:
            resolver = asking(upstream, no_files, pinned)
            assert await resolver.lookup("a.test") == (ResolvedAddress(ip_address("127.0.0.1"), own=True, pinned=True),)
            assert (await resolver.resolve("a.test", AAAA)).addresses == ()
            assert upstream.seen == []

    run(scenario())


@pytest.mark.parametrize("name", ["localhost", "app.localhost"])
def test_localhost_is_this_host_and_never_asked_for(name: str, run: Run, no_files: dict[str, Path]) -> None:
    """RFC 6761 §6.3: own loopback, even if the hosts file says otherwise."""
    no_files["hosts"].write_text(f"203.0.113.1 {name}\n")

    async def scenario() -> None:
        resolver = HostResolver(**no_files)
        assert await resolver.lookup(name) == (
            ResolvedAddress(ip_address("::1"), own=True),
            ResolvedAddress(ip_address("127.0.0.1"), own=True),
        )

    run(scenario())


def test_names_like_localhost_are_ordinary() -> None:
    """Only the name itself and names below it are special."""
    assert is_localhost("localhost")
    assert is_localhost("a.b.localhost")
    assert not is_localhost("notlocalhost")
    assert not is_localhost("localhost.example.com")


def test_an_address_stands_for_itself(run: Run, no_files: dict[str, Path]) -> None:
    """A literal is never sent to a nameserver."""

    async def scenario() -> None:
        found = await HostResolver(**no_files).lookup("203.0.113.9")
        assert found == (ResolvedAddress(ip_address("203.0.113.9"), pinned=True),)

    run(scenario())


def test_a_mapped_address_is_the_ipv4_address(run: Run, no_files: dict[str, Path]) -> None:
    """An AAAA of ::ffff:127.0.0.1 cannot pass for something that is not loopback."""

    async def scenario() -> None:
        async with Nameserver(ZONE) as upstream:
            resolver = asking(upstream, no_files)
            assert await resolver.lookup("mapped.test") == (ResolvedAddress(ip_address("127.0.0.1"), own=True),)

    run(scenario())


def test_the_hosts_file_answers_first_and_is_read_again_when_changed(run: Run, no_files: dict[str, Path]) -> None:
    """An entry is used for both families without a query, edits count at once, and so does removal."""
    hosts = no_files["hosts"]

    async def scenario() -> None:
        async with Nameserver(ZONE) as upstream:
            resolver = asking(upstream, no_files)
            assert len(await resolver.lookup("four.test")) == 1
            hosts.write_text("198.51.100.1 four.test\n")
            assert texts(await resolver.lookup("four.test")) == ["198.51.100.1"]
            hosts.write_text("198.51.100.22 four.test\n")
            assert texts(await resolver.lookup("four.test")) == ["198.51.100.22"]
            hosts.unlink()
            assert texts(await resolver.lookup("four.test")) == ["203.0.113.4"]

    run(scenario())


def test_a_hosts_file_that_cannot_be_read_fails_closed(run: Run, no_files: dict[str, Path]) -> None:
    """What the host means by a name is then unknown; the nameserver's view is no substitute."""
    no_files["hosts"].mkdir()

    async def scenario() -> None:
        with pytest.raises(UpstreamError, match="hosts file"):
            await HostResolver(**no_files).lookup("a.test")

    run(scenario())


def test_the_hosts_format() -> None:
    """Comments, blanks, several names, any case, IDNA; and lines that say nothing are passed over."""
    table = parse_hosts(
        "# comment\n\n203.0.113.1\tOne.Example one # c\n2001:db8::1 one.example\n203.0.113.1 one.example\n"
        "garbage here\n203.0.113.2\nfe80::1%lo0 zone\n203.0.113.3 b\u00fccher.example bad/name\r\n203.0.113.4"
    )
    assert {name: list(map(str, addresses)) for name, addresses in table.items()} == {
        "one.example": ["203.0.113.1", "2001:db8::1"],
        "one": ["203.0.113.1"],
        "xn--bcher-kva.example": ["203.0.113.3"],
    }


def test_an_unchanged_file_is_parsed_once(tmp_path: Path) -> None:
    """A lookup costs one stat(2), not a parse; same-size edits and replaced files are noticed."""
    path, parsed = tmp_path / "f", []
    reread = Reread(path, lambda text: parsed.append(text) or text)
    assert reread.get() == ""
    path.write_text("a")
    assert [reread.get(), reread.get()] == ["a", "a"]
    path.write_text("b")
    os.utime(path, ns=(1, 1))
    assert reread.get() == "b"
    assert parsed == ["", "a", "b"]


def test_nameservers_come_from_resolv_conf_and_follow_it(no_files: dict[str, Path]) -> None:
    """The file's servers are used, replaced when it changes, and the search list is only reported."""
    conf = no_files["resolv_conf"]
    conf.unlink()
    resolver = HostResolver(**no_files)
    assert resolver.search_list() == ()
    conf.write_text("nameserver 203.0.113.53\nsearch corp.example lab.example .\n")
    assert [each.answer_nameserver() for each in _servers(resolver)] == ["203.0.113.53"]
    assert resolver.search_list() == ("corp.example", "lab.example")
    conf.write_text("nameserver 203.0.113.54\nnameserver 2001:db8::53\n")
    assert [each.answer_nameserver() for each in _servers(resolver)] == ["203.0.113.54", "2001:db8::53"]
    assert resolver.search_list() == ()


def _servers(resolver: HostResolver) -> list[Any]:
    stub = resolver._stub.get()
    return stub._enrich_nameservers(stub._nameservers, stub.nameserver_ports, stub.port)


@pytest.mark.parametrize("text", [None, "", "nameserver nonsense\n", f"nameserver ::1\nsearch {'x' * 64}\n"])
def test_an_unusable_resolv_conf_is_an_upstream_error(text: str | None, run: Run, no_files: dict[str, Path]) -> None:
    """No guess is made about a nameserver that nobody configured."""
    if text is None:
        no_files["resolv_conf"].unlink()
    else:
        no_files["resolv_conf"].write_text(text)

    async def scenario() -> None:
        resolver = HostResolver(**no_files)
        with pytest.raises(UpstreamError):
            await resolver.lookup("a.test")
        assert resolver.search_list() == ()

    run(scenario())


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("203.0.113.77", False),
        ("2001:db8::77", False),
    ],
)
def test_loopback_is_own_and_documentation_addresses_are_not(text: str, own: bool) -> None:
    """Neither needs to be configured or routable."""
    assert is_own_address(ip_address(text)) is own


def test_the_route_to_an_own_address_starts_at_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address is ours if the kernel would answer from it, or if only we could bind it."""
    address, foreign = ip_address("203.0.113.5"), ip_address("203.0.113.6")
    monkeypatch.setattr(module, "_source_for", lambda _: address)
    monkeypatch.setattr(module, "_can_bind", lambda _: False)
    assert is_own_address(address)
    assert not is_own_address(foreign)
    # A further address of a subnet: its local route prefers the first one.
    monkeypatch.setattr(module, "_can_bind", lambda asked: asked == foreign)
    assert is_own_address(foreign)
    # net.ipv4.ip_nonlocal_bind: binding proves nothing.
    monkeypatch.setattr(module, "_can_bind", lambda _: True)
    assert not is_own_address(foreign)
    assert resolved(address).own


FRESH = """
import asyncio, pathlib, sys
import uvloop
from nameserver import UNHURRIED_RESOLV_CONF, Nameserver, unhurried
from nono_ebpf.dns.resolver import HostResolver, preload
from nono_ebpf.errors import UpstreamError

class NoImports:
    def find_spec(self, name, path=None, target=None):
        sys.exit(f"imported {name}")

async def main(directory):
    zone = {
        ("alias.test", "CNAME"): ["big.test."],
        ("big.test", "A"): ["203.0.113.1"],
        ("big.test", "AAAA"): ["2001:db8::1"],
        ("b\\u00fccher.test", "A"): ["203.0.113.2"],
    }
    async with Nameserver(zone, long={"alias.test"}) as upstream:
        await asyncio.gather(*(asyncio.open_connection("127.0.0.1", upstream.endpoint.port) for _ in "1"))
        conf = "nameserver 127.0.0.1\\nsearch corp.test\\n" + UNHURRIED_RESOLV_CONF
        (directory / "resolv.conf").write_text(conf)
        (directory / "hosts").write_bytes("203.0.113.9 b\\u00fccher.example\\n".encode())
        resolver = HostResolver(
            hosts=directory / "hosts",
            resolv_conf=directory / "resolv.conf",
            nameservers=[upstream.endpoint],
            limits=unhurried(),
        )
        sys.meta_path[:] = [NoImports()]
        assert len(await resolver.lookup("alias.test")) == 2
        assert len(await resolver.lookup("xn--bcher-kva.example")) == 1
        assert resolver.search_list() == ("corp.test",)
        try:
            await resolver.lookup("missing.test")
        except UpstreamError:
            print("done")

preload()
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main(pathlib.Path(sys.argv[1])))
"""


def test_after_preload_a_lookup_imports_nothing(tmp_path: Path) -> None:
    """The serving process cannot read its own installation: UDP, TCP, aliases, errors and IDNA all work."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("done\n", "", 0)
