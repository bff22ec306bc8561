"""SOCKS5 clients, as scripts between a client and a server that both are the test's."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from kit.expect import require
from kit.hellos import client_hello
from kit.proxies import free_port
from kit.relaying import LIMITS, LOOPBACK, SCRIPT_S, TOKEN, Peer, Relaying, Run, run

from nono_ebpf.errors import UpstreamError

if TYPE_CHECKING:
    from nono_ebpf.model import ResolvedAddress

__all__ = ["run"]

ACCESS_DENIED = bytes.fromhex("15030300020231")
HELLO = client_hello("a.test")
GREETING = b"\x05\x01\x02"
GREETED = b"\x05\x02"
WELCOME = b"\x01\x00"
SUCCEEDED = b"\x05\x00\x00\x01\0\0\0\0\0\0"


def login(password: str = TOKEN, user: str = "nono") -> bytes:
    return b"\x01" + bytes((len(user),)) + user.encode() + bytes((len(password),)) + password.encode()


def request(host: str, port: int, command: int = 1) -> bytes:
    return bytes((5, command, 0, 3, len(host))) + host.encode() + port.to_bytes(2, "big")


def to_address(host: str, port: int) -> bytes:
    address = ip_address(host)
    return bytes((5, 1, 0, 4 if address.version == 6 else 1)) + address.packed + port.to_bytes(2, "big")


def refused(reply: int) -> bytes:
    return bytes((5, reply, 0, 1)) + bytes(6)


async def logged_in(it: Relaying) -> Peer:
    """A client whose password was taken."""
    client = await it.connect_to_proxy()
    await client.send(GREETING)
    assert await client.receive(2) == GREETED
    await client.send(login())
    assert await client.receive(2) == WELCOME
    return client


def test_a_tunnel(run: Run) -> None:
    """Step by step, as clients do it; then bytes pass both ways, and each end is passed on."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await logged_in(it)
            await client.send(request("A.test.", it.port))
            server = await it.accept()
            assert await client.receive(10) == SUCCEEDED
            await client.send(b"\0question")
            assert await server.receive(9) == b"\0question"
            client.finish()
            assert await server.receive_all() == b""
            await server.send(b"answer")
            server.finish()
            assert await client.receive_all() == b"answer"
            (record,) = await it.ended()
            assert (record.event, record.mode, record.decision) == ("flow", "socks5", "allow")
            assert (record.target, record.port, record.identity) == ("a.test", it.port, "authority")
            assert (record.auth_mechanism, record.auth_outcome) == ("username_password", "succeeded")
            assert (record.method, record.status, record.reason) == (None, None, None)
            assert (record.pid, record.bytes_sent) == (4242, 9)
            assert TOKEN not in str(record)

    run(script())


@pytest.mark.parametrize("cuts", [[], [1], [2, 5], [3, 4, 9], [74, 80], list(range(1, 95)), [-1]], ids=str)
def test_all_at_once_or_in_pieces(run: Run, cuts: list[int]) -> None:
    """A client that does not wait for the answers is served all the same, and what it sends behind is kept, once."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            sent = GREETING + login() + request("a.test", it.port) + HELLO
            for start, end in zip([0, *cuts], [*cuts, None], strict=True):
                await client.send(sent[start:end])
                await asyncio.sleep(0)
            server = await it.accept()
            assert await client.receive(14) == GREETED + WELCOME + SUCCEEDED
            assert await server.receive(len(HELLO)) == HELLO
            client.finish()
            assert await server.receive_all() == b""
            server.finish()
            assert await client.receive_all() == b""

    run(script())


def test_a_server_that_speaks_first(run: Run) -> None:
    """Its greeting arrives behind the reply."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await logged_in(it)
            await client.send(request("a.test", it.port))
            server = await it.accept()
            await server.send(b"220 ready\r\n")
            assert await client.receive(21) == SUCCEEDED + b"220 ready\r\n"

    run(script())


def test_the_user_does_not_matter(run: Run) -> None:
    """Whoever it is, also nobody."""

    async def script() -> None:
        async with Relaying() as it:
            for user in ("", "a" * 255, "nono:nono"):
                client = await it.connect_to_proxy()
                await client.send(GREETING + login(user=user))
                assert await client.receive(4) == GREETED + WELCOME
                client.close()

    run(script())


