"""git, npm, Go and Java with services that want a credential, which they do not have.

All in one sandbox and at once, each told of us by its road: nothing at all, or the proxy (CONNECT). While each waits
for a response, the sandbox is searched for the credentials from outside.

    git.test     git-http-backend(1), Basic          npm.test   Verdaccio, Bearer
    plain.test   for Go's and Java's own clients, Bearer
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit.api_server import HOLD, Service, Wanted, absent
from kit.credentials import new_secret
from kit.errands import Errand, Outcome, Road
from kit.expect import require
from kit.git_server import README, GitServer
from kit.services import Services, assert_not_found, assert_not_told
from kit.verdaccio import Verdaccio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aiohttp import web
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

PROGRAMS = Path(__file__).parent / "programs"
ROADS: tuple[Road, ...] = ("redirect", "connect")
SECRETS = {"git": f"kit:{new_secret('git')}", "plain": new_secret("plain")}
PUSHED = b"".join(number.to_bytes(4, "big") for number in range(250_000))
BODIES = {"go": b"from Go " * 250_000, "java": b"from Java " * 200_000}
SCOPE = "@kit"
# It pushes what no server takes in one piece (http.postBuffer), so that it sends chunks.
_GIT = """
set -e
export GIT_CONFIG_GLOBAL=/dev/null GIT_TERMINAL_PROMPT=0
git config --file "$1.config" user.name kit; git config --file "$1.config" user.email kit@example.com
git config --file "$1.config" http.userAgent "$2"; git config --file "$1.config" http.postBuffer 65536
test -z "$4" || git config --file "$1.config" http.extraHeader "Authorization: Basic $(printf %s "x:$4" | base64 -w0)"
export GIT_CONFIG_GLOBAL="$1.config"
git clone -q "$3" "$1"
cat "$1/README"
python3 -c 'import sys; sys.stdout.buffer.write(b"".join(n.to_bytes(4, "big") for n in range(250000)))' >"$1/pushed"
git -C "$1" add pushed
git -C "$1" commit -q -m second
git -C "$1" push -q origin main
"""
# npm wants a token to publish, and gets the phantom; it installs with none, and with a cache that has not the package.
_NPM = """
set -e
cd "$1/package"; npm publish
cd "$1/project"; npm install --cache "$1/other-cache" --no-audit --no-fund "$2"
node -p "require('$2')"
"""
_JAVA = """
set -e
python3 "$1" "$2"
shift 2
exec java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx64m -Djavax.net.ssl.trustStore="$0" \
    -Djavax.net.ssl.trustStorePassword=changeit "$@"
"""


# ---------------------------------------------------------------- what runs


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> GitServer:
    """A repository for each road."""
    require("git")
    return GitServer(tmp_path_factory.mktemp("git"), *(f"{road}.git" for road in ROADS))


@pytest.fixture(scope="module")
def services(_world: World, git: GitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The hosts. Verdaccio makes its token itself."""
    registry = Verdaccio(_world.namespaces.world, tmp_path_factory.mktemp("npm"), "https://npm.test/")
    SECRETS["npm"] = registry.token
    basic = base64.b64encode(SECRETS["git"].encode()).decode()
    hosts = {
        "git.test": Service(Wanted("Authorization", f"Basic {basic}"), git.handle),
        "npm.test": Service(Wanted("Authorization", f"Bearer {registry.token}"), registry.handle),
        "plain.test": Service(Wanted("Authorization", f"Bearer {SECRETS['plain']}"), absent),
    }
    try:
        with Services(_world, hosts) as made:
            for name, value in SECRETS.items():
                made.vault.keep(name, value)
            made.server.gate.names = _held_as
            yield made
    finally:
        registry.close()


def _held_as(request: web.Request) -> str | None:
    """git waits for what it clones, npm for the package."""
    last = request.path.endswith((".tgz", "/git-upload-pack")) and request.method in ("GET", "POST")
    return request.headers.get("User-Agent") if last else request.headers.get(HOLD)


@pytest.fixture(scope="module")
def compiled(_world: World) -> Mapping[str, list[str]]:
    """How the programs in Go and Java are run."""
    place = _world.work / "credential-programs"
    place.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(place), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    build = [require("go"), "build", "-o", str(place / "client"), str(PROGRAMS / "api_client.go")]
    subprocess.run(build, check=True, env=environment, cwd=place)
    require("keytool")
    subprocess.run([require("javac"), "-d", str(place), str(PROGRAMS / "Api.java")], check=True)
    store = str(_world.machine.home / "credentials.p12")
    java = ["/bin/sh", "-c", _JAVA, store, str(PROGRAMS / "truststore.py"), store, "-cp", str(place), "Api"]
    return {"go": [str(place / "client")], "java": java}


