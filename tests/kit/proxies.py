"""Squid and tinyproxy as Debian has them, each with a configuration of its own, ended by their own pid.

They are what a company's proxy is to nono-ebpf. `asked` is what such a proxy was asked for, from its access log. They
die with the test process too (PR_SET_PDEATHSIG). Debian's Squid is built with GnuTLS, so it listens for TLS itself.
"""

from __future__ import annotations

import random
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kit.children import as_user
from kit.expect import require
from kit.namespaces import enter_command, inside
from kit.patience import patient

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = "/proc/self/ns/net"
START_S = patient(90)
# net/tcp_states.h: TCP_LISTEN.
_LISTEN = "0A"
_RESOLVES = {"nsswitch.conf": "hosts: files dns\n"}
# A mount namespace of its own, in which the files of directory $0 are those of /etc.
_WITH_ETC = 'for file in $(ls "$0"); do mount --bind "$0/$file" "/etc/$file"; done; exec "$@"'
_CONNECT = re.compile(r"CONNECT (\S+)")


@dataclass(frozen=True)
class Site:
    """Where a proxy runs and what it is like.

    `netns`: the name or path of a network namespace. `etc`: files of /etc that it sees instead of the machine's.
    `source`: the address it dials from. `users`: name → password, none: everybody may use it. `tls`: its key and
    certificate (PEM); then it is spoken to inside TLS (Squid only).
    """

    netns: str = HERE
    address: str = "127.0.0.1"
    port: int = 3128
    etc: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    users: Mapping[str, str] = field(default_factory=dict)
    tls: str = field(default="", repr=False)


