"""Plain HTTP through the relay, as scripts between a client and a server that both are the test's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import socket
from dataclasses import replace

import pytest
from kit.relaying import LIMITS, Peer, Relaying, Run, run

from nono_ebpf.model import ResolvedAddress
from nono_ebpf.relay.http import read_request_head
from nono_ebpf.relay.stream import Stream
from nono_ebpf.wire import http1

__all__ = ["run"]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def get(host: str, port: int, path: str = "/", more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{more}\r\n".encode()


async def head_of(peer: Peer) -> list[str]:
    """The lines of the next head."""
    return (await peer.receive_until(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]


def test_request_is_judged_by_its_host_and_written_anew(run: Run) -> None:
    """A permitted request reaches its host in our own spelling, and its record carries no query."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            request = f"GET /p?secret=1 HTTP/1.1\r\nhost:  A.test.:{it.port}\r\nX-A:  1 \r\nx-a: 2\r\n\r\n"
            await client.send(request.encode())
            server = await it.accept()
            assert await head_of(server) == [
                "GET /p?secret=1 HTTP/1.1", f"Host: a.test:{it.port}", "X-A: 1", "x-a: 2",
            ]  # fmt: skip
            await server.send(OK)
            assert (await client.receive_until(b"ok")).startswith(b"HTTP/1.1 200 OK\r\n")
            client.finish()
            assert await client.receive_all() == b""
            (record,) = await it.ended()
            assert (record.event, record.mode, record.decision) == ("request", "redirect", "allow")
            assert (record.method, record.path, record.status) == ("GET", "/p", 200)
            assert (record.target, record.port, record.identity) == ("a.test", it.port, "host")
            assert (record.pid, record.sniff) == (4242, "http")
            assert record.bytes_received == len(OK)

    run(script())


def test_requests_share_both_connections(run: Run) -> None:
    """Requests to one host share one upstream connection, pipelined or not, and each is recorded."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(get("a.test", it.port, "/1") + get("a.test", it.port, "/2"))
            for path in ("/1", "/2"):
                assert (await head_of(server))[0] == f"GET {path} HTTP/1.1"
                await server.send(OK)
                await client.receive_until(b"ok")
            await client.send(get("a.test", it.port, "/3"))
            assert (await head_of(server))[0] == "GET /3 HTTP/1.1"
            await server.send(OK)
            await client.receive_until(b"ok")
            client.finish()
            records = await it.ended()
            assert [record.path for record in records] == ["/1", "/2", "/3"]
            assert len({record.flow_id for record in records}) == 1
            assert await it.nobody_called()

    run(script())


def test_each_request_is_judged(run: Run) -> None:
    """A denied Host behind a permitted one is refused, and never reaches the server."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.host("b.test")
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(get("a.test", it.port))
            await head_of(server)
            await server.send(OK)
            await client.receive_until(b"ok")
            await client.send(get("b.test", it.port, "/evil"))
            answer = await client.receive_all()
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 403 Forbidden: no rule allows it\r\nContent-Type: application/json\r\n")
            assert b"Connection: close" in head
            assert json.loads(body) == {
                "error": "forbidden",
                "host": "b.test",
                "port": it.port,
                "reason": "no rule allows it",
                "rule": None,
                "allow_with": f"--allow-domain b.test:{it.port}",
            }
            assert await server.receive_all() == b""
            client.close()
            assert [record.decision for record in await it.ended()] == ["allow", "deny"]
            assert it.lookups == ["a.test", "a.test"]

    run(script())


def test_other_permitted_host_gets_its_own_connection(run: Run) -> None:
    """A request for another permitted host is sent to that host, not down the connection that is open."""

    async def script() -> None:
        async with Relaying("a.test", "b.test") as it:
            client = await it.connect("a.test")
            first = await it.accept()
            await client.send(get("b.test", it.port))
            second = await it.accept()
            assert f"Host: b.test:{it.port}" in await head_of(second)
            assert await first.receive_all() == b""
            await second.send(OK)
            await client.receive_until(b"ok")
            client.finish()
            await it.ended()

    run(script())


