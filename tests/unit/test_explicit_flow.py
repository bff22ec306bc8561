"""HTTP clients that know of the proxy, as scripts between a client and a server that both are the test's."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from kit.hellos import client_hello
from kit.relaying import AUTHORIZED, LIMITS, TOKEN, Peer, Relaying, Run, run, to_proxy

if TYPE_CHECKING:
    from nono_ebpf.audit.record import Record

__all__ = ["run"]

ACCESS_DENIED = bytes.fromhex("15030300020231")
HELLO = client_hello("a.test")
ESTABLISHED = b"HTTP/1.1 200 Connection Established\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BEARER = f"Proxy-Authorization: Bearer {TOKEN}\r\n"
IN_OWN_FIELD = f"X-Nono-Token: {TOKEN}\r\n"
WRONG = f"Proxy-Authorization: Basic {base64.b64encode(b'nono:' + b'0' * 64).decode()}\r\n"


@dataclass(frozen=True)
class Answer:
    """A response of the proxy's own."""

    status: int
    lines: list[str]
    body: dict[str, Any]

    @property
    def closes(self) -> bool:
        return "Connection: close" in self.lines


async def answer_to(client: Peer) -> Answer:
    """The next answer, and not a byte more."""
    lines = (await client.receive_until(b"\r\n\r\n")).decode("ascii").split("\r\n")
    (size,) = (int(line.removeprefix("Content-Length: ")) for line in lines if line.startswith("Content-Length: "))
    body = json.loads(await client.receive(size))
    return Answer(int(lines[0].split(" ")[1]), lines, body)


async def head_of(peer: Peer) -> list[str]:
    return (await peer.receive_until(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]


def assert_secret(records: list[Record], *answers: object) -> None:
    """Nothing that was said or written down has the token, in any form."""
    said = f"{records} {answers}"
    assert TOKEN not in said
    assert AUTHORIZED.split()[-1] not in said


# ---------------------------------------------------------------- tunnels


def test_connect_tunnel(run: Run) -> None:
    """CONNECT to a permitted authority is a tunnel; bytes sent behind its head are kept."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT A.test:{it.port}") + HELLO)
            server = await it.accept()
            assert await client.receive_until(b"\r\n\r\n") == ESTABLISHED
            assert await server.receive(len(HELLO)) == HELLO
            await server.send(b"reply")
            assert await client.receive(5) == b"reply"
            client.finish()
            server.finish()
            assert await client.receive_all() == b""
            (record,) = await it.ended()
            assert (record.event, record.mode, record.decision) == ("flow", "connect", "allow")
            assert (record.target, record.identity, record.status) == ("a.test", "authority", 200)
            assert (record.method, record.sniff, record.reason) == ("CONNECT", "tls", None)
            assert (record.auth_mechanism, record.auth_outcome) == ("proxy_authorization", "succeeded")
            assert_secret([record])

    run(script())


@pytest.mark.parametrize("cut", [1, 7, 60, -len(HELLO) - 1, -len(HELLO), 3 - len(HELLO), -1])
def test_bytes_around_connect_are_kept_however_they_are_cut(run: Run, cut: int) -> None:
    """The server gets the whole ClientHello, once, wherever the segments of head and hello end."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            sent = to_proxy(f"CONNECT a.test:{it.port}") + HELLO
            await client.send(sent[:cut])
            await asyncio.sleep(0)
            await client.send(sent[cut:])
            server = await it.accept()
            assert await client.receive_until(b"\r\n\r\n") == ESTABLISHED
            assert await server.receive(len(HELLO)) == HELLO
            await server.send(b"reply")
            assert await client.receive(5) == b"reply"

    run(script())


@pytest.mark.parametrize("first", ["client", "server"])
def test_half_close_passes_through_a_tunnel(run: Run, first: str) -> None:
    """The end of one direction arrives as such, and the other goes on."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT a.test:{it.port}") + b"\0begin")
            server = await it.accept()
            await client.receive_until(b"\r\n\r\n")
            assert await server.receive(6) == b"\0begin"
            ending, other = (client, server) if first == "client" else (server, client)
            ending.finish()
            assert await other.receive_all() == b""
            await other.send(b"still here")
            assert await ending.receive(10) == b"still here"
            other.finish()
            assert await ending.receive_all() == b""
            (record,) = await it.ended()
            assert record.reason is None

    run(script())


def test_an_end_right_behind_connect_is_passed_on(run: Run) -> None:
    """A client that sends all it has with its CONNECT, and its end, gets the whole reply."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT a.test:{it.port}") + b"\0all of it")
            client.finish()
            server = await it.accept()
            assert await server.receive_all() == b"\0all of it"
            await server.send(b"reply")
            server.finish()
            assert await client.receive_all() == ESTABLISHED + b"reply"

    run(script())


