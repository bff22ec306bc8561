"""The path of one connection: whose is it, where may it go, and who carries it there.

Knows the order of the questions, nothing else: the kernel's record, the name table, verdicts, dialling,
refusing and relaying are each somebody else's. In order of trust, a flow is for the name this sandbox was
given the address for, the TLS server name, the HTTP Host, the bare address. The address a client dialled is
never dialled when a name is known.

    origin unknown                      → reset
    to a listener of ours               → explicit client: its requests, or the tunnel it wants (see `explicit`)
    name known, requests are judged     → the client's first bytes must be HTTP, or TLS, which then ends here; nobody is
                                          dialled before
    name known, or address allowed      → judge, dial, then whoever speaks first:
                                            upstream           → splice
                                            client, TLS        → splice, by its server name when that differs
                                            client, HTTP       → each request judged by its Host
                                            client, otherwise  → splice
    neither                             → the client's first bytes must name a host
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from nono_ebpf.audit.record import NO_REQUEST, Mode, Record, open_record
from nono_ebpf.audit.window import Worth
from nono_ebpf.authority import Authority
from nono_ebpf.errors import ClientProtocolError, NonoError, UpstreamError
from nono_ebpf.model import FlowOrigin, Identity, Process, ResolvedAddress
from nono_ebpf.policy.decide import Ask, Denial, DenialCategory, Permit
from nono_ebpf.relay import refuse
from nono_ebpf.relay.categories import INTERCEPT_HANDSHAKE_FAILED, INTERNAL, NO_ORIGIN, PROTOCOL
from nono_ebpf.relay.context import Context, note_verdict
from nono_ebpf.relay.explicit import Explicit, Wanted, addressed_to_proxy
from nono_ebpf.relay.http import Conversation, Intercepted, Redirected
from nono_ebpf.relay.refuse import Language, Refusal
from nono_ebpf.relay.secure import accept
from nono_ebpf.relay.stream import Activity, Stream, Upstream, activity_of, first_readable, reason_of
from nono_ebpf.relay.tunnel import tunnel
from nono_ebpf.relay.upstream import dial
from nono_ebpf.wire import NEED_MORE
from nono_ebpf.wire.sniff import Http, Opaque, Sniffed, Tls, classify

if TYPE_CHECKING:
    import socket

    from nono_ebpf.model import IPAddress
    from nono_ebpf.relay.http import Addressing
    from nono_ebpf.wire.tls_hello import ClientHello

_LOOPBACK = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


def _own_addresses(address: IPAddress) -> tuple[ResolvedAddress, ...] | None:
    """Of an opened port on this machine's loopback both addresses, first the one that was asked for.

    A client whom one refuses tries the other. This one has been accepted already, so that we go on for it.
    """
    if not address.is_loopback:
        return None
    return tuple(ResolvedAddress(each, own=True, pinned=True) for each in dict.fromkeys((address, *_LOOPBACK)))


class Flow:
    """One accepted connection, from its origin to its record. Owns both sockets."""

    def __init__(self, context: Context, connection: socket.socket) -> None:
        self._context, self._limits = context, context.limits
        self._client = Stream(connection)
        self._upstream: Upstream | None = None
        self._conversation: Conversation | None = None
        self._origin: FlowOrigin | None = None
        self._flow_id = secrets.token_hex(8)
        self._record = open_record("flow", "redirect")
        self._started = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._displaced = False

    @property
    def _process(self) -> Process | None:
        return None if self._origin is None else self._origin.process

    @property
    def owner(self) -> int | None:
        """The process that opened it; None until the kernel was asked."""
        return None if self._process is None else self._process.pid

    def activity(self) -> Activity:
        """What the client was sent, and when."""
        return activity_of(self._client.sock)

    def make_way(self, reason: str) -> None:
        """End soon, with a RST on both sides and `reason` on record."""
        self._displaced, self._record.reason = True, reason
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """Carry the flow to its end. Whatever happens, both sockets are closed and a record is written.

        No exception leaves but cancellation: a flow's failure is that flow's alone.
        """
        self._task = asyncio.current_task()
        try:
            await self._serve()
        except asyncio.CancelledError:
            self._fail("the sandbox ended")
            raise
        except OSError as error:
            self._fail(f"client: {reason_of(error)}")
        except NonoError as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001 - the border: a fault of ours must not end the other flows
            self._record.decision, self._record.denial_category = "deny", INTERNAL
            self._fail(f"internal error: {type(error).__name__}: {error}", internal=True)
        finally:
            self._close()

    def _fail(self, reason: str, *, internal: bool = False) -> None:
        if internal or self._record.reason is None:
            self._record.reason = reason
        self._reset()

    def _reset(self) -> None:
        """Both sides at once: something else than the two of them ends the flow."""
        self._client.reset()
        if self._upstream is not None:
            self._upstream.reset()
        if self._conversation is not None:
            self._conversation.reset()

    def _close(self) -> None:
        try:
            self._client.close()
        finally:
            if self._upstream is not None:
                self._upstream.close()
            if self._conversation is not None:
                self._conversation.close()
            self._write_record()

    def _write_record(self) -> None:
        """One record for the flow, unless it carried HTTP requests, which have their own."""
        record = self._record
        carried_requests = self._conversation is not None and self._conversation.requests > 0
        if carried_requests and not self._displaced and record.denial_category != INTERNAL:
            return
        carried_bytes = self._upstream is not None and self._upstream.sent_bytes > 0
        if self._displaced and not carried_bytes and not self._worth_recording():
            return
        record.duration_ms = round((time.monotonic() - self._started) * 1000)
        if self._upstream is not None:
            record.bytes_sent = self._upstream.sent_bytes
            record.bytes_received = self._client.sent_bytes
        self._context.audit.write(record)

    def _worth_recording(self) -> bool:
        """Of flows that made way before anything was sent, like ones are recorded once, and a bounded number in all."""
        record = self._record
        worth = self._context.crowd.worth_recording((record.pid, record.target, record.original_destination))
        if worth is Worth.OVERFLOW:
            self._record = open_record(record.event, record.mode)
            self._record.reason = "more connections made way for others than are recorded within a minute"
        return worth is not Worth.NOTHING

    def _open_record(self, event: str, mode: Mode) -> Record:
        record = open_record("request" if event == "request" else "flow", mode, origin=self._origin)
        record.flow_id = self._flow_id
        return record

    # ------------------------------------------------------------ the way in

    async def _serve(self) -> None:
        self._record.flow_id = self._flow_id
        origin = self._origin = self._context.origins.take(self._client.sock)
        if origin is None:
            self._record.denial_category, self._record.reason = NO_ORIGIN, "no kernel record"
            self._client.reset()
            return
        if origin.destination in self._context.own_listeners:
            self._record = self._open_record("flow", "connect")
            await self._serve_explicit()
        else:
            self._record = self._open_record("flow", "redirect")
            await self._serve_redirected(origin)

    async def _serve_explicit(self) -> None:
        self._record.denial_category, self._record.reason = NO_REQUEST, "the client asked for nothing"

        def open_request(mode: Mode = "http") -> Record:
            return self._open_record("request", mode)

        self._conversation = Conversation(self._context, self._client, addressed_to_proxy, self._process, open_request)
        client = Explicit(self._context, self._client, self._conversation, self._record, open_request)
        if (wanted := await client.wanted()) is not None:
            self._drop_conversation()
            self._record.denial_category = self._record.reason = None
            await self._serve_tunnel(wanted)

    async def _serve_tunnel(self, wanted: Wanted) -> None:
        authority = wanted.authority
        ask = Ask(host=authority.host, port=authority.port, identity=Identity.AUTHORITY)
        try:
            verdict = await self._judge(ask)
            if isinstance(verdict, Denial) and not self._may_intercept(verdict):
                await self._refuse(refuse.denied(verdict), wanted.language)
                return
            upstream = await self._dial(verdict) if isinstance(verdict, Permit) else None
        except UpstreamError as error:
            await self._refuse_unreachable(error, wanted.language)
            return
        if wanted.language is Language.HTTP:
            self._record.status = 200
        await self._client.send(wanted.established, self._limits.idle_s)
        if isinstance(verdict, Denial):
            await self._serve_by_first_bytes(authority.port, authority.host, verdict)
        elif upstream is not None:
            await self._relay(upstream, authority, authority.host)

    def _may_intercept(self, denial: Denial) -> bool:
        """Whether it is a tunnel that was denied, and what is inside can be judged instead."""
        return denial.category is DenialCategory.CONNECT_BYPASSES_L7 and self._context.interception is not None

    async def _serve_redirected(self, origin: FlowOrigin) -> None:
        address, port = origin.destination.address, origin.destination.port
        name = self._context.names.name_of(address)
        authority = Authority(name or str(address), port)
        identity = Identity.DNS if name else Identity.ADDRESS
        ask = Ask(host=authority.host, port=port, identity=identity, addresses=_own_addresses(address))
        try:
            verdict = await self._judge(ask)
            if isinstance(verdict, Permit):
                upstream = await self._dial(verdict)
        except UpstreamError as error:
            await self._refuse_unreachable(error)
            return
        if isinstance(verdict, Permit):
            await self._relay(upstream, authority, name)
        elif verdict.category is DenialCategory.CONNECT_BYPASSES_L7:
            await self._serve_by_first_bytes(port, name, verdict)
        elif name is None and verdict.remedy is not None:
            reason = f"no host name is known for {address}, and no rule allows the address itself"
            await self._serve_by_first_bytes(port, None, replace(verdict, reason=reason))
        else:
            await self._refuse(refuse.denied(verdict))

    # ------------------------------------------------------------ a destination, and both ends open

    async def _relay(self, upstream: Upstream, authority: Authority, name: str | None) -> None:
        """Carry a flow whose `upstream` is permitted and dialled, by what turns out to be spoken in it."""
        try:
            sniffed = await self._sniff(upstream)
        except ClientProtocolError as error:
            await self._refuse_malformed(error)
            return
        match sniffed:
            case None:
                self._record.sniff = "skipped: server spoke first"
            case Tls(hello):
                self._record.sniff = "tls"
                if hello.sni not in {None, authority.host}:
                    await self._relay_by_server_name(hello, authority.port, name)
                    return
            case Http():
                self._record.sniff = "http"
                address = authority.host if name is None else None
                await self._converse(Redirected(authority.port, name, address), upstream, authority)
                return
            case Opaque():
                self._record.sniff = "opaque"
        await self._tunnel(upstream)

    async def _relay_by_server_name(self, hello: ClientHello, port: int, name: str | None) -> None:
        """The client names a host that its address is not known for.

        Both must be permitted, and that host is dialled.
        """
        self._drop_upstream()
        also = (name,) if name is not None else ()
        ask = Ask(host=hello.sni or "", port=port, identity=Identity.SNI, also=also)
        try:
            verdict = await self._judge(ask)
            if isinstance(verdict, Denial) and self._may_intercept(verdict):
                await self._intercept(hello, Authority(ask.host, port), Identity.SNI, name, verdict)
                return
            if isinstance(verdict, Denial):
                await self._refuse(refuse.denied(verdict), Language.TLS)
                return
            upstream = await self._dial(verdict)
        except UpstreamError as error:
            await self._refuse_unreachable(error)
            return
        await self._tunnel(upstream)

    async def _serve_by_first_bytes(self, port: int, name: str | None, denial: Denial) -> None:
        """What is known of the destination allows no tunnel to it; the client's own bytes may say something better.

        Requests, each to be judged; or, where no name is known, a server name.
        """
        if name is not None and not await self._is_used():
            self._record.denial_category, self._record.reason = NO_REQUEST, "the client said nothing"
            return
        try:
            sniffed = await self._sniff(None)
        except ClientProtocolError as error:
            await self._refuse_malformed(error)
            return
        match sniffed:
            case Tls(hello) if hello.sni not in {None, name}:
                self._record.sniff = "tls"
                await self._relay_by_server_name(hello, port, name)
            case Tls(hello) if name is not None and self._may_intercept(denial):
                self._record.sniff = "tls"
                await self._intercept(hello, Authority(name, port), self._known_by(), name, denial)
            case Http():
                await self._converse(Redirected(port, name))
            case _:
                note_verdict(self._record, denial)
                await self._refuse(refuse.denied(denial))

    async def _is_used(self) -> bool:
        """Whether the client does not end before it says anything; many connect before they have something to ask."""
        try:
            return bool(self._client.unread) or await self._client.fill(self._limits.keep_alive_s)
        except TimeoutError:
            return True

    def _known_by(self) -> Identity:
        return Identity.AUTHORITY if self._record.mode in {"connect", "socks5"} else Identity.DNS

    async def _intercept(
        self, hello: ClientHello, authority: Authority, identity: Identity, known: str | None, denial: Denial
    ) -> None:
        """End the client's TLS here, as the host of `authority`, and judge every request inside.

        `denial` is of a tunnel, and holds where it is another host than this one that is looked into.
        """
        record, interception = self._record, self._context.interception
        if interception is None:
            raise ClientProtocolError("TLS is not intercepted here")
        record.mode = "redirect_intercept" if record.mode == "redirect" else "connect_intercept"
        record.identity, record.target, record.port = identity.value, authority.host, authority.port
        record.sniff = "tls"
        try:
            if hello.alpn and b"http/1.1" not in hello.alpn:
                await self._refuse_handshake(refuse.no_application_protocol(hello.alpn))
                return
            context = interception.certificates.context_for(authority.host)
            self._client = await accept(self._client, context, self._limits.handshake_s)
        except ClientProtocolError as error:
            await self._refuse_handshake(refuse.malformed(error), spoken=True)
            return
        except ValueError:
            await self._refuse(refuse.denied(denial), Language.TLS)
            return
        record.decision, record.denial_category, record.rule = "allow", None, None
        record.reason = "the client asked for nothing inside TLS"
        await self._converse(Intercepted(authority, identity, known))

    async def _refuse_handshake(self, refusal: Refusal, *, spoken: bool = False) -> None:
        """`spoken`: the client has had its alert, if there is any, and is given time to see it."""
        record = self._record
        record.decision, record.denial_category = "deny", INTERCEPT_HANDSHAKE_FAILED
        record.reason = str(refusal.body["reason"])
        if spoken:
            await refuse.say_last(self._client, b"", self._limits)
        else:
            await self._refuse(refusal, Language.TLS)

    async def _sniff(self, upstream: Upstream | None) -> Sniffed | None:
        """The client's language; None when `upstream` is the first to say something that can be understood.

        Without `upstream` a client that stays silent is opaque. A client that has said all it will say is,
        too. Raises ClientProtocolError: malformed, or incomplete when the deadline is over (408).
        """
        client = self._client
        if not client.unread:
            # Nobody speaking at all ends the flow: after the wait no first bytes would be looked at.
            if upstream is not None and await self._upstream_speaks_first(upstream):
                return None
            try:
                if not await client.fill(self._limits.first_bytes_s):
                    return Opaque()
            except TimeoutError:
                return Opaque()
        try:
            async with asyncio.timeout(self._limits.sniff_s):
                while (sniffed := classify(client.unread)) is NEED_MORE:
                    if not await client.fill(self._limits.sniff_s):
                        # The end of the stream ends the line: "GET /x" is a request to some servers.
                        sniffed = classify(client.unread + b"\n")
                        return Opaque() if sniffed is NEED_MORE else sniffed
        except TimeoutError as error:
            raise ClientProtocolError("the client did not finish its first message", status=408) from error
        return sniffed

    async def _upstream_speaks_first(self, upstream: Upstream) -> bool:
        """Wait for either side, as long as an idle connection may stay; the client wins a tie. Raises TimeoutError."""
        async with asyncio.timeout(self._limits.idle_s):
            return await first_readable(self._client.sock, upstream.sock) is upstream.sock

    async def _tunnel(self, upstream: Upstream) -> None:
        spliced = await tunnel(self._client, upstream, self._context)
        if spliced.ended != "eof":
            self._record.reason = spliced.problem

    async def _converse(
        self, addressing: Addressing, upstream: Upstream | None = None, authority: Authority | None = None
    ) -> None:
        """Requests, the first ones over `upstream`, which is connected to `authority`."""

        def new_record() -> Record:
            flow = self._record
            record = self._open_record("request", flow.mode)
            record.identity, record.target, record.port, record.sniff = (
                flow.identity,
                flow.target,
                flow.port,
                flow.sniff,
            )
            record.auth_mechanism, record.auth_outcome = flow.auth_mechanism, flow.auth_outcome
            return record

        self._upstream = None
        self._conversation = Conversation(self._context, self._client, addressing, self._process, new_record)
        if upstream is not None and authority is not None:
            self._conversation.adopt(upstream, authority)
        await self._conversation.run()

    # ------------------------------------------------------------ steps

    async def _judge(self, ask: Ask) -> Permit | Denial:
        record = self._record
        record.identity, record.target, record.port = ask.identity.value, ask.host, ask.port
        verdict = await self._context.judge(ask, self._process)
        note_verdict(record, verdict)
        return verdict

    async def _dial(self, permit: Permit) -> Upstream:
        self._upstream = await dial(permit, self._limits, self._context.access)
        self._record.resolved_address = str(self._upstream.endpoint)
        self._record.upstream_proxy = self._upstream.proxy
        return self._upstream

    def _drop_upstream(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
            self._record.resolved_address = self._record.upstream_proxy = None

    def _drop_conversation(self) -> None:
        if self._conversation is not None:
            self._conversation.close()
            self._conversation = None

    async def _refuse_unreachable(self, error: UpstreamError, language: Language | None = None) -> None:
        self._record.reason = str(error)
        await self._refuse(refuse.unreachable(error), language)

    async def _refuse_malformed(self, error: ClientProtocolError, language: Language | None = None) -> None:
        self._record.decision, self._record.denial_category = "deny", PROTOCOL
        self._record.reason = str(error)
        await self._refuse(refuse.malformed(error), language)

    async def _refuse(self, refusal: Refusal, language: Language | None = None) -> None:
        """Say no; without a `language`, in that of the client's first bytes."""
        self._drop_upstream()
        if language is None:
            language = await refuse.language_of(self._client, self._limits)
        if language is Language.HTTP:
            self._record.status = refusal.status
        await refuse.answer(self._client, refusal, language, self._limits)
