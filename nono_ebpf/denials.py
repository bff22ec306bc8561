"""The kernel's own refusals, which never reach the relay, as audit records.

A flood of them is the sandbox's to make: a bounded number is taken at a time, like ones are recorded once per window,
and what found the kernel's buffer full is counted there.
"""

from __future__ import annotations

import itertools
import socket
import time
from typing import TYPE_CHECKING

from nono_ebpf.audit.record import Record, open_record
from nono_ebpf.audit.window import Window, Worth
from nono_ebpf.kernel import abi
from nono_ebpf.kernel.origdst import read_count
from nono_ebpf.kernel.ringbuf import DenialReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from nono_ebpf.model import FlowOrigin, IPAddress

TAKEN_AT_ONCE = 256  # about 5 ms, then the flows get their turn
WINDOW_RECORDS, WINDOW_S = 1024, 60.0

_DATAGRAM = "datagrams go to a resolver only (port 53); clients of QUIC fall back to TCP"
_REASONS = {
    abi.Reason.NOT_SERVED: "no proxy is alive to judge it",
    abi.Reason.DATAGRAM: _DATAGRAM,
    abi.Reason.DATAGRAM_CONNECT: _DATAGRAM,
    abi.Reason.SOCKET: "only TCP and UDP sockets can be judged",
    abi.Reason.NO_RECORD: "the kernel could not remember its destination",
}
_OVERFLOW = "more refusals than are recorded within a minute"
_PROTOCOLS = {socket.IPPROTO_ICMP: "icmp", socket.IPPROTO_ICMPV6: "icmpv6", 132: "sctp", 136: "udp-lite"}


class KernelDenials:
    """Owns both map fds for as long as the process lives. `name_of`: the name an address was given out for, if any."""

    def __init__(
        self,
        denials: int,
        unreported: int,
        name_of: Callable[[IPAddress], str | None],
        write: Callable[[Record], None],
    ) -> None:
        self._reader = DenialReader(denials)
        self._unreported = unreported
        self._name_of, self._write = name_of, write
        self._window = Window(WINDOW_RECORDS, WINDOW_S, time.monotonic)

    def fileno(self) -> int:
        """Readable while there are refusals to take."""
        return self._reader.fileno()

    def take(self, limit: int | None = TAKEN_AT_ONCE) -> None:
        """Record what is there, at most `limit` of them."""
        for reason, origin in itertools.islice(self._reader.read(), limit):
            self._note(reason, origin)

    def lost(self) -> int:
        """How many refusals the kernel could not report."""
        return read_count(self._unreported)

    def _note(self, reason: abi.Reason, raw: abi.nono_origin) -> None:
        origin = abi.origin_of(raw)
        # getaddrinfo connects a datagram socket to each of its answers to sort them (RFC 6724), and takes a no.
        if reason is abi.Reason.DATAGRAM_CONNECT and self._name_of(origin.destination.address) is not None:
            return
        key = (reason, origin.process.pid, origin.destination, raw.destination.protocol)
        worth = self._window.judge(key)
        if worth is not Worth.NOTHING:
            self._write(_record(reason, raw, origin, None if worth is Worth.RECORD else _OVERFLOW))


def _record(reason: abi.Reason, raw: abi.nono_origin, origin: FlowOrigin, instead: str | None) -> Record:
    record = open_record("kernel", "kernel", origin.process)
    record.timestamp_unix_ms -= (time.monotonic_ns() - raw.seen_ns) // 1_000_000
    if reason is abi.Reason.SOCKET:
        protocol = raw.destination.protocol
        record.target = f"{_PROTOCOLS.get(protocol, f'protocol {protocol}')} socket"
    else:
        record.original_destination = str(origin.destination)
        record.target, record.port = str(origin.destination.address), origin.destination.port
    record.denial_category = reason.name.lower()
    record.reason = instead or _REASONS[reason]
    return record