def test_known_name_must_be_permitted_too(run: Run) -> None:
    """An address known for a denied name stays denied, whatever permitted Host is claimed."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.host("b.test")
            client = await it.connect("b.test")
            await client.send(get("a.test", it.port))
            assert (await client.receive_all()).startswith(b"HTTP/1.1 403 ")
            client.close()
            (record,) = await it.ended()
            assert (record.event, record.status, record.target) == ("flow", 403, "b.test")
            assert await it.nobody_called()

    run(script())


def test_unknown_address_uses_the_host_field(run: Run) -> None:
    """Without a name for the address, the owner of the Host is dialled."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("203.0.113.9")
            await client.send(get("a.test", it.port))
            server = await it.accept()
            await head_of(server)
            await server.send(OK)
            await client.receive_until(b"ok")
            client.finish()
            (record,) = await it.ended()
            assert (record.target, record.identity, record.decision) == ("a.test", "host", "allow")

    run(script())


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: a.test\r\n", 421),  # names port 80
        ("GET / HTTP/1.1\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.test:{port}\r\nHost: a.test:{port}\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: user@a.test:{port}\r\n", 400),
        ("GET http://b.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n", 400),
        ("GET https://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n", 400),
        ("CONNECT b.test:443 HTTP/1.1\r\nHost: a.test:{port}\r\n", 400),
        ("TRACE / HTTP/1.1\r\nHost: a.test:{port}\r\n", 405),
        ("GET * HTTP/1.1\r\nHost: a.test:{port}\r\n", 400),
        ("GET /#f HTTP/1.1\r\nHost: a.test:{port}\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a.test:{port}\r\n", 400),
        ("GET / HTTP/1.1\nHost: a.test:{port}\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.test:{port}\r\nX : y\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.test:{port}\r\n folded\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: a.test:{port}\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a.test:{port}\r\nContent-Length: 1\r\nContent-Length: 1\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a.test:{port}\r\nContent-Length: +1\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a.test:{port}\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
        ("POST / HTTP/1.0\r\nHost: a.test:{port}\r\nTransfer-Encoding: chunked\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.test:{port}\r\nX: " + "x" * 70000 + "\r\n", 431),
        ("GET /" + "x" * 20000 + " HTTP/1.1\r\nHost: a.test:{port}\r\n", 414),
    ],
)
def test_ambiguity_is_refused_before_the_server_sees_it(run: Run, head: str, status: int) -> None:
    """What two readers could understand differently earns an error, and not one byte is forwarded."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            line_end = "\n" if "\r" not in head else "\r\n"
            sending = asyncio.ensure_future(client.send((head + line_end).format(port=it.port).encode()))
            answer = await client.receive_all()
            await sending
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            client.close()
            assert await server.receive_all() == b""
            (record,) = await it.ended()
            assert (record.decision, record.denial_category, record.status) == ("deny", "protocol", status)

    run(script())


def test_bodies_of_known_length(run: Run) -> None:
    """Content-Length bodies pass unchanged both ways, and the connection stays usable."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            body = os.urandom(300_000)
            for _ in range(2):
                head = f"PUT / HTTP/1.1\r\nHost: a.test:{it.port}\r\nContent-Length: {len(body)}\r\n\r\n"
                sending = asyncio.ensure_future(client.send(head.encode() + body))
                assert f"Content-Length: {len(body)}" in await head_of(server)
                assert await server.receive(len(body)) == body
                await sending
                sending = asyncio.ensure_future(
                    server.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                )
                await head_of(client)
                assert await client.receive(len(body)) == body
                await sending
            client.finish()
            first, _ = await it.ended()
            assert first.bytes_sent is not None
            assert first.bytes_sent > len(body)

    run(script())


def test_chunked_bodies_are_decoded_and_encoded_again(run: Run) -> None:
    """Chunked content passes both ways; extensions and trailers do not."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(
                f"POST / HTTP/1.1\r\nHost: a.test:{it.port}\r\nTransfer-Encoding: Chunked\r\n\r\n".encode()
                + b"5;ext=1\r\nhello\r\n3\r\n yo\r\n0\r\nX-Trailer: 1\r\n\r\n"
            )
            assert "Transfer-Encoding: chunked" in await head_of(server)
            assert await server.receive_until(b"0\r\n\r\n") == b"8\r\nhello yo\r\n0\r\n\r\n"
            await server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nfoo\r\n0\r\nT: 1\r\n\r\n")
            assert "Transfer-Encoding: chunked" in await head_of(client)
            assert await client.receive_until(b"0\r\n\r\n") == b"3\r\nfoo\r\n0\r\n\r\n"
            await client.send(get("a.test", it.port))
            await head_of(server)
            await server.send(OK)
            await client.receive_until(b"ok")
            client.finish()
            await it.ended()

    run(script())


def test_each_event_of_a_stream_passes_at_once(run: Run) -> None:
    """A chunk that the server sends is not held back for the next one."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(get("a.test", it.port))
            await head_of(server)
            await server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await head_of(client)
            for event in (b"data: 1\n\n", b"data: 2\n\n"):
                await server.send(b"9\r\n" + event + b"\r\n")
                assert await client.receive_until(b"\n\n\r\n") == b"9\r\n" + event + b"\r\n"
            server.reset()
            with pytest.raises(ConnectionResetError):
                await client.receive_all()
            (record,) = await it.ended()
            assert (record.status, record.decision) == (200, "allow")
            assert record.reason == f"read a.test:{it.port}: Connection reset by peer"

    run(script())


