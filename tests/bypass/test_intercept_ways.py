"""Requests inside TLS that ends at the proxy: one reading of each, one name, one host, which has proven who it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attacks import secure
from kit.guarded import CLOSE, PLACED, PRETENDERS, get, host, status
from kit.patience import patient
from kit.sandboxes import eventually
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
}
# The head is right, and on its way when the body turns out to be none.
BROKEN = {
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
    assert {status(answer) for answer in answers} <= {"400", "501"}
    assert len(answers) == 2
    assert sandboxed.server.raw == []


@pytest.mark.bypass("request-smuggling")
@pytest.mark.parametrize("case", BROKEN)
def test_a_body_that_turns_out_to_be_none_has_no_end(sandboxed: Sandboxed, case: str) -> None:
    """The server has the head of a request that never becomes whole, and nothing of what is behind it."""
    text = f"POST /v1/x HTTP/1.1\r\nHost: {host('api')}\r\n{BROKEN[case]}"
    answers = [*sandboxed.redirected("api", text), *sandboxed.tunnelled("api", text)]
    assert {status(answer) for answer in answers} == {"400"}
    assert sandboxed.server.asked == []
    assert not any(b"smuggled" in each.data for each in sandboxed.server.raw)


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
    came = [bytes(each.data) for each in sandboxed.server.raw]
    assert [body[-200:] for data in came for body in _bodies(data) if body.strip(b"B")] == []
    assert came


def _bodies(data: bytes) -> Iterator[bytes]:
    """Those of the requests in `data`, as far as they came."""
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        size = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        yield data[:size]
        data = data[size:]


# --- names

API = get("api")
DISAGREEING = {
    "another server name": {"server_name": host("narrow"), "pieces": [get("narrow")]},
    "another server name, the connection's Host": {"server_name": host("narrow"), "pieces": [API]},
    "a server name that is only permitted": {"server_name": host("open"), "pieces": [get("open")]},
    "a server name that is judged": {"server_name": host("judged"), "pieces": [get("judged")]},
    "a server name that no rule has": {"server_name": "stranger.example.net", "unverified": True, "pieces": [API]},
    "another Host": {"pieces": [get("narrow")]},
    "a Host that is only permitted": {"pieces": [get("open")]},
    "another port in Host": {"pieces": [API.replace(host("api"), f"{host('api')}:8443")]},
    "another server in the target": {"pieces": [get("api", f"https://{host('narrow')}/v1/x")]},
    "another server in both": {"pieces": [get("narrow", f"https://{host('narrow')}/v1/x")]},
    "another scheme in the target": {"pieces": [get("api", f"http://{host('api')}/v1/x")]},
    "userinfo in the target": {"pieces": [get("api", f"https://{host('narrow')}@{host('api')}/v1/x")]},
    "a tunnel inside": {"pieces": [f"CONNECT {host('open')}:443 HTTP/1.1\r\nHost: {host('api')}\r\n\r\n"]},
}


@pytest.mark.bypass("intercepted-names")
@pytest.mark.parametrize("road", ["redirected", "tunnelled", "by_socks"])
@pytest.mark.parametrize("case", DISAGREEING)
def test_names_that_disagree_take_nobody_anywhere(sandboxed: Sandboxed, case: str, road: str) -> None:
    """Whichever of them is the host of a credential: neither that nor any other server hears of it."""
    (answer,) = getattr(sandboxed, road)("api", DISAGREEING[case])
    assert status(answer) in {"400", "421", "403", "TLS: TLSV1_ALERT_ACCESS_DENIED"}, answer
    assert sandboxed.server.asked == []


@pytest.mark.bypass("intercepted-names")
@pytest.mark.parametrize("name", ["api", "narrow", "judged"])
@pytest.mark.parametrize("road", ["redirected", "tunnelled", "by_socks"])
def test_a_permitted_host_leads_to_no_credential(sandboxed: Sandboxed, name: str, road: str) -> None:
    """Behind its address, and in a tunnel to it, the name in TLS is another's."""
    (answer,) = getattr(sandboxed, road)("open", {"server_name": host(name), "pieces": [get(name)]})
    assert status(answer) == "421"
    assert sandboxed.server.asked == []


AGREEING = {
    "no server name": {"server_name": None, "pieces": [API]},
    "capitals": {"server_name": host("api").upper(), "pieces": [API.replace("api.", "API.")]},
    "the port": {"pieces": [API.replace(host("api"), f"{host('api')}:443")]},
    "the server in the target": {"pieces": [get("api", f"https://{host('api')}/v1/x")]},
    "no Host": {"pieces": ["GET /v1/x HTTP/1.0\r\n\r\n"]},
    "a ClientHello in pieces": {"cut": 60, "pieces": [API]},
    "a request in pieces": {"pieces": [API[:3], API[3:40], API[40:]]},
    "HTTP/2 offered besides": {"alpn": ["h2", "http/1.1"], "pieces": [API]},
}


