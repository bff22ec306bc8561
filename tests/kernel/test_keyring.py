"""A real keyring: what is kept there, by us and as nono does, and what is said when it is locked or not there."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from kit.account import AS_NOBODY, TIMEOUT_S, place
from kit.checkout import opened
from kit.expect import missing
from kit.keyring import session

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

__all__ = ["place"]

# What the secret-service crate does, which nono has its keyring from: service, username and target.
AS_NONO = """
import secretstorage, sys
from contextlib import closing
with closing(secretstorage.dbus_init()) as bus:
    collection = secretstorage.Collection(bus)
    attributes = {"service": "nono", "username": sys.argv[1], "target": "default"}
    if len(sys.argv) > 2:
        collection.create_item("nono", attributes, sys.argv[2].encode(), replace=True)
    print([item.get_secret().decode() for item in collection.search_items(attributes)])
"""
# The real nono: its proxy is asked for a service whose credential is the entry of that name, and what the service got.
NONOS_PROXY = """
import http.client, socket, sys, threading
from nono_py import ProxyConfig, RouteConfig, start_proxy
listener = socket.create_server(("127.0.0.1", 0))
def serve():
    connection, _ = listener.accept()
    with connection:
        got = ""
        while "\\r\\n\\r\\n" not in got:
            got += connection.recv(65536).decode()
        field = [line for line in got.split("\\r\\n") if line.lower().startswith("authorization:")]
        print(field[0].split(": ", 1)[1], flush=True)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