def test_truncated_response_is_visible(run: Run) -> None:
    """A body that ends early is not passed off as complete."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(get("a.test", it.port))
            await head_of(server)
            await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            await client.receive_until(b"half")
            server.close()
            with pytest.raises(ConnectionResetError):
                await client.receive_all()

    run(script())


def test_response_until_close(run: Run) -> None:
    """A response that only the end of the connection delimits ends the client's connection as well."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(get("a.test", it.port))
            await head_of(server)
            await server.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")
            server.close()
            assert await client.receive_all() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it"

    run(script())


def test_old_client_gets_no_chunks(run: Run) -> None:
    """An HTTP/1.0 client receives chunked content plain, up to the end of the connection."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert await head_of(server) == ["GET / HTTP/1.1", f"Host: a.test:{it.port}"]
            await server.send(
                b"HTTP/1.1 102 Processing\r\n\r\n"
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nfoo\r\n0\r\n\r\n"
            )
            assert await client.receive_all() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfoo"

    run(script())


@pytest.mark.parametrize(
    ("method", "response"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
def test_responses_without_a_body(run: Run, method: str, response: bytes) -> None:
    """A length that describes no body is passed on and not waited for."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            for _ in range(2):
                await client.send(f"{method} / HTTP/1.1\r\nHost: a.test:{it.port}\r\n\r\n".encode())
                await head_of(server)
                await server.send(response)
                assert await client.receive(len(response)) == response
            client.finish()
            assert await client.receive_all() == b""

    run(script())


def test_expect_100_continue(run: Run) -> None:
    """The server's 100 reaches the client before the client has sent its body."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            head = f"POST / HTTP/1.1\r\nHost: a.test:{it.port}\r\nContent-Length: 4\r\n"
            head += "Expect: 100-continue\r\n\r\n"
            await client.send(head.encode())
            assert "Expect: 100-continue" in await head_of(server)
            await server.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert await head_of(client) == ["HTTP/1.1 100 Continue"]
            await client.send(b"body")
            assert await server.receive(4) == b"body"
            await server.send(OK)
            await client.receive_until(b"ok")
            await client.send(get("a.test", it.port))
            await head_of(server)
            await server.send(OK)
            await client.receive_until(b"ok")
            client.finish()
            await it.ended()

    run(script())


def test_early_answer_to_an_unfinished_upload(run: Run) -> None:
    """A server that answers before the body has ended is heard; then both connections end."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(f"POST / HTTP/1.1\r\nHost: a.test:{it.port}\r\nContent-Length: 9\r\n\r\nhalf".encode())
            await head_of(server)
            assert await server.receive(4) == b"half"
            await server.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            assert "Connection: close" in await head_of(client)
            assert await client.receive_all() == b""
            assert await server.receive_all() == b""

    run(script())


