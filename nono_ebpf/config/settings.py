"""What profiles and options say about the network, all told. The value that the rest of the program is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nono_ebpf.config.merge import Sourced

if TYPE_CHECKING:
    from nono_ebpf.config.no_proxy import NoProxy
    from nono_ebpf.config.routes import Route
    from nono_ebpf.policy.rules import Policy

CA_SHORTEST_S, _DAY_S = 60 * 60, 24 * 60 * 60
# First and last port, and where they were written.
Ports = tuple[Sourced[tuple[int, int]], ...]


@dataclass(frozen=True, slots=True)
class Interception:
    """The certificates of TLS connections that the proxy ends itself.

    `hosts`: every pattern of a host whose TLS may be ended. `ca_env_vars`: further variables in which a client looks
    for certificates. `ca_cert`, `ca_key`: paths of the operator's own CA; both or neither. A leaf is no longer valid
    than its CA.
    """

    hosts: tuple[str, ...] = ()
    ca_validity_s: int = _DAY_S
    leaf_validity_s: int = _DAY_S
    ca_env_vars: tuple[str, ...] = ()
    ca_cert: str | None = None
    ca_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What profiles and options say about the network. `warnings` are lines for whoever wrote them.

    `upstream_auth` is a reference. `routes` are the services in use with a credential: where it is kept, never what it
    is. `shared_secrets`: its file may be open to other accounts. `no_proxy` is for clients, and decides nothing.
    """

    policy: Policy
    no_proxy: NoProxy
    upstream_auth: Sourced[str] | None = None
    open_ports: Ports = ()
    listen_ports: Ports = ()
    connect_ports: Ports = ()
    allow_http2: bool = False
    tls_intercept: Interception = Interception()
    routes: tuple[Route, ...] = ()
    shared_secrets: bool = False
    warnings: tuple[str, ...] = ()
