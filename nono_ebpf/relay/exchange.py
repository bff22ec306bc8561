"""One HTTP/1 request and its response, between a client and an upstream that is permitted and connected.

Knows the order of the two messages. Syntax and framing are `wire.http1`'s. Must not know policy.

An upload runs beside the response, because `Expect: 100-continue`, early errors and streaming services all
answer before the request has ended. Each side's unconsumed bytes stay in the buffer of the stream they came
from.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Final

from nono_ebpf.errors import UpstreamError
from nono_ebpf.wire import NEED_MORE, http1
from nono_ebpf.wire.scrub import looks_like_ascii

if TYPE_CHECKING:
    from collections.abc import Callable

    from nono_ebpf.authority import Authority
    from nono_ebpf.model import Identity
    from nono_ebpf.relay.limits import Limits
    from nono_ebpf.relay.services import Outgoing
    from nono_ebpf.relay.stream import Stream, Upstream
    from nono_ebpf.wire.scrub import Scrubber

# RFC 9110 §9.2.2: idempotent. Of those, the ones without a body.
_REPEATABLE: Final = frozenset(("GET", "HEAD", "OPTIONS"))


@dataclass(frozen=True, slots=True)
class Addressed:
    """Whom a request is for.

    The authority it names, how we know, what else must be permitted, and its origin-form. `tls`: it goes on inside TLS.
    `service`: the client asked for it by this name.
    """

    authority: Authority
    identity: Identity
    also: tuple[str, ...]
    target: str
    tls: bool = False
    service: str | None = None


class Outcome(Enum):
    """What may become of the two connections after a complete response."""

    KEEP = "both may carry another request"
    CLOSE_UPSTREAM = "the client's may"
    CLOSE_BOTH = "neither may"
    WEBSOCKET = "both carry WebSocket frames from here on"


class Exchange:
    """One request and its response. `status` is set once a final response has begun to reach the client, as is
    `kept_alive_s`, for how long the server then keeps the connection open.

    `piece_bytes`: how much of a body may be taken into memory now. `outgoing`: what is sent on in place of the
    request's fields and target; what must not come back is covered in the response. `judged`: not every request is
    permitted. In both cases one with a body is the last on its connection: a server that leaves a body unread takes it
    for the next request, which then is one that nobody judged, or swallows the one with the credential that follows.
    """

    def __init__(
        self,
        client: Stream,
        upstream: Upstream,
        head: http1.RequestHead,
        addressed: Addressed,
        limits: Limits,
        piece_bytes: Callable[[], int],
        outgoing: Outgoing | None = None,
        *,
        judged: bool = False,
    ) -> None:
        self._outgoing = outgoing
        self.client, self.upstream = client, upstream
        self._head, self._addressed, self._limits, self._piece_bytes = head, addressed, limits, piece_bytes
        self._body = http1.request_body(head)
        self._had_body = not self._body.done
        self._last = self._had_body and (judged or outgoing is not None)
        self._uploaded = self._body.done  # to its last byte: the kernel, or TLS, has it
        self._websocket = outgoing is None and not addressed.tls and http1.asks_for_websocket(head)
        self._interim_responses = 0
        self._received_before = upstream.received_bytes
        self.status: int | None = None
        self.kept_alive_s = math.inf

    @property
    def repeatable(self) -> bool:
        """The server has said nothing, and receiving the request twice would be the same to it as once."""
        unanswered = self.upstream.received_bytes == self._received_before
        return unanswered and self._head.method in _REPEATABLE and not self._had_body

    @property
    def cut_off(self) -> bool:
        """The response was over before the request's body: the client may still be sending."""
        return not self._body.done

    async def run(self) -> Outcome:
        """Relay the request and its response.

        Raises:
            ClientProtocolError: the request's body is malformed. UpstreamError: the response is, or is
            missing. OSError: the client is gone.
        """
        begun = await self._body_so_far()
        if self._body.done:
            await self.upstream.send(self._request() + begun, self._limits.idle_s)
            self._uploaded = True
            outcome = await self._respond()
        else:
            await self.upstream.send(self._request(), self._limits.idle_s)
            outcome = await self._respond_beside(begun)
        if self.cut_off:
            return Outcome.CLOSE_BOTH
        # What the server did not take of this body it would take from the front of the next request.
        return Outcome.CLOSE_UPSTREAM if outcome is Outcome.KEEP and (self._last or not self._uploaded) else outcome

    async def _respond_beside(self, begun: bytes) -> Outcome:
        """Relay the response while the request's body, which has `begun`, goes on."""
        try:
            async with asyncio.TaskGroup() as group:
                upload = group.create_task(self._upload(begun))
                outcome = await self._respond()
                upload.cancel()
        except ExceptionGroup as errors:
            # Either side's error ends the other; who failed first is what happened.
            raise errors.exceptions[0] from None
        return outcome

    def _request(self) -> bytes:
        addressed, outgoing = self._addressed, self._outgoing
        return http1.request_bytes(
            self._head,
            outgoing.target if outgoing else addressed.target,
            addressed.authority,
            websocket=self._websocket,
            tls=addressed.tls,
            last=self._last,
            fields=outgoing.fields if outgoing else None,
        )

    async def _body_so_far(self) -> bytes:
        """What has come of the request's body by now. Mostly that is all, and goes out with the head."""
        data = _taken(self._body, self.client)
        if not self._body.done:
            with suppress(TimeoutError):
                await self.client.fill(0)
                data += _taken(self._body, self.client)
        return data

    async def _upload(self, begun: bytes) -> None:
        """Relay the rest of the request's body.

        A server may answer and stop reading: its response then tells what happened.
        """
        try:
            await self._relay_body(self._body, self.client, self.upstream, first=begun)
            self._uploaded = True
        except UpstreamError:
            return

    async def _respond(self) -> Outcome:
        head = await self._final_head()
        if head.status == http1.SWITCHING_PROTOCOLS:
            self.status = head.status
            await self._pass_head(head)
            return Outcome.WEBSOCKET
        return await self._pass_final(head)

    async def _pass_final(self, head: http1.ResponseHead) -> Outcome:
        body = http1.response_body(head, self._head.method, self.upstream.target)
        chunked = isinstance(body, http1.ChunkedBody) and self._head.version == "1.1"
        # Delimited by nothing the client understands except the end of the connection.
        until_close = isinstance(body, http1.CloseBody | http1.ChunkedBody) and not chunked
        close = until_close or http1.wants_close(self._head) or not self._body.done
        scrubber = self._scrubber(head, body)
        first = http1.response_bytes(head, close=close, chunked=chunked)
        self.status, self.kept_alive_s = head.status, http1.kept_alive_s(head)
        await self._relay_body(body, self.upstream, self.client, first=first, chunked=chunked, scrubber=scrubber)
        if close:
            return Outcome.CLOSE_BOTH
        return Outcome.CLOSE_UPSTREAM if http1.wants_close(head) else Outcome.KEEP

    def _scrubber(self, head: http1.ResponseHead, body: http1.Body) -> Scrubber | None:
        """For a body that could hold the credential. Raises UpstreamError for one in which nobody could see it."""
        if self._outgoing is None or body.done:
            return None
        if http1.list_tokens(head.fields, b"content-encoding") - {b"identity"}:
            raise UpstreamError("read", self.upstream.target, "sent a compressed body though it was asked not to")
        if not all(map(looks_like_ascii, http1.field_values(head.fields, b"content-type"))):
            raise UpstreamError(
                "read", self.upstream.target, "answered in a charset that no credential would be seen in"
            )
        return self._outgoing.scrubber

    async def _final_head(self) -> http1.ResponseHead:
        """The head of the final response, or of a 101 that was asked for; other 1xx are passed on."""
        while True:
            head = await self._next_head()
            if head.status >= 200:
                return head
            if head.status == http1.SWITCHING_PROTOCOLS:
                if self._websocket and http1.accepts_websocket(head, self._head):
                    return head
                raise UpstreamError("read", self.upstream.target, "switched protocols without being asked")
            await self._pass_interim(head)

    async def _pass_interim(self, head: http1.ResponseHead) -> None:
        self._interim_responses += 1
        if self._interim_responses > self._limits.interim_responses:
            raise UpstreamError("read", self.upstream.target, "too many interim responses")
        # RFC 9110 §15.2: "A server MUST NOT send a 1xx response to an HTTP/1.0 client."
        if self._head.version == "1.1":
            await self._pass_head(head)

    async def _pass_head(self, head: http1.ResponseHead) -> None:
        await self.client.send(http1.response_bytes(head, close=False, chunked=False), self._limits.idle_s)

    async def _next_head(self) -> http1.ResponseHead:
        upstream = self.upstream
        if not upstream.unread:
            await self._more_of_the_head()
        if (parsed := http1.parse_response_head(upstream.unread, upstream.target)) is NEED_MORE:
            parsed = await self._rest_of_the_head()
        head, size = parsed
        del upstream.unread[:size]
        return head if self._outgoing is None else _scrubbed(head, self._outgoing.scrubber)

    async def _rest_of_the_head(self) -> tuple[http1.ResponseHead, int]:
        upstream = self.upstream
        try:
            async with asyncio.timeout(self._limits.response_head_s):
                while (parsed := http1.parse_response_head(upstream.unread, upstream.target)) is NEED_MORE:
                    if not await upstream.fill_line(self._limits.response_head_s, http1.MAX_HEAD_BYTES):
                        raise _unanswered(upstream)
        except TimeoutError as error:
            raise UpstreamError("read", upstream.target, "did not finish the head of its response") from error
        return parsed

    async def _more_of_the_head(self) -> None:
        if not await self.upstream.fill(self._limits.idle_s):
            raise _unanswered(self.upstream)

    async def _relay_body(
        self,
        body: http1.Body,
        source: Stream,
        sink: Stream,
        *,
        first: bytes = b"",
        chunked: bool | None = None,
        scrubber: Scrubber | None = None,
    ) -> None:
        """Relay a message body, `first` in front of it, through the `scrubber`.

        `chunked` None: in chunks when the body comes in chunks.
        """
        while True:
            held_bytes = len(source.unread)
            data = first + _taken(body, source, chunked, scrubber)
            if data:
                await sink.send(data, self._limits.idle_s)
            if body.done:
                return
            first = b""
            # Between two that are always ready nothing waits, and no other flow would get its turn.
            await asyncio.sleep(0)
            if 0 < len(source.unread) < held_bytes:
                continue  # what is left may be more of the body
            if not await source.fill(self._limits.idle_s, self._piece_bytes()):
                body.end_of_stream()


def _taken(body: http1.Body, source: Stream, chunked: bool | None = None, scrubber: Scrubber | None = None) -> bytes:
    """What of a body is unread, as it is sent on. `chunked` None: in chunks when it comes in chunks."""
    content = body.take(source.unread)
    if scrubber is not None:
        content = scrubber.feed(content) + (scrubber.flush() if body.done else b"")
    if not (isinstance(body, http1.ChunkedBody) if chunked is None else chunked):
        return content
    return http1.encode_chunk(content) + (http1.LAST_CHUNK if body.done else b"")


def _scrubbed(head: http1.ResponseHead, scrubber: Scrubber) -> http1.ResponseHead:
    # One look at all of it is mostly enough, and costs a tenth.
    if not scrubber.occurs_in(head.reason, *chain.from_iterable(head.fields)):
        return head
    fields = tuple([(scrubber.text(name), scrubber.text(value)) for name, value in head.fields])
    return replace(head, reason=scrubber.text(head.reason), fields=fields)


def _unanswered(upstream: Upstream) -> UpstreamError:
    return UpstreamError("read", upstream.target, "closed the connection before it answered")
