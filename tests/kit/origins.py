"""Real web servers with TLS of their own, for requests with credentials: nginx, Apache httpd, Node.js, Go.

Each is one process on addresses of its own on a link of the world's machine (`kit.side_network`), and each serves the
application of `origin.mjs`: nginx and Apache have it behind them, and files of their own. `origin.go` is another in Go.

    NAME.test          what its users would have: TLS 1.2 and 1.3, HTTP/2 first, no TLS without a server name, a stapled
                       OCSP response (not Apache's, which would ask a responder)
    NAME-old, -new     TLS 1.2 alone, TLS 1.3 alone
    NAME-mtls, -wants  a client certificate is wanted, which the profile has for the first alone
    NAME-open          no credential, but the same rules
    nginx-loose, apache-loose   other ways to find what a path is for; python.test: those of aiohttp and http.server

Every request that arrives is a line of a server's log: `Origins.arrived`. Every response says in `X-Area` which part of
the site it is of: "v1" and "scoped", for which there are rules, "admin" or "other".
"""

from __future__ import annotations

import inspect
import json
import os
import posixpath
import pwd
import shutil
import socket
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import trustme
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from kit import origin_clients, origin_settings
from kit.api_server import ApiServer, Service
from kit.children import as_user
from kit.credentials import Vault, new_secret
from kit.expect import require
from kit.inside import COMMAND, Agent
from kit.machine import _program, read_records
from kit.namespaces import enter_command, inside
from kit.patience import patient
from kit.sandboxes import eventually
from kit.side_network import Certificate, SideNetwork

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence

    from kit.machine import Record
    from kit.world import World

