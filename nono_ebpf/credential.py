"""`nono-ebpf credential`: put a secret where `run` finds it, list what is there, try whether a reference can be read.

A value is read from the terminal or from stdin, never from an argument, and never shown. Whose rights are used decides
where a bare name is kept: the account's keyring, or for root the host's encrypted store.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nono_ebpf.credentials import credstore, keyring_store, sources
from nono_ebpf.credentials.isolated import Attempt
from nono_ebpf.credentials.reading import BUFFER_BYTES, Surroundings, checked
from nono_ebpf.credentials.references import (
    FromBitwarden,
    FromCredentialsDirectory,
    FromEnvironment,
    FromFile,
    FromHostStore,
    FromKeyring,
    FromOnePassword,
    Reference,
    parse_reference,
    redacted,
    resolved,
)
from nono_ebpf.credentials.secret import Secret
from nono_ebpf.errors import ConfigError, CredentialUnavailable, printable
from nono_ebpf.sandbox import sudo
from nono_ebpf.sandbox.privileges import take_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nono_ebpf.sandbox.user import User

_DESCRIPTION = """\
Credentials that profiles name. A bare NAME is kept in the keyring of the account that uses it (where nono has it, too);
root's are in the host's encrypted store, /etc/credstore.encrypted. Everything else is kept elsewhere already:
env://NAME, file:///path, op://vault/item/field, bw://item/field, keyring://service/account, systemd-creds://NAME,
credentials-directory://NAME.
"""
_EPILOG = """\
examples:
  nono-ebpf credential set github_token             # asks for it, without an echo
  pass show github | nono-ebpf credential set github_token
  nono-ebpf credential test op://dev/github/token   # can it be read? Its value is not shown.

exit status: 0 done, or it can be read; 1 not; 2 a mistake in what was asked.
"""
_REFUSED = {
    "empty": "it is empty",
    "has_newline": "it has more than one line, or a NUL: no request could carry it",
    "too_large": "it is too large for a secret",
}
FAILED = 1
_LOOK_S = 10.0
_KEPT = FromKeyring("nono", "")  # all that an account keeps under bare names


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `list`."""

    name: str
    where: str
    state: str


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """To the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    credential = commands.add_parser(
        "credential",
        help="keep secrets where profiles find them, and see whether they can be read",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    actions = credential.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=type(credential))
    put = actions.add_parser("set", help="keep a secret under a name; it is read from the terminal, or from stdin")
    put.add_argument("name", metavar="NAME", help="letters, digits and _")
    listed = actions.add_parser("list", help="names that are kept, where, and whether they can be read")
    test = actions.add_parser("test", help="whether a credential can be read now; its value is not shown")
    test.add_argument("reference", metavar="NAME|REF", help="a name, or a reference such as file:///path")
    test.add_argument("--shared-secrets", action="store_true", help="as `run` is told: a file may be open to others")
    for action in (listed, test):
        action.add_argument("--json", action="store_true", help="for machines")


def main(options: argparse.Namespace) -> int:
    """`nono-ebpf credential`; its exit status. Raises ConfigError."""
    if os.geteuid() == 0 and sudo.invoking_uid():
        problem = "through sudo, `run` takes the credentials of whoever called it, and they are not root's to set"
        raise ConfigError(
            "credential", problem, hint="leave out sudo; for root's own: sudo env -u SUDO_UID nono-ebpf …"
        )
    try:
        match options.action:
            case "set":
                return _set(options.name)
            case "list":
                return _list(as_json=options.json)
            case _:
                return _test(options.reference, as_json=options.json, shared_ok=options.shared_secrets)
    except CredentialUnavailable as error:
        what = options.name if options.action == "set" else error.name
        sys.stderr.write(f"nono-ebpf: {printable(f'{what}: {error.problem}')}\n")
        return FAILED


def keyring_state(user: User | None, runtime: str = "") -> tuple[bool, str]:
    """Whether what is kept under bare names for `user` (None: root) can be had now, and a line about it for people.

    `runtime`: the user's XDG_RUNTIME_DIR, where that is not the usual one.
    """
    if user is None:
        return True, f"root's credentials are in the host's encrypted store, {credstore.STORE}"
    environment = _environment(user, runtime)

    def look() -> Secret:
        return Secret(keyring_store.state(_KEPT, environment).encode())

    try:
        return True, f"the keyring of {user.name}: {_as(user, _KEPT, look).reveal().decode()}"
    except CredentialUnavailable as error:
        return False, f"the keyring of {user.name}: {error.problem}"


def why_unreadable(reference: Reference, user: User | None, *, shared_ok: bool) -> CredentialUnavailable | None:
    """Why the caller's account, or that of `user`, for whom root asks, cannot read it now; None when it can.

    `shared_ok`: files may be open to other accounts.
    """
    if user is None:
        return _failure(reference, _around(shared_ok=shared_ok))
    around = Surroundings(user.uid, user.uid, _environment(user), shared_ok)

    def look() -> Secret:
        sources.read(reference, around)
        return Secret(b"")

    try:
        _as(user, reference, look)
    except CredentialUnavailable as error:
        return error
    return None


def needs_session(reference: Reference) -> bool:
    """Whether it is found by variables of the asker's session, which are not there through sudo."""
    return isinstance(reference, FromEnvironment | FromCredentialsDirectory | FromOnePassword | FromBitwarden)


def _environment(user: User, runtime: str = "") -> dict[str, str]:
    """What is known of it from outside of the user's session."""
    return {"HOME": user.home, "XDG_RUNTIME_DIR": runtime or f"/run/user/{user.uid}"}


