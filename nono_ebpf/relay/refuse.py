"""Says no to a client, in the language it speaks. The only place that makes such an answer.

Knows how HTTP/1, SOCKS5, TLS and a bare socket express a failure. Must not know how a verdict was reached.

HTTP: a status and a JSON body (RFC 9110 §15), then the end of the connection; a 403 says why in its status line as
well, which is all that many clients show of the answer to a CONNECT. SOCKS5: a reply (RFC 1928 §6). TLS: one fatal
alert in the clear (RFC 8446 §6.2); our certificate for the name would be needed to say more. Anything else: RST,
since an orderly end would read as an empty answer.
"""

from __future__ import annotations

import asyncio
import errno
import json
import re
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from nono_ebpf.errors import ClientProtocolError, CredentialUnavailable, UpstreamError
from nono_ebpf.policy.decide import Denial, DenialCategory
from nono_ebpf.wire import NEED_MORE, socks5
from nono_ebpf.wire.sniff import Http, Tls, classify
from nono_ebpf.wire.tls_hello import begins_as_tls

if TYPE_CHECKING:
    from nono_ebpf.relay.limits import Limits
    from nono_ebpf.relay.stream import Stream


class Alert(IntEnum):
    """AlertDescription, RFC 8446 §6."""

    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    INTERNAL_ERROR = 80
    NO_APPLICATION_PROTOCOL = 120  # RFC 7301 §3.2


# RFC 8446 §5.1: type alert(21), legacy version 0x0303, length 2; §6: level fatal(2)
_FATAL_ALERT_HEADER: Final = bytes((21, 3, 3, 0, 2, 2))
# Ours: a line of a terminal or two.
_MAX_PHRASE_CHARS: Final = 200
_REPLIES: Final = {
    errno.ECONNREFUSED: socks5.Reply.REFUSED,
    errno.ENETUNREACH: socks5.Reply.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: socks5.Reply.HOST_UNREACHABLE,
}


class Language(Enum):
    """What a client can be answered in."""

    HTTP = "http"
    SOCKS5 = "socks5"
    TLS = "tls"
    OPAQUE = "opaque"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One answer in every language. `challenge`: with the right credentials it would be another."""

    status: int
    alert: Alert
    body: dict[str, str | int | None] = field(default_factory=dict)
    reply: socks5.Reply = socks5.Reply.GENERAL_FAILURE
    challenge: bool = False


def denied(denial: Denial) -> Refusal:
    """The policy says no; the client is told the reason and what would permit it."""
    unavailable = denial.category is DenialCategory.MANAGED_CREDENTIAL_UNAVAILABLE
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE if unavailable else HTTPStatus.FORBIDDEN,
        Alert.ACCESS_DENIED,
        {
            "error": "forbidden" if denial.category is DenialCategory.HOST_DENIED else denial.category.value,
            "host": denial.host,
            "port": denial.port,
            "reason": denial.reason,
            "rule": denial.rule.text if denial.rule else None,
            "allow_with": denial.remedy,
        },
        socks5.Reply.NOT_ALLOWED,
    )


def unreachable(error: UpstreamError) -> Refusal:
    """Permitted, but the far side failed.

    TLS has no alert for that. internal_error is defined as a fault "unrelated to the peer or the correctness
    of the protocol", so clients report a failure, where access_denied would send people to their
    certificates.
    """
    timed_out = isinstance(error.__cause__, TimeoutError)
    status = HTTPStatus.GATEWAY_TIMEOUT if timed_out else HTTPStatus.BAD_GATEWAY
    reply = socks5.Reply.TIMED_OUT if timed_out else _reply_for(error)
    return Refusal(status, Alert.INTERNAL_ERROR, {"error": _slug(status), "reason": str(error)}, reply)


def malformed(error: ClientProtocolError) -> Refusal:
    """The client broke its own protocol."""
    return Refusal(error.status, Alert.DECODE_ERROR, {"error": _slug(error.status), "reason": str(error)})


def unauthenticated(reason: str) -> Refusal:
    """The client has not shown the session token."""
    status = HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
    return Refusal(status, Alert.ACCESS_DENIED, {"error": _slug(status), "reason": reason}, challenge=True)


def no_service(name: str) -> Refusal:
    """A request for us ourselves, and we are nobody's server."""
    reason = f"no service is called {name!a}; this is a proxy: send CONNECT host:port, or an absolute http:// URI"
    return Refusal(HTTPStatus.NOT_FOUND, Alert.ACCESS_DENIED, {"error": _slug(HTTPStatus.NOT_FOUND), "reason": reason})


