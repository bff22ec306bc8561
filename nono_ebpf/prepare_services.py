"""Services with a credential, and TLS that ends at the proxy: what of the settings each of our processes is told.

Reads certificates and keys, with the account's rights, but no credential: those are the broker's to read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.credentials.references import (
    FromBitwarden,
    FromCredentialsDirectory,
    FromEnvironment,
    FromFile,
    FromOnePassword,
    parse_reference,
)
from nono_ebpf.sandbox.handover import InterceptionPlan, ServicePlan
from nono_ebpf.sandbox.secrets_hidden import secret_directories

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nono_ebpf.config.routes import Route
    from nono_ebpf.config.settings import Settings
    from nono_ebpf.credentials.references import Reference
    from nono_ebpf.sandbox.user import User
    from nono_ebpf.sandbox.view import View

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


def without_secrets(settings: Settings, user: User, environment: Mapping[str, str], found: View, program: str) -> View:
    """The view of a command that has none of the secrets. `environment` and `program`: its own.

    Raises ConfigError: one cannot be hidden from it.
    """
    where = shutil.which(program, path=environment.get("PATH"))
    needed = [*found.allowed, *([] if where is None else [Path(where)])]
    hidden = [each for path in _files(settings) for each in secret_directories(path.absolute(), user, needed)]
    return replace(found, hidden_directories=tuple(dict.fromkeys((*found.hidden_directories, *hidden))))


def _all_references(settings: Settings) -> list[Reference]:
    upstream = settings.upstream_auth
    others = [] if upstream is None else [parse_reference(upstream.value, upstream.source)]
    return [*references(settings).values(), *others]


def secret_variables(settings: Settings, environment: Mapping[str, str]) -> Iterator[str]:
    """Those that hold a secret, and those that open the password managers in which one is kept."""
    for reference in _all_references(settings):
        match reference:
            case FromEnvironment(name):
                yield name
            case FromOnePassword():
                yield from (name for name in environment if name.startswith(_OF_ONE_PASSWORD))
            case FromBitwarden():
                yield "BW_SESSION"
            case FromCredentialsDirectory():
                yield "CREDENTIALS_DIRECTORY"
            case _:
                pass


def _files(settings: Settings) -> Iterator[Path]:
    for reference in _all_references(settings):
        if isinstance(reference, FromFile):
            yield Path(reference.path)
    yield from (Path(each.tls_client_key.value) for each in settings.routes if each.tls_client_key is not None)
    if settings.tls_intercept.ca_key is not None:
        yield Path(settings.tls_intercept.ca_key)


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
