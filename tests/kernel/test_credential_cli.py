"""`nono-ebpf credential` as root, with the real systemd-creds: /etc and the host's key are of each test's own."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from kit.account import NOBODY, TIMEOUT_S, place
from kit.expect import require
from kit.keyring import session
from kit.patience import patient

from nono_ebpf.credential import keyring_state
from nono_ebpf.sandbox.user import User

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.root

__all__ = ["place"]

PROGRAM = f"{sys.executable} -I -m nono_ebpf credential"
STORE = "/etc/credstore.encrypted"
# $1 becomes a directory whose `etc` and `key` lie over the machine's.
PRIVATE = """
set -e
mkdir -p "$1/etc" "$1/work" "$1/key"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/work" overlay /etc
mkdir -p /var/lib/systemd
mount --bind "$1/key" /var/lib/systemd
shift
set +e
eval "$1"
"""
THROUGH_BROKER = """
import asyncio, sys
from nono_ebpf.relay.secrets import BrokeredCredentials
from nono_ebpf.sandbox.broker_process import BrokerProcess
from nono_ebpf.sandbox.user import User
from nono_ebpf.errors import CredentialUnavailable
broker = BrokerProcess()
names = {name: name for name in sys.argv[2:]}
user = User("nobody", 65534, 65534, (65534,), "/")
broker.serve(names, user, {"PATH": "/usr/bin:/bin"}, as_account=sys.argv[1] == "account")
async def ask():
    credentials = BrokeredCredentials(broker.proxy_end)
    for name in names:
        try:
            print(name, (await credentials.get(name)).reveal().decode())
        except CredentialUnavailable as error:
            print(name, error.state)
asyncio.run(ask())
broker.stop()
broker.end()
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Where the test's /etc and key are. The same in all commands of a test."""
    require("systemd-creds")
    return tmp_path


def host(own: Path, script: str, given: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell's `script` on such a host."""
    command = ["unshare", "--mount", "--propagation=private", "--", "sh", "-c", PRIVATE, "sh", str(own), script]
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin", "HOME": "/root", "LANG": "C.UTF-8"} | variables
    return subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment
    )


def test_roots_credentials_are_kept_encrypted(own: Path) -> None:
    """In the host's store, root's alone, the value nowhere in it; by name and by what systemd-creds calls it."""
    done = host(own, f"{PROGRAM} set api_key", "s3cret-value\n")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "",
        f"nono-ebpf: api_key is kept in {STORE}/nono.api_key\n",
    )
    kept = own / "etc/credstore.encrypted/nono.api_key"
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert b"s3cret" not in kept.read_bytes()
    assert [each.name for each in kept.parent.iterdir()] == ["nono.api_key"]
    assert host(own, f"systemd-creds decrypt {STORE}/nono.api_key -").stdout == "s3cret-value"
    for reference in ("api_key", "systemd-creds://api_key"):
        done = host(own, f"{PROGRAM} test {reference}")
        assert (
            done.returncode,
            done.stdout.startswith(f"{reference}  {STORE}/nono.api_key  can be read, written 0 d"),
        ) == (0, True)


def test_it_is_replaced_and_listed(own: Path) -> None:
    """Each with its state; what is there of others is not ours."""
    host(own, f"{PROGRAM} set api_key", "first")
    host(own, f"{PROGRAM} set api_key", "second")
    host(own, f"echo damaged > {STORE}/nono.damaged; echo x > {STORE}/other")
    assert host(own, f"systemd-creds decrypt {STORE}/nono.api_key -").stdout == "second"
    listed = json.loads(host(own, f"{PROGRAM} list --json").stdout)
    assert [(each["name"], each["state"] == "readable") for each in listed] == [("api_key", True), ("damaged", False)]
    assert host(own, f"{PROGRAM} list").stdout.splitlines()[0] == f"api_key  {STORE}/nono.api_key  readable"


def test_an_empty_list_says_so(own: Path) -> None:
    """To people; for machines it is an empty list."""
    done = host(own, f"{PROGRAM} list")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1)
    assert f"no credential is in {STORE}; `nono-ebpf credential set NAME`" in done.stderr
    done = host(own, f"{PROGRAM} list --json")
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, [], "")


