"""Requests inside TLS that ends at the proxy: one reading of each, one name, one host, which has proven who it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attacks import secure
from kit.guarded import CLOSE, host, status
from kit.patience import patient
from kit.scripted import OK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kit.guarded import Sandboxed

pytestmark = [pytest.mark.root, pytest.mark.kernel]

SMUGGLED = f"GET /smuggled HTTP/1.1\r\nHost: {host('narrow')}\r\n\r\n"
SIZE = len(SMUGGLED)
CHUNKED = "Transfer-Encoding: chunked\r\n"
AMBIGUOUS = {
    "CL.TE": f"Content-Length: {SIZE + 5}\r\n{CHUNKED}\r\n0\r\n\r\n{SMUGGLED}",
    "TE.CL": f"{CHUNKED}Content-Length: 4\r\n\r\n{SIZE:x}\r\n{SMUGGLED}\r\n0\r\n\r\n",
    "two lengths": f"Content-Length: 0\r\nContent-Length: {SIZE}\r\n\r\n{SMUGGLED}",
    "the same length twice": f"Content-Length: {SIZE}\r\nContent-Length: {SIZE}\r\n\r\n{SMUGGLED}",
    "a list of lengths": f"Content-Length: {SIZE}, {SIZE}\r\n\r\n{SMUGGLED}",
    "a signed length": f"Content-Length: +{SIZE}\r\n\r\n{SMUGGLED}",
    "a hexadecimal length": f"Content-Length: 0x{SIZE:x}\r\n\r\n{SMUGGLED}",
    "a length with an underscore": f"Content-Length: 1_{SIZE}\r\n\r\n{SMUGGLED}",
    "a length beyond 64 bits": f"Content-Length: {(1 << 64) + SIZE}\r\n\r\n{SMUGGLED}",
    "a folded length": f"Content-Length:\r\n {SIZE}\r\n\r\n{SMUGGLED}",
    "a folded coding": f"Content-Length: 0\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "a blank before the colon": f"Content-Length : {SIZE}\r\n\r\n{SMUGGLED}",
    "a coding before chunked": f"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "a coding behind chunked": f"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "an unknown coding": f"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "a vertical tab": f"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "a bare LF between fields": f"X: 1\nContent-Length: {SIZE}\r\n\r\n{SMUGGLED}",
    "a bare CR between fields": f"X: 1\rContent-Length: {SIZE}\r\n\r\n{SMUGGLED}",
    "NUL in a field": f"X: 1\0\r\nContent-Length: {SIZE}\r\n\r\n{SMUGGLED}",
    "a bare LF behind a chunk's size": f"{CHUNKED}\r\n0\n\r\n{SMUGGLED}",
    "a bare LF in an extension": f"{CHUNKED}\r\n0;x\n\r\n\r\n{SMUGGLED}",
    "a signed chunk": f"{CHUNKED}\r\n+0\r\n\r\n{SMUGGLED}",
    "a hexadecimal chunk": f"{CHUNKED}\r\n0x0\r\n\r\n{SMUGGLED}",
    "a chunk longer than it says": f"{CHUNKED}\r\n1\r\nab\r\n0\r\n\r\n{SMUGGLED}",
    "a chunk beyond 64 bits": f"{CHUNKED}\r\n10000000000000000\r\n\r\n{SMUGGLED}",
    "a folded trailer": f"{CHUNKED}\r\n0\r\nX: 1\r\n 2\r\n\r\n{SMUGGLED}",
}


@pytest.mark.bypass("request-smuggling")
@pytest.mark.parametrize("case", AMBIGUOUS)
def test_a_body_with_two_ends_goes_nowhere(sandboxed: Sandboxed, case: str) -> None:
    """Refused before anybody is dialled, or the server would get a part of it; so is what comes behind it."""
    text = f"POST /v1/x HTTP/1.1\r\nHost: {host('api')}\r\n{AMBIGUOUS[case]}"
    answers = [*sandboxed.redirected("api", text), *sandboxed.tunnelled("api", text)]
    whole = [answer for answer in answers if status(answer) not in {"400", "501"}]
    assert whole == [] or case.startswith(
        ("a signed chunk", "a hexadecimal chunk", "a chunk", "a bare LF", "a folded t")
    )
    assert all(answer.count("HTTP/1.1 200") == 0 for answer in answers)
    assert [each.target for each in sandboxed.server.asked] == []


PLAIN_BODIES = {
    "extensions": f'{CHUNKED}\r\n{SIZE:x} ; a="b;c"\r\n{SMUGGLED}\r\n0;x\r\n\r\n',
    "trailers": f"{CHUNKED}\r\n{SIZE:x}\r\n{SMUGGLED}\r\n0\r\nHost: x\r\nContent-Length: 0\r\nX-Api-Key: x\r\n\r\n",
    "a length with zeros": f"Content-Length: 000{SIZE}\r\n\r\n{SMUGGLED}",
    "GET": f"Content-Length: {SIZE}\r\n\r\n{SMUGGLED}",
}


@pytest.mark.bypass("request-smuggling")
@pytest.mark.parametrize("case", PLAIN_BODIES)
def test_a_body_stays_one(sandboxed: Sandboxed, case: str) -> None:
    """What is right in odd ways arrives in one way: the request in it is its content."""
    method = "GET" if case == "GET" else "POST"
    text = f"{method} /v1/x HTTP/1.1\r\nHost: {host('api')}\r\n{CLOSE}{PLAIN_BODIES[case]}"
    assert [status(each) for each in sandboxed.redirected("api", text)] == ["200"]
    (asked,) = sandboxed.server.asked
    assert (asked.method, asked.body) == (method, SMUGGLED.encode())
    assert b"; a=" not in sandboxed.server.raw[-1].data
    assert b"X-Api-Key" not in sandboxed.server.raw[-1].data


@pytest.mark.bypass("request-smuggling")
@pytest.mark.parametrize("name", ["api", "plain"])
def test_an_upload_that_was_cut_off_takes_no_other_request_along(sandboxed: Sandboxed, name: str) -> None:
    """A server answers before it has read the body. What it has not been sent by then is not made up of the next
    request, on this connection or on any other.
    """
    sandboxed.server.early = lambda asked: [OK] if asked.target == "/v1/up" else None
    sandboxed.server.pause_s = 0.3
    sizes = list(range(100_000, 6_600_000, 250_000))
    port = 80 if name == "plain" else 443
    answers = sandboxed.agent.call(secure.uploads, host(name), port, sizes, timeout_s=patient(120))
    assert [status(answer) for answer in answers] == ["200"] * len(sizes)
    assert [body[-200:] for each in sandboxed.server.raw for body in _bodies(bytes(each.data)) if body.strip(b"B")] == []


def _bodies(data: bytes) -> Iterator[bytes]:
    """Those of the requests in `data`, as far as they came."""
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        size = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        yield data[:size]
        data = data[size:]
