"""The relay behind real proxies: Squid, in clear and inside TLS, and tinyproxy, each with and without a password."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trustme
from kit.proxies import HERE, RealProxy, Site, Squid, Tinyproxy, free_port
from kit.relaying import Peer, Run, run
from kit.sandboxes import eventually
from kit.upstream_proxies import Chained, unheard

from nono_ebpf.relay.chain import ProxyAccess
from nono_ebpf.tls.contexts import context_for

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

__all__ = ["run"]

pytestmark = pytest.mark.root

PASSWORD = "s3cr3t"
ETC = {"hosts": "127.0.0.1 localhost a.test\n"}
MODES = ["squid", "squid password", "squid tls", "squid tls password", "tinyproxy", "tinyproxy password"]


@dataclass
class Office:
    """A proxy, and what it takes to use it."""

    proxy: RealProxy
    tls: bool
    access: ProxyAccess

    def relaying(self, access: ProxyAccess | None = None, *, allow: tuple[str, ...] = ()) -> Chained:
        where = {"proxy_port": self.proxy.site.port, "tls": self.tls}
        return Chained("a.test", **where, access=access or self.access, allow=allow)

    async def was_asked_for(self, target: str) -> None:
        """Once, and for nothing else."""
        assert await asyncio.to_thread(eventually, lambda: self.proxy.asked == [target]), self.proxy.output()


class Offices:
    """Starts proxies, and ends them with the test."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def open(self, mode: str, *, ports: tuple[int, ...] = ()) -> Office:
        tls, users = "tls" in mode, {"alice": PASSWORD} if "password" in mode else {}
        context, pem = certified("proxy.test") if tls else (None, "")
        site = Site(HERE, port=free_port(), etc=ETC, users=users, tls=pem)
        proxy = Squid(site, ports=ports) if "squid" in mode else Tinyproxy(site)
        self._stack.enter_context(proxy)
        return Office(proxy, tls, ProxyAccess(basic(PASSWORD) if users else None, context))

    def close(self) -> None:
        self._stack.close()


def certified(name: str) -> tuple[ssl.SSLContext, str]:
    """What trusts a new certificate for `name`, and that with its key."""
    authority = trustme.CA()
    pem = authority.issue_cert(name).private_key_and_cert_chain_pem.bytes().decode()
    return context_for(authority.cert_pem.bytes()), pem


@pytest.fixture
def offices() -> Iterator[Offices]:
    made = Offices()
    yield made
    made.close()


def basic(password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"alice:{password}".encode())


async def refusal(client: Peer) -> tuple[int, str]:
    head = await client.receive_until(b"\r\n\r\n")
    reason: str = json.loads(await client.receive_until(b"}\n"))["reason"]
    return int(head.split()[1]), reason


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_speaks_first(run: Run, offices: Offices, mode: str) -> None:
    """Greets the client through the proxy, which was asked for its name; the client's words reach it, too."""
    office = offices.open(mode)

    async def script() -> None:
        async with office.relaying() as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await server.send(b"220 ready\r\n")
            assert await client.receive(11) == b"220 ready\r\n"
            await client.send(b"EHLO\r\n")
            assert await server.receive(6) == b"EHLO\r\n"
            server.finish()
            assert await client.receive_all() == b""
            client.close()
            await office.was_asked_for(f"a.test:{it.port}")
            (record,) = await it.ended()
            assert (record.sniff, record.reason) == ("skipped: server spoke first", None)
            assert record.resolved_address == f"127.0.0.1:{it.proxy_port}"

    run(script())


@pytest.mark.parametrize("mode", MODES)
def test_much_of_it(run: Run, offices: Offices, mode: str) -> None:
    """Both ways at once, more than any buffer holds, unchanged."""
    office = offices.open(mode)
    up, down = os.urandom(3_000_011), os.urandom(4_000_003)

    async def script() -> None:
        async with office.relaying() as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await client.send(b"\0")
            assert await server.receive(1) == b"\0"
            async with asyncio.TaskGroup() as group:
                group.create_task(client.send(up))
                group.create_task(server.send(down))
                sent = group.create_task(server.receive(len(up)))
                received = group.create_task(client.receive(len(down)))
            assert sent.result() == up
            assert received.result() == down

    run(script())


