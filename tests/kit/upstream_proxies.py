"""A relay that sends what is permitted through an upstream proxy, which a script plays by hand or a real one is.

async with Chained("a.test") as it:
    client = await it.connect("a.test")
    proxy = await it.asked_for(f"a.test:{it.port}")
    await proxy.send(OPENED)
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

from kit.relaying import LIMITS, LOOPBACK, Peer, Relaying, listen

from nono_ebpf.model import ResolvedAddress
from nono_ebpf.policy.upstream_proxy import UpstreamProxy, joined, parse_bypass

if TYPE_CHECKING:
    from types import TracebackType

    from nono_ebpf.relay.chain import ProxyAccess
    from nono_ebpf.relay.limits import Limits

NAME = "proxy.test"
OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"
PATIENT = replace(LIMITS, upstream_proxy_s=120)


def unheard() -> socket.socket:
    """Has a port of loopback, which nobody else gets, and does not listen: who connects to it is refused.

    A listener that is shut down is none of that, where the kernel has chosen its port.
    """
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    return taken


class Chained(Relaying):
    """`upstream` and `accept` are the direct way; the proxy is at `proxy_port`, by default one played by the script."""

    def __init__(
        self,
        *names: str,
        proxy_port: int | None = None,
        tls: bool = False,
        bypass: tuple[str, ...] = (),
        access: ProxyAccess | None = None,
        allow: tuple[str, ...] = (),
        deny: tuple[str, ...] = (),
        limits: Limits = PATIENT,
    ) -> None:
        super().__init__(*names, allow=allow, deny=deny, limits=limits)
        self._proxy = listen()
        self.proxy_port: int = proxy_port or self._proxy.getsockname()[1]
        exempt = joined(parse_bypass(each, "test") for each in bypass)
        self.via = UpstreamProxy(NAME, self.proxy_port, tls, exempt)
        self.hosts[NAME] = (ResolvedAddress(LOOPBACK, own=True),)
        self.policy = replace(self.policy, upstream_proxy=self.via)
        context = replace(self.relay._context, policy=self.policy)
        self.relay._context = context if access is None else replace(context, access=access)

    async def asked(self) -> tuple[Peer, bytes]:
        """The proxy's next connection, and the request on it."""
        proxy = self._kept((await asyncio.get_running_loop().sock_accept(self._proxy))[0])
        return proxy, await proxy.receive_until(b"\r\n\r\n")

    async def asked_for(self, target: str) -> Peer:
        """The same; the request is for a tunnel to `target`, and nothing else is in it."""
        proxy, request = await self.asked()
        assert request.decode() == f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
        return proxy

    async def opened(self, target: str) -> Peer:
        """The proxy's end of a tunnel to `target`."""
        proxy = await self.asked_for(target)
        await proxy.send(OPENED)
        return proxy

    async def proxy_was_left_alone(self) -> bool:
        """No connection waits at the proxy."""
        try:
            self._proxy.accept()[0].close()
        except BlockingIOError:
            return True
        return False

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        self._proxy.close()
