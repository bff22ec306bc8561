"""The path of a connection, as scripts between a client and a server that both are the test's."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from dataclasses import replace
from ipaddress import ip_address

import pytest
import trustme
from kit.hellos import client_hello
from kit.relaying import LIMITS, LOOPBACK, PROCESS, Relaying, Run, run, to_proxy

from nono_ebpf.model import ResolvedAddress

__all__ = ["run"]

ACCESS_DENIED = bytes.fromhex("15030300020231")
DECODE_ERROR = bytes.fromhex("15030300020232")
INTERNAL_ERROR = bytes.fromhex("15030300020250")
HELLO = client_hello("a.test")


def test_permitted_name_is_dialled_and_spliced(run: Run) -> None:
    """An opaque flow to a permitted name reaches that name's address, both ways, and leaves one record."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(b"\0question")
            assert await server.receive(9) == b"\0question"
            await server.send(b"answer")
            assert await client.receive(6) == b"answer"
            client.finish()
            assert await server.receive_all() == b""
            await server.send(b" and more")
            server.finish()
            assert await client.receive_all() == b" and more"
            (record,) = await it.ended()
            assert (record.event, record.mode, record.decision) == ("flow", "redirect", "allow")
            assert (record.target, record.port, record.identity) == ("a.test", it.port, "dns")
            assert (record.pid, record.comm, record.uid, record.cgroup) == (4242, "script", 1000, 77)
            assert record.original_destination == f"198.18.0.2:{it.port}"
            assert record.resolved_address == f"127.0.0.1:{it.port}"
            assert (record.rule, record.rule_source) == (f"a.test:{it.port}", "test")
            assert (record.bytes_sent, record.bytes_received, record.sniff) == (9, 15, "opaque")
            assert record.reason is None

    run(script())


def test_server_may_speak_first(run: Run) -> None:
    """A greeting reaches a client that waits for it, and nothing is sniffed."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await server.send(b"220 ready\r\n")
            assert await client.receive(11) == b"220 ready\r\n"
            await client.send(b"GET / HTTP/1.1\r\n")
            assert await server.receive(16) == b"GET / HTTP/1.1\r\n"
            client.finish()
            server.finish()
            assert await client.receive_all() == b""
            (record,) = await it.ended()
            assert record.sniff == "skipped: server spoke first"

    run(script())


def test_no_kernel_record_is_reset(run: Run) -> None:
    """A connection that the kernel does not know is reset and recorded as a denial."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect_unknown()
            with pytest.raises(ConnectionResetError):
                await client.receive_all()
            (record,) = await it.ended()
            assert (record.decision, record.reason, record.pid) == ("deny", "no kernel record", None)

    run(script())


def test_denied_name_is_never_resolved(run: Run) -> None:
    """A name that no rule allows is not looked up, nobody is dialled, and the record names the remedy."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.host("b.test")
            client = await it.connect("b.test")
            await client.send(b"\0\0opaque")
            with pytest.raises(ConnectionResetError):
                await client.receive_all()
            (record,) = await it.ended()
            assert (record.decision, record.target) == ("deny", "b.test")
            assert record.remedy == f"--allow-domain b.test:{it.port}"
            assert it.lookups == []
            assert await it.nobody_called()

    run(script())


def test_tls_client_is_denied_by_alert(run: Run) -> None:
    """A TLS client learns of a denial as a fatal access_denied alert, not as a broken connection."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.host("b.test")
            client = await it.connect("b.test")
            await client.send(client_hello("b.test"))
            assert await client.receive(7) == ACCESS_DENIED
            client.finish()
            assert await client.receive_all() == b""

    run(script())


def test_silent_denied_client_is_reset_after_the_refusal_wait(run: Run) -> None:
    """A denied client that waits for a greeting does not wait for long."""

    async def script() -> None:
        async with Relaying("a.test", limits=replace(LIMITS, refusal_wait_s=0.01)) as it:
            it.host("b.test")
            client = await it.connect("b.test")
            with pytest.raises(ConnectionResetError):
                await client.receive_all()

    run(script())


