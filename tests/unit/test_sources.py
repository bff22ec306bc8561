"""`nono_ebpf.credentials.references` and `.sources`: what refers to a secret, and what is read for it at once."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import pytest

from nono_ebpf.credentials import sources
from nono_ebpf.credentials.reading import Surroundings
from nono_ebpf.credentials.references import (
    FromApplePasswords,
    FromBitwarden,
    FromCommand,
    FromCredentialsDirectory,
    FromEnvironment,
    FromFile,
    FromHostStore,
    FromKeyring,
    FromOnePassword,
    Named,
    Reference,
    parse_readable,
    parse_reference,
    redacted,
    resolved,
    why_unsupported,
)
from nono_ebpf.errors import ConfigError, CredentialUnavailable

if TYPE_CHECKING:
    from pathlib import Path

REFERENCES = {
    "env://GITHUB_TOKEN": FromEnvironment("GITHUB_TOKEN"),
    "file:///run/secrets/a": FromFile("/run/secrets/a"),
    "github_token": Named("github_token"),
    "keyring://gh:github.com/me": FromKeyring("gh:github.com", "me"),
    "keyring://s/a?decode=go-keyring": FromKeyring("s", "a", decode=True),
    "op://vault/item/field": FromOnePassword("op://vault/item/field"),
    "op://vault/item/section/field": FromOnePassword("op://vault/item/section/field"),
    "bw://item": FromBitwarden("item", "password"),
    "bw://item/api key": FromBitwarden("item", "api key"),
    "apple-password://server/me": FromApplePasswords("server", "me"),
    "apple-passwords://server/me": FromApplePasswords("server", "me"),
    "systemd-creds://api.key": FromHostStore("api.key"),
    "credentials-directory://api-key": FromCredentialsDirectory("api-key"),
    "cmd://github": FromCommand("github"),
}
REDACTED = {
    "env://GITHUB_TOKEN": "env://GITHUB_TOKEN",
    "file:///run/secrets/a": "file:///run/secrets/[REDACTED]",
    "file:///a": "file:///[REDACTED]",
    "github_token": "github_token",
    "keyring://s/a?decode=go-keyring": "keyring://s/<redacted>",
    "op://vault/item/section/field": "op://vault/item/<redacted>",
    "bw://item/field": "bw://<redacted>/field",
    "apple-passwords://server/me": "apple-password://server/<redacted>",
}


def loaded(text: str, environment: dict[str, str] | None = None) -> bytes:
    around = Surroundings(os.geteuid(), os.geteuid(), environment or {})
    return sources.read(parse_readable(text, "--upstream-auth"), around).value.reveal()


def kept(directory: Path, content: bytes, mode: int = 0o600) -> str:
    path = directory / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return f"file://{path}"


def state_of(reference: Reference, environment: dict[str, str]) -> str:
    with pytest.raises(CredentialUnavailable) as caught:
        sources.read(reference, Surroundings(os.geteuid(), os.geteuid(), environment))
    return caught.value.state


@pytest.mark.parametrize(("text", "reference"), REFERENCES.items())
def test_references(text: str, reference: Reference) -> None:
    """P7, P9, P10 and the others: each kind by its scheme, a bare name without one."""
    assert parse_reference(text, "x") == reference


@pytest.mark.parametrize(
    "text",
    ["env://", "env://MY VAR", "env://MY-VAR", "env://MY.VAR", "env://$(whoami)", "env://LD_PRELOAD", "env://ld_preload",
     "env://path", "env://Home", "ENV://TOKEN", "file://", "file:///", "file://relative", "file:///a/../b", "file:///a;b",
     "file:///a$b", "file:///a\nb", "file:///a`b", "http://x", "", "user:hunter2", "op://v/i", "op://v//f", "op://v/i/f?x",
     "op://v/i/$x", "bw://-x", "bw://a=b", "bw://a/b/c", "bw://", "keyring://a", "keyring://a/b?x", "keyring://a/b#c",
     "keyring://a/b?decode=other", f"keyring://a/{'b' * 1024}", "apple-password://a", "cmd://a b", "systemd-creds://a/b",
     "systemd-creds://..", "systemd-creds://-a", "credentials-directory://../a", "credentials-directory://.a"],
)  # fmt: skip
def test_what_refers_to_nothing_safe(text: str) -> None:
    """P7, P9, P10: refused; and it is not repeated, for it may be the secret itself."""
    with pytest.raises(ConfigError) as error:
        parse_reference(text, "--upstream-auth")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("text", ["op://vault/item/field", "bw://item", "keyring://nono/x", "github_token", "cmd://x"])
def test_what_is_read_before_the_start_is_a_variable_or_a_file(text: str) -> None:
    """An error that says so, never an empty secret."""
    with pytest.raises(ConfigError, match="neither a variable nor a file"):
        parse_readable(text, "--upstream-auth")


@pytest.mark.parametrize(("text", "shown"), REDACTED.items())
def test_messages_do_not_say_what_is_in_it(text: str, shown: str) -> None:
    """What kind of source, and where to look; names that somebody has to set are whole."""
    assert redacted(parse_reference(text, "x")) == shown


def test_a_bare_name_is_where_whose_rights_are_used_has_it() -> None:
    """In the keyring of an account; in the host's store for root, who has no session. Failing changes nothing."""
    assert resolved(Named("x"), 1000) == FromKeyring("nono", "x")
    assert resolved(Named("x"), 0) == FromHostStore("x")
    assert resolved(FromKeyring("nono", "google-ai"), 0) == FromHostStore("google-ai")
    assert resolved(FromKeyring("nono", "google-ai"), 1000) == FromKeyring("nono", "google-ai")
    assert resolved(FromKeyring("s", "a"), 0) == FromKeyring("s", "a")


