"""Clients that know they talk to a proxy: what they say until they want a tunnel, if they do.

HTTP: CONNECT, requests for an absolute http:// URI, and requests for a service of ours (`/service/…`). SOCKS5: CONNECT.
Everything here needs the session token, and whoever has not shown it learns nothing else: no name is looked up, no
rule is asked. Must not know how a tunnel is judged or carried.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nono_ebpf.audit.record import without_query
from nono_ebpf.authority import Authority, host_address, parse_authority
from nono_ebpf.credentials.injection import Presented
from nono_ebpf.errors import ClientProtocolError, InvalidAuthority
from nono_ebpf.model import Endpoint, Identity
from nono_ebpf.policy.decide import DenialCategory
from nono_ebpf.policy.endpoints import parse_path
from nono_ebpf.relay import refuse
from nono_ebpf.relay.categories import AUTHENTICATION_FAILED, UNKNOWN_SERVICE
from nono_ebpf.relay.exchange import Addressed
from nono_ebpf.relay.refuse import Language
from nono_ebpf.relay.services import not_the_phantom
from nono_ebpf.relay.socks import Handshake
from nono_ebpf.wire import http1, proxy_auth, socks5

if TYPE_CHECKING:
    from collections.abc import Callable

    from nono_ebpf.audit.record import Mode, Record
    from nono_ebpf.policy.services import Service
    from nono_ebpf.relay.context import Context
    from nono_ebpf.relay.http import Conversation
    from nono_ebpf.relay.stream import Stream

# RFC 9110 §9.3.6: any 2xx; no Content-Length, no Transfer-Encoding.
_ESTABLISHED = b"HTTP/1.1 200 Connection Established\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tunnel that a client wants, the answer it gets when it has one, and the language of any other."""

    authority: Authority
    established: bytes
    language: Language


def addressed_to_proxy(head: http1.RequestHead) -> Addressed:
    """Addressing for a client that knows it talks to a proxy.

    Absolute-form; its Host is ignored (RFC 9112 §3.2.2).
    """
    absolute = http1.split_absolute_form(head.target)
    if absolute is None:
        raise ClientProtocolError("this is a proxy: send CONNECT host:port, or a request for an absolute http:// URI")
    scheme, text, target = absolute
    if scheme == "https":
        raise ClientProtocolError("https forward-proxying is not supported; use CONNECT for https")
    if scheme != "http":
        raise ClientProtocolError(f"{scheme}:// through a proxy needs a tunnel: use CONNECT host:port")
    http1.check_origin_form(head, target)
    return Addressed(http1.absolute_authority(text), Identity.AUTHORITY, (), target)


