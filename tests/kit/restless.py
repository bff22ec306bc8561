"""What runs in the sandbox while it is shot at: several processes that try every way out, over and over.

`restless.py ALLOWED_NAME ALLOWED_PORT DENIED_NAME DENIED_V4 DENIED_V6 TCP_PORT UDP_PORT DNS_V4`. Prints "ready"
once each way has been tried, then a line `tried BEGUN ENDED OUTCOME` (CLOCK_MONOTONIC, ns) for each of the witness's
connections to the allowed host, `asked BEGUN ENDED OUTCOME` for each of its queries, and `escaped WAY` for a socket
or datagram that should not have been.

`restless.py ALLOWED_NAME ALLOWED_PORT` tries once, after a SIGUSR1. Standard library only.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 90
ANSWER_PATIENCE_S = 2
PAUSE_S = 0.004
SECRET = b"GET /secret HTTP/1.0\r\nHost: secret\r\n\r\n"


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())  # one write: lines of several processes do not mix


def converse(address: str, port: int, request: bytes) -> bytes:
    with socket.create_connection((address, port), PATIENCE_S) as stream:
        stream.sendall(request)
        reply = b""
        while data := stream.recv(65536):
            reply += data
    return reply


def try_host(name: str, port: int) -> None:
    with suppress(OSError):
        address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][4][0]
        converse(str(address), port, f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())


def try_address(address: str, port: int) -> None:
    with suppress(OSError):
        converse(address, port, SECRET)


def refused(way: str, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except OSError:
        return
    say(f"escaped {way}")


def try_datagrams(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        refused(f"sendto {address}", lambda: sender.sendto(b"secret", (address, port)))
        refused(f"connect udp {address}", lambda: sender.connect((address, port)))


def query_for(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def try_query(name: str, server: str) -> None:
    """A denied name put to the world's own server, which must not hear of it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker, suppress(OSError):
        asker.settimeout(0.2)
        asker.sendto(query_for(name), (server, 53))
        asker.recv(512)


def try_sockets() -> None:
    for family, kind, protocol in (
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
        (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
        (socket.AF_INET, socket.SOCK_DGRAM, 136),  # UDP-Lite, RFC 3828
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP),
        (socket.AF_PACKET, socket.SOCK_RAW, 0x300),
        (socket.AF_PACKET, socket.SOCK_DGRAM, 0x300),
    ):
        refused(f"socket {family}/{kind}/{protocol}", partial(socket.socket, family, kind, protocol))


def forever(ways: list[Callable[[], None]], started: int) -> None:
    """A process of its own that tries `ways` in turn; one byte to `started` when each has been tried."""
    if os.fork():
        return
    first = True
    while True:
        for way in ways:
            way()
            time.sleep(PAUSE_S)
        if first:
            os.write(started, b".")
            first = False


def witness(address: str, port: int, name: str, server: str) -> None:
    while True:
        for what, attempt in (
            ("tried", lambda: converse(address, port, f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())),
            ("asked", lambda: ask(name, server)),
        ):
            begun = time.monotonic_ns()
            outcome = outcome_of(attempt)
            say(f"{what} {begun} {time.monotonic_ns()} {outcome}")
        time.sleep(PAUSE_S)


def ask(name: str, server: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(ANSWER_PATIENCE_S)
        asker.connect((server, 53))
        asker.send(query_for(name))
        return asker.recv(512)


def outcome_of(attempt: Callable[[], bytes]) -> str:
    try:
        reply = attempt()
    except ConnectionRefusedError:
        return "refused"
    except (ConnectionResetError, BrokenPipeError):
        return "cut"
    except OSError as error:
        return type(error).__name__
    return "served" if reply else "cut"


def once(name: str, port: int) -> None:
    address = str(socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    say("ready")
    signal.sigwait([signal.SIGUSR1])
    say(outcome_of(lambda: converse(address, port, b"GET / HTTP/1.0\r\n\r\n")))


def main() -> None:
    if len(sys.argv) == 3:
        once(sys.argv[1], int(sys.argv[2]))
        return
    name, port_text, denied, denied_v4, denied_v6, tcp_text, udp_text, dns_server = sys.argv[1:]
    port, tcp, udp = int(port_text), int(tcp_text), int(udp_text)
    address = str(socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    ways: list[list[Callable[[], None]]] = [
        [lambda: try_host(name, port)],
        [lambda: try_host(name, port), lambda: try_host(denied, port)],
        [
            lambda: try_address(denied_v4, tcp),
            lambda: try_address(denied_v6, tcp),
            lambda: try_address(denied_v4, port),
        ],
        [
            lambda: try_datagrams(denied_v4, udp),
            lambda: try_datagrams(denied_v6, udp),
            lambda: try_query(denied, dns_server),
        ],
        [try_sockets],
    ]
    reading, started = os.pipe()
    for each in ways:
        forever(each, started)
    for _ in ways:
        os.read(reading, 1)
    say("ready")
    witness(address, port, name, dns_server)


if __name__ == "__main__":
    main()
