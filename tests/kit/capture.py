"""Everything that passes the test machine's only link to the world, taken down by scapy.

Knows Ethernet, IP, TCP and UDP through scapy. Must not know what a policy is: `Capture.outbound` says what left.
packet(7) rules the socket: a full buffer loses frames, so the kernel's count of those is part of the result.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kit import zone
from kit.namespaces import inside
from kit.patience import patient
from scapy.arch.linux import L2ListenSocket
from scapy.config import conf
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Ether
from scapy.sendrecv import AsyncSniffer

if TYPE_CHECKING:
    from scapy.packet import Packet

LINK = "mach0"
_SO_RCVBUFFORCE, _SOL_PACKET, _PACKET_STATISTICS = 33, 263, 6
_BUFFER_BYTES = 1 << 26
_DEADLINE_S = patient(90)
_SENTINEL_PORT = 4242
_NEIGHBOUR_MESSAGES = range(130, 138)  # ICMPv6 MLD and neighbour discovery: RFC 2710, RFC 4861
_MLD2_REPORT = 143  # RFC 3810


@dataclass(frozen=True, slots=True)
class Sent:
    """A kind of packet that left: what it carried, from which address, and where to."""

    protocol: str  # "tcp", "udp", or scapy's summary of anything else
    source: str
    address: str
    port: int


class Capture:
    """Runs from construction on, in the network namespace `netns`. Needs root."""

    def __init__(self, netns: str) -> None:
        self._netns = netns
        self._seen: Counter[Sent] = Counter()
        self._marked = threading.Event()
        self._mark = Sent("udp", zone.MACHINE_V4, zone.GATEWAY_V4, _SENTINEL_PORT)
        self._socket: L2ListenSocket = inside(netns, _open)
        self._hardware_address: str = inside(netns, _hardware_address)
        self._sniffer = AsyncSniffer(opened_socket=self._socket, prn=self._note, store=False)
        self._sniffer.start()

    def outbound(self) -> Counter[Sent]:
        """What has left up to now. Ends the capture.

        A datagram of our own goes out last and has to be seen, or a blind capture would look like a silent machine.
        """
        inside(self._netns, self._send_mark)
        try:
            assert self._marked.wait(_DEADLINE_S), "the capture does not see what leaves the machine"
            assert self._lost() == 0, "the capture missed frames"
        finally:
            self.close()
        del self._seen[self._mark]
        return self._seen

    def close(self) -> None:
        """End the capture, whatever it has seen."""
        if self._sniffer.running:
            self._sniffer.stop()
        self._socket.close()

    def _note(self, frame: Packet) -> None:
        if frame.src != self._hardware_address or is_housekeeping(frame):
            return
        sent = describe(frame)
        self._seen[sent] += 1
        if sent == self._mark:
            self._marked.set()

    def _send_mark(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"the end", (zone.GATEWAY_V4, _SENTINEL_PORT))

    def _lost(self) -> int:
        raw = self._socket.ins.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        _, dropped = struct.unpack("=II", raw)
        return int(dropped)


def _open() -> L2ListenSocket:
    conf.ifaces.reload()
    opened = L2ListenSocket(iface=LINK, promisc=False)
    opened.ins.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    return opened


def _hardware_address() -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as probe:
        probe.bind((LINK, 0))
        raw: bytes = probe.getsockname()[4]
    return raw.hex(":")


def is_housekeeping(frame: Packet) -> bool:
    """Link-layer neighbours, and the kernel's "nobody waits for this answer" to the resolver of the machine."""
    if ARP in frame:
        return True
    if IPv6 in frame and _is_neighbourly(frame):
        return True
    if ICMP in frame and IPerror in frame:
        return bool(frame[IP].dst == zone.DNS_V4 and frame[IPerror].src == zone.DNS_V4)
    return False


def _is_neighbourly(frame: Packet) -> bool:
    if ICMPv6DestUnreach in frame or TCP in frame or UDP in frame:
        return False
    inner = frame[IPv6ExtHdrHopByHop].payload if IPv6ExtHdrHopByHop in frame else frame[IPv6].payload
    kind = getattr(inner, "type", None)
    return kind in _NEIGHBOUR_MESSAGES or kind == _MLD2_REPORT


def describe(frame: Packet) -> Sent:
    """A frame as the judge of a test needs it."""
    network = next((frame[layer] for layer in (IP, IPv6) if layer in frame), frame[Ether])
    source, address = network.src, network.dst
    for name, layer in (("tcp", TCP), ("udp", UDP)):
        if layer in frame and ICMP not in frame:
            return Sent(name, source, address, frame[layer].dport)
    return Sent(frame.summary(), source, address, 0)
