"""HTTP that says one thing and means another: what is forwarded is what was judged."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from attacks import requests
from attacks.base import AUTHORIZED
from kit import hellos, zone

if TYPE_CHECKING:
    from collections.abc import Callable

    from kit.inside import Agent
    from kit.witness import Witness

pytestmark = [pytest.mark.root, pytest.mark.kernel]

GOOD, BAD = "one.example.com", "other.example.net"
OK = "HTTP/1.1 200"
CLOSE = "Connection: close\r\n\r\n"
CONNECT = f"CONNECT {GOOD}:80 HTTP/1.1\r\nHost: {GOOD}:80\r\n{AUTHORIZED}\r\n"


def _authorized(request: list[str]) -> list[str]:
    """With the token in the first head."""
    line, _, rest = request[0].partition("\r\n")
    return [f"{line}\r\n{AUTHORIZED}{rest}", *request[1:]]


def _to_everybody(inside: Agent, request: list[str]) -> list[str]:
    """The request to the proxy, through a tunnel to the permitted host, and to its address without the proxy."""
    return [
        *inside.call(requests.to_proxy, [_authorized(request), [CONNECT, *request]]),
        *inside.call(requests.to_server, GOOD, zone.HTTP_PORT, [request]),
    ]


MISMATCHES = {
    "absolute form, other Host": [f"GET http://{GOOD}/ HTTP/1.1\r\nHost: {BAD}\r\n{CLOSE}"],
    "absolute form of another, good Host": [f"GET http://{BAD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{CLOSE}"],
    "two Host fields": [f"GET / HTTP/1.1\r\nHost: {GOOD}\r\nHost: {BAD}\r\n{CLOSE}"],
    "two Host fields, bad first": [f"GET / HTTP/1.1\r\nHost: {BAD}\r\nHost: {GOOD}\r\n{CLOSE}"],
    "folded Host": [f"GET / HTTP/1.1\r\nHost: {GOOD}\r\n {BAD}\r\n{CLOSE}"],
    "Host with a blank before its colon": [f"GET / HTTP/1.1\r\nHost : {BAD}\r\nHost: {GOOD}\r\n{CLOSE}"],
    "blank before Host": [f"GET / HTTP/1.1\r\n Host: {BAD}\r\nHost: {GOOD}\r\n{CLOSE}"],
    "Host named in Connection": [f"GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-Host: {BAD}\r\nConnection: close, Host\r\n\r\n"],
    "Host with userinfo": [f"GET / HTTP/1.1\r\nHost: {GOOD}@{BAD}\r\n{CLOSE}"],
    "absolute form with userinfo": [f"GET http://{GOOD}@{BAD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{CLOSE}"],
    "absolute form, backslash": [f"GET http://{GOOD}\\@{BAD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{CLOSE}"],
    "network-path target": [f"GET //{BAD}/ HTTP/1.1\r\nHost: {BAD}\r\n{CLOSE}"],
    "another scheme": [f"GET ftp://{BAD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{CLOSE}"],
    "https in absolute form": [f"GET https://{BAD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{CLOSE}"],
    "Host with another port": [f"GET / HTTP/1.1\r\nHost: {GOOD}:8080\r\nX: {BAD}\r\n{CLOSE}"],
    "no Host": [f"GET http://{BAD}/ HTTP/1.0\r\n\r\n"],
    "empty Host": [f"GET http://{BAD}/ HTTP/1.1\r\nHost:\r\n{CLOSE}"],
    "asterisk form": [f"OPTIONS * HTTP/1.1\r\nHost: {BAD}\r\n{CLOSE}"],
    "CONNECT inside": [f"CONNECT {BAD}:80 HTTP/1.1\r\nHost: {GOOD}\r\n\r\nGET / HTTP/1.1\r\nHost: {BAD}\r\n{CLOSE}"],
    "h2c": [f"GET / HTTP/1.1\r\nHost: {BAD}\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n"],
    "HTTP/2 preface": ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", f"GET / HTTP/1.1\r\nHost: {BAD}\r\n{CLOSE}"],
    "proxy protocol first": [f"PROXY TCP4 192.0.2.1 192.0.2.2 1 80\r\nGET / HTTP/1.1\r\nHost: {BAD}\r\n{CLOSE}"],
}


@pytest.mark.bypass("http-host-mismatch")
@pytest.mark.parametrize("case", MISMATCHES)
def test_no_disagreement_takes_a_denied_host_past(inside: Agent, witness: Witness, case: str) -> None:
    """Whatever the parts of a request say, no request for the denied host arrives at any server."""
    _to_everybody(inside, MISMATCHES[case])
    assert [seen.what for seen in witness.arrived("http") if BAD in seen.what] == []


FORWARDED = {
    "Host named in Connection": MISMATCHES["Host named in Connection"],
    "plain": [f"GET / HTTP/1.1\r\nHost: {GOOD}\r\n{CLOSE}"],
}


@pytest.mark.bypass("http-host-mismatch")
@pytest.mark.parametrize("case", FORWARDED)
def test_the_host_that_was_judged_is_the_one_that_arrives(inside: Agent, witness: Witness, case: str) -> None:
    """It is written by us, and no field of the client's takes it away."""
    _, tunnelled, direct = _to_everybody(inside, FORWARDED[case])
    assert direct.startswith(OK)
    assert OK in tunnelled
    assert {seen.what for seen in witness.arrived("http")} == {f"GET {GOOD}/"}


