"""The other proxy, asked: nono's own, from its Python package, with one set of host rules after the other.

stdin is a JSON list of {"rules": […], "requests": […]}, stdout one of {"answers": […], "audit": […]}.
An empty rule set is nono's empty list, which is open; for want of rules the package itself writes a host that nobody
has. An answer is the status, or 0 when the connection was closed without one. The audit has [mode, denial category].
"""

from __future__ import annotations

import json
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from nono_py import ProxyConfig, ProxyHandle, start_proxy

DEADLINE_S = 90
# The answers that are for sure on record: a denial, and what was let through in vain.
RECORDED = (403, 502)


def answers(rule_set: dict[str, Any]) -> dict[str, Any]:
    """What a proxy with these rules answers to each request, on a connection of its own."""
    rules = rule_set["rules"]
    proxy = start_proxy(ProxyConfig(allowed_hosts=rules, allow_all_hosts=not rules))
    try:
        given = [_status(proxy, request) for request in rule_set["requests"]]
        audit = _audit(proxy, sum(status in RECORDED for status in given))
    finally:
        proxy.shutdown()
    return {"answers": given, "audit": audit}


def _audit(proxy: ProxyHandle, wanted: int) -> list[list[str | None]]:
    """What is on record, once that is as much as is `wanted`: an answer may be there before its record is."""
    found: list[list[str | None]] = []
    end = time.monotonic() + DEADLINE_S
    while True:
        found += [[event["mode"], event["denial_category"]] for event in proxy.drain_audit_events()]
        if len(found) >= wanted or time.monotonic() > end:
            return found
        time.sleep(0.01)


def _status(proxy: ProxyHandle, request: str) -> int:
    token = proxy.env_vars()["NONO_PROXY_TOKEN"]
    with socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S) as connection:
        connection.sendall(request.replace("{token}", token).encode())
        head = b""
        with suppress(ConnectionResetError):
            while b"\r\n" not in head and (more := connection.recv(4096)):
                head += more
    return int(head.split()[1]) if head else 0


if __name__ == "__main__":
    json.dump([answers(each) for each in json.load(sys.stdin)], sys.stdout)