def test_a_reset_passes_through_a_tunnel(run: Run) -> None:
    """An abort arrives as an abort: truncated data must not look complete."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT a.test:{it.port}") + b"\0")
            server = await it.accept()
            await client.receive_until(b"\r\n\r\n")
            assert await server.receive(1) == b"\0"
            server.reset()
            with pytest.raises(ConnectionResetError):
                await client.receive_all()

    run(script())


@pytest.mark.parametrize("names", [("a.test",), ()], ids=["one rule", "C11"])
def test_connect_denied_before_any_200(run: Run, names: tuple[str, ...]) -> None:
    """CONNECT to a host that no rule allows, or with no rule at all, is a 403 that says what would permit it."""

    async def script() -> None:
        async with Relaying(*names) as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy("CONNECT b.test:443"))
            answer = await answer_to(client)
            assert answer.lines[0] == "HTTP/1.1 403 Forbidden: no rule allows it"
            assert answer.closes
            assert (answer.body["error"], answer.body["host"], answer.body["port"]) == ("forbidden", "b.test", 443)
            assert answer.body["allow_with"] == "--allow-domain b.test"
            client.close()
            (record,) = await it.ended()
            assert (record.decision, record.status, record.mode) == ("deny", 403, "connect")
            assert (record.denial_category, record.auth_outcome) == ("host_denied", "succeeded")
            assert_secret([record], answer)
            assert it.lookups == []

    run(script())


def test_connect_to_a_dead_host_is_502(run: Run) -> None:
    """A permitted host that cannot be reached is the gateway's error, before any 200."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.upstream.close()
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT a.test:{it.port}"))
            assert (await client.receive_all()).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
            client.close()
            (record,) = await it.ended()
            assert (record.decision, record.status) == ("allow", 502)

    run(script())


def test_server_name_inside_connect_is_judged(run: Run) -> None:
    """A tunnel to one permitted host does not carry TLS for a host that is not permitted."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT a.test:{it.port}"))
            await client.receive_until(b"\r\n\r\n")
            await client.send(client_hello("b.test"))
            assert await client.receive(7) == ACCESS_DENIED
            client.finish()
            (record,) = await it.ended()
            assert (record.decision, record.target) == ("deny", "b.test")

    run(script())


def test_requests_inside_connect_are_judged(run: Run) -> None:
    """Plain HTTP in a tunnel is judged by its Host, shows no token, and is recorded with the tunnel's mode."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT a.test:{it.port}"))
            server = await it.accept()
            await client.receive_until(b"\r\n\r\n")
            await client.send(f"GET / HTTP/1.1\r\nHost: a.test:{it.port}\r\n\r\n".encode())
            await head_of(server)
            await server.send(OK)
            await client.receive_until(b"ok")
            await client.send(f"GET / HTTP/1.1\r\nHost: b.test:{it.port}\r\n\r\n".encode())
            assert (await client.receive_all()).startswith(b"HTTP/1.1 403 ")
            client.close()
            records = await it.ended()
            assert [(record.mode, record.target, record.decision) for record in records] == [
                ("connect", "a.test", "allow"), ("connect", "b.test", "deny"),
            ]  # fmt: skip

    run(script())


