"""HTTP/1 on one client connection: every request is judged, sent to its host's owner, and recorded.

Knows the order of a request and its response. Syntax is `wire.http1`'s, verdicts are `policy.decide`'s,
refusals are `refuse`'s, credentials `services`'. An upstream connection in clear is kept for the next request to the
same authority, and for nothing else; those inside TLS are shared by the whole sandbox. Where the path was judged, it is
sent in the form that was.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from nono_ebpf.audit.record import Record, without_query
from nono_ebpf.authority import Authority
from nono_ebpf.errors import ClientProtocolError, UpstreamError
from nono_ebpf.model import Identity
from nono_ebpf.policy.decide import Ask, Denial, Permit
from nono_ebpf.policy.endpoints import Request
from nono_ebpf.relay import refuse
from nono_ebpf.relay.categories import PROTOCOL, UNSUPPORTED_UPGRADE
from nono_ebpf.relay.context import Context, note_verdict
from nono_ebpf.relay.exchange import Addressed, Exchange, Outcome
from nono_ebpf.relay.refuse import Language, Refusal
from nono_ebpf.relay.secure import SecureUpstream
from nono_ebpf.relay.tunnel import tunnel
from nono_ebpf.relay.upstream import dial
from nono_ebpf.wire import NEED_MORE, http1

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nono_ebpf.model import Process
    from nono_ebpf.relay.interception import Interception
    from nono_ebpf.relay.limits import Limits
    from nono_ebpf.relay.services import Outgoing
    from nono_ebpf.relay.stream import Stream, Upstream


class Addressing(Protocol):
    """Finds out whom a request is for. Raises ClientProtocolError when that has no one answer."""

    def __call__(self, head: http1.RequestHead) -> Addressed:
        """Judge nothing; only read."""


class Redirected:
    """Addressing for a client that believes it talks to an origin server on `port`.

    `name`: the host we know it for. `address`: the bare address that was permitted.
    """

    def __init__(self, port: int, name: str | None, address: str | None = None) -> None:
        self._port, self._name, self._address = port, name, address

    def __call__(self, head: http1.RequestHead) -> Addressed:
        """The Host field, which an absolute-form target must equal."""
        authority, target = _origin_server(head, "http", 80)
        if authority is None:
            return self._by_known_name(target)
        if authority.port != self._port:
            raise ClientProtocolError(
                f"Host names port {authority.port}, the connection is to port {self._port}", status=421
            )
        also = (self._name,) if self._name not in {None, authority.host} else ()
        return Addressed(authority, Identity.HOST, tuple(filter(None, also)), target)

    def _by_known_name(self, target: str) -> Addressed:
        if self._name is not None:
            return Addressed(Authority(self._name, self._port), Identity.DNS, (), target)
        if self._address is not None:
            return Addressed(Authority(self._address, self._port), Identity.ADDRESS, (), target)
        raise ClientProtocolError("request without Host, and no name is known for its address")


class Intercepted:
    """Addressing for a client inside TLS, to which we have shown a certificate for the host of `authority`.

    `known`: the host that its connection was for before it named one in TLS; None: that was nobody's.
    """

    def __init__(self, authority: Authority, identity: Identity, known: str | None) -> None:
        self._authority, self._identity, self._known = authority, identity, known

    def __call__(self, head: http1.RequestHead) -> Addressed:
        """The connection's host, which the request must name as well (RFC 9110 §7.4)."""
        named, target = _origin_server(head, "https", 443)
        ours = self._authority
        if named not in {None, ours}:
            raise ClientProtocolError(f"Host names {named}, and TLS {ours}", status=421)
        if self._known not in {None, ours.host}:
            raise ClientProtocolError(f"TLS names {ours.host}, and the connection is to {self._known}", status=421)
        return Addressed(ours, self._identity, (), target, tls=True)


