"""Unmodified clients of a service that wants a credential, which they do not have: it is put into their requests.

All of them in one sandbox and at once, each told of us by its road: nothing at all (it is redirected, and its TLS
intercepted), the proxy (CONNECT), or the address of the service. While each waits for a response, the sandbox is
searched for the credential from outside.

    plain.test      Authorization: Bearer      query.test   a parameter of the query
    impostor.test   the same, from whoever has no certificate for that name
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit.account import NOBODY
from kit.api_server import Service, Wanted, absent, spellings
from kit.credentials import forms, new_secret, spelled
from kit.errands import Errand, Outcome, Road
from kit.expect import require
from kit.services import Services, assert_not_found, assert_not_told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

PROGRAMS = Path(__file__).parent / "programs"
HOST, QUERY_HOST, IMPOSTOR = "plain.test", "query.test", "impostor.test"
PYTHON_BODY = b"".join(bytes([number % 251]) * 1000 for number in range(2000))
CURL_BODY = "from curl " * 50_000
SECRETS = {name: new_secret(name) for name in ("plain", "query")}
# What the search is to find: a process plants it, so that finding nothing else says something.
CANARY = new_secret("canary")
PHANTOM = "Authorization: Bearer @TOKEN@"
BASES = {"redirect": f"https://{HOST}", "connect": f"https://{HOST}", "reverse": "http://127.0.0.1:@PORT@/plain"}
ECHOES, HEAD_ECHOES = ("length", "pieces", "bytes", "gzip"), ("reason", "hints")


def _python(script: str) -> Callable[..., list[str]]:
    return lambda base, name, _, *fields: [sys.executable, str(PROGRAMS / script), base, name, *fields]


def _curl(base: str, name: str, body: Path, *fields: str) -> list[str]:
    """Three requests on one connection; it sends the file `body` when it has been told to (RFC 9110 §10.1.1)."""
    more = [word for field in (f"X-Client: {name}", *fields) for word in ("-H", field)]
    each = ["-sS", "--fail-with-body", "--max-time", "400", "-w", "\n", *more]
    waiting = ["-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue", "--expect100-timeout", "180"]
    upload = ["--next", *each, *waiting, "-T", str(body), f"{base}/upload"]
    return ["curl", *each, f"{base}/who", *upload, "--next", *each, "-H", f"X-Hold: {name}", f"{base}/who"]


CLIENTS: dict[str, Callable[..., list[str]]] = {
    "curl": _curl,
    "requests": _python("api_requests.py"),
    "httpx": _python("api_httpx.py"),
    "aiohttp": _python("api_aiohttp.py"),
}
# Whoever is redirected or has a tunnel may show nothing, or the phantom; the reverse road wants it.
ROADS: dict[str, tuple[Road, ...]] = {
    "curl": ("redirect", "connect", "reverse"),
    "requests": ("redirect", "connect"),
    "httpx": ("redirect", "connect"),
    "aiohttp": ("redirect", "reverse"),
}
CASES = [(client, road) for client, roads in ROADS.items() for road in roads]
BODIES = {"curl": CURL_BODY.encode()}
_PLANT = """
import os, sys, urllib.request
planted = sys.argv[1][::-1]
request = urllib.request.Request(sys.argv[2], headers={"X-Client": "canary", "X-Hold": "canary"})
print(urllib.request.urlopen(request, timeout=400).status, len(planted))
"""


# ---------------------------------------------------------------- what runs


@pytest.fixture(scope="module")
def services(_world: World) -> Iterator[Services]:
    """The hosts, and files with what they want; one is the account's own."""
    wanted = {
        HOST: Wanted("Authorization", f"Bearer {SECRETS['plain']}"),
        QUERY_HOST: Wanted("key", SECRETS["query"], query=True),
        IMPOSTOR: None,
    }
    with Services(_world, {host: Service(each, absent) for host, each in wanted.items()}, (IMPOSTOR,)) as made:
        made.vault.keep("plain", SECRETS["plain"], owner=NOBODY.pw_uid)
        made.vault.keep("query", SECRETS["query"])
        yield made


