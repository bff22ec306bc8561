"""A relay that ends TLS and puts credentials into requests, with a real TLS server behind it, for scripts.

async with Intercepting({"api": Service(...)}, {"api": b"secret"}) as it:
    answer = await it.ask("api.test", b"GET /v1 HTTP/1.1\r\nHost: api.test\r\n\r\n")
    assert b"Bearer secret" in it.seen[0]
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import trustme
from kit.relaying import LIMITS, TOKEN, Relaying

from nono_ebpf.credentials.injection import Injection, Placement
from nono_ebpf.credentials.secret import Secret
from nono_ebpf.errors import CredentialUnavailable
from nono_ebpf.policy.rules import HostRules, Policy, Rule
from nono_ebpf.relay.chain import ProxyAccess
from nono_ebpf.relay.interception import Interception
from nono_ebpf.relay.listener import Relay
from nono_ebpf.relay.secure_upstreams import SecureUpstreams
from nono_ebpf.relay.services import Access, Services
from nono_ebpf.session_token import Token
from nono_ebpf.tls.authority import CertificateAuthority
from nono_ebpf.tls.contexts import ServerContexts, UpstreamContexts

if TYPE_CHECKING:
    from types import TracebackType

    from kit.relaying import Peer

    from nono_ebpf.policy.services import Service
    from nono_ebpf.relay.rate_limit import RateLimiter

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BEARER = Injection(Placement(), Placement())
Respond = Callable[[bytes], bytes]


class Intercepting(Relaying):
    """`services`: their definitions, whose host's port becomes that of the server; `secrets`: their credentials.

    `intercept`: hosts that are looked into all the same. `server_names`: whom the server can prove to be, if not all.
    """

    def __init__(
        self,
        services: Mapping[str, Service] | None = None,
        secrets: Mapping[str, bytes] | None = None,
        *names: str,
        injections: Mapping[str, Injection] | None = None,
        limiters: Mapping[str, RateLimiter] | None = None,
        intercept: Sequence[str] = (),
        endpoints: Mapping[str, tuple[str, ...]] | None = None,
        server_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(*names, endpoints=endpoints)
        services, secrets = services or {}, dict(secrets or {})
        ports = frozenset({self.port})
        placed = {name: replace(each, host=replace(each.host, ports=ports)) for name, each in services.items()}
        for each in [*(service.host.pattern for service in placed.values()), *intercept]:
            if each not in self.hosts and "*" not in each:
                self.host(each)
        looked_at = [Rule(each, ports, each, "test", names_port=True, intercept=True) for each in intercept]
        managed = HostRules([each.host for each in placed.values()])
        allow = HostRules([*self.policy.allow.rules, *looked_at])
        self.policy = Policy(allow, HostRules(), managed, services=placed)
        hosts = [*(rule.pattern for rule in (*managed.rules, *looked_at)), *(endpoints or ())]
        ca = CertificateAuthority(hosts or ["nothing.test"], timedelta(hours=2))
        self.ca_pem = ca.certificate_pem
        root = trustme.CA()
        self._server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        root.issue_cert(*(server_names if server_names is not None else list(self.hosts))).configure_cert(
            self._server_context
        )
        self.upstreams = SecureUpstreams(LIMITS, ProxyAccess(), UpstreamContexts(root.cert_pem.bytes()))
        token = Token(TOKEN)
        self.secrets, self.asked = secrets, 0
        self._held: dict[str, Secret] = {}
        access = {name: Access((injections or {}).get(name, BEARER), (limiters or {}).get(name)) for name in placed}
        self.relay = Relay(
            *(self.policy, self, self, self, self, LIMITS, [self.own], token),
            interception=Interception(ServerContexts(ca), self.upstreams),
            services=Services(access, self, token),
        )
        self.seen: list[bytes] = []
        self.connections = 0
        self._clients: list[asyncio.StreamWriter] = []
        self.respond: Respond = lambda _head: OK

    async def get(self, name: str) -> Secret:
        """The source of credentials."""
        self.asked += 1
        if name not in self.secrets:
            raise CredentialUnavailable(name, "missing", "the test has none")
        value = self.secrets[name]
        if self._held.get(name, Secret(b"")) != Secret(value):
            self._held[name] = Secret(value)
        return self._held[name]

    async def _serve_tls(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = next((int(line[15:]) for line in head.split(b"\r\n") if line[:15] == b"Content-Length:"), 0)
                self.seen.append(head + await reader.readexactly(size))
                writer.write(self.respond(head))
                await writer.drain()
        writer.close()

    def client_context(self) -> ssl.SSLContext:
        """Of a client that trusts this sandbox's certificates."""
        context = ssl.create_default_context(cadata=self.ca_pem.decode())
        context.set_alpn_protocols(["http/1.1"])
        return context

    async def secure(self, peer: Peer, server_name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """TLS over a connection of `connect` or `connect_to_proxy`."""
        sock = peer.sock.dup()
        peer.close()
        context = self.client_context()
        reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=server_name)
        self._clients.append(writer)
        return reader, writer

    async def ask(self, to: str, *requests: bytes, server_name: str | None = None) -> bytes:
        """Send the requests on one redirected connection, and everything that comes back until it is quiet."""
        reader, writer = await self.secure(await self.connect(to), server_name or to)
        return await self.exchange(reader, writer, *requests)

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *requests: bytes) -> bytes:
        """One after the other; each response is read to its end, which a Content-Length tells."""
        answers = b""
        for request in requests:
            writer.write(request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            size = next((int(each[15:]) for each in head.split(b"\r\n") if each[:15] == b"Content-Length:"), 0)
            answers += head + await reader.readexactly(size)
        writer.close()
        return answers

    async def __aenter__(self) -> Intercepting:
        self._server = await asyncio.start_server(self._serve_tls, sock=self.upstream, ssl=self._server_context)
        await super().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nothing is left to a loop that ends: it would blame whichever test comes next. Who begins to wait for a server
        # that is closed already does not wait for its connections (before Python 3.12).
        served = asyncio.ensure_future(self._server.wait_closed())
        await asyncio.sleep(0)
        self.upstreams.close()
        self._server.close()
        await super().__aexit__(kind, error, trace)
        for client in self._clients:
            client.close()
            with suppress(OSError):
                await client.wait_closed()
        await served