def test_who_goes_on_uploading_hears_the_early_answer(run: Run) -> None:
    """What comes behind the answer is read away: a reset would overtake it, and many clients then show nothing else."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            size = 4_000_000
            head = f"POST / HTTP/1.1\r\nHost: a.test:{it.port}\r\nContent-Length: {2 * size}\r\n\r\n"
            await client.send(head.encode())
            await head_of(server)
            await server.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            assert (await head_of(client))[0] == "HTTP/1.1 413 Too Large"
            assert await server.receive_all() == b""
            for _ in range(40):
                await client.send(b"x" * (size // 40))
            assert await client.receive_all() == b""
            client.finish()

    run(script())


def test_broken_upload_is_the_clients_fault(run: Run) -> None:
    """A malformed chunk ends the request: the client gets a 400, the server no end of the body."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            head = f"POST / HTTP/1.1\r\nHost: a.test:{it.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
            await client.send(head.encode() + b"3\r\nfoo\r\n")
            await head_of(server)
            assert await server.receive(8) == b"3\r\nfoo\r\n"
            await client.send(b"zz\r\n")
            assert (await client.receive_all()).startswith(b"HTTP/1.1 400 ")
            assert await server.receive_all() == b""
            client.close()
            (record,) = await it.ended()
            assert (record.decision, record.denial_category) == ("deny", "protocol")

    run(script())


def test_hop_by_hop_fields_stay_here(run: Run) -> None:
    """Fields of one connection are not passed on, and Connection cannot remove the fields we write."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(
                get(
                    "a.test",
                    it.port,
                    more="Connection: keep-alive, X-Drop, Host, Upgrade\r\nX-Drop: 1\r\n"
                    "Keep-Alive: 5\r\nTE: trailers\r\n"
                    "Proxy-Authorization: Basic x\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nX-Keep: 1\r\n",
                )
            )
            assert await head_of(server) == ["GET / HTTP/1.1", f"Host: a.test:{it.port}", "X-Keep: 1"]
            await server.send(
                b"HTTP/1.1 200 OK\r\nConnection: X-Drop\r\nX-Drop: 1\r\nKeep-Alive: 5\r\nContent-Length: 0\r\n\r\n"
            )
            assert await head_of(client) == ["HTTP/1.1 200 OK", "Content-Length: 0"]
            client.finish()

    run(script())


def test_server_that_closes_ends_its_connection_only(run: Run) -> None:
    """After `Connection: close` from the server the client goes on, over a new upstream connection."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(get("a.test", it.port))
            await head_of(server)
            await server.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            assert b"close" not in await client.receive_until(b"ok")
            await client.send(get("a.test", it.port))
            second = await it.accept()
            await head_of(second)
            await second.send(OK)
            await client.receive_until(b"ok")
            client.finish()
            assert await client.receive_all() == b""

    run(script())


def test_request_is_repeated_when_an_idle_connection_was_dead(run: Run) -> None:
    """A GET that meets the server's closing of an idle connection is sent again, once, on a fresh one."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            first = await it.accept()
            await client.send(get("a.test", it.port))
            await head_of(first)
            await first.send(OK)
            await client.receive_until(b"ok")
            await client.send(get("a.test", it.port, "/again"))
            await head_of(first)
            first.close()
            second = await it.accept()
            assert (await head_of(second))[0] == "GET /again HTTP/1.1"
            await second.send(OK)
            await client.receive_until(b"ok")
            client.finish()
            records = await it.ended()
            assert [record.status for record in records] == [200, 200]

    run(script())


def test_post_is_never_repeated(run: Run) -> None:
    """What may already have had its effect is answered with 502 instead of being sent twice."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(get("a.test", it.port))
            await head_of(server)
            await server.send(OK)
            await client.receive_until(b"ok")
            await client.send(f"POST / HTTP/1.1\r\nHost: a.test:{it.port}\r\nContent-Length: 0\r\n\r\n".encode())
            await head_of(server)
            server.close()
            assert (await client.receive_all()).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
            client.close()
            await it.ended()
            assert await it.nobody_called()

    run(script())


def test_unasked_bytes_end_the_upstream_connection(run: Run) -> None:
    """A response that nobody asked for is not given to the next request."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            first = await it.accept()
            await client.send(get("a.test", it.port))
            await head_of(first)
            await first.send(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            await client.receive_until(b"ok")
            await client.send(get("a.test", it.port))
            second = await it.accept()
            await head_of(second)
            await second.send(OK)
            assert await client.receive(len(OK)) == OK
            client.finish()
            assert await client.receive_all() == b""

    run(script())


def test_dead_server_is_502_and_silence_in_time_is_kept_apart(run: Run) -> None:
    """A refused connection is 502 with the reason; the record says allow, since no rule was against it."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.upstream.close()
            client = await it.connect("a.test")
            await client.send(get("a.test", it.port))
            answer = await client.receive_all()
            assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
            assert b"Connection refused" in answer
            client.close()
            (record,) = await it.ended()
            assert (record.decision, record.status) == ("allow", 502)

    run(script())


def test_bad_response_is_502(run: Run) -> None:
    """A response with two framings is the server's fault and is not passed on."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(get("a.test", it.port))
            await head_of(server)
            await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
            assert (await client.receive_all()).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")

    run(script())


def test_websocket_is_spliced_after_its_101(run: Run) -> None:
    """A WebSocket handshake passes, and frames flow both ways, also those sent right behind the heads."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            key = base64.b64encode(os.urandom(16)).decode()
            fields = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {key}\r\n"
            await client.send(get("a.test", it.port, more=fields) + b"\x81frame")
            head = await head_of(server)
            assert "Upgrade: websocket" in head
            assert "Connection: Upgrade" in head
            assert f"Sec-WebSocket-Key: {key}" in head
            guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1((key + guid).encode()).digest()).decode()
            await server.send(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                f"Sec-WebSocket-Accept: {accept}\r\n\r\n\x01hello".encode()
            )
            assert (await head_of(client))[0] == "HTTP/1.1 101 Switching Protocols"
            assert await client.receive(6) == b"\x01hello"
            assert await server.receive(6) == b"\x81frame"
            await client.send(b"more")
            assert await server.receive(4) == b"more"
            client.finish()
            server.finish()
            assert await client.receive_all() == b""
            (record,) = await it.ended()
            assert (record.event, record.status) == ("request", 101)

    run(script())