class RealProxy:
    """A proxy that accepts connections when this returns. Raises RuntimeError with its output when it does not."""

    def __init__(self, site: Site, account: str, ready: str) -> None:
        self.site, self._ready = site, ready
        self.work = Path(tempfile.mkdtemp(prefix="nono-proxy-"))
        try:
            self.access_log = self.work / "access.log"
            shutil.chown(self.work, account)
            etc = self._directory("etc", {**_RESOLVES, **site.etc} if site.etc else {})
            command = [*enter_command(site.netns), "unshare", "--mount", "--", "/bin/sh", "-ec", _WITH_ETC, str(etc)]
            self._output = (self.work / "output").open("w+b")
            self._process = subprocess.Popen(
                [*command, *as_user(account), *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                cwd="/",
            )
            self._await_ready()
        except BaseException:
            self.close()
            raise

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def _directory(self, name: str, files: Mapping[str, str]) -> Path:
        made = self.work / name
        made.mkdir()
        for file, text in files.items():
            self._file(f"{name}/{file}", text)
        return made

    def _file(self, name: str, text: str) -> Path:
        path = self.work / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    def _await_ready(self) -> None:
        end = time.monotonic() + START_S
        while not (self._ready in self.output() and self._listens()):
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(self.output())
            time.sleep(0.01)

    def _listens(self) -> bool:
        """Squid says that it accepts connections, and then calls listen(2)."""
        address = int.from_bytes(socket.inet_aton(self.site.address), sys.byteorder)
        local = f"{address:08X}:{self.site.port:04X}"
        table = inside(self.site.netns, Path("/proc/thread-self/net/tcp").read_text)
        return any((place, state) == (local, _LISTEN) for _, place, _, state, *_ in map(str.split, table.splitlines()))

    def output(self) -> str:
        """What it has printed and logged so far."""
        logs = [self.work / "output", self.access_log]
        return "".join(each.read_text(errors="replace") for each in logs if each.exists())

    @property
    def asked(self) -> list[str]:
        """The targets of CONNECT in its access log, in order. Squid writes a line when a tunnel ends."""
        return _CONNECT.findall(self.access_log.read_text()) if self.access_log.exists() else []

    def kill(self) -> None:
        """End it at once, in the middle of everything. Squid takes its time over any other end."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it and remove every trace."""
        if hasattr(self, "_process"):
            self.kill()
            self._output.close()
        shutil.rmtree(self.work)

    def __enter__(self) -> RealProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Squid(RealProxy):
    """Squid. `ports`: what it permits CONNECT to, as Debian's own configuration has 443; none: every port."""

    def __init__(self, site: Site, *, ports: Sequence[int] = ()) -> None:
        self._program, self._ports = require("squid"), ports
        super().__init__(site, "proxy", "Accepting HTTP")

    def _command(self) -> Sequence[str]:
        site = self.site
        pem = self._file("proxy.pem", site.tls)
        inside_tls = f" tls-cert={pem} tls-key={pem}" if site.tls else ""
        lines = [
            f"{'https_port' if site.tls else 'http_port'} {site.address}:{site.port}{inside_tls}",
            *("pid_filename none", "cache_log /dev/null", "cache deny all", "cache_mem 1 MB", "pinger_enable off"),
            *("netdb_filename none", "shutdown_lifetime 0 seconds", "visible_hostname proxy.test", "coredump_dir /"),
            *("max_filedescriptors 1024", "buffered_logs off", f"access_log stdio:{self.access_log}"),
            *((f"tcp_outgoing_address {site.source}",) if site.source else ()),
            *((f"acl open port {' '.join(map(str, self._ports))}", "http_access deny !open") if self._ports else ()),
            *(self._authenticating() if site.users else ()),
            f"http_access allow {'known' if site.users else 'all'}",
        ]
        configuration = self._file("squid.conf", "\n".join(lines) + "\n")
        return [self._program, "-N", "-d", "1", "-f", str(configuration)]

    def _authenticating(self) -> Sequence[str]:
        """basic_ncsa_auth(8) with a file of hashed passwords."""
        passwords = self._file(
            "passwords", "".join(f"{name}:{_hashed(word)}\n" for name, word in self.site.users.items())
        )
        helper = f"/usr/lib/squid/basic_ncsa_auth {passwords}"
        return [f"auth_param basic program {helper}", "auth_param basic children 1", "acl known proxy_auth REQUIRED"]


class Tinyproxy(RealProxy):
    """tinyproxy, which answers in HTTP/1.0."""

    def __init__(self, site: Site) -> None:
        self._program = require("tinyproxy")
        super().__init__(site, "tinyproxy", "Accepting connections")

    def _command(self) -> Sequence[str]:
        site = self.site
        lines = [
            *(f"Listen {site.address}", f"Port {site.port}", "Timeout 60", "MaxClients 50", "LogLevel Info"),
            f'LogFile "{self.access_log}"',
            *((f"Bind {site.source}",) if site.source else ()),
            *(f"BasicAuth {name} {word}" for name, word in site.users.items()),
        ]
        return [self._program, "-d", "-c", str(self._file("tinyproxy.conf", "\n".join(lines) + "\n"))]


def _hashed(password: str) -> str:
    done = subprocess.run(["openssl", "passwd", "-apr1", password], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class PeerServer:
    """Tells every client, before it says anything, which address it comes from; then echoes lines.

    In the network namespace `netns`. `seen` are those addresses.
    """

    def __init__(self, netns: str, address: str, port: int = 0) -> None:
        self.seen: list[str] = []

        class Handler(socketserver.StreamRequestHandler):
            def handle(handler) -> None:  # noqa: N805  # `self` is the server
                self.seen.append(handler.client_address[0])
                handler.wfile.write(f"220 {handler.client_address[0]}\r\n".encode())
                for line in handler.rfile:
                    handler.wfile.write(line)

        class Threads(socketserver.ThreadingTCPServer):
            allow_reuse_address, daemon_threads, request_queue_size = True, True, 64

        self._server = inside(netns, lambda: Threads((address, port), Handler))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        """Accept nobody any more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> PeerServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def free_port(address: str = "127.0.0.1") -> int:
    """A port of this namespace that nobody listens on; for a server which cannot be asked for the one it has.

    Below those that the kernel gives to whoever asks for any (ip_local_port_range): one of these could be taken before
    the server is there.
    """
    least_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, least_given)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((address, port))
            return port