def test_tls_with_the_known_name_is_spliced_untouched(run: Run) -> None:
    """The sniffed hello travels on as it came, however it was cut."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(HELLO[:7])
            await client.send(HELLO[7:] + b"early data")
            assert await server.receive(len(HELLO) + 10) == HELLO + b"early data"
            client.finish()
            server.finish()
            assert await client.receive_all() == b""
            (record,) = await it.ended()
            assert record.sniff == "tls"

    run(script())


def test_other_permitted_server_name_is_dialled_instead(run: Run) -> None:
    """When the hello names another permitted host, that host's own address is dialled."""

    async def script() -> None:
        async with Relaying("a.test", "b.test") as it:
            client = await it.connect("a.test")
            first = await it.accept()
            hello = client_hello("b.test")
            await client.send(hello)
            second = await it.accept()
            assert await second.receive(len(hello)) == hello
            assert await first.receive_all() == b""
            client.finish()
            second.finish()
            assert await client.receive_all() == b""
            (record,) = await it.ended()
            assert (record.target, record.identity, record.decision) == ("b.test", "sni", "allow")
            assert it.lookups == ["a.test", "b.test"]

    run(script())


def test_denied_server_name_behind_a_permitted_name(run: Run) -> None:
    """A permitted address does not smuggle a TLS session to a name that is not permitted."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.host("b.test")
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(client_hello("b.test"))
            assert await client.receive(7) == ACCESS_DENIED
            assert await server.receive_all() == b""
            client.finish()
            (record,) = await it.ended()
            assert (record.decision, record.target, record.identity) == ("deny", "b.test", "sni")

    run(script())


def test_malformed_hello_is_refused(run: Run) -> None:
    """What begins as TLS and is not well formed never reaches the server."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00")
            assert await client.receive(7) == DECODE_ERROR
            assert await server.receive_all() == b""
            client.finish()
            (record,) = await it.ended()
            assert (record.decision, record.denial_category) == ("deny", "protocol")

    run(script())


def test_unfinished_hello_is_refused_at_the_deadline(run: Run) -> None:
    """A client cannot hold a flow open, or slip past sniffing, by never finishing its hello."""

    async def script() -> None:
        async with Relaying("a.test", limits=replace(LIMITS, sniff_s=0.05)) as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(HELLO[:-1])
            assert await client.receive(7) == DECODE_ERROR
            assert await server.receive_all() == b""
            client.finish()
            await it.ended()

    run(script())


def test_short_first_word_with_an_end_is_opaque(run: Run) -> None:
    """A client that sends one word and finishes is not kept waiting for the rest of a request line."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(b"PING")
            client.finish()
            assert await server.receive_all() == b"PING"
            await server.send(b"PONG")
            server.finish()
            assert await client.receive_all() == b"PONG"

    run(script())


def test_client_end_without_a_byte_is_passed_on(run: Run) -> None:
    """A client that finishes at once still gets what the server says."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            client.finish()
            server = await it.accept()
            assert await server.receive_all() == b""
            await server.send(b"daytime")
            server.finish()
            assert await client.receive_all() == b"daytime"
            await it.ended()

    run(script())


def test_unknown_address_uses_the_server_name(run: Run) -> None:
    """Without a name for the address, the hello's name is judged, and its owner is dialled."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("203.0.113.9")
            await client.send(HELLO)
            server = await it.accept()
            assert await server.receive(len(HELLO)) == HELLO
            client.finish()
            server.finish()
            assert await client.receive_all() == b""
            (record,) = await it.ended()
            assert (record.target, record.identity) == ("a.test", "sni")
            assert record.resolved_address == f"127.0.0.1:{it.port}"

    run(script())


@pytest.mark.parametrize(
    ("first", "answer"),
    [(client_hello(None), ACCESS_DENIED), (client_hello("b.test"), ACCESS_DENIED), (b"\0binary", None)],
)
def test_unknown_address_without_a_permitted_name(run: Run, first: bytes, answer: bytes | None) -> None:
    """Nothing is dialled for a client that shows no permitted name."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("203.0.113.9")
            await client.send(first)
            if answer is None:
                with pytest.raises(ConnectionResetError):
                    await client.receive_all()
            else:
                assert await client.receive(7) == answer
                client.finish()
            (record,) = await it.ended()
            assert record.decision == "deny"
            assert it.lookups == []
            assert await it.nobody_called()

    run(script())