def test_connect_to_an_address_that_was_given_for_a_name(run: Run) -> None:
    """A client that resolved the name itself is judged by the name, whose own address is dialled."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.host("b.test")
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT 198.18.0.2:{it.port}"))
            server = await it.accept()
            assert await client.receive_until(b"\r\n\r\n") == ESTABLISHED
            client.close()
            server.close()
            await it.ended()
            denied = await it.connect_to_proxy()
            await denied.send(to_proxy(f"CONNECT 198.18.0.3:{it.port}"))
            assert (await answer_to(denied)).body["host"] == "b.test"
            denied.close()
            await it.ended()
            stranger = await it.connect_to_proxy()
            await stranger.send(to_proxy(f"CONNECT 198.18.0.4:{it.port}"))
            assert (await answer_to(stranger)).body["host"] == "198.18.0.4"
            stranger.close()
            first, second, _ = await it.ended()
            assert (first.target, first.identity, first.decision) == ("a.test", "authority", "allow")
            assert (second.target, second.decision) == ("b.test", "deny")

    run(script())


def test_connect_after_requests(run: Run) -> None:
    """A connection that carried requests may still become a tunnel."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"GET http://a.test:{it.port}/"))
            server = await it.accept()
            await head_of(server)
            await server.send(OK)
            await client.receive_until(b"ok")
            await client.send(to_proxy(f"CONNECT a.test:{it.port}") + b"\0x")
            tunnelled = await it.accept()
            assert await client.receive_until(b"\r\n\r\n") == ESTABLISHED
            assert await tunnelled.receive(2) == b"\0x"
            client.close()
            tunnelled.close()
            assert [record.event for record in await it.ended()] == ["request", "flow"]

    run(script())


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("target", "fields", "sent"),
    [
        pytest.param("/p?q", "", "GET /p?q", id="R3"),
        pytest.param("", "", "GET /", id="R3-bare"),
        pytest.param("?q", "", "GET /?q", id="R3-query"),
        pytest.param("/", "Proxy-Connection: keep-alive\r\n", "GET /", id="R6"),
        pytest.param("/", IN_OWN_FIELD, "GET /", id="R6-own"),
        pytest.param("/", "Connection: Proxy-Authorization, Host\r\n", "GET /", id="R6-named"),
    ],
)
def test_what_an_origin_server_gets(run: Run, target: str, fields: str, sent: str) -> None:
    """The origin-form, the host that was asked for, and no field that was meant for us."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"GET http://a.test:{it.port}{target}", f"{AUTHORIZED}{fields}X-Keep: 1\r\n"))
            server = await it.accept()
            assert await head_of(server) == [f"{sent} HTTP/1.1", f"Host: a.test:{it.port}", "X-Keep: 1"]

    run(script())


def test_absolute_form(run: Run) -> None:
    """Requests go to the host in their target, whatever Host says, each to its own; one that is denied is the last."""

    async def script() -> None:
        async with Relaying("a.test", "b.test") as it:
            client = await it.connect_to_proxy()
            for name, path, fields in (("a.test", "/p?q", AUTHORIZED), ("b.test", "", BEARER)):
                await client.send(to_proxy(f"GET http://{name}:{it.port}{path}", fields))
                server = await it.accept()
                assert f"Host: {name}:{it.port}" in await head_of(server)
                await server.send(OK)
                await client.receive_until(b"ok")
            await client.send(to_proxy("GET http://c.test/"))
            answer = await answer_to(client)
            assert answer.status == 403
            client.close()
            records = await it.ended()
            assert [record.target for record in records] == ["a.test", "b.test", "c.test"]
            assert {(record.mode, record.identity, record.auth_outcome) for record in records} == {
                ("http", "authority", "succeeded")
            }
            assert [record.path for record in records] == ["/p", "/", "/"]
            assert_secret(records, answer)
            assert it.lookups == ["a.test", "b.test"]

    run(script())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        pytest.param("GET https://a.test/", "https forward-proxying is not supported; use CONNECT for https", id="R4"),
        ("GET ftp://a.test/", "use CONNECT host:port"),
        ("OPTIONS *", "this is a proxy"),
        ("GET http://user:secret@a.test/", "a.test"),
        ("GET http://a.test/#secret", "not a path"),
        ("GET a.test", "this is a proxy"),
        pytest.param("CONNECT /", "'/'", id="C9"),
        ("CONNECT http://a.test/", "a.test"),
        ("CONNECT user:secret@a.test:443", "a.test"),
        ("CONNECT 0x7f000001:443", "0x7f000001"),
        ("CONNECT ::1:443", "brackets"),
        ("CONNECT [a.test]:443", "a.test"),
        ("CONNECT a.test:0", "port"),
        ("CONNECT a.test:", "port"),
    ],
)
def test_what_a_proxy_cannot_serve_is_explained(run: Run, line: str, says: str) -> None:
    """A client that asks in the wrong form gets a 400 that says what is wrong, and userinfo is repeated nowhere."""

    async def script() -> None:
        async with Relaying("a.test", allow=("*",)) as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(line))
            answer = await answer_to(client)
            assert (answer.status, answer.closes) == (400, True)
            assert says in answer.body["reason"]
            assert "secret" not in str(answer)
            client.close()
            (record,) = await it.ended()
            assert (record.decision, record.denial_category, record.status) == ("deny", "protocol", 400)
            assert "secret" not in str(record)
            assert it.lookups == []

    run(script())


@pytest.mark.parametrize(
    ("line", "fields", "status"),
    [
        ("GET http://a.test:{port}/", "Host: a.test\r\n", 400),
        ("GET http://a.test:{port}/", "X : y\r\n", 400),
        ("GET http://a.test:{port}/", " folded\r\n", 400),
        ("POST http://a.test:{port}/", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
        ("POST http://a.test:{port}/", "Content-Length: 0\r\nContent-Length: 9\r\n", 400),
        ("POST http://a.test:{port}/", "Content-Length: +9\r\n", 400),
        ("POST http://a.test:{port}/", "Transfer-Encoding: xchunked\r\n", 501),
        ("POST http://a.test:{port}/", "Transfer-Encoding: chunked, chunked\r\n", 501),
        ("CONNECT a.test:{port}", "Content-Length: 4\r\n", 400),
        ("CONNECT a.test:{port}", "Transfer-Encoding: chunked\r\n", 400),
        ("TRACE http://a.test:{port}/", "", 405),
        ("GET http://a.test:{port}/", "X: " + "x" * 66000 + "\r\n", 431),
        ("CONNECT a.test:{port}", "X: y\r\n" * 600, 431),
        ("GET http://a.test:{port}/" + "x" * 17000, "", 414),
    ],
)
@pytest.mark.parametrize("token", [AUTHORIZED, ""], ids=["token", "none"])
def test_ambiguity_is_refused_with_and_without_the_token(
    run: Run, token: str, line: str, fields: str, status: int
) -> None:
    """What two readers could understand differently is an error and the end, so no body can become a request."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            smuggled = to_proxy(f"GET http://a.test:{it.port}/smuggled")
            sent = to_proxy(line.format(port=it.port), token + fields) + smuggled
            sending = asyncio.ensure_future(client.send(sent))
            answer = await client.receive_all()
            await sending
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert answer.count(b"HTTP/1.1 ") == 1
            client.close()
            (record,) = await it.ended()
            assert (record.decision, record.denial_category, record.status) == ("deny", "protocol", status)
            assert await it.nobody_called()

    run(script())


