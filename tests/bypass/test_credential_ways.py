"""Requests with a credential that nobody permitted: hidden in others, too many, under another name of their host; and
servers that say something else than they were asked.
"""

from __future__ import annotations

import json
import re
import socket
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from attacks import secure
from kit.guarded import CLOSE, Guarded, Sandboxed, get, host, status
from kit.namespaces import inside
from kit.scripted import OK, Asked, Scripted

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

LOOPBACK_PORT = 18080
CARELESS_PORT, PACED_PORT, SHARED_PORT, DENYING_PORT = 8443, 9443, 10443, 11443
AT_ONCE = 3
# Names of the test world's DNS: for the cloud's metadata service, the machine's loopback, the machine itself.
TURNED = {"rebind": "169.254.169.254", "inward": "127.0.0.1", "own": "203.0.113.1"}
GET_ONLY, POST_TOO = {"method": "GET", "path": "/v1/**"}, {"method": "POST", "path": "/v1/**"}
ADDED: dict[str, dict[str, object]] = {
    "careless": {
        "upstream": f"https://{host('narrow')}:{CARELESS_PORT}",
        "inject_header": "X-Api-Key",
        "endpoint_rules": [GET_ONLY, POST_TOO, GET_ONLY | {"method": "OPTIONS"}, GET_ONLY | {"method": "HEAD"}],
    },
    "paced": {
        "upstream": f"https://{host('api')}:{PACED_PORT}",
        "rate_limit": {"requests_per_minute": 1, "burst": AT_ONCE, "max_delay_secs": 0},
    },
    "slot": {
        "upstream": f"https://{host('narrow')}:{SHARED_PORT}",
        "inject_header": "X-Api-Key",
        "proxy": {"inject_mode": "url_path", "path_pattern": "/t/{}"},
        "endpoint_rules": [{"method": "GET", "path": "/t/**"}],
    },
    "beside": {
        "upstream": f"https://{host('narrow')}:{SHARED_PORT}",
        "inject_header": "X-Api-Key",
        "endpoint_rules": [{"method": "GET", "path": "/admin/**"}],
    },
    "denying": {
        "upstream": f"https://{host('narrow')}:{DENYING_PORT}",
        "inject_header": "X-Api-Key",
        "endpoint_policy": {"default": {"decision": "allow"}, "deny": [{"method": "*", "path": "/admin{,/**}"}]},
    },
    "unruled": {"upstream": f"https://{host('api')}:{CARELESS_PORT}"},
    "loop": {"upstream": f"http://localhost:{LOOPBACK_PORT}"},
    **{name: {"upstream": f"https://{name}.example.com"} for name in TURNED},
}
OF_NARROW = ("careless", "slot", "beside", "denying")


class Careless(Scripted):
    """Answers once a head is there, and takes what follows for the next request, as servers do that expect no body."""

    def _converse(self, host: str, stream: socket.socket) -> None:
        left = b""
        while True:
            while b"\r\n\r\n" not in left:
                if not (data := stream.recv(65536)):
                    return
                left += data
            head, _, left = left.partition(b"\r\n\r\n")
            line, *lines = head.decode("latin-1").split("\r\n")
            fields = tuple((name.lower(), value) for name, _, value in (each.partition(": ") for each in lines))
            asked = Asked(host, *line.split(" ")[:2], fields, b"")
            self.asked.append(asked)
            stream.sendall(OK.removesuffix(b"ok") if asked.method == "HEAD" else OK)
            if "close" in asked.values("connection"):
                return