def test_unknown_address_says_what_would_help(run: Run) -> None:
    """The denial of a bare address names the address and the option that would permit it."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("203.0.113.9")
            await client.send(b"\0")
            with pytest.raises(ConnectionResetError):
                await client.receive_all()
            (record,) = await it.ended()
            assert record.reason is not None
            assert "no host name is known for 203.0.113.9" in record.reason
            assert record.remedy == f"--allow-domain 203.0.113.9:{it.port}"

    run(script())


def test_metadata_address_is_denied_whatever_the_hello_says(run: Run) -> None:
    """No server name makes a flow to a metadata address anything but a denial."""

    async def script() -> None:
        async with Relaying("a.test", allow=("*",)) as it:
            client = await it.connect("169.254.169.254", 80)
            await client.send(HELLO)
            assert await client.receive(7) == ACCESS_DENIED
            client.finish()
            (record,) = await it.ended()
            assert (record.decision, record.remedy) == ("deny", None)
            assert await it.nobody_called()

    run(script())


def test_listed_address_is_dialled(run: Run) -> None:
    """A rule for an address permits flows for which nothing else is known."""

    async def script() -> None:
        async with Relaying(allow=("127.0.0.1:{port}",)) as it:
            it.hosts["127.0.0.1"] = (ResolvedAddress(LOOPBACK, own=True, pinned=True),)
            client = await it.connect("127.0.0.1")
            server = await it.accept()
            await server.send(b"hi")
            assert await client.receive(2) == b"hi"
            client.close()
            server.close()
            (record,) = await it.ended()
            assert (record.identity, record.decision) == ("address", "allow")

    run(script())


def test_rebinding_to_an_own_address_is_denied(run: Run) -> None:
    """A permitted name that DNS points at this machine is not dialled."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.hosts["a.test"] = (ResolvedAddress(LOOPBACK, own=True),)
            client = await it.connect("a.test")
            await client.send(HELLO)
            assert await client.receive(7) == ACCESS_DENIED
            client.finish()
            await it.ended()
            assert await it.nobody_called()

    run(script())


def test_unreachable_upstream_is_an_internal_error_in_tls(run: Run) -> None:
    """A permitted host that does not answer is told apart from a denial, in the record and on the wire."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.upstream.close()
            client = await it.connect("a.test")
            await client.send(HELLO)
            assert await client.receive(7) == INTERNAL_ERROR
            client.finish()
            (record,) = await it.ended()
            assert record.decision == "allow"
            assert record.reason == f"connect a.test:{it.port}: Connection refused"

    run(script())


def test_failed_lookup_resets_an_opaque_client(run: Run) -> None:
    """When the name has no answer the client sees a failure, and the record the reason."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            del it.hosts["a.test"]
            client = await it.connect("a.test")
            await client.send(b"\0")
            with pytest.raises(ConnectionResetError):
                await client.receive_all()
            (record,) = await it.ended()
            assert record.reason == "resolve a.test: no such name"

    run(script())


@pytest.mark.parametrize("who", ["client", "server"])
def test_reset_is_passed_on(run: Run, who: str) -> None:
    """An abort arrives as an abort: truncated data must not look complete."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(b"\0")
            assert await server.receive(1) == b"\0"
            aborting, other = (client, server) if who == "client" else (server, client)
            aborting.reset()
            with pytest.raises(ConnectionResetError):
                await other.receive_all()
            (record,) = await it.ended()
            assert record.reason == "Connection reset by peer"

    run(script())


def test_large_transfer_both_ways_at_once(run: Run) -> None:
    """Every byte arrives, in order, in both directions at the same time, slow readers included."""
    data = os.urandom(1 << 20) * 24

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            async with asyncio.TaskGroup() as group:

                async def push(peer: object, first: bytes) -> None:
                    await peer.send(first + data)  # type: ignore[attr-defined]  # a Peer
                    peer.finish()  # type: ignore[attr-defined]  # a Peer

                group.create_task(push(client, b"\0"))
                group.create_task(push(server, b"\0"))
                down = group.create_task(client.receive_all())
                up = group.create_task(server.receive_all())
            digest = hashlib.sha256(b"\0" + data).digest()
            assert hashlib.sha256(up.result()).digest() == digest
            assert hashlib.sha256(down.result()).digest() == digest
            (record,) = await it.ended()
            assert record.bytes_sent == record.bytes_received == len(data) + 1

    run(script())


def test_bytes_are_counted_once(run: Run) -> None:
    """Sniffed bytes and spliced bytes are one count."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(HELLO)
            assert await server.receive(len(HELLO)) == HELLO
            await client.send(b"x" * 1000)
            assert len(await server.receive(1000)) == 1000
            client.finish()
            server.finish()
            assert await client.receive_all() == b""
            (record,) = await it.ended()
            assert (record.bytes_sent, record.bytes_received) == (len(HELLO) + 1000, 0)

    run(script())


