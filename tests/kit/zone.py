"""The names of the test world and the addresses they have.

Two names on one address (`one`, `two`) show whether hosts are told apart by name; `v4.` and `v6.` before a
name make an answer of one family only. The zones are served by `kit.servers`, certificates hold `NAMES`.
"""

from __future__ import annotations

V4_NET, V6_NET = "203.0.113.0/24", "2001:db8::/64"
MACHINE_V4, MACHINE_V6 = "203.0.113.1", "2001:db8::1"
GATEWAY_V4, GATEWAY_V6 = "203.0.113.254", "2001:db8::254"
DNS_V4 = "203.0.113.53"
METADATA_V4 = "169.254.169.254"  # answered by the world, so that reaching it would be seen

HTTP_PORT, HTTPS_PORT, ECHO_PORT, SUM_PORT, BANNER_PORT = 80, 443, 7, 4000, 2222
SINK_UDP_PORT, POSTGRES_PORT, REDIS_PORT = 9999, 5432, 6379

HOSTS: dict[str, int] = {
    "one.example.com": 10,
    "two.example.com": 10,
    "other.example.net": 10,
    "git.example.com": 12,
    "banner.example.com": 13,
    "echo.example.com": 14,
    "db.example.com": 15,
    "cache.example.com": 16,
}
"""Name → last part of its addresses; names with the same number share an address."""

NAMES = [prefix + name for name in HOSTS for prefix in ("", "v4.", "v6.")] + ["alias.example.com"]


def v4(name: str) -> str:
    """The IPv4 address of a name in HOSTS."""
    return f"203.0.113.{HOSTS[name]}"


def v6(name: str) -> str:
    """The IPv6 address of a name in HOSTS."""
    return f"2001:db8::{HOSTS[name]}"


def addresses() -> list[tuple[str, str]]:
    """(IPv4, IPv6) of every host, each once."""
    return [(f"203.0.113.{number}", f"2001:db8::{number}") for number in sorted(set(HOSTS.values()))]


def _records(name: str) -> list[str]:
    return [
        f"{name}. 60 IN A {v4(name)}",
        f"{name}. 60 IN AAAA {v6(name)}",
        f"v4.{name}. 60 IN A {v4(name)}",
        f"v6.{name}. 60 IN AAAA {v6(name)}",
    ]


_EXTRA = [
    "alias.example.com. 60 IN CNAME one.example.com.",
    'one.example.com. 60 IN HTTPS 1 . alpn="h2" ech="AAj+DQAEAAAAAA=="',
    "rebind.example.com. 60 IN A 169.254.169.254",
    "inward.example.com. 60 IN A 127.0.0.1",
    f"own.example.com. 60 IN A {MACHINE_V4}",
    *(f"many.example.com. 60 IN A 198.51.100.{last}" for last in range(1, 81)),
]


def zone_text(apex: str) -> str:
    """The master file (RFC 1035 section 5) of `apex`, all names absolute."""
    lines = [
        f"{apex}. 60 IN SOA ns.{apex}. root.{apex}. 1 60 60 60 60",
        f"{apex}. 60 IN NS ns.{apex}.",
        f"ns.{apex}. 60 IN A {DNS_V4}",
    ]
    lines += [line for name in HOSTS for line in _records(name)] + _EXTRA
    return "\n".join(line for line in lines if line.split()[0].endswith(f"{apex}.")) + "\n"
