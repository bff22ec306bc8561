"""Says no to a client, in the language it speaks. The only place that makes such an answer.

Knows how HTTP/1, TLS and a bare socket express a failure. Must not know how a verdict was reached.

HTTP: a status and a JSON body (RFC 9110 §15), then the end of the connection. TLS: one fatal alert in the
clear (RFC 8446 §6.2); our certificate for the name would be needed to say more. Anything else: RST, since an
orderly end would read as an empty answer.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from nono_ebpf.errors import ClientProtocolError, UpstreamError
from nono_ebpf.wire import NEED_MORE
from nono_ebpf.wire.sniff import Http, Tls, classify
from nono_ebpf.wire.tls_hello import begins_as_tls

if TYPE_CHECKING:
    from nono_ebpf.policy.decide import Denial
    from nono_ebpf.relay.limits import Limits
    from nono_ebpf.relay.stream import Stream


class Alert(IntEnum):
    """AlertDescription, RFC 8446 §6."""

    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    INTERNAL_ERROR = 80


# RFC 8446 §5.1: type alert(21), legacy version 0x0303, length 2; §6: level fatal(2)
_FATAL_ALERT_HEADER: Final = bytes((21, 3, 3, 0, 2, 2))


class Language(Enum):
    """What a client can be answered in."""

    HTTP = "http"
    TLS = "tls"
    OPAQUE = "opaque"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One answer in every language."""

    status: int
    alert: Alert
    body: dict[str, str | int | None] = field(default_factory=dict)


def denied(denial: Denial) -> Refusal:
    """The policy says no; the client is told the reason and what would permit it."""
    return Refusal(
        HTTPStatus.FORBIDDEN,
        Alert.ACCESS_DENIED,
        {
            "error": "forbidden",
            "host": denial.host,
            "port": denial.port,
            "reason": denial.reason,
            "rule": denial.rule.text if denial.rule else None,
            "allow_with": denial.remedy,
        },
    )


def unreachable(error: UpstreamError) -> Refusal:
    """Permitted, but the far side failed.

    TLS has no alert for that. internal_error is defined as a fault "unrelated to the peer or the correctness
    of the protocol", so clients report a failure, where access_denied would send people to their
    certificates.
    """
    timed_out = isinstance(error.__cause__, TimeoutError)
    status = HTTPStatus.GATEWAY_TIMEOUT if timed_out else HTTPStatus.BAD_GATEWAY
    return Refusal(status, Alert.INTERNAL_ERROR, {"error": _slug(status), "reason": str(error)})


def malformed(error: ClientProtocolError) -> Refusal:
    """The client broke its own protocol."""
    return Refusal(error.status, Alert.DECODE_ERROR, {"error": _slug(error.status), "reason": str(error)})


def _slug(status: int) -> str:
    return HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")


def http_answer(refusal: Refusal, *, head_only: bool = False) -> bytes:
    """The whole response; `head_only` for a request by HEAD (RFC 9110 §9.3.2)."""
    body = json.dumps(refusal.body).encode() + b"\n"
    head = (
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + (b"" if head_only else body)


def tls_answer(refusal: Refusal) -> bytes:
    """One fatal alert record."""
    return _FATAL_ALERT_HEADER + bytes((refusal.alert,))


async def answer(
    client: Stream, refusal: Refusal, language: Language, limits: Limits, *, head_only: bool = False
) -> None:
    """Deliver `refusal` and close the client. A client that is already gone is no error."""
    if language is Language.OPAQUE:
        client.reset()
        return
    text = http_answer(refusal, head_only=head_only) if language is Language.HTTP else tls_answer(refusal)
    try:
        await client.send(text, limits.refusal_wait_s)
        await client.linger(limits.linger_s, limits.linger_bytes)
    except OSError:
        client.reset()
    finally:
        client.close()


async def language_of(client: Stream, limits: Limits) -> Language:
    """Wait a moment for the client to show its language; one that stays silent or indistinct has none."""
    try:
        async with asyncio.timeout(limits.refusal_wait_s):
            while (language := spoken(client.unread)) is None:
                if not await client.fill(limits.refusal_wait_s):
                    return Language.OPAQUE
    except OSError:
        return Language.OPAQUE
    return language


def spoken(buffer: bytes | bytearray) -> Language | None:
    """The language of a client's first bytes, whole or broken; None while they could still be any."""
    if begins_as_tls(buffer):
        return Language.TLS
    try:
        sniffed = classify(buffer)
    except ClientProtocolError:
        return Language.HTTP
    if sniffed is NEED_MORE:
        return None
    if isinstance(sniffed, Tls):
        return Language.TLS
    return Language.HTTP if isinstance(sniffed, Http) else Language.OPAQUE
