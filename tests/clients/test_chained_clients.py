"""Unmodified clients in a sandbox whose way out is a company's proxy: Squid or tinyproxy, with and without a password.

The proxy alone knows the names of the world: nobody else is asked for them. What a server sees tells who dialled it:

    203.0.113.1     nono-ebpf, directly
    203.0.113.254   the proxy, which listens there on port 3128
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit import zone
from kit.expect import require
from kit.machine import CA_BUNDLE, Run, Step, read_records
from kit.proxies import PeerServer, RealProxy, Site, Squid, Tinyproxy
from kit.sandboxes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

PROGRAMS = Path(__file__).parent / "programs"
PORT, PEER_PORT = 3128, 2300
PASSWORD, WRONG = "s3cr3t", "n0ts3cr3t"
# base64 of "alice:" and the password
SHOWN = {PASSWORD: "YWxpY2U6czNjcjN0", WRONG: "YWxpY2U6bjB0czNjcjN0"}
HOST, DENIED = "one.example.com", "two.example.com"
GREET = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 90) as server:
    server.settimeout(90)
    banner = server.recv(100)
    server.sendall(b"EHLO\\r\\n")
    print(banner.decode().strip(), server.recv(100).decode().strip(), flush=True)
    if len(sys.argv) > 3:
        try:
            print(server.recv(100))
        except ConnectionResetError:
            print("reset")
"""

environments = pytest.mark.parametrize("proxy_env", [True, False], ids=["proxy-variables", "empty-environment"])


@dataclass
class Office:
    """The proxy, and the options by which nono-ebpf uses it."""

    world: World
    proxy: RealProxy
    options: list[str]

    def run_steps(self, options: Sequence[str], commands: Sequence[Sequence[str]], *, proxy_env: bool = True) -> Run:
        trust = ["--upstream-ca", str(self.world.ca_file)]
        env = {"NODE_EXTRA_CA_CERTS": CA_BUNDLE}
        return self.world.machine.run_steps([*self.options, *trust, *options], commands, env=env, proxy_env=proxy_env)

    def was_asked_for(self, *targets: str) -> None:
        """For each of them, and for nothing else, however often."""
        assert eventually(lambda: set(self.proxy.asked) == set(targets)), self.proxy.asked


@pytest.fixture
def open_office(world: World) -> Iterator[Callable[..., Office]]:
    """Starts a proxy: `mode` says which, `shown` the password that nono-ebpf has for it."""
    with ExitStack() as stack:

        def start(mode: str, shown: str | None = PASSWORD, **more: str) -> Office:
            users = {"alice": PASSWORD} if "password" in mode else {}
            where = Site(world.namespaces.world, zone.GATEWAY_V4, PORT, names(), zone.GATEWAY_V4, users, **more)
            proxy = stack.enter_context(Squid(where) if "squid" in mode else Tinyproxy(where))
            options = ["--upstream-proxy", f"{zone.GATEWAY_V4}:{PORT}"]
            if users and shown is not None:
                options += ["--upstream-auth", f"file://{keep(world, shown)}"]
            return Office(world, proxy, options)

        yield start


@pytest.fixture
def peers(world: World) -> Iterator[PeerServer]:
    """A server that tells who dialled it, on every address of the world."""
    with PeerServer(world.namespaces.world, "0.0.0.0", PEER_PORT) as server:
        yield server


def names() -> dict[str, str]:
    """/etc/hosts with every name of the world, and DNS that does not answer."""
    lines = [f"{zone.v4(name)} {name} v4.{name}\n{zone.v6(name)} v6.{name}\n" for name in zone.HOSTS]
    return {"hosts": "127.0.0.1 localhost\n" + "".join(lines), "resolv.conf": "nameserver 127.0.0.1\n"}


def keep(world: World, password: str) -> Path:
    """A file with the credentials, for root alone."""
    path = world.work / "upstream-auth"
    path.write_text(f"alice:{password}\n")
    path.chmod(0o600)
    return path


def allowing(*rules: str) -> list[str]:
    return [word for rule in rules for word in ("--allow-domain", rule)]


