"""Confines itself with nono's Python package, in the way argv names, then tries hosts, ports and files; prints JSON.

argv: the way, a path that only the confinement refuses, and host:port… to talk to, each both straight and through the
proxy of HTTP_PROXY. What is tried ends in "reached", an error's name, or the proxy's status.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nono_py import (
    AccessMode,
    CapabilitySet,
    ProxyConfig,
    apply,
    apply_external,
    apply_landlock,
    apply_seccomp,
    sandboxed_exec,
    start_proxy,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 90
ECHO_PORT = 7
NEEDED = ("/usr", "/lib", "/lib64", "/etc", sys.prefix, str(Path(__file__).parent))


def files() -> CapabilitySet:
    """What a Python program reads, and no more."""
    capabilities = CapabilitySet()
    for path in NEEDED:
        if Path(path).exists():
            capabilities.allow_path(path, AccessMode.READ)
    return capabilities


def one_port() -> CapabilitySet:
    """That, and connections to one port of whatever host."""
    capabilities = files()
    capabilities.allow_tcp_connect_port(ECHO_PORT)
    return capabilities


def proxy_alone() -> CapabilitySet:
    """That, and no connection but to the port that HTTP_PROXY names."""
    capabilities = files()
    capabilities.block_network()
    capabilities.allow_localhost_port(urlsplit(os.environ["HTTP_PROXY"]).port or 0)
    return capabilities


WAYS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "landlock": lambda: apply_landlock(one_port()),
    "auto": lambda: apply(one_port()),
    "seccomp": lambda: apply_seccomp(proxy_alone()),
    "seccomp-external": lambda: apply_seccomp(files(), external_tcp=True),
    "external": apply_external,
    "proxy-alone": lambda: apply(proxy_alone()),
}


def told(attempt: Callable[[], str]) -> str:
    """What came of it."""
    try:
        return attempt()
    except socket.gaierror as error:
        return error.strerror or "gaierror"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)


def talk(connection: socket.socket) -> str:
    """Say all there is to say, and hear something; also that we were reset, which may come before we have ended."""
    connection.sendall(b"nono")
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
    return "reached" if connection.recv(100) else "ended"


def straight(host: str, port: int) -> str:
    """As a client that knows of no proxy."""
    with socket.create_connection((host, port), DEADLINE_S) as connection:
        return talk(connection)


def through_proxy(host: str, port: int) -> str:
    """By CONNECT, with the credentials of HTTP_PROXY."""
    proxy = urlsplit(os.environ["HTTP_PROXY"])
    login = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
    with socket.create_connection((proxy.hostname or "", proxy.port or 0), DEADLINE_S) as connection:
        target = f"{host}:{port}"
        head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic {login}\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(4096)
        status = answer.split()[1].decode() if answer else "ended"
        return talk(connection) if status == "200" else status


def read(path: str) -> str:
    """A file's first byte."""
    with Path(path).open("rb") as file:
        return "reached" if file.read(1) else "empty"


def tried(way: str, secret: str, targets: list[str]) -> dict[str, Any]:
    """Everything, once confined. What is looked up and imported late is so beforehand."""
    "localhost".encode("idna")
    WAYS[way]()
    hosts = [(host, int(port)) for host, _, port in (target.rpartition(":") for target in targets)]
    return {
        "file": told(partial(read, secret)),
        "straight": {f"{host}:{port}": told(partial(straight, host, port)) for host, port in hosts},
        "proxy": {f"{host}:{port}": told(partial(through_proxy, host, port)) for host, port in hosts},
    }


def below_own_proxy(secret: str, allowed: list[str], targets: list[str]) -> Any:
    """The same from a child that nono confines to a proxy of nono's own, which lets `allowed` through."""
    proxy = start_proxy(ProxyConfig(allowed_hosts=allowed))
    capabilities = files()
    capabilities.proxy_only(proxy)
    command = [sys.executable, __file__, "nothing", secret, *targets]
    done = sandboxed_exec(capabilities, command, cwd="/usr", env=proxy.sandbox_env([("PATH", os.environ["PATH"])]))
    proxy.shutdown()
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "own-proxy":
        print(json.dumps(below_own_proxy(sys.argv[2], sys.argv[3].split(","), sys.argv[4:])))
    else:
        print(json.dumps(tried(sys.argv[1], sys.argv[2], sys.argv[3:])))