@pytest.fixture(scope="module")
def outcome(services: Services) -> Outcome:
    """How all errands ended."""
    require("curl")
    credentials = {
        "plain": services.credential("plain", HOST),
        "query": services.credential("query", QUERY_HOST, inject_mode="query_param", query_param_name="key"),
        "impostor": services.credential("plain", IMPOSTOR, env_var="KIT_IMPOSTOR_KEY"),
    }
    own = [_errand(services.machine.home, *case) for case in CASES]
    errands = [*own, *_echoes(), _canary(services), *_others()]
    return services.run(credentials, errands, secrets={**SECRETS, "canary": CANARY})


def _errand(home: Path, client: str, road: Road) -> Errand:
    name, body = f"{client}-{road}", home / f"{client}-{road}.body"
    fields = [] if road == "redirect" else [PHANTOM]
    files = {str(body): CURL_BODY} if client == "curl" else {}
    return Errand(name, CLIENTS[client](BASES[road], name, body, *fields), road, files=files)


def _fetch(name: str, url: str, *fields: str) -> Errand:
    """One request, and the head of its response as well."""
    more = [word for field in (f"X-Client: {name}", *fields) for word in ("-H", field)]
    return Errand(name, ["curl", "-sSi", "--compressed", "--max-time", "180", *more, url], held=False)


def _echoes() -> list[Errand]:
    return [_fetch(f"echo-{how}", f"https://{HOST}/echo/{how}") for how in ECHOES + HEAD_ECHOES]


def _others() -> list[Errand]:
    return [
        _fetch("foreign", f"https://{HOST}/who", "Authorization: Bearer somebody-elses-key"),
        _fetch("query", f"https://{QUERY_HOST}/who?key=@TOKEN@&more=1"),
        _fetch("clear", f"http://{HOST}/who"),
        _fetch("impostor", f"https://{IMPOSTOR}/who"),
        Errand("no-phantom", ["curl", "-sSi", f"{BASES['reverse']}/who", "-H", "X-Client: no-phantom"], held=False),
    ]


def _canary(services: Services) -> Errand:
    """It has the canary in base64 in its environment, as it is in its memory, and percent-encoded in a file."""
    encoded = forms(CANARY.encode())
    return Errand(
        "canary",
        ["/usr/bin/python3", "-c", _PLANT, CANARY[::-1], f"https://{HOST}/who"],
        environment={"KIT_CANARY": encoded["base64 +0"].decode()},
        files={f"{services.machine.home}/canary.txt": encoded["percent"].decode()},
    )


# ---------------------------------------------------------------- what came of it


@pytest.mark.parametrize(("client", "road"), CASES)
def test_client(services: Services, outcome: Outcome, client: str, road: Road) -> None:
    """It gets the right answers, the service the credential, and nobody in the sandbox ever has it."""
    name = f"{client}-{road}"
    step = outcome.step(name)
    assert step.returncode == 0, step
    who, upload, held = [*map(json.loads, step.stdout.splitlines())] if client == "curl" else json.loads(step.stdout)
    body = BODIES.get(client, PYTHON_BODY)
    assert who == held == {"host": HOST, "method": "GET", "path": "/who"}
    assert upload == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    assert services.was_sent(outcome, name, "Authorization", f"Bearer {SECRETS['plain']}") == 3
    assert_not_found(outcome, name, *SECRETS)


def test_the_search_finds_what_is_there(outcome: Outcome) -> None:
    """The control: in an environment, in memory and in a file, each in a spelling of its own."""
    assert outcome.step("canary").returncode == 0, outcome.step("canary")
    found = "\n".join(outcome.found["canary"])
    for place, form in (("environ", "base64 +0"), ("memory .*", "literal"), (r"/canary\.txt", "percent")):
        assert re.search(f"{place}: {form}$".replace("+", r"\+"), found, re.MULTILINE), found


