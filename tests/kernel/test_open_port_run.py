"""`nono-ebpf run --open-port`: services on the machine's own loopback, reached at the address they have there.

::

    sandbox (lo only)                           machine (lo)
    curl http://127.0.0.1:8080  ─►  proxy  ─►   127.0.0.1:8080  "v4"       [::1]:8080  "v6"
    curl http://127.0.0.1:8090  refused         127.0.0.1:8090  "closed"   127.0.0.1:8070  "only v4"
                                                127.0.0.1:5433  speaks first
"""

from __future__ import annotations

import http.server
import json
import socket
import socketserver
import sys
import threading
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import pytest
from kit.expect import require
from kit.namespaces import inside
from kit.sandboxes import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kit.machine import Machine, Run
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

PORT, ONLY_V4, CLOSED, BANNER = 8080, 8070, 8090, 5433
GREETING = b"hello from the machine\r\n"
OPEN = [word for port in (PORT, ONLY_V4, BANNER) for word in ("--open-port", str(port))]
REACHABLE = [("127.0.0.1", {"v4"}), ("localhost", {"v4", "v6"}), ("[::1]", {"v6"})]
ENVIRONMENTS = pytest.mark.parametrize("proxy_env", [True, False], ids=["proxy-variables", "empty-environment"])

# Connects to each HOST:PORT of its arguments and prints what it was told first, or by what error it was not.
_READ = """
import errno, json, socket, sys
def told(target):
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 60) as stream:
            return [stream.recv(100).decode(), stream.getpeername()[:2]]
    except OSError as error:
        return errno.errorcode[error.errno]
print(json.dumps([told(target) for target in sys.argv[1:]]))
"""
# A server inside on HOST:PORT, and its client: what was heard.
_SERVE = """
import json, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
with socket.create_server((host, port)) as server, socket.create_connection((host, port), 60) as client:
    client.sendall(b"inside")
    print(json.dumps(server.accept()[0].recv(100).decode()))
"""
_BIND = """
import errno, json, socket, sys
def told(port):
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as error:
            return errno.errorcode[error.errno]
    return "done"
print(json.dumps({port: told(int(port)) for port in sys.argv[1:]}))
"""


