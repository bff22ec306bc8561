"""No, in every language."""

from __future__ import annotations

import json

import pytest
from kit.hellos import client_hello

from nono_ebpf.errors import ClientProtocolError, UpstreamError
from nono_ebpf.policy.decide import Denial, DenialCategory
from nono_ebpf.policy.rules import parse_deny_rule
from nono_ebpf.relay import refuse
from nono_ebpf.relay.refuse import Alert, Language, http_answer, spoken, tls_answer

RULE = parse_deny_rule("b.test", "--deny-domain")
DENIAL = Denial(DenialCategory.HOST_DENIED, "b.test", 443, "a rule denies it", RULE, None)


def test_denial_over_http() -> None:
    """A person reading the body learns who, why, by which rule, and what would help."""
    head, _, body = http_answer(refuse.denied(DENIAL)).partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 403 Forbidden",
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
