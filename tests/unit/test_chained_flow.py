"""Flows that go through an upstream proxy, as scripts between a client and a proxy that both are the test's."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

import pytest
from kit.hellos import client_hello
from kit.relaying import Peer, Run, run
from kit.upstream_proxies import NAME, OPENED, PATIENT, Chained, unheard

from nono_ebpf.model import ResolvedAddress
from nono_ebpf.relay.chain import ProxyAccess

__all__ = ["run"]

INTERNAL_ERROR = bytes.fromhex("15030300020250")
HELLO = client_hello("a.test")
REFUSED = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n"


def get(host: str, path: str = "/") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


async def refusal(client: Peer) -> tuple[int, str]:
    """Status and reason of the answer that ends a client's connection."""
    head = await client.receive_until(b"\r\n\r\n")
    body = await client.receive_until(b"}\n")
    client.finish()
    assert await client.receive_all() == b""
    return int(head.split()[1]), json.loads(body)["reason"]


def test_a_tunnel_through_the_proxy(run: Run) -> None:
    """The proxy is asked for the name, which is not looked up here; then bytes pass both ways, and the ends as well."""

    async def script() -> None:
        async with Chained("a.test") as it:
            client = await it.connect("a.test")
            proxy = await it.opened(f"a.test:{it.port}")
            await client.send(b"\0question")
            assert await proxy.receive(9) == b"\0question"
            await proxy.send(b"answer")
            assert await client.receive(6) == b"answer"
            client.finish()
            assert await proxy.receive_all() == b""
            proxy.finish()
            assert await client.receive_all() == b""
            (record,) = await it.ended()
            assert (record.decision, record.target, record.port) == ("allow", "a.test", it.port)
            assert record.resolved_address == f"127.0.0.1:{it.proxy_port}"
            assert (record.bytes_sent, record.bytes_received, record.reason) == (9, 6, None)
            assert it.lookups == [NAME]
            assert await it.nobody_called()

    run(script())


def test_the_record_names_the_proxy(run: Run) -> None:
    """Of a flow and of a request, and of nothing that went directly."""

    async def script() -> None:
        async with Chained("a.test", "b.test", bypass=("b.test",)) as it:
            client = await it.connect("a.test")
            proxy = await it.opened(f"a.test:{it.port}")
            await proxy.send(b"220\r\n")
            assert await client.receive(5) == b"220\r\n"
            proxy.reset()
            client = await it.connect("a.test")
            proxy = await it.opened(f"a.test:{it.port}")
            await client.send(get(f"a.test:{it.port}"))
            await proxy.receive_until(b"\r\n\r\n")
            await proxy.send(b"HTTP/1.1 204 x\r\nConnection: close\r\n\r\n")
            await client.receive_until(b"\r\n\r\n")
            client.close()
            direct = await it.connect("b.test")
            (await it.accept()).reset()
            direct.reset()
            assert Counter((each.event, each.upstream_proxy) for each in await it.ended()) == Counter(
                [("flow", str(it.via)), ("request", str(it.via)), ("flow", None)]
            )

    run(script())


def test_a_server_that_speaks_first(run: Run) -> None:
    """Its greeting may come in one segment with the proxy's answer."""

    async def script() -> None:
        async with Chained("a.test") as it:
            client = await it.connect("a.test")
            proxy = await it.asked_for(f"a.test:{it.port}")
            await proxy.send(OPENED + b"220 ready\r\n")
            assert await client.receive(11) == b"220 ready\r\n"
            await client.send(b"EHLO\r\n")
            assert await proxy.receive(6) == b"EHLO\r\n"
            client.finish()
            proxy.finish()
            assert await client.receive_all() == b""
            (record,) = await it.ended()
            assert record.sniff == "skipped: server spoke first"

    run(script())


def test_another_server_name_is_asked_for_anew(run: Run) -> None:
    """A TLS client is taken to the name it asks for, in a tunnel of its own."""

    async def script() -> None:
        async with Chained("a.test", "b.test") as it:
            client = await it.connect("b.test")
            first = await it.opened(f"b.test:{it.port}")
            await client.send(HELLO)
            second = await it.opened(f"a.test:{it.port}")
            assert await second.receive(len(HELLO)) == HELLO
            assert await first.receive_all() == b""
            client.reset()

    run(script())