def curl(url: str, *options: str) -> list[str]:
    return ["curl", "-sS", "--fail-with-body", "--max-time", "90", *options, url]


def assert_fetched(step: Step, host: str) -> None:
    assert step.returncode == 0, step
    assert json.loads(step.stdout)["host"] == host


def assert_not_looked_up(world: World) -> None:
    assert not [seen for seen in world.seen if seen.service == "dns"], "the proxy's names were asked for here"


def assert_kept(run: Run, password: str) -> None:
    """Neither the command nor anybody who reads the log has learnt it."""
    for text in (run.stdout, run.stderr, json.dumps(run.records)):
        assert password not in text
        assert SHOWN[password] not in text


@pytest.mark.parametrize(
    ("mode", "proxy_env"),
    [("squid", True), ("squid password", False), ("tinyproxy", False), ("tinyproxy password", True)],
)
def test_curl(world: World, open_office: Callable[..., Office], mode: str, proxy_env: bool) -> None:
    """HTTPS and plain HTTP reach the allowed host through the proxy, and not its neighbour, of which it never hears."""
    require("curl")
    office = open_office(mode)
    urls = [f"https://{HOST}/who", f"http://{HOST}/who", f"https://{DENIED}/who", f"http://{DENIED}/who"]
    show = ["/bin/sh", "-c", "env; cat /proc/self/environ /proc/1/environ"]
    run = office.run_steps(allowing(HOST), [*map(curl, urls), show], proxy_env=proxy_env)
    https, http, *denied, shown = run.steps()
    assert_fetched(https, HOST)
    assert_fetched(http, HOST)
    assert [step.returncode != 0 for step in denied] == [True, True], denied
    office.was_asked_for(f"{HOST}:443", f"{HOST}:80")
    assert_not_looked_up(world)
    allowed = [record for record in run.flows("allow", target=HOST) if record["mode"] != "dns"]
    assert {record["resolved_address"] for record in allowed} == {f"{zone.GATEWAY_V4}:{PORT}"}
    assert {record["upstream_proxy"] for record in allowed} == {f"{zone.GATEWAY_V4}:{PORT}"}
    assert run.flows("deny", target=DENIED)
    assert "alice" not in shown.stdout
    assert_kept(run, PASSWORD)


@environments
def test_requests_and_git(world: World, open_office: Callable[..., Office], proxy_env: bool) -> None:
    """Python's requests and git work as they do without a proxy in the way."""
    require("git")
    office = open_office("squid password")
    clone = str(world.machine.home / f"chained-{proxy_env}")
    script = 'git -c http.sslCAInfo="$1" clone -q https://git.example.com/git/repo.git "$2" && cat "$2/README"'
    commands = [
        [sys.executable, str(PROGRAMS / "with_requests.py"), f"https://{HOST}/who"],
        ["/bin/sh", "-c", script, "sh", CA_BUNDLE, clone],
    ]
    fetched, cloned = office.run_steps(allowing(HOST, "git.example.com"), commands, proxy_env=proxy_env).steps()
    assert_fetched(fetched, HOST)
    assert (cloned.returncode, cloned.stdout) == (0, "from the world\n"), cloned
    office.was_asked_for(f"{HOST}:443", "git.example.com:443")
    assert_not_looked_up(world)


@pytest.mark.parametrize("mode", ["squid", "squid password", "tinyproxy", "tinyproxy password"])
def test_other_protocols(world: World, open_office: Callable[..., Office], peers: PeerServer, mode: str) -> None:
    """A server that speaks first, and one that does not, are reached by name, and see the proxy."""
    require("redis-cli")
    require("redis-server")
    assert world.redis
    office = open_office(mode)
    commands = [
        [sys.executable, "-c", GREET, "banner.example.com", str(PEER_PORT)],
        ["redis-cli", "-h", "cache.example.com", "ping"],
    ]
    rules = allowing(f"banner.example.com:{PEER_PORT}", f"cache.example.com:{zone.REDIS_PORT}")
    greeted, pinged = office.run_steps(rules, commands, proxy_env=False).steps()
    assert greeted.stdout == f"220 {zone.GATEWAY_V4} EHLO\n", greeted
    assert pinged.stdout == "PONG\n", pinged
    assert peers.seen == [zone.GATEWAY_V4]
    office.was_asked_for(f"banner.example.com:{PEER_PORT}", f"cache.example.com:{zone.REDIS_PORT}")
    assert_not_looked_up(world)


