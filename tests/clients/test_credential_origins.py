"""nginx, Apache httpd, Node.js and Go behind a sandbox whose requests get credentials, and paths that each may misread.

The clients are curl and Python's own, and know nothing of a proxy: they are redirected, and their TLS is intercepted.
The servers, and which requests may be made to them, are `kit.origins`'.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from kit import origin_clients
from kit.credentials import spelled
from kit.namespaces import inside
from kit.origins import AREAS, CONTROL, DATA, KINDS, LOOSE, PYTHON, Origins, host
from kit.sandboxes import eventually, settled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kit.machine import Record
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

FILES = {"nginx": "/v1/files/data.txt", "apache": "/v1/files/data.txt", "node": "/v1/app/data", "go": "/v1/app/data"}
# Where a server answers 413 before the body is there, and where it ends the connection behind its answer.
TOO_LARGE = {"nginx": "/v1/small/up", "apache": "/v1/small/up", "node": "/v1/app/refuse", "go": "/v1/app/refuse"}
CLOSING = {"nginx": "/v1/close/who", "apache": "/v1/close/who", "node": "/v1/app/close", "go": "/v1/app/close"}
_APPLICATION = ("who", "none", "upload")
DATA_TOLD = [200, len(DATA), hashlib.sha256(DATA).hexdigest()]
PIECES = 320
UPLOADED = origin_clients.PIECE * PIECES


# ---------------------------------------------------------------- what runs


@pytest.fixture(scope="module")
def _origins(_world: World) -> Iterator[Origins]:
    made = Origins(_world)
    yield made
    made.close()


@pytest.fixture
def origins(_origins: Origins) -> Iterator[Origins]:
    """The servers, to which nobody has said anything. In the end, what came had the credential it is to have."""
    _origins.forget()
    before = len(_origins.records())
    yield _origins
    assert _origins.ended() == {}
    for kind in KINDS:
        for each in _origins.written(kind):
            without = each.agent in {CONTROL, "-"} or each.host == host(kind, "open")
            assert each.authorization == ("-" if without else f"Bearer {_origins.secrets[kind]}"), each
    for received in _origins.python.seen:
        assert received.client == CONTROL or received.value("Authorization") == f"Bearer {_origins.secrets['python']}"
    told = json.dumps(_origins.records()[before:]).encode() + b"".join(_origins.told)
    for value in _origins.secrets.values():
        assert spelled(told, value) == []


@pytest.fixture(scope="module")
def large(_origins: Origins) -> Path:
    """A file of 20 MiB that the sandbox can read."""
    path = _origins.machine.home / "origins.data"
    path.write_bytes(UPLOADED)
    path.chmod(0o644)
    return path


def upload_told(body: bytes) -> dict[str, Any]:
    """What the application says of it."""
    return {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def assert_one_connection(places: list[int]) -> None:
    """Requests with these places on their connections came one behind the other; it may have had others before."""
    assert sorted(places) == list(range(min(places), min(places) + len(places)))


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize("kind", KINDS)
def test_requests_of_every_kind(origins: Origins, kind: str) -> None:
    """With a body and without, whole, in part and not at all: each gets its answer. Those that have no body themselves
    share a connection to the server.
    """
    file, who, none, upload = (f"{path}?kinds" for path in (FILES[kind], *map("/v1/app/{}".format, _APPLICATION)))
    (first,) = origins.asked(host(kind), ["HEAD", file, {}, None])
    answers = origins.asked(
        host(kind),
        ["GET", who, {}, None],
        ["HEAD", who, {}, None],
        ["GET", none, {}, None],
        ["GET", file, {"If-None-Match": first[1]["etag"]}, None],
        ["GET", file, {"Range": "bytes=17-33"}, None],
        ["POST", upload, {}, "with a length"],
        ["PUT", upload, {}, ""],
    )
    assert [status for status, *_ in (first, *answers)] == [200, 200, 200, 204, 304, 206, 200, 200]
    assert first[1]["content-length"] == str(len(DATA))
    assert json.loads(answers[0][2])["method"] == "GET"
    assert [body for _, _, body in (first, *answers[1:5])] == ["", "", "", "", DATA[17:34].decode()]
    assert [json.loads(body) for _, _, body in answers[5:7]] == [upload_told(b"with a length"), upload_told(b"")]
    arrived = origins.arrived(host(kind), 8, file, who, none, upload)
    assert_one_connection([each.nth for each in arrived if each.method in {"GET", "HEAD"}])


@pytest.mark.parametrize("kind", KINDS)
def test_large_bodies(origins: Origins, large: Path, kind: str) -> None:
    """20 MiB up, with a length and in chunks, and down, by both clients: not a byte is different."""
    url = f"https://{host(kind)}"
    whole = origins.curl("--data-binary", f"@{large}", f"{url}/v1/app/upload")
    chunked = origins.curl("-H", "Transfer-Encoding: chunked", "-T", str(large), f"{url}/v1/app/upload")
    upload = partial(origins.call, origin_clients.upload, host(kind), "/v1/app/upload", PIECES)
    told = [json.loads(text) for text in (whole, chunked, upload(True)[1], upload(False)[1])]
    assert told == [upload_told(UPLOADED)] * 4
    assert hashlib.sha256(origins.curl(f"{url}{FILES[kind]}").encode("latin-1")).hexdigest() == DATA_TOLD[2]
    assert origins.call(origin_clients.digest, host(kind), FILES[kind]) == DATA_TOLD


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_waits_for_100_gets_it(origins: Origins, large: Path, kind: str) -> None:
    """A client that sends its body only when told to is told to by the server itself."""
    waiting = ["-v", "-H", "Expect: 100-continue", "--expect100-timeout", "60", "-T", str(large)]
    status, out, err = origins.call(origin_clients.curl, *waiting, f"https://{host(kind)}/v1/app/upload")
    assert (status, json.loads(out)) == (0, upload_told(UPLOADED)), err
    assert "< HTTP/1.1 100 Continue" in err


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_is_not_wanted_is_not_sent(origins: Origins, large: Path, kind: str) -> None:
    """413 to a client that waits for 100."""
    waiting = ["-H", "Expect: 100-continue", "--expect100-timeout", "60", "-T", str(large), "-o", "/dev/null"]
    out = origins.curl(*waiting, "-w", "%{http_code} %{size_upload}", f"https://{host(kind)}{TOO_LARGE[kind]}")
    assert out == "413 0"


@pytest.mark.parametrize("kind", KINDS)
def test_413_while_the_body_is_sent(origins: Origins, large: Path, kind: str) -> None:
    """Whoever does not wait has the answer, too, also one who reads it only when all is sent."""
    url = f"https://{host(kind)}{TOO_LARGE[kind]}"
    assert origins.curl("-H", "Expect:", "-T", str(large), "-o", "/dev/null", "-w", "%{http_code}", url) == "413"
    answer = origins.call(origin_clients.refused_early, host(kind), TOO_LARGE[kind], len(UPLOADED))
    assert answer.startswith("HTTP/1.1 413 "), answer


@pytest.mark.parametrize("kind", KINDS)
def test_an_expectation_that_nobody_knows(origins: Origins, large: Path, kind: str) -> None:
    """417, or what nginx does, to which there is no such thing: the server's own opinion."""
    more = ["-H", "Expect: 42-something", "-T", str(large), "-o", "/dev/null", "-w", "%{http_code}"]
    expected = {"nginx": "200"}.get(kind, "417")
    assert origins.curl(*more, f"https://{host(kind)}/v1/app/upload") == expected


