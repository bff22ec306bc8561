"""From options to a `Request`: everything that can be wrong with a `run` is found here, before anything is started."""

from __future__ import annotations

import errno
import importlib.util
import os
import stat
from contextlib import nullcontext
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf import run as supervisor
from nono_ebpf.authority import canonical_host
from nono_ebpf.config import load, transfer
from nono_ebpf.config.compile import numbers
from nono_ebpf.config.files import read_profile
from nono_ebpf.config.options import Overrides
from nono_ebpf.credentials import sources
from nono_ebpf.credentials.references import FromEnvironment, parse_readable, parse_reference, redacted
from nono_ebpf.errors import ConfigError, CredentialUnavailable, InvalidAuthority, KernelError, printable
from nono_ebpf.kernel import cgroup, libc, loader
from nono_ebpf.prepare_services import (
    askers_environment,
    interception_plan,
    make_own_place,
    secret_variables,
    service_plans,
    without_secrets,
)
from nono_ebpf.sandbox import carried, installation, sockets, streams, sudo, view
from nono_ebpf.sandbox.init import Command
from nono_ebpf.sandbox.landlock import Domain
from nono_ebpf.sandbox.user import User, find_user

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from nono_ebpf.config.routes import Route
    from nono_ebpf.config.settings import Settings
    from nono_ebpf.credentials.sources import Secret
    from nono_ebpf.policy.rules import Rule
    from nono_ebpf.sandbox.carried import Carried


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """`nono-ebpf run`. Raises what `cli` turns into a line and an exit status."""
    argv = _command(options.argv)
    if os.geteuid() != 0:
        if options.from_sudo is not None:
            sudo.refuse_claim()
        sudo.start_again(arguments)
    streams.check()
    user = find_user(options.user)
    before = None if options.carried is None else carried.receive(options.carried)
    environment, umask = _surroundings(options, user) if before is None else (before.environment, before.umask)
    if not options.no_proxy_env:
        for name in ("ALL_PROXY", "all_proxy"):  # another proxy than ours, to the clients that read it
            environment.pop(name, None)
    settings = _settings(options, user, environment)
    installation.check(user)
    if secrets := set(secret_variables(settings, environment)) & environment.keys():
        carried.start_again(arguments, environment, umask, secrets)
    problem = None if options.dry_run else make_own_place(user)
    request = _request(options, settings, user, Command(argv, environment, umask), before)
    _check_machine()
    request.domain.check()
    for warning in filter(None, (*settings.warnings, problem)):
        supervisor.say(f"warning: {printable(warning)}")
    if options.dry_run:
        return _show(request, settings)
    if options.audit_log is not None:
        request = request.with_audit(open_audit_log(options.audit_log, user))
    return supervisor.run(request)


def _request(
    options: argparse.Namespace, settings: Settings, user: User, command: Command, before: Carried | None
) -> supervisor.Request:
    def read(path: str, where: str) -> bytes:
        return _read(where, path, user)

    routes, upstream = settings.routes, settings.policy.upstream_proxy
    asker = askers_environment(command.environment, before)
    found = without_secrets(settings, user, command, asker, _view(options, settings, user))
    return supervisor.Request(
        command=command,
        view=found,
        domain=_domain(options, settings, found),
        policy=transfer.dump_policy(settings.policy),
        pinned=parse_pinned(options.resolve),
        audit_fd=None,
        verbose=options.verbose,
        no_proxy=None if options.no_proxy_env else settings.no_proxy,
        open_ports=numbers(settings.open_ports),
        upstream_auth=_upstream_secret(settings, user, before),
        upstream_tls=upstream is not None and upstream.tls,
        upstream_ca=None if options.upstream_ca is None else _read("--upstream-ca", options.upstream_ca, user),
        interception=interception_plan(settings, read),
        services=service_plans(settings, read),
        credentials=_credentials(settings, user, asker, before),
        urls={each.base_url_variable: each.name for each in routes if each.base_url_variable is not None},
        keys={each.key_variable: each.name for each in routes if each.key_variable is not None},
        ca_variables=settings.tls_intercept.ca_env_vars,
    )


def _command(argv: Sequence[str]) -> tuple[str, ...]:
    given = tuple(argv[1:] if argv[:1] == ["--"] else argv)
    if not given or not given[0]:
        raise ConfigError("run", "no command was given", hint="nono-ebpf run [OPTION]... -- CMD [ARG]...")
    return given


