"""What a request costs whose credential the proxy puts in, measured side by side in one run: `make bench`.

    direct        a client that has the credential itself, straight to the server, over TLS that it verifies
    intercepting  the same client in a sandbox, without the credential: it is redirected, and its TLS ends at the proxy
    reverse       the same in the sandbox, over plain HTTP to the proxy's port: http://127.0.0.1:PORT/service/…

With `--peers` also other proxies that put a credential in, where they are installed. Their clients are told of them and
stand on the machine, in no sandbox: `mitmdump` (found by PATH, streaming, one header set), nono's own by its Python
package, as a proxy that intercepts and in reverse. Where a proxy takes one request from a connection, every request is
on a new one.

Client and server are the same programs in each; every byte crosses the same veth pair, and the server answers nobody
without the credential. All stand ready, and take turns by fractions of a second, the order changing with each round:
the machine is shared and noisy. A share is the median over the rounds of what a way did, by what the direct one did in
the same round; of CPU there are means, everything else is a median. CPU is the proxy's, with us also that of who reads
credentials.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from operator import truediv
from pathlib import Path
from typing import TYPE_CHECKING

import trustme
from bench import PYTHON, SERVER, TICKS_S, Turn, process, program
from kit.namespaces import Namespaces, enter_command, inside, listen_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST, PORT = "api.example.com", SERVER[1]
URL = f"https://{HOST}:{PORT}"
KEY = "sk-live-0123456789abcdefghijklmnop"
MITMPROXY_PORT = 9002
CLIENTS, SERVERS = 8, 4
SIZE = 200 << 20
POSTED = 2048  # bytes of a request's body: a short conversation
# Of one turn: requests, requests, requests, connections, events, bytes, bytes.
TASKS = {"requests": 300, "posts": 300, "many": 50 * CLIENTS, "connections": 60}
TASKS |= {"events": 60, "download": SIZE, "upload": SIZE}
PAUSE_S = 0.002  # between two events: each is on its way alone
SMALL = b'{"object": "list", "data": [{"id": "a-model"}, {"id": "another-model"}]}'
DEADLINE_S = 30.0

# Tells for each task how long it took; of events, how long one was on its way.
CLIENT = r"""
import base64, contextlib, json, multiprocessing, os, re, socket, ssl, statistics, struct, sys, time
from urllib.parse import urlsplit
way, clients, posted = json.loads(os.path.expandvars(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
url, proxy = urlsplit(way["url"]), urlsplit(way["proxy"])
context = ssl.create_default_context()
dial = way["dial"] or socket.getaddrinfo(url.hostname, url.port, type=socket.SOCK_STREAM)[0][4][:2]
block, buffer = bytes(1 << 20), bytearray(1 << 20)

def connect():
    s = socket.create_connection((proxy.hostname, proxy.port) if way["proxy"] else tuple(dial))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 30, 0))
    if way["proxy"]:
        login = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
        s.sendall(f"CONNECT {url.netloc} HTTP/1.1\r\nHost: {url.netloc}\r\n"
                  f"Proxy-Authorization: Basic {login}\r\n\r\n".encode())
        assert head_of(s)[0].split()[1] == b"200"
    return context.wrap_socket(s, server_hostname=url.hostname) if url.scheme == "https" else s

def gone():
    raise ConnectionError("the connection ended early")