def test_it_cannot_be_passed_off_as_another(own: Path) -> None:
    """A copy of one entry under another name is not it; nor is anything under another host's key."""
    host(own, f"{PROGRAM} set api_key", "value")
    host(own, f"cp {STORE}/nono.api_key {STORE}/nono.other")
    assert host(own, f"{PROGRAM} test other").returncode == 1
    (own / "key/credential.secret").unlink()
    done = host(own, f"{PROGRAM} test api_key")
    assert (done.returncode, "this host's key" in done.stdout) == (1, True)


@pytest.mark.parametrize(
    ("given", "problem"), [("", "empty"), ("\n", "empty"), ("a\nb\n", "more than one line"), ("a\0", "NUL")]
)
def test_what_is_no_secret_is_not_kept(given: str, problem: str, own: Path) -> None:
    """And what was there before stays."""
    host(own, f"{PROGRAM} set api_key", "before")
    done = host(own, f"{PROGRAM} set api_key", given)
    assert (done.returncode, done.stderr.count("\n"), problem in done.stderr) == (2, 1, True)
    assert host(own, f"systemd-creds decrypt {STORE}/nono.api_key -").stdout == "before"


@pytest.mark.parametrize(
    "arguments", ["set api_key value", "set", "set env://X", "set a/b", "test a-b", "test ''", "", "get x"]
)
def test_what_makes_no_sense(arguments: str, own: Path) -> None:
    """One line, exit 2; a value is never an argument."""
    done = host(own, f"{PROGRAM} {arguments}", "value")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert not (own / "etc/credstore.encrypted").exists()


def test_the_broker_reads_it_for_root_alone(own: Path) -> None:
    """With the account's rights the name means its keyring, and the store by its name is closed to it."""
    host(own, f"{PROGRAM} set api_key", "s3cret")
    command = f"{sys.executable} -I -c '{THROUGH_BROKER}'"
    names = "api_key systemd-creds://api_key unknown"
    found = host(own, f"{command} root {names}")
    assert found.stdout.splitlines() == ["api_key s3cret", "systemd-creds://api_key s3cret", "unknown missing"], (
        found.stderr
    )
    found = host(own, f"{command} account {names}")
    assert [line.split()[1] for line in found.stdout.splitlines()] == ["no_keyring", "unreadable", "no_keyring"]


def test_through_sudo_it_is_said_whose_they_would_be(own: Path) -> None:
    """`run` through sudo takes the account's: root's store would never be looked at."""
    done = host(own, f"{PROGRAM} set api_key", "value", SUDO_UID=str(NOBODY.pw_uid))
    assert (done.returncode, done.stderr.count("\n"), "leave out sudo" in done.stderr) == (2, 1, True)


@pytest.mark.parametrize(
    ("reference", "state", "status"),
    [
        ("env://TOKEN", "readable", 0),
        ("env://NOT_THERE", "missing", 1),
        ("file:///dev/null", "not_a_file", 1),
        ("cmd://x", "unsupported", 1),
        ("apple-password://a/b", "unsupported", 1),
        ("keyring://other/x", "no_keyring", 1),
    ],
)
def test_a_reference_of_any_kind_is_tried(reference: str, state: str, status: int, own: Path) -> None:
    """The word is the one that requests are refused with; the value is not shown."""
    done = host(own, f"{PROGRAM} test --json '{reference}'", TOKEN="s3cret-value")
    assert (json.loads(done.stdout)["state"], done.returncode) == (state, status)
    assert "s3cret" not in done.stdout + done.stderr


def test_a_terminal_is_asked_without_an_echo(own: Path) -> None:
    """What is typed appears nowhere."""
    seen = on_terminal(own, f"{PROGRAM} set api_key", b"api_key: ", b"typed-value\n")
    assert b"typed-value" not in seen
    assert b"is kept in" in seen
    assert host(own, f"systemd-creds decrypt {STORE}/nono.api_key -").stdout == "typed-value"