@pytest.mark.bypass("http-second-request")
@pytest.mark.parametrize("split", [False, True], ids=["at once", "one after the other"])
def test_a_later_request_is_judged_too(inside: Agent, witness: Witness, split: bool) -> None:
    """The first of a connection is for a permitted host, those behind it are not."""
    first = f"GET /first HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"
    second = f"GET /second HTTP/1.1\r\nHost: {BAD}\r\n{CLOSE}"
    pieces = [first, second] if split else [first + second]
    absolute = [
        piece.replace(" /", f" http://{GOOD if 'first' in piece else BAD}/", 1).replace("Host", f"{AUTHORIZED}Host")
        for piece in (first, second)
    ]
    answers = inside.call(requests.to_server, GOOD, zone.HTTP_PORT, [pieces])
    answers += inside.call(requests.to_proxy, [absolute if split else ["".join(absolute)], [CONNECT, *pieces]])
    assert all(OK in answer and "403" in answer for answer in answers), answers
    assert {seen.what for seen in witness.arrived("http")} == {f"GET {GOOD}/first"}


SMUGGLED = f"GET /smuggled HTTP/1.1\r\nHost: {BAD}\r\n{CLOSE}"
FRAMINGS = {
    "CL and TE": f"Content-Length: {len(SMUGGLED) + 5}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "two lengths": f"Content-Length: 0\r\nContent-Length: {len(SMUGGLED)}\r\n\r\n{SMUGGLED}",
    "length list": f"Content-Length: 0, {len(SMUGGLED)}\r\n\r\n{SMUGGLED}",
    "signed length": f"Content-Length: +{len(SMUGGLED)}\r\n\r\n{SMUGGLED}",
    "odd chunked": f"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "chunked twice": f"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "chunked, then identity": f"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "bare LF in a chunk line": f"Transfer-Encoding: chunked\r\n\r\n0\n\n{SMUGGLED}",
    "chunk extension with LF": f"Transfer-Encoding: chunked\r\n\r\n0;x\n\r\n\r\n{SMUGGLED}",
    "blank before the colon": f"Content-Length : 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "vertical tab": f"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "chunk size too long": f"Transfer-Encoding: chunked\r\n\r\n{'0' * 20}\r\n\r\n{SMUGGLED}",
    "GET with a body": f"Content-Length: 0\r\n\r\n{SMUGGLED}",
}