threading.Thread(target=serve, daemon=True).start()
upstream = f"http://127.0.0.1:{listener.getsockname()[1]}"
route = RouteConfig("api", upstream, credential_key=sys.argv[1])
proxy = start_proxy(ProxyConfig(routes=[route], allow_all_hosts=True))
asked = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
asked.request("GET", "/api/x", headers={"Authorization": "Bearer " + proxy.env_vars()["NONO_PROXY_TOKEN"]})
print(asked.getresponse().status)
proxy.shutdown()
"""
LOCK = """
import secretstorage
secretstorage.Collection(secretstorage.dbus_init()).lock()
"""


def run(environment: dict[str, str], *command: str, given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        opened([*AS_NOBODY, sys.executable, "-I", *command]),
        env=environment | more,
        input=given,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd="/",
    )


def credential(environment: dict[str, str], *arguments: str, given: str = "", **more: str) -> Any:
    return run(environment, "-m", "nono_ebpf", "credential", *arguments, given=given, **more)


def state_of(environment: dict[str, str], reference: str, **more: str) -> str:
    done = credential(environment, "test", "--json", reference, **more)
    assert (done.returncode, "Traceback" in done.stderr) == (0 if '"readable"' in done.stdout else 1, False)
    return str(json.loads(done.stdout)["state"])


def test_what_is_kept_can_be_read(place: Path) -> None:
    """Set from stdin, replaced, listed; the value is in no output. nono finds it under the same attributes."""
    with session(place, "unlocked") as environment:
        assert state_of(environment, "github_token") == "missing"
        listed = credential(environment, "list")
        assert (listed.stdout, "no credential is in the keyring (service nono)" in listed.stderr) == ("", True)
        for value in ("first-value", "other-value\n"):
            done = credential(environment, "set", "github_token", given=value)
            assert (done.returncode, done.stdout) == (0, "")
            assert done.stderr == "nono-ebpf: github_token is kept in the keyring (service nono)\n"
        assert (
            state_of(environment, "github_token") == state_of(environment, "keyring://nono/github_token") == "readable"
        )
        listed = credential(environment, "list")
        assert listed.stdout == "github_token  the keyring (service nono)  readable\n"
        assert run(environment, "-c", AS_NONO, "github_token").stdout == "['other-value']\n"


def test_what_nono_kept_is_found_and_replaced(place: Path) -> None:
    """One entry, whoever writes it."""
    with session(place, "unlocked") as environment:
        run(environment, "-c", AS_NONO, "github_token", "by-nono")
        assert state_of(environment, "github_token") == "readable"
        credential(environment, "set", "github_token", given="by-us")
        assert run(environment, "-c", AS_NONO, "github_token").stdout == "['by-us']\n"


def test_nono_itself_reads_what_is_kept_here(place: Path) -> None:
    """Its proxy finds the entry in the same keyring, and puts it into a request."""
    if find_spec("nono_py") is None:
        missing("nono-py", "nono_py is not installed")
    with session(place, "unlocked") as environment:
        credential(environment, "set", "github_token", given="by-us")
        done = run(environment, "-c", NONOS_PROXY, "github_token")
        assert done.stdout.split("\n") == ["Bearer by-us", "200", ""], done.stderr


def test_a_locked_keyring_is_said_to_be(place: Path) -> None:
    """After a start without its password, and locked meanwhile. Nobody is asked anything, and nothing hangs."""
    with session(place, "unlocked") as environment:
        credential(environment, "set", "github_token", given="value")
        assert run(environment, "-c", LOCK).returncode == 0
        assert state_of(environment, "github_token") == "locked"
    with session(place, "locked") as environment:
        assert state_of(environment, "github_token") == "locked"
        done = credential(environment, "set", "github_token", given="value")
        assert (done.returncode, done.stderr.count("\n"), "is locked; unlock it" in done.stderr) == (1, 1, True)
        done = credential(environment, "list")
        assert "locked" in done.stdout + done.stderr
    with session(place, "unlocked") as environment:
        assert state_of(environment, "github_token") == "readable"


def test_of_a_locked_keyring_nobody_says_that_it_is_empty(place: Path) -> None:
    """What it holds may be hidden, so nothing is called missing."""
    with session(place, "unlocked") as environment:
        assert credential(environment, "list").returncode == 0
    with session(place, "locked") as environment:
        assert state_of(environment, "github_token") == "locked"
        done = credential(environment, "list")
        assert (done.returncode, done.stdout, "does not tell what it holds" in done.stderr) == (1, "", True)


def test_without_a_keyring_it_is_said_what_to_do(place: Path) -> None:
    """A bus without one, no bus that answers, no session at all: one line."""
    with session(place, "none") as environment:
        assert state_of(environment, "github_token") == "no_keyring"
        done = credential(environment, "set", "github_token", given="value")
        assert (done.returncode, done.stderr.count("\n"), "start gnome-keyring" in done.stderr) == (1, 1, True)
    assert state_of(environment, "github_token") == "no_keyring"
    bare = {name: environment[name] for name in ("HOME", "PATH", "LANG")}
    assert state_of(bare, "github_token") == "no_keyring"
    assert credential(bare, "list").returncode == 1


def test_the_bus_is_found_where_it_always_is(place: Path) -> None:
    """XDG_RUNTIME_DIR is enough, as in a session over ssh."""
    with session(place, "unlocked") as environment:
        credential(environment, "set", "github_token", given="value")
        del environment["DBUS_SESSION_BUS_ADDRESS"]
        assert state_of(environment, "github_token") == "readable"


def test_what_go_keyring_encoded(place: Path) -> None:
    """Decoded where the reference says so; what was not encoded is refused rather than guessed at."""
    with session(place, "unlocked") as environment:
        encoded = base64.b64encode(b"value").decode()
        credential(environment, "set", "encoded", given=f"go-keyring-base64:{encoded}")
        credential(environment, "set", "plain", given="value")
        credential(environment, "set", "broken", given="go-keyring-base64:=")
        found = [
            state_of(environment, f"keyring://nono/{name}?decode=go-keyring") for name in ("encoded", "plain", "broken")
        ]
        assert found == ["readable", "failed", "failed"]


@pytest.mark.parametrize("name", ["keyrings.alt.file.PlaintextKeyring", "keyring.backends.null.Keyring", "os.Keyring"])
def test_a_keyring_that_is_none_is_refused_by_name(name: str, place: Path) -> None:
    """Whether the environment or the library's settings name it; what they say about paths loads nothing."""
    with session(place, "unlocked") as environment:
        credential(environment, "set", "github_token", given="value")
        assert state_of(environment, "github_token", PYTHON_KEYRING_BACKEND=name) == "no_keyring"
        settings = place / ".config/python_keyring/keyringrc.cfg"
        settings.parent.mkdir(parents=True)
        (place / "planted.py").write_text(f"open('{place}/executed', 'w')\n")
        for configured in (name, "planted.Keyring"):
            settings.write_text(f"[backend]\ndefault-keyring={configured}\nkeyring-path={place}\n")
            done = credential(environment, "test", "github_token")
            assert (done.returncode, configured in done.stdout) == (1, True)
            assert configured.startswith("keyring.backends.") or "which is not trusted" in done.stdout
        assert not (place / "executed").exists()


@pytest.mark.parametrize("kind", ["endless", "pipe"])
def test_settings_that_are_no_file_are_none(kind: str, place: Path) -> None:
    """The sandboxed command may have put them there: nobody waits for them, nor fills the memory with them."""
    with session(place, "unlocked") as environment:
        credential(environment, "set", "github_token", given="value")
        settings = place / ".config/python_keyring/keyringrc.cfg"
        settings.parent.mkdir(parents=True)
        if kind == "pipe":
            os.mkfifo(settings, 0o666)
        else:
            settings.symlink_to("/dev/zero")
        assert state_of(environment, "github_token") == "readable"