class _Http(http.server.BaseHTTPRequestHandler):
    """Says `text` to everybody."""

    def __init__(self, *arguments: Any, text: str) -> None:
        self._text = text
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self._text)))
        self.end_headers()
        self.wfile.write(self._text.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing to say of one's own."""


class _Greeting(socketserver.BaseRequestHandler):
    """Speaks first."""

    def handle(self) -> None:
        self.request.sendall(GREETING)


class _MakesHandler(Protocol):
    def __call__(self, *arguments: Any) -> socketserver.BaseRequestHandler: ...


class _V4(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True


class _V6(_V4):
    address_family = socket.AF_INET6


@pytest.fixture(scope="module", autouse=True)
def _services(_world: World) -> Iterator[None]:
    """Servers on the loopback of the test machine."""
    wanted: list[tuple[str, int, _MakesHandler]] = [
        ("127.0.0.1", PORT, partial(_Http, text="v4")),
        ("::1", PORT, partial(_Http, text="v6")),
        ("127.0.0.1", ONLY_V4, partial(_Http, text="only v4")),
        ("127.0.0.1", CLOSED, partial(_Http, text="closed")),
        ("127.0.0.1", BANNER, _Greeting),
    ]
    with ExitStack() as stack:
        for address, port, handler in wanted:
            kind = _V6 if ":" in address else _V4
            server = inside(_world.namespaces.machine, partial(kind, (address, port), handler))
            stack.callback(server.server_close)
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        yield


def _python(machine: Machine, options: list[str], script: str, *arguments: str | int) -> Run:
    return machine.run(options, [sys.executable, "-I", "-c", script, *map(str, arguments)])


def _curl(machine: Machine, options: list[str], url: str, *more: str, proxy_env: bool = True) -> Run:
    command = [require("curl"), "-sS", "--fail", "--max-time", "90", *more, url]
    return machine.run(options, command, proxy_env=proxy_env)


def test_the_services_are_there(machine: Machine) -> None:
    """The control: outside a sandbox each of them answers."""
    for host, port, text in (("127.0.0.1", PORT, "v4"), ("[::1]", PORT, "v6"), ("127.0.0.1", CLOSED, "closed")):
        done = machine.bare([require("curl"), "-sS", "--max-time", "90", f"http://{host}:{port}/"])
        assert done.stdout == text, done.stderr


@ENVIRONMENTS
@pytest.mark.parametrize(("host", "texts"), REACHABLE)
def test_an_opened_port_is_reached(machine: Machine, host: str, texts: set[str], proxy_env: bool) -> None:
    """By an unmodified client, redirected with and without proxy variables; the log says where it went."""
    run = _curl(machine, OPEN, f"http://{host}:{PORT}/", proxy_env=proxy_env)
    assert run.returncode == 0, run
    assert run.stdout in texts
    (record,) = run.flows("allow", mode="redirect", target=host.strip("[]"), port=PORT)
    assert record["comm"] == "curl"
    assert record["original_destination"] in {f"127.0.0.1:{PORT}", f"[::1]:{PORT}"}
    assert (record["identity"], record["status"]) == ("host", 200)


def test_a_service_that_speaks_first(machine: Machine) -> None:
    """Its bytes arrive as they are, from the address that was asked for: a database works."""
    run = _python(machine, OPEN, _READ, f"127.0.0.1:{BANNER}")
    assert run.json() == [[GREETING.decode(), ["127.0.0.1", BANNER]]], run
    (record,) = run.flows("allow", mode="redirect", port=BANNER)
    assert (record["target"], record["resolved_address"]) == ("127.0.0.1", f"127.0.0.1:{BANNER}")


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_a_service_on_one_address_is_found_by_both(machine: Machine, host: str) -> None:
    """Clients try ::1 before 127.0.0.1 and go on when it refuses, which here it cannot: the proxy goes on instead."""
    run = _python(machine, OPEN, _READ, f"{host}:{BANNER}")
    ((greeting, _),) = run.json()
    assert greeting == GREETING.decode(), run


def test_asked_of_the_proxy(machine: Machine) -> None:
    """A client that takes the proxy for loopback, too, is judged and served the same."""
    for host, texts in REACHABLE:
        run = _curl(machine, OPEN, f"http://{host}:{PORT}/", "--noproxy", "")
        assert run.stdout in texts, run
        assert run.flows("allow", mode="http", target=host.strip("[]"), port=PORT)


@ENVIRONMENTS
def test_other_ports_are_closed(machine: Machine, proxy_env: bool) -> None:
    """To the sandbox they are its own loopback, where nobody listens; asked of the proxy, they are refused."""
    run = _curl(machine, OPEN, f"http://127.0.0.1:{CLOSED}/", proxy_env=proxy_env)
    assert (run.returncode, run.stdout, run.records) == (7, "", ()), run  # curl(1): failed to connect
    asked = _curl(machine, OPEN, f"http://127.0.0.1:{CLOSED}/", "--noproxy", "")
    assert (asked.returncode, asked.stdout) == (22, ""), asked  # curl(1): a status of 400 and more
    assert asked.flows("deny", mode="http", target="127.0.0.1", port=CLOSED)


@ENVIRONMENTS
@pytest.mark.parametrize("denied", ["127.0.0.1", f"127.0.0.1:{PORT}"])
def test_a_denial_wins(machine: Machine, denied: str, proxy_env: bool) -> None:
    """Over what opens the port."""
    run = _curl(machine, [*OPEN, "--deny-domain", denied], f"http://127.0.0.1:{PORT}/", proxy_env=proxy_env)
    assert (run.returncode, run.stdout) == (22, ""), run
    (record,) = run.flows("deny", target="127.0.0.1", port=PORT)
    assert denied in record["reason"]


def test_without_the_option_loopback_is_the_sandboxs_own(machine: Machine) -> None:
    """A rule for a port of loopback alone redirects nobody."""
    run = _curl(machine, ["--allow-domain", f"127.0.0.1:{PORT}"], f"http://127.0.0.1:{PORT}/")
    assert (run.returncode, run.records) == (7, ()), run


@pytest.mark.parametrize(("host", "port"), [("127.0.0.5", PORT), ("127.0.0.1", CLOSED)])
def test_servers_inside_work(machine: Machine, host: str, port: int) -> None:
    """On another loopback address with an opened port, and on every other port."""
    run = _python(machine, OPEN, _SERVE, host, port)
    assert (run.json(), run.records) == ("inside", ()), run


def test_landlock_judges_ports_as_well(machine: Machine) -> None:
    """It lets through what is opened, and of listening what is opened or listed."""
    options = [*OPEN, "--listen-port", "3000", "--landlock-ports"]
    run = _curl(machine, options, f"http://127.0.0.1:{PORT}/")
    assert (run.returncode, run.stdout) == (0, "v4"), run
    assert _python(machine, options, _READ, f"127.0.0.1:{CLOSED}").json() == ["EACCES"]
    bound = _python(machine, options, _BIND, PORT, 3000, 3001).json()
    assert bound == {str(PORT): "done", "3000": "done", "3001": "EACCES"}


def test_no_opened_port_is_the_proxys(world: World) -> None:
    """Where all the ports are opened that it would usually take, it takes another."""
    profile = world.work / "opens-a-range.json"
    profile.write_text(json.dumps({"network": {"open_port_range": [[1024, 65535]]}}))
    run = world.machine.run(["--profile", str(profile)], ["sh", "-c", 'echo "$HTTP_PROXY"'])
    assert run.returncode == 0, run
    assert (urlsplit(run.stdout.strip()).port or 65536) < 1024


def test_the_proxy_cannot_open_ports(machine: Machine, tmp_path: Path) -> None:
    """Of the map that opens them it has no descriptor; the supervisor has."""
    reader = ["sh", "-c", "echo ready; exec sleep 300"]
    with machine.start(OPEN, reader, log=tmp_path / "log") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        sandbox = Sandbox.of(process.pid)
        try:
            assert _ports_maps(sandbox.supervisor.pid) == 1
            assert _ports_maps(sandbox.proxy.pid) == 0
        finally:
            sandbox.close()
            process.terminate()


def _ports_maps(pid: int) -> int:
    """How many descriptors of a process are of an array of 1024 words. proc_pid_fdinfo(5)."""
    found = []
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile: the map is held for as long as the sandbox runs
            found.append(entry.read_text().split())
    facts = [dict(zip(words[::2], words[1::2], strict=False)) for words in found]
    return sum((fact.get("max_entries:"), fact.get("value_size:")) == ("1024", "8") for fact in facts)


def test_what_is_told_of_a_service_that_is_not_there(machine: Machine) -> None:
    """The connection stands already; a request is answered, anything else is reset, and the log has the reason."""
    options = ["--open-port", "8060"]
    done = machine.run(
        options, [require("curl"), "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8060/"]
    )
    assert done.stdout == "502", done
    met = _python(machine, options, _READ, "127.0.0.1:8060")
    assert json.loads(met.stdout) == ["ECONNRESET"], met
    assert "refused" in met.records[0]["reason"]