class Crowd(Guarded):
    """The same hosts, and services that make them a way to somewhere else."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.careless = Careless()
        self._stack.callback(self.careless.close)
        narrow, plain = host("narrow"), host("plain")
        self.careless.serve(narrow, self._also(narrow, CARELESS_PORT), self._context(narrow))
        self.careless.serve(plain, self._also(plain, CARELESS_PORT), None)
        self.careless.serve(host("api"), self._also(host("api"), CARELESS_PORT), self._context(host("api")))
        for port in (SHARED_PORT, DENYING_PORT):
            self.server.serve(narrow, self._also(narrow, port), self._context(narrow))
        self.server.serve(host("api"), self._also(host("api"), PACED_PORT), self._context(host("api")))
        self._machine = world.namespaces.machine
        for address, family in (("127.0.0.1", socket.AF_INET), ("127.0.0.2", socket.AF_INET), ("::1", socket.AF_INET6)):
            self._on_machine(address, LOOPBACK_PORT, None, host("api"), family)
        for name, address in TURNED.items():
            if name != "rebind":  # which the world answers for
                shown = f"{name}.example.com"
                self._on_machine(address, 443, self._context(shown), shown)

    def _also(self, name: str, port: int) -> socket.socket:
        return inside(self.network.netns, partial(socket.create_server, (self.network.addresses[name], port)))

    def _on_machine(
        self, address: str, port: int, context: ssl.SSLContext | None, name: str, family: int = socket.AF_INET
    ) -> None:
        listener = inside(self._machine, partial(socket.create_server, (address, port), family=family))
        self.server.serve(name, listener, context)

    def options(self) -> list[str]:
        """For `nono-ebpf run`: these services, too."""
        found = super().options()
        path = Path(found[found.index("--profile") + 1])
        profile = json.loads(path.read_text())
        for name, definition in ADDED.items():
            kept = {"credential_key": self.vault.reference("narrow" if name in OF_NARROW else "api")}
            profile["network"]["custom_credentials"][name] = definition | kept | {"env_var": f"{name.upper()}_KEY"}
            profile["network"]["credentials"].append(name)
        path.write_text(json.dumps(profile))
        return [*found, "--allow-domain", f"http://{host('plain')}:{CARELESS_PORT}/v1/**"]


@pytest.fixture(scope="module")
def crowd(_world: World) -> Iterator[Crowd]:
    """The hosts."""
    made = Crowd(_world)
    yield made
    made.close()


@pytest.fixture(scope="module")
def _crowded(crowd: Crowd) -> Iterator[Sandboxed]:
    made = Sandboxed(crowd)
    yield made
    made.close()


@pytest.fixture
def crowded(_crowded: Sandboxed, crowd: Crowd) -> Iterator[Sandboxed]:
    """The sandbox that the tests share, with a look at all that came of each."""
    crowd.server.forget()
    crowd.careless.forget()
    _crowded.records()
    _crowded._told.clear()
    yield _crowded
    _crowded.check(_crowded.records())


# --- requests inside requests

HIDDEN = {
    "whole": "DELETE /admin HTTP/1.1\r\nHost: x\r\n\r\n",
    "begun": "DELETE /admin HTTP/1.1\r\nX: ",  # for whatever is sent next to be the rest of it
}


def _carrying(name: str, method: str, body: str, port: int = CARELESS_PORT) -> list[str]:
    """A permitted request with `body`, and another behind it."""
    head = f"%s /v1/%s HTTP/1.1\r\nHost: {host(name)}:{port}\r\n"
    first = head % (method, "up") + f"Content-Length: {len(body)}\r\n\r\n{body}"
    return [first, head % ("GET", "next") + f"{CLOSE}\r\n"]


@pytest.mark.bypass("unread-bodies")
def test_a_server_may_well_take_a_body_for_a_request(crowd: Crowd) -> None:
    """The control: this one does, and serves both."""
    address = (crowd.network.addresses[host("plain")], CARELESS_PORT)
    crowd.careless.forget()
    with inside(crowd.network.netns, partial(socket.create_connection, address)) as client:
        client.sendall(_carrying("plain", "GET", HIDDEN["whole"])[0].encode())
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass
    assert [each.method for each in crowd.careless.asked] == ["GET", "DELETE"]


@pytest.mark.bypass("unread-bodies")
@pytest.mark.parametrize("case", HIDDEN)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
def test_no_body_becomes_a_request(crowded: Sandboxed, crowd: Crowd, method: str, case: str) -> None:
    """Where only certain requests are permitted, a server that leaves a body unread is not asked a second time behind
    it, and none is sent where servers expect none. Neither in TLS nor in clear, by no road.
    """
    pieces = _carrying("narrow", method, HIDDEN[case])
    for said in (pieces, ["".join(pieces)]):
        _by(crowded, "redirected", host("narrow"), CARELESS_PORT, said)
        _by(crowded, "tunnelled", f"{host('narrow')}:{CARELESS_PORT}", said)
    crowded.to_proxy([_of_the_service(each) for each in pieces])
    crowded.in_the_clear("plain", CARELESS_PORT, "".join(_carrying("plain", method, HIDDEN[case])))
    asked = crowd.careless.asked
    assert {(each.method, each.target) for each in asked} <= {(method, "/v1/up"), ("GET", "/v1/next")}
    assert [each for each in asked if each.values("x")] == []


@pytest.mark.bypass("unread-bodies")
@pytest.mark.parametrize("case", HIDDEN)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_body_swallows_a_request_with_a_credential(crowded: Sandboxed, crowd: Crowd, method: str, case: str) -> None:
    """Where everything is permitted, a body could have the next request, with the credential in it, stored or shown."""
    pieces = _carrying("api", method, HIDDEN[case])
    for said in (pieces, ["".join(pieces)]):
        answers = _by(crowded, "redirected", host("api"), CARELESS_PORT, said)
        assert ["200" in each for each in answers] == [True] * len(answers)
    asked = crowd.careless.asked
    assert [(each.method, each.target) for each in asked] == [(method, "/v1/up"), ("GET", "/v1/next")] * 2
    assert [each for each in asked if each.values("x")] == []


def _of_the_service(text: str) -> str:
    """The same for the proxy's own port."""
    return text.replace("/v1/", "/careless/v1/").replace("Host:", "X-Nono-Token: <token>\r\nHost:")


