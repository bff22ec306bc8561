"""Values that every part shares. Frozen, already canonical, no behaviour beyond their text form."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address and port to connect to. IPv4 is never stored IPv4-mapped."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Process:
    """Who asked, as the kernel told us at connect(2). `pid` and `uid` are those of the initial namespaces.

    `comm` is the task's own choice of name: hostile text.
    """

    pid: int
    comm: str
    uid: int
    cgroup_id: int


@dataclass(frozen=True, slots=True)
class FlowOrigin:
    """Where a redirected connection was going, and whose it is."""

    destination: Endpoint
    process: Process


class Identity(StrEnum):
    """How we know which host a flow is for, most trusted first."""

    DNS = "dns"  # the name this sandbox was given the destination address for
    SNI = "sni"  # TLS server_name, RFC 6066 §3
    HOST = "host"  # HTTP Host field of a redirected request
    AUTHORITY = "authority"  # CONNECT target or absolute-form URI
    ADDRESS = "address"  # nothing but the destination address


@dataclass(frozen=True, slots=True)
class ResolvedAddress:
    """One answer for a name, with the facts `decide()` judges it by.

    `own`: the address belongs to this host (loopback or an interface of ours).
    `pinned`: the operator wrote this very address (`--resolve`), or it is a literal in the question.
    """

    address: IPAddress
    own: bool = False
    pinned: bool = False