@pytest.mark.parametrize("kind", KINDS)
def test_trailers(origins: Origins, kind: str) -> None:
    """They are left out; the body is whole, and the next request finds the connection in order."""
    answers = origins.asked(host(kind), *[["GET", "/v1/app/trailers", {"TE": "trailers"}, None]] * 2)
    assert [(status, body) for status, _, body in answers] == [(200, "one two three\n")] * 2
    assert_one_connection([each.nth for each in origins.arrived(host(kind), 2, "/v1/app/trailers")])


@pytest.mark.parametrize("kind", KINDS)
def test_compression(origins: Origins, kind: str) -> None:
    """Where a credential is, what the client offers is not asked for: nothing comes compressed. Elsewhere it does."""
    for target in ("/v1/app/text", "/v1/files/data.txt" if kind in {"nginx", "apache"} else "/v1/app/text"):
        fields = {"Accept-Encoding": "gzip, deflate, br"}
        ((status, plain, body),) = origins.asked(host(kind), ["GET", target, fields, None])
        assert (status, plain.get("content-encoding"), len(body) > 1000) == (200, None, True)
        ((status, packed, _),) = origins.asked(host(kind, "open"), ["GET", target, fields, None])
        assert (status, packed.get("content-encoding")) == (200, "gzip")


@pytest.mark.parametrize("kind", ["node", "go"])
def test_what_is_compressed_all_the_same(origins: Origins, kind: str) -> None:
    """502 with the reason, where the credential could be in it; it is not in the answer to a HEAD."""
    answers = origins.asked(host(kind), *([each, "/v1/app/gzipped", {}, None] for each in ("HEAD", "GET")))
    assert [status for status, *_ in answers] == [200, 502]
    assert "compressed" in json.loads(answers[1][2])["reason"]
    ((status, fields, _),) = origins.asked(host(kind, "open"), ["GET", "/v1/app/gzipped", {}, None])
    assert (status, fields["content-encoding"]) == (200, "gzip")