@pytest.mark.bypass("http-second-request")
@pytest.mark.parametrize("case", FRAMINGS)
def test_no_framing_hides_a_second_request(inside: Agent, witness: Witness, case: str) -> None:
    """Two readers of one message that disagree on its end: the second request is judged, or nothing is forwarded."""
    head = f"POST / HTTP/1.1\r\nHost: {GOOD}\r\n"
    inside.call(requests.to_server, GOOD, zone.HTTP_PORT, [[head + FRAMINGS[case]]])
    inside.call(
        requests.to_proxy,
        [
            [f"POST http://{GOOD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{AUTHORIZED}{FRAMINGS[case]}"],
            [f"POST http://{GOOD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{FRAMINGS[case]}"],
            [CONNECT, head + FRAMINGS[case]],
        ],
    )
    assert [seen.what for seen in witness.arrived("http") if "smuggled" in seen.what] == []


@pytest.mark.bypass("http-connect-tricks")
@pytest.mark.parametrize(
    "target",
    [
        f"{GOOD}:22",
        f"{GOOD}:53",
        f"{BAD}:443",
        f"{BAD}",
        f"http://{GOOD}/",
        f"{GOOD}:443/",
        f"[{GOOD}]:443",
        f"{GOOD}:+443",
        f"{GOOD}:0443x",
        f"{GOOD}:4294967739",
        ":443",
        "*:443",
        f"{zone.v4('db.example.com')}:443",
        f"[{zone.v6('db.example.com')}]:443",
        f"[::ffff:{zone.v4('db.example.com')}]:443",
    ],
)
def test_a_tunnel_leads_where_a_rule_allows(inside: Agent, target: str) -> None:
    """Other ports, other hosts, other spellings, bare addresses: no tunnel."""
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {GOOD}:443\r\n{AUTHORIZED}\r\n"
    (answer,) = inside.call(requests.to_proxy, [[request]])
    assert answer.split(" ")[1] in {"400", "403"}


@pytest.mark.bypass("http-connect-tricks")
def test_an_address_stands_for_the_name_it_was_given_for(start_inside: Callable[..., Agent], witness: Witness) -> None:
    """CONNECT to the address of a permitted host is one to that host, but only once the sandbox has looked it up."""
    witness.permit(GOOD, zone.HTTP_PORT)
    inside = start_inside("--allow-domain", GOOD)
    address = zone.v4(GOOD)
    tunnel = f"CONNECT {address}:80 HTTP/1.1\r\nHost: {address}\r\n{AUTHORIZED}\r\n"
    (before,) = inside.call(requests.to_proxy, [[tunnel]])
    assert before.startswith("HTTP/1.1 403")
    inside.call(requests.resolved, [GOOD])
    good, bad = (f"GET / HTTP/1.1\r\nHost: {host}\r\n{CLOSE}" for host in (GOOD, BAD))
    first, second = inside.call(requests.to_proxy, [[tunnel, good], [tunnel, bad]])
    assert first.startswith(OK)
    assert OK in first.partition("\r\n\r\n")[2]
    assert second.partition("\r\n\r\n")[2].startswith("HTTP/1.1 403")
    assert [seen.what for seen in witness.arrived("http")] == [f"GET {GOOD}/"]


@pytest.mark.bypass("session-token")
@pytest.mark.parametrize(
    "fields",
    [
        "",
        f"Proxy-Authorization: Bearer {'0' * 64}\r\n",
        "Proxy-Authorization: Bearer \r\n",
        "Proxy-Authorization: Basic bm9ubzo=\r\n",
        AUTHORIZED.replace("<token>", "<token>0"),
        AUTHORIZED * 2,
        AUTHORIZED.replace("Proxy-", ""),
        "X-Nono-Token: <token>\r\n",
    ],
)
def test_no_tunnel_and_no_request_without_the_token(inside: Agent, witness: Witness, fields: str) -> None:
    """Missing, wrong, empty, one character more, twice, in another field: nothing of it arrives, or is looked up."""
    asked = [f"CONNECT {GOOD}:80 HTTP/1.1\r\nHost: x\r\n{fields}\r\n"]
    asked += [f"GET http://{GOOD}/ HTTP/1.1\r\nHost: x\r\n{fields}{CLOSE}"]
    request = f"GET / HTTP/1.1\r\nHost: {GOOD}\r\n{CLOSE}"
    answers = inside.call(requests.to_proxy, [[head + request] for head in asked] + [[head * 50] for head in asked])
    assert all(answer.startswith("HTTP/1.1 407") and OK not in answer for answer in answers), answers
    assert witness.arrived("http") == []


