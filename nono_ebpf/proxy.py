"""The proxy process: accepts inside the sandbox's namespace, dials from the host's, holds no privilege while it does.

It starts as root, imports everything it will ever need (its own files may be unreadable afterwards), takes the plan and
the fds from the supervisor, becomes an account of its own, and only then reads its first byte from the sandbox.
It holds sockets and map fds, the session token, what the upstream proxy wants to see, credentials while they are in
use, and the key of the sandbox's own certificates: no program, no link, no capability.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import uvloop

from nono_ebpf.audit.sink import AuditSink
from nono_ebpf.audit.summary import Summary
from nono_ebpf.config.transfer import restore_policy
from nono_ebpf.credentials.secret import Secret
from nono_ebpf.denials import KernelDenials
from nono_ebpf.dns.names import NameTable
from nono_ebpf.dns.resolver import HostResolver, preload
from nono_ebpf.dns.server import DnsServer
from nono_ebpf.errors import NonoError, SandboxError
from nono_ebpf.kernel.netns import Listeners
from nono_ebpf.kernel.origdst import Askers, SocketOrigins
from nono_ebpf.model import Endpoint
from nono_ebpf.relay.accept import Acceptor
from nono_ebpf.relay.chain import ProxyAccess
from nono_ebpf.relay.interception import Interception
from nono_ebpf.relay.limits import Limits
from nono_ebpf.relay.listener import Relay
from nono_ebpf.relay.rate_limit import RateLimiter
from nono_ebpf.relay.secrets import BrokeredCredentials
from nono_ebpf.relay.secure_upstreams import SecureUpstreams
from nono_ebpf.relay.services import Access, Services
from nono_ebpf.sandbox import handover, landlock, privileges, seccomp
from nono_ebpf.session_token import Token
from nono_ebpf.tls import authority
from nono_ebpf.tls.authority import CertificateAuthority, parse_parent
from nono_ebpf.tls.contexts import ServerContexts, ServiceTls, UpstreamContexts, context_for

# What every bound of the relay and the resolver, reached at once, adds up to is below these.
_LIMITS = {
    resource.RLIMIT_NOFILE: 40960,  # four sockets and four pipe ends a flow at most, and the lookups
    resource.RLIMIT_DATA: 1 << 30,  # bytes
    resource.RLIMIT_NPROC: 64,  # of its account, which another proxy may have by chance; a loop's threads for names
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_MSGQUEUE: 0,
}
_DRAIN_S = 2.0  # for bytes that a client sent before it ended


@dataclass(frozen=True, slots=True)
class Handles:
    """What the supervisor gave: sockets and fds, owned by this process from here on."""

    listeners: Listeners
    denials: int
    unreported: int
    askers: int
    broker: socket.socket | None
    audit: int | None


def main() -> None:
    """`python -m nono_ebpf.proxy FD`: the fd is the lifeline."""
    lifeline = socket.socket(fileno=int(sys.argv[1]))
    try:
        preload()
        plan, fds = _received(lifeline)
        if plan.interception is not None:
            authority.preload()
        _give_up_root(plan)
        tls = _tls(plan)  # reads the system's certificates, and needs calls that are out of reach later
        _confine()
        if plan.services and not Secret(b"\0").locked:
            sys.stderr.write("nono-ebpf: warning: the proxy's copies of credentials may be swapped (ulimit -l)\n")
        loop = uvloop.new_event_loop()
        loop.run_until_complete(_serve(plan, tls, _handles(plan, fds), lifeline))
    except (NonoError, ValueError) as error:
        sys.stderr.write(f"nono-ebpf: proxy: {error}\n")
        sys.exit(1)
    sys.stderr.flush()
    os._exit(0)  # nothing is left to tidy, and the command's caller waits


def _received(lifeline: socket.socket) -> tuple[handover.ProxyPlan, list[int]]:
    try:
        return handover.receive(lifeline)
    except SandboxError:
        sys.exit(1)  # the supervisor gave up, and has said why


@dataclass(frozen=True, slots=True)
class Tls:
    """What was made of certificates and keys. `trusted` (PEM) is for the sandbox."""

    access: ProxyAccess
    upstreams: UpstreamContexts | None = None
    certificates: ServerContexts | None = None
    trusted: bytes = b""


def _tls(plan: handover.ProxyPlan) -> Tls:
    access = ProxyAccess(plan.upstream_authorization, context_for(plan.upstream_ca) if plan.upstream_tls else None)
    if (wanted := plan.interception) is None:
        return Tls(access)
    own = {each.name: ServiceTls(each.tls_ca, each.tls_client_cert, each.tls_client_key) for each in plan.services}
    parent = None if wanted.ca is None or wanted.ca_key is None else parse_parent(wanted.ca, wanted.ca_key)
    valid_for, leaf_valid_for = timedelta(seconds=wanted.ca_validity_s), timedelta(seconds=wanted.leaf_validity_s)
    made = CertificateAuthority(wanted.hosts, valid_for, parent, leaf_valid_for)
    upstreams = UpstreamContexts(plan.upstream_ca, own)
    return Tls(access, upstreams, ServerContexts(made), made.certificate_pem)


def _handles(plan: handover.ProxyPlan, fds: list[int]) -> Handles:
    sockets = [socket.socket(fileno=fd) for fd in fds[:6]]
    for sock in sockets:
        sock.setblocking(False)
    denials, unreported, askers, *more = fds[6:]
    broker = socket.socket(fileno=more.pop(0)) if plan.services else None
    return Handles(Listeners.of(sockets), denials, unreported, askers, broker, more[0] if plan.has_audit_log else None)


def _give_up_root(plan: handover.ProxyPlan) -> None:
    for limit, most in _LIMITS.items():
        hard = resource.getrlimit(limit)[1]
        granted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (granted, granted))
    os.chdir("/")
    privileges.become(plan.uid, plan.uid, ())


def _confine() -> None:
    """What of the kernel and of the file system a break-in would find: hosts(5) and resolv.conf(5), as they change."""
    landlock.confine_proxy((Path("/etc"), Path("/etc/resolv.conf").resolve().parent))
    seccomp.confine_proxy()


async def _serve(plan: handover.ProxyPlan, tls: Tls, handles: Handles, lifeline: socket.socket) -> None:
    summary = Summary()
    sink = AuditSink(handles.audit, sys.stderr if plan.verbose else None, plan.sandbox, summary)
    names = NameTable()
    policy = restore_policy(plan.policy)
    pinned = {name: tuple(map(ip_address, addresses)) for name, addresses in plan.pinned.items()}
    resolver = HostResolver(pinned)
    origins = SocketOrigins()
    dns = DnsServer(policy, resolver, names, Askers(handles.askers, plan.netns_cookie), sink)
    listening = _endpoints(handles.listeners)
    token = Token(plan.token)
    limits = Limits()
    interception = _interception(tls, limits)
    services = _services(plan, handles.broker, token)
    relay = Relay(
        *(policy, resolver, names, origins, sink, limits, listening, token, tls.access, dns.admit),
        interception=interception,
        services=services,
    )

    async def dns_over_tcp(connection: socket.socket) -> None:
        origin = origins.take(connection)
        await dns.handle_tcp(connection, origin.process if origin else None)

    denials = KernelDenials(handles.denials, handles.unreported, names.name_of, sink.write)
    asyncio.get_running_loop().add_reader(denials.fileno(), denials.take)
    async with asyncio.TaskGroup() as tasks:
        serving = [
            tasks.create_task(relay.serve(handles.listeners.proxy)),
            tasks.create_task(Acceptor(handles.listeners.dns_tcp, dns_over_tcp, limits).serve()),
            *(tasks.create_task(dns.serve_udp(sock)) for sock in handles.listeners.dns_udp),
        ]
        handover.answer(lifeline, tls.trusted)
        await _until_told(lifeline)
        await relay.drain(_DRAIN_S)
        for task in serving:
            task.cancel()
    if interception is not None:
        interception.upstreams.close()
    denials.take(limit=None)
    await resolver.aclose()
    _say_goodbye(summary, sink, denials.lost())


def _interception(tls: Tls, limits: Limits) -> Interception | None:
    if tls.certificates is None or tls.upstreams is None:
        return None
    return Interception(tls.certificates, SecureUpstreams(limits, tls.access, tls.upstreams))


def _services(plan: handover.ProxyPlan, broker: socket.socket | None, token: Token) -> Services | None:
    if broker is None:
        return None
    access = {each.name: Access(each.injection, _limiter(each)) for each in plan.services}
    return Services(access, BrokeredCredentials(broker), token)


def _limiter(service: handover.ServicePlan) -> RateLimiter | None:
    return None if service.rate_limit is None else RateLimiter(*service.rate_limit, time.monotonic)


async def _until_told(lifeline: socket.socket) -> None:
    """Until the supervisor wants an end. If it is gone instead, nobody watches the sandbox: end at once."""
    lifeline.setblocking(False)
    if await asyncio.get_running_loop().sock_recv(lifeline, len(handover.STOP)) != handover.STOP:
        os._exit(1)


def _endpoints(listeners: Listeners) -> frozenset[Endpoint]:
    names = [sock.getsockname() for sock in listeners.proxy]
    return frozenset(Endpoint(ip_address(name[0]), name[1]) for name in names)


def _say_goodbye(summary: Summary, sink: AuditSink, unreported: int) -> None:
    lines = summary.render()
    if sink.lost:
        lines.append(f"nono-ebpf: {sink.lost} audit records were not written: {sink.failure}")
    if unreported:
        lines.append(f"nono-ebpf: {unreported} refusals came too fast to be recorded")
    if lines:
        sys.stderr.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
