"""Landlock domains: the command's, where namespaces leave something open, and the proxy's. landlock(7).

What the kernel does not know is left out: `nono-ebpf doctor` and `run -v` say so. What the operator asked for by name
is not left out: `Domain.check` refuses.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from landlockpy import AccessFS, AccessNet, LandlockError, Ruleset, Scope, abi_version, fs_for_abi, net_for_abi
from landlockpy.flags import LATEST_ABI

from nono_ebpf.errors import KernelError, NotSupported

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_SCOPES: Final = Scope.SIGNAL | Scope.ABSTRACT_UNIX_SOCKET
_TCP: Final = AccessNet.CONNECT_TCP | AccessNet.BIND_TCP
_SOCKETS: Final = AccessFS.RESOLVE_UNIX | AccessFS.REFER
_READ: Final = AccessFS.READ_FILE | AccessFS.READ_DIR


class Feature(Enum):
    """What of Landlock a sandbox uses: the ABI version it came with, the release of the kernel, what it is for."""

    PORTS = (4, "6.7", "TCP ports that no rule names")
    SCOPES = (6, "6.12", "signals and abstract sockets to the outside")
    SOCKETS = (9, "7.1", "unix sockets made outside")

    def __init__(self, abi: int, release: str, refuses: str) -> None:
        self.abi, self.release, self.refuses = abi, release, refuses

    @property
    def here(self) -> bool:
        """Whether this kernel has it."""
        return abi_version() >= self.abi


@dataclass(frozen=True, slots=True)
class Domain:
    """What the command's domain leaves open.

    `sockets`: paths of unix sockets made outside that it may connect to. `ports`: of TCP, to connect to; None leaves
    TCP to the hooks, which judge hosts as well. Where ports are judged, `listen_ports` are the only ones to bind.
    """

    sockets: tuple[Path, ...] = ()
    ports: frozenset[int] | None = None
    listen_ports: frozenset[int] = frozenset()

    def check(self) -> None:
        """Raises NotSupported where the ports were asked for and the kernel cannot judge them.

        To be called before `enter` and outside: the library's first call runs ldconfig(8) to find libc.
        """
        judges_ports = Feature.PORTS.here
        if self.ports is not None and not judges_ports:
            raise NotSupported("--landlock-ports", errno.EOPNOTSUPP, hint=f"needs Linux {Feature.PORTS.release}")

    def with_ports(self, *ports: int) -> Domain:
        """The same; where it judges ports at all, these are among them."""
        return self if self.ports is None else replace(self, ports=self.ports | set(ports))

    def describe(self) -> str:
        """One line: what this kernel makes of it, and what it would take for the rest."""
        wanted = [feature for feature in Feature if feature is not Feature.PORTS or self.ports is not None]
        enforced = [feature.refuses for feature in wanted if feature.here]
        missing = [f"{feature.refuses} (Linux {feature.release})" for feature in wanted if not feature.here]
        lacks = f"; not here: {', '.join(missing)}" if missing else ""
        return f"Landlock (ABI {abi_version()}) refuses {', '.join(enforced) or 'nothing'}{lacks}"

    def enter(self) -> None:
        """Confine this thread and its descendants, for good. Needs no_new_privs or root."""
        if not (Feature.SCOPES.here or self.ports is not None):
            return
        handled_net = AccessNet.NONE if self.ports is None else _TCP
        with _ruleset(_SOCKETS if Feature.SOCKETS.here else AccessFS.NONE, handled_net) as rules:
            # A domain that judges any file also refuses to move files between directories, unless it is told otherwise.
            rules.allow_path("/", AccessFS.REFER)
            for path in self.sockets:
                rules.allow_path(path, AccessFS.RESOLVE_UNIX)
            for port in self.ports or ():
                rules.allow_port(port, AccessNet.CONNECT_TCP)
            for port in self.listen_ports:
                rules.allow_port(port, AccessNet.BIND_TCP)
            rules.restrict()


def confine_proxy(readable: Iterable[Path]) -> None:
    """For good: no file but those it may read, no TCP port of its own, no signal to and no socket of anybody else.

    Needs no_new_privs or root. Does nothing where the kernel has no Landlock.
    """
    if not abi_version():
        return
    with _ruleset(fs_for_abi(LATEST_ABI), net_for_abi(LATEST_ABI) & AccessNet.BIND_TCP) as rules:
        for path in readable:
            if path.exists():
                rules.allow_path(path, _READ if path.is_dir() else AccessFS.READ_FILE)
        rules.restrict()


def _ruleset(handled_fs: AccessFS, handled_net: AccessNet) -> Ruleset:
    try:
        return Ruleset(handled_fs=handled_fs, handled_net=handled_net, scoped=_SCOPES)
    except LandlockError as error:
        raise KernelError("make a Landlock ruleset", error.errno or 0) from error