def _origin_server(head: http1.RequestHead, wanted: str, default_port: int) -> tuple[Authority | None, str]:
    """The authority that a request to an origin server names, if it does, and its origin-form."""
    if head.method == "CONNECT":
        raise ClientProtocolError("CONNECT to another proxy is not relayed: connect to the host itself")
    authority = http1.host_field_authority(head, default_port)
    target = head.target
    # RFC 9112 §3.2.2: an origin server obeys the target, not Host, so a request that says both
    # differently is two requests.
    if (absolute := http1.split_absolute_form(head.target)) is not None:
        scheme, text, target = absolute
        if scheme != wanted or http1.absolute_authority(text, default_port) != authority:
            raise ClientProtocolError("request target and Host name different servers")
    http1.check_origin_form(head, target)
    return authority, target


async def read_request_head(client: Stream, limits: Limits, patience_s: float) -> http1.RequestHead | None:
    """Take the next head off the front of `client.unread`, reading more as needed.

    None when the client ends, or stays silent for `patience_s`, before a request begins.

    Raises:
        ClientProtocolError: malformed, incomplete (400), or too slow (408).
    """
    if not client.unread:
        try:
            if not await client.fill(patience_s):
                return None
        except TimeoutError:
            return None
    if (parsed := http1.parse_request_head(client.unread)) is NEED_MORE:
        parsed = await _rest_of_the_head(client, limits)
    head, size = parsed
    del client.unread[:size]
    return head


async def _rest_of_the_head(client: Stream, limits: Limits) -> tuple[http1.RequestHead, int]:
    try:
        async with asyncio.timeout(limits.sniff_s):
            while await client.fill_line(limits.sniff_s, http1.MAX_HEAD_BYTES):
                if (parsed := http1.parse_request_head(client.unread)) is not NEED_MORE:
                    return parsed
    except TimeoutError as error:
        raise ClientProtocolError("HTTP head did not arrive in time", status=408) from error
    raise ClientProtocolError("HTTP head ends early")


@dataclass(frozen=True, slots=True)
class _Sending:
    """A request, whom it is for, and what is sent on in its place. `judged`: not every request is permitted there."""

    head: http1.RequestHead
    addressed: Addressed
    outgoing: Outgoing | None
    judged: bool


