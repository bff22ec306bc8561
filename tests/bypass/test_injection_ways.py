"""Credentials: in the one place where they belong, of the one who is meant, never where the command can see them."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import h11
import pytest
from attacks import requests
from kit.credentials import cgroup_of, find_secrets, of_ours
from kit.guarded import CLOSE, PLACED, PRETENDERS, Sandboxed, get, host, status
from kit.sandboxes import Victim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kit.guarded import Guarded

pytestmark = [pytest.mark.root, pytest.mark.kernel]


def _token(sandboxed: Sandboxed) -> str:
    return urlsplit(sandboxed.agent.call(requests.variables)["HTTP_PROXY"]).password or ""


def _basic(login: str) -> str:
    return f"Authorization: Basic {base64.b64encode(login.encode()).decode()}"


def _lines(*fields: str) -> str:
    return "".join(f"{field}\r\n" for field in fields) + CLOSE


# --- who is meant


def _phantoms(token: str) -> dict[str, tuple[str, ...]]:
    return {
        "nothing": (),
        "Bearer": ("Authorization: Bearer <token>",),
        "bearer": ("AUTHORIZATION: bearer   <token>",),
        "token": ("Authorization: token <token>",),
        "alone": ("Authorization: <token>",),
        "Basic, password": (_basic(f"x:{token}"),),
        "Basic, user": (_basic(f"{token}:"),),
        "no key": ("Authorization: Bearer ",),
        **{
            name: (f"{name}: <token>",)
            for name in ("x-api-key", "X-Goog-Api-Key", "api-key", "X-Nono-Token", "X_API_KEY")
        },
        "any other field": ("X-Somebody: <token>",),
        "two fields": ("Authorization: Bearer <token>", "x-api-key: <token>"),
    }


@pytest.mark.bypass("foreign-credentials")
@pytest.mark.parametrize("name", ["api", "narrow", "maps", "based"])
def test_a_phantom_is_taken_wherever_clients_put_it(sandboxed: Sandboxed, name: str) -> None:
    """And out: the server gets the credential, once, in its place, and no other."""
    token = _token(sandboxed)
    phantoms = _phantoms(token)
    answers = sandboxed.redirected(name, *(get(name, fields=_lines(*fields)) for fields in phantoms.values()))
    assert dict(zip(phantoms, map(status, answers), strict=True)) == dict.fromkeys(phantoms, "200")
    assert len(sandboxed.server.asked) == len(phantoms)
    assert [each for each in sandboxed.server.raw if token.encode() in each.data] == []


FOREIGN = {
    "another key": ("Authorization: Bearer sk-other",),
    "another login": (_basic("user:password"),),
    "a phantom and a key in one field": ("Authorization: Bearer <token> sk-other",),
    "a key behind a phantom": ("Authorization: Bearer <token>, Bearer sk-other",),
    "a key first": ("Authorization: Bearer sk-other", "authorization: Bearer <token>"),
    "a key second": ("Authorization: Bearer <token>", "AUTHORIZATION: Bearer sk-other"),
    "the phantom twice": ("Authorization: Bearer <token>", "Authorization: Bearer <token>"),
    "a phantom cut short": ("Authorization: Bearer <token>0",),
    "a key in another customary field": ("Authorization: Bearer <token>", "x-api-key: sk-other"),
    "a key in Google's field": ("X-GOOG-API-KEY: sk-other",),
    "a key in Azure's field": ("Api-Key: sk-other",),
    "underscores for hyphens": ("X_Api_Key: sk-other",),
    "our own field": ("X-Nono-Token: sk-other",),
}


@pytest.mark.bypass("foreign-credentials")
@pytest.mark.parametrize("name", list(PLACED))
def test_nobody_brings_a_key_of_his_own(sandboxed: Sandboxed, name: str) -> None:
    """A permitted host would serve another account by it. Nothing is sent, with which the real one could be lost."""
    target = "/bot<token>/x" if name == "bot" else "/v1/x"
    answers = sandboxed.redirected(name, *(get(name, target, _lines(*fields)) for fields in FOREIGN.values()))
    assert dict(zip(FOREIGN, map(status, answers), strict=True)) == dict.fromkeys(FOREIGN, "401")
    assert sandboxed.server.asked == []


KEYS_IN_QUERIES = (
    "key=other",
    "KEY=other",
    "k%65y=other",
    "%6b%2565y=other",
    "key%5B%5D=other",
    "key[0]=other",
    "key%00x=other",
    "+key=other",
    "a=1&key=<token>&key=other",
    "a=1&&key=other",
    "a;key=other",
    "key=<token>0",
    "key=other&key=<token>",
)
HIDDEN_QUERIES = ("/v1/x%3fkey=other%26a=", "/v1/x%253fkey=other", "/v1/x%3Fkey=other?a=1")


@pytest.mark.bypass("foreign-credentials")
@pytest.mark.parametrize("query", KEYS_IN_QUERIES)
def test_no_spelling_of_a_parameter_stands_beside_ours(sandboxed: Sandboxed, query: str) -> None:
    """Of two, a server takes the one it likes."""
    assert [status(each) for each in sandboxed.redirected("maps", get("maps", f"/v1/x?{query}"))] == ["401"]
    assert sandboxed.server.asked == []


@pytest.mark.bypass("foreign-credentials")
@pytest.mark.parametrize("target", HIDDEN_QUERIES)
def test_no_query_hides_in_the_path(sandboxed: Sandboxed, target: str) -> None:
    """A server that hands a decoded path to another makes a query of it, in front of ours."""
    assert [status(each) for each in sandboxed.redirected("maps", get("maps", target))] == ["400"]
    assert sandboxed.server.asked == []


@pytest.mark.bypass("foreign-credentials")
def test_a_parameter_that_is_ours_is_the_only_one(sandboxed: Sandboxed) -> None:
    """The control: the phantom's place is taken, and other parameters stay as they are."""
    queries = ("", "?a=1", "?key=<token>", "?a=%26key=x&key=<token>&b=2", "?key=")
    answers = sandboxed.redirected("maps", *(get("maps", f"/v1/x{query}") for query in queries))
    assert [status(each) for each in answers] == ["200"] * len(queries)
    ours = quote(sandboxed.guarded.secrets["maps"], safe="~")
    assert [each.target.replace(f"key={ours}", "OURS") for each in sandboxed.server.asked] == [
        "/v1/x?OURS",
        "/v1/x?a=1&OURS",
        "/v1/x?OURS",
        "/v1/x?a=%26key=x&b=2&OURS",
        "/v1/x?OURS",
    ]


