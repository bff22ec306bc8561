"""HTTP that says one thing and means another: what is forwarded is what was judged."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from attacks import requests
from kit import zone

if TYPE_CHECKING:
    from collections.abc import Callable

    from kit.inside import Agent
    from kit.witness import Witness

pytestmark = [pytest.mark.root, pytest.mark.kernel]

GOOD, BAD = "one.example.com", "other.example.net"
OK = "HTTP/1.1 200"
CLOSE = "Connection: close\r\n\r\n"
CONNECT = f"CONNECT {GOOD}:80 HTTP/1.1\r\nHost: {GOOD}:80\r\n\r\n"


def _to_everybody(inside: Agent, request: list[str]) -> list[str]:
    """The request to the proxy, through a tunnel to the permitted host, and to its address without the proxy."""
    return [
        *inside.call(requests.to_proxy, [request, [CONNECT, *request]]),
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
    absolute = [piece.replace(" /", f" http://{GOOD if 'first' in piece else BAD}/", 1) for piece in (first, second)]
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
        [[f"POST http://{GOOD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{FRAMINGS[case]}"], [CONNECT, head + FRAMINGS[case]]],
    )
    assert [seen.what for seen in witness.arrived("http") if "smuggled" in seen.what] == []


@pytest.mark.bypass("http-connect-tricks")
@pytest.mark.parametrize(
    "target",
    [
        f"{GOOD}:22",
        f"{GOOD}:53",
        f"{BAD}:443",
        f"{GOOD}",
        f"http://{GOOD}/",
        f"{GOOD}:443/",
        f"[{GOOD}]:443",
        f"{GOOD}:+443",
        f"{GOOD}:0443x",
        f"{GOOD}:4294967739",
        ":443",
        "*:443",
        f"{zone.v4(GOOD)}:443",
        f"[{zone.v6(GOOD)}]:443",
        f"[::ffff:{zone.v4(GOOD)}]:443",
    ],
)
def test_a_tunnel_leads_where_a_rule_allows(inside: Agent, target: str) -> None:
    """Other ports, other hosts, other spellings, the bare address of a permitted host: no tunnel."""
    (answer,) = inside.call(requests.to_proxy, [[f"CONNECT {target} HTTP/1.1\r\nHost: {GOOD}:443\r\n\r\n"]])
    assert answer.split(" ")[1] in {"400", "403"}


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
    claims = "Proxy-Authorization: Basic YWRtaW46YWRtaW4=\r\nX-Forwarded-For: 127.0.0.1\r\nX-Real-IP: ::1\r\n"
    for target in (f"{BAD}:443", "127.0.0.1:22"):
        (answer,) = inside.call(requests.to_proxy, [[f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{claims}\r\n"]])
        assert answer.startswith("HTTP/1.1 403")


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