class Conversation:
    """All requests of one client connection, until it ends or one of them is a reason to end it.

    `new_record` opens the audit record of a request. Owns the upstream connection, not the client's.
    """

    def __init__(
        self,
        context: Context,
        client: Stream,
        addressing: Addressing,
        process: Process | None,
        new_record: Callable[[], Record],
    ) -> None:
        self._context, self._limits = context, context.limits
        self._client, self._addressing, self._process, self._new_record = client, addressing, process, new_record
        self._upstream: Upstream | None = None
        self._upstream_for: Authority | None = None
        self.requests = 0

    def adopt(self, upstream: Upstream, authority: Authority) -> None:
        """Own `upstream`, which is connected to a permitted endpoint of `authority`."""
        self._upstream, self._upstream_for = upstream, authority

    def close(self) -> None:
        """Let go of the upstream."""
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None

    def reset(self) -> None:
        """Let go of the upstream in the middle of whatever it was doing."""
        if self._upstream is not None:
            self._upstream.reset()
            self._upstream = None

    async def run(self) -> None:
        """Serve requests until the client, or one of them, ends the connection."""
        while (head := await self.next_head()) is not None:
            if not await self.serve(head, self._new_record()):
                return

    async def next_head(self) -> http1.RequestHead | None:
        """The next request, off the buffer; None at the end, or for what is no request and has been refused."""
        # A client that connects to a proxy has something to ask.
        patience_s = self._limits.keep_alive_s if self.requests else self._limits.first_bytes_s
        try:
            return await read_request_head(self._client, self._limits, patience_s)
        except ClientProtocolError as error:
            await self.refuse_malformed(None, self._new_record(), error)
            return None

    async def serve(self, head: http1.RequestHead, record: Record, addressed: Addressed | None = None) -> bool:
        """Judge, send and record a request; True when the client's connection is ready for another.

        `addressed`: whom it is for, where that has been found out already.
        """
        with self._recorded(head, record):
            try:
                return await self._serve(head, record, addressed)
            except ClientProtocolError as error:
                return await self._refuse_malformed(head, record, error)
            except UpstreamError as error:
                record.reason = str(error)
                return await self._refuse(head, record, refuse.unreachable(error))

    async def refuse(self, head: http1.RequestHead, record: Record, refusal: Refusal) -> None:
        """Refuse and record a request that is not to be served; the client's connection ends."""
        with self._recorded(head, record):
            await self._refuse(head, record, refusal)

    async def refuse_malformed(
        self, head: http1.RequestHead | None, record: Record, error: ClientProtocolError
    ) -> None:
        """The same for what is no request."""
        with self._recorded(head, record):
            await self._refuse_malformed(head, record, error)

    async def challenge(self, head: http1.RequestHead, record: Record, refusal: Refusal) -> None:
        """Refuse and record a request whose body is off the buffer; the next one may be better."""
        with self._recorded(head, record):
            record.status = refusal.status
            text = refuse.http_answer(refusal, head_only=head.method == "HEAD", close=False)
            await self._client.send(text, self._limits.refusal_wait_s)

    @contextmanager
    def _recorded(self, head: http1.RequestHead | None, record: Record) -> Iterator[None]:
        """Write `record` when the request is over, whatever became of it."""
        self.requests += 1
        record.method = None if head is None else head.method
        received = -self._client.sent_bytes
        started = time.monotonic()
        try:
            yield
        finally:
            record.bytes_received = received + self._client.sent_bytes
            record.duration_ms = round((time.monotonic() - started) * 1000)
            self._context.audit.write(record)

    async def _refuse_malformed(
        self, head: http1.RequestHead | None, record: Record, error: ClientProtocolError
    ) -> bool:
        record.decision, record.denial_category, record.reason = "deny", PROTOCOL, str(error)
        return await self._refuse(head, record, refuse.malformed(error))

    async def _refuse(self, head: http1.RequestHead | None, record: Record, refusal: Refusal) -> bool:
        self.close()
        # A response that has begun cannot be taken back: then only a RST shows that it is incomplete.
        if record.status is not None:
            self._client.reset()
            return False
        record.status = refusal.status
        head_only = head is not None and head.method == "HEAD"
        await refuse.answer(self._client, refusal, Language.HTTP, self._limits, head_only=head_only)
        return False

    async def _serve(self, head: http1.RequestHead, record: Record, addressed: Addressed | None) -> bool:
        addressed = addressed or self._addressing(head)
        http1.request_body(head)  # refuses ambiguous framing before anybody is dialled
        permit = await self._judge(head, addressed, record)
        if isinstance(permit, Denial):
            return await self._refuse(head, record, refuse.denied(permit))
        if permit.target is not None and permit.target != addressed.target:
            addressed = replace(addressed, target=permit.target)
        judged = _is_restricted(permit)
        if judged:
            http1.check_means_one_request(head)
        if (addressed.tls or permit.service) and http1.asks_for_websocket(head):
            refusal = refuse.unsupported_upgrade()
            record.decision, record.denial_category = "deny", UNSUPPORTED_UPGRADE
            record.reason = str(refusal.body["reason"])
            return await self._refuse(head, record, refusal)
        outgoing = await self._prepare(permit, head, addressed, record)
        if isinstance(outgoing, Refusal):
            return await self._refuse(head, record, outgoing)
        if outgoing is not None and without_query(outgoing.judged) != without_query(addressed.target):
            # The phantom was a part of the path: what is left of it is what the rules of the same service are about.
            service = None if permit.service is None else permit.service.name
            permit = await self._judge(head, replace(addressed, target=outgoing.judged, service=service), record)
            if isinstance(permit, Denial):
                return await self._refuse(head, record, refuse.denied(permit))
        return await self._carry(permit, _Sending(head, addressed, outgoing, judged), record)

    async def _prepare(
        self, permit: Permit, head: http1.RequestHead, addressed: Addressed, record: Record
    ) -> Outgoing | Refusal | None:
        """What is sent on in place of what came, where a credential belongs into it."""
        if permit.service is None:
            return None
        if self._context.services is None:
            raise ClientProtocolError("nothing here has credentials", status=503)
        return await self._context.services.prepare(permit.service, head, addressed.target, record)

    async def _carry(self, permit: Permit, sending: _Sending, record: Record) -> bool:
        if (kept := self._kept(permit, sending.addressed)) is not None:
            exchange = self._exchange(kept, sending)
            try:
                return await self._finish(exchange, record)
            except UpstreamError:
                # A server may close an idle connection just as the request leaves; only a fresh one can tell
                # more.
                if not exchange.repeatable:
                    raise
        upstream = await self._dial(permit, sending.addressed)
        return await self._finish(self._exchange(upstream, sending), record)

    def _exchange(self, upstream: Upstream, sending: _Sending) -> Exchange:
        piece_bytes = self._context.crowd.piece_bytes
        return Exchange(
            *(self._client, upstream, sending.head, sending.addressed, self._limits, piece_bytes, sending.outgoing),
            judged=sending.judged,
        )

    async def _judge(self, head: http1.RequestHead, addressed: Addressed, record: Record) -> Permit | Denial:
        authority = addressed.authority
        # Of the origin-form: an absolute-form target could hold userinfo. The phantom may be a part of a path.
        redacted = self._context.token.redacted
        record.path = redacted(without_query(addressed.target))
        record.identity, record.target, record.port = addressed.identity.value, authority.host, authority.port
        record.route_id = addressed.service
        request = Request(head.method, addressed.target, addressed.tls)
        ask = Ask(
            authority.host,
            authority.port,
            addressed.identity,
            addressed.also,
            request=request,
            service=addressed.service,
        )
        verdict = await self._context.judge(ask, self._process)
        note_verdict(record, verdict)
        record.reason, record.remedy = (each and redacted(each) for each in (record.reason, record.remedy))
        return verdict

    def _kept(self, permit: Permit, addressed: Addressed) -> Upstream | None:
        """A connection that carried a request before, if it is to the same authority and still good."""
        if addressed.tls:
            self.close()
            self._upstream = self._inside().upstreams.idle(permit)
            return self._upstream
        kept = self._upstream
        if kept is not None and self._upstream_for == addressed.authority and is_quiet(kept):
            return kept
        self.close()
        return None

    async def _dial(self, permit: Permit, addressed: Addressed) -> Upstream:
        self.close()
        if addressed.tls:
            self._upstream = await self._inside().upstreams.connect(permit)
            return self._upstream
        upstream = await dial(permit, self._limits, self._context.access)
        self.adopt(upstream, addressed.authority)
        return upstream

    def _inside(self) -> Interception:
        if self._context.interception is None:
            raise ClientProtocolError("requests over TLS are not carried here", status=501)
        return self._context.interception

    def _give_back(self, kept_alive_s: float) -> None:
        """Let the next request have the connection, whichever client's it is."""
        if isinstance(self._upstream, SecureUpstream):
            self._inside().upstreams.give_back(self._upstream, kept_alive_s)
            self._upstream = None

    async def _finish(self, exchange: Exchange, record: Record) -> bool:
        """Run one exchange; True when the client's connection is ready for another request."""
        upstream = exchange.upstream
        sent = -upstream.sent_bytes
        record.resolved_address, record.upstream_proxy = str(upstream.endpoint), upstream.proxy
        try:
            outcome = await exchange.run()
            if outcome is Outcome.WEBSOCKET:
                record.reason = (await tunnel(self._client, upstream, self._context)).problem or None
                return False
        finally:
            record.status = exchange.status
            record.bytes_sent = sent + upstream.sent_bytes
        if outcome is Outcome.CLOSE_UPSTREAM or outcome is Outcome.CLOSE_BOTH:
            self.close()
        else:
            self._give_back(exchange.kept_alive_s)
        if exchange.cut_off:
            await self._client.linger(self._limits.linger_s, self._limits.linger_in_all_s)
        return outcome is Outcome.KEEP or outcome is Outcome.CLOSE_UPSTREAM


def _is_restricted(permit: Permit) -> bool:
    """Whether only certain requests are permitted."""
    service = permit.service
    by_service = service is not None and (service.endpoints or service.endpoint_policy)
    return bool(permit.rule.endpoints or by_service)


def is_quiet(upstream: Upstream) -> bool:
    """Neither closed nor talking out of turn: what comes then belongs to no request."""
    if upstream.unread:
        return False
    try:
        upstream.sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
