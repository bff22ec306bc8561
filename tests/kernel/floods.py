"""What test_floods.py runs inside a sandbox: a flood in processes of its own, and beside it a client that behaves.

`floods.py KIND REQUESTS`. The flood goes on from before the client's first request until after its last one. Printed is
what the client got, as JSON. At the very end a connection to the echo service tells the test that it may measure.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GOOD, VICTIM, WILD, ECHO = "one.example.com", "two.example.com", "example.com", "echo.example.com"
RESOLVER = ("192.0.2.53", 53)  # any address: the hooks lead every question to the sandbox's own
HELD, FORKS = 5000, 50
SLOW = 1000
UNREAD, UNREAD_BYTES = 64, 4 << 20
RESOLVER_TRIES = 10
MANY_QUESTIONS = 10_000
PAUSE_S, AT_ONCE = 0.1, 64  # the flood leaves the machine itself some time
PATIENCE_S = 120
BUILD_UP_S = 400  # the flood's own work, which says nothing about the others
URL = urlsplit(os.environ.get("http_proxy", "http://127.0.0.1:0"))
PROXY = ("127.0.0.1", URL.port or 0)
AUTHORIZED = f"Proxy-Authorization: Bearer {URL.password}\r\n"
HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(512)
_STANDS = os.pipe()


def stands() -> None:
    """The flood is what it is to be: the client may begin."""
    os.write(_STANDS[1], b".")


def wait_until_it_stands() -> None:
    """Return when `stands` has been called by one of the flood's processes."""
    assert select.select([_STANDS[0]], [], [], BUILD_UP_S)[0], f"no flood after {BUILD_UP_S} s"


def connecting(to: tuple[str, int]) -> socket.socket:
    """A connection under way."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(to)
    return sock


class Held:
    """Connections that are opened again whenever they are ended; `talk` is called with each now and then.

    The flood stands once `talk` has been, or, where there is to be no room for all of them (`crowd`), one was ended.
    """

    def __init__(
        self,
        count: int,
        to: tuple[str, int],
        talk: Callable[[socket.socket, int], object] | None = None,
        *,
        crowd: bool = False,
    ) -> None:
        self._to, self._talk, self._crowd = to, talk, crowd
        self._poll = select.epoll()
        self._open: dict[int, tuple[socket.socket, int]] = {}
        for _ in range(count):
            self._one_more()

    def _one_more(self) -> None:
        sock = connecting(self._to)
        self._open[sock.fileno()] = (sock, 0)
        self._poll.register(sock.fileno(), select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)

    def go_on(self) -> None:
        stood = False
        while True:
            time.sleep(PAUSE_S)
            ended = self._poll.poll(0, AT_ONCE)
            for fd, _ in ended:
                self._open.pop(fd)[0].close()
                self._one_more()
            for fd, (sock, turn) in list(self._open.items()) if self._talk else ():
                try:
                    self._talk(sock, turn)
                    self._open[fd] = sock, turn + 1
                except OSError:
                    continue
            if not stood and (ended or not self._crowd):
                stood = True
                stands()


def once(request: str) -> Callable[[socket.socket, int], object]:
    """Says `request`, then nothing any more."""
    return lambda sock, turn: turn or sock.send(request.encode())


def idle(victim: str) -> None:
    Held(HELD, (victim, 80), crowd=True).go_on()


def idle_processes(victim: str) -> None:
    """The same number, but no process has more than a hundred."""
    for _ in range(FORKS - 1):
        if os.fork() == 0:
            break
    Held(HELD // FORKS, (victim, 80), crowd=True).go_on()


def idle_clients_of_the_proxy(_: str) -> None:
    Held(HELD, PROXY, crowd=True).go_on()


def idle_tunnels(_: str) -> None:
    """Connections to the proxy itself, each with an answer before it falls silent."""
    Held(HELD, PROXY, once(f"CONNECT {VICTIM}:80 HTTP/1.1\r\nHost: {VICTIM}\r\n{AUTHORIZED}\r\n"), crowd=True).go_on()


def half_handshakes(_: str) -> None:
    """SOCKS5 clients with a list of methods that goes on and on; they wait for the password next."""
    Held(SLOW, PROXY, lambda sock, turn: sock.send(b"\2" if turn else b"\5\xff")).go_on()


def slow_heads(victim: str) -> None:
    Held(SLOW, (victim, 80), lambda sock, turn: sock.send(b"x" if turn else b"GET / HTTP/1.1\r\nX: ")).go_on()


def slow_hellos(victim: str) -> None:
    Held(SLOW, (victim, 443), lambda sock, turn: sock.send(HELLO[turn : turn + 1])).go_on()


def unread(victim: str) -> None:
    Held(UNREAD, (victim, 80), once(f"GET /bytes/{UNREAD_BYTES} HTTP/1.1\r\nHost: {VICTIM}\r\n\r\n")).go_on()


def question(name: str) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return random.randbytes(2) + b"\x01\0\0\x01\0\0\0\0\0\0" + labels + b"\0\0\x01\0\x01"


def datagrams(_: str) -> None:
    """Questions for names that were never asked for, for one that is known, and what is no question."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stood = False
    for turn in itertools.count():
        for wire in (question(f"{random.randbytes(8).hex()}.{WILD}"), question(VICTIM), random.randbytes(40)):
            sock.sendto(wire, RESOLVER)
        if not stood and turn >= MANY_QUESTIONS and was_rationed(sock):
            stood = True
            stands()


