"""`doctor` tries things and says what it found; `demo` shows the main job; `presets` and `--help` tell the rest."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from kit.checkout import opened

PROGRAM = [sys.executable, "-I", "-m", "nono_ebpf"]


def call(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = opened([*before, *PROGRAM, *arguments])
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.root
@pytest.mark.kernel
def test_doctor_finds_everything_here() -> None:
    """On a machine that runs these tests, everything a sandbox needs says yes."""
    done = call("doctor", "--json")
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    needed = {name: finding["state"] for name, finding in found.items() if finding["needed"]}
    assert needed == dict.fromkeys(needed, "yes")
    assert {"cgroup v2", "bcc", "eBPF hooks", "namespaces", "seccomp", "a sandbox"} <= found.keys()
    assert done.returncode == 0


@pytest.mark.root
@pytest.mark.kernel
def test_doctor_says_what_is_missing_and_what_to_do() -> None:
    """A machine without cgroup v2: a no with its remedy, and exit status 1."""
    hide = 'umount -l "$(awk \'$3 == "cgroup2" { print $2 }\' /proc/mounts)"; exec "$@"'
    done = call("doctor", "--json", before=("unshare", "--mount", "--propagation=private", "sh", "-ec", hide, "sh"))
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert (found["cgroup v2"]["state"], found["a sandbox"]["state"]) == ("no", "no")
    assert "systemd.unified_cgroup_hierarchy" in found["cgroup v2"]["remedy"]
    assert done.returncode == 1


@pytest.mark.root
@pytest.mark.kernel
def test_doctor_does_not_guess() -> None:
    """What only root can try is neither a yes nor a no for somebody else."""
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")
    done = call("doctor", "--json", before=nobody)
    states = {finding["name"]: finding["state"] for finding in json.loads(done.stdout)}
    assert {states["eBPF hooks"], states["a sandbox"]} == {"could not tell"}


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("through_sudo", [False, True], ids=["root", "sudo"])
def test_the_demo_comes_out_as_it_must(through_sudo: bool) -> None:
    """Every client that is to be let through is, every other is refused, each with its reason."""
    done = call("demo", before=("env", "SUDO_UID=65534") if through_sudo else ())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("let through") == 5
    assert done.stdout.count("refused") >= 6
    assert '"decision":"deny"' in done.stdout


def test_presets_are_listed() -> None:
    """One line a group, hosts spelled out."""
    lines = call("presets").stdout.splitlines()
    assert any(line.startswith("@github ") and "api.github.com" in line for line in lines)
    assert "npm" in json.loads(call("presets", "--json").stdout)
    (google,) = [line for line in lines if line.startswith("--credential google-ai ")]
    assert "keyring://nono/google-ai" in google


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["doctor", "--help"]])
def test_help_needs_no_privilege_and_no_bcc(arguments: list[str]) -> None:
    """It names every option with its meaning."""
    done = call(*arguments)
    assert done.returncode == 0
    assert "usage: nono-ebpf" in done.stdout


def test_an_unknown_command_is_one_line() -> None:
    """With exit status 2."""
    done = call("rnu")
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
