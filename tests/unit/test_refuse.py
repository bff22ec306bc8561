"""No, in every language."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from kit.hellos import client_hello

from nono_ebpf.errors import ClientProtocolError, UpstreamError
from nono_ebpf.policy.decide import Denial, DenialCategory
from nono_ebpf.policy.rules import parse_deny_rule
from nono_ebpf.relay import refuse
from nono_ebpf.relay.refuse import Alert, Language, http_answer, spoken, tls_answer

if TYPE_CHECKING:
    from nono_ebpf.errors import UpstreamPhase

RULE = parse_deny_rule("b.test", "--deny-domain")
DENIAL = Denial(DenialCategory.HOST_DENIED, "b.test", 443, "a rule denies it", RULE, None)


def test_denial_over_http() -> None:
    """A person reading the body learns who, why, by which rule, and what would help."""
    head, _, body = http_answer(refuse.denied(DENIAL)).partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 403 Forbidden: a rule denies it",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        b"Connection: close",
    ]
    assert json.loads(body) == {
        "error": "forbidden",
        "host": "b.test",
        "port": 443,
        "reason": "a rule denies it",
        "rule": "b.test",
        "allow_with": None,
    }


def test_head_answer_has_no_body() -> None:
    """A HEAD is answered with the length of the body it does not get."""
    whole, head = http_answer(refuse.denied(DENIAL)), http_answer(refuse.denied(DENIAL), head_only=True)
    assert whole.startswith(head)
    assert head.endswith(b"\r\n\r\n")


def test_denial_over_tls() -> None:
    """One fatal access_denied alert (RFC 8446 §6)."""
    assert tls_answer(refuse.denied(DENIAL)) == bytes((21, 3, 3, 0, 2, 2, 49))


def test_failures_are_told_apart() -> None:
    """Refused, timed out and malformed are three statuses; none is a denial."""
    error = UpstreamError("connect", "a.test:80", "refused")
    assert (refuse.unreachable(error).status, refuse.unreachable(error).alert) == (502, Alert.INTERNAL_ERROR)
    error.__cause__ = TimeoutError()
    assert refuse.unreachable(error).status == 504
    assert refuse.unreachable(error).body == {
        "error": "gateway_timeout",
        "reason": "connect a.test:80: refused",
    }
    broken = refuse.malformed(ClientProtocolError("no", status=431))
    assert (broken.status, broken.alert) == (431, Alert.DECODE_ERROR)
    assert http_answer(broken).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


def test_hostile_text_stays_inside_the_body() -> None:
    """No character of a name or reason can end the head or the JSON text."""
    hostile = ClientProtocolError('x"\r\n\r\nHTTP/1.1 200 OK\x9b\u2028')
    answer = http_answer(refuse.malformed(hostile))
    assert answer.count(b"\r\n\r\n") == 1
    assert answer.isascii()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == str(hostile)


@pytest.mark.parametrize(
    ("category", "status", "error"),
    [
        (DenialCategory.HOST_DENIED, 403, "forbidden"),
        (DenialCategory.ENDPOINT_POLICY, 403, "endpoint_policy"),
        (DenialCategory.CONNECT_BYPASSES_L7, 403, "connect_bypasses_l7"),
        (DenialCategory.MANAGED_CREDENTIAL_UNAVAILABLE, 503, "managed_credential_unavailable"),
    ],
)
def test_kinds_of_denial(category: DenialCategory, status: int, error: str) -> None:
    """Each has its name in the body; what fails for want of a credential of ours is not the client's to mend."""
    refusal = refuse.denied(replace(DENIAL, category=category))
    assert (refusal.status, refusal.body["error"]) == (status, error)
    assert refuse.socks5_answer(refusal) == b"\x05\x02\0\x01" + bytes(6)


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        pytest.param("no rule allows a\x1b[31m\x07b", "403 Forbidden: no rule allows a[31mb", id="H22"),
        ("a\r\nX-Evil: 1\r\n\r\n<html>", "403 Forbidden: a X-Evil: 1 <html>"),
        ("a\nb\rc\0d\x7fe\x9bf\u202eg\ud800h\tm\u00fc", "403 Forbidden: a b cdefghm"),
        ("x" * 500, "403 Forbidden: " + "x" * 200),
        ("", "403 Forbidden"),
    ],
)
def test_the_reason_in_the_status_line(reason: str, line: str) -> None:
    """It is one line of plain text, of bounded length, whatever a name in it is made of; the body has all of it."""
    head, _, body = http_answer(refuse.denied(replace(DENIAL, reason=reason))).partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0].decode() == f"HTTP/1.1 {line}"
    assert head.count(b"\r\n") == head.count(b"\n") == 3
    assert json.loads(body)["reason"] == reason


def test_a_challenge() -> None:
    """A 407 names the scheme; only when it ends the connection does it say so (RFC 9110 §15.5.8)."""
    refusal = refuse.unauthenticated("the session token is missing")
    head, _, body = http_answer(refusal, close=False).partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 407 Proxy Authentication Required",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        b'Proxy-Authenticate: Basic realm="nono"',
    ]
    assert json.loads(body) == {
        "error": "proxy_authentication_required",
        "reason": "the session token is missing",
    }
    assert b"\r\nConnection: close\r\n" in http_answer(refusal)


@pytest.mark.parametrize(
    ("phase", "cause", "reply"),
    [
        ("connect", ConnectionRefusedError(errno.ECONNREFUSED, ""), 5),
        ("connect", OSError(errno.ENETUNREACH, ""), 3),
        ("connect", OSError(errno.EHOSTUNREACH, ""), 4),
        ("connect", TimeoutError(), 6),
        ("connect", TimeoutError(errno.ETIMEDOUT, ""), 6),
        ("connect", OSError(errno.EACCES, ""), 1),
        ("connect", None, 1),
        ("resolve", None, 4),
        ("resolve", TimeoutError(), 6),
    ],
)
def test_failures_over_socks(phase: UpstreamPhase, cause: OSError | None, reply: int) -> None:
    """RFC 1928 has a reply for most of them."""
    error = UpstreamError(phase, "a.test:80", "it failed")
    error.__cause__ = cause
    assert refuse.socks5_answer(refuse.unreachable(error)) == bytes((5, reply, 0, 1)) + bytes(6)


@pytest.mark.parametrize(
    ("first", "language"),
    [
        (b"", None),
        (b"\x16", None),
        (b"GE", None),
        (b"\x16\x03", Language.TLS),
        (b"\x16\x03\x01\x00\x00", Language.TLS),
        (client_hello("a.test"), Language.TLS),
        (b"GET / HTTP/1.1\r\n", Language.HTTP),
        (b"GET /" + b"x" * 20000, Language.HTTP),
        (b"SSH-2.0-x\r\n", Language.OPAQUE),
    ],
)
def test_language(first: bytes, language: Language | None) -> None:
    """A refusal needs only the beginning, well-formed or not."""
    assert spoken(first) is language
