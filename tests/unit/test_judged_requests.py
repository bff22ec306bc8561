"""Hosts whose requests are judged one by one, and hosts whose credential we would have to put in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from kit.hellos import client_hello
from kit.relaying import LIMITS, Peer, Relaying, Run, run, to_proxy

from nono_ebpf.audit.summary import Summary

__all__ = ["run"]

ACCESS_DENIED = bytes.fromhex("15030300020231")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
RULES: dict[str, tuple[str, ...]] = {"api.test": ("GET /v1/**", "POST /v1/chat", "* /any")}


def get(host: str, port: int, path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


async def head_of(peer: Peer) -> list[str]:
    return (await peer.receive_until(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]


Asking = Callable[[Relaying, str, str], Awaitable[tuple[Peer, bytes]]]


async def redirected(it: Relaying, method: str, path: str) -> tuple[Peer, bytes]:
    return await it.connect("api.test"), get("api.test", it.port, path, method)


async def by_absolute_form(it: Relaying, method: str, path: str) -> tuple[Peer, bytes]:
    return await it.connect_to_proxy(), to_proxy(f"{method} http://api.test:{it.port}{path}")


# What makes a host one that no tunnel leads to.
closed = pytest.mark.parametrize(
    "rules", [{"endpoints": RULES}, {"managed": {"api.test": "openai"}}], ids=["endpoints", "managed"]
)
both_ways = pytest.mark.parametrize("asking", [redirected, by_absolute_form], ids=["redirected", "absolute"])


@both_ways
@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("GET", "/v1/models", "/v1/models"),
        ("GET", "/v1/a/b?x=/../y", "/v1/a/b?x=/../y"),
        ("POST", "/v1/chat", "/v1/chat"),
        ("DELETE", "/any", "/any"),
        ("GET", "//v1//models", "/v1/models"),
        ("GET", "/v2/../v1/models", "/v1/models"),
        ("GET", "/v1/%2e%2e/v1/models", "/v1/models"),
        ("GET", "/v1/./%6dodels/", "/v1/models/"),
        ("GET", "/v1/m%c3%bcller", "/v1/m%C3%BCller"),
    ],
)
def test_a_permitted_request_is_sent_as_it_was_judged(
    run: Run, asking: Asking, method: str, path: str, sent: str
) -> None:
    """The path that arrives is the one that the rules were asked about, not another spelling of it."""

    async def script() -> None:
        async with Relaying(endpoints=RULES) as it:
            client, request = await asking(it, method, path)
            await client.send(request)
            server = await it.accept()
            assert await head_of(server) == [f"{method} {sent} HTTP/1.1", f"Host: api.test:{it.port}"]
            await server.send(OK)
            assert (await client.receive_until(b"ok")).startswith(b"HTTP/1.1 200 ")
            client.finish()
            (record,) = await it.ended()
            assert (record.decision, record.target, record.rule) == ("allow", "api.test", f"api.test:{it.port}")

    run(script())


@both_ways
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models"),
        ("GET", "/v2"),
        ("GET", "/v1/../v2"),
        ("GET", "/v1/%2e%2e/v2"),
        ("GET", "/v1/..%2fv2"),
        ("GET", "/v1/%252e%252e/v2"),
        ("GET", "/v1/..;/v2"),
        ("GET", "/v1/..\\v2"),
        ("GET", "/v1/%"),
        ("GET", "/v1/%00"),
        ("GET", "/"),
    ],
)
def test_another_request_is_refused(run: Run, asking: Asking, method: str, path: str) -> None:
    """What no rule is about, in any reading that a server may have of it, is a 403, and nobody is dialled for it."""

    async def script() -> None:
        async with Relaying(endpoints=RULES) as it:
            client, request = await asking(it, method, path)
            await client.send(request)
            answer = await client.receive_all()
            assert answer.startswith(b"HTTP/1.1 403 Forbidden: ")
            assert b'"error": "endpoint_policy"' in answer
            client.close()
            (record,) = await it.ended()
            assert (record.event, record.decision, record.denial_category) == ("request", "deny", "endpoint_policy")
            assert (record.status, record.path) == (403, path)
            assert it.lookups == []
            assert await it.nobody_called()

    run(script())


def test_a_client_may_connect_before_it_has_something_to_ask(run: Run) -> None:
    """Pools do: it is waited for as between two requests."""

    async def script() -> None:
        async with Relaying(endpoints=RULES, limits=replace(LIMITS, first_bytes_s=0.01)) as it:
            client = await it.connect("api.test")
            await asyncio.sleep(0.2)
            await client.send(get("api.test", it.port, "/v1/x"))
            server = await it.accept()
            assert (await head_of(server))[0] == "GET /v1/x HTTP/1.1"

    run(script())


def test_a_client_that_asks_for_nothing_is_not_blamed(run: Run) -> None:
    """It ends; nothing was denied, and no summary says so."""

    async def script() -> None:
        async with Relaying(endpoints=RULES) as it:
            client = await it.connect("api.test")
            client.finish()
            assert await client.receive_all() == b""
            (record,) = await it.ended()
            assert (record.denial_category, record.reason) == ("no_request", "the client said nothing")
            told = Summary()
            told.add(record)
            assert told.render() == []

    run(script())


def test_an_old_request_is_judged_for_the_known_host(run: Run) -> None:
    """HTTP/1.0 without Host, on an address that was given for the name."""

    async def script() -> None:
        async with Relaying(endpoints=RULES) as it:
            client = await it.connect("api.test")
            await client.send(b"GET /v1/x HTTP/1.0\r\n\r\n")
            server = await it.accept()
            assert await head_of(server) == ["GET /v1/x HTTP/1.1", f"Host: api.test:{it.port}"]
            other = await it.connect("api.test")
            await other.send(b"GET /admin HTTP/1.0\r\n\r\n")
            assert b'"error": "endpoint_policy"' in await other.receive_all()

    run(script())


def test_another_host_on_its_address_is_judged_for_both(run: Run) -> None:
    """A Host field with a permitted name takes no request past the rules of the host that the address was given for."""

    async def script() -> None:
        async with Relaying("other.test", endpoints=RULES) as it:
            client = await it.connect("api.test")
            await client.send(get("other.test", it.port, "/admin"))
            assert b'"error": "endpoint_policy", "host": "api.test"' in await client.receive_all()
            client.close()
            await it.ended()
            assert it.lookups == []
            assert await it.nobody_called()

    run(script())


def test_each_request_of_a_connection_is_judged(run: Run) -> None:
    """A permitted one takes no other one past."""

    async def script() -> None:
        async with Relaying(endpoints=RULES) as it:
            client = await it.connect("api.test")
            await client.send(get("api.test", it.port, "/v1/1") + get("api.test", it.port, "/admin"))
            server = await it.accept()
            await head_of(server)
            await server.send(OK)
            await client.receive_until(b"ok")
            assert (await client.receive_all()).startswith(b"HTTP/1.1 403 ")
            assert await server.receive_all() == b""
            client.close()
            assert [record.decision for record in await it.ended()] == ["allow", "deny"]

    run(script())


REDIRECTED = [(client_hello("api.test"), ACCESS_DENIED), (client_hello("other.test"), ACCESS_DENIED), (b"\0raw", None)]


@pytest.mark.parametrize(("first", "answer"), REDIRECTED, ids=["tls", "other name", "opaque"])
@closed
def test_no_redirected_tunnel(run: Run, rules: dict[str, Any], first: bytes, answer: bytes | None) -> None:
    """TLS, and what is neither TLS nor HTTP, is refused in its own language before anybody is dialled."""

    async def script() -> None:
        async with Relaying("other.test", **rules) as it:
            client = await it.connect("api.test")
            await client.send(first)
            if answer is None:
                with pytest.raises(ConnectionResetError):
                    await client.receive_all()
            else:
                assert await client.receive(7) == answer
                client.finish()
            (record,) = await it.ended()
            assert (record.event, record.decision) == ("flow", "deny")
            named = "other.test" if first == client_hello("other.test") else "api.test"
            assert (record.denial_category, record.target) == ("connect_bypasses_l7", named)
            assert it.lookups == []
            assert await it.nobody_called()

    run(script())


@closed
@pytest.mark.parametrize("to", ["other.test", "203.0.113.9"])
def test_no_way_by_server_name(run: Run, rules: dict[str, Any], to: str) -> None:
    """TLS that names such a host, behind another's address or an unknown one, is refused."""

    async def script() -> None:
        async with Relaying("other.test", **rules) as it:
            client = await it.connect(to)
            await client.send(client_hello("api.test"))
            assert await client.receive(7) == ACCESS_DENIED
            client.finish()
            (record,) = await it.ended()
            assert (record.denial_category, record.target) == ("connect_bypasses_l7", "api.test")
            assert "api.test" not in it.lookups

    run(script())