@pytest.mark.parametrize("mode", ["squid password", "tinyproxy"])
def test_bypass(world: World, open_office: Callable[..., Office], peers: PeerServer, mode: str) -> None:
    """What is to be reached without the proxy is looked up and dialled by us, and the proxy never hears of it."""
    office = open_office(mode)
    hosts = ["banner.example.com", "v4.echo.example.com", "203.0.113.15", "echo.example.com"]
    bypass = ["banner.example.com", "*.echo.example.com", "203.0.113.8/29"]
    commands = [[sys.executable, "-c", GREET, host, str(PEER_PORT)] for host in hosts]
    options = [word for each in bypass for word in ("--upstream-bypass", each)]
    run = office.run_steps([*options, *allowing(*(f"{host}:{PEER_PORT}" for host in hosts))], commands, proxy_env=False)
    said = [step.stdout.split() for step in run.steps()]
    assert said == [["220", zone.MACHINE_V4, "EHLO"]] * 3 + [["220", zone.GATEWAY_V4, "EHLO"]], run.steps()
    assert peers.seen == [zone.MACHINE_V4] * 3 + [zone.GATEWAY_V4]
    office.was_asked_for(f"echo.example.com:{PEER_PORT}")
    direct = run.flows("allow", target="banner.example.com", event="flow")
    assert [record.get("upstream_proxy") for record in direct] == [None]


@pytest.mark.parametrize(
    ("mode", "shown"), [("squid password", WRONG), ("squid password", None), ("tinyproxy password", WRONG)]
)
@environments
def test_the_wrong_password(
    world: World, open_office: Callable[..., Office], mode: str, shown: str | None, proxy_env: bool
) -> None:
    """Or none: clients get a 502 that says so, no host is reached in another way, and the password stays unknown."""
    office = open_office(mode, shown)
    urls = [f"http://{HOST}/who", f"https://{HOST}/who"]
    run = office.run_steps(allowing(HOST), [curl(url) for url in urls], proxy_env=proxy_env)
    http, https = run.steps()
    said = "does not take the credentials of --upstream-auth" if shown else "it wants credentials: --upstream-auth"
    assert http.returncode == 22, http
    assert said in json.loads(http.stdout)["reason"]
    assert https.returncode != 0, https
    assert proxy_env is ("502" in https.stderr), https
    reasons = {record.get("reason") or "" for record in run.flows("allow", target=HOST) if record["mode"] != "dns"}
    assert {said in reason for reason in reasons} == {True}, run.records
    assert not world.seen
    assert_kept(run, WRONG)


@pytest.mark.parametrize("mode", ["squid", "tinyproxy password"])
def test_metadata_is_denied_first(world: World, open_office: Callable[..., Office], mode: str) -> None:
    """No rule lets it through, and no proxy is asked to do what we would not."""
    office = open_office(mode)
    urls = [f"http://{zone.METADATA_V4}/", "http://metadata.google.internal/", f"http://[::ffff:{zone.METADATA_V4}]/"]
    run = office.run_steps(
        allowing("*", zone.METADATA_V4, f"{zone.METADATA_V4}:80"), [*map(curl, urls), curl(f"http://{HOST}/who")]
    )
    *denied, allowed = run.steps()
    assert [step.returncode for step in denied] == [22] * len(urls), denied
    assert_fetched(allowed, HOST)
    office.was_asked_for(f"{HOST}:80")
    assert [seen.what for seen in world.seen] == [f"GET {HOST}/who"]