def test_nothing_is_told(outcome: Outcome) -> None:
    """No stream and no record has a credential."""
    assert_not_told(outcome, *SECRETS.values())


def test_the_record_names_the_credential(outcome: Outcome) -> None:
    """Each request is in the audit log with the service and the credential that was put into it."""
    sent = outcome.requests(target=HOST, path="/upload")
    assert len(sent) == len(CASES)
    assert {(each["route_id"], each["credential"], each["injection_mode"]) for each in sent} == {
        ("plain", "plain", "header")
    }


def test_query(services: Services, outcome: Outcome) -> None:
    """In a query, the phantom's place is the credential's, and the rest stays."""
    (received,) = services.server.of("query")
    assert received.admitted, received.target
    assert "more=1" in received.target
    assert spelled(received.text, outcome.token) == []
    assert '"method": "GET"' in outcome.step("query").stdout


def test_a_key_that_is_not_the_phantom(services: Services, outcome: Outcome) -> None:
    """401 from us, and the service never hears of it."""
    assert outcome.step("foreign").stdout.startswith("HTTP/1.1 401 "), outcome.step("foreign")
    assert services.server.of("foreign") == []


def test_the_reverse_road_wants_the_phantom(services: Services, outcome: Outcome) -> None:
    """401 without it: whoever reaches the port is not therefore a client."""
    assert outcome.step("no-phantom").stdout.startswith("HTTP/1.1 401 "), outcome.step("no-phantom")
    assert services.server.of("no-phantom") == []


def test_in_clear(services: Services, outcome: Outcome) -> None:
    """Refused: a credential goes where TLS has shown who is there."""
    assert outcome.step("clear").stdout.startswith("HTTP/1.1 403 "), outcome.step("clear")
    assert services.server.of("clear") == []


def test_whoever_cannot_prove_its_name(services: Services, outcome: Outcome) -> None:
    """502, and nothing is said to it."""
    assert outcome.step("impostor").stdout.startswith("HTTP/1.1 502 "), outcome.step("impostor")
    assert services.server.of("impostor") == []


@pytest.mark.parametrize("how", ECHOES)
def test_echo(services: Services, outcome: Outcome, how: str) -> None:
    """A service that shows the credential in its response: the client has asterisks in its place, as many."""
    value = SECRETS["plain"]
    step = outcome.step(f"echo-{how}")
    head, _, body = step.stdout.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 "), step
    assert spelled(step.stdout.encode("latin-1"), value) == []
    told = spellings(value).decode()
    assert [len(line) for line in body.splitlines()] == [len(line) for line in told.splitlines()]
    literal, *_, as_json, end = body.splitlines()
    assert (literal, as_json, end) == ("*" * len(value), json.dumps({"value": "*" * len(value)}), "end")
    assert f"x-echo: {'*' * len(value)}" in head.lower()
    (received,) = services.server.of(f"echo-{how}")
    assert received.admitted


@pytest.mark.parametrize("how", HEAD_ECHOES)
def test_echo_in_the_head(services: Services, outcome: Outcome, how: str) -> None:
    """The same in a reason phrase, and in a response that comes before the final one."""
    step = outcome.step(f"echo-{how}")
    assert spelled(step.stdout.encode("latin-1"), SECRETS["plain"]) == []
    assert "*" * len(SECRETS["plain"]) in step.stdout, step
    (received,) = services.server.of(f"echo-{how}")
    assert received.admitted


def test_the_server_wants_it(services: Services) -> None:
    """The control of all: without a sandbox, whoever shows nothing, or the phantom, gets 401."""
    at = f"{HOST}:443:{services.network.addresses[HOST]}"
    curl = ["curl", "-sS", "--cacert", str(services.network.ca_file), "--resolve", at, "-H", "X-Client: control"]
    for fields in ([], ["-H", f"Authorization: Bearer {'0' * 64}"]):
        done = services.machine.bare([*curl, *fields, f"https://{HOST}/who"])
        assert json.loads(done.stdout) == {"error": "no such credential"}, done