def test_a_request_by_host_field_is_judged(run: Run) -> None:
    """One that names the host behind another's address is judged by the path as well."""

    async def script() -> None:
        async with Relaying("other.test", endpoints=RULES) as it:
            for to in ("other.test", "203.0.113.9"):
                client = await it.connect(to)
                await client.send(get("api.test", it.port, "/admin"))
                assert b'"error": "endpoint_policy"' in await client.receive_all()
                client.close()
            assert {record.denial_category for record in await it.ended()} == {"endpoint_policy"}

    run(script())


SPELLINGS = [
    "api.test:{port}", "API.test:{port}", "api.test.:{port}", "API.TEST.:{port}", "198.18.0.2:{port}",
    "[::ffff:198.18.0.2]:{port}", "[::ffff:c612:2]:{port}",
]  # fmt: skip


@pytest.mark.parametrize("target", SPELLINGS)
@closed
def test_no_tunnel_in_any_spelling(run: Run, rules: dict[str, Any], target: str) -> None:
    """CONNECT is a 403 however the host is written, also as the address that it was given."""

    async def script() -> None:
        async with Relaying(**rules) as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT {target.format(port=it.port)}"))
            answer = await client.receive_all()
            assert answer.startswith(b"HTTP/1.1 403 Forbidden: ")
            assert b'"error": "connect_bypasses_l7", "host": "api.test"' in answer
            client.close()
            (record,) = await it.ended()
            assert (record.decision, record.denial_category) == ("deny", "connect_bypasses_l7")
            assert it.lookups == []

    run(script())