@pytest.fixture(scope="module")
def outcome(services: Services, compiled: Mapping[str, list[str]]) -> Outcome:
    """How all ended."""
    require("npm")
    credentials = {
        "git": services.credential("git", "git.test", inject_mode="basic_auth"),
        "npm": services.credential("npm", "npm.test"),
        "plain": services.credential("plain", "plain.test"),
    }
    home = services.machine.home
    own = [_asking("go", road, compiled) for road in ROADS] + [_asking("java", "redirect", compiled)]
    errands = [*own, *(_cloning(home, road) for road in ROADS), *(_installing(home, road) for road in ROADS)]
    return services.run(credentials, errands, secrets=SECRETS)


def _asking(client: str, road: Road, compiled: Mapping[str, list[str]]) -> Errand:
    name = f"{client}-{road}"
    fields = [] if road == "redirect" else ["Authorization: Bearer @TOKEN@"]
    return Errand(name, [*compiled[client], "https://plain.test", name, *fields], road)


def _cloning(home: Path, road: Road) -> Errand:
    """With nothing to show, or with the phantom as a password."""
    name, shown = f"git-{road}", "" if road == "redirect" else "@TOKEN@"
    command = ["/bin/sh", "-c", _GIT, "sh", str(home / name), name, f"https://git.test/{road}.git", shown]
    return Errand(name, command, road)


def _installing(home: Path, road: Road) -> Errand:
    name, place = f"npm-{road}", home / f"npm-{road}"
    package = f"{SCOPE}/{road}"
    registry = f"registry=https://npm.test/\n{SCOPE}:registry=https://npm.test/\n"
    files = {
        f"{place}/package/package.json": json.dumps({"name": package, "version": "1.0.0", "main": "index.js"}),
        f"{place}/package/index.js": f"module.exports = 'from {package}'\n",
        f"{place}/package/.npmrc": f"{registry}//npm.test/:_authToken=@TOKEN@\n",
        f"{place}/project/package.json": json.dumps({"name": "project", "version": "1.0.0"}),
        f"{place}/project/.npmrc": registry,
    }
    settings = {"npm_config_user_agent": name, "npm_config_cache": f"{place}/cache", "npm_config_fetch_retries": "0"}
    settings["npm_config_update_notifier"] = "false"
    return Errand(name, ["/bin/sh", "-c", _NPM, "sh", str(place), package], road, settings, files)


# ---------------------------------------------------------------- what came of it


@pytest.mark.parametrize("name", ["go-redirect", "go-connect", "java-redirect"])
def test_client(services: Services, outcome: Outcome, name: str) -> None:
    """It gets the right answers, the service the credential, and nobody in the sandbox ever has it."""
    step = outcome.step(name)
    assert step.returncode == 0, step
    who, upload, held = map(json.loads, step.stdout.splitlines())
    body = BODIES[name.partition("-")[0]]
    assert who == held == {"host": "plain.test", "method": "GET", "path": "/who"}
    assert upload == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    assert services.was_sent(outcome, name, "Authorization", f"Bearer {SECRETS['plain']}") == 3
    assert_not_found(outcome, name, *SECRETS)


@pytest.mark.parametrize("road", ROADS)
def test_git(services: Services, git: GitServer, outcome: Outcome, road: Road) -> None:
    """It clones, and pushes a large file, with a login that it does not know."""
    step = outcome.step(f"git-{road}")
    assert (step.returncode, step.stdout) == (0, README), step
    assert git.file(f"{road}.git", "pushed") == PUSHED
    basic = base64.b64encode(SECRETS["git"].encode()).decode()
    assert services.was_sent(outcome, f"git-{road}", "Authorization", f"Basic {basic}") >= 4
    pushes = [each for each in services.server.of(f"git-{road}") if each.target.endswith("/git-receive-pack")]
    assert any(each.value("Transfer-Encoding") == "chunked" for each in pushes), pushes
    assert_not_found(outcome, f"git-{road}", *SECRETS)


@pytest.mark.parametrize("road", ROADS)
def test_npm(services: Services, outcome: Outcome, road: Road) -> None:
    """It publishes a package of a scope with the phantom, and installs it with nothing."""
    step = outcome.step(f"npm-{road}")
    assert step.returncode == 0, step
    assert step.stdout.splitlines()[-1] == f"from {SCOPE}/{road}"
    assert services.was_sent(outcome, f"npm-{road}", "Authorization", f"Bearer {SECRETS['npm']}") >= 3
    asked = {(each.method, each.target.lower()) for each in services.server.of(f"npm-{road}")}
    assert {("PUT", f"/{SCOPE}%2f{road}"), ("GET", f"/{SCOPE}%2f{road}")} <= asked
    assert_not_found(outcome, f"npm-{road}", *SECRETS)


def test_nothing_is_told(outcome: Outcome) -> None:
    """No stream and no record has a credential."""
    assert_not_told(outcome, *SECRETS.values())
