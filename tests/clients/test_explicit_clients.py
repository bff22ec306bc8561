"""Unmodified clients that use the proxy they are told of: with its token, with another one, and without a proxy.

One sandbox per client. In it the client asks for hosts whose names tell afterwards which request a record is of:

    one.example.com      with the token, over HTTPS and in the clear: works, by the explicit road
    v6.one.example.com   with a wrong token: 407, and nothing leaves
    v4.one.example.com   with no proxy configured: works all the same, redirected

Some send the token with the first request, others when they are asked (407), on the same connection.
"""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit import packages
from kit.expect import missing, require
from kit.machine import CA_BUNDLE, Run, Step
from kit.namespaces import listen_stream
from kit.packages import Packages
from kit.patience import patient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

PROGRAMS = Path(__file__).parent / "programs"
STEPS = str(PROGRAMS / "steps.py")
NO_TOKEN = "authentication_failed"
PREFIXES = {"right": "", "wrong": "v6.", "none": "v4."}
JARS = ("httpclient", "httpcore", "commons-logging", "commons-codec")


@dataclass(frozen=True, slots=True)
class Task:
    """One request: `proxy` is right, wrong or none; `place` a directory of its own, not made yet."""

    scheme: str
    proxy: str
    host: str
    place: Path

    @property
    def told(self) -> bool:
        """Whether the client is to know of the proxy."""
        return self.proxy != "none"

    def url(self, path: str) -> str:
        """Of the world's own servers."""
        return f"{self.scheme}://{self.host}{path}"

    def packages(self, path: str) -> str:
        """Of the servers that have packages."""
        port = packages.HTTPS_PORT if self.scheme == "https" else packages.HTTP_PORT
        return f"{self.scheme}://{self.host}:{port}{path}"


Command = Callable[[Task], list[str]]


def _is_the_answer(step: Step, task: Task) -> None:
    assert json.loads(step.stdout)["host"] == task.host


def _says(text: str) -> Callable[[Step, Task], None]:
    def check(step: Step, _: Task) -> None:
        assert text in step.stdout

    return check


@dataclass(frozen=True)
class Client:
    """How `program` is told to fetch something, and what shows that it has.

    `tunnel` and `mode` are the audit's words for how it asks for https:// and for http:// URLs. `waits`: it sends
    the token only when it is asked for it. `refused` matches what it says when its token is wrong.
    """

    program: str
    command: Command
    check: Callable[[Step, Task], None] = _is_the_answer
    files: Callable[[Task], dict[str, str]] = field(default=lambda _: {})
    trust: Mapping[str, str] = field(default_factory=dict)
    host: str = "one.example.com"
    tunnel: str = "connect"
    mode: str = "http"
    waits: bool = False
    refused: str = "407|Proxy Authentication Required"

    def mode_of(self, task: Task) -> str:
        """The audit's word for how it asks."""
        return self.tunnel if task.scheme == "https" else self.mode


# ---------------------------------------------------------------- the clients


def _curl(*options: str) -> Command:
    """curl with `options` as long as there is a proxy."""
    start = ["curl", "-sS", "--fail", "--max-time", "90", "-w", "%{stderr}%{http_connect} %{http_code}"]
    return lambda task: [*start, *(options if task.told else ()), task.url("/who")]


def _socks(option: str) -> Client:
    command = _curl("--noproxy", "", option, "@USER@:@TOKEN@@@HOST@:@PORT@")
    return Client("curl", command, tunnel="socks5", mode="socks5", refused=r"curl: \(97\)")


def _python(script: str) -> Command:
    return lambda task: [sys.executable, str(PROGRAMS / script), task.url("/who")]


def _wget(task: Task) -> list[str]:
    return ["wget", "-nv", "--tries=1", "--timeout=90", "-O-", task.url("/who")]


def _git(task: Task) -> list[str]:
    clone = 'git -c "http.sslCAInfo=$0" -c advice.detachedHead=false clone -q "$1" "$2" && cat "$2/README"'
    return ["/bin/sh", "-c", clone, CA_BUNDLE, task.url("/git/repo.git"), str(task.place)]


def _pip(task: Task) -> list[str]:
    quiet = ["-vv", "--disable-pip-version-check", "--no-cache-dir", "--retries=0", "--no-deps", "-d", str(task.place)]
    index = ["--index-url", task.packages("/simple"), "--trusted-host", task.host]
    return [sys.executable, "-m", "pip", "download", *quiet, *(index[:2] if task.scheme == "https" else index), "kit"]


def _npm(task: Task) -> list[str]:
    options = ["--registry", task.packages("/npm/"), "--cache", f"{task.place}-cache", "--fetch-retries=0"]
    script = 'npm view "$@" kit version && npm install --no-audit --no-fund --prefix "$0" "$@" kit'
    return ["/bin/sh", "-c", script, str(task.place), *options]