def _by(crowded: Sandboxed, road: str, *where: object) -> list[str]:
    """One conversation with a host on a port of its own."""
    *target, said = where
    return crowded._kept(crowded.agent.call(getattr(secure, road), *target, [{"pieces": said}]))


@pytest.mark.bypass("unread-bodies")
def test_bodies_that_are_read_go_on(crowded: Sandboxed) -> None:
    """The control: a POST with a body, and another, to a host without rules and to one with them."""
    said = f"POST /v1/x HTTP/1.1\r\nHost: {host('api')}\r\nContent-Length: 4\r\n\r\nbody"
    (answer,) = crowded.redirected("api", {"pieces": [said, get("api")]})
    assert answer.count("HTTP/1.1 200 ") == 2
    assert [each.body for each in crowded.server.asked] == [b"body", b""]


# --- which request a credential is for


@pytest.mark.bypass("service-paths")
def test_what_is_left_of_a_path_is_the_same_services(crowded: Sandboxed) -> None:
    """The token in a path says which service it is; without it the path may be for another, which has its own key."""
    met = {}
    for path in ("/t/<token>/t/x", "/t/<token>/admin/x", "/t/<token>/t/../admin/x", "/t/<token>/other"):
        text = get("narrow", path).replace(host("narrow"), f"{host('narrow')}:{SHARED_PORT}")
        (answer,) = _by(crowded, "redirected", host("narrow"), SHARED_PORT, [text])
        met[path] = status(answer)
    assert list(met.values()) == ["200", "403", "403", "403"]
    assert [each.target for each in crowded.server.asked] == ["/t/x"]


DENIED = ("/admin", "/ADMIN/x", "/Admin", "/aDmIn%2fx", "/v1/..;/ADMIN", "/admin./x", "/admin%20/x", "/ADMIN%2e")


@pytest.mark.bypass("service-denials")
def test_a_denial_means_whatever_a_server_takes_for_it(crowded: Sandboxed) -> None:
    """In any case, and with dots and blanks that some file systems ignore: what is not denied is another path."""
    texts = [get("narrow", path) for path in (*DENIED, "/v1/admin", "/administration")]
    said = [text.replace(f"Host: {host('narrow')}", f"Host: {host('narrow')}:{DENYING_PORT}") for text in texts]
    answers = [_by(crowded, "redirected", host("narrow"), DENYING_PORT, [text])[0] for text in said]
    assert list(map(status, answers)) == ["403"] * len(DENIED) + ["200", "200"]
    assert [each.target for each in crowded.server.asked] == ["/v1/admin", "/administration"]


def _absolute(name: str) -> str:
    return (
        f"GET http://{name}:{LOOPBACK_PORT}/x HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer <token>\r\n{CLOSE}\r\n"
    )


def _inside_a_tunnel(name: str) -> list[str]:
    authority = f"{name}:{LOOPBACK_PORT}"
    return [
        f"CONNECT {authority} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer <token>\r\n\r\n",
        f"GET /x HTTP/1.1\r\nHost: {authority}\r\n{CLOSE}\r\n",
    ]