@pytest.mark.parametrize("fields", ["", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n"])
def test_101_that_was_not_earned(run: Run, fields: str) -> None:
    """A 101 without a handshake, or with the wrong key, does not open a tunnel."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(get("a.test", it.port, more=fields))
            await head_of(server)
            await server.send(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            assert (await client.receive_all()).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
            assert await server.receive_all() == b""

    run(script())


def test_own_address_needs_a_port_rule(run: Run) -> None:
    """A permitted name that DNS points at this machine gets a 403, not the machine's own services."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.hosts["a.test"] = (ResolvedAddress(next(iter(it.hosts["a.test"])).address, own=True),)
            client = await it.connect("203.0.113.9")
            await client.send(get("a.test", it.port))
            assert (await client.receive_all()).startswith(b"HTTP/1.1 403 ")
            client.close()
            await it.ended()
            assert await it.nobody_called()

    run(script())


def test_head_request_is_refused_without_a_body(run: Run) -> None:
    """The refusal of a HEAD has the length of a body and no body (RFC 9110 §9.3.2)."""

    async def script() -> None:
        async with Relaying() as it:
            client = await it.connect("203.0.113.9")
            await client.send(get("b.test", it.port).replace(b"GET", b"HEAD"))
            answer = await client.receive_all()
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert answer.endswith(b"\r\n\r\n")

    run(script())


def test_an_upstream_that_never_finishes_its_head_is_given_up(run: Run) -> None:
    """A response head has a deadline from its first byte on, however often something comes."""

    async def script() -> None:
        async with Relaying("a.test", limits=replace(LIMITS, response_head_s=0.1)) as it:
            client = await it.connect("a.test")
            await client.send(get("a.test", it.port))
            server = await it.accept()
            await head_of(server)
            await server.send(b"HTTP/1.1 200 OK\r\nX: ")
            dripping = asyncio.ensure_future(drip(server))
            assert (await client.receive_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 504 ")
            client.finish()
            (record,) = await it.ended()
            assert record.reason == f"read a.test:{it.port}: did not finish the head of its response"
            await dripping

    async def drip(server: Peer) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await server.send(b"x")
                await asyncio.sleep(0.01)

    run(script())


def test_a_body_of_tiny_chunks_arrives_whole(run: Run) -> None:
    """Also when a part of it came with the head."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            count = 20_000
            head = get("a.test", it.port, more="Transfer-Encoding: chunked\r\n").replace(b"GET", b"POST")
            sending = asyncio.ensure_future(client.send(head + b"1\r\nx\r\n" * count + b"0\r\n\r\n"))
            server = await it.accept()
            await head_of(server)
            content, body = bytearray(), http1.ChunkedBody(http1.upstream_fault("test"))
            buffer = bytearray()
            while not body.done:
                buffer += await server._recv(65536)
                while (held := len(buffer)) and not body.done:
                    content += body.take(buffer)
                    if len(buffer) == held:
                        break
            assert content == b"x" * count
            await sending
            await server.send(OK)
            assert (await client.receive_until(b"ok")).startswith(b"HTTP/1.1 200 OK\r\n")

    run(script())


def test_a_dripped_head_is_parsed_by_lines_not_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends slowly costs others no more than whoever sends at once."""
    parsed: list[int] = []
    parse = http1.parse_request_head

    def counted(data: bytes | bytearray) -> object:
        parsed.append(len(data))
        return parse(data)

    async def script() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with ours, theirs:
            reading = asyncio.ensure_future(read_request_head(Stream(theirs), LIMITS, 5))
            for byte in b"GET / HTTP/1.1\r\nHost: a.test\r\nX: " + b"x" * 2000 + b"\r\n\r\n":
                ours.send(bytes((byte,)))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            head = await reading
            assert head is not None
            assert len(parsed) <= 6

    monkeypatch.setattr(http1, "parse_request_head", counted)
    asyncio.run(script())