@pytest.mark.bypass("intercepted-names")
@pytest.mark.parametrize("case", AGREEING)
def test_names_that_agree_lead_to_their_host(sandboxed: Sandboxed, case: str) -> None:
    """The control: these conversations are the host's own, and its credential is in them."""
    answers = [*sandboxed.redirected("api", AGREEING[case]), *sandboxed.tunnelled("api", AGREEING[case])]
    assert [status(answer) for answer in answers] == ["200", "200"]
    assert [(each.host, each.target) for each in sandboxed.server.asked] == [(host("api"), "/v1/x")] * 2


@pytest.mark.bypass("intercepted-names")
def test_the_address_that_was_dialled_is_nobodys(sandboxed: Sandboxed) -> None:
    """With a credential's host in TLS, its own server is reached; with no name in TLS, nobody is."""
    named = {"server_name": host("api"), "pieces": [API]}
    assert [status(each) for each in sandboxed.to_address("198.51.100.9", named)] == ["200"]
    assert [each.host for each in sandboxed.server.asked] == [host("api")]
    (answer,) = sandboxed.to_address("198.51.100.9", {"server_name": None, "pieces": [API]})
    assert not status(answer).isdigit()
    assert len(sandboxed.server.asked) == 1


@pytest.mark.bypass("intercepted-names")
@pytest.mark.parametrize("other", ["narrow", "open", "judged"])
def test_a_later_request_names_the_same_host(sandboxed: Sandboxed, other: str) -> None:
    """Domain fronting behind a good first request: the second goes nowhere, pipelined or not."""
    first, second = get("api", fields=""), get(other)
    for pieces in ([first + second], [first, second]):
        (answer,) = sandboxed.redirected("api", {"pieces": pieces})
        assert status(answer) == "200"
        assert answer.count("HTTP/1.1 421 ") == 1
    assert {each.host for each in sandboxed.server.asked} == {host("api")}


@pytest.mark.bypass("intercepted-names")
def test_other_protocols_inside_are_no_way(sandboxed: Sandboxed) -> None:
    """HTTP/2 with and without asking, WebSocket, h2c, TRACE, something else: none reaches a server as such."""
    websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}==\r\n"
    h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n"
    preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    (asked_for,) = sandboxed.redirected("api", {"alpn": ["h2"], "pieces": [preface]})
    assert asked_for.startswith("TLS: ")
    answers = sandboxed.redirected(
        "api",
        preface,
        get("api", fields=websocket.format("dGhlIHNhbXBsZSBub25jZQ")),
        get("api", method="TRACE"),
        get("api", method="track"),
        "\0\1\2\3" * 9,
    )
    assert {status(answer) for answer in answers} == {"400", "405", "501"}
    assert sandboxed.server.asked == []
    assert [status(answer) for answer in sandboxed.redirected("api", get("api", fields=h2c))] == ["200"]
    (asked,) = sandboxed.server.asked
    assert {"upgrade", "http2-settings", "connection"} & {name for name, _ in asked.fields} == set()


@pytest.mark.bypass("intercepted-names")
@pytest.mark.parametrize("newest", ["TLSv1", "TLSv1_1"])
def test_an_old_tls_of_the_client_is_refused(sandboxed: Sandboxed, newest: str) -> None:
    """1.2 is the oldest."""
    (answer,) = sandboxed.redirected("api", {"newest": newest, "pieces": [API]})
    assert "PROTOCOL" in answer
    assert sandboxed.server.asked == []


# --- the far side


@pytest.mark.bypass("upstream-certificates")
@pytest.mark.parametrize("name", PRETENDERS)
def test_who_cannot_prove_a_name_gets_no_request(sandboxed: Sandboxed, name: str) -> None:
    """Expired, unknown, for another name, or in an old TLS: the handshake fails, and the client is told."""
    said = f"GET /{name}/v1/x HTTP/1.1\r\nHost: x\r\nX-Nono-Token: <token>\r\n{CLOSE}\r\n"
    answers = [*sandboxed.redirected(name, get(name)), *sandboxed.tunnelled(name, get(name)), *sandboxed.to_proxy(said)]
    assert [status(answer) for answer in answers] == ["502"] * 3
    assert [each.host for each in sandboxed.server.raw] == []
    assert eventually(lambda: host(name) in {each for each, _ in sandboxed.server.broken})