def _undici(installed: Callable[[str], list[str]], program: str) -> Command:
    directory = installed("")[2]
    return lambda task: ["node", str(PROGRAMS / program), directory, task.url("/who")]


def _node_fetch(task: Task) -> list[str]:
    return ["node", str(PROGRAMS / "with_fetch.mjs"), task.url("/who")]


def _java(java: list[str], *program: str) -> Command:
    login = ["@HOST@", "@PORT@", "@USER@", "@TOKEN@"]
    return lambda task: [*java, *program, task.url("/who"), *(login if task.told else [])]


def _maven(task: Task) -> list[str]:
    own = ["-s", f"{task.place}/settings.xml", f"-Dmaven.repo.local={task.place}/repository"]
    return ["mvn", "-B", "-q", *own, "-f", str(task.place), "validate"]


def _resolved(_: Step, task: Task) -> None:
    assert list(task.place.glob("repository/**/extension-*.jar"))


def _maven_files(task: Task) -> dict[str, str]:
    login = "<username>@USER@</username><password>@TOKEN@</password>"
    proxy = f"<protocol>{{}}</protocol><host>@HOST@</host><port>@PORT@</port>{login}"
    proxies = "".join(f"<proxy><id>{scheme}</id>{proxy.format(scheme)}</proxy>" for scheme in ("http", "https"))
    mirror = f"<id>kit</id><mirrorOf>*</mirrorOf><url>{task.packages('/maven')}</url>"
    settings = f"<proxies>{proxies if task.told else ''}</proxies><mirrors><mirror>{mirror}</mirror></mirrors>"
    return {
        f"{task.place}/settings.xml": f"<settings>{settings}</settings>",
        f"{task.place}/pom.xml": packages.project(),
    }


CLIENTS = {
    "curl": Client("curl", _curl()),
    "curl-basic": Client("curl", _curl("--proxy-basic")),
    "curl-anyauth": Client("curl", _curl("--proxy-anyauth"), waits=True),
    "curl-socks5-hostname": _socks("--socks5-hostname"),
    "curl-socks5": _socks("--socks5"),
    "wget": Client("wget", _wget),
    "urllib": Client("python3", _python("with_urllib.py")),
    "requests": Client("python3", _python("with_requests.py")),
    "aiohttp": Client("python3", _python("with_aiohttp.py")),
    "git": Client("git", _git, _says("from the world"), host="git.example.com", waits=True),
    "pip": Client("python3", _pip, _says("Successfully downloaded kit"), trust={"PIP_CERT": CA_BUNDLE}),
    "npm": Client("npm", _npm, _says("added 1 package"), trust={"NODE_EXTRA_CA_CERTS": CA_BUNDLE}),
}


@pytest.fixture(scope="module")
def stores(_world: World) -> Iterator[Packages]:
    """Servers for package managers, on every address of the world."""
    directory = _world.work / "packages"
    packages.make(directory)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(_world._certificate, _world._key)
    made = Packages(directory, partial(listen_stream, _world.namespaces.world), tls)
    yield made
    made.close()