@pytest.mark.bypass("session-token")
@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("0501 00 0501000107000001 01bb", "05ff"),
        ("050102 0100 00 050100010100000101bb", "05020101"),
        ("050102 0104 6e6f6e6f 03 616263 0501", "05020101"),
    ],
)
def test_no_tunnel_by_socks_without_the_token(inside: Agent, said: str, answer: str) -> None:
    """With no password, an empty one and a wrong one."""
    message = bytes.fromhex(said).decode("latin-1")
    (met,) = inside.call(requests.to_proxy, [[message]])
    assert met.encode("latin-1").hex() == answer


@pytest.mark.bypass("session-token")
def test_a_tunnel_by_socks(inside: Agent, witness: Witness) -> None:
    """With the token a permitted host is reached, a denied one, a bare address and this machine are not."""
    login = "\5\1\2\1\4nono\x40<token>"
    request = f"GET / HTTP/1.1\r\nHost: {GOOD}\r\n{CLOSE}"
    to = {host: f"\5\1\0\3{chr(len(host))}{host}\0\x50" for host in (GOOD, BAD, "127.0.0.1", "localhost", "metadata")}
    good, *denied = inside.call(requests.to_proxy, [[login + wanted + request] for wanted in to.values()])
    assert good.startswith("\5\2\1\0\5\0")
    assert OK in good
    assert {answer[:6] for answer in denied} == {"\5\2\1\0\5\2"}
    assert [seen.what for seen in witness.arrived("http")] == [f"GET {GOOD}/"]


@pytest.mark.bypass("http-connect-tricks")
def test_a_tunnel_is_no_way_to_another_host(inside: Agent, witness: Witness) -> None:
    """A request for a denied host within it is refused, as is a tunnel in the tunnel."""
    for request in (
        f"GET / HTTP/1.1\r\nHost: {BAD}\r\n{CLOSE}",
        f"CONNECT {BAD}:80 HTTP/1.1\r\nHost: {BAD}:80\r\n\r\n",
    ):
        (answer,) = inside.call(requests.to_proxy, [[CONNECT, request]])
        assert answer.startswith(OK)
        assert answer.partition("\r\n\r\n")[2][9:10] == "4"
    assert witness.arrived("http") == []


@pytest.mark.bypass("http-identity-header")
def test_a_claim_to_be_somebody_else_changes_nothing(inside: Agent) -> None:
    """Who asks is known from the kernel: no header, user name or token makes a rule of another."""
    claims = "Authorization: Basic YWRtaW46YWRtaW4=\r\nX-Forwarded-For: 127.0.0.1\r\nX-Real-IP: ::1\r\n"
    for target in (f"{BAD}:443", "127.0.0.1:22"):
        request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{claims}"
        with_token, without = inside.call(requests.to_proxy, [[f"{request}{AUTHORIZED}\r\n"], [f"{request}\r\n"]])
        assert with_token.startswith("HTTP/1.1 403")
        assert without.startswith("HTTP/1.1 407")


