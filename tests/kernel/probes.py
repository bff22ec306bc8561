"""What runs inside the sandbox: `probes.py KIND ARGUMENT…` prints what it met as one JSON object.

A stream probe connects in its own way to ADDRESS PORT, sends PAYLOAD, ends its half and reports the reply and
the peer's address, or `error` and `at`. Standard library only; each KIND is a function below.
"""

from __future__ import annotations

import ctypes
import errno
import json
import select
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Report = dict[str, Any]
IPPROTO_MPTCP = 262
MSG_FASTOPEN = 0x20000000
TCP_FASTOPEN_CONNECT = 30
AF_UNSPEC_ADDRESS = struct.pack("=H14x", socket.AF_UNSPEC)
DEADLINE_S = 90
KINDS: dict[str, Callable[..., Report]] = {}


def kind(probe: Callable[..., Report]) -> Callable[..., Report]:
    """Make `probe` a KIND."""
    KINDS[probe.__name__] = probe
    return probe


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def open_stream(address: str, protocol: int = 0) -> socket.socket:
    opened = socket.socket(family_of(address), socket.SOCK_STREAM, protocol)
    opened.settimeout(DEADLINE_S)
    return opened


def converse(stream: socket.socket, payload: str) -> Report:
    """Send `payload` (unless it went with the SYN), end our half, read to the end of the other."""
    stream.setblocking(True)
    stream.settimeout(DEADLINE_S)
    peer = stream.getpeername()[:2]
    stream.sendall(payload.encode())
    stream.shutdown(socket.SHUT_WR)
    reply = b""
    while data := stream.recv(65536):
        reply += data
    return {"peer": peer, "local": stream.getsockname()[:2], "reply": reply.decode().strip()}


@kind
def plain(address: str, port: int, payload: str) -> Report:
    with open_stream(address) as stream:
        stream.connect((address, port))
        return converse(stream, payload)


@kind
def mapped(address: str, port: int, payload: str) -> Report:
    return plain(f"::ffff:{address}", port, payload)


@kind
def v6only(address: str, port: int, payload: str) -> Report:
    with open_stream(address) as stream:
        stream.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        stream.connect((address, port))
        return converse(stream, payload)


def _bound(source: str, address: str, port: int, payload: str) -> Report:
    with open_stream(address) as stream:
        stream.bind((source, 0))
        stream.connect((address, port))
        return converse(stream, payload)


@kind
def bound_any(address: str, port: int, payload: str) -> Report:
    return _bound("::" if ":" in address else "0.0.0.0", address, port, payload)


@kind
def bound_loopback(address: str, port: int, payload: str) -> Report:
    return _bound("::1" if ":" in address else "127.0.0.1", address, port, payload)


@kind
def nonblocking(address: str, port: int, payload: str) -> Report:
    with open_stream(address) as stream:
        stream.setblocking(False)
        result = stream.connect_ex((address, port))
        if result not in (0, errno.EINPROGRESS):
            raise OSError(result, "connect")
        select.select([], [stream], [], DEADLINE_S)
        if failed := stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(failed, "connect")
        return converse(stream, payload)


@kind
def fastopen_sendto(address: str, port: int, payload: str) -> Report:
    with open_stream(address) as stream:
        stream.setblocking(True)  # or sendto would report EINPROGRESS
        stream.sendto(payload.encode(), MSG_FASTOPEN, (address, port))
        return converse(stream, "")


@kind
def fastopen_connect(address: str, port: int, payload: str) -> Report:
    with open_stream(address) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        stream.connect((address, port))
        stream.sendall(payload.encode())
        return converse(stream, "")


@kind
def mptcp(address: str, port: int, payload: str) -> Report:
    with open_stream(address, IPPROTO_MPTCP) as stream:
        stream.connect((address, port))
        return converse(stream, payload)


@kind
def mptcp_mapped(address: str, port: int, payload: str) -> Report:
    return mptcp(f"::ffff:{address}", port, payload)


@kind
def mptcp_fastopen(address: str, port: int, payload: str) -> Report:
    with open_stream(address, IPPROTO_MPTCP) as stream:
        stream.setblocking(True)  # or sendto would report EINPROGRESS
        stream.sendto(payload.encode(), MSG_FASTOPEN, (address, port))
        return converse(stream, "")


@kind
def reconnected(address: str, port: int, payload: str) -> Report:
    """First to a listener inside the sandbox, then dissolved (AF_UNSPEC, connect(2)), then out."""
    inside = "::1" if ":" in address else "127.0.0.1"
    with (
        socket.create_server((inside, 0), family=family_of(address)) as server,
        open_stream(address) as stream,
    ):
        stream.connect(server.getsockname())
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.connect(stream.fileno(), AF_UNSPEC_ADDRESS, len(AF_UNSPEC_ADDRESS)):
            raise OSError(ctypes.get_errno(), "AF_UNSPEC")
        stream.connect((address, port))
        return converse(stream, payload)


