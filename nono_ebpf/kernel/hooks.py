"""The programs of bpf/, and where each is attached: the one table that loader, doctor and README follow."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class ProgramType(IntEnum):
    """enum bpf_prog_type."""

    CGROUP_SOCK = 9
    SOCK_OPS = 13
    CGROUP_SOCK_ADDR = 18
    CGROUP_SOCKOPT = 25


class AttachType(IntEnum):
    """enum bpf_attach_type."""

    INET_SOCK_CREATE = 2
    SOCK_OPS = 3
    INET4_CONNECT = 10
    INET6_CONNECT = 11
    UDP4_SENDMSG = 14
    UDP6_SENDMSG = 15
    UDP4_RECVMSG = 19
    UDP6_RECVMSG = 20
    GETSOCKOPT = 21
    INET4_GETPEERNAME = 29
    INET6_GETPEERNAME = 30


class Side(StrEnum):
    """Whose sockets a hook watches."""

    SANDBOX = "sandbox"
    PROXY = "proxy"


@dataclass(frozen=True, slots=True)
class Hook:
    """One function of bpf/."""

    function: str
    program_type: ProgramType
    attach_type: AttachType
    side: Side


_ADDR = ProgramType.CGROUP_SOCK_ADDR

HOOKS = (
    Hook("connect4", _ADDR, AttachType.INET4_CONNECT, Side.SANDBOX),
    Hook("connect6", _ADDR, AttachType.INET6_CONNECT, Side.SANDBOX),
    Hook("getpeername4", _ADDR, AttachType.INET4_GETPEERNAME, Side.SANDBOX),
    Hook("getpeername6", _ADDR, AttachType.INET6_GETPEERNAME, Side.SANDBOX),
    Hook("sendmsg4", _ADDR, AttachType.UDP4_SENDMSG, Side.SANDBOX),
    Hook("sendmsg6", _ADDR, AttachType.UDP6_SENDMSG, Side.SANDBOX),
    Hook("recvmsg4", _ADDR, AttachType.UDP4_RECVMSG, Side.SANDBOX),
    Hook("recvmsg6", _ADDR, AttachType.UDP6_RECVMSG, Side.SANDBOX),
    Hook("lifecycle", ProgramType.SOCK_OPS, AttachType.SOCK_OPS, Side.SANDBOX),
    Hook("sock_create", ProgramType.CGROUP_SOCK, AttachType.INET_SOCK_CREATE, Side.SANDBOX),
    Hook("asker4", _ADDR, AttachType.UDP4_RECVMSG, Side.PROXY),
    Hook("asker6", _ADDR, AttachType.UDP6_RECVMSG, Side.PROXY),
    Hook("origin_option", ProgramType.CGROUP_SOCKOPT, AttachType.GETSOCKOPT, Side.PROXY),
)