HERE = Path(__file__).parent
# Debian's account of web servers, which is there without them, too.
ACCOUNT = pwd.getpwnam("www-data")
START_S, STOP_S = patient(90), patient(30)
KINDS = ("nginx", "apache", "node", "go")
VARIANTS: Mapping[str, tuple[str, str]] = {
    "": ("TLSv1.2", "TLSv1.3"),
    "old": ("TLSv1.2", "TLSv1.2"),
    "new": ("TLSv1.3", "TLSv1.3"),
    "mtls": ("TLSv1.2", "TLSv1.3"),
    "wants": ("TLSv1.2", "TLSv1.3"),
    "open": ("TLSv1.2", "TLSv1.3"),
}
WANTING = ("mtls", "wants")
LOOSE, PYTHON = ("nginx-loose.test", "apache-loose.test"), "python.test"
RULES = [{"method": "*", "path": "/v1/**"}, {"method": "*", "path": "/scoped/*"}]
AREAS = {"v1", "scoped"}
CONTROL = "control"
APPLICATION_PORT = 8080
DATA = b"0123456789abcdef\n" * ((20 << 20) // 17 + 1)
DATA = DATA[: 20 << 20]
# net/tcp_states.h: TCP_ESTABLISHED, TCP_FIN_WAIT1 (the other side may not know yet), TCP_CLOSE_WAIT.
_OPEN = ("01", "04", "08")
_SITE = {"v1/files/data.txt": DATA, "v1/files/small.txt": b"small\n"}


def host(kind: str, variant: str = "") -> str:
    """The name of a server as `variant` has it."""
    return f"{kind}-{variant}.test" if variant else f"{kind}.test"


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request as a server logged it. `nth`: of its connection. `client`: whom a certificate is for, or "-".

    `agent`: CONTROL's is no request of the sandbox; "-" where the server could not read it.
    """

    host: str
    method: str
    target: str
    version: str
    authorization: str
    tls: str
    resumed: bool
    nth: int
    client: str
    agent: str

    @classmethod
    def read(cls, line: str) -> Arrived:
        """From a line of a log."""
        name, request, authorization, tls, resumed, nth, client, agent = line.split("\t")
        method, _, rest = request.partition(" ")
        target, _, version = rest.rpartition(" ")
        place = 1 - int(nth) if nth.startswith("-") else int(nth)
        again = resumed in {"r", "Resumed"}
        return cls(name, method, target, version, authorization, tls, again, place, client, agent)


# ---------------------------------------------------------------- how the servers are set up


@dataclass(frozen=True, slots=True)
class _Files:
    """What all servers read, as their account may."""

    certificate: Path
    key: Path
    clients: Path
    staple: Path
    site: Path


def _servers(text: str, files: _Files, names: Mapping[str, str], **words: Mapping[str, str]) -> str:
    """`text` for each of `names`, whose address is its value; `words` are by name, too."""
    common = {"port": str(APPLICATION_PORT), "site": str(files.site)}
    filled = []
    for name, address in names.items():
        more = {word: values[name] for word, values in words.items()}
        filled.append(Template(text).substitute(common, name=name, address=address, **more))
    return "".join(filled)


def _idle_ms(name: str) -> int:
    """How long it keeps an idle connection: those with the old TLS hardly."""
    return 100 if "-old." in name else 75_000


class _Program:
    """A server in namespace `netns`, up when this returns: somebody answers at port 443 of each of `addresses`.

    Its own directory has `requests.log`. Raises RuntimeError with what it said when it ends instead.
    """

    def __init__(self, netns: str, work: Path, command: Sequence[str], addresses: Sequence[str]) -> None:
        self.log, self._work = work / "requests.log", work
        with (work / "output").open("w") as output:
            self._process = subprocess.Popen(
                [*enter_command(netns), *as_user(ACCOUNT.pw_name), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=work,
                env={"PATH": os.defpath, "HOME": str(work)},
            )
        up = partial(inside, netns, lambda: all(map(_answers, addresses)))
        if not eventually(lambda: self.ended() is not None or up(), START_S) or self.ended() is not None:
            self.close()
            raise RuntimeError(self.said())

    def ended(self) -> str | None:
        """What it said, where it ended by itself."""
        return None if self._process.poll() is None else self.said()

    def said(self) -> str:
        """Its output, and its log of errors."""
        return "".join(path.read_text() for path in (self._work / "output", self._work / "errors.log") if path.exists())

    def close(self) -> None:
        """Terminate, and kill when that does not help within STOP_S seconds."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _answers(address: str) -> bool:
    try:
        socket.create_connection((address, 443), 1).close()
    except OSError:
        return False
    return True


async def _by_python(request: web.Request) -> web.Response:
    """What aiohttp, and the standard library's server of files, take the path for."""
    of_files = posixpath.normpath(unquote(request.raw_path.partition("?")[0].partition("#")[0]))
    found = [_area(path) for path in (request.path, posixpath.normpath(request.path), of_files)]
    return web.Response(text="here\n", headers={"X-Area": ",".join(found)})


def _area(path: str) -> str:
    first = next((part for part in path.lower().replace("\\", "/").split("/") if part), "").partition(";")[0]
    return first if first in {*AREAS, "admin"} else "other"


# ---------------------------------------------------------------- all of it


class Origins:
    """The servers, and a sandbox whose requests to them get credentials; all up on construction. Needs root.

    `secrets` has a credential for each kind of server.
    """

    def __init__(self, world: World) -> None:
        programs = {"nginx": require("nginx"), "apache": require("apache2"), "node": require("node")}
        go = require("go")
        self.machine, self.machine_netns = world.machine, world.namespaces.machine
        with ExitStack() as stack:
            self._work = Path(tempfile.mkdtemp(prefix="origins-", dir=world.work))
            stack.callback(shutil.rmtree, self._work)
            self._work.chmod(0o755)
            of_kinds = [host(kind, variant) for kind in KINDS for variant in VARIANTS]
            self.network = SideNetwork(world.namespaces.machine, self._work, (*of_kinds, *LOOSE, PYTHON))
            stack.callback(self.network.close)
            inside(self.network.netns, _open_low_ports)
            self._files = self._make_files()
            self.secrets = {kind: new_secret(kind) for kind in (*KINDS, "python")}
            programs["go"] = self._compiled(go)
            self.python = ApiServer(
                [(inside(self.network.netns, partial(socket.create_server, (self._at(PYTHON), 443))), self._context())],
                {PYTHON: Service(None, _by_python)},
            )
            stack.callback(self.python.close)
            self._started: dict[str, _Program] = {}
            self.told: list[bytes] = []
            # Node first: it is what the others have behind them.
            for kind in ("node", "nginx", "apache", "go"):
                self._started[kind] = self._start(kind, programs[kind])
                stack.callback(self._started[kind].close)
            self.vault = Vault(self._work / "vault")
            self._log = self._work / "audit.ndjson"
            self.agent = self._sandbox()
            stack.callback(self.agent.close)
            self._stack = stack.pop_all()

    # ------------------------------------------------------------ the servers

    def _at(self, name: str) -> str:
        return self.network.addresses[name]

    def _context(self) -> ssl.SSLContext:
        return Certificate(self._files.certificate, self._files.key).context()

    def _make_files(self) -> _Files:
        made = Path(tempfile.mkdtemp(dir=self._work))
        authority, of_clients = trustme.CA(), trustme.CA()
        leaf = authority.issue_cert(*self.network.addresses)
        files = _Files(made / "leaf.pem", made / "leaf.key", made / "clients.pem", made / "staple.der", made / "site")
        leaf.cert_chain_pems[0].write_to_path(str(files.certificate))
        leaf.private_key_pem.write_to_path(str(files.key))
        of_clients.cert_pem.write_to_path(str(files.clients))
        files.staple.write_bytes(_good(leaf, authority))
        for name, content in _SITE.items():
            path = files.site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for directory in (made, files.site, files.site / "v1", files.site / "v1/files"):
            directory.chmod(0o755)
        shutil.chown(files.key, ACCOUNT.pw_uid)
        self.ca_file = self._work / "origins-ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        client = of_clients.issue_cert("kit@example.com")
        self.client = self._work / "client.pem", self._work / "client.key"
        client.cert_chain_pems[0].write_to_path(str(self.client[0]))
        self.client[1].touch(0o600)
        client.private_key_pem.write_to_path(str(self.client[1]))
        return files

    def _compiled(self, go: str) -> str:
        made = self._work / "origin-in-go"
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self._work), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
        build = [go, "build", "-o", str(made), str(HERE / "origin.go")]
        subprocess.run(build, check=True, env=environment, cwd=self._work)
        return str(made)

    def _start(self, kind: str, program: str) -> _Program:
        work = self._work / kind
        work.mkdir()
        (work / "requests.log").touch()
        command = {"nginx": self._nginx, "apache": self._apache}.get(kind, self._application)(kind, work, program)
        for path in (work, *work.iterdir()):
            shutil.chown(path, ACCOUNT.pw_uid, ACCOUNT.pw_gid)
        own = (at for name, at in self.network.addresses.items() if name.removesuffix(".test").split("-")[0] == kind)
        return _Program(self.network.netns, work, command, tuple(own))

    def _nginx(self, kind: str, work: Path, program: str) -> list[str]:
        versions = {host(kind, each): " ".join(dict.fromkeys(both)) for each, both in VARIANTS.items()}
        servers = self._servers(kind, origin_settings.NGINX_SERVER, versions, ("off", "on"))
        servers += _servers(origin_settings.NGINX_LOOSE, self._files, self._addresses([LOOSE[0]]))
        path = work / "nginx.conf"
        path.write_text(Template(origin_settings.NGINX).substitute(self._words(), work=work, servers=servers))
        return [program, "-p", str(work), "-e", str(work / "errors.log"), "-c", str(path)]

    def _apache(self, kind: str, work: Path, program: str) -> list[str]:
        versions = {host(kind, each): " ".join(f"+{one}" for one in both) for each, both in VARIANTS.items()}
        servers = self._servers(kind, origin_settings.APACHE_SERVER, versions, ("none", "require"))
        servers += _servers(origin_settings.APACHE_LOOSE, self._files, self._addresses([LOOSE[1]]))
        load = "LoadModule {0}_module /usr/lib/apache2/modules/mod_{0}.so"
        modules = "\n".join(map(load.format, origin_settings.APACHE_MODULES))
        words = {"work": str(work), "servers": servers, "modules": modules}
        path = work / "apache.conf"
        path.write_text(Template(origin_settings.APACHE).substitute(self._words(), **words))
        return [program, "-X", "-f", str(path)]

    def _servers(self, kind: str, text: str, versions: Mapping[str, str], verify: tuple[str, str]) -> str:
        """One for each variant; `verify`: what says that no client certificate is wanted, and that one is."""
        wanting = {host(kind, each): verify[each in WANTING] for each in VARIANTS}
        idle = {name: f"{_idle_ms(name)}ms" for name in versions}
        addresses = self._addresses(versions)
        return _servers(text, self._files, addresses, protocols=versions, verify=wanting, idle=idle)

    def _application(self, kind: str, work: Path, program: str) -> list[str]:
        words = {"cert" if name == "certificate" else name: path for name, path in self._words().items()}
        hosts = [
            words
            | {"name": name, "address": self._at(name), "least": least, "most": most, "wants": each in WANTING}
            | {"idle": _idle_ms(name)}
            for each, (least, most) in VARIANTS.items()
            for name in [host(kind, each)]
        ]
        path = work / "hosts.json"
        path.write_text(json.dumps({"log": str(work / "requests.log"), "plain": APPLICATION_PORT, "hosts": hosts}))
        if kind == "go":
            return [program, str(path)]
        shutil.copy(HERE / "origin.mjs", work)
        return [program, "--max-http-header-size=65536", str(work / "origin.mjs"), str(path)]

    def _words(self) -> dict[str, str]:
        files = self._files
        named = {"certificate": files.certificate, "key": files.key, "clients": files.clients, "staple": files.staple}
        return {name: str(path) for name, path in named.items()}

    def _addresses(self, names: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
        return {name: self._at(name) for name in names}

    # ------------------------------------------------------------ the sandbox

    def _sandbox(self) -> Agent:
        for name, value in self.secrets.items():
            self.vault.keep(name, value)
        opened = [{"domain": host(kind, "open"), "endpoints": RULES} for kind in KINDS]
        profile = self.vault.profile(self._credentials(), allow_domain=opened)
        resolved = [word for name, at in self.network.addresses.items() for word in ("--resolve", f"{name}:{at}")]
        options = ["--profile", str(profile), *resolved, "--upstream-ca", str(self.ca_file)]
        command = [*_program(), *options, "--audit-log", str(self._log), "--", *COMMAND]
        modules = {"kit": "", origin_clients.__name__: inspect.getsource(origin_clients)}
        return Agent(self.machine.enter(command), modules, env=self.machine.environment())

    def _credentials(self) -> dict[str, dict[str, Any]]:
        placed = {host(kind, each): kind for kind in KINDS for each in VARIANTS if each != "open"}
        placed |= {LOOSE[0]: "nginx", LOOSE[1]: "apache", PYTHON: "python"}
        shown = {"tls_client_cert": str(self.client[0]), "tls_client_key": str(self.client[1])}
        return {
            name.removesuffix(".test"): {
                "upstream": f"https://{name}",
                "credential_key": self.vault.reference(kind),
                "env_var": f"KIT_{name.removesuffix('.test').upper().replace('-', '_')}",
                "endpoint_rules": RULES,
                **(shown if name == host(kind, "mtls") else {}),
            }
            for name, kind in placed.items()
        }

    def records(self) -> tuple[Record, ...]:
        """The audit log, up to now."""
        return read_records(self._log)

    # ------------------------------------------------------------ clients

    def call(self, client: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of `kit.origin_clients` returns in the sandbox."""
        answer = self.agent.call(client, *arguments)
        self.told.append(json.dumps(answer).encode())
        return answer

    def curl(self, *arguments: str) -> str:
        """What curl prints in the sandbox. It has to be content."""
        status, out, err = self.call(origin_clients.curl, *arguments)
        assert status == 0, (status, out[:1000], err)
        return str(out)

    def asked(self, name: str, *requests: list[Any]) -> list[list[Any]]:
        """As `origin_clients.asked`, in the sandbox."""
        answers: list[list[Any]] = self.call(origin_clients.asked, name, requests)
        return answers

    def directly(self, *command: str) -> subprocess.CompletedProcess[str]:
        """The control of an experiment: `command` without a sandbox. If it is curl it knows the hosts and their CA."""
        more = ["--cacert", str(self.ca_file), "-A", CONTROL] if command[0] == "curl" else []
        for name, at in self.network.addresses.items() if more else ():
            more += ["--resolve", f"{name}:443:{at}"]
        return self.machine.bare([command[0], *more, *command[1:]])

    # ------------------------------------------------------------ what arrived

    def arrived(self, name: str, at_least: int, *targets: str, agent: str | None = None) -> list[Arrived]:
        """Requests to the host `name` for one of `targets`, or any, by `agent`, or anybody in the sandbox.

        Returns when there are as many: some servers write them down after they answered, also into the next test.
        """
        kind = name.partition(".")[0].partition("-")[0]

        def is_meant(each: Arrived) -> bool:
            by = each.agent not in {CONTROL, "-"} if agent is None else each.agent == agent
            return by and each.host == name and (not targets or each.target in targets)

        def read() -> list[Arrived]:
            return [each for each in self.written(kind) if is_meant(each)]

        assert eventually(lambda: len(read()) >= at_least), (read(), self._started[kind].said())
        return read()

    def requests_to(self, name: str, at_least: int, agent: str) -> int:
        """How many arrived at the host `name` from `agent`, once there are as many."""
        if name == PYTHON:
            return sum(each.value("User-Agent") == agent for each in self.python.seen)
        return len(self.arrived(name, at_least, agent=agent))

    def holds_connections(self, name: str) -> bool:
        """Whether the server of `name` has connections that it has not ended, or whose other end may not know yet."""
        local = f"{socket.inet_aton(self._at(name))[::-1].hex().upper()}:{443:04X}"
        table = inside(self.network.netns, Path("/proc/thread-self/net/tcp").read_text)
        lines = [line.split() for line in table.splitlines()]
        return any(place == local and state in _OPEN for _, place, _, state, *_ in lines)

    def written(self, kind: str) -> list[Arrived]:
        """All that the servers of one kind have written down until now: whole lines."""
        lines = self._started[kind].log.read_text("latin-1").split("\n")
        return [Arrived.read(line) for line in lines[:-1]]

    def ended(self) -> dict[str, str]:
        """The last words of servers that are no more."""
        ended = {kind: each.ended() for kind, each in self._started.items()}
        return {kind: said for kind, said in ended.items() if said is not None}

    def forget(self) -> None:
        """Begin a new test."""
        self.told.clear()
        for each in self._started.values():
            os.truncate(each.log, 0)
        self.python.seen.clear()

    def close(self) -> None:
        """End everything and remove every trace."""
        self._stack.close()


def _open_low_ports() -> None:
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")


def _good(leaf: trustme.LeafCert, authority: trustme.CA) -> bytes:
    """An OCSP response in DER: the certificate of `leaf` is good."""
    certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    key = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    now = datetime.now(UTC)
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=certificate,
        issuer=issuer,
        algorithm=hashes.SHA1(),
        cert_status=ocsp.OCSPCertStatus.GOOD,
        this_update=now - timedelta(hours=1),
        next_update=now + timedelta(days=1),
        revocation_time=None,
        revocation_reason=None,
    )
    signed = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, issuer).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)