# ---------------------------------------------------------------- the token


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("CONNECT a.test:{port}", id="C12"),
        pytest.param("GET http://a.test:{port}/", id="R5"),
        "HEAD http://a.test:{port}/",
        "CONNECT b.test:443",
        "CONNECT user:secret@a.test:443",
        "CONNECT managed.test:{port}",
        "GET https://a.test/",
        "GET /openai/v1",
        "GET /",
        "OPTIONS *",
        "GET http://127.0.0.1:{own}/openai",
    ],
)
@pytest.mark.parametrize("fields", ["", WRONG, AUTHORIZED * 2], ids=["none", "wrong", "twice"])
def test_nothing_without_the_token(run: Run, line: str, fields: str) -> None:
    """Whatever is asked, by whatever form, is a 407 before any name is looked up or any rule is asked."""

    async def script() -> None:
        async with Relaying("a.test", managed={"managed.test": "openai"}) as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(line.format(port=it.port, own=it.own.port), fields))
            head = await head_of(client)
            assert head[0] == "HTTP/1.1 407 Proxy Authentication Required"
            assert 'Proxy-Authenticate: Basic realm="nono"' in head
            assert "Connection: close" not in head
            client.close()
            (record,) = await it.ended()
            assert (record.event, record.decision, record.status) == ("request", "deny", 407)
            assert record.denial_category == "authentication_failed"
            assert (record.auth_mechanism, record.auth_outcome) == ("proxy_authorization", "failed")
            assert (record.target, record.rule, record.method) == (None, None, line.split()[0])
            assert_secret([record], head)
            assert it.lookups == []
            assert await it.nobody_called()

    run(script())