def _check_machine() -> None:
    cgroup.hierarchy()
    if importlib.util.find_spec("seccomp") is None:
        raise ConfigError(
            "seccomp",
            "libseccomp's Python binding is missing",
            hint="install python3-seccomp, or run `make setup`",
        )
    if not loader.bcc_is_installed():
        raise ConfigError(
            "bcc",
            "the distribution's Python module for eBPF is missing (PyPI's `bcc` is something else)",
            hint="install python3-bpfcc, or run `make setup`",
        )


def _read(option: str, path: str, user: User) -> bytes:
    try:
        with _rights(user):
            return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(option, f"{path}: {error.strerror}") from error


def _settings(options: argparse.Namespace, user: User, environment: Mapping[str, str]) -> Settings:
    def read(path: str) -> bytes:
        with _rights(user):
            return read_profile(path)

    return load.settings(Overrides.of(options), read, home=user.home, environment=environment)


def _upstream_secret(settings: Settings, user: User, before: Carried | None) -> Secret | None:
    """What the upstream proxy wants to see."""
    if settings.upstream_auth is None:
        return None
    where = settings.upstream_auth.source
    reference = parse_readable(settings.upstream_auth.value, where)
    try:
        if isinstance(reference, FromEnvironment):
            secret = sources.from_variable(reference, before.variable(reference.name) if before else None)
        else:
            secret = sources.read_file(reference, _rights(user), user.uid)
    except CredentialUnavailable as error:
        what = reference.name if isinstance(reference, FromEnvironment) else reference.path
        raise ConfigError(where, f"{what}: {error.problem}") from error
    with secret.lent() as value:
        if ord(":") not in value:
            raise ConfigError(where, "what it refers to is not USER:PASSWORD")
    return secret


def _credentials(
    settings: Settings, user: User, asker: Mapping[str, str], before: Carried | None
) -> supervisor.Credentials | None:
    kept = {each.name: each.reference.value for each in settings.routes if each.reference is not None}
    if not kept:
        return None

    def whole() -> dict[str, str]:
        secrets = {} if before is None else {name: os.fsdecode(bytes(before.variable(name))) for name in before.names}
        return {**asker, **secrets}

    return supervisor.Credentials(kept, user, whole, bool(sudo.invoking_uid()), settings.shared_secrets)


def _rights(user: User) -> AbstractContextManager[None]:
    """Those of the account, when it asked us to read something by calling sudo."""
    return user.rights() if sudo.invoking_uid() else nullcontext()


def parse_pinned(entries: Sequence[str]) -> Mapping[str, list[str]]:
    """`--resolve NAME:ADDRESS`, several addresses for one name in the order given.

    Raises:
        ConfigError: for what is neither.
    """
    pinned: dict[str, list[str]] = {}
    for entry in entries:
        name, _, address = entry.partition(":")
        try:
            host, parsed = canonical_host(name), ip_address(address.removeprefix("[").removesuffix("]"))
        except (InvalidAuthority, ValueError) as error:
            raise ConfigError("--resolve", f"{entry!r} is not NAME:ADDRESS", hint=str(error)) from error
        pinned.setdefault(host, []).append(str(parsed))
    return pinned


def _surroundings(options: argparse.Namespace, user: User) -> tuple[dict[str, str], int]:
    """The command's environment and umask."""
    if options.from_sudo is not None:
        found = sudo.surroundings(options.from_sudo)
        return found.environment, found.umask
    umask = os.umask(0)
    os.umask(umask)
    kept = {name: value for name, value in os.environ.items() if name not in sudo.VARIABLES}
    return kept | {"HOME": user.home, "USER": user.name, "LOGNAME": user.name}, umask


def _view(options: argparse.Namespace, settings: Settings, user: User) -> view.View:
    return view.View(
        user=user,
        sockets=sockets.find(user),
        allowed=_allowed_sockets(options.allow_socket, user),
        hosts=view.hosts_for_sandbox(_text("/etc/hosts")),
        resolv_conf=view.resolv_conf_for_sandbox(_text("/etc/resolv.conf")),
        ca_bundle=_ca_bundle(options, settings, user),
        devices=_devices(options.allow_device),
    )


def _domain(options: argparse.Namespace, settings: Settings, found: view.View) -> Domain:
    if not options.landlock_ports:
        return Domain(tuple(found.allowed))
    policy = settings.policy
    ports = {port for rules in (policy.allow, policy.managed) for rule in rules.rules for port in rule.ports or ()}
    if any(rule.ports is None for rule in settings.policy.allow.rules):
        raise ConfigError("--landlock-ports", "with --allow-net there is no port that it could refuse")
    listening = numbers(settings.listen_ports) | numbers(settings.open_ports)
    return Domain(tuple(found.allowed), frozenset(ports), listening)