@pytest.mark.parametrize("greeting", [b"\x05\x01\x00", b"\x05\x00", b"\x05\x02\x00\x01", b"\x05\x01\xff"])
def test_no_way_without_a_password(run: Run, greeting: bytes) -> None:
    """A client that offers anything but a password has no method in common with us, and no tunnel."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(greeting + request("a.test", it.port))
            client.finish()
            assert await client.receive_all() == b"\x05\xff"
            (record,) = await it.ended()
            assert (record.mode, record.decision, record.denial_category) == ("socks5", "deny", "authentication_failed")
            assert (record.auth_mechanism, record.auth_outcome) == ("username_password", "failed")
            assert it.lookups == []
            assert await it.nobody_called()

    run(script())


@pytest.mark.parametrize("password", ["", "0" * 64, TOKEN[:-1], TOKEN + "0", TOKEN.upper(), f"nono:{TOKEN}"])
def test_a_wrong_password(run: Run, password: str) -> None:
    """Is told so, and is the end: a request behind it is never looked at."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(GREETING + login(password) + request("a.test", it.port))
            client.finish()
            assert await client.receive_all() == GREETED + b"\x01\x01"
            (record,) = await it.ended()
            assert (record.decision, record.denial_category) == ("deny", "authentication_failed")
            assert (record.auth_outcome, record.target) == ("failed", None)
            assert not password or password not in str(record)
            assert it.lookups == []
            assert await it.nobody_called()

    run(script())


@pytest.mark.parametrize(
    ("wanted", "reply"),
    [
        (request("a.test", 443, command=2), 7),
        (request("a.test", 443, command=3), 7),
        (b"\x05\x01\x00\x02", 8),
        (b"\x05\x01\x01\x01", 1),
        (b"\x04\x01", 1),
        (request("a.test", 0), 1),
        (request("evil.test\0.a.test", 443), 1),
        (request("[::1]", 443), 1),
        (request("a.test:443", 443), 1),
        (request("", 443), 1),
        (request("2130706433", 443), 1),
    ],
)
def test_what_is_not_served(run: Run, wanted: bytes, reply: int) -> None:
    """Other commands, other kinds of addresses and hosts that are none get the reply for that."""

    async def script() -> None:
        async with Relaying("a.test", allow=("*",)) as it:
            client = await logged_in(it)
            await client.send(wanted)
            client.finish()
            assert await client.receive_all() == refused(reply)
            (record,) = await it.ended()
            assert (record.decision, record.denial_category) == ("deny", "protocol")
            assert record.auth_outcome == "succeeded"
            assert it.lookups == []

    run(script())


def test_a_denied_host(run: Run) -> None:
    """Is "not allowed by ruleset", by name and by address, and is not looked up."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            for wanted in (request("b.test", 443), to_address("203.0.113.9", 443), to_address("::1", 22)):
                client = await logged_in(it)
                await client.send(wanted)
                client.finish()
                assert await client.receive_all() == refused(2)
                records = await it.ended()  # one after the other, so that their records are in order
            assert [record.target for record in records] == ["b.test", "203.0.113.9", "::1"]
            assert {(record.decision, record.denial_category) for record in records} == {("deny", "host_denied")}
            assert records[0].remedy == "--allow-domain b.test"
            assert it.lookups == []

    run(script())


def test_an_address_that_was_given_for_a_name(run: Run) -> None:
    """A client that resolved the name itself is judged by the name."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await logged_in(it)
            await client.send(to_address("198.18.0.2", it.port))
            server = await it.accept()
            assert await client.receive(10) == SUCCEEDED
            client.close()
            server.close()
            (record,) = await it.ended()
            assert (record.target, record.identity, record.decision) == ("a.test", "authority", "allow")

    run(script())


@pytest.mark.parametrize("rules", [{"endpoints": {"a.test": ("GET /**",)}}, {"managed": {"a.test": "openai"}}])
def test_a_host_whose_requests_are_judged(run: Run, rules: dict[str, Any]) -> None:
    """Has no tunnel."""

    async def script() -> None:
        async with Relaying(**rules) as it:
            client = await logged_in(it)
            await client.send(request("a.test", it.port))
            client.finish()
            assert await client.receive_all() == refused(2)
            (record,) = await it.ended()
            assert record.denial_category == "connect_bypasses_l7"
            assert await it.nobody_called()

    run(script())