@pytest.mark.bypass("upstream-certificates")
@pytest.mark.parametrize("name", [*PLACED, "judged"])
def test_nothing_goes_in_the_clear(sandboxed: Sandboxed, name: str) -> None:
    """Plain HTTP to the port of TLS, to that of plain HTTP, and through the proxy."""
    text = get(name)
    absolute = text.replace("GET ", f"GET http://{host(name)}", 1).replace("Host", "X-Nono-Token: <token>\r\nHost", 1)
    authorized = absolute.replace("X-Nono-Token: ", "Proxy-Authorization: Bearer ")
    answers = [
        *sandboxed.in_the_clear(name, 443, text, text.replace(host(name), f"{host(name)}:443")),
        *sandboxed.in_the_clear(name, 80, text),
        *sandboxed.to_proxy(absolute, authorized, authorized.replace(host(name), f"{host(name)}:443", 1)),
        *sandboxed.to_proxy(
            [_connect(name, 443), text], [_connect(name, 443), text.replace(host(name), f"{host(name)}:443")]
        ),
        *sandboxed.to_proxy([_connect(name, 80), text]),
    ]
    assert [answer for answer in answers if " 200 OK" in answer] == []
    assert sandboxed.server.asked == []


def _connect(name: str, port: int) -> str:
    return f"CONNECT {host(name)}:{port} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer <token>\r\n\r\n"


# --- paths

REFUSED = (
    "/admin",
    "/v1/../admin",
    "/v1/%2e%2e/admin",
    "/v1/%2E./admin",
    "/v1/..%2fadmin",
    "/v1/%2e%2e%2fadmin",
    "/v1/..%5cadmin",
    "/v1/..\\admin",
    "/v1/%252e%252e/admin",
    "/v1/..%252fadmin",
    "/v1/..;/admin",
    "/v1/..;x=y/admin",
    "/v1/..%3b/admin",
    "/v1/x/../../admin",
    "/v1//../../admin",
    "//admin",
    "/v1/%00/../../admin",
    "/v1/x%00",
    "/v1/%c0%ae%c0%ae/admin",
    "/v1/%u002e%u002e/admin",
    "/v1/x%3f/../../admin",
    "/v1%",
    "/V1/x",
    "/v1x",
    "*",
)
SENT = {
    "/v1/x": "/v1/x",
    "/v1//y": "/v1/y",
    "//v1/./y/": "/v1/y/",
    "/admin/../v1/z?q=/../admin": "/v1/z?q=/../admin",
    "/v1/%78": "/v1/x",
    "/v1/a%2fb": "/v1/a%2Fb",
    "/v1/;/../b": "/v1/b",
}


@pytest.mark.bypass("service-paths")
@pytest.mark.parametrize("name", ["narrow", "judged"])
def test_what_is_judged_of_a_path_is_what_is_sent(sandboxed: Sandboxed, name: str) -> None:
    """In TLS that ends here, with a credential or without: one form arrives, and nothing beside what is permitted."""
    conversations = [get(name, path) for path in (*REFUSED, *SENT)]
    met = dict(zip((*REFUSED, *SENT), map(status, sandboxed.redirected(name, *conversations)), strict=True))
    assert met == dict.fromkeys(REFUSED, "403") | {"*": "400", "/v1%": "403"} | dict.fromkeys(SENT, "200")
    assert [each.target for each in sandboxed.server.asked] == list(SENT.values())


@pytest.mark.bypass("service-paths")
@pytest.mark.parametrize("method", ["POST", "HEAD", "get ", "OPTIONS", "GETS", "PATCH"])
def test_a_method_that_no_rule_has_is_refused(sandboxed: Sandboxed, method: str) -> None:
    """The rules say GET."""
    (answer,) = sandboxed.redirected("narrow", get("narrow", method=method))
    assert status(answer) in {"403", "400"}
    assert sandboxed.server.asked == []


OVERRIDING = (
    "X-Original-URL: /admin",
    "x-rewrite-url: /admin",
    "X_Original_URL: /admin",
    "X-HTTP-Method-Override: DELETE",
    "X-HTTP-Method: DELETE",
    "x-method-override: DELETE",
    "SCRIPT_NAME: /v1",
    "Path-Info: /admin",
    "Destination: https://narrow.example.com/admin",
    "x-amz-copy-source: /bucket/admin",
    "X-Copy-From: admin/all",
    "x-ms-file-rename-source: /files/admin",
    "X-Symlink-Target: admin/all",
)


@pytest.mark.bypass("service-paths")
@pytest.mark.parametrize("field", OVERRIDING)
def test_no_field_makes_another_request_of_a_judged_one(sandboxed: Sandboxed, field: str) -> None:
    """Some servers believe it rather than the request line: it is not sent to hosts with rules."""
    fields = f"{field}\r\n{CLOSE}"
    for name in ("narrow", "judged"):
        assert [status(each) for each in sandboxed.redirected(name, get(name, fields=fields))] == ["400"]
    assert [status(each) for each in sandboxed.in_the_clear("plain", 80, get("plain", fields=fields))] == ["400"]
    assert sandboxed.server.asked == []