def test_fault_of_ours_ends_one_flow_only(run: Run) -> None:
    """A programming error is recorded as internal, resets that client, and the next one is served."""

    async def script() -> None:
        async with Relaying("a.test") as it:

            def explode(address: object) -> str | None:
                raise ZeroDivisionError("in the name table")

            it.name_of, name_of = explode, it.name_of  # type: ignore[method-assign]  # the fault
            broken = await it.connect("a.test")
            with pytest.raises(ConnectionResetError):
                await broken.receive_all()
            it.name_of = name_of  # type: ignore[method-assign]  # repaired
            client = await it.connect("a.test")
            server = await it.accept()
            await server.send(b"hi")
            assert await client.receive(2) == b"hi"
            client.close()
            server.close()
            first, _ = await it.ended()
            assert (first.decision, first.denial_category) == ("deny", "internal")
            assert first.reason == "internal error: ZeroDivisionError: in the name table"

    run(script())


def test_idle_flow_ends(run: Run) -> None:
    """A flow in which nothing moves is aborted at the idle deadline."""

    async def script() -> None:
        async with Relaying("a.test", limits=replace(LIMITS, idle_s=0.5)) as it:
            # Its byte is there from the start: until then it would be a flow in which nobody speaks, and end as one.
            client = await it.connect_to_proxy(to_proxy(f"CONNECT a.test:{it.port}") + b"\0")
            server = await it.accept()
            for end in (client, server):
                with pytest.raises(ConnectionResetError):
                    await end.receive_all()
            (record,) = await it.ended()
            assert record.reason == "nothing moved for 0.5 s"

    run(script())


def test_real_tls_end_to_end(run: Run) -> None:
    """A TLS client verifies the server's own certificate through the relay, in the flow's one connection."""
    authority = trustme.CA()
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("a.test").configure_cert(server_side)
    authority.configure_trust(client_side)

    async def script() -> None:
        async with Relaying("a.test") as it:

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write((await reader.readexactly(4)).upper())
                writer.close()
                await writer.wait_closed()

            async with await asyncio.start_server(serve, sock=it.upstream, ssl=server_side):
                client = await it.connect("a.test")
                reader, writer = await asyncio.open_connection(
                    sock=client.sock, ssl=client_side, server_hostname="a.test"
                )
                writer.write(b"ping")
                assert await reader.read() == b"PING"
                writer.close()
                await writer.wait_closed()
            (record,) = await it.ended()
            assert (record.sniff, record.target, record.decision) == ("tls", "a.test", "allow")

    run(script())


def test_addresses_are_tried_in_turn(run: Run) -> None:
    """A dead address of a permitted host does not hide a live one."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            it.hosts["a.test"] = (
                ResolvedAddress(ip_address("::1"), own=True, pinned=True),
                ResolvedAddress(LOOPBACK, own=True, pinned=True),
            )
            client = await it.connect("a.test")
            server = await it.accept()
            await server.send(b"hi")
            assert await client.receive(2) == b"hi"
            assert PROCESS.pid == 4242
            client.close()
            server.close()
            await it.ended()

    run(script())


def test_nobody_speaks(run: Run) -> None:
    """A permitted flow on which nothing is ever said ends; it does not become a tunnel that nobody looks into."""

    async def script() -> None:
        async with Relaying("a.test", limits=replace(LIMITS, idle_s=0.05)) as it:
            client, server = await it.connect("a.test"), await it.accept()
            for end in (client, server):
                with pytest.raises(ConnectionResetError):
                    await end.receive_all()
            await it.ended()

    run(script())


def test_an_end_in_the_request_line_ends_the_line(run: Run) -> None:
    """What some servers would answer as a request is not sent on unread."""

    async def script() -> None:
        async with Relaying("a.test") as it:
            client, server = await it.connect("a.test"), await it.accept()
            await client.send(b"GET /secret")
            client.finish()
            assert (await client.receive_all()).startswith(b"HTTP/1.1 400 ")
            assert await server.receive_all() == b""
            await it.ended()

    run(script())