@pytest.mark.bypass("session-token")
def test_the_token_stays_with_the_proxy(inside: Agent) -> None:
    """No server sees it, whichever field it was in; it tells what it was sent."""
    fields = f"{AUTHORIZED}X-Nono-Token: <token>\r\nX-Seen: yes\r\n{CLOSE}"
    answers = inside.call(
        requests.to_proxy,
        [
            [f"GET http://{GOOD}/ HTTP/1.1\r\nHost: x\r\n{fields}"],
            [CONNECT, f"GET / HTTP/1.1\r\nHost: {GOOD}\r\n{fields}"],
        ],
    )
    for answer in answers:
        assert '"X-Seen": "yes"' in answer
        assert "Authorization" not in answer
        assert "Nono-Token" not in answer


# --- paths

PATHS = [
    "/admin",
    "/v1/../admin",
    "/v1/%2e%2e/admin",
    "/v1/%2E./admin",
    "/v1/..%2fadmin",
    "/v1/..%5cadmin",
    "/v1/..\\admin",
    "/v1/%252e%252e/admin",
    "/v1/..;/admin",
    "/v1/..;x=y/admin",
    "/v1/x/../../admin",
    "//admin",
    "/./admin",
    "/v1/%00/../../admin",
    "/v1%",
    "/V1/x",
    "/v1x",
]


@pytest.mark.bypass("endpoint-paths")
def test_no_spelling_of_a_path_takes_one_past_its_rule(start_inside: Callable[..., Agent], witness: Witness) -> None:
    """Of a host that is permitted for /v1/** nothing else is asked, by whatever road; what is, is asked plainly."""
    witness.permit(GOOD, zone.HTTP_PORT)
    inside = start_inside("--allow-domain", f"http://{GOOD}/v1/**")
    good = ["/v1/x", "/v1//y", "/admin/../v1/z?q=/../admin"]
    paths = [*PATHS, *good]
    heads = [f"GET {path} HTTP/1.1\r\nHost: {GOOD}\r\n{CLOSE}" for path in paths]
    absolute = [f"GET http://{GOOD}{path} HTTP/1.1\r\nHost: {GOOD}\r\n{AUTHORIZED}{CLOSE}" for path in paths]
    answers = inside.call(requests.to_server, GOOD, zone.HTTP_PORT, [[head] for head in heads])
    answers += inside.call(requests.to_proxy, [[head] for head in absolute])
    met = {path: {answer[:12] for answer in answers[at :: len(paths)]} for at, path in enumerate(paths)}
    assert met == {path: {OK if path in good else "HTTP/1.1 403"} for path in paths}
    seen = [f"GET {GOOD}{path}" for path in ("/v1/x", "/v1/y", "/v1/z?q=/../admin")]
    assert [each.what for each in witness.arrived("http")] == seen * 2


@pytest.mark.bypass("endpoint-paths")
def test_no_tunnel_where_requests_are_judged(start_inside: Callable[..., Agent], witness: Witness) -> None:
    """What cannot be read goes to no such host, redirected, by CONNECT or by SOCKS; TLS is judged by what is inside."""
    witness.permit(GOOD, zone.HTTP_PORT)
    inside = start_inside("--allow-domain", f"http://{GOOD}/v1/**")
    request = f"GET /v2 HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"
    socks = f"\5\1\2\1\4nono\x40<token>\5\1\0\3{chr(len(GOOD))}{GOOD}\0\x50"
    for target in (f"{GOOD}:80", GOOD.upper() + ".:80", f"{GOOD}:443", f"{zone.v4(GOOD)}:80"):
        connect = f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n{AUTHORIZED}\r\n"
        _, judged = inside.call(requests.to_proxy, [[connect + "\0\0binary"], [connect + request]])
        assert "403" in judged, target
    _, judged = inside.call(requests.to_proxy, [[socks + "\0\0binary"], [socks + request]])
    assert "HTTP/1.1 403" in judged
    hello = hellos.records(hellos.message([hellos.server_name(GOOD.encode())]))
    alert = inside.call(requests.hex_pieces, GOOD, zone.HTTP_PORT, [hello.hex()])
    assert alert.encode("latin-1")[0] == 0x15  # an alert of ours: this hello has nothing to agree on
    request = request.replace(GOOD, f"{GOOD}:{zone.HTTP_PORT}")
    assert "403" in inside.call(requests.over_tls, GOOD, zone.HTTP_PORT, GOOD, request)
    assert inside.call(requests.hex_pieces, GOOD, zone.HTTP_PORT, [b"\0\0binary".hex()]) == "ECONNRESET"
    assert witness.arrived("http") == []