def service_unavailable(name: str, why: str) -> Refusal:
    """A service that no request reaches, or none by its name."""
    reason = f"requests to the service {name} do not reach it by this name: {why}"
    body: dict[str, str | int | None] = {
        "error": DenialCategory.MANAGED_CREDENTIAL_UNAVAILABLE.value,
        "service": name,
        "reason": reason,
    }
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, Alert.ACCESS_DENIED, body)


def credential_unavailable(error: CredentialUnavailable) -> Refusal:
    """A credential that cannot be had now."""
    body: dict[str, str | int | None] = {
        "error": DenialCategory.MANAGED_CREDENTIAL_UNAVAILABLE.value,
        "credential": error.name,
        "state": error.state,
        "reason": str(error),
    }
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, Alert.ACCESS_DENIED, body)


def not_the_phantom(service: str, reason: str) -> Refusal:
    """Something else than the session token where a service's credential belongs."""
    status = HTTPStatus.UNAUTHORIZED
    return Refusal(status, Alert.ACCESS_DENIED, {"error": _slug(status), "service": service, "reason": reason})


def too_many(service: str, reason: str) -> Refusal:
    """More requests than a service may be sent (RFC 6585 §4)."""
    status = HTTPStatus.TOO_MANY_REQUESTS
    return Refusal(status, Alert.ACCESS_DENIED, {"error": _slug(status), "service": service, "reason": reason})


def unsupported_upgrade() -> Refusal:
    """A WebSocket where every request is looked at: its messages would not be."""
    status = HTTPStatus.NOT_IMPLEMENTED
    reason = "WebSockets are not supported where requests are intercepted"
    return Refusal(status, Alert.ACCESS_DENIED, {"error": "unsupported_upgrade", "reason": reason})


def no_application_protocol(offered: tuple[bytes, ...]) -> Refusal:
    """A client inside TLS that speaks no HTTP/1.1."""
    named = ", ".join(each.decode("ascii", "replace") for each in offered)
    reason = f"requests are looked at in HTTP/1.1 only, and the client speaks {named}"
    return Refusal(HTTPStatus.NOT_IMPLEMENTED, Alert.NO_APPLICATION_PROTOCOL, {"reason": reason})


def _reply_for(error: UpstreamError) -> socks5.Reply:
    """RFC 1928 has no reply for a name without an address: to a client that is a host it cannot reach."""
    if error.phase == "resolve":
        return socks5.Reply.HOST_UNREACHABLE
    number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
    return _REPLIES.get(number or 0, socks5.Reply.GENERAL_FAILURE)


def _slug(status: int) -> str:
    return HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")


def http_answer(refusal: Refusal, *, head_only: bool = False, close: bool = True) -> bytes:
    """The whole response; `head_only` for a request by HEAD (RFC 9110 §9.3.2)."""
    body = json.dumps(refusal.body).encode() + b"\n"
    lines = [
        f"HTTP/1.1 {refusal.status} {_phrase(refusal)}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(['Proxy-Authenticate: Basic realm="nono"'] if refusal.challenge else []),
        *(["Connection: close"] if close else []),
    ]
    return "\r\n".join((*lines, "", "")).encode("ascii") + (b"" if head_only else body)


def _phrase(refusal: Refusal) -> str:
    phrase = HTTPStatus(refusal.status).phrase
    if refusal.status != HTTPStatus.FORBIDDEN or not (reason := refusal.body.get("reason")):
        return phrase
    # RFC 9112 §4 would have tabs and bytes beyond ASCII too, but a name in the reason is the client's own choice.
    line = re.sub(r"[^\x20-\x7e]", "", re.sub(r"[\r\n]+", " ", str(reason)))
    return f"{phrase}: {line[:_MAX_PHRASE_CHARS]}"


def tls_answer(refusal: Refusal) -> bytes:
    """One fatal alert record."""
    return _FATAL_ALERT_HEADER + bytes((refusal.alert,))


def socks5_answer(refusal: Refusal) -> bytes:
    """The reply to a request."""
    return socks5.reply_bytes(refusal.reply)


async def answer(
    client: Stream, refusal: Refusal, language: Language, limits: Limits, *, head_only: bool = False
) -> None:
    """Deliver `refusal` and close the client. A client that is already gone is no error."""
    match language:
        case Language.HTTP:
            await say_last(client, http_answer(refusal, head_only=head_only), limits)
        case Language.SOCKS5:
            await say_last(client, socks5_answer(refusal), limits)
        case Language.TLS:
            await say_last(client, tls_answer(refusal), limits)
        case Language.OPAQUE:
            client.reset()


async def say_last(client: Stream, text: bytes, limits: Limits) -> None:
    """Deliver `text` and close the client. A client that is already gone is no error."""
    try:
        await client.send(text, limits.refusal_wait_s)
        await client.linger(limits.linger_s, limits.linger_in_all_s)
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