@pytest.mark.parametrize("size", [8192, 16384])
@pytest.mark.parametrize("kind", KINDS)
def test_long_fields(origins: Origins, kind: str, size: int) -> None:
    """In a request and in a response."""
    sent = "s" * size
    request = ["GET", "/v1/app/long", {"X-Long": sent}, None]
    ((status, fields, body),) = origins.asked(host(kind), request)
    assert (status, fields["x-long"], body) == (200, "l" * 16000, "long\n")
    ((_, _, who),) = origins.asked(host(kind), ["GET", "/v1/app/who", {"X-Long": sent}, None])
    assert sent in json.loads(who)["fields"]


@pytest.mark.parametrize("kind", KINDS)
def test_events_come_as_they_are_sent(origins: Origins, kind: str) -> None:
    """A client has the first before there is a second."""
    assert origins.call(origin_clients.events, host(kind), kind) == "data: first\n\ndata: second\n\n"


# ---------------------------------------------------------------- connections


@pytest.mark.parametrize(("method", "status", "times"), [("GET", 200, 2), ("HEAD", 200, 2), ("POST", 502, 1)])
@pytest.mark.parametrize("kind", ["node", "go"])
def test_a_connection_that_ends_under_a_request(
    origins: Origins, kind: str, method: str, status: int, times: int
) -> None:
    """What may be repeated is, once and on a new connection; what may not is not, and its client is told."""
    target, body = f"/v1/app/drop?{method}", "once" if method == "POST" else None
    answers = origins.asked(host(kind), ["GET", "/v1/app/who", {}, None], [method, target, {}, body])
    assert [each[0] for each in answers] == [200, status]
    assert [each.nth > 1 for each in origins.arrived(host(kind), times, target)] == [True, False][:times]


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_that_was_idle_for_too_long(origins: Origins, kind: str) -> None:
    """A server that has ended it between two requests: that is seen before the second, which may not be repeated."""
    name = host(kind, "old")
    for request in (["GET", "/v1/app/upload?idle", {}, None], ["POST", "/v1/app/upload?idle", {}, "once"]):
        assert eventually(lambda: not origins.holds_connections(name))
        ((status, *_),) = origins.asked(name, request)
        assert status == 200
    assert [each.nth for each in origins.arrived(name, 2, "/v1/app/upload?idle")] == [1, 1]


@pytest.mark.parametrize(("variant", "tls"), [("", "TLSv1.3"), ("old", "TLSv1.2"), ("new", "TLSv1.3")])
@pytest.mark.parametrize("kind", KINDS)
def test_sessions(origins: Origins, kind: str, variant: str, tls: str) -> None:
    """A server that ends every connection: the next one resumes the session of the last, in each TLS."""
    answers = origins.asked(host(kind, variant), *[["GET", CLOSING[kind], {}, None]] * 6)
    assert [status for status, *_ in answers] == [200] * 6
    arrived = origins.arrived(host(kind, variant), 6, CLOSING[kind])
    assert {each.tls for each in arrived} == {tls}
    # What other tests have left open is used first; a server's very first session is nobody's before.
    new = sorted(each.resumed for each in arrived if each.nth == 1)
    assert new[1:] == [True] * (len(new) - 1) != []