@pytest.mark.parametrize("mode", MODES)
def test_requests(run: Run, offices: Offices, mode: str) -> None:
    """Requests to one host share a tunnel, and nothing of the proxy's is added to them."""
    office = offices.open(mode)

    async def script() -> None:
        async with office.relaying() as it:
            client = await it.connect("a.test")
            server = None
            for path in ("/1", "/2"):
                await client.send(f"GET {path} HTTP/1.1\r\nHost: a.test:{it.port}\r\n\r\n".encode())
                server = server or await it.accept()
                asked = await server.receive_until(b"\r\n\r\n")
                assert asked == f"GET {path} HTTP/1.1\r\nHost: a.test:{it.port}\r\n\r\n".encode()
                await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                assert (await client.receive_until(b"hi")).startswith(b"HTTP/1.1 200 OK\r\n")
            client.close()
            await office.was_asked_for(f"a.test:{it.port}")
            assert [record.status for record in await it.ended()] == [200, 200]

    run(script())


@pytest.mark.parametrize("mode", ["squid password", "squid tls password", "tinyproxy password"])
@pytest.mark.parametrize("shown", [None, "wr0ng"])
def test_credentials_that_are_missing_or_wrong(run: Run, offices: Offices, mode: str, shown: str | None) -> None:
    """Are a 502 that says which; the host is not reached, and what was shown is neither on record nor in the answer."""
    office = offices.open(mode)
    access = ProxyAccess(None if shown is None else basic(shown), office.access.tls)

    async def script() -> None:
        async with office.relaying(access) as it:
            client = await it.connect("a.test")
            await client.send(f"GET / HTTP/1.1\r\nHost: a.test:{it.port}\r\n\r\n".encode())
            status, reason = await refusal(client)
            said = "407 Proxy Authentication Required: "
            if "tinyproxy" in mode and shown is not None:
                said = "401 Unauthorized: "
            said += "it wants credentials: --upstream-auth" if shown is None else "it does not take the credentials of "
            problem = f"connect a.test:{it.port}: the upstream proxy {it.via} answered {said}"
            assert (status, reason[: len(problem)]) == (502, problem)
            client.finish()
            (record,) = await it.ended()
            assert "wr0ng" not in reason + repr(record)
            assert basic("wr0ng").decode()[6:] not in reason + repr(record)
            assert await it.nobody_called()

    run(script())


def test_a_port_that_the_proxy_does_not_permit(run: Run, offices: Offices) -> None:
    """Is told as what it mostly is."""
    office = offices.open("squid", ports=(443,))

    async def script() -> None:
        async with office.relaying() as it:
            client = await it.connect("a.test")
            await client.send(f"GET / HTTP/1.1\r\nHost: a.test:{it.port}\r\n\r\n".encode())
            status, reason = await refusal(client)
            said = "answered 403 Forbidden: proxies often permit CONNECT to port 443 only"
            assert (status, said in reason) == (502, True)
            assert await it.nobody_called()

    run(script())


@pytest.mark.parametrize("mode", ["squid", "squid tls", "tinyproxy"])
def test_a_host_that_is_down(run: Run, offices: Offices, mode: str) -> None:
    """The proxy says so, and we pass it on."""
    office = offices.open(mode)

    async def script(port: int) -> None:
        async with office.relaying(allow=(f"a.test:{port}",)) as it:
            client = await it.connect("a.test", port)
            await client.send(f"GET / HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n".encode())
            status, reason = await refusal(client)
            assert (status, reason.endswith(": it cannot reach the host")) == (502, True), reason

    with unheard() as down:
        run(script(down.getsockname()[1]))


def test_a_name_that_only_the_proxy_knows(run: Run, offices: Offices) -> None:
    """Is reached: nobody here looks it up."""
    office = offices.open("squid")

    async def script() -> None:
        async with office.relaying() as it:
            del it.hosts["a.test"]
            client = await it.connect("a.test")
            await (await it.accept()).send(b"220")
            assert await client.receive(3) == b"220"

    run(script())


@pytest.mark.parametrize("mode", ["squid", "squid tls", "tinyproxy"])
def test_a_proxy_that_is_killed(run: Run, offices: Offices, mode: str) -> None:
    """In the middle of a tunnel: it ends. Inside TLS it is a RST, since what the kernel then sends proves nothing."""
    office = offices.open(mode)

    async def script() -> None:
        async with office.relaying() as it:
            client = await it.connect("a.test")
            server = await it.accept()
            await server.send(b"half")
            assert await client.receive(4) == b"half"
            office.proxy.kill()
            if office.tls:
                with pytest.raises(ConnectionResetError):
                    await client.receive_all()
            else:
                assert await client.receive_all() == b""
            client.close()
            assert len(await it.ended()) == 1

    run(script())