@pytest.mark.bypass("service-names")
@pytest.mark.parametrize("name", ["127.0.0.2", "[::1]", "other.localhost", "[::ffff:127.0.0.2]"])
def test_a_service_on_loopback_has_one_name(crowded: Sandboxed, name: str) -> None:
    """Whoever listens on another of its addresses, or has another name there, is another one: nothing is sent."""
    answers = crowded.to_proxy(_absolute(name), _inside_a_tunnel(name))
    assert [each for each in answers if " 200 OK" in each] == []
    assert crowded.server.asked == []


@pytest.mark.bypass("service-names")
def test_a_service_on_loopback_is_served(crowded: Sandboxed) -> None:
    """The control: by the name that it was given."""
    reverse = f"GET /loop/x HTTP/1.1\r\nHost: x\r\nX-Nono-Token: <token>\r\n{CLOSE}\r\n"
    answers = crowded.to_proxy(_absolute("localhost"), _inside_a_tunnel("LOCALHOST"), reverse)
    assert [" 200 OK" in each for each in answers] == [True] * 3
    assert [each.values("host") for each in crowded.server.asked] == [[f"localhost:{LOOPBACK_PORT}"]] * 3


@pytest.mark.bypass("service-names")
@pytest.mark.parametrize("name", TURNED)
def test_a_services_name_leads_to_nothing_inward(crowded: Sandboxed, world: World, name: str) -> None:
    """DNS turns it to the metadata service, to loopback, to the machine, where a server even proves to be the host."""
    reverse = f"GET /{name}/x HTTP/1.1\r\nHost: x\r\nX-Nono-Token: <token>\r\n{CLOSE}\r\n"
    answers = crowded.to_proxy(reverse)
    turned = f"{name}.example.com"
    said = [f"GET /x HTTP/1.1\r\nHost: {turned}\r\n{CLOSE}\r\n"]
    answers += _by(crowded, "redirected", turned, 443, said) + _by(crowded, "tunnelled", f"{turned}:443", said)
    assert status(answers[0]) == "403"
    assert [each for each in answers if " 200 OK" in each] == []
    assert crowded.server.asked == []
    assert [each for each in world.seen if each.service != "dns"] == []


FOREIGN_STILL = ("PRIVATE-TOKEN", "Job-Token", "deploy_token", "X.Api.Key", "x!api!key")


@pytest.mark.bypass("foreign-credentials")
@pytest.mark.parametrize("name", ["api", "narrow"])
def test_no_other_spelling_of_a_field_brings_a_key(crowded: Sandboxed, name: str) -> None:
    """GitLab's own fields come first there; lighttpd takes any character for a hyphen."""
    said = [get(name, fields=f"{field}: other\r\n{CLOSE}") for field in FOREIGN_STILL]
    assert [status(each) for each in crowded.redirected(name, *said)] == ["401"] * len(FOREIGN_STILL)
    assert crowded.server.asked == []


# --- how many there may be


@pytest.mark.bypass("service-rate")
def test_all_roads_share_one_rate(crowded: Sandboxed) -> None:
    """Redirected, in tunnels, by the service's own path, under other spellings of all of it; refused ones do not count
    for others' benefit, and nothing is sent of what is too much.
    """
    begun = time.monotonic()
    authority = f"{host('api')}:{PACED_PORT}"
    text = f"GET /v1/%d HTTP/1.1\r\nHost: {authority}\r\n{{}}{CLOSE}\r\n"
    said = [(text % number).format("X-Try: 1\r\n" if number % 2 else "") for number in range(4)]
    answers = [*_by(crowded, "redirected", host("api"), PACED_PORT, said[:1])]
    answers += _by(crowded, "tunnelled", authority, [said[1].replace("/v1/", "/v1//./")])
    answers += _by(crowded, "by_socks", authority, [said[2].replace("api.", "API.")])
    pipelined = "".join(each.replace(CLOSE, "") for each in said)
    answers += _by(crowded, "redirected", host("api"), PACED_PORT, [pipelined])
    reverse = "GET /paced/v1/%d HTTP/1.1\r\nHost: x\r\nX-Nono-Token: <token>\r\nConnection: close\r\n\r\n"
    answers += crowded.to_proxy(*(reverse % number for number in range(4)))
    more = int((time.monotonic() - begun) / 60) + 1
    statuses = re.findall(r"HTTP/1\.1 (\d+) ", "".join(answers).replace("200 Connection", ""))
    assert statuses[:AT_ONCE] == ["200"] * AT_ONCE
    assert AT_ONCE <= len(crowded.server.asked) == statuses.count("200") < AT_ONCE + more
    assert set(statuses) == {"200", "429"}


