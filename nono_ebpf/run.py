"""`nono-ebpf run`: the supervisor. Builds one sandbox, waits for its command, takes everything away again.

It holds root and parses nothing that comes from the sandbox. Start order, each step waiting for those above it:

    proxy process starts importing    programs compile in a child    pid 1 makes the namespaces and opens the listeners
    programs attached and pinned   →  proxy gets listeners and map fds, gives root up, says "ready"
    settings say alive             →  pid 1 lets the command go

Whatever fails before the last step, the command has not started and nothing is left.
"""

from __future__ import annotations

import base64
import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf import session_token
from nono_ebpf.errors import printable
from nono_ebpf.kernel import abi, bpffs, origdst
from nono_ebpf.kernel.hooks import Side
from nono_ebpf.kernel.loader import Loader
from nono_ebpf.kernel.netns import OWN_V4, OWN_V6
from nono_ebpf.sandbox import handover, signals, state, view
from nono_ebpf.sandbox.broker_process import BrokerProcess
from nono_ebpf.sandbox.init import Command, Init, Surroundings, cgroups_under
from nono_ebpf.sandbox.proxy_process import ProxyProcess
from nono_ebpf.sandbox.streams import Copiers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nono_ebpf.config.no_proxy import NoProxy
    from nono_ebpf.credentials.sources import Secret
    from nono_ebpf.sandbox.landlock import Domain
    from nono_ebpf.sandbox.user import User

# systemd hands these uids out to services for as long as they run (DynamicUser); so do we, one a sandbox.
_TO_BE_HAD = frozenset(("present", "waiting", "lazy"))
PROXY_UIDS = range(61184, 65520)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the credential of each service is kept, and who reads it. `shared`: files may be open to other accounts.

    `environment`: that of whoever asked, to be had when the sandbox's pid 1, which is a copy of us, has been made.
    """

    references: Mapping[str, str]
    user: User
    environment: Callable[[], Mapping[str, str]]
    as_account: bool
    shared: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A checked `run`: everything that could be refused has been."""

    command: Command
    view: view.View
    domain: Domain
    policy: bytes
    pinned: Mapping[str, list[str]]
    audit_fd: int | None
    verbose: bool
    no_proxy: NoProxy | None  # no proxy variables at all
    open_ports: frozenset[int]
    upstream_auth: Secret | None  # user:password
    upstream_tls: bool
    upstream_ca: bytes | None
    interception: handover.InterceptionPlan | None = None
    services: tuple[handover.ServicePlan, ...] = ()
    credentials: Credentials | None = None
    urls: Mapping[str, str] = field(default_factory=dict)  # variable → the service that it has the URL of
    keys: Mapping[str, str] = field(default_factory=dict)  # variable → the service whose phantom it has
    ca_variables: tuple[str, ...] = ()

    def with_audit(self, fd: int) -> Request:
        """The same, with an audit log, out of the command's reach; the fd is the caller's."""
        hidden = (*self.view.hidden, Path(f"/proc/self/fd/{fd}").readlink())
        return replace(self, audit_fd=fd, view=replace(self.view, hidden=hidden))


def run(request: Request) -> int:
    """The command's exit status.

    Raises:
        NonoError: the sandbox could not be built; the command has not run.
    """
    signals.block()
    for problem in state.remove_stale():
        say(f"warning: what a crash left cannot be removed yet: {problem}")
    bpffs.ensure()
    sandbox = state.create()
    with ExitStack() as stack:
        copiers = Copiers()
        stack.callback(copiers.finish)
        copiers.put_between()
        stack.callback(sandbox.remove)
        stack.callback(_take_terminal_back, os.getpgrp())
        return _Supervisor(request, sandbox, stack).run()