class Explicit:
    """One client of the proxy. `record` is the connection's; `open_record` opens one for a request."""

    def __init__(
        self,
        context: Context,
        client: Stream,
        conversation: Conversation,
        record: Record,
        open_record: Callable[[Mode], Record],
    ) -> None:
        self._context, self._limits = context, context.limits
        self._client, self._conversation = client, conversation
        self._record, self._open_record = record, open_record
        self._challenges = 0

    async def wanted(self) -> Wanted | None:
        """The tunnel that the client wants, its request off the buffer; None when it is done or was refused."""
        if not await self._speaks():
            return None
        if self._client.unread[0] != socks5.VERSION:
            return await self._serve_http()
        self._record.mode = "socks5"
        authority = await Handshake(self._client, self._context.token, self._limits, self._record).run()
        if authority is None:
            return None
        return Wanted(self._meant(authority), socks5.reply_bytes(socks5.Reply.SUCCEEDED), Language.SOCKS5)

    async def _speaks(self) -> bool:
        try:
            return await self._client.fill(self._limits.first_bytes_s)
        except TimeoutError:
            return False

    def _meant(self, authority: Authority) -> Authority:
        """An address that this sandbox was given for a name stands for that name."""
        address = host_address(authority.host)
        name = None if address is None else self._context.names.name_of(address)
        return authority if name is None else Authority(name, authority.port)

    # ------------------------------------------------------------ HTTP

    async def _serve_http(self) -> Wanted | None:
        """Every request up to the first good CONNECT."""
        while (head := await self._conversation.next_head()) is not None:
            name = self._service(head)
            mode: Mode = "connect" if head.method == "CONNECT" else "http" if name is None else "reverse"
            record = self._open_record(mode)
            authenticated = self._authenticate(head, record)
            service = self._known_service(name)
            if service is not None:
                if not await self._serve_service(head, record, service):
                    return None
            elif not authenticated:
                if not await self._challenge(head, record):
                    return None
            elif head.method == "CONNECT":
                return await self._tunnel(head, record)
            elif name is not None:
                await self._refuse_service(head, record, name)
                return None
            elif not await self._conversation.serve(head, record):
                return None
        return None

    async def _tunnel(self, head: http1.RequestHead, record: Record) -> Wanted | None:
        try:
            authority = http1.connect_authority(head)
        except ClientProtocolError as error:
            await self._conversation.refuse_malformed(head, record, error)
            return None
        self._record.method = head.method
        self._record.auth_mechanism, self._record.auth_outcome = record.auth_mechanism, record.auth_outcome
        return Wanted(self._meant(authority), _ESTABLISHED, Language.HTTP)

    # ------------------------------------------------------------ the token

    def _authenticate(self, head: http1.RequestHead, record: Record) -> bool:
        """Whether the client has shown the token, in either field if it asks for a service."""
        token = self._context.token
        if token.matches(proxy_auth.offered_secret(head.fields)):
            record.auth_mechanism, record.auth_outcome = "proxy_authorization", "succeeded"
        elif record.mode == "reverse" and token.matches(proxy_auth.offered_token(head.fields)):
            record.auth_mechanism, record.auth_outcome = "phantom_header", "succeeded"
        else:
            record.auth_mechanism, record.auth_outcome = "proxy_authorization", "failed"
        return record.auth_outcome == "succeeded"

    async def _challenge(self, head: http1.RequestHead, record: Record) -> bool:
        """Say what is missing. True when the client may try again: its request is read, and it has tries left."""
        try:
            body = http1.request_body(head)
        except ClientProtocolError as error:
            await self._conversation.refuse_malformed(head, record, error)
            return False
        self._challenges += 1
        record.denial_category, record.reason = AUTHENTICATION_FAILED, _why(head)
        refusal = refuse.unauthenticated(record.reason)
        if self._challenges < self._limits.challenges and await self._read_away(head, body):
            await self._conversation.challenge(head, record, refusal)
            return True
        await self._conversation.refuse(head, record, refusal)
        return False

    async def _read_away(self, head: http1.RequestHead, body: http1.Body) -> bool:
        """Whether the next byte is the next request's: the body is known to be small, and is read."""
        # RFC 9110 §10.1.1: a client that waits for 100 may send the body after another answer, or leave it out.
        if http1.wants_close(head) or (not body.done and http1.field_values(head.fields, b"expect")):
            return False
        if not isinstance(body, http1.LengthBody) or body.remaining > self._limits.linger_bytes:
            return False
        body.take(self._client.unread)
        try:
            async with asyncio.timeout(self._limits.sniff_s):
                while not body.done and await self._client.fill(self._limits.sniff_s):
                    body.take(self._client.unread)
        except TimeoutError:
            return False
        return body.done

    # ------------------------------------------------------------ services

    def _service(self, head: http1.RequestHead) -> str | None:
        """The service a request is for: the first segment of its path, when its target is no other server's."""
        target = head.target
        if (absolute := http1.split_absolute_form(target)) is not None:
            scheme, text, target = absolute
            if scheme != "http" or not self._is_own(text):
                return None
        if head.method == "CONNECT" or not target.startswith("/"):
            return None
        return target.partition("?")[0].split("/")[1]

    def _is_own(self, text: str) -> bool:
        try:
            authority = parse_authority(text, 80)
        except InvalidAuthority:
            return False
        address = host_address(authority.host)
        if address is None:
            ports = {each.port for each in self._context.own_listeners}
            return authority.host == "localhost" and authority.port in ports
        return Endpoint(address, authority.port) in self._context.own_listeners

    def _known_service(self, name: str | None) -> Service | None:
        """One whose credential can be had, and that has one host."""
        service = None if name is None else self._context.policy.services.get(name)
        if service is None or service.unsupported or service.host.pattern.startswith("*"):
            return None
        return service

    async def _serve_service(self, head: http1.RequestHead, record: Record, service: Service) -> bool:
        """Send the request to the service's own host. Whose it is it may say where the credential belongs, too."""
        absolute = http1.split_absolute_form(head.target)
        rest = (head.target if absolute is None else absolute[2]).removeprefix(f"/{service.name}")
        # Made canonical before it is put behind the service's own path: no `..` leads out of that.
        path = parse_path(rest if rest.startswith("/") else f"/{rest}")
        if path is None or "#" in rest:
            error = ClientProtocolError("its path is too long or has escapes that no rule can be about")
            await self._conversation.refuse_malformed(head, record, error)
            return False
        target = service.base_path + path.target
        if record.auth_outcome != "succeeded" and not self._shows_phantom(head, service, target):
            refusal = not_the_phantom(service, record, "the session token is missing, or is another")
            await self._conversation.refuse(head, record, refusal)
            return False
        (port,) = service.host.ports or (0,)
        authority = Authority(service.host.pattern, port)
        addressed = Addressed(authority, Identity.AUTHORITY, (), target, tls=service.tls, service=service.name)
        return await self._conversation.serve(head, record, addressed)

    def _shows_phantom(self, head: http1.RequestHead, service: Service, target: str) -> bool:
        services = self._context.services
        return services is not None and services.phantom(service, head, target).presented is Presented.PHANTOM

    async def _refuse_service(self, head: http1.RequestHead, record: Record, name: str) -> None:
        service = self._context.policy.services.get(name)
        if service is not None:
            record.denial_category = DenialCategory.MANAGED_CREDENTIAL_UNAVAILABLE.value
            refusal = refuse.service_unavailable(name, service.unsupported or "it has many hosts: ask one of them")
        else:
            record.denial_category = UNKNOWN_SERVICE
            refusal = refuse.no_service(name)
        record.path, record.reason = without_query(head.target), str(refusal.body["reason"])
        await self._conversation.refuse(head, record, refusal)


def _why(head: http1.RequestHead) -> str:
    if not http1.field_values(head.fields, b"proxy-authorization"):
        return "the session token is missing; it is in HTTP_PROXY and in NONO_PROXY_TOKEN"
    return "Proxy-Authorization does not hold the session token, which is in HTTP_PROXY and in NONO_PROXY_TOKEN"