def test_a_dead_host(run: Run) -> None:
    """Refused connections and names without an address are told apart from denials."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.upstream.close()
            client = await logged_in(it)
            await client.send(request("a.test", it.port))
            client.finish()
            assert await client.receive_all() == refused(5)
            await it.ended()
            del it.hosts["a.test"]
            client = await logged_in(it)
            await client.send(request("a.test", it.port))
            client.finish()
            assert await client.receive_all() == refused(4)
            assert [record.decision for record in await it.ended()] == ["allow", "deny"]

    run(script())


def test_a_slow_resolver(run: Run) -> None:
    """Is a time-out."""

    async def script() -> None:
        async with Relaying("a.test", limits=replace(LIMITS, resolve_s=0.05)) as it:

            async def never(host: str) -> tuple[ResolvedAddress, ...]:
                await asyncio.Event().wait()
                raise UpstreamError("resolve", host, "woken")

            it.lookup = never  # type: ignore[method-assign]  # the fault
            client = await logged_in(it)
            await client.send(request("a.test", it.port))
            client.finish()
            assert await client.receive_all() == refused(6)

    run(script())


def test_server_name_in_a_tunnel_is_judged(run: Run) -> None:
    """As in any other."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await logged_in(it)
            await client.send(request("a.test", it.port))
            assert await client.receive(10) == SUCCEEDED
            await client.send(client_hello("b.test"))
            assert await client.receive(7) == ACCESS_DENIED
            client.finish()
            (record,) = await it.ended()
            assert (record.mode, record.decision, record.target) == ("socks5", "deny", "b.test")

    run(script())


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"\x05\xff\x02", b"\x05\xff"),
        (GREETING + b"\x01\xff", GREETED + b"\x01\x01"),
        (GREETING + b"\x00", GREETED + b"\x01\x01"),
        (GREETING + login() + b"\x05\x01", GREETED + WELCOME + refused(1)),
    ],
)
@pytest.mark.parametrize("how", ["ends", "stalls"])
def test_half_a_handshake(run: Run, how: str, sent: bytes, answer: bytes) -> None:
    """A client that stops in the middle, by its end or by silence, is answered for where it stopped, and let go."""

    async def script() -> None:
        limits = LIMITS if how == "ends" else replace(LIMITS, sniff_s=0.25)
        async with Relaying("a.test", limits=limits) as it:
            client = await it.connect_to_proxy()
            await client.send(sent)
            if how == "ends":
                client.finish()
            assert await client.receive_all() == answer
            client.close()
            (record,) = await it.ended()
            assert (record.decision, record.denial_category) == ("deny", "protocol")
            assert TOKEN not in str(record)

    run(script())


def test_socks4_is_no_socks5(run: Run) -> None:
    """It has no password, and no answer that we know."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(b"\x04\x01\x01\xbb" + LOOPBACK.packed + b"nono\0\r\n\r\n")
            assert (await client.receive_all()).startswith(b"HTTP/1.1 400 ")
            assert await it.nobody_called()

    run(script())


def test_curl(run: Run) -> None:
    """A client that nobody wrote for us gets through, with the name left to the proxy and without."""
    curl = require("curl")

    async def script() -> None:
        async with Relaying("a.test") as it:
            for scheme in ("socks5h", "socks5"):
                local = free_port()
                it.expect_proxy_client(local)
                client = await asyncio.create_subprocess_exec(
                    *(curl, "-sS", "--max-time", str(SCRIPT_S), "--noproxy", "", "--local-port", str(local)),
                    *("--resolve", f"a.test:{it.port}:198.18.0.2"),
                    *("-x", f"{scheme}://nono:{TOKEN}@127.0.0.1:{it.own.port}", f"http://a.test:{it.port}/"),
                    stdout=asyncio.subprocess.PIPE,
                )
                server = await it.accept()
                await server.receive_until(b"\r\n\r\n")
                await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                out, _ = await client.communicate()
                assert (out, client.returncode) == (b"ok", 0)

    run(script())