PATHS_WITHOUT = (
    "/bot/x",
    "/x",
    "/botother/x",
    "/bot<token>0/x",
    "/bot<token>;a/x",
    "/bot<token>/../x",
    "/bot<token>/%2e%2e/x",
    "/bot<token>%2fx",
    "/bot<token>",
    "/BOT<token>/x",
    "/bot<token>/x/bot<token>/y",
)


@pytest.mark.bypass("foreign-credentials")
@pytest.mark.parametrize("path", PATHS_WITHOUT)
def test_a_path_has_one_place_for_it(sandboxed: Sandboxed, path: str) -> None:
    """Where the phantom does not stand in it, another key does, or it stands there twice: nothing is sent."""
    (answer,) = sandboxed.redirected("bot", get("bot", path))
    assert status(answer) in {"400", "401"}
    assert sandboxed.server.asked == []


@pytest.mark.bypass("foreign-credentials")
def test_another_sandboxs_phantom_is_nobodys(sandboxed: Sandboxed, guarded: Guarded) -> None:
    """It is good for one sandbox: as a phantom, for the proxy, and in reverse mode."""
    other = Sandboxed(guarded)
    try:
        token = _token(other)
        assert token != _token(sandboxed)
        assert [status(each) for each in other.redirected("api", get("api", fields=_lines("X-Api-Key: <token>")))] == [
            "200"
        ]
    finally:
        other.close()
    sandboxed.server.forget()
    shown = [f"Authorization: Bearer {token}", f"x-api-key: {token}", f"X-Nono-Token: {token}", _basic(f"x:{token}")]
    answers = sandboxed.redirected("api", *(get("api", fields=_lines(field)) for field in shown))
    answers += sandboxed.to_proxy(*(f"GET /api/v1/x HTTP/1.1\r\nHost: x\r\n{_lines(field)}\r\n" for field in shown))
    assert {status(answer) for answer in answers} == {"401"}
    tunnel = f"CONNECT {host('api')}:443 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer {token}\r\n\r\n"
    assert [status(each) for each in sandboxed.to_proxy(tunnel)] == ["407"]
    assert sandboxed.server.asked == []


