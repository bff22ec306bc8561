"""Clients of `kit.origins` that run in a sandbox (`kit.agent`) and know of no proxy. Standard library only."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import subprocess
from typing import Any

TIMEOUT_S = 90
AGENT = {"User-Agent": "kit"}
PIECE = b"0123456789abcde\n" * 4096


def curl(*arguments: str) -> list[Any]:
    """How curl(1) ends: its exit status, what it printed, what it complained of."""
    environment = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    command = ["curl", "-sS", "--max-time", str(TIMEOUT_S), *arguments]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    return [done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1")]


def asked(host: str, requests: list[list[Any]]) -> list[list[Any]]:
    """[status, fields, body] of the response to each [method, target, fields, body], on one connection.

    Names of fields are in lower case.
    """
    connection = http.client.HTTPSConnection(host, timeout=TIMEOUT_S)
    told = []
    for method, target, fields, body in requests:
        connection.request(method, target, None if body is None else body.encode(), AGENT | fields)
        response = connection.getresponse()
        lowered = {name.lower(): value for name, value in response.headers.items()}
        told.append([response.status, lowered, response.read().decode("latin-1")])
    connection.close()
    return told


def digest(host: str, target: str) -> list[Any]:
    """The status, length and SHA-256 of a response."""
    connection = http.client.HTTPSConnection(host, timeout=TIMEOUT_S)
    connection.request("GET", target, headers=AGENT)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return [response.status, len(body), hashlib.sha256(body).hexdigest()]


def upload(host: str, target: str, pieces: int, chunked: int) -> list[Any]:
    """The status and the body of the response to so many of PIECE."""
    connection = http.client.HTTPSConnection(host, timeout=TIMEOUT_S)
    fields = {} if chunked else {"Content-Length": str(pieces * len(PIECE))}
    connection.request("POST", target, (PIECE for _ in range(pieces)), AGENT | fields, encode_chunked=chunked)
    response = connection.getresponse()
    told = [response.status, response.read().decode("latin-1")]
    connection.close()
    return told


def events(host: str, name: str) -> str:
    """An event stream, whose second event comes when it is told, on another connection, that the first was read."""
    connection = http.client.HTTPSConnection(host, timeout=TIMEOUT_S)
    connection.request("GET", f"/v1/app/events?{name}", headers=AGENT)
    response = connection.getresponse()
    read = b""
    while not read.endswith(b"\n\n"):
        read += response.read1(1)
    other = http.client.HTTPSConnection(host, timeout=TIMEOUT_S)
    other.request("GET", f"/v1/app/go-on?{name}", headers=AGENT)
    other.getresponse().read()
    return (read + response.read()).decode()


def spelled(host: str, targets: list[str], agent: str, address: str = "", ca: str = "") -> list[list[Any]]:
    """[status, areas, body] for each target of a GET by `agent`, sent as it is; 0 where the connection ended instead.

    `address` and `ca`: where the host is and by whom it is certified, if not as the sandbox has it.
    """
    context = ssl.create_default_context(cafile=ca or None)
    told, stream = [], None
    for target in targets:
        stream = stream or _connected(host, address, context)
        stream.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\n\r\n".encode("latin-1"))
        try:
            response = http.client.HTTPResponse(stream, method="GET")
            response.begin()
            areas = [each for value in response.headers.get_all("X-Area", []) for each in value.split(",")]
            told.append([response.status, areas, response.read().decode("latin-1")])
            again = not response.will_close
        except (OSError, http.client.HTTPException) as error:
            told.append([0, [], repr(error)])
            again = False
        if not again:
            stream.close()
            stream = None
    if stream is not None:
        stream.close()
    return told


def _connected(host: str, address: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection((address or host, 443), TIMEOUT_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(plain, server_hostname=host)


def refused_early(host: str, target: str, size: int) -> str:
    """What comes back to a POST by a client that reads only when it has sent all of the body."""
    with _connected(host, "", ssl.create_default_context()) as stream:
        head = f"POST {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kit\r\nContent-Length: {size}\r\n\r\n"
        stream.sendall(head.encode())
        try:
            for _ in range(0, size, len(PIECE)):
                stream.sendall(PIECE)
            return stream.recv(65536).decode("latin-1")
        except OSError as error:
            return repr(error)