def test_requests_of_one_connection(run: Run) -> None:
    """Those to one authority share a tunnel, in which they are in origin-form; another authority has another."""

    async def script() -> None:
        async with Chained("a.test", "b.test") as it:
            client = await it.connect("a.test")
            proxy = await it.opened(f"a.test:{it.port}")
            for path in ("/1", "/2"):
                await client.send(get(f"a.test:{it.port}", path))
                assert (await proxy.receive_until(b"\r\n\r\n")).startswith(f"GET {path} HTTP/1.1\r\n".encode())
                await proxy.send(b"HTTP/1.1 204 No Content\r\n\r\n")
                assert (await client.receive_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
            await client.send(get(f"b.test:{it.port}"))
            other = await it.opened(f"b.test:{it.port}")
            assert await proxy.receive_all() == b""
            assert (await other.receive_until(b"\r\n\r\n")).startswith(b"GET / HTTP/1.1\r\n")
            await other.send(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            await client.receive_until(b"\r\n\r\n")
            client.close()
            assert [record.target for record in await it.ended()] == ["a.test", "a.test", "b.test"]
            assert set(it.lookups) == {NAME}
            assert await it.nobody_called()

    run(script())


@pytest.mark.parametrize("first", ["HTTP", "TLS", "opaque"])
def test_the_proxys_refusal_is_passed_on(run: Run, first: str) -> None:
    """In the client's own language, with what the proxy said on record; nobody is dialled instead."""

    async def script() -> None:
        async with Chained("a.test") as it:
            client = await it.connect("a.test")
            proxy = await it.asked_for(f"a.test:{it.port}")
            await proxy.send(REFUSED)
            said = (
                f"connect a.test:{it.port}: the upstream proxy {it.via} answered 403 Forbidden: proxies often permit "
            )
            match first:
                case "HTTP":
                    await client.send(get(f"a.test:{it.port}"))
                    status, reason = await refusal(client)
                    assert (status, reason.startswith(said)) == (502, True)
                case "TLS":
                    await client.send(HELLO)
                    assert await client.receive(7) == INTERNAL_ERROR
                    client.close()
                case _:
                    await client.send(b"\0\0opaque")
                    with pytest.raises(ConnectionResetError):
                        await client.receive_all()
            (record,) = await it.ended()
            assert record.decision == "allow"
            assert (record.reason or "").startswith(said)
            assert await it.nobody_called()

    run(script())


def test_credentials_are_nowhere_but_there(run: Run) -> None:
    """The proxy has them; neither the client nor the record has, even when the proxy repeats them."""

    async def script() -> None:
        access = ProxyAccess(b"Basic YWxpY2U6czNjcjN0")
        async with Chained("a.test", access=access) as it:
            client = await it.connect("a.test")
            await client.send(get(f"a.test:{it.port}"))
            proxy, request = await it.asked()
            assert b"\r\nProxy-Authorization: Basic YWxpY2U6czNjcjN0\r\n" in request
            await proxy.send(b"HTTP/1.1 407 YWxpY2U6czNjcjN0 s3cr3t\r\n\r\n")
            status, reason = await refusal(client)
            assert (status, reason.endswith(" does not take the credentials of --upstream-auth")) == (502, True)
            (record,) = await it.ended()
            for text in (reason, repr(record), repr(it.relay._context)):
                assert "YWxp" not in text
                assert "s3cr3t" not in text

    run(script())


def test_a_proxy_that_is_down(run: Run) -> None:
    """Is a 502 with its name, never a connection without it."""

    async def script(port: int) -> None:
        async with Chained("a.test", proxy_port=port) as it:
            client = await it.connect("a.test")
            await client.send(get(f"a.test:{it.port}"))
            problem = f"connect a.test:{it.port}: the upstream proxy {it.via} failed: Connection refused"
            assert await refusal(client) == (502, problem)
            (record,) = await it.ended()
            assert record.reason == problem
            assert await it.nobody_called()

    with unheard() as down:
        run(script(down.getsockname()[1]))


def test_a_proxy_that_is_silent(run: Run) -> None:
    """Is a 504."""

    async def script() -> None:
        async with Chained("a.test", limits=replace(PATIENT, upstream_proxy_s=0.5)) as it:
            client = await it.connect("a.test")
            await client.send(get(f"a.test:{it.port}"))
            status, reason = await refusal(client)
            assert (status, reason.endswith("opened no tunnel within 0.5 s")) == (504, True)
            assert not await it.proxy_was_left_alone()
            assert await it.nobody_called()

    run(script())


def test_a_proxy_without_an_address(run: Run) -> None:
    """Is a 502 too."""

    async def script() -> None:
        async with Chained("a.test") as it:
            it.hosts[NAME] = ()
            client = await it.connect("a.test")
            await client.send(get(f"a.test:{it.port}"))
            status, reason = await refusal(client)
            assert (status, reason.endswith(f"the upstream proxy {it.via} has no address")) == (502, True)
            assert await it.nobody_called()

    run(script())


@pytest.mark.parametrize(
    "host", ["b.test", "169.254.169.254", "metadata.google.internal", "::ffff:169.254.169.254", "100.100.100.200"]
)
def test_denials_come_first(run: Run, host: str) -> None:
    """What no rule allows, or no rule can, is refused before the proxy hears of it."""

    async def script() -> None:
        async with Chained("a.test", allow=("169.254.169.254:{port}", "100.100.100.200:{port}")) as it:
            client = await it.connect("a.test")
            proxy = await it.opened(f"a.test:{it.port}")
            await client.send(get(f"a.test:{it.port}"))
            await proxy.receive_until(b"\r\n\r\n")
            await proxy.send(b"HTTP/1.1 204 x\r\n\r\n")
            await client.receive_until(b"\r\n\r\n")
            shown = f"[{host}]" if ":" in host else host
            await client.send(get(f"{shown}:{it.port}"))
            status, _ = await refusal(client)
            assert status == 403
            assert (await it.ended())[-1].decision == "deny"
            assert await it.proxy_was_left_alone()
            assert await it.nobody_called()

    run(script())


def test_no_proxy_at_a_metadata_service(run: Run) -> None:
    """A proxy's name that leads there is not dialled."""

    async def script() -> None:
        async with Chained("a.test") as it:
            it.hosts[NAME] = (ResolvedAddress(ip_address("169.254.169.254")),)
            client = await it.connect("a.test")
            await client.send(get(f"a.test:{it.port}"))
            status, reason = await refusal(client)
            assert status == 403
            assert "169.254.169.254" in reason
            assert await it.nobody_called()

    run(script())


@pytest.mark.parametrize("bypass", ["a.test", "*.test", "*"])
def test_bypassed_hosts_are_dialled(run: Run, bypass: str) -> None:
    """Directly, looked up here, with the proxy none the wiser."""

    async def script() -> None:
        async with Chained("a.test", bypass=(bypass,)) as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await server.send(b"direct")
            assert await client.receive(6) == b"direct"
            client.reset()
            (record,) = await it.ended()
            assert record.resolved_address == f"127.0.0.1:{it.port}"
            assert it.lookups == ["a.test"]
            assert await it.proxy_was_left_alone()

    run(script())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_this_machine_is_never_reached_through_the_proxy(run: Run, host: str) -> None:
    """Loopback means this machine's, not the proxy's."""

    async def script() -> None:
        async with Chained(allow=(f"{host}:{{port}}",)) as it:
            it.hosts[host] = (ResolvedAddress(ip_address("127.0.0.1"), own=True, pinned=True),)
            it.given[ip_address("198.18.1.1")] = host
            client = await it.connect(host)
            await (await it.accept()).send(b"direct")
            assert await client.receive(6) == b"direct"
            client.reset()
            assert await it.proxy_was_left_alone()

    run(script())


def test_a_reset_of_the_tunnel_is_passed_on(run: Run) -> None:
    """A tunnel that breaks does not look whole."""

    async def script() -> None:
        async with Chained("a.test") as it:
            client = await it.connect("a.test")
            proxy = await it.opened(f"a.test:{it.port}")
            await client.send(b"\0half")
            assert await proxy.receive(5) == b"\0half"
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                await client.receive_all()
            (record,) = await it.ended()
            assert record.reason == "Connection reset by peer"

    run(script())


def test_we_are_no_upstream_proxy_of_our_own(run: Run) -> None:
    """A connection of ours to our own listener has no kernel record, so it ends there and nothing goes in a circle."""

    async def script() -> None:
        async with Chained("a.test") as it:
            own = replace(it.via, port=it.own.port)
            it.relay._context = replace(it.relay._context, policy=replace(it.policy, upstream_proxy=own))
            client = await it.connect("a.test")
            await client.send(get(f"a.test:{it.port}"))
            status, reason = await refusal(client)
            assert (status, reason.startswith(f"connect a.test:{it.port}: the upstream proxy {own} ")) == (502, True)
            assert [record.denial_category for record in await it.ended()].count("no_origin") == 1
            assert await it.nobody_called()

    run(script())