def ask(s, path, method="GET", **more):
    fields = {"Host": url.netloc, "User-Agent": "bench", "Accept": "*/*", **way["fields"], **more}
    lines = [f"{method} {url.path}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    s.sendall("\r\n".join(lines).encode())

def head_of(s):
    got = b""
    while (end := got.find(b"\r\n\r\n")) < 0:
        got += s.recv(65536) or gone()
    return got[:end].lower(), got[end + 4:]

def answer(s):
    head, rest = head_of(s)
    assert head.split()[1] == b"200", head
    got, length = len(rest), int(re.search(rb"\ncontent-length: (\d+)", head)[1])
    while got < length:
        got += s.recv_into(buffer) or gone()
    return got

def kept():
    return connect() if way["keeps"] else contextlib.nullcontext()

def get(kept):
    with contextlib.nullcontext(kept) if kept else connect() as s:
        ask(s, "/small")
        answer(s)

def repeat(count, start):
    with kept() as s:
        get(s)
        start()
        began = time.perf_counter()
        for _ in range(count):
            get(s)
        return began, time.perf_counter()

def requests(count):
    began, ended = repeat(count, lambda: None)
    return ended - began

def posts(count):
    with kept() as kept_one:
        began = time.perf_counter()
        for _ in range(count):
            with contextlib.nullcontext(kept_one) if kept_one else connect() as s:
                ask(s, "/upload", "POST", **{"Content-Length": posted})
                s.sendall(block[:posted])
                answer(s)
        return time.perf_counter() - began

def one_of_many(count):
    return repeat(count, lambda: together.wait(30))

def many(count):
    began, ended = zip(*pool.map(one_of_many, [count // clients] * clients, chunksize=1))
    return max(ended) - min(began)

def connections(count):
    began = time.perf_counter()
    for _ in range(count):
        get(None)
    return time.perf_counter() - began

def events(count):
    taken, data = [], b""
    with connect() as s:
        ask(s, f"/events/{count}")
        while len(taken) < count:
            data += s.recv(65536) or gone()
            now = time.monotonic_ns()
            *whole, data = re.split(rb"data: (\d+)\n\n", data)
            taken += [now - int(sent) for sent in whole[1::2]]
    return statistics.median(taken) / 1e9

def download(length):
    with connect() as s:
        began = time.perf_counter()
        ask(s, f"/download/{length}")
        assert answer(s) == length
        return time.perf_counter() - began

def upload(length):
    with connect() as s:
        began = time.perf_counter()
        ask(s, "/upload", "POST", **{"Content-Length": length})
        for sent in range(0, length, len(block)):
            s.sendall(block[:length - sent])
        answer(s)
        return time.perf_counter() - began

together = multiprocessing.Barrier(clients)
with multiprocessing.Pool(clients) as pool:
    print("ready", flush=True)
    for line in sys.stdin:
        task, amount = line.split()
        print(globals()[task](int(amount)), flush=True)
"""

MITMPROXY = f"""
def requestheaders(flow):
    flow.request.headers["Authorization"] = "Bearer {KEY}"
    flow.request.stream = True

def responseheaders(flow):
    flow.response.stream = True
"""

NONO = """
import json, os, sys
from nono_py import ProxyConfig, RouteConfig, start_proxy
url, host, ca, directory = sys.argv[1:]
route = RouteConfig("api", url, credential_key="env://BENCH_KEY", env_var="API_KEY", tls_ca=ca)
many = 65536  # it keeps for a while those that have ended
proxy = start_proxy(ProxyConfig([host], [route], intercept_ca_dir=directory, max_connections=many))
print(json.dumps(proxy.env_vars() | proxy.credential_env_vars()), flush=True)
sys.stdin.read()
"""


# ------------------------------------------------------------ the server


def serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    """One of the server's processes, a thread for each connection."""
    while True:
        client, _ = listener.accept()
        threading.Thread(target=converse, args=(client, context), daemon=True).start()


def converse(client: socket.socket, context: ssl.SSLContext) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = bytearray(1 << 20)
    unread = b""
    with suppress(OSError), context.wrap_socket(client, server_side=True) as tls:
        while True:
            while (end := unread.find(b"\r\n\r\n")) < 0:
                if not (piece := tls.recv(65536)):
                    return
                unread += piece
            head, unread = unread[:end].lower(), unread[end + 4 :]
            if f"\r\nauthorization: bearer {KEY}".encode() not in head:
                tls.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
                continue
            _, task, *amount = head.split(b" ", 2)[1].split(b"/")
            if task == b"upload":
                left = int(head.partition(b"\ncontent-length: ")[2].partition(b"\r")[0]) - len(unread)
                unread = b""
                while left:
                    left -= tls.recv_into(buffer, min(left, len(buffer))) or left
            if task == b"events":
                send_events(tls, int(amount[0]))
            elif task == b"download":
                send_bytes(tls, int(amount[0]), buffer)
            else:
                tls.sendall(answer(b"application/json", len(SMALL)) + SMALL)


def answer(kind: bytes, length: int | None) -> bytes:
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nX-Request-Id: 0123456789abcdef\r\n%b\r\n\r\n" % (kind, framing)


def send_bytes(tls: ssl.SSLSocket, left: int, block: bytearray) -> None:
    tls.sendall(answer(b"application/octet-stream", left))
    while left:
        left -= tls.send(memoryview(block)[: min(left, len(block))])


def send_events(tls: ssl.SSLSocket, count: int) -> None:
    """Each says when it was sent, on the clock that all processes share."""
    tls.sendall(answer(b"text/event-stream", None))
    for _ in range(count):
        time.sleep(PAUSE_S)
        event = b"data: %d\n\n" % time.monotonic_ns()
        tls.sendall(b"%x\r\n%b\r\n" % (len(event), event))
    tls.sendall(b"0\r\n\r\n")


# ------------------------------------------------------------ the ways


@dataclass
class Way:
    """How a client gets to the server. In URL and fields, `$NAME` is a variable that the client finds or is given.

    `options`: of the sandbox it runs in; None: in none. `keeps`: connections are for more than one request. `unable`:
    what it cannot do. `relaying`: the processes to be watched.
    """

    name: str
    url: str = URL
    proxy: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    options: list[str] | None = None
    dial: tuple[str, int] | None = None
    keeps: bool = True
    unable: frozenset[str] = frozenset()
    relaying: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.turns: dict[str, list[Turn]] = {task: [] for task in TASKS if task not in self.unable}

    def start(self, enter: list[str]) -> None:
        told = json.dumps(
            {"url": self.url, "proxy": self.proxy, "fields": self.fields, "dial": self.dial, "keeps": self.keeps}
        )
        command = [PYTHON, "-c", CLIENT, told, str(CLIENTS), str(POSTED)]
        if self.options is not None:
            command = [*program(*self.options), *command]
        environment = os.environ | self.variables
        self._run = subprocess.Popen(
            [*enter, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._answer() == "ready\n", f"{self.name}: the client did not start"
        if self.options is not None:
            self.relaying = relaying_of(self._run.pid)

    def do(self, task: str, amount: int) -> Turn:
        before_s = self._cpu_s()
        assert self._run.stdin is not None
        self._run.stdin.write(f"{task} {amount}\n")
        self._run.stdin.flush()
        told = self._answer()
        assert told, f"{self.name}: the client did not get through with {task}"
        return Turn(float(told), self._cpu_s() - before_s)

    def close(self) -> None:
        with self._run:
            pass

    def _answer(self) -> str:
        assert self._run.stdout is not None
        return self._run.stdout.readline()

    def _cpu_s(self) -> float:
        """Of all threads, in the kernel or not: proc(5)."""
        found = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.relaying]
        return sum(int(fields[11]) + int(fields[12]) for fields in found) / TICKS_S


def relaying_of(supervisor: int) -> list[int]:
    """The proxy of a sandbox, and who reads credentials for it."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    ours = (b"nono_ebpf.proxy", b"nono_ebpf.broker")
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return [pid for pid, command in commands.items() if any(each in command for each in ours)]


def own_ways(directory: Path, ca: Path) -> list[Way]:
    key = directory / "secrets" / "key"
    key.parent.mkdir(mode=0o700)
    key.write_text(KEY)
    key.chmod(0o600)
    service = {"upstream": URL, "credential_key": f"file://{key}", "env_var": "API_KEY"}
    profile = directory / "profile.json"
    profile.write_text(json.dumps({"network": {"credentials": ["api"], "custom_credentials": {"api": service}}}))
    options = ["--profile", str(profile), "--upstream-ca", str(ca), "--resolve", f"{HOST}:{SERVER[0]}"]
    bearer = {"Authorization": f"Bearer {KEY}"}
    return [
        Way("direct", fields=bearer, variables={"SSL_CERT_FILE": str(ca)}, dial=(SERVER[0], PORT)),
        Way("intercepting", options=options),
        Way("reverse", url="$API_BASE_URL", fields={"Authorization": "Bearer $API_KEY"}, options=options),
    ]


# ------------------------------------------------------------ the peers


@contextmanager
def peer_ways(spaces: Namespaces, directory: Path, ca: Path) -> Iterator[list[Way]]:
    """Those that are installed."""
    hosts = directory / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{SERVER[0]} {HOST}\n")
    names = ["unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]
    enter = [*enter_command(spaces.machine), *names]
    with ExitStack() as stack:
        ways: list[Way] = []
        if (mitmdump := shutil.which("mitmdump")) is not None:
            ways.append(stack.enter_context(mitmproxy(mitmdump, spaces.machine, enter, directory, ca)))
        if importlib.util.find_spec("nono_py") is not None:
            ways += stack.enter_context(nono(enter, directory, ca))
        yield ways


@contextmanager
def mitmproxy(mitmdump: str, namespace: str, enter: list[str], directory: Path, ca: Path) -> Iterator[Way]:
    addon, own = directory / "addon.py", directory / "mitmproxy"
    addon.write_text(MITMPROXY)
    settings = {"confdir": own, "ssl_verify_upstream_trusted_ca": ca, "connection_strategy": "lazy", "http2": "false"}
    options = [option for name, value in settings.items() for option in ("--set", f"{name}={value}")]
    listen = ["--listen-host", "127.0.0.1", "--listen-port", str(MITMPROXY_PORT)]
    with subprocess.Popen([*enter, mitmdump, "-q", *listen, "-s", str(addon), *options]) as run:
        try:
            wait_for_listener(namespace, MITMPROXY_PORT)
            trusting = {"SSL_CERT_FILE": str(own / "mitmproxy-ca-cert.pem")}
            at = f"http://127.0.0.1:{MITMPROXY_PORT}"
            yield Way("mitmproxy", proxy=at, variables=trusting, dial=(SERVER[0], PORT), relaying=[run.pid])
        finally:
            run.terminate()


def wait_for_listener(namespace: str, port: int) -> None:
    due = time.monotonic() + DEADLINE_S
    while True:
        try:
            inside(namespace, lambda: socket.create_connection(("127.0.0.1", port)).close())
        except ConnectionRefusedError:
            if time.monotonic() > due:
                raise
            time.sleep(0.1)
        else:
            return


@contextmanager
def nono(enter: list[str], directory: Path, ca: Path) -> Iterator[list[Way]]:
    own = directory / "nono"
    own.mkdir(mode=0o700)
    command = [sys.executable, "-c", NONO, URL, HOST, str(ca), str(own)]
    environment = os.environ | {"BENCH_KEY": KEY}
    with subprocess.Popen(
        [*enter, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as run:
        assert run.stdout is not None
        told = json.loads(run.stdout.readline())
        trusting = {"SSL_CERT_FILE": told["SSL_CERT_FILE"]}
        phantom = {"Authorization": f"Bearer {told['API_KEY']}"}
        # Version 0.16 takes one request from a connection, and bodies of 16 MiB at most.
        ways = [
            Way("nono", proxy=told["HTTPS_PROXY"], variables=trusting, dial=(SERVER[0], PORT)),
            Way("nono, reverse", url=told["API_BASE_URL"], fields=phantom),
        ]
        yield [replace(each, keeps=False, unable=frozenset({"posts", "upload"}), relaying=[run.pid]) for each in ways]


# ------------------------------------------------------------ the run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--peers", action="store_true", help="measure other proxies too, those that are installed")
    options = parser.parse_args()
    os.environ.pop("SUDO_UID", None)  # the sandboxes are root's own
    spaces = Namespaces()
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            root, ca = trustme.CA(), directory / "ca.pem"
            root.cert_pem.write_to_path(str(ca))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            root.issue_cert(HOST).configure_cert(context)
            listener = listen_stream(spaces.world, PORT)
            for _ in range(SERVERS):
                stack.enter_context(process(lambda: serve(listener, context)))
            ways = own_ways(directory, ca)
            if options.peers:
                ways += stack.enter_context(peer_ways(spaces, directory, ca))
            for way in ways:
                way.start(enter_command(spaces.machine))
                stack.callback(way.close)
            measure(ways, options.rounds)
    finally:
        spaces.close()
    show(ways)


def measure(ways: list[Way], rounds: int) -> None:
    for way in ways:
        for task in way.turns:
            way.do(task, TASKS[task] // 4)
    for number in range(rounds):
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
        first = number % len(ways)
        for task, amount in TASKS.items():
            for way in (*ways[first:], *ways[:first]):
                if task in way.turns:
                    way.turns[task].append(way.do(task, amount))


def show(ways: list[Way]) -> None:
    print("| | " + " | ".join(way.name for way in ways) + " |\n|---|" + "---|" * len(ways))
    for task, name, unit, scale in (
        ("requests", "requests/s, one connection", "", 1),
        ("posts", f"the same with {POSTED >> 10} KiB each", "", 1),
        ("many", f"requests/s, {CLIENTS} connections", "", 1),
        ("connections", "requests/s, each on a new connection", "", 1),
        ("download", f"download of {SIZE >> 20} MiB", " MB/s", 1e6),
        ("upload", f"upload of {SIZE >> 20} MiB", " MB/s", 1e6),
    ):
        row(name, [speed(way, ways[0], task, unit, scale) for way in ways])
    late = [statistics.median(turn.wall_s for turn in way.turns["events"]) for way in ways]
    row("an event of a stream, on its way", [f"{each * 1e6:,.0f} µs" for each in late])
    for task, name, scale in (
        ("requests", "CPU, µs per request, one connection", 1e6),
        ("posts", f"the same with {POSTED >> 10} KiB each", 1e6),
        ("many", f"CPU, µs per request, {CLIENTS} connections", 1e6),
        ("connections", "CPU, µs per request on a new connection", 1e6),
        ("download", "CPU, ms per GB downloaded", 1e12),
        ("upload", "CPU, ms per GB uploaded", 1e12),
    ):
        row(name, [used(way, task, scale) for way in ways])


def speed(way: Way, direct: Way, task: str, unit: str, scale: float) -> str:
    if task not in way.turns:
        return ""
    speeds, at_best = ([TASKS[task] / turn.wall_s for turn in each.turns[task]] for each in (way, direct))
    share = statistics.median(map(truediv, speeds, at_best))
    return f"{statistics.median(speeds) / scale:,.0f}{unit} ({share:.0%})"


def used(way: Way, task: str, scale: float) -> str:
    if not way.relaying or task not in way.turns:
        return ""
    return f"{statistics.mean(turn.cpu_s for turn in way.turns[task]) / TASKS[task] * scale:,.0f}"


def row(name: str, cells: list[str]) -> None:
    print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
