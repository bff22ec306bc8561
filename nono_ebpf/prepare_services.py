"""Services with a credential, and TLS that ends at the proxy: what of the settings each of our processes is told.

Reads certificates and keys, with the account's rights, but no credential: those are the broker's to read.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.credentials.commands import settings_files
from nono_ebpf.credentials.references import (
    FromBitwarden,
    FromCredentialsDirectory,
    FromEnvironment,
    FromFile,
    FromOnePassword,
    parse_reference,
)
from nono_ebpf.sandbox import sudo
from nono_ebpf.sandbox.handover import InterceptionPlan, ServicePlan
from nono_ebpf.sandbox.secrets_hidden import SECRETS, secret_directories

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nono_ebpf.config.routes import Route
    from nono_ebpf.config.settings import Settings
    from nono_ebpf.credentials.references import Reference
    from nono_ebpf.sandbox.carried import Carried
    from nono_ebpf.sandbox.init import Command
    from nono_ebpf.sandbox.user import User
    from nono_ebpf.sandbox.view import View

_DIRECTORY = "CREDENTIALS_DIRECTORY"
_OF_ONE_PASSWORD = ("OP_SESSION_", "OP_SERVICE_ACCOUNT_TOKEN", "OP_CONNECT_TOKEN")
# Of a path, and where it was written. Raises ConfigError.
Read = Callable[[str, str], bytes]


def references(settings: Settings) -> dict[str, Reference]:
    """Where the credential of each service is kept, by the service's name."""
    return {
        each.name: parse_reference(each.reference.value, each.reference.source)
        for each in settings.routes
        if each.reference is not None
    }


def service_plans(settings: Settings, read: Read) -> tuple[ServicePlan, ...]:
    """What the proxy is told of the services that there is a credential for."""
    return tuple(_service_plan(each, read) for each in settings.routes if each.reference is not None)


def interception_plan(settings: Settings, read: Read) -> InterceptionPlan | None:
    """What the proxy is told of the hosts whose TLS it ends; None when there are none."""
    wanted = settings.tls_intercept
    if not wanted.hosts:
        return None
    own = (wanted.ca_cert, "--proxy-ca-cert"), (wanted.ca_key, "--proxy-ca-key")
    ca, key = (None if path is None else read(path, option) for path, option in own)
    return InterceptionPlan(wanted.hosts, wanted.ca_validity_s, wanted.leaf_validity_s, ca, key)


def without_secrets(settings: Settings, user: User, command: Command, askers: Mapping[str, str], found: View) -> View:
    """The view of `command` when it is to have none of the secrets. `askers`: the environment they are found with.

    Raises ConfigError: one cannot be hidden from it.
    """
    where = shutil.which(command.argv[0], path=command.environment.get("PATH"))
    needed = [*found.allowed, *([] if where is None else [Path(where)])]
    files = [*_files(settings, askers), *_own_place(user)]
    hidden = [each for path in files for each in secret_directories(path.absolute(), user, needed)]
    return replace(found, hidden_directories=tuple(dict.fromkeys((*found.hidden_directories, *hidden))))


def askers_environment(environment: Mapping[str, str], before: Carried | None) -> dict[str, str]:
    """What sources are found with, the secrets left out: the `environment` of whoever asked, given the command's.

    Root has a home of its own; in the command's the command could tell a password manager whom to talk to.
    """
    found = dict(environment)
    if before is not None and _DIRECTORY in before.names:
        found[_DIRECTORY] = os.fsdecode(bytes(before.variable(_DIRECTORY)))
    if sudo.invoking_uid():
        return found
    root = pwd.getpwuid(0)
    return found | {"HOME": root.pw_dir, "USER": root.pw_name, "LOGNAME": root.pw_name}


def _all_references(settings: Settings) -> list[Reference]:
    upstream = settings.upstream_auth
    others = [] if upstream is None else [parse_reference(upstream.value, upstream.source)]
    return [*references(settings).values(), *others]


def secret_variables(settings: Settings, environment: Mapping[str, str]) -> Iterator[str]:
    """Those that hold a secret, that open the password managers in which one is kept, and in which the command is to
    find the session token.
    """
    yield from (each.key_variable for each in settings.routes if each.key_variable is not None)
    for reference in _all_references(settings):
        match reference:
            case FromEnvironment(name):
                yield name
            case FromOnePassword():
                yield from (name for name in environment if name.startswith(_OF_ONE_PASSWORD))
            case FromBitwarden():
                yield from (name for name in environment if name.startswith("BW_"))
            case FromCredentialsDirectory():
                yield _DIRECTORY
            case _:
                pass


def _files(settings: Settings, environment: Mapping[str, str]) -> Iterator[Path]:
    """What would tell the command a secret, or be used by it to have one sent elsewhere."""
    for reference in _all_references(settings):
        if isinstance(reference, FromFile):
            yield Path(reference.path)
        elif isinstance(reference, FromCredentialsDirectory):
            if (directory := environment.get(_DIRECTORY, "")).startswith("/"):
                yield Path(directory, reference.name)
        elif isinstance(reference, FromBitwarden | FromOnePassword):
            yield from settings_files(reference, environment)
    yield from (Path(each.tls_client_key.value) for each in settings.routes if each.tls_client_key is not None)
    if settings.tls_intercept.ca_key is not None:
        yield Path(settings.tls_intercept.ca_key)


def make_own_place(user: User) -> str | None:
    """Make the directory where we tell people to keep secrets, so that this run never sees one that comes there later.

    What is to be said when that cannot be.
    """
    kept = Path(user.home, SECRETS)
    # Root is nobody where homes are mounted from another machine.
    can_be_hidden = kept.is_absolute() and os.access(user.home, os.X_OK)
    with user.rights(), suppress(OSError):  # a home that is missing, or read-only
        if (link := _link_to(kept)) is None and can_be_hidden:
            _make(kept)
        elif link is not None and kept.is_dir():
            return f"{link} is a symbolic link: secrets in {kept} are in sight of every run that does not use them"
    return None


def _make(kept: Path) -> None:
    """It and the two above it, closed to others whatever the caller's umask is."""
    umask = os.umask(0o077)
    try:
        for each in (*reversed(kept.parents[:2]), kept):
            each.mkdir(exist_ok=True)
    finally:
        os.umask(umask)


def _own_place(user: User) -> Iterator[Path]:
    """Where we tell people to keep secrets: those of other sandboxes are none of this one's business."""
    kept = Path(user.home, SECRETS)
    with user.rights() if sudo.invoking_uid() else nullcontext():
        there = os.path.isdir(kept) and _link_to(kept) is None  # noqa: PTH112  # False where the account cannot come to
    if there:
        yield kept / "any"


def _link_to(kept: Path) -> Path | None:
    """By one, the command could have the next run of the account started without whatever it leads to."""
    return next(filter(os.path.islink, (kept, *kept.parents[:2])), None)


def _service_plan(route: Route, read: Read) -> ServicePlan:
    if route.injection is None:
        raise ValueError(f"{route.name} has a credential and no place for it")
    limit = route.rate_limit
    named = (route.tls_ca, route.tls_client_cert, route.tls_client_key)
    ca, certificate, key = (None if each is None else read(each.value, each.source) for each in named)
    return ServicePlan(
        route.name,
        route.injection,
        None if limit is None else (limit.requests_per_minute, limit.burst, limit.max_delay_secs),
        ca,
        certificate,
        key,
    )