@kind
def held(address: str, port: int, payload: str) -> Report:
    """A connection whose reply is awaited, so that the process can be looked at meanwhile."""
    with open_stream(address) as stream:
        stream.connect((address, port))
        stream.sendall(payload.encode())
        return {"reply": stream.recv(100).decode()}


@kind
def equal_ports(first: str, second: str, port: int, payload: str) -> Report:
    """Two connections at a time whose sources differ in the address only: 127.0.0.2:P and 127.0.0.3:P."""
    with open_stream(first) as one, open_stream(second) as two:
        one.bind(("127.0.0.2", 0))
        two.bind(("127.0.0.3", one.getsockname()[1]))
        one.connect((first, port))
        two.connect((second, port))
        return {"first": converse(one, payload), "second": converse(two, payload + payload)}


@kind
def dns_datagrams(address: str, query: str) -> Report:
    """Ask ADDRESS port 53 over UDP with sendto and with connect: who seems to answer?"""
    packet = bytes.fromhex(query)
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as free:
        free.settimeout(DEADLINE_S)
        free.sendto(packet, (address, 53))
        answer, sender = free.recvfrom(4096)
        free.sendto(packet, (address, 53))
        by_message = free.recvmsg(4096)[3]
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as fixed:
        fixed.settimeout(DEADLINE_S)
        fixed.connect((address, 53))
        fixed.send(packet)
        fixed.recv(4096)
        peer = fixed.getpeername()
    return {
        "recvfrom": sender[:2],
        "recvmsg": by_message[:2],
        "getpeername": peer[:2],
        "answer": answer.hex(),
    }


@kind
def dns_stream(address: str, query: str) -> Report:
    """Ask ADDRESS port 53 over TCP (RFC 7766)."""
    packet = bytes.fromhex(query)
    with open_stream(address) as stream:
        stream.connect((address, 53))
        stream.sendall(len(packet).to_bytes(2, "big") + packet)
        reader = stream.makefile("rb")
        answer = reader.read(int.from_bytes(reader.read(2), "big"))
        return {"getpeername": stream.getpeername()[:2], "answer": answer.hex()}


def _errno_of(action: Callable[..., object], *arguments: object) -> str | None:
    try:
        action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


@kind
def datagrams(port: int, *addresses: str) -> Report:
    """Send to and connect to each address over UDP: by what error is it refused?"""
    report = {}
    for address in addresses:
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as opened:
            sent = _errno_of(opened.sendto, b"leak", (address, port))
            connected = _errno_of(opened.connect, (address, port))
        report[address] = [sent, connected]
    return report


def _open_and_close(*numbers: int) -> None:
    socket.socket(*numbers).close()


@kind
def sockets(wanted: str) -> Report:
    """Open each [family, type, protocol] of the JSON list: by what error is it refused?"""
    report: Report = {}
    for name, numbers in json.loads(wanted).items():
        report[name] = _errno_of(_open_and_close, *numbers)
    return report


def _echo_stream(address: str) -> Report:
    server = socket.create_server((address, 0), family=family_of(address))
    with server, socket.create_connection(server.getsockname()[:2], DEADLINE_S) as client:
        accepted, source = server.accept()
        with accepted:
            client.sendall(b"inside")
            received = accepted.recv(100).decode()
            same = client.getpeername() == server.getsockname() and source == client.getsockname()
    return {"received": received, "true_addresses": same}


def _echo_datagram(address: str) -> Report:
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as server:
        server.bind((address, 0))
        server.settimeout(DEADLINE_S)
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as client:
            client.settimeout(DEADLINE_S)
            client.sendto(b"inside", server.getsockname())
            received, source = server.recvfrom(100)
            server.sendto(b"back", source)
            back, answered_by = client.recvfrom(100)
        same = answered_by == server.getsockname()
    return {"received": f"{received.decode()} {back.decode()}", "true_addresses": same}


@kind
def loopback(*addresses: str) -> Report:
    """A server and a client of the sandbox's own on each loopback address, over TCP and UDP."""
    return {address: {"tcp": _echo_stream(address), "udp": _echo_datagram(address)} for address in addresses}


def main() -> None:
    probe, *arguments = sys.argv[1:]
    Path("/proc/self/comm").write_text(f"probe-{probe}"[:15])
    try:
        report = KINDS[probe](*(int(each) if each.isdigit() and len(each) < 6 else each for each in arguments))
    except OSError as error:
        report = {"error": errno.errorcode.get(error.errno or 0, type(error).__name__), "at": str(error)}
    print(json.dumps(report))


main()