@pytest.mark.parametrize("fields", [pytest.param(AUTHORIZED, id="C13"), pytest.param(BEARER, id="C13-bearer")])
def test_a_retry_on_the_same_socket_is_a_tunnel(run: Run, fields: str) -> None:
    """A client that waits for the challenge answers it where it got it, and what it sends then is kept."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT a.test:{it.port}", ""))
            assert (await answer_to(client)).status == 407
            await client.send(to_proxy(f"CONNECT a.test:{it.port}", fields) + HELLO)
            server = await it.accept()
            assert await client.receive_until(b"\r\n\r\n") == ESTABLISHED
            assert await server.receive(len(HELLO)) == HELLO
            client.finish()
            server.finish()
            assert await client.receive_all() == b""
            challenge, flow = await it.ended()
            assert (challenge.mode, challenge.status, challenge.auth_outcome) == ("connect", 407, "failed")
            assert (flow.mode, flow.status, flow.auth_outcome) == ("connect", 200, "succeeded")

    run(script())


@pytest.mark.parametrize("service", [pytest.param("openai", id="C13")])
def test_a_retry_to_a_host_with_a_credential_is_answered(run: Run, service: str) -> None:
    """The answer to the retry is the verdict, not the end of the connection."""

    async def script() -> None:
        async with Relaying(managed={"api.test": service}) as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT api.test:{it.port}", ""))
            assert (await answer_to(client)).status == 407
            await client.send(to_proxy(f"CONNECT api.test:{it.port}"))
            answer = await answer_to(client)
            assert (answer.status, answer.body["error"]) == (403, "connect_bypasses_l7")

    run(script())


def test_a_retry_with_a_body(run: Run) -> None:
    """The body of the refused request is read away, in as many pieces as it comes, and never taken for a request."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            body = to_proxy(f"GET http://a.test:{it.port}/smuggled")
            framed = f"Content-Length: {len(body)}\r\n"
            await client.send(to_proxy(f"POST http://a.test:{it.port}/1", framed) + body[:9])
            await client.send(body[9:])
            assert (await answer_to(client)).status == 407
            await client.send(to_proxy(f"POST http://a.test:{it.port}/2", AUTHORIZED + framed) + body)
            server = await it.accept()
            assert (await head_of(server))[0] == "POST /2 HTTP/1.1"
            assert await server.receive(len(body)) == body
            await server.send(OK)
            await client.receive_until(b"ok")
            client.finish()
            assert [(record.path, record.status) for record in await it.ended()] == [(None, 407), ("/2", 200)]

    run(script())


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("POST http://a.test:{port}/", "Transfer-Encoding: chunked\r\n"),
        ("POST http://a.test:{port}/", f"Content-Length: {LIMITS.linger_bytes + 1}\r\n"),
        ("POST http://a.test:{port}/", "Content-Length: 5\r\nExpect: 100-continue\r\n"),
        ("GET http://a.test:{port}/", "Connection: close\r\n"),
        ("GET http://a.test:{port}/", "Connection: keep-alive, Close\r\n"),
    ],
)
def test_what_cannot_be_kept_open_is_closed(run: Run, line: str, fields: str) -> None:
    """Where the next request would begin is not known, or not soon: then the challenge is the last answer."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(line.format(port=it.port), fields))
            answer = await answer_to(client)
            assert (answer.status, answer.closes) == (407, True)
            await client.send(to_proxy(f"GET http://a.test:{it.port}/smuggled"))
            client.finish()
            assert await client.receive_all() == b""
            (record,) = await it.ended()
            assert record.status == 407
            assert await it.nobody_called()

    run(script())


def test_an_old_client_is_challenged_once(run: Run) -> None:
    """HTTP/1.0 has no connection to keep."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(f"CONNECT a.test:{it.port} HTTP/1.0\r\n\r\n".encode())
            answer = await answer_to(client)
            assert (answer.status, answer.closes) == (407, True)

    run(script())


