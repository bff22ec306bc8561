"""What it takes to be both ends of a client's TLS: a certificate for the host, and a verified connection to it.

Must not know who is to be intercepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import ssl

    from nono_ebpf.relay.secure_upstreams import SecureUpstreams


class Certificates(Protocol):
    """Certificates that this sandbox trusts."""

    def context_for(self, host: str) -> ssl.SSLContext:
        """A server's, for the canonical `host`.

        Raises:
            ClientProtocolError: it cannot be made any longer. ValueError: there are none for this host.
        """


@dataclass(frozen=True, slots=True)
class Interception:
    """`certificates`: what clients are shown. `upstreams`: where their requests go on, inside TLS of our own."""

    certificates: Certificates
    upstreams: SecureUpstreams
