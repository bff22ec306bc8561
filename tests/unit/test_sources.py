"""`nono_ebpf.credentials.sources`: what refers to a secret, and what is read for it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from nono_ebpf.credentials.sources import FromEnvironment, FromFile, Secret, load, parse_reference
from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def loaded(text: str, environment: dict[str, str] | None = None) -> bytes:
    return load(parse_reference(text, "--upstream-auth"), environment or {}, nullcontext(), "--upstream-auth").value


def kept(directory: Path, content: bytes, mode: int = 0o600) -> str:
    path = directory / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return f"file://{path}"


def test_references() -> None:
    """P7: a variable by its name, a file by its path."""
    assert parse_reference("env://GITHUB_TOKEN", "x") == FromEnvironment("GITHUB_TOKEN")
    assert parse_reference("file:///run/secrets/a", "x") == FromFile("/run/secrets/a")


@pytest.mark.parametrize(
    "text",
    ["env://", "env://MY VAR", "env://MY-VAR", "env://MY.VAR", "env://$(whoami)", "env://LD_PRELOAD", "env://ld_preload",
     "env://path", "env://Home", "ENV://TOKEN", "file://", "file:///", "file://relative", "file:///a/../b", "file:///a;b",
     "file:///a$b", "file:///a\nb", "file:///a`b", "http://x", "", "user:hunter2"],
)  # fmt: skip
def test_what_refers_to_nothing_safe(text: str) -> None:
    """P7: refused; and it is not repeated, for it may be the secret itself."""
    with pytest.raises(ConfigError) as error:
        parse_reference(text, "--upstream-auth")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("text", ["op://vault/item/field", "bw://item", "keyring://nono/x", "github_token", "cmd://x"])
def test_sources_that_are_not_there_are_named(text: str) -> None:
    """An error that says so, never an empty secret."""
    with pytest.raises(ConfigError, match="yet"):
        parse_reference(text, "--upstream-auth")


@pytest.mark.parametrize(
    ("content", "secret"),
    [(b"a:b", b"a:b"), (b"a:b\n", b"a:b"), (b"a:b\r\n", b"a:b"), (b"a\nb\n\n", b"a\nb\n"), (b"  \n  \n", b"  \n  ")],
)
def test_one_line_end_is_not_part_of_a_secret(content: bytes, secret: bytes, tmp_path: Path) -> None:
    """Editors put it there; everything else was meant."""
    assert loaded(kept(tmp_path, content)) == secret


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777])
def test_a_file_that_others_can_open_is_refused(mode: int, tmp_path: Path) -> None:
    """With what to do about it."""
    with pytest.raises(ConfigError, match="chmod 600"):
        loaded(kept(tmp_path, b"x", mode))


def test_what_is_not_there(tmp_path: Path) -> None:
    """No file, no content, no file at all, no variable, an empty variable."""
    for text in (f"file://{tmp_path}/none", kept(tmp_path, b"\n"), f"file://{tmp_path}", "env://TOKEN_FOR_TEST"):
        with pytest.raises(ConfigError):
            loaded(text, {"TOKEN_FOR_TEST": ""})
    assert loaded("env://TOKEN_FOR_TEST", {"TOKEN_FOR_TEST": "x"}) == b"x"


def test_a_secret_has_no_text_form() -> None:
    """Neither in a log nor in a traceback."""
    assert "hunter2" not in f"{Secret(b'hunter2')} {Secret(b'hunter2')!r}"
