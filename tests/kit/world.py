"""The test world: a machine on which nono-ebpf runs, and the hosts its sandboxes may or may not reach.

::

    ┌─ netns …-machine ───────────────┐   veth   ┌─ netns …-world ──────────────────────────────────────────┐
    │ nono-ebpf run …   (kit.machine) │          │ .10 one/two.example.com other.example.net  HTTP 80, 443  │
    │ 203.0.113.1   2001:db8::1       ├──────────┤ .12 git  .13 banner  .14 echo  .15 db  .16 cache         │
    │ resolv.conf → 203.0.113.53      │          │ .53 DNS (authoritative)  169.254.169.254 "metadata"      │
    └─────────────────────────────────┘          │ IPv6 alike: 2001:db8::10 …                               │
                                                 └──────────────────────────────────────────────────────────┘

Every TCP service listens on every address of the world (`kit.servers`), so a connection that leaked anywhere
is seen. The real host's namespaces, mounts and files stay as they are; `World.close` removes everything, also
after a failure.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
import tempfile
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path

import trustme
from kit import zone
from kit.children import Child, start_postgres, start_redis
from kit.machine import Machine
from kit.namespaces import Namespaces, listen_stream, open_datagram
from kit.servers import Seen, Servers


class World:
    """Everything, up on construction; PostgreSQL and Redis come up when first asked for. Needs root."""

    def __init__(self) -> None:
        with ExitStack() as stack:
            self.work = Path(tempfile.mkdtemp(prefix="nono-world-"))
            stack.callback(shutil.rmtree, self.work)
            self.work.chmod(0o755)
            self.namespaces = Namespaces()
            stack.callback(self.namespaces.close)
            tls = self._make_certificates()
            self._make_repository()
            self.servers = self._start_servers(tls, stack)
            self.machine = Machine(self.namespaces.machine, self.work)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """End every server and remove every trace."""
        self._stack.close()

    @property
    def seen(self) -> list[Seen]:
        """What has arrived at the world's servers since `forget`."""
        return self.servers.seen

    def forget(self) -> None:
        """Begin a new test: nothing seen, nothing watched."""
        self.servers.forget()

    def _make_certificates(self) -> ssl.SSLContext:
        authority = trustme.CA()
        literals = [address for pair in zone.addresses() for address in pair]
        leaf = authority.issue_cert(*zone.NAMES, *literals)
        self.ca_file = self.work / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        self._certificate, self._key = self.work / "leaf.pem", self.work / "leaf.key"
        leaf.cert_chain_pems[0].write_to_path(str(self._certificate))
        leaf.private_key_pem.write_to_path(str(self._key))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self._certificate, self._key)
        return tls

    def _make_repository(self) -> None:
        """`git/repo.git`, a bare repository with one commit that adds `README`."""
        self._repositories, seed = self.work / "git", self.work / "seed"
        self._repositories.mkdir()
        seed.mkdir()
        (seed / "README").write_text("from the world\n")
        git = ["git", "-C", str(seed), "-c", "user.name=kit", "-c", "user.email=kit@example.com"]
        if shutil.which("git") is None:
            return
        subprocess.run([*git, "init", "--quiet", "--initial-branch=main"], check=True)
        subprocess.run([*git, "add", "README"], check=True)
        subprocess.run([*git, "commit", "--quiet", "--message=first"], check=True)
        bare = str(self._repositories / "repo.git")
        subprocess.run(["git", "clone", "--quiet", "--bare", str(seed), bare], check=True)

    def _start_servers(self, tls: ssl.SSLContext, stack: ExitStack) -> Servers:
        name = self.namespaces.world
        servers = Servers(partial(listen_stream, name), partial(open_datagram, name), tls, self._repositories)
        stack.callback(servers.close)
        servers.start()
        return servers

    @cached_property
    def postgres(self) -> Child:
        """PostgreSQL on every address of the world, started now if it was not. Any user, no password."""
        child = start_postgres(self.namespaces.world, self.work / "postgres", self._certificate, self._key)
        self._stack.callback(child.close)
        return child

    @cached_property
    def redis(self) -> Child:
        """Redis on every address of the world, started now if it was not."""
        child = start_redis(self.namespaces.world, shutil.which("redis-server") or "redis-server")
        self._stack.callback(child.close)
        return child