class _Supervisor:
    """One sandbox's life. Everything that must end with it is on `stack`."""

    def __init__(self, request: Request, sandbox: state.Sandbox, stack: ExitStack) -> None:
        self._request = request
        self._sandbox = sandbox
        self._stack = stack
        self._groups = cgroups_under(sandbox.group)
        self._token = session_token.make()
        self._broker: BrokerProcess | None = None
        self._served: frozenset[str] = frozenset()

    def run(self) -> int:
        with Loader() as loader:
            self._proxy = ProxyProcess(self._groups.proxy)
            self._stack.callback(self._proxy.end)
            if self._request.credentials is not None:
                self._broker = BrokerProcess()
                self._stack.callback(self._broker.end)
            surroundings = Surroundings(self._request.view, self._request.domain, self._request.open_ports)
            init = Init.start(self._request.command, self._groups, surroundings)
            self._listeners = self._stack.enter_context(init.listeners())
            groups = {Side.SANDBOX: self._groups.sandbox.path, Side.PROXY: self._groups.proxy.path}
            self._maps = loader.attach(groups, self._sandbox.pins)
        self._stack.callback(self._maps.close)
        init.map_ids()
        if self._request.verbose:
            say(self._request.domain.describe())
        self._serve_credentials()
        certificate = self._proxy.serve(self._plan(), self._fds())
        if self._broker is not None:
            self._broker.proxy_end.close()  # the proxy's alone: with the proxy ends who serves it
        init.wait_ready()
        origdst.write_open_ports(self._maps.open_ports, self._request.open_ports)
        self._set_alive(alive=True)
        init.go(self._added_environment(), certificate)
        status = signals.wait_for(init.pid, self._child_ended)
        self._proxy.stop()
        if self._broker is not None:
            self._broker.stop()
        return status

    def _serve_credentials(self) -> None:
        """Have them read when they are needed, and say now what is known to be missing."""
        wanted = self._request.credentials
        if wanted is None or self._broker is None:
            return
        report = self._broker.serve(
            wanted.references, wanted.user, wanted.environment(), as_account=wanted.as_account, shared_ok=wanted.shared
        )
        for each in report.states:
            if each.availability in {"missing", "waiting"}:
                then = "requests get 503 until it is there" if each.availability == "waiting" else "requests get 503"
                say(f"warning: {printable(each.name)} ({printable(each.reference)}): {printable(each.problem)}; {then}")
        if not report.locked:
            say("warning: credentials cannot be kept out of swap; raise the limit of locked memory (ulimit -l)")
        # Who is told of a key that never comes would look for the mistake elsewhere.
        self._served = frozenset(each.name for each in report.states if each.availability in _TO_BE_HAD)

    def _plan(self) -> handover.ProxyPlan:
        return handover.ProxyPlan(
            sandbox=self._sandbox.id,
            uid=_proxy_uid(self._sandbox.id),
            policy=self._request.policy,
            pinned=dict(self._request.pinned),
            netns_cookie=self._listeners.netns_cookie,
            verbose=self._request.verbose,
            has_audit_log=self._request.audit_fd is not None,
            token=self._token,
            upstream_authorization=_basic(self._request.upstream_auth),
            upstream_tls=self._request.upstream_tls,
            upstream_ca=self._request.upstream_ca,
            interception=self._request.interception,
            services=self._request.services,
        )

    def _fds(self) -> list[int]:
        """In the order in which the proxy takes them."""
        listeners = [sock.fileno() for sock in self._listeners.all]
        maps = [self._maps.denials, self._maps.unreported, self._maps.askers]
        broker = [] if self._broker is None else [self._broker.proxy_end.fileno()]
        return [*listeners, *maps, *broker, *([] if self._request.audit_fd is None else [self._request.audit_fd])]

    def _set_alive(self, *, alive: bool) -> None:
        settings = abi.nono_settings(
            netns_cookie=self._listeners.netns_cookie,
            own_v4=abi.packed(OWN_V4),
            own_v6=abi.packed(OWN_V6),
            proxy_port_be=socket.htons(self._listeners.proxy_port),
            dns_port_be=socket.htons(self._listeners.dns_port),
            alive=alive,
            opens_ports=bool(self._request.open_ports),
        )
        origdst.write_settings(self._maps.settings, settings)

    def _child_ended(self, pid: int, wait_status: int) -> None:
        if pid == self._proxy.pid:
            self._proxy_ended(wait_status)
        elif self._broker is not None and pid == self._broker.pid:
            self._broker.ended(wait_status)
            if self._proxy.running:
                say("what reads credentials has ended; requests that need one are answered 503")

    def _proxy_ended(self, wait_status: int) -> None:
        """It crashed: from now on connect(2) fails, and who waits in the listeners' queues is told."""
        self._proxy.ended(wait_status)
        self._set_alive(alive=False)
        for listener in (*self._listeners.proxy, *self._listeners.dns_tcp):
            listener.shutdown(socket.SHUT_RDWR)
        for resolver in self._listeners.dns_udp:
            resolver.close()  # a query under way gets "port unreachable", not silence
        say(f"the proxy ended ({signals.exit_status(wait_status)}); all further connections are refused")

    def _added_environment(self) -> dict[str, str]:
        request, port = self._request, self._listeners.proxy_port
        added = {} if request.view.ca_bundle is None else ca_environment(request.ca_variables)
        if request.no_proxy is None:
            return added
        added |= {variable: f"http://127.0.0.1:{port}/{service}" for variable, service in request.urls.items()}
        added |= {variable: self._token for variable, service in request.keys.items() if service in self._served}
        return added | proxy_environment(port, self._token, request.no_proxy)


def _proxy_uid(sandbox: str) -> int:
    return PROXY_UIDS[int(sandbox, 16) % len(PROXY_UIDS)]


def _basic(login: Secret | None) -> bytes | None:
    """RFC 7617 §2."""
    return None if login is None else b"Basic " + base64.b64encode(login.reveal())


def proxy_environment(port: int, token: str, no_proxy: NoProxy) -> dict[str, str]:
    """A courtesy for clients that ask: every rule holds without it."""
    url = f"http://nono:{token}@127.0.0.1:{port}"
    return {
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), url),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), no_proxy.no_proxy),
        "NONO_NO_PROXY": no_proxy.nono_no_proxy,
        "NONO_PROXY_TOKEN": token,
        "NODE_USE_ENV_PROXY": "1",
    }


def ca_environment(further: Sequence[str] = ()) -> dict[str, str]:
    """For toolchains that bring a certificate store of their own."""
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
    return dict.fromkeys((*names, *further), str(view.OWN_DIRECTORY / "ca-bundle.pem"))


def _take_terminal_back(group: int) -> None:
    """A shell in the sandbox may have made itself the terminal's foreground; ours is to be it when we end."""
    with suppress(OSError), Path("/dev/tty").open("rb") as terminal:
        if os.tcgetpgrp(terminal.fileno()) != group:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            os.tcsetpgrp(terminal.fileno(), group)


def say(text: str) -> None:
    """One line to the person, on stderr: stdout is the command's."""
    sys.stderr.write(f"nono-ebpf: {text}\n")
    sys.stderr.flush()