def test_a_terminal_gets_a_table(own: Path) -> None:
    """With headings."""
    host(own, f"{PROGRAM} set api_key", "value")
    assert b"where" in on_terminal(own, f"{PROGRAM} list", b"", b"")


def on_terminal(own: Path, script: str, prompt: bytes, typed: bytes) -> bytes:
    """What a terminal showed, on which `typed` was typed after `prompt`."""
    ours, theirs = pty.openpty()
    command: Sequence[str] = [
        "unshare",
        "--mount",
        "--propagation=private",
        "--",
        "setsid",
        "-c",
        "sh",
        "-c",
        PRIVATE,
        "sh",
    ]
    process = subprocess.Popen([*command, str(own), script], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
            if typed and prompt in seen:
                os.write(ours, typed)
                typed = b""
    except OSError:  # nobody has the other end any more
        pass
    finally:
        os.close(ours)
        process.wait(TIMEOUT_S)
    return seen


def test_the_doctor_can_say_where_credentials_are(place: Path) -> None:
    """One line for an account, whatever its session; root's are elsewhere."""
    user = User("nobody", NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,), str(place))
    usable, told = keyring_state(user)
    assert (usable, "no keyring service answers" in told) == (False, True)
    usable, told = keyring_state(None)
    assert (usable, "host's encrypted store" in told) == (True, True)
    with session(place, "unlocked") as environment:
        assert keyring_state(user, environment["XDG_RUNTIME_DIR"]) == (True, "the keyring of nobody: unlocked")
    with session(place, "locked") as environment:
        usable, told = keyring_state(user, environment["XDG_RUNTIME_DIR"])
        assert (usable, "it is locked; unlock it" in told) == (False, True)


def test_through_sudo_it_is_looked_at_with_the_askers_rights(place: Path) -> None:
    """`doctor`: root's rights would open what `run` cannot. What only the asker's shell knows is not guessed at."""
    own, closed = place / "own/token", place / "closed/token"
    for path in (own, closed):
        path.parent.mkdir(mode=0o700)
        path.write_text("value")
        path.chmod(0o600)
    os.chown(own.parent, NOBODY.pw_uid, NOBODY.pw_gid)
    os.chown(own, NOBODY.pw_uid, NOBODY.pw_gid)
    keys = {"own": f"file://{own}", "closed": f"file://{closed}", "kept": "kit_kept", "shell": "env://KIT_TOKEN"}
    services = {
        name: {"upstream": f"https://{name}.test", "credential_key": key, "env_var": "X"} for name, key in keys.items()
    }
    profile = place / "agent.json"
    profile.write_text(json.dumps({"network": {"credentials": list(services), "custom_credentials": services}}))
    done = subprocess.run(
        [sys.executable, "-I", "-m", "nono_ebpf", "doctor", "--json", "--profile", str(profile)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patient(180),
        check=False,
        env=os.environ | {"SUDO_UID": str(NOBODY.pw_uid), "KIT_TOKEN": "root's"},
    )
    found = {each["name"].removeprefix("credential "): each for each in json.loads(done.stdout)}
    states = {name: found[name]["state"] for name in keys}
    assert states == {"own": "yes", "closed": "no", "kept": "no", "shell": "could not tell"}
    assert "Permission denied" in found["closed"]["detail"]
    assert "no keyring service answers" in found["kept"]["detail"]
    assert "without sudo" in found["shell"]["detail"]


def test_through_sudo_no_profile_is_read_with_roots_rights(place: Path) -> None:
    """A rule for `doctor` in sudoers is none for reading any file."""
    profile = place / "agent.json"
    profile.write_text('{"network": {"credentials": ["hunter2"]}}')
    profile.chmod(0o600)
    command = [sys.executable, "-I", "-m", "nono_ebpf", "doctor", "--profile", str(profile)]
    asked = os.environ | {"SUDO_UID": str(NOBODY.pw_uid)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(180), check=False, env=asked)
    assert (done.returncode, done.stderr.count("\n"), "Permission denied" in done.stderr) == (2, 1, True), done.stderr
    assert "hunter2" not in done.stdout + done.stderr
