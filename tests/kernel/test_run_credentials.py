"""`nono-ebpf run` with credentials: what the command is told, and what of them it can find."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit.checkout import opened
from kit.expect import require
from kit.patience import patient
from kit.sandboxes import abandoned

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.kernel]

RUN = [sys.executable, "-I", "-m", "nono_ebpf", "run", "--user", "nobody"]
SECRET = "sk-canary-0123456789"


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Of what a test has started; what others may have left is not its own."""
    known = abandoned()
    yield
    assert abandoned() <= known


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """Services whose credential is there, is missing for good, may come, and is read when it is needed."""
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o700)
    (kept / "key").write_text(SECRET)
    (kept / "key").chmod(0o600)

    def service(key: str, **more: str) -> dict[str, str]:
        return {"upstream": f"https://{key[:3]}.test", "credential_key": key} | more

    handed = tmp_path / "handed"
    handed.mkdir(mode=0o755)
    (handed / "token").write_text(SECRET)
    (handed / "token").chmod(0o400)
    services = {
        "present": service("env://PRESENT_KEY"),
        "missing": service("env://MISSING_KEY"),
        "filed": service(f"file://{kept}/key", env_var="FILED_KEY"),
        "waiting": service(f"file://{kept}/later", env_var="WAITING_KEY"),
        "lazy": service("lazy_key"),
        "handed": service("credentials-directory://token", env_var="HANDED_KEY"),
    }
    written = tmp_path / "agent.json"
    written.write_text(json.dumps({"network": {"custom_credentials": services, "credentials": list(services)}}))
    return written


def run(profile: Path, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, "--profile", str(profile), *options, "--", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
        cwd="/",
        # The last is where the command is to find the token: what the caller has there is a key, too.
        env=os.environ
        | {"PRESENT_KEY": SECRET, "CREDENTIALS_DIRECTORY": f"{profile.parent}/handed", "FILED_KEY": SECRET},
    )


def test_what_the_command_is_told(profile: Path) -> None:
    """R1, R2: each service's URL at the proxy, and the phantom where there is, or may be, a credential behind it."""
    done = run(profile, "env")
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    port = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/present", told["PRESENT_BASE_URL"])
    assert port is not None, told
    names = ("present", "missing", "filed", "waiting", "lazy", "handed")
    assert {told[f"{name.upper()}_BASE_URL"] for name in names} == {
        f"http://127.0.0.1:{port[1]}/{name}" for name in names
    }
    token = told["NONO_PROXY_TOKEN"]
    keys = {name: told.get(f"{name}_KEY") for name in ("PRESENT", "MISSING", "FILED", "WAITING", "LAZY", "HANDED")}
    assert keys == dict.fromkeys(("PRESENT", "FILED", "WAITING", "LAZY", "HANDED"), token) | {"MISSING": None}
    assert told["SSL_CERT_FILE"] == told["NODE_EXTRA_CA_CERTS"]
    lines = [line for line in done.stderr.splitlines() if "warning" in line]
    assert len(lines) == 2, done.stderr
    assert "missing (env://MISSING_KEY)" in lines[0]
    assert "waiting (file://" in lines[1]
    assert "until it is there" in lines[1]
    assert SECRET not in done.stdout + done.stderr