# --- HTTP that is not quite

SPELLINGS = {
    "CR LF first": ["\r\nGET /x HTTP/1.1\r\n"],
    "LF first": ["\nGET /x HTTP/1.1\r\n"],
    "two blank lines first": ["\r\n\r\nGET /x HTTP/1.1\r\n"],
    "blank first": [" GET /x HTTP/1.1\r\n"],
    "tab first": ["\tGET /x HTTP/1.1\r\n"],
    "lower case": ["get /x HTTP/1.1\r\n"],
    "mixed case": ["Get /x HTTP/1.1\r\n"],
    "lower-case protocol": ["GET /x http/1.1\r\n"],
    "form feed in the target": ["GET /\x0cx HTTP/1.1\r\n"],
    "control character in the target": ["GET /\x01x HTTP/1.1\r\n"],
    "DEL in the target": ["GET /\x7fx HTTP/1.1\r\n"],
    "vertical tab for the blank": ["GET\x0b/x HTTP/1.1\r\n"],
    "tabs for blanks": ["GET\t/x\tHTTP/1.1\r\n"],
    "two CRs": ["GET /x HTTP/1.1\r\r\n"],
    "bare LF": ["GET /x HTTP/1.1\n"],
    "odd version": ["GET /x HTTP/01.1\r\n"],
    "version 2": ["GET /x HTTP/2.0\r\n"],
    "blank line, then the rest": ["\r\n", "GET /x HTTP/1.1\r\n"],
    "in pieces": ["GE", "T /x HT", "TP/1.1\r\n"],
    "as it should be": ["GET /x HTTP/1.1\r\n"],
}
REST = f"Host: {BAD}\r\n{CLOSE}"


@pytest.mark.bypass("http-spelling")
def test_http_spelled_oddly_takes_no_denied_host_past(start_inside: Callable[..., Agent], witness: Witness) -> None:
    """What a lenient server would take for a request is judged as one, or refused: it never travels unread. The echo
    server would show that it did, whatever a web server makes of it.
    """
    witness.permit(GOOD, zone.HTTP_PORT)
    witness.permit("echo.example.com", zone.ECHO_PORT)
    inside = start_inside("--allow-domain", GOOD, "--allow-domain", "echo.example.com:7")
    asked = [[*pieces[:-1], pieces[-1] + REST] for pieces in SPELLINGS.values()]
    wrong = {}
    for host, port in ((GOOD, zone.HTTP_PORT), ("echo.example.com", zone.ECHO_PORT)):
        answers = inside.call(requests.to_server, host, port, asked)
        statuses = [answer.split(" ")[1] if answer.startswith("HTTP/1.1 ") else answer for answer in answers]
        wrong |= {
            (port, name): status
            for name, status in zip(SPELLINGS, statuses, strict=True)
            if not re.fullmatch("4..|505", status)
        }
    assert wrong == {}
    assert witness.arrived("http") + witness.arrived("echo") == []


@pytest.mark.bypass("http-spelling")
@pytest.mark.parametrize("line", ["GET /x\r\n", "GET  /x\r\n", "GET /x RTSP/1.0\r\n"])
def test_a_request_that_does_not_say_http_takes_no_denied_host_past(inside: Agent, witness: Witness, line: str) -> None:
    """llhttp, in aiohttp and Node, answers it all the same, by the Host field behind it."""
    inside.call(requests.to_server, GOOD, zone.HTTP_PORT, [[line + REST]])
    assert [seen.what for seen in witness.arrived("http") if BAD in seen.what] == []
