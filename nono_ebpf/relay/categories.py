"""`denial_category` of what no rule decided, by nono's names where it has one. Those of rules are `policy.decide`'s."""

from __future__ import annotations

from typing import Final

PROTOCOL: Final = "protocol"  # the client broke its protocol
NO_ORIGIN: Final = "no_origin"  # the kernel has no record of the connection
AUTHENTICATION_FAILED: Final = "authentication_failed"
INTERCEPT_HANDSHAKE_FAILED: Final = "intercept_handshake_failed"
RATE_LIMITED: Final = "rate_limited"  # more requests to a service than it may be sent
UNSUPPORTED_UPGRADE: Final = "unsupported_upgrade"
UNKNOWN_SERVICE: Final = "unknown_service"  # a request for us ourselves, and nothing here has that name
INTERNAL: Final = "internal"  # a fault of ours
