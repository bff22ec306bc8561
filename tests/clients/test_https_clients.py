"""Unmodified HTTPS clients in a sandbox, with the proxy variables and with an empty environment.

One sandbox per client and environment. In it the client asks for the same host over IPv4, over IPv6, and for
another host on the very same address which no rule allows:

    one.example.com   203.0.113.10  2001:db8::10    allowed (v4. and v6. before it have one family only)
    two.example.com   203.0.113.10  2001:db8::10    denied
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit import zone
from kit.expect import require
from kit.machine import CA_BUNDLE, Run, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

PROGRAMS = Path(__file__).parent / "programs"
Command = Callable[[str], list[str]]
HOST, SAME_ADDRESS = "one.example.com", "two.example.com"
V4, V6 = zone.v4(HOST), zone.v6(HOST)


@dataclass(frozen=True)
class Client:
    """How to fetch a URL to stdout with `program`, and the variables by which it finds the CA bundle."""

    program: str
    command: Command
    trust: Mapping[str, str] = field(default_factory=dict)


def _python(script: str) -> Command:
    return lambda url: [sys.executable, str(PROGRAMS / script), url]


def _openssl(url: str) -> list[str]:
    host = url.split("/")[2]
    script = (
        f"printf 'GET /who HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n' | "
        f"openssl s_client -quiet -verify_quiet -verify_return_error -ign_eof "
        f"-verify_hostname {host} -servername {host} -connect {host}:443 | sed -n '/^{{/,$p' | grep ."
    )
    return ["/bin/sh", "-c", script]


CLIENTS = {
    "curl": Client("curl", lambda url: ["curl", "-sS", "--fail", "--max-time", "90", url]),
    "wget": Client("wget", lambda url: ["wget", "-nv", "--tries=1", "--timeout=90", "-O-", url]),
    "openssl": Client("openssl", _openssl),
    "urllib": Client("python3", _python("with_urllib.py")),
    "requests": Client("python3", _python("with_requests.py")),
    "aiohttp": Client("python3", _python("with_aiohttp.py")),
    "fetch": Client(
        "node",
        lambda url: ["node", str(PROGRAMS / "with_fetch.mjs"), url],
        {"NODE_EXTRA_CA_CERTS": CA_BUNDLE},
    ),
}


def _fetch_all(world: World, client: Client, proxy_env: bool) -> Run:
    urls = [f"https://{prefix}{HOST}/who" for prefix in ("", "v4.", "v6.")] + [f"https://{SAME_ADDRESS}/who"]
    options = ["--upstream-ca", str(world.ca_file), "--allow-domain", HOST, "--allow-domain", f"*.{HOST}"]
    commands = [client.command(url) for url in urls]
    return world.machine.run_steps(options, commands, env=client.trust, proxy_env=proxy_env)


def _assert_fetched(step: Step, host: str, addresses: set[str]) -> None:
    assert step.returncode == 0, step
    answer = json.loads(step.stdout)
    assert (answer["sni"], answer["host"]) == (host, host)
    assert answer["address"] in addresses


def _assert_denied(world: World, run: Run, step: Step) -> None:
    assert step.returncode != 0, step
    assert step.stderr.strip(), "the client said nothing"
    denied = run.flows("deny", target=SAME_ADDRESS)
    assert denied, run.records
    assert {record["pid"] > 0 for record in denied} == {True}
    assert f"--allow-domain {SAME_ADDRESS}" in run.stderr
    assert not [seen for seen in world.seen if SAME_ADDRESS in seen.what], "it left the machine"


def _check(world: World, client: Client, proxy_env: bool) -> None:
    run = _fetch_all(world, client, proxy_env)
    either, over_v4, over_v6, denied = run.steps()
    _assert_fetched(either, HOST, {V4, V6})
    _assert_fetched(over_v4, f"v4.{HOST}", {V4})
    _assert_fetched(over_v6, f"v6.{HOST}", {V6})
    _assert_denied(world, run, denied)
    resolved = {record["target"]: record["resolved_address"] for record in run.flows("allow", port=443)}
    assert {V4, V6} >= {resolved[HOST].rsplit(":", 1)[0].strip("[]")}, run.records


environments = pytest.mark.parametrize("proxy_env", [True, False], ids=["proxy-variables", "empty-environment"])


@environments
@pytest.mark.parametrize("name", CLIENTS)
def test_client(world: World, name: str, proxy_env: bool) -> None:
    """The client reaches the allowed host over both families, and not its neighbour on the same address."""
    require(CLIENTS[name].program)
    _check(world, CLIENTS[name], proxy_env)


@environments
def test_undici(world: World, undici: Command, proxy_env: bool) -> None:
    """undici as installed by npm behaves like any other client."""
    _check(world, Client("node", undici, {"NODE_EXTRA_CA_CERTS": CA_BUNDLE}), proxy_env)


@environments
def test_java(world: World, java: Command, proxy_env: bool) -> None:
    """Java's HttpClient, which knows no proxy variables, behaves like any other client."""
    _check(world, Client("java", java), proxy_env)