# --- what takes it out again, or elsewhere

REMOVING = {
    "Connection names it": ("Connection: close, Authorization, X-Api-Key, Host",),
    "Connection names what we add": ("Connection: close, accept-encoding, content-length",),
    "many Connection fields": ("Connection: authorization", "Connection: x-api-key,,", "connection: AUTHORIZATION"),
    "Keep-Alive, TE, Trailer": ("Keep-Alive: authorization", "TE: trailers", "Trailer: Authorization"),
    "Proxy-Connection": ("Proxy-Connection: Authorization",),
    "Proxy-Authorization": ("Proxy-Authorization: Basic eDp5",),
    "a compressed answer": ("Accept-Encoding: gzip, br", "accept-encoding: deflate"),
    "Expect": ("Expect: 100-continue",),
}


@pytest.mark.bypass("credential-removal")
@pytest.mark.parametrize("name", ["api", "narrow", "basic"])
def test_no_field_takes_it_out_again(sandboxed: Sandboxed, name: str) -> None:
    """The credential is put in behind everything that a client can say about fields."""
    answers = sandboxed.redirected(name, *(get(name, fields=_lines(*fields)) for fields in REMOVING.values()))
    assert dict(zip(REMOVING, map(status, answers), strict=True)) == dict.fromkeys(REMOVING, "200")
    assert [each.values("accept-encoding") for each in sandboxed.server.asked] == [["identity"]] * len(REMOVING)