def test_a_body_that_never_comes_is_not_waited_for_long(run: Run) -> None:
    """The challenge comes at the deadline, and ends the connection."""

    async def script() -> None:
        async with Relaying("a.test", limits=replace(LIMITS, sniff_s=0.05)) as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"POST http://a.test:{it.port}/", "Content-Length: 5\r\n") + b"four")
            answer = await answer_to(client)
            assert (answer.status, answer.closes) == (407, True)

    run(script())


def test_tries_are_counted(run: Run) -> None:
    """After a few challenges a connection ends: nobody tries tokens on it for as long as they like."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT a.test:{it.port}", WRONG) * 100)
            answers = (await client.receive_all()).count(b"HTTP/1.1 407 ")
            assert answers == LIMITS.challenges
            client.close()
            assert len(await it.ended()) == answers
            assert await it.nobody_called()

    run(script())


def test_every_request_shows_the_token(run: Run) -> None:
    """A connection on which one request did is no one's password for the next."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"GET http://a.test:{it.port}/1"))
            server = await it.accept()
            await head_of(server)
            await server.send(OK)
            await client.receive_until(b"ok")
            await client.send(to_proxy(f"GET http://a.test:{it.port}/2", ""))
            assert (await answer_to(client)).status == 407
            await client.send(to_proxy(f"GET http://a.test:{it.port}/3"))
            assert (await head_of(server))[0] == "GET /3 HTTP/1.1"

    run(script())


def test_what_follows_an_unauthenticated_connect_is_no_tunnel(run: Run) -> None:
    """A client that does not wait for its 200 is not believed to have one."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"CONNECT a.test:{it.port}", "") + HELLO + b"\r\n\r\n")
            assert (await answer_to(client)).status == 407
            answer = await answer_to(client)
            assert (answer.status, answer.closes) == (400, True)
            client.close()
            await it.ended()
            assert await it.nobody_called()

    run(script())


def test_redirected_clients_need_no_token(run: Run) -> None:
    """They do not know of the proxy; a field that one of them sends for it all the same stays here."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(f"GET / HTTP/1.1\r\nHost: a.test:{it.port}\r\n{AUTHORIZED}{IN_OWN_FIELD}\r\n".encode())
            assert await head_of(server) == ["GET / HTTP/1.1", f"Host: a.test:{it.port}"]
            await server.send(OK)
            await client.receive_until(b"ok")
            client.finish()
            (record,) = await it.ended()
            assert (record.auth_mechanism, record.auth_outcome) == (None, None)

    run(script())


# ---------------------------------------------------------------- services