def _as(user: User, reference: Reference, look: Callable[[], Secret]) -> Secret:
    """What `look` finds with the rights of `user`, those of the calling process where that is not root's."""
    sources.preload([reference], user.uid)

    def become_and_look() -> Secret:
        if os.geteuid() == 0:
            take_ids(user.uid, user.gid, user.groups)
        return look()

    return Attempt(reference, _LOOK_S, become_and_look).result()


def _around(*, shared_ok: bool = False) -> Surroundings:
    return Surroundings(os.geteuid(), os.geteuid(), os.environ, shared_ok)


def _set(name: str) -> int:
    around = _around()
    kept = resolved(parse_reference(name, "credential set"), around.uid)
    if not isinstance(kept, FromHostStore | FromKeyring):
        raise ConfigError("credential set", "it names another place", hint="write a NAME of letters, digits and _")
    try:
        secret = checked(kept, _typed(name))
    except CredentialUnavailable as error:
        raise ConfigError("credential set", f"{_REFUSED[error.state]}; nothing was changed") from error
    if isinstance(kept, FromHostStore):
        credstore.write_host_store(kept, secret, around)
    elif isinstance(kept, FromKeyring):
        _write_to_keyring(kept, secret, around)
    sys.stderr.write(f"nono-ebpf: {name} is kept in {_where(kept)}\n")
    return 0


def _typed(name: str) -> bytearray:
    if sys.stdin.isatty():
        return bytearray(getpass.getpass(f"{name}: ").encode())
    return bytearray(sys.stdin.buffer.read(BUFFER_BYTES + 1))


def _write_to_keyring(reference: FromKeyring, secret: Secret, around: Surroundings) -> None:
    content = bytearray(secret.reveal())  # in the child, `secret` is empty

    def write() -> Secret:
        keyring_store.write(reference, Secret(content), around.environment)
        return Secret(b"")

    try:
        Attempt(reference, keyring_store.timeout_s(around.environment), write).result()
    finally:
        content[:] = bytes(len(content))


def _list(*, as_json: bool) -> int:
    around = _around()
    rows = _in_host_store(around) if around.uid == 0 else _in_keyring(around)
    console = Console()
    if as_json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    elif not rows:
        place = credstore.STORE if around.uid == 0 else _where(_KEPT)
        sys.stderr.write(f"nono-ebpf: no credential is in {place}; `nono-ebpf credential set NAME` keeps one there\n")
    elif console.is_terminal:
        console.print(_table(rows))
    else:
        sys.stdout.writelines(printable(f"{row.name}  {row.where}  {row.state}") + "\n" for row in rows)
    return 0


def _in_host_store(around: Surroundings) -> list[Row]:
    rows = []
    for name in credstore.names():
        reference = FromHostStore(name)
        failure = _failure(reference, around)
        rows.append(Row(name, _where(reference), "readable" if failure is None else failure.problem))
    return rows


def _in_keyring(around: Surroundings) -> list[Row]:
    def look() -> Secret:
        return Secret(msgspec.json.encode(keyring_store.entries(_KEPT, around.environment)))

    found = Attempt(_KEPT, keyring_store.timeout_s(around.environment), look).result().reveal()
    entries = msgspec.json.decode(found, type=list[keyring_store.Entry])
    return [Row(each.account, _where(_KEPT), "locked" if each.locked else "readable") for each in entries]


def _test(text: str, *, as_json: bool, shared_ok: bool) -> int:
    around = _around(shared_ok=shared_ok)
    reference = parse_reference(text, "credential test")
    failure = _failure(reference, around)
    found = {
        "reference": redacted(reference),
        "where": _where(resolved(reference, around.uid)),
        "state": "readable" if failure is None else failure.state,
    }
    if as_json:
        found |= {} if failure is None else {"problem": failure.problem}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        said = f"can be read{_age(reference, around)}" if failure is None else f"cannot be read: {failure.problem}"
        sys.stdout.write(printable(f"{found['reference']}  {found['where']}  {said}") + "\n")
    return 0 if failure is None else FAILED


def _failure(reference: Reference, around: Surroundings) -> CredentialUnavailable | None:
    """Why it cannot be read; None when it can."""
    try:
        if sources.is_lazy(reference):
            deadline_s = sources.deadline_s(reference, around)
            Attempt(reference, deadline_s, lambda: sources.read(reference, around).value).result()
        else:
            sources.read(reference, around)
    except CredentialUnavailable as error:
        return error
    return None


def _where(reference: Reference) -> str:
    match reference:
        case FromEnvironment():
            return "this environment"
        case FromFile():
            return "a file"
        case FromCredentialsDirectory():
            return "systemd's credentials of this service"
        case FromHostStore(name):
            return str(credstore.place(name))
        case FromKeyring(service, _):
            return f"the keyring (service {service})"
        case FromOnePassword():
            return "1Password"
        case FromBitwarden():
            return "Bitwarden"
        case _:
            return "nowhere on this system"


def _age(reference: Reference, around: Surroundings) -> str:
    """Of what is a file."""
    kept = resolved(reference, around.uid)
    match kept:
        case FromFile(path):
            place = Path(path)
        case FromHostStore(name):
            place = credstore.place(name)
        case _:
            return ""
    days, seconds = divmod(max(0, int(time.time() - place.stat().st_mtime)), 86400)
    return f", written {days} d {seconds // 3600} h {seconds // 60 % 60} min ago"


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "where", "state"):
        table.add_column(heading)
    for row in rows:
        table.add_row(*(escape(printable(text)) for text in (row.name, row.where, row.state)))
    return table
