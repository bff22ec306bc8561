"""The command line: which options there are, what they are called elsewhere, and what help says of them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from nono_ebpf.cli import build_parser, main
from nono_ebpf.config.options import Overrides


def parsed(*arguments: str) -> Overrides:
    return Overrides.of(build_parser().parse_args(["run", *arguments, "--", "true"]))


def test_credentials_add_up() -> None:
    """Under nono's names, in the order given."""
    found = parsed("--credential", "openai", "--proxy-credential", "github", "--allow-endpoint", "github:GET:/x")
    assert found.credential == ("openai", "github")
    assert found.allow_endpoint == ("github:GET:/x",)
    assert not found.shared_secrets
    assert parsed("--shared-secrets").shared_secrets


def test_interception_is_asked_for() -> None:
    """For a host, with an operator's CA, for some days."""
    found = parsed("--intercept", "a.com", "--intercept", "b.com:8443", "--proxy-ca-cert", "c", "--proxy-ca-key", "k")
    assert found.intercept == ("a.com", "b.com:8443")
    assert (found.proxy_ca_cert, found.proxy_ca_key, found.proxy_ca_validity) == ("c", "k", None)
    assert parsed("--proxy-ca-validity", "365").proxy_ca_validity == 365


@pytest.mark.parametrize("days", ["0", "366", "-1", "1d", "", "1.5", "²"])
def test_a_number_of_days_is_one(days: str, capsys: pytest.CaptureFixture[str]) -> None:
    """From 1 to 365, as nono has it; one line otherwise."""
    with pytest.raises(SystemExit) as caught:
        parsed(f"--proxy-ca-validity={days}")
    assert caught.value.code == 2
    assert "from 1 to 365" in capsys.readouterr().err


def test_why_takes_what_changes_its_answer() -> None:
    """The same rules and credentials; not what is about the run alone."""
    options = build_parser().parse_args(
        ["why", "--service", "github", "--credential", "github", "--intercept", "a.com", "--allow-endpoint", "x:*:/"]
    )
    assert Overrides.of(options).credential == ("github",)
    with pytest.raises(SystemExit):
        build_parser().parse_args(["why", "--host", "a.com", "--proxy-ca-validity", "3"])


@pytest.mark.parametrize("arguments", [["why"], ["why", "--host", "a", "--service", "b"]])
def test_why_is_asked_one_thing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A host or a service."""
    with pytest.raises(SystemExit):
        build_parser().parse_args(arguments)
    assert "--host" in capsys.readouterr().err


def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """And in what is told of one that there is not."""
    for arguments in (["--help"], ["rum"]):
        with pytest.raises(SystemExit):
            main(arguments)
        said = capsys.readouterr()
        for command in ("run", "why", "profile", "credential", "doctor", "demo", "presets"):
            assert command in said.out + said.err


def test_no_other_command_waits_for_that_of_credentials() -> None:
    """A `run` begins as soon as it can."""
    code = "import sys; from nono_ebpf.cli import build_parser; build_parser('run'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "nono_ebpf.cli" in done.stdout.split()
    assert "nono_ebpf.credential" not in done.stdout.split()


@pytest.mark.parametrize("command", ["run", "why"])
def test_other_names_of_options_are_not_in_the_usage_of_each(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They are taken, and named once where that is said."""
    with pytest.raises(SystemExit):
        build_parser().parse_args([command, "--help"])
    out = capsys.readouterr().out
    assert out.count("--proxy-credential") == (1 if command == "run" else 0)
    for option in ("--credential", "--allow-endpoint", "--intercept", "--shared-secrets"):
        assert option in out


def test_help_says_nothing_that_was_true_once(capsys: pytest.CaptureFixture[str]) -> None:
    """TLS is judged, credentials are put in; and lines fit a terminal that is wide."""
    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "--help"])
    out = capsys.readouterr().out
    assert not re.search("plain HTTP only|not injected", out)
    assert "credentials:" in out
    assert all(len(line) <= 120 for line in out.splitlines())