@pytest.mark.parametrize("rule", ["xn--mnchen-3ya.test", pytest.param("[::1]", id="C6")])
def test_no_tunnel_to_other_kinds_of_hosts(run: Run, rule: str) -> None:
    """Internationalised names and addresses have one form on both sides."""
    spellings = {"[::1]": ["[::1]", "[0:0:0:0:0:0:0:1]"], "xn--mnchen-3ya.test": ["XN--MNCHEN-3YA.TEST."]}

    async def script() -> None:
        async with Relaying(managed={rule.strip("[]"): "service"}, allow=(f"{rule}:{{port}}",)) as it:
            for spelling in spellings[rule]:
                client = await it.connect_to_proxy()
                await client.send(to_proxy(f"CONNECT {spelling}:{it.port}"))
                assert b'"error": "connect_bypasses_l7"' in await client.receive_all()
                client.close()

    run(script())


def test_a_host_without_a_port_is_judged_for_that_of_https(run: Run) -> None:
    """CONNECT without a port is no way around rules for port 443."""

    async def script() -> None:
        async with Relaying(allow=("b.test:443",), deny=("a.test:443",)) as it:
            it.host("b.test")
            for target, port in (("a.test", 443), ("b.test:444", 444)):
                client = await it.connect_to_proxy()
                await client.send(to_proxy(f"CONNECT {target}"))
                assert f'"port": {port}'.encode() in await client.receive_all()
                client.close()

    run(script())


@both_ways
def test_requests_for_want_of_a_credential(run: Run, asking: Asking) -> None:
    """A request to a host whose credential we do not have is a 503, and not sent without it."""

    async def script() -> None:
        async with Relaying(managed={"api.test": "openai"}, allow=("api.test:{port}",)) as it:
            client, request = await asking(it, "GET", "/v1")
            await client.send(request)
            answer = await client.receive_all()
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b'"error": "managed_credential_unavailable"' in answer
            client.close()
            (record,) = await it.ended()
            assert (record.decision, record.denial_category) == ("deny", "managed_credential_unavailable")
            assert it.lookups == []
            assert await it.nobody_called()

    run(script())


def test_a_websocket_is_a_request(run: Run) -> None:
    """Its handshake is judged like any other; what follows travels unread."""

    async def script() -> None:
        async with Relaying(endpoints={"api.test": ("GET /ws",)}) as it:
            fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            client = await it.connect("api.test")
            await client.send(
                f"GET /x/../ws HTTP/1.1\r\nHost: api.test:{it.port}\r\n{fields}\r\n\x81frame".encode("latin-1")
            )
            server = await it.accept()
            assert (await head_of(server))[0] == "GET /ws HTTP/1.1"
            await server.send(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            )
            await head_of(client)
            assert await server.receive(6) == b"\x81frame"
            client.close()
            other = await it.connect("api.test")
            await other.send(f"GET /ws2 HTTP/1.1\r\nHost: api.test:{it.port}\r\n{fields}\r\n".encode())
            assert (await other.receive_all()).startswith(b"HTTP/1.1 403 ")

    run(script())
