"""What profiles and options say about the network, all told. The value that the rest of the program is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nono_ebpf.config.compile import Ports, Route
    from nono_ebpf.config.merge import Sourced
    from nono_ebpf.config.no_proxy import NoProxy
    from nono_ebpf.config.schema import TlsIntercept
    from nono_ebpf.policy.rules import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What profiles and options say about the network. `warnings` are lines for whoever wrote them.

    `upstream_auth` is a reference. `routes` are the credentials in use: shapes, without a secret. `no_proxy` is for
    clients, and decides nothing.
    """

    policy: Policy
    no_proxy: NoProxy
    upstream_auth: Sourced[str] | None = None
    open_ports: Ports = ()
    listen_ports: Ports = ()
    connect_ports: Ports = ()
    allow_http2: bool = False
    tls_intercept: TlsIntercept | None = None
    routes: tuple[Route, ...] = ()
    warnings: tuple[str, ...] = ()
