"""Requests to the proxy and to redirected servers, byte by byte as an attacker would write them."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attacks.base import PATIENCE_S, say, shown


@cache
def proxy() -> tuple[str, int]:
    """Where the proxy listens, from the variables that every client gets."""
    url = urlsplit(os.environ["HTTP_PROXY"])
    return url.hostname or "", url.port or 0


def read_all(opened: Any) -> str:
    got = b""
    try:
        while data := opened.recv(65536):
            got += data
    except OSError as error:
        return got.decode("latin-1") or errno.errorcode.get(error.errno or 0, type(error).__name__)
    return got.decode("latin-1")


def spoken(target: tuple[str, int], pieces: list[str]) -> str:
    """What comes back for these bytes, sent in pieces; our half is ended behind them."""
    try:
        with socket.create_connection(target, PATIENCE_S) as opened:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            was_reset = say(opened, *(piece.encode("latin-1") for piece in pieces))
            return read_all(opened) or ("ECONNRESET" if was_reset else "")
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)


def to_proxy(requests: list[list[str]]) -> list[str]:
    """The proxy's answer to each request (its pieces)."""
    return [spoken(proxy(), [shown(piece) for piece in pieces]) for pieces in requests]


def to_server(host: str, port: int, requests: list[list[str]]) -> list[str]:
    """The redirected answer of a server, found by name, to each request."""
    return [spoken((host, port), pieces) for pieces in requests]


def in_hex(host: str, port: int, messages: list[str]) -> list[str]:
    """As `to_server`, for bytes in hex."""
    return [spoken((host, port), [bytes.fromhex(message).decode("latin-1")]) for message in messages]


def hex_pieces(host: str, port: int, pieces: list[str]) -> str:
    """One message in several writes."""
    return spoken((host, port), [bytes.fromhex(piece).decode("latin-1") for piece in pieces])


def over_tls(address: str, port: int, server_name: str | None, request: str) -> str:
    """A request over TLS to an address, with a server name of our choice; the certificate is not looked at."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, port), PATIENCE_S) as opened,
            context.wrap_socket(opened, server_hostname=server_name) as secure,
        ):
            with suppress(ConnectionError):  # what was answered before can be read
                secure.sendall(request.encode("latin-1"))
            return read_all(secure)
    except ssl.SSLError as error:
        return f"TLS: {error.reason}"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)


def resolved(names: list[str]) -> dict[str, str]:
    """The address of each name, or no."""
    found = {}
    for name in names:
        try:
            found[name] = str(socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)[0][4][0])
        except (socket.gaierror, UnicodeError) as error:
            found[name] = f"no address: {error}"
    return found


def variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "proxy" in name.lower()}


def opened(paths: list[str]) -> dict[str, str]:
    """What each file gives when it is read, or why it does not."""
    met = {}
    for path in paths:
        try:
            with Path(path).open("rb") as file:
                met[path] = file.read(100).decode("latin-1")
        except OSError as error:
            met[path] = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return met