@pytest.fixture(scope="module")
def java(_world: World) -> list[str]:
    """Java with the programs compiled, trust in the world's CA, and Basic allowed for tunnels."""
    directory = _world.work / "explicit-java"
    directory.mkdir()
    jars = [Path(f"/usr/share/java/{name}.jar") for name in JARS]
    if not all(jar.exists() for jar in jars):
        missing("libhttpclient-java", "Apache HttpClient is not installed")
    paths = ":".join(map(str, (directory, *jars)))
    sources = [str(PROGRAMS / name) for name in ("Proxied.java", "Apache.java")]
    subprocess.run([require("javac"), "-cp", paths, "-d", str(directory), *sources], check=True)
    store, password = directory / "trust.p12", "changeit"
    entry = ["-storetype", "PKCS12", "-keystore", str(store), "-storepass", password, "-file", str(_world.ca_file)]
    subprocess.run(
        [require("keytool"), "-importcert", "-noprompt", "-alias", "world", *entry], check=True, capture_output=True
    )
    trust = [f"-Djavax.net.ssl.trustStore={store}", f"-Djavax.net.ssl.trustStorePassword={password}"]
    basic = [f"-Djdk.http.auth.{what}.disabledSchemes=" for what in ("tunneling", "proxying")]
    return [require("java"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *trust, *basic, "-cp", paths]


# ---------------------------------------------------------------- what is asked, and what must come of it


def _run(world: World, client: Client, tasks: Sequence[Task]) -> Run:
    ports = ("", f":{packages.HTTP_PORT}", f":{packages.HTTPS_PORT}")
    rules = [f"{prefix}{client.host}{port}" for prefix in ("", "*.") for port in ports]
    options = ["--upstream-ca", str(world.ca_file), *(part for rule in rules for part in ("--allow-domain", rule))]
    steps = [
        {
            "proxy": task.proxy,
            "files": client.files(task),
            "command": world.machine._shown(client.command(task)),
        }
        for task in tasks
    ]
    command = [sys.executable, STEPS, json.dumps(steps)]
    return world.machine.run(options, command, env=client.trust, timeout_s=patient(600))


def _tasks(world: World, name: str, client: Client) -> list[Task]:
    asked = [("https", "right"), ("http", "right"), ("https", "wrong"), ("http", "wrong"), ("https", "none")]
    home = world.machine.home
    return [
        Task(scheme, proxy, PREFIXES[proxy] + client.host, home / f"{name}-{scheme}-{proxy}") for scheme, proxy in asked
    ]


def _modes(run: Run, task: Task) -> set[str]:
    """How the connections and requests to the task's host came that were let through."""
    allowed = [each for each in run.flows("allow", target=task.host) if each["event"] != "dns"]
    return {
        each["mode"] for each in allowed if (each["port"] in (443, packages.HTTPS_PORT)) == (task.scheme == "https")
    }


def _assert_served(run: Run, task: Task, step: Step, client: Client) -> None:
    assert step.returncode == 0, step
    client.check(step, task)
    if task.proxy == "none":
        assert _modes(run, task) == {"redirect"}, run.records
    else:
        assert _modes(run, task) == {client.mode_of(task)}, run.records


def _assert_refused(world: World, stores: Packages, run: Run, task: Task, step: Step, client: Client) -> None:
    assert step.returncode != 0, step
    assert re.search(client.refused, step.stdout + step.stderr), step
    assert not _modes(run, task), run.records
    assert run.flows("deny", denial_category=NO_TOKEN, mode=client.mode_of(task)), run.records
    assert not [what for what in [*(seen.what for seen in world.seen), *stores.seen] if task.host in what], "it left"


def _check(world: World, stores: Packages, name: str, client: Client) -> None:
    require(client.program)
    tasks = _tasks(world, name, client)
    run = _run(world, client, tasks)
    for task, step in zip(tasks, run.steps(), strict=True):
        if task.proxy == "wrong":
            _assert_refused(world, stores, run, task, step, client)
        else:
            _assert_served(run, task, step, client)
    asked = [each for each in run.flows("deny", denial_category=NO_TOKEN) if "missing" in each["reason"]]
    assert bool(asked) == client.waits, run.records


@pytest.mark.parametrize("name", CLIENTS)
def test_client(world: World, stores: Packages, name: str) -> None:
    """The client reaches the host by the proxy if its token is right, and else not at all."""
    _check(world, stores, name, CLIENTS[name])


@pytest.mark.parametrize("program", ["with_undici.mjs", "with_undici_fetch.mjs"])
def test_undici(world: World, stores: Packages, undici: Callable[[str], list[str]], program: str) -> None:
    """undici, with the agent that reads the proxy variables; it makes a tunnel for whatever it asks for."""
    client = Client("node", _undici(undici, program), trust={"NODE_EXTRA_CA_CERTS": CA_BUNDLE}, mode="connect")
    _check(world, stores, program, client)


def test_node(world: World, stores: Packages) -> None:
    """Node.js's own fetch, which reads the proxy variables since release 24."""
    if "--use-env-proxy" not in subprocess.run([require("node"), "--help"], capture_output=True, text=True).stdout:
        missing("node-env-proxy", "this Node.js reads no proxy variables")
    client = Client("node", _node_fetch, trust={"NODE_EXTRA_CA_CERTS": CA_BUNDLE}, mode="connect")
    _check(world, stores, "fetch", client)


@pytest.mark.parametrize(
    "program", [("Proxied", "http-client"), ("Proxied", "url-connection"), ("Apache",)], ids=" ".join
)
def test_java(world: World, stores: Packages, java: list[str], program: tuple[str, ...]) -> None:
    """Java's own clients and Apache's."""
    client = Client("java", _java(java, *program), waits=True, refused="407|too many authentication attempts")
    _check(world, stores, "-".join(program), client)


def test_maven(world: World, stores: Packages, java: list[str]) -> None:
    """Maven resolves a parent and an extension with the token that its settings have."""
    options = " ".join(word for word in java if word.startswith("-Djavax"))
    trust = {"MAVEN_OPTS": f"-XX:TieredStopAtLevel=1 {options}"}
    _check(world, stores, "maven", Client("mvn", _maven, _resolved, _maven_files, trust))