def _allowed_sockets(paths: Sequence[str], user: User) -> dict[Path, view.FileId]:
    """`--allow-socket`: each a unix socket that the account itself may connect to."""
    with user.rights():
        return {Path(os.path.realpath(path)): _socket_id(path) for path in paths}


def _devices(paths: Sequence[str]) -> tuple[Path, ...]:
    """`--allow-device`: files, or directories, of /dev."""
    devices = tuple(Path(os.path.normpath(path)) for path in paths)
    for path in devices:
        if not (path.is_relative_to("/dev") and path.exists()) or path == Path("/dev"):
            raise ConfigError("--allow-device", f"{path} is nothing in /dev")
    return devices


def _socket_id(path: str) -> view.FileId:
    try:
        found = Path(path).stat()
    except OSError as error:
        raise ConfigError("--allow-socket", f"{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError("--allow-socket", f"{path} is not a unix socket")
    if not os.access(path, os.W_OK, effective_ids=True):
        raise ConfigError("--allow-socket", f"{path}: the account may not connect to it")
    return found.st_dev, found.st_ino


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _ca_bundle(options: argparse.Namespace, settings: Settings, user: User) -> bytes | None:
    """The system's certificates and the operator's, to which those of the proxy's own CA are added; None when the
    command is to see the system's as they are.
    """
    if options.upstream_ca is None and not settings.tls_intercept.hosts:
        return None
    extra = b"" if options.upstream_ca is None else _certificates(options.upstream_ca, user)
    system = next((Path(path) for path in view.CA_BUNDLES if Path(path).exists()), None)
    return (system.read_bytes().rstrip() + b"\n" if system else b"") + extra


def _certificates(path: str, user: User) -> bytes:
    from cryptography import x509  # 50 ms that only this option needs

    found = _read("--upstream-ca", path, user)
    try:
        x509.load_pem_x509_certificates(found)
    except ValueError as error:
        raise ConfigError("--upstream-ca", f"{path} holds no PEM certificate") from error
    return found


def open_audit_log(path: str, user: User) -> int:
    """An O_APPEND fd, mode 0600. Opened with the user's rights where they suffice: a link planted by the sandboxed
    account must not lead root's pen elsewhere. Otherwise, for root's own command, as root and through no link.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe nobody reads: ENXIO
    try:
        try:
            with user.rights():
                opened = os.open(path, flags, 0o600)
        except PermissionError:
            if sudo.invoking_uid():
                raise
            opened = libc.open_without_links(path, flags, 0o600)
        os.set_blocking(opened, True)
    except OSError as error:
        raise ConfigError("--audit-log", f"{path}: {error.strerror}") from error
    except KernelError as error:
        hint = "as root, no symbolic link is followed" if error.errno == errno.ELOOP else ""
        raise ConfigError("--audit-log", str(error), hint=hint) from error
    return opened


def _show(request: supervisor.Request, settings: Settings) -> int:
    """`--dry-run`: what would be done, on stdout."""
    policy = settings.policy
    masked = [path for path in request.view.sockets if path not in request.view.allowed]
    lines = [
        f"command   {' '.join(request.command.argv)}",
        f"user      {request.view.user.name} (uid {request.view.user.uid})",
        *(f"allow     {_shown(rule)}  ({rule.source})" for rule in policy.allow.rules),
        *(f"deny      {rule.text}  ({rule.source})" for rule in policy.deny.rules),
        *map(_shown_route, settings.routes),
        *([f"through   {policy.upstream_proxy}"] if policy.upstream_proxy else []),
        *(f"resolve   {name} {' '.join(addresses)}" for name, addresses in request.pinned.items()),
        *(f"hide      {path}" for path in (*masked, *request.view.hidden_directories)),
        *(f"show      {path}" for path in request.view.allowed),
    ]
    print("\n".join(map(printable, lines)))  # noqa: T201  # this is the output
    return 0


def _shown_route(route: Route) -> str:
    host = f"{route.service.host.pattern}, credential {route.name}"
    if route.reference is None or route.injection is None:
        return f"refuse    {host}: {route.unsupported}  ({route.source})"
    kept = redacted(parse_reference(route.reference.value, route.reference.source))
    return f"allow     {host} from {kept} as {route.injection.outbound.mode}  ({route.source})"


def _shown(rule: Rule) -> str:
    return f"{rule.text}  {', '.join(map(str, rule.endpoints))}" if rule.endpoints else rule.text