@environments
def test_a_proxy_that_is_down(world: World, proxy_env: bool) -> None:
    """Nothing goes another way: a 502 says which proxy it is that does not answer."""
    proxy = f"{zone.GATEWAY_V4}:{PORT}"
    options = ["--upstream-proxy", proxy, "--upstream-ca", str(world.ca_file), *allowing(HOST)]
    urls = [f"http://{HOST}/who", f"https://{HOST}/who"]
    run = world.machine.run_steps(options, [curl(url) for url in urls], proxy_env=proxy_env)
    http, https = run.steps()
    assert http.returncode == 22, http
    reason = f"connect {HOST}:80: the upstream proxy {proxy} failed: Connection refused"
    assert json.loads(http.stdout) == {"error": "bad_gateway", "reason": reason}
    assert https.returncode != 0, https
    assert not world.seen


def test_tls_to_the_proxy(world: World, open_office: Callable[..., Office], peers: PeerServer) -> None:
    """The proxy has to prove its name; then everything goes through it as it does in clear, and its password, too."""
    pem = world._key.read_text() + world._certificate.read_text()
    office = open_office("squid password", tls=pem)
    # Its address is no host's, so no certificate has it: by one of the names that the world's has.
    options = ["--resolve", f"git.example.com:{zone.GATEWAY_V4}", "--upstream-proxy", f"https://git.example.com:{PORT}"]
    office.options = [*options, *office.options[2:]]
    commands = [
        curl(f"https://{HOST}/who"),
        curl(f"http://{HOST}/who"),
        [sys.executable, "-c", GREET, "banner.example.com", str(PEER_PORT)],
        ["/bin/sh", "-c", f"curl -sS --max-time 120 http://{HOST}/bytes/30000000 | wc -c"],
    ]
    run = office.run_steps(allowing(HOST, f"banner.example.com:{PEER_PORT}"), commands, proxy_env=False)
    https, http, greeted, much = run.steps()
    assert_fetched(https, HOST)
    assert_fetched(http, HOST)
    assert greeted.stdout == f"220 {zone.GATEWAY_V4} EHLO\n", greeted
    assert much.stdout == "30000000\n", much
    office.was_asked_for(f"{HOST}:443", f"{HOST}:80", f"banner.example.com:{PEER_PORT}")
    proxies = {record["upstream_proxy"] for record in run.flows("allow") if record["mode"] != "dns"}
    assert proxies == {f"git.example.com:{PORT}"}


def test_a_proxy_that_is_somebody_else(world: World, open_office: Callable[..., Office]) -> None:
    """A certificate for another name ends it before the password is shown."""
    office = open_office("squid password", tls=world._key.read_text() + world._certificate.read_text())
    office.options = ["--upstream-proxy", f"https://{zone.GATEWAY_V4}:{PORT}", *office.options[2:]]
    run = office.run_steps(allowing(HOST), [curl(f"http://{HOST}/who")])
    (step,) = run.steps()
    assert step.returncode == 22, step
    assert "is not valid for" in json.loads(step.stdout)["reason"]
    assert office.proxy.asked == []
    assert not world.seen


def test_a_killed_proxy_inside_tls(
    world: World, open_office: Callable[..., Office], peers: PeerServer, tmp_path: Path
) -> None:
    """In the middle of a tunnel: the client sees a RST, and the record says what broke."""
    office = open_office("squid", tls=world._key.read_text() + world._certificate.read_text())
    options = ["--resolve", f"git.example.com:{zone.GATEWAY_V4}", "--upstream-proxy", f"https://git.example.com:{PORT}"]
    options += ["--upstream-ca", str(world.ca_file), *allowing(f"banner.example.com:{PEER_PORT}")]
    command = ["/usr/bin/python3", "-c", GREET, "banner.example.com", str(PEER_PORT), "wait"]
    with world.machine.start(options, command, log=tmp_path / "audit.ndjson") as running:
        assert running.stdout is not None
        said = running.stdout.readline()
        assert said == f"220 {zone.GATEWAY_V4} EHLO\n", (said, running.communicate())
        office.proxy.kill()
        assert running.stdout.readline() == "reset\n"
        running.communicate(timeout=180)
    (record,) = [each for each in read_records(tmp_path / "audit.ndjson") if each["event"] == "flow"]
    assert record["reason"] == "TLS to the upstream proxy broke: unexpected eof"
