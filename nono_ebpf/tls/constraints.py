"""Whether a certificate authority can say which hosts it is for (RFC 5280 §4.2.1.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

# Ours: of all names together, as DER. They are in every handshake, in which Java takes messages of 32 KiB.
MAX_NAMES_BYTES: Final = 16384
_NAME_HEADER_BYTES: Final = 4


def can_be_constrained(hosts: Collection[str]) -> bool:
    """Not when `*`, every host, is one of them, nor when a handshake would have to carry too many names."""
    names = {host.removeprefix("*.") for host in hosts}
    return "*" not in names and sum(len(name) + _NAME_HEADER_BYTES for name in names) <= MAX_NAMES_BYTES