@pytest.mark.bypass("credential-removal")
def test_a_redirect_takes_it_nowhere(sandboxed: Sandboxed) -> None:
    """To another host, in a response; a client that follows it has nothing to bring, and gets nothing put in."""
    to = f"https://{host('open')}/taken"
    sandboxed.server.answer = lambda _: [f"HTTP/1.1 307 X\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()]
    (answer,) = sandboxed.redirected("api", get("api"))
    assert f"Location: {to}" in answer
    sandboxed.redirected("open", get("open", "/taken", _lines("Authorization: Bearer x")))
    (asked,) = [each for each in sandboxed.server.asked if each.host == host("open")]
    assert asked.values("authorization") == ["Bearer x"]


# --- what a server sends back


def _ok(body: bytes, *fields: bytes, line: bytes = b"200 OK") -> list[bytes]:
    lines = [b"HTTP/1.1 " + line, *fields, b"Content-Length: %d" % len(body), b"", body]
    return [b"\r\n".join(lines)]


def _chunked(pieces: Sequence[bytes], trailer: bytes = b"") -> list[bytes]:
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    return [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n" + trailer + b"\r\n"]


def _bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


ECHOES: dict[str, Callable[[bytes], list[bytes]]] = {
    "in the body": lambda secret: _ok(b"you are " + secret),
    "in the body, until the end": lambda secret: [b"HTTP/1.1 200 OK\r\n\r\nyou are " + secret, b""],
    "in a cookie": lambda secret: _ok(b"", b"Set-Cookie: key=" + secret + b"; Path=/"),
    "in a redirect": lambda secret: _ok(b"", b"Location: /?" + quote(secret, safe="").encode(), line=b"302 Found"),
    "in a field's name": lambda secret: _ok(b"", b"X-" + re.sub(rb"[/=]", b"", secret) + b": 1", b"X-Y: " + secret),
    "in the reason": lambda secret: _ok(b"", line=b"400 what is " + secret),
    "in an error page": lambda secret: _ok(html.escape(secret.decode()).replace("+", "&#43;").encode(), line=b"500 X"),
    "in JSON": lambda secret: _ok(json.dumps({"key": secret.decode()}).replace("/", "\\/").encode()),
    "in base64": lambda secret: _ok(base64.b64encode(b"user:" + secret)),
    "in base64, elsewhere": lambda secret: _ok(b"x" + base64.urlsafe_b64encode(b"Bearer " + secret)),
    "in hexadecimal": lambda secret: _ok(secret.hex().encode()),
    "in capital hexadecimal": lambda secret: _ok(secret.hex().upper().encode()),
    "percent-encoded": lambda secret: _ok(quote(secret, safe="").encode()),
    "in an interim response": lambda secret: [
        b"HTTP/1.1 103 Early Hints\r\nLink: <" + secret + b">\r\n\r\n",
        *_ok(secret),
    ],
    "byte by byte": lambda secret: _bytewise(_ok(b"you are " + secret)[0]),
    "in chunks of a byte": lambda secret: _chunked(_bytewise(secret)),
    "in two chunks": lambda secret: _chunked([b"you are " + secret[:9], secret[9:] + b"."]),
    "in a trailer": lambda secret: _chunked([b"you are ", secret], b"X-Key: " + secret + b"\r\n"),
}


@pytest.mark.bypass("credential-echo")
@pytest.mark.parametrize("case", ECHOES)
@pytest.mark.parametrize("name", ["api", "narrow"])
def test_what_a_server_repeats_is_covered(sandboxed: Sandboxed, case: str, name: str) -> None:
    """In whatever part of a response; what is not the credential arrives, and so does the end."""
    secret = sandboxed.guarded.secrets[name].encode()
    sandboxed.server.answer = lambda _: ECHOES[case](secret)
    (answer,) = sandboxed.redirected(name, get(name))
    assert status(answer).isdigit()
    assert "*" * 20 in answer
    assert ("you are " in answer) == (b"you are " in b"".join(ECHOES[case](secret)))
    assert _is_whole(answer)


def _is_whole(answer: str) -> bool:
    """Whether a second reader finds the end of the response where the connection ends."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer.encode("latin-1"))
    client.receive_data(b"")
    while not isinstance(event := client.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
        pass
    return isinstance(event, h11.EndOfMessage) and client.trailing_data[0] == b""


@pytest.mark.bypass("credential-echo")
def test_a_login_is_covered_as_well(sandboxed: Sandboxed) -> None:
    """As it was sent, and its password alone."""
    login = sandboxed.guarded.secrets["basic"]
    for said in (login, login.partition(":")[2], base64.b64encode(login.encode()).decode()):
        sandboxed.server.answer = lambda _, said=said: _ok(f"you are {said}!".encode())
        (answer,) = sandboxed.redirected("basic", get("basic"))
        assert re.search(r"you are .{0,5}\*{20,}[*=]*!$", answer), answer


MALFORMED: dict[str, Callable[[bytes], list[bytes]]] = {
    "for a chunk's size": lambda secret: [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + secret + b"\r\n"],
    "for a field": lambda secret: [b"HTTP/1.1 200 OK\r\n" + secret + b"\r\n\r\n"],
    "for a field's name": lambda secret: [b"HTTP/1.1 200 OK\r\nX " + secret + b": 1\r\n\r\n"],
    "for a status line": lambda secret: [secret + b"\r\n\r\n"],
    "in a status line": lambda secret: [b"HTTP/1.1 999 " + secret + b"\r\n\r\n"],
    "for a length": lambda secret: [b"HTTP/1.1 200 OK\r\nContent-Length: " + secret + b"\r\n\r\n"],
    "for a coding": lambda secret: [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + secret + b"\r\n\r\n"],
    "compressed": lambda secret: _ok(gzip.compress(secret), b"Content-Encoding: gzip"),
    "as another protocol": lambda secret: [b"HTTP/1.1 101 X\r\nUpgrade: x\r\nX: " + secret + b"\r\n\r\n" + secret],
}


@pytest.mark.bypass("credential-echo")
@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_response_is_not_shown(sandboxed: Sandboxed, case: str) -> None:
    """Neither to the client nor in the log, whatever it was that could not be read."""
    secret = sandboxed.guarded.secrets["api"].encode()
    sandboxed.server.answer = lambda _: MALFORMED[case](secret)
    (answer,) = sandboxed.redirected("api", get("api"))
    assert status(answer) == "502" or case == "for a chunk's size"
    assert len(sandboxed.server.asked) == 1


# --- where it is kept

UNUSABLE: dict[str, str] = {
    "a line break": "sk-first\r\nX-Injected: 1",
    "a line feed": "sk-first\nsecond",
    "NUL": "sk-\0first",
    "a control character": "sk-\x1bfirst",
    "nothing": "",
}


@pytest.mark.bypass("credential-values")
@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("name", ["api", "bot", "maps", "basic"])
def test_a_value_that_cannot_stand_there_stays_out(sandboxed: Sandboxed, name: str, case: str) -> None:
    """Nothing of it is sent: the request is answered with 503, and so is it where the file is gone."""
    vault, before = sandboxed.guarded.vault, sandboxed.guarded.secrets[name]
    value = UNUSABLE[case]
    vault.keep(name, f"user:{value}" if name == "basic" and value else value)
    target = "/bot<token>/x" if name == "bot" else "/v1/x"
    try:
        (answer,) = sandboxed.redirected(name, get(name, target))
        assert status(answer) == "503"
        vault.path(name).unlink()
        assert [status(each) for each in sandboxed.redirected(name, get(name, target))] == ["503"]
    finally:
        vault.keep(name, before)
    assert sandboxed.server.asked == []
    assert [status(each) for each in sandboxed.redirected(name, get(name, target))] == ["200"]


@pytest.mark.bypass("credential-values")
def test_a_replaced_value_is_the_one_that_is_sent(sandboxed: Sandboxed) -> None:
    """From the next request on, on whatever connection; the old one is not sent any more."""
    vault, before = sandboxed.guarded.vault, sandboxed.guarded.secrets["api"]
    after = before[::-1]
    said = {"pieces": [get("api", fields=""), get("api")]}
    (first,) = sandboxed.redirected("api", said)
    vault.keep("api", after)
    try:
        sandboxed.redirected("api", get("api"))
        assert [each.values("authorization") for each in sandboxed.server.asked] == [[f"Bearer {before}"]] * 2 + [
            [f"Bearer {after}"]
        ]
    finally:
        vault.keep("api", before)
        sandboxed.server.forget()
    assert first.count("HTTP/1.1 200 OK") == 2


@pytest.mark.bypass("secrets-at-rest")
def test_no_credential_is_anywhere_in_the_sandbox(sandboxed: Sandboxed) -> None:
    """Not in the environment, arguments, memory, open or written files of any of its processes, nor in the arguments
    and environment of ours, while every one of them has been in use.
    """
    since = time.time_ns()
    for name in PLACED:
        sandboxed.redirected(name, get(name, "/bot<token>/x" if name == "bot" else "/v1/x"))
    assert len(sandboxed.server.asked) == len(PLACED)
    supervisor = sandboxed.agent.process.pid
    group = cgroup_of(supervisor)
    secrets = {name: value.partition(":")[2] or value for name, value in sandboxed.guarded.secrets.items()}
    found = find_secrets(group, {**secrets, "the control": _token(sandboxed)}, since)
    assert found.pop("the control") != []
    assert found == {name: [] for name in secrets}
    assert of_ours(supervisor, list(secrets.values())) == []


@pytest.mark.bypass("secrets-at-rest")
def test_nothing_that_has_a_credential_can_be_reached(sandboxed: Sandboxed) -> None:
    """The files, by the references that a profile shows; our processes and their sockets, by their numbers."""
    vault = sandboxed.guarded.vault
    paths = [str(vault.path(name)) for name in (*PLACED, *PRETENDERS)]
    supervisor = sandboxed.agent.process.pid
    ours = [supervisor, *(victim.pid for victim in _children(supervisor))]
    assert len(ours) >= 4  # the proxy, the broker, pid 1
    met = sandboxed.agent.call(requests.opened, [*paths, *(f"/proc/{pid}/{what}" for pid in ours for what in WITHIN)])
    assert {what for what in met.values() if what not in {"ENOENT", "EACCES", "EPERM", "ENOTDIR"}} == set()


WITHIN = ("environ", "mem", "maps", "fd/0", "root/etc/hostname", "cwd/x")


def _children(supervisor: int) -> list[Victim]:
    listed = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [Victim(int(pid)) for pid in listed]


@pytest.fixture
def own(guarded: Guarded) -> Iterator[Sandboxed]:
    """A sandbox of the test's own, to be damaged."""
    guarded.server.forget()
    made = Sandboxed(guarded)
    try:
        yield made
        made.check(made.records())
    finally:
        made.close()


def _running(supervisor: int, module: str) -> Victim:
    (found,) = [
        each for each in _children(supervisor) if module.encode() in Path(f"/proc/{each.pid}/cmdline").read_bytes()
    ]
    return found


@pytest.mark.bypass("broker-killed")
def test_without_the_broker_no_request_is_sent(own: Sandboxed) -> None:
    """It is answered with 503, and hosts that need no credential are served."""
    assert [status(each) for each in own.redirected("api", get("api"))] == ["200"]
    broker = _running(own.agent.process.pid, "nono_ebpf.broker")
    broker.kill()
    assert broker.ended()
    own.server.forget()
    answers = [*own.redirected("api", get("api")), *own.redirected("narrow", get("narrow"))]
    answers += own.to_proxy("GET /api/v1/x HTTP/1.1\r\nHost: x\r\nX-Api-Key: <token>\r\nConnection: close\r\n\r\n")
    assert [status(each) for each in answers] == ["503"] * 3
    assert own.server.asked == []
    assert [status(each) for each in own.redirected("open", get("open"))] == ["200"]


@pytest.mark.bypass("broker-killed")
def test_without_the_proxy_nothing_leaves(own: Sandboxed) -> None:
    """Neither a request nor a credential: whatever is dialled is refused."""
    assert [status(each) for each in own.redirected("api", get("api"))] == ["200"]
    proxy = _running(own.agent.process.pid, "nono_ebpf.proxy")
    own.server.forget()
    proxy.kill()
    assert proxy.ended()
    (by_name,) = own.redirected("api", get("api"))
    (by_address,) = own.agent.call(requests.to_server, own.guarded.network.addresses[host("api")], 443, [[get("api")]])
    assert by_name.startswith("gaierror")
    assert by_address in {"ECONNREFUSED", "ECONNRESET"}
    assert own.server.asked == []


@pytest.mark.alone  # it leaves what the next start removes
@pytest.mark.bypass("broker-killed")
def test_nobody_who_has_a_credential_outlives_the_supervisor(own: Sandboxed) -> None:
    """It is killed while they are in use."""
    assert [status(each) for each in own.redirected("api", get("api"))] == ["200"]
    supervisor = Victim(own.agent.process.pid)
    holders = [_running(supervisor.pid, f"nono_ebpf.{name}") for name in ("broker", "proxy")]
    supervisor.kill()
    assert [each.ended() for each in holders] == [True, True]


# --- services of the proxy's own port


@pytest.mark.bypass("reverse-services")
@pytest.mark.parametrize("name", ["api", "narrow", "maps", "basic"])
def test_a_service_wants_the_phantom(sandboxed: Sandboxed, name: str) -> None:
    """Missing, wrong, in a place for another: 401, and nothing is sent."""
    shown = (
        "",
        "Authorization: Bearer sk-other\r\n",
        "x-api-key: sk-other\r\n",
        "Proxy-Authorization: Bearer x\r\n",
        "Cookie: k=<token>\r\n",
    )
    said = [f"GET /{name}/v1/x HTTP/1.1\r\nHost: x\r\n{field}{CLOSE}\r\n" for field in shown]
    assert [status(each) for each in sandboxed.to_proxy(*said)] == ["401"] * len(shown)
    assert sandboxed.server.asked == []
    good = said[0].replace("Host", "X-Nono-Token: <token>\r\nHost")
    assert [status(each) for each in sandboxed.to_proxy(good)] == ["200"]
    assert [each.host for each in sandboxed.server.asked] == [host(name)]


ELSEWHERE = {
    "/narrow/admin": "403",
    "/narrow/../api/v1/x": "403",
    "/narrow/v1/../../api/v1/x": "403",
    "/narrow/%2e%2e/api/v1/x": "403",
    "/narrow/v1/..%2f..%2fapi": "403",
    "/narrow/v1/..;/admin": "403",
    "/narrow": "403",
    "/NARROW/v1/x": "404",
    "/%6earrow/v1/x": "404",
    "//narrow/v1/x": "404",
    "/narrow%2fv1/x": "404",
    "/unknown/v1/x": "404",
    "/": "404",
    "https://narrow.example.org/v1/x": "407",
    "http://narrow.example.org/v1/x": "407",
}


@pytest.mark.bypass("reverse-services")
def test_a_services_path_leads_to_its_own_requests(sandboxed: Sandboxed) -> None:
    """Not to another service, not past its rules; what names no service leads nowhere."""
    said = [f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Nono-Token: <token>\r\n{CLOSE}\r\n" for path in ELSEWHERE]
    answers = [status(each) for each in sandboxed.to_proxy(*said)]
    assert dict(zip(ELSEWHERE, answers, strict=True)) == ELSEWHERE
    assert sandboxed.server.asked == []


@pytest.mark.bypass("reverse-services")
def test_no_path_leaves_what_precedes_it(sandboxed: Sandboxed) -> None:
    """A service with a path of its own is asked below it; an escaped slash stays one."""
    sent = {
        "/based/x": "/base/v2/x",
        "/based/../../x": "/base/v2/x",
        "/based/%2e%2e/%2e%2e/x": "/base/v2/x",
        "/based/..%2f..%2fx": "/base/v2/..%2F..%2Fx",
        "/based//x": "/base/v2/x",
        "/based": "/base/v2/",
        "/based/": "/base/v2/",
    }
    said = [f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Nono-Token: <token>\r\n{CLOSE}\r\n" for path in sent]
    assert [status(each) for each in sandboxed.to_proxy(*said)] == ["200"] * len(sent)
    assert [each.target for each in sandboxed.server.asked] == list(sent.values())


@pytest.mark.bypass("reverse-services")
def test_a_later_request_shows_its_phantom_too(sandboxed: Sandboxed) -> None:
    """The first one's is not good for the connection, and a body is no request."""
    first = "POST /api/v1/x HTTP/1.1\r\nHost: x\r\nX-Nono-Token: <token>\r\nContent-Length: {}\r\n\r\n{}"
    second = "GET /api/v1/y HTTP/1.1\r\nHost: x\r\n{}\r\n"
    answers = sandboxed.to_proxy(
        first.format(0, "") + second.format(""),
        first.format(len(second.format("")) - 2, second.format("")),
        first.replace("X-Nono-Token: <token>\r\n", "").format(0, "") + second.format("X-Nono-Token: <token>\r\n"),
    )
    assert [re.findall(r"HTTP/1\.1 (\d+)", answer) for answer in answers] == [["200", "401"], ["200", "400"], ["401"]]
    assert [each.target for each in sandboxed.server.asked] == ["/v1/x", "/v1/x"]
