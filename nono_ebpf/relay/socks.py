"""The way of a SOCKS5 client to its tunnel: greeting, password, request.

Knows the order of the messages. Syntax is `wire.socks5`'s. Must not know what is allowed. A client that cannot be
served is told so in the words of the message it has sent last.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from nono_ebpf.errors import ClientProtocolError
from nono_ebpf.relay import refuse
from nono_ebpf.relay.categories import AUTHENTICATION_FAILED, PROTOCOL
from nono_ebpf.wire import NEED_MORE, NeedMore, socks5

if TYPE_CHECKING:
    from collections.abc import Callable

    from nono_ebpf.audit.record import Record
    from nono_ebpf.authority import Authority
    from nono_ebpf.relay.limits import Limits
    from nono_ebpf.relay.stream import Stream
    from nono_ebpf.session_token import Token

_T = TypeVar("_T")


class Handshake:
    """One client's; what comes of it is noted in `record`. Bytes behind its request are left for the tunnel."""

    def __init__(self, client: Stream, token: Token, limits: Limits, record: Record) -> None:
        self._client, self._token, self._limits, self._record = client, token, limits, record
        self._no = socks5.NO_METHOD

    async def run(self) -> Authority | None:
        """Where the client wants a tunnel to; None when it got its answer and is closed."""
        wanted: Authority | None = None
        try:
            async with asyncio.timeout(self._limits.sniff_s):
                if await self._authenticate():
                    wanted = await self._request()
        except TimeoutError:
            self._note(PROTOCOL, "the SOCKS5 client did not finish its handshake")
        except ClientProtocolError as error:
            self._note(PROTOCOL, str(error))
        if wanted is None:
            await refuse.say_last(self._client, self._no, self._limits)
        return wanted

    async def _authenticate(self) -> bool:
        record = self._record
        methods = await self._next(socks5.parse_greeting)
        record.auth_mechanism, record.auth_outcome = "username_password", "failed"
        if socks5.USERNAME_PASSWORD not in methods:
            self._note(AUTHENTICATION_FAILED, "the SOCKS5 client offers no password")
            return False
        await self._say(socks5.USE_PASSWORD, no=socks5.WRONG_PASSWORD)
        login = await self._next(socks5.parse_login)
        if not self._token.matches(login.password):
            self._note(AUTHENTICATION_FAILED, "the SOCKS5 client's password is not the session token")
            return False
        record.auth_outcome = "succeeded"
        await self._say(socks5.WELCOME, no=socks5.reply_bytes(socks5.Reply.GENERAL_FAILURE))
        return True

    async def _request(self) -> Authority:
        wanted = await self._next(socks5.parse_request)
        if isinstance(wanted, socks5.Reply):
            self._no = socks5.reply_bytes(wanted)
            raise ClientProtocolError(f"SOCKS5 {wanted.name.lower().replace('_', ' ')}")
        return wanted

    async def _next(self, parse: Callable[[bytearray], tuple[_T, int] | NeedMore]) -> _T:
        """What the next message says, off the buffer. Raises ClientProtocolError: malformed, or the client is gone."""
        while (parsed := parse(self._client.unread)) is NEED_MORE:
            if not await self._client.fill(self._limits.sniff_s):
                raise ClientProtocolError("SOCKS5 handshake ends early")
        message, size = parsed
        del self._client.unread[:size]
        return message

    async def _say(self, yes: bytes, *, no: bytes) -> None:
        """The answer to a message, and what a bad next one would be answered."""
        await self._client.send(yes, self._limits.sniff_s)
        self._no = no

    def _note(self, category: str, reason: str) -> None:
        self._record.denial_category, self._record.reason = category, reason