# --- what a server says instead

# In one record each, so that it is there when the response is: what comes later is the next one's answer to anybody.
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"
BEHIND: dict[str, tuple[str, list[bytes]]] = {
    "another response": ("GET", [OK + EVIL]),
    "a body longer than it says": ("GET", [OK + b"EVIL"]),
    "an interim response": ("GET", [OK + b"HTTP/1.1 103 EVIL\r\n\r\n"]),
    "a chunk behind the last": (
        "GET",
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n4\r\nEVIL\r\n0\r\n\r\n"],
    ),
    "a body for HEAD": ("HEAD", [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(EVIL), EVIL)]),
    "a body of 204": ("GET", [b"HTTP/1.1 204 X\r\n\r\n" + EVIL]),
    "a body of 304": ("GET", [b"HTTP/1.1 304 X\r\nContent-Length: %d\r\n\r\n%b" % (len(EVIL), EVIL)]),
    "the end": ("GET", [OK, b""]),
}


@pytest.mark.bypass("untrue-responses")
@pytest.mark.parametrize("case", BEHIND)
def test_what_stands_behind_a_response_is_nobodys(crowded: Sandboxed, case: str) -> None:
    """Connections to a service are shared by all clients: the next one's answer is the answer to what it asked."""
    method, pieces = BEHIND[case]
    crowded.server.answer = lambda asked: pieces if asked.target == "/v1/first" else [OK]
    for _ in range(2):
        said = [get("api", "/v1/first", "", method), get("api", "/v1/second")]
        answers = crowded.redirected("api", {"pieces": said}, get("api", "/v1/third"))
        assert "EVIL" not in "".join(answers)
        assert [each.rpartition("\r\n\r\n")[2] for each in answers] == ["ok", "ok"]
    assert [each.target for each in crowded.server.asked] == ["/v1/first", "/v1/second", "/v1/third"] * 2