@pytest.mark.parametrize(
    ("content", "secret"),
    [(b"a:b", b"a:b"), (b"a:b\n", b"a:b"), (b"a:b\r\n", b"a:b"), (b" a \n", b" a "), (b"x" * 65536, b"x" * 65536)],
)
def test_one_line_end_is_not_part_of_a_secret(content: bytes, secret: bytes, tmp_path: Path) -> None:
    """Editors put it there; everything else was meant."""
    assert loaded(kept(tmp_path, content)) == secret


@pytest.mark.parametrize("content", [b"a\nb", b"a\nb\n", b"a\n\n", b"a\r", b"a\rb\n", b"a\0", b"\0", b"  \n  \n"])
def test_what_would_break_out_of_a_field_is_refused(content: bytes, tmp_path: Path) -> None:
    """CR, LF and NUL anywhere but in that one line end."""
    assert state_of(parse_reference(kept(tmp_path, content), "x"), {}) == "has_newline"
    if b"\0" not in content:
        assert state_of(FromEnvironment("T"), {"T": content.decode()}) == "has_newline"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777])
def test_a_file_that_others_can_open_is_refused(mode: int, tmp_path: Path) -> None:
    """With what to do about it."""
    with pytest.raises(CredentialUnavailable, match="chmod 600"):
        loaded(kept(tmp_path, b"x", mode))


def test_what_is_not_there(tmp_path: Path) -> None:
    """No file, no content, no file at all, no variable, an empty variable."""
    for text in (f"file://{tmp_path}/none", kept(tmp_path, b"\n"), f"file://{tmp_path}", "env://TOKEN_FOR_TEST"):
        with pytest.raises(CredentialUnavailable):
            loaded(text, {"TOKEN_FOR_TEST": ""})
    assert loaded("env://TOKEN_FOR_TEST", {"TOKEN_FOR_TEST": "x"}) == b"x"


@pytest.mark.parametrize(
    ("environment", "state"),
    [({}, "missing"), ({"T": ""}, "missing"), ({"T": "a\udcff"}, "unreadable"), ({"T": "x" * 65537}, "too_large")],
)
def test_a_variable_that_cannot_be_used(environment: dict[str, str], state: str) -> None:
    """P7: each with its own word for programs."""
    assert state_of(FromEnvironment("T"), environment) == state


@pytest.mark.parametrize("text", ["apple-password://server/me", "cmd://github"])
def test_what_is_not_supported_says_so(text: str) -> None:
    """It never looks like something that may come."""
    reference = parse_reference(text, "x")
    assert state_of(reference, {}) == "unsupported"
    assert why_unsupported(reference)


def test_what_crosses_to_the_broker_is_what_sources_are_found_with() -> None:
    """Other variables of the caller, which may be secrets, stay where they are."""
    given = {"AWS_SECRET_ACCESS_KEY": "x", "OP_SESSION_me": "1", "BW_SESSION": "2", "HOME": "/h", "LD_PRELOAD": "/x"}
    found = sources.needed_environment(given | {"PATH": "/usr/bin:bin:/nowhere:", "CREDENTIALS_DIRECTORY": "/c"})
    assert {"OP_SESSION_me", "BW_SESSION", "HOME", "CREDENTIALS_DIRECTORY"} <= found.keys()
    assert not {"AWS_SECRET_ACCESS_KEY", "LD_PRELOAD"} & found.keys()
    assert found["PATH"] == "/usr/bin"


def test_what_nobody_holds_any_more_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its memory is given back, also where nobody has said that it is done with."""
    left = []

    class Watched(mmap.mmap):
        def close(self) -> None:
            left.append(self[:])
            super().close()

    monkeypatch.setattr(mmap, "mmap", Watched)
    text = kept(tmp_path, b"s3cret")
    assert loaded(text) == b"s3cret"
    assert {each.strip(b"\0") for each in left} == {b""}