@pytest.fixture
def place() -> Iterator[Path]:
    """A home that everybody may enter."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def through_sudo(home: Path, *command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As nobody, whose home that is there."""
    require("sudo")
    sudoers, accounts = home / "sudoers", home / "passwd"
    sudoers.write_text("Defaults env_reset\nALL ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    accounts.write_text(Path("/etc/passwd").read_text().replace(":/nonexistent:", f":{home}:"))
    mounts = f"mount --bind {sudoers} /etc/sudoers; mount --bind {accounts} /etc/passwd"
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    return subprocess.run(
        opened(["sh", "-ec", f'{mounts}; exec "$@"', "sh", *become, sys.executable, "-I", "-m", "nono_ebpf", *command]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
        cwd="/var/tmp",
        env={"PATH": "/usr/bin:/bin"} | environment,
    )


def test_through_sudo(place: Path) -> None:
    """An ordinary user's variable is the broker's: the command has the phantom in its place, and the rest as it was."""
    own = place / "agent.json"
    known = {"a": {"upstream": "https://a.test", "credential_key": "env://MY_KEY", "env_var": "A_KEY"}}
    own.write_text(json.dumps({"network": {"custom_credentials": known, "credentials": ["a"]}}))
    environment = {"MY_KEY": SECRET, "OTHER": "kept"}
    done = through_sudo(place, "run", "--profile", str(own), "--", "env", environment=environment)
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert told.get("A_KEY") == told["NONO_PROXY_TOKEN"], done.stderr
    assert (told.get("MY_KEY"), told["OTHER"]) == (None, "kept")
    assert SECRET not in done.stdout + done.stderr


def test_secrets_of_other_sandboxes_are_hidden(place: Path) -> None:
    """Also from one without credentials: those that are kept where we tell people to keep them."""
    kept = place / ".config/nono-ebpf/secrets"
    kept.mkdir(parents=True)
    (kept / "key").write_text(SECRET)
    for each in (place, *kept.parents[:3], kept, kept / "key"):
        os.chown(each, 65534, 65534)
    seen = f"ls -A {kept}; echo done"
    assert through_sudo(place, "run", "--", "sh", "-c", seen, environment={}).stdout == "done\n"


def test_secrets_that_come_later_are_hidden(place: Path) -> None:
    """Where we tell people to keep them: the first one of all is put there while the command runs."""
    os.chown(place, 65534, 65534)
    kept = place / ".config/nono-ebpf/secrets"
    look = f"cat {kept}/*; mv .config other && cat other/nono-ebpf/secrets/*"
    wait = "touch started; until [ -e put ]; do sleep 0.1; done"
    command = ["sh", "-c", f"cd {place}; {wait}; {look}"]
    with ThreadPoolExecutor() as pool:
        running = pool.submit(through_sudo, place, "run", "--", *command, environment={})
        while not (place / "started").exists() and not running.done():
            time.sleep(0.05)
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        (kept / "key").write_text(SECRET)
        os.chown(kept / "key", 65534, 65534)
        (place / "put").touch()
        done = running.result()
    assert SECRET not in done.stdout
    assert done.stderr.count("No such file") == 1, done.stderr
    assert "Device or resource busy" in done.stderr


def test_secrets_behind_a_link_are_told_of(place: Path) -> None:
    """It may have been planted; where nobody keeps secrets there is nothing to tell."""
    (place / ".config").mkdir()
    (place / ".config/nono-ebpf").symlink_to("../elsewhere")
    for each in (place, place / ".config"):
        os.chown(each, 65534, 65534)
    assert through_sudo(place, "run", "--", "true", environment={}).stderr == ""
    (place / "elsewhere/secrets").mkdir(parents=True)
    said = through_sudo(place, "run", "--", "true", environment={}).stderr
    assert said == (
        f"nono-ebpf: warning: {place}/.config/nono-ebpf is a symbolic link: "
        f"secrets in {place}/.config/nono-ebpf/secrets are in sight of every run that does not use them\n"
    )


def test_no_variables_at_all(profile: Path) -> None:
    """A courtesy that can be left out; the secret is taken out all the same."""
    done = run(profile, "env", options=("--no-proxy-env",))
    assert not re.findall(r"^\w*(?:BASE_URL|_KEY|PROXY\w*)=", done.stdout, re.MULTILINE)
    assert SECRET not in done.stdout


def test_the_secret_is_nowhere_to_be_found(profile: Path) -> None:
    """Not in the file, an environment, a command line or a message."""
    kept = profile.parent / "kept"
    script = f"ls -a {kept}; cat {kept}/key; cat /proc/*/environ /proc/*/cmdline; rm -rf {kept}/key; mv {kept} {kept}2"
    done = run(profile, "sh", "-c", script, options=("-v",))
    assert SECRET not in done.stdout + done.stderr
    assert (kept / "key").read_text() == SECRET


def test_what_a_service_manager_handed_over_is_hidden(place: Path) -> None:
    """From an account that may read it, and wherever it is; systemd's own place is out of reach already."""
    handed, own = place / "handed", place / "agent.json"
    handed.mkdir()
    (handed / "token").write_text(SECRET)
    (handed / "token").chmod(0o400)
    for each in (handed, handed / "token"):
        os.chown(each, 65534, 65534)
    known = {"a": {"upstream": "https://a.test", "credential_key": "credentials-directory://token", "env_var": "A_KEY"}}
    own.write_text(json.dumps({"network": {"custom_credentials": known, "credentials": ["a"]}}))
    command = ("run", "--profile", str(own), "--", "sh", "-c", f"ls -A {handed}; cat {handed}/token; echo $A_KEY")
    done = through_sudo(place, *command, environment={"CREDENTIALS_DIRECTORY": str(handed)})
    assert re.fullmatch(r"[0-9a-f]{64}\n", done.stdout), done


def test_what_would_be_done_says_where_and_not_what(profile: Path) -> None:
    """`--dry-run` names services, places and what is hidden."""
    done = run(profile, "true", options=("--dry-run",))
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^allow +env\.test, credential present from env://PRESENT_KEY as header", done.stdout, re.MULTILINE
    )
    assert f"hide      {profile.parent}/kept" in done.stdout
    assert SECRET not in done.stdout + done.stderr


def test_doctor_says_what_can_be_read(profile: Path) -> None:
    """A row for each credential of a profile."""
    command = [sys.executable, "-I", "-m", "nono_ebpf", "doctor", "--json", "--profile", str(profile)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(180), check=False)
    rows = {row["name"].removeprefix("credential "): row for row in json.loads(done.stdout)}
    assert [rows[name]["state"] for name in ("filed", "waiting", "missing")] == ["yes", "no", "no"]
    assert "no such file" in rows["waiting"]["detail"]
    (profile.parent / "kept/key").chmod(0o644)
    for options, state in (((), "no"), (("--shared-secrets",), "yes")):
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=patient(180), check=False)
        rows = {row["name"].removeprefix("credential "): row for row in json.loads(done.stdout)}
        assert rows["filed"]["state"] == state
    assert SECRET not in done.stdout + done.stderr
