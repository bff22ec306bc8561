"""What the proxy does with TLS, done where it is confined: as an account of its own, behind Landlock and seccomp.

Run as root, it gives everything up as the proxy does and prints what worked, as JSON. A stand-in for a client and one
for an origin server are in the same process; what they need was made before.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import socket
import ssl
import sys
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import trustme
import uvloop

from nono_ebpf.errors import ClientProtocolError, UpstreamError
from nono_ebpf.model import Endpoint
from nono_ebpf.policy.decide import Permit
from nono_ebpf.policy.rules import parse_allow_rule
from nono_ebpf.policy.services import Service
from nono_ebpf.relay.chain import ProxyAccess
from nono_ebpf.relay.limits import Limits
from nono_ebpf.relay.secure import accept, secure
from nono_ebpf.relay.secure_upstreams import SecureUpstreams
from nono_ebpf.relay.stream import Stream, Upstream, connect, tune
from nono_ebpf.sandbox import landlock, privileges, seccomp
from nono_ebpf.tls.authority import CertificateAuthority, preload
from nono_ebpf.tls.contexts import ServerContexts, ServiceTls, UpstreamContexts, context_for

LIMITS = Limits()
RULE = parse_allow_rule("*", "test")
LOOPBACK = ip_address("127.0.0.1")
MUCH = 1 << 20
KEPT = 16  # certificates: as many as by default would take an emulated guest half a minute


class Place:
    """Everything that is made before, in the order in which the proxy makes it."""

    def __init__(self, account: pwd.struct_passwd) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        os.chdir("/")
        preload()
        privileges.become(account.pw_uid, account.pw_gid, ())
        elsewhere = trustme.CA()
        us = elsewhere.issue_cert("us.test")
        ours = ServiceTls(elsewhere.cert_pem.bytes(), us.cert_chain_pems[0].bytes(), us.private_key_pem.bytes())
        self.pool = SecureUpstreams(LIMITS, ProxyAccess(), UpstreamContexts(None, {"svc": ours}))
        authority = CertificateAuthority(["*.a.test", "203.0.113.7"])
        self.contexts = ServerContexts(authority, capacity=KEPT)
        self.client, self.distrusting = context_for(authority.certificate_pem), context_for(None)
        self.origin = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        elsewhere.issue_cert("origin.test").configure_cert(self.origin)
        elsewhere.configure_trust(self.origin)
        self.origin.verify_mode = ssl.CERT_OPTIONAL
        landlock.confine_proxy((Path("/etc"), Path("/etc/resolv.conf").resolve().parent))
        seccomp.confine_proxy()

    def permit(self, host: str, service: str | None) -> Permit:
        """To the stand-in for an origin."""
        where = Endpoint(LOOPBACK, self.listener.getsockname()[1])
        return Permit(host, where.port, (where,), RULE, service=Service(service, RULE) if service else None)

    async def pair(self) -> tuple[socket.socket, socket.socket]:
        """A connection: who dialled, and who was."""
        dialled = socket.socket()
        tune(dialled)
        address, port = self.listener.getsockname()
        await connect(dialled, address, port)
        accepted, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        tune(accepted)
        return dialled, accepted


def confined() -> str:
    """Refused where it has to be; or nothing here would mean anything."""
    refused = []
    for path, flags in ((sys.executable, os.O_RDONLY), ("/etc/passwd", os.O_RDWR), ("/tmp", os.O_RDONLY)):
        try:
            os.close(os.open(path, flags))
        except PermissionError:
            refused.append(path)
    return f"{len(refused)} of 3, uid {os.getuid() != 0}"


async def intercept(place: Place) -> str:
    """Names that nobody has asked for before, and more of them than are kept."""
    for host in (*(f"h{number}.a.test" for number in range(2 * KEPT)), "203.0.113.7"):
        context = place.contexts.context_for(host)
    theirs, ours = await place.pair()
    near = Upstream(theirs, "near", Endpoint(LOOPBACK, 1))
    client, server = await asyncio.gather(
        secure(near, "203.0.113.7", place.client, None, 30), accept(Stream(ours), context, 30)
    )
    sending = asyncio.ensure_future(client.send(bytes(MUCH), 30))
    while len(server.unread) < MUCH:
        await server.fill(30, 1 << 18)
    await sending
    await server.send(b"answer", 30)
    await client.fill(30)
    server.close()
    ended = not await client.fill(30)
    client.close()
    return f"{client.take_unread().decode()}, ended {ended}"


async def refused(place: Place) -> str:
    """Everything that is only needed when something fails."""
    theirs, ours = await place.pair()
    near = Upstream(theirs, "near", Endpoint(LOOPBACK, 1))
    results = await asyncio.gather(
        secure(near, "h0.a.test", place.distrusting, None, 30),
        accept(Stream(ours), place.contexts.context_for("h0.a.test"), 30),
        return_exceptions=True,
    )
    near.reset()
    ours.close()
    failures = [type(each).__name__ for each in results]
    assert failures == [UpstreamError.__name__, ClientProtocolError.__name__], results
    return str(results[1])


async def upstream(place: Place) -> str:
    """Twice by one connection, and a third time resumed; we are known by our certificate."""
    known: list[object] = []
    reused: list[bool] = []

    async def origin() -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(place.listener)
            tune(sock)
            stream = await accept(Stream(sock), place.origin, 30)
            tls = stream._tls.tls
            known.append(bool(tls.getpeercert()))
            reused.append(bool(tls.session_reused))
            while await stream.fill(30):
                await stream.send(b"response", 30)
                stream.unread.clear()
            stream.close()

    serving = asyncio.ensure_future(origin())
    permit = place.permit("origin.test", "svc")
    for number in range(3):
        ours = place.pool.idle(permit) or await place.pool.connect(permit)
        await ours.send(b"request", 30)
        while len(ours.unread) < 8:
            await ours.fill(30)
        ours.unread.clear()
        place.pool.give_back(ours) if number != 1 else ours.close()
    place.pool.close()
    try:
        await place.pool.connect(place.permit("127.0.0.1", "svc"))
    except UpstreamError as error:
        problem = error.problem
    serving.cancel()
    with suppress(asyncio.CancelledError, ClientProtocolError):
        await serving
    return f"known {known[:2]}, reused {reused[:2]}, {problem}"


async def everything(place: Place) -> dict[str, str]:
    """By name."""
    steps = {"intercept": intercept, "refused": refused, "upstream": upstream}
    return {"confined": confined(), **{name: await step(place) for name, step in steps.items()}}


if __name__ == "__main__":
    made = Place(pwd.getpwnam(sys.argv[1]))
    loop = uvloop.new_event_loop()
    sys.stdout.write(json.dumps(loop.run_until_complete(everything(made))))
    sys.stdout.flush()
    os._exit(0)