@pytest.mark.parametrize("kind", KINDS)
def test_http_2_is_not_what_we_are_offered(origins: Origins, kind: str) -> None:
    """A server that prefers it talks HTTP/1.1 to us, and so do we to such a client. The control: without us."""
    url = f"https://{host(kind)}/v1/app/who?2"
    assert origins.directly("curl", "--http2", "-so", "/dev/null", "-w", "%{http_version}", url).stdout == "2"
    assert origins.curl("--http2", "-o", "/dev/null", "-w", "%{http_version}", url) == "1.1"
    assert [each.version for each in origins.arrived(host(kind), 1, "/v1/app/who?2")] == ["HTTP/1.1"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_servers_want_a_name(origins: Origins, kind: str) -> None:
    """The control of all: no TLS, or no answer, without one; and what they staple, whoever asks for it can see."""
    at = f"{origins.network.addresses[host(kind)]}:443"
    asking = ["openssl", "s_client", "-connect", at, "-status", "-CAfile", str(origins.ca_file)]
    named = origins.directly(*asking, "-servername", host(kind), "-verify_return_error")
    assert "Verify return code: 0 (ok)" in named.stdout
    assert ("OCSP Response Status: successful" in named.stdout) == (kind != "apache")
    unnamed = origins.directly("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", f"https://{at}/v1/app/who")
    assert unnamed.stdout in {"000", "403", "421"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_certificate(origins: Origins, kind: str) -> None:
    """A server that wants one gets the profile's, also when it resumes; without one, the client hears its refusal."""
    target = CLOSING[kind]
    answers = origins.asked(host(kind, "mtls"), *[["GET", target, {}, None]] * 2)
    assert [status for status, *_ in answers] == [200, 200]
    assert [each.client not in {"", "-"} for each in origins.arrived(host(kind, "mtls"), 2, target)] == [True, True]
    ((status, _, body),) = origins.asked(host(kind, "wants"), ["GET", target, {}, None])
    assert (status, "ertificate" in body) == (400 if kind == "nginx" else 502, True), body


@pytest.mark.parametrize(("variant", "tls", "status"), [("old", "TLSv1.2", 502), ("new", "TLSv1.3", 403)])
def test_a_certificate_that_is_asked_for_later(origins: Origins, variant: str, tls: str, status: int) -> None:
    """By renegotiation (a HelloRequest), or behind the handshake: declined. Apache gives up the connection, or refuses
    this request; the next one is answered. The control: a client that has a certificate, without us.
    """
    name = host("apache", variant)
    known = ["--cert", str(origins.client[0]), "--key", str(origins.client[1])]
    shown = origins.directly("curl", "--http1.1", *known, "-s", f"https://{name}/v1/identify")
    assert shown.stdout == "small\n", shown
    assert [(each.tls, each.client != "-") for each in origins.arrived(name, 1, agent=CONTROL)] == [(tls, True)]
    ((refused, _, body),) = origins.asked(name, ["GET", "/v1/identify", {}, None])
    assert refused == status, body
    ((answered, *_),) = origins.asked(name, ["GET", "/v1/app/who", {}, None])
    assert answered == 200


# ---------------------------------------------------------------- paths


_DOTS = """.. %2e%2e .%2E %252e%252e ..;x=y ..%3b %2e%2e%3bx ..%00 ..%20 ..+ ... ..%09 %c0%ae%c0%ae %e0%80%ae.
    %u002e%u002e ..%ef%bc%8f"""
_SLASHES = r"/ // /./ \ %2f %2F %5c %252f %255C %c0%af %u002f ;/ %3b/"
_PLAIN = """/v1/x /v1/x/y /scoped/x /scoped/@a%2Fb /scoped/a/b /admin /ADMIN /Admin/ /admin. /admin%20
    /admin;x=y /admin%3bx /;/admin /;x/admin //admin ///admin /./admin /%61dmin /%2561dmin /%u0061dmin /v1 /v1/
    /V1/x /v1./x /v1%20/x /v1;a/x /v1/x;a=b /v1/%61 /v1/a+b /v1/a%20b /v1/a%2Bb /v1/x. /v1/x.. /v1/... /v1/.hidden
    /v1/%C3%A9 /v1/%ff /v1/x%00 /v1/x%0d%0aX-Area:admin /v1/%2e /v1/%2e%2e /v1/.. /v1/. /v1//x /v1/x//y /v1/x%2Fy
    /v1/x%5Cy /v1/%25 /v1/%2525 /v1/%zz /v1/% /v1/a|b /v1/a^b /v1/{x} /v1/'x' /v1/x,y /v1/x:80 /v1/@x /v1/~x /v1/x*y
    /v1/x! /v1/$x /v1/x=y&z /v1/:x /v1/..admin /v1/x/..%2fy /v1/x?/../../admin /v1/x%3f/../../admin /v1/x?a=/admin
    /v1/x?..%2fadmin /v1/x%3F /v1/x%23 /v1/x%23/../../admin /v1/x#/../../admin /admin#/v1/x /admin?/v1/x
    /admin%3f/v1/x /admin%23/v1/x /admin%00/v1/x /admin/../v1/x /admin%2f..%2fv1/x /admin/..;/v1/x
    /admin/%2e%2e/v1/x /admin;/../v1/x * ? # v1/x admin ./admin https:/admin https:///admin
    https://@HOST@/v1/x#/admin https://x@@HOST@/admin //@HOST@/admin"""
_NO_TARGETS = ["/v1/\u00e9", "/v1/\t../admin", "/v1/ /admin", "/v1/x HTTP/1.1/../admin"]
_ORIGINS = ("https://@HOST@", "https://@HOST@:443", "HTTPS://@HOST@", "http://@HOST@", "https://other.test")


def spellings() -> list[str]:
    """Targets that are, or may be taken for, something below /v1, below /scoped, or /admin."""
    dots, slashes = _DOTS.split(), _SLASHES.split()
    climbing = [f"/v1{slash}{each}{slash}admin" for each in dots for slash in slashes]
    deeper = [f"/scoped/x{slash}{each}{slash}{each}{slash}admin" for each in dots[:4] for slash in slashes]
    absolute = [origin + path for origin in _ORIGINS for path in ("/v1/x", "/admin", "/v1/../admin", "")]
    return [*_PLAIN.split(), *_NO_TARGETS, *climbing, *deeper, *absolute]


@pytest.mark.parametrize("name", [*map(host, KINDS), *LOOSE, PYTHON])
def test_paths_are_read_as_they_were_judged(origins: Origins, name: str) -> None:
    """Whatever spelling reaches a server, it serves what the rules allow, and once; what is refused has its reason, and
    never reaches it. The control: without us, some of the same spellings make it serve /admin.
    """
    targets = [target.replace("@HOST@", name) for target in spellings()]
    at = origins.network.addresses[name]
    bare = inside(
        origins.machine_netns, partial(origin_clients.spelled, name, targets, CONTROL, at, str(origins.ca_file))
    )
    before = settled(lambda: len(origins.records()))
    told = origins.call(origin_clients.spelled, name, targets, "paths")

    def recorded() -> list[Record]:
        return [each for each in origins.records()[before:] if each["event"] == "request"]

    # What was refused is on record when we have seen its client leave.
    assert eventually(lambda: len(recorded()) >= len(targets)), recorded()
    asked = recorded()
    assert len(told) == len(targets) == len(asked)
    arrived = 0
    for target, (status, areas, body), record in zip(targets, told, asked, strict=True):
        if record["decision"] == "deny":
            assert (status // 100, areas, json.loads(body)["reason"] != "") == (4, [], True), (target, body)
            assert record["reason"], target
        else:
            arrived += 1
            assert status not in {0, 502}, (target, body)
            # What Go sends elsewhere is asked for, and judged, anew.
            assert areas != [] or status in {301, 400}, (target, status, body)
            assert {*areas} <= AREAS, (target, areas)
    assert arrived == origins.requests_to(name, arrived, "paths")
    assert arrived > 30
    assert sum("admin" in areas for _, areas, _ in bare) > 10