def _head(*lines: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", *lines, b"", b""))


CHUNKED = _head(b"Transfer-Encoding: chunked")
UNTRUE: dict[str, list[bytes]] = {
    "two lengths": [_head(b"Content-Length: 2", b"Content-Length: 2") + b"ok"],
    "a list of lengths": [_head(b"Content-Length: 2, 2") + b"ok"],
    "a length and a coding": [_head(b"Content-Length: 2", b"Transfer-Encoding: chunked") + b"0\r\n\r\n"],
    "two codings": [_head(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n"],
    "a coding of HTTP/1.0": [b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
    "HTTP/2 in words": [b"HTTP/2 200\r\ncontent-length: 2\r\n\r\nok"],
    "a folded field": [_head(b"X: 1", b" 2", b"Content-Length: 2") + b"ok"],
    "NUL in a field": [_head(b"X: \x001", b"Content-Length: 2") + b"ok"],
    "a bare CR in a field": [_head(b"X: 1\rContent-Length: 7", b"Content-Length: 2") + b"ok"],
    "a blank in a name": [_head(b"Content-Length : 2") + b"ok"],
    "lines without CR": [b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"],
    "more than a thousand fields": [_head(*(b"X: 1",) * 1100, b"Content-Length: 2") + b"ok"],
    "a head without an end": [_head(b"X: " + b"x" * 70_000)],
    "a hundred interim responses": [b"HTTP/1.1 103 X\r\n\r\n" * 100 + OK],
    "a switch nobody asked for": [b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", OK],
    "nothing": [b""],
}


@pytest.mark.bypass("untrue-responses")
@pytest.mark.parametrize("case", UNTRUE)
def test_a_response_with_two_readings_is_none(crowded: Sandboxed, case: str) -> None:
    """502, and its connection is nobody's any more; the next request is answered as ever."""
    crowded.server.answer = lambda asked: UNTRUE[case] if asked.target == "/v1/first" else [OK]
    first = get("api", "/v1/first").replace("GET", "PUT").replace(CLOSE, f"Content-Length: 0\r\n{CLOSE}")
    answers = crowded.redirected("api", first, get("api", "/v1/second"))
    # Interim responses are passed on before there are too many of them.
    assert re.findall(r"HTTP/1\.1 (\d+) ", answers[0].replace("HTTP/1.1 103 X", "")) == ["502"]
    assert status(answers[1]) == "200"
    assert [each.target for each in crowded.server.asked] == ["/v1/first", "/v1/second"]


LATE: dict[str, list[bytes]] = {
    "trailers without an end": [CHUNKED + b"2\r\nok\r\n0\r\n" + b"X: 1\r\n" * 5000 + b"\r\n"],
    "no trailer": [CHUNKED + b"2\r\nok\r\n0\r\nX 1\r\n\r\n"],
    "a chunk without an end": [CHUNKED + b"2\r\nokay\r\n0\r\n\r\n"],
    "a chunk's size without an end": [CHUNKED + b"2;" + b"x" * 2000 + b"\r\nok\r\n0\r\n\r\n"],
}


@pytest.mark.bypass("untrue-responses")
@pytest.mark.parametrize("case", LATE)
def test_a_response_that_turns_out_untrue_is_cut_off(crowded: Sandboxed, case: str) -> None:
    """It has begun: the client sees no end of it, and what came on its connection is nobody's answer."""
    crowded.server.answer = lambda asked: LATE[case] if asked.target == "/v1/first" else [OK]
    said = [get("api", "/v1/first", ""), get("api", "/v1/second")]
    first, second = crowded.redirected("api", {"pieces": said[:1]}, said[1])
    assert "0\r\n\r\n" not in first
    assert len(first.partition("\r\n\r\n")[2]) < len("2\r\nok\r\n0\r\n\r\n")
    assert status(second) == "200"
    assert [each.target for each in crowded.server.asked] == ["/v1/first", "/v1/second"]


TWICE: dict[str, Callable[[str], str]] = {
    "percent-encoded twice": lambda secret: quote(quote(secret, safe=""), safe=""),
    "percent-encoded twice, in lower case": lambda secret: quote(quote(secret, safe=""), safe="").lower(),
    "as a script's text": lambda secret: "".join(each if each.isalnum() else f"\\u{ord(each):04X}" for each in secret),
    "as PHP's HTML": lambda secret: "".join(
        each if each.isalnum() or each == "-" else f"&#{ord(each):03};" for each in secret
    ),
}


@pytest.mark.bypass("credential-echo")
@pytest.mark.parametrize("case", TWICE)
@pytest.mark.parametrize("name", ["api", "narrow"])
def test_what_is_escaped_by_habit_is_covered(crowded: Sandboxed, case: str, name: str) -> None:
    """In a redirect to a login, whose parameter is the whole request, and in a page."""
    secret = crowded.guarded.secrets[name]
    said = TWICE[case](secret).encode()
    field = b"Location: /login?next=%2Fv1%3Fkey%3D" + said
    head = b"HTTP/1.1 302 X\r\n%b\r\nContent-Length: %d\r\n\r\n" % (field, len(said))
    crowded.server.answer = lambda _: [head + said]
    (answer,) = crowded.redirected(name, get(name))
    assert answer.count("*" * len(said)) == 2
    assert re.findall(r"[0-9a-f]{8}", answer) == []


@pytest.mark.bypass("credential-echo")
@pytest.mark.parametrize("charset", ["utf-16", '"UTF-16LE"', "utf-32", "IBM037", "utf-7"])
def test_what_nobody_could_read_is_not_shown(crowded: Sandboxed, charset: str) -> None:
    """A client may ask for another character encoding, in which nothing is looked for; some servers obey."""
    said = crowded.guarded.secrets["api"].encode(charset.strip('"'))
    field = b"Content-Type: text/plain; charset=" + charset.encode()
    head = b"HTTP/1.1 200 OK\r\n%b\r\nContent-Length: %d\r\n\r\n" % (field, len(said))
    crowded.server.answer = lambda _: [head + said]
    asking = f"Accept-Charset: {charset}\r\nAccept: text/plain;charset={charset}\r\n{CLOSE}"
    (answer,) = crowded.redirected("api", get("api", fields=asking))
    assert status(answer) == "502"
    crowded.server.answer = lambda _: [head.replace(charset.encode(), b"UTF-8") + b"x" * len(said)]
    assert [status(each) for each in crowded.redirected("api", get("api"))] == ["200"]
    assert crowded.server.asked[0].values("accept-charset") == []