@pytest.mark.parametrize("form", ["", "http://127.0.0.1:{own}", "http://localhost:{own}", "http://LOCALHOST.:{own}"])
@pytest.mark.parametrize("fields", [AUTHORIZED, IN_OWN_FIELD, WRONG + IN_OWN_FIELD], ids=["field", "own", "both"])
@pytest.mark.parametrize(
    "path", [pytest.param("/openai/v1/chat?q=secret", id="R7"), pytest.param("/openai", id="R7-/")]
)
def test_a_service_without_its_credential(run: Run, form: str, fields: str, path: str) -> None:
    """A request for a service that the policy knows is a 503, by path or by our own address, never passed on."""

    async def script() -> None:
        async with Relaying("a.test", managed={"api.test": "openai"}) as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"GET {form.format(own=it.own.port)}{path}", fields))
            answer = await answer_to(client)
            assert (answer.status, answer.body["error"]) == (503, "managed_credential_unavailable")
            assert answer.body["service"] == "openai"
            client.close()
            (record,) = await it.ended()
            assert (record.mode, record.decision, record.status) == ("reverse", "deny", 503)
            assert record.denial_category == "managed_credential_unavailable"
            assert (record.path or "").endswith(path.partition("?")[0])
            mechanism = "proxy_authorization" if fields == AUTHORIZED else "phantom_header"
            assert (record.auth_mechanism, record.auth_outcome) == (mechanism, "succeeded")
            assert_secret([record], answer)
            assert "secret" not in str(record)
            assert it.lookups == []

    run(script())


@pytest.mark.parametrize(
    "path", ["/", "/other/v1", "//openai/v1", "/OpenAI", "/%6fpenai", "/x/../openai", "/openai%2fv1"]
)
def test_no_service(run: Run, path: str) -> None:
    """What is no service's path is a 404 that says what this is."""

    async def script() -> None:
        async with Relaying("a.test", managed={"api.test": "openai"}) as it:
            client = await it.connect_to_proxy()
            await client.send(to_proxy(f"GET {path}"))
            answer = await answer_to(client)
            assert (answer.status, answer.body["error"]) == (404, "not_found")
            assert "this is a proxy" in answer.body["reason"]
            client.close()
            (record,) = await it.ended()
            assert (record.mode, record.decision, record.denial_category) == ("reverse", "deny", "unknown_service")

    run(script())


def test_the_other_field_is_for_services_alone(run: Run) -> None:
    """X-Nono-Token opens no tunnel and no way to another server."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            for line in (f"CONNECT a.test:{it.port}", f"GET http://a.test:{it.port}/", "GET http://127.0.0.1:1/"):
                client = await it.connect_to_proxy()
                await client.send(to_proxy(line, IN_OWN_FIELD))
                assert (await answer_to(client)).status == 407
                client.close()
            await it.ended()
            assert await it.nobody_called()

    run(script())


# ---------------------------------------------------------------- hostile clients


def test_a_client_that_asks_nothing_is_let_go(run: Run) -> None:
    """Before its first request the wait is short; between two it is as long as servers allow."""

    async def script() -> None:
        async with Relaying("a.test", limits=replace(LIMITS, first_bytes_s=0.05)) as it:
            silent = await it.connect_to_proxy()
            assert await silent.receive_all() == b""
            asking = await it.connect_to_proxy(to_proxy(f"GET http://a.test:{it.port}/"))
            server = await it.accept()
            await head_of(server)
            await server.send(OK)
            await asking.receive_until(b"ok")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asking.receive(1), 0.2)

    run(script())


@pytest.mark.parametrize(
    "sent", [b"C", b"CONNECT a.test:443 HTTP/1.1\r\n", b"GET http://a.test/ HTTP/1.1\r\nX: ", b"\x05\xff"]
)
def test_a_slow_client_is_let_go(run: Run, sent: bytes) -> None:
    """A head, or a handshake, that does not come to its end has its deadline from the first byte on."""

    async def script() -> None:
        async with Relaying("a.test", limits=replace(LIMITS, sniff_s=0.3)) as it:
            client = await it.connect_to_proxy()
            await client.send(sent)
            dripping = asyncio.ensure_future(drip(client))
            answer = await client.receive_all()
            dripping.cancel()
            assert answer.startswith(b"HTTP/1.1 408 " if sent[0] != 5 else b"\x05\xff")
            client.close()
            (record,) = await it.ended()
            assert (record.decision, record.denial_category) == ("deny", "protocol")

    async def drip(client: Peer) -> None:
        while True:
            await asyncio.sleep(0.05)
            await client.send(b"\0" if client_is_socks else b"x")

    client_is_socks = sent[0] == 5
    run(script())


GARBAGE = {
    "zeros": bytes(100) + b"\r\n\r\n",
    "binary": bytes(range(256)) + b"\r\n\r\n",
    "bare line feeds": b"CONNECT a.test:443 HTTP/1.1\nHost: x\n\n",
    "a blank": b" CONNECT a.test:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "two blank lines": b"\r\n\r\nCONNECT a.test:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "proxy protocol": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 80\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "SOCKS4": b"\x04\x01\x01\xbb\xc6\x12\x00\x02\0\r\n\r\n",
    "TLS": HELLO + b"\r\n\r\n",
    "a header bomb": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 12_000,
    "a line bomb": b"GET " * 20_000,
    "a field bomb": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000,
    "a megabyte": b"x" * (1 << 20),
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused_and_the_next_client_served(run: Run, name: str) -> None:
    """What is no request is a 4xx and the end, in bounded memory, and whoever comes next notices nothing."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            hostile = await it.connect_to_proxy()
            sending = asyncio.ensure_future(hostile.send(GARBAGE[name]))
            answer = await hostile.receive_all()
            await sending
            assert answer[:10] == b"HTTP/1.1 4"
            assert answer.count(b"HTTP/1.1 ") == 1
            hostile.close()
            await assert_served(it)

    run(script())


