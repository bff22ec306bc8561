"""git over HTTPS, and protocols the relay does not know: PostgreSQL, Redis, a server that speaks first.

Each is run with the proxy variables and with an empty environment, and is denied another name of the world,
where every service listens on every address.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from kit import zone
from kit.expect import missing, require
from kit.machine import CA_BUNDLE, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

environments = pytest.mark.parametrize("proxy_env", [True, False], ids=["proxy-variables", "empty-environment"])
DENIED = "two.example.com"
_GREET = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 90) as server:
    banner = server.recv(100)
    server.sendall(b"EHLO\\r\\n")
    print(banner.decode().strip(), server.recv(100).decode().strip())
"""


def _run(world: World, host: str, port: int, commands: Sequence[Sequence[str]], proxy_env: bool) -> Run:
    rules = [f"{prefix}{host}:{port}" for prefix in ("", "*.")]
    options = [part for rule in rules for part in ("--allow-domain", rule)]
    return world.machine.run_steps(["--upstream-ca", str(world.ca_file), *options], commands, proxy_env=proxy_env)


def _assert_only_named(world: World, run: Run, host: str, port: int, expected: str) -> None:
    """All steps but the last printed `expected`; the last, for DENIED, failed with a message."""
    *allowed, denied = run.steps()
    for step in allowed:
        assert (step.returncode, step.stdout.strip()) == (0, expected), step
    assert denied.returncode != 0, denied
    assert denied.stderr.strip(), "the client said nothing"
    assert {record["port"] for record in run.flows("allow", target=host, event="flow")} == {port}, run.records
    assert run.flows("deny", target=DENIED), run.records
    assert f"--allow-domain {DENIED}" in run.stderr
    assert not [seen for seen in world.seen if DENIED in seen.what], "it left the machine"


@environments
def test_git(world: World, proxy_env: bool) -> None:
    """git clones over smart HTTPS from the host that is allowed."""
    require("git")
    home = world.machine.home
    names = ["git.example.com", "v4.git.example.com", "v6.git.example.com", DENIED]
    config = ["-c", f"http.sslCAInfo={CA_BUNDLE}", "-c", "advice.detachedHead=false"]
    script = 'git "$1" "$2" "$3" "$4" clone -q "https://$5/git/repo.git" "$6" && cat "$6/README"'
    clones = [str(home / f"{name}-{proxy_env}") for name in names]
    commands = [["/bin/sh", "-c", script, "sh", *config, *each] for each in zip(names, clones, strict=True)]
    run = _run(world, "git.example.com", 443, commands, proxy_env)
    _assert_only_named(world, run, "git.example.com", 443, "from the world")


@environments
@pytest.mark.parametrize("sslmode", ["disable", "require"])
def test_psql(world: World, proxy_env: bool, sslmode: str) -> None:
    """psql talks to the allowed database, in clear and with TLS, and to no other name of the world."""
    require("psql")
    _need_postgres(world)
    names = ["db.example.com", "v4.db.example.com", "v6.db.example.com", DENIED]
    login = f"user=postgres dbname=postgres sslmode={sslmode} connect_timeout=90"
    commands = [["psql", f"host={name} {login}", "-XAtc", "select 6 * 7"] for name in names]
    run = _run(world, "db.example.com", zone.POSTGRES_PORT, commands, proxy_env)
    _assert_only_named(world, run, "db.example.com", zone.POSTGRES_PORT, "42")


@environments
def test_redis(world: World, proxy_env: bool) -> None:
    """redis-cli talks to the allowed cache and to no other name of the world."""
    require("redis-cli")
    require("redis-server")
    assert world.redis
    names = ["cache.example.com", "v4.cache.example.com", "v6.cache.example.com", DENIED]
    commands = [["redis-cli", "-h", name, "ping"] for name in names]
    run = _run(world, "cache.example.com", zone.REDIS_PORT, commands, proxy_env)
    _assert_only_named(world, run, "cache.example.com", zone.REDIS_PORT, "PONG")


@environments
def test_server_speaks_first(world: World, proxy_env: bool) -> None:
    """A protocol whose server speaks first is judged by the name its address was given for, at once."""
    names = ["banner.example.com", "v4.banner.example.com", "v6.banner.example.com", DENIED]
    commands = [[sys.executable, "-c", _GREET, name, str(zone.BANNER_PORT)] for name in names]
    run = _run(world, "banner.example.com", zone.BANNER_PORT, commands, proxy_env)
    _assert_only_named(world, run, "banner.example.com", zone.BANNER_PORT, "220 banner.example.com ready 250 EHLO")
    assert {record["identity"] for record in run.flows("allow", event="flow")} == {"dns"}


def _need_postgres(world: World) -> None:
    try:
        assert world.postgres
    except FileNotFoundError as absent:
        missing("postgres", f"no PostgreSQL server: {absent}")
