"""What the clients need besides themselves: undici from npm, the Java client compiled, a Java truststore."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit.expect import missing, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from kit.world import World

PROGRAMS = Path(__file__).parent / "programs"
UNDICI = "undici@6"


@pytest.fixture(scope="session")
def undici(_world: World) -> Callable[[str], list[str]]:
    """URL → the command that fetches it with undici, which npm installs once for all tests."""
    require("node")
    directory = _world.work / "undici"
    install = [require("npm"), "install", "--silent", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run([*install, "--prefix", str(directory), UNDICI], capture_output=True, text=True)
    if done.returncode != 0:
        missing("undici", f"npm cannot install {UNDICI}: {done.stderr[-300:]}")
    return lambda url: ["node", str(PROGRAMS / "with_undici.mjs"), str(directory), url]


@pytest.fixture(scope="session")
def java(_world: World) -> Callable[[str], list[str]]:
    """URL → the command that fetches it with Java's HttpClient, which trusts the world's CA."""
    directory = _world.work / "java"
    directory.mkdir()
    require("java")
    subprocess.run([require("javac"), "-d", str(directory), str(PROGRAMS / "Client.java")], check=True)
    store, password = directory / "trust.p12", "changeit"
    create = ["-storetype", "PKCS12", "-keystore", str(store), "-storepass", password]
    entry = ["-noprompt", "-alias", "world", "-file", str(_world.ca_file)]
    subprocess.run([require("keytool"), "-importcert", *create, *entry], check=True, capture_output=True)
    trust = [f"-Djavax.net.ssl.trustStore={store}", f"-Djavax.net.ssl.trustStorePassword={password}"]
    return lambda url: ["java", "-XX:TieredStopAtLevel=1", *trust, "-cp", str(directory), "Client", url]