def was_rationed(sock: socket.socket) -> bool:
    """Whether an answer says that there were too many names (SERVFAIL, RFC 1035 §4.1.1)."""
    with suppress(BlockingIOError):
        while answer := sock.recv(512, socket.MSG_DONTWAIT):
            if answer[3] & 15 == 2:
                return True
    return False


def dns_connections(_: str) -> None:
    """Held open with half a question."""
    held = []
    for _ in range(2000):
        sock = socket.create_connection(RESOLVER)
        sock.send(b"\0")
        held.append(sock)
    stands()
    signal.pause()


def requests(count: int, kept: socket.socket) -> Iterator[float]:
    """The seconds that each of so many requests took, name and connection included; `kept` is used beside them."""
    for _ in range(count):
        assert get(kept) == b"200"
        began = time.monotonic()
        with socket.create_connection((resolved(GOOD), 80), timeout=PATIENCE_S) as sock:
            assert get(sock) == b"200"
        yield time.monotonic() - began


def resolved(name: str) -> str:
    """An address of `name`, asked for again when no answer comes, as resolvers do."""
    for _ in range(RESOLVER_TRIES - 1):
        try:
            return socket.gethostbyname(name)
        except socket.gaierror:
            continue
    return socket.gethostbyname(name)


def get(sock: socket.socket) -> bytes:
    sock.sendall(f"GET / HTTP/1.1\r\nHost: {GOOD}\r\nConnection: keep-alive\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"}"):
        more = sock.recv(65536)
        assert more, answer
        answer += more
    return answer.split()[1]


def main() -> None:
    kind, count = sys.argv[1], int(sys.argv[2])
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    victim = socket.gethostbyname(VICTIM)
    kept = socket.create_connection((GOOD, 80), timeout=PATIENCE_S)
    assert get(kept) == b"200"
    flood = os.fork()
    if flood == 0:
        os.setpgid(0, 0)
        globals()[kind](victim)
    wait_until_it_stands()
    took = sorted(requests(count, kept))
    print(json.dumps(took))
    sys.stdout.flush()
    with socket.create_connection((resolved(ECHO), 7), timeout=PATIENCE_S) as sock:
        sock.sendall(b"measure")
        sock.shutdown(socket.SHUT_WR)
        sock.recv(16)
    os.killpg(flood, signal.SIGKILL)


main()
