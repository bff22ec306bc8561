"""What left the test machine and what arrived at the world, compared with what the rules permit.

The link is read by a packet(7) socket whose buffer the kernel fills; nothing has to run meanwhile. Only what leaves is
looked at (PACKET_OUTGOING), so that a question has an answer when its last frame is a mark of ours.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections import Counter
from typing import TYPE_CHECKING

from kit import zone
from kit.capture import LINK, Sent, describe, is_housekeeping
from kit.namespaces import inside
from kit.patience import patient
from kit.sandboxes import eventually
from scapy.layers.l2 import Ether

if TYPE_CHECKING:
    from kit.servers import Seen
    from kit.world import World

Target = tuple[str, str, int]  # protocol, address, port
_ETH_P_ALL, _OUTGOING, _SNAPPED_BYTES = 0x0003, 4, 65535
_SO_RCVBUFFORCE, _SOL_PACKET, _PACKET_STATISTICS = 33, 263, 6
_BUFFER_BYTES = 1 << 26
_MARK_PORT, _DEADLINE_S = 4243, patient(90)
WEB = (zone.HTTP_PORT, zone.HTTPS_PORT)


def endpoints(name: str, *ports: int) -> set[Target]:
    """Both addresses of a name of the zone, on these ports."""
    return {("tcp", address, port) for address in (zone.v4(name), zone.v6(name)) for port in ports}


class Wire:
    """The frames that leave network namespace `netns` by its only link."""

    def __init__(self, netns: str) -> None:
        self._netns = netns
        self._socket = inside(netns, self._open)
        self._marks = inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    @staticmethod
    def _open() -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        opened.bind((LINK, _ETH_P_ALL))
        opened.settimeout(_DEADLINE_S)
        return opened

    def left(self) -> Counter[Sent]:
        """What has left since the last call, up to now."""
        self._marks.sendto(b"mark", (zone.GATEWAY_V4, _MARK_PORT))
        mark = Sent("udp", zone.MACHINE_V4, zone.GATEWAY_V4, _MARK_PORT)
        seen: Counter[Sent] = Counter()
        while (sent := self._next()) != mark:
            if sent is not None:
                seen[sent] += 1
        assert self._lost() == 0, "the capture missed frames"
        return seen

    def _next(self) -> Sent | None:
        data, origin = self._socket.recvfrom(_SNAPPED_BYTES)
        if origin[2] != _OUTGOING:
            return None
        frame = Ether(data)
        return None if is_housekeeping(frame) else describe(frame)

    def _lost(self) -> int:
        raw = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int(struct.unpack("=II", raw)[1])

    def close(self) -> None:
        """Let go of the link."""
        self._socket.close()
        self._marks.close()


class Witness:
    """The world's servers and the wire, looked at together.

    `targets` may be dialled, `names` may be asked of DNS and requested of web servers.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._wire = Wire(world.namespaces.machine)
        self._sender = inside(world.namespaces.world, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._marks = itertools.count()
        self._sources = {zone.MACHINE_V4, zone.MACHINE_V6}
        self.targets: set[Target] = {("udp", zone.DNS_V4, 53), ("tcp", zone.DNS_V4, 53)}
        self.names: set[str] = set()

    def permit(self, name: str, *ports: int) -> None:
        """The rules permit `name`, a name of the zone, on `ports`."""
        self.names |= {name}
        self.targets |= endpoints(name, *ports)

    def arrived(self, service: str) -> list[Seen]:
        """What has arrived at one service since `forget`."""
        return [each for each in self._world.seen if each.service == service]

    def forget(self) -> None:
        """Begin anew: what a control of an experiment did is no leak. What it sent has been taken in by then."""
        mark = f"mark {next(self._marks)}"
        self._sender.sendto(mark.encode(), (zone.GATEWAY_V4, zone.SINK_UDP_PORT))
        assert eventually(lambda: any(each.what == mark for each in self._world.seen), _DEADLINE_S)
        self._wire.left()
        self._world.forget()

    def leaks(self) -> list[str]:
        """Everything since the last look that no rule permits, in words."""
        frames = [f"left: {sent} x{count}" for sent, count in self._wire.left().items() if not self._may_leave(sent)]
        return frames + [f"arrived: {seen}" for seen in self._world.seen if not self._may_arrive(seen)]

    def assert_nothing_leaked(self) -> None:
        """Neither a frame nor an arrival that no rule permits."""
        if leaks := self.leaks():
            raise AssertionError("\n".join(leaks[:20]))

    def _may_leave(self, sent: Sent) -> bool:
        return (sent.protocol, sent.address, sent.port) in self.targets and sent.source in self._sources

    def _may_arrive(self, seen: Seen) -> bool:
        if seen.service == "dns":
            return seen.what.split()[0].rstrip(".") in self.names
        if seen.service in {"http", "https"}:
            return _host_of(seen.what) in self.names and self._is_target(seen, WEB)
        port = {"sum": zone.SUM_PORT, "banner": zone.BANNER_PORT, "echo": zone.ECHO_PORT}.get(seen.service, 0)
        return self._is_target(seen, (port,))

    def _is_target(self, seen: Seen, ports: tuple[int, ...]) -> bool:
        return any(("tcp", seen.address, port) in self.targets for port in ports)

    def close(self) -> None:
        """Let go of the link."""
        self._wire.close()
        self._sender.close()


def _host_of(what: str) -> str:
    """The Host field of what a web server noted: METHOD HOST/PATH."""
    return what.split(" ", 1)[1].partition("/")[0].removesuffix(":80").removesuffix(":443")
