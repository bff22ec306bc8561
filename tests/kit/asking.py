"""Requests over TLS by code that runs in a sandbox (`kit.agent`), which knows of no proxy. Standard library only."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from typing import Any

TIMEOUT_S = 180


def get(host: str, target: str) -> dict[str, Any]:
    """The response to a GET that shows no credential."""
    connection = http.client.HTTPSConnection(host, timeout=TIMEOUT_S)
    connection.request("GET", target)
    response = connection.getresponse()
    answer = {"status": response.status, "fields": dict(response.headers), "body": response.read().decode()}
    connection.close()
    return answer


def many(host: str, connections: int, seconds: float, at_least: int) -> list[list[Any]]:
    """Ask for /rotate/CONNECTION-NUMBER, on each connection one after the other, for so long and so often at least.

    Returns [CONNECTION-NUMBER, when it was sent, the status] of each request; times are the monotonic clock's.
    """
    told: list[list[Any]] = []
    end = time.monotonic() + seconds
    each = -(-at_least // connections)

    def ask(connection: int) -> None:
        number = 0
        with _connect(host) as stream:
            while number < each or time.monotonic() < end:
                name = f"{connection}-{number}"
                sent_ns = time.monotonic_ns()
                stream.sendall(f"GET /rotate/{name} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                told.append([name, sent_ns, _status(stream)])
                number += 1

    threads = [threading.Thread(target=ask, args=(connection,)) for connection in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def _connect(host: str) -> ssl.SSLSocket:
    plain = socket.create_connection((host, 443), TIMEOUT_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host)


def _status(stream: ssl.SSLSocket) -> int:
    """Of a response with a body whose length is told, which is read."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(stream)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(lines[b"content-length"]):
        body += _more(stream)
    return int(head.split()[1])


def _more(stream: ssl.SSLSocket) -> bytes:
    if data := stream.recv(65536):
        return data
    raise ConnectionError("the connection ended")