async def assert_served(it: Relaying) -> None:
    """A good client gets its tunnel."""
    client = await it.connect_to_proxy()
    await client.send(to_proxy(f"CONNECT a.test:{it.port}") + b"\0hello")
    server = await it.accept()
    assert await client.receive_until(b"\r\n\r\n") == ESTABLISHED
    assert await server.receive(6) == b"\0hello"
    client.close()
    server.close()


@pytest.mark.parametrize(
    "behind", [b"\r\n\r\n", b"\0" * 100, b"\x16\x03\x01\x00\x04\x02\0\0\0", b"GET / HTTP/1.1\nx\n\n"]
)
def test_garbage_in_a_tunnel_harms_nobody_else(run: Run, behind: bytes) -> None:
    """Behind CONNECT it is carried, or refused as it would be on any flow; the next client is served."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            hostile = await it.connect_to_proxy()
            await hostile.send(to_proxy(f"CONNECT a.test:{it.port}") + behind)
            server = await it.accept()
            assert await hostile.receive_until(b"\r\n\r\n") == ESTABLISHED
            hostile.finish()
            assert await server.receive_all() in (b"", behind)
            hostile.close()
            server.close()
            await assert_served(it)

    run(script())


def test_many_clients_that_say_half(run: Run) -> None:
    """Connections that ask for nothing, or half a thing, give way to one that asks."""

    async def script() -> None:
        async with Relaying("a.test", limits=replace(LIMITS, flows=32)) as it:
            for sent in (b"", b"\x05", b"\x05\x01\x02", b"CONNECT", to_proxy("CONNECT a.test:1", "")) * 10:
                half = await it.connect_to_proxy()
                if sent:
                    await half.send(sent)
            await assert_served(it)

    run(script())


def test_a_client_that_leaves_in_the_middle(run: Run) -> None:
    """At whatever byte it resets the connection, only its own flow ends."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            whole = to_proxy(f"CONNECT a.test:{it.port}")
            for number, size in enumerate((1, len(whole) // 2, len(whole) - 1), 1):
                client = await it.connect_to_proxy()
                await client.send(whole[:size])
                client.reset()
                while len(it.records) < number:
                    await asyncio.sleep(0.001)
            await assert_served(it)
            assert len(await it.ended()) == 4

    run(script())
