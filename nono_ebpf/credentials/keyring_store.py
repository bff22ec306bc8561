"""The account's keyring: the Secret Service of its session (GNOME Keyring, KWallet, KeePassXC), over D-Bus.

What nono stored is found, and nono finds what is stored here: the attributes are the same. A locked keyring stays
locked: nobody may be there to see a prompt. Another backend of the `keyring` library is used where its settings name
one of its own; others (keyrings.alt's write plain files) are refused by name, and its settings never say where code is
loaded from: the sandboxed command may have written them.

Every function here talks to other processes for as long as they like: to be called where a deadline holds.
"""

from __future__ import annotations

import base64
import binascii
import configparser
import os
import stat
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nono_ebpf.credentials.reading import checked, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jeepney.io.blocking import DBusConnection
    from secretstorage import Collection

    from nono_ebpf.credentials.references import FromKeyring
    from nono_ebpf.credentials.secret import Secret

_VARIABLES: Final = ("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "HOME", "XDG_CONFIG_HOME")
_OWN_BACKENDS: Final = "keyring.backends."
_SECRET_SERVICE: Final = ("", "keyring.backends.SecretService.Keyring", "keyring.backends.chainer.ChainerBackend")
_NONE: Final = ("keyring.backends.fail.Keyring", "keyring.backends.null.Keyring")
_GO_KEYRING: Final = b"go-keyring-base64:"
_SETTINGS_BYTES: Final = 65536
_TIMEOUT_S: Final = 120.0
_UNLOCK: Final = "unlock it: log in to the desktop, or start gnome-keyring-daemon with --unlock"
_START: Final = (
    "start gnome-keyring, KWallet or KeePassXC, or name another place for it in a profile (custom_credentials)"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """An account of a service in the keyring."""

    account: str
    locked: bool


def timeout_s(environment: Mapping[str, str]) -> float | None:
    """How long a keyring may take. None: as long as it likes."""
    text = environment.get("NONO_KEYRING_TIMEOUT_SECS", "")
    if not (text.isascii() and text.isdigit()):
        return _TIMEOUT_S
    return min(float(text), 86400.0) or None


def preload() -> None:
    """Import all that is needed here: our own files may be out of reach later."""
    import secretstorage  # noqa: F401  # for later
    from cryptography.hazmat.backends import default_backend

    default_backend()  # imports more, and decrypts what the keyring sends


def read(reference: FromKeyring, environment: Mapping[str, str]) -> Secret:
    """Raises CredentialUnavailable."""
    other = _other_backend(reference, environment)
    if other is not None:
        text = other.get_password(reference.service, reference.account)
        found = None if text is None else bytearray(text.encode())
    else:
        with _session(reference, environment) as bus:
            found = _find(reference, bus)
    if found is None:
        raise unavailable(reference, "missing", f"the keyring has none{_how_to_set(reference)}")
    return checked(reference, _decoded(reference, found) if reference.decode else found)


def write(reference: FromKeyring, secret: Secret, environment: Mapping[str, str]) -> None:
    """Keep it, in place of what was there. Raises CredentialUnavailable."""
    other = _other_backend(reference, environment)
    if other is not None:
        other.set_password(reference.service, reference.account, secret.reveal().decode())
        return
    query = {"service": reference.service, "username": reference.account}
    with _session(reference, environment) as bus:
        collection = _default_collection(bus)
        if collection is None:
            problem = "the keyring has no default collection; log in to the desktop once, or make one with seahorse"
            raise unavailable(reference, "no_keyring", problem)
        for item in collection.search_items(query):
            item.set_secret(secret.reveal())
            return
        label = f"{reference.account} ({reference.service})"
        collection.create_item(label, query | {"target": "default"}, secret.reveal())


def entries(reference: FromKeyring, environment: Mapping[str, str]) -> list[Entry]:
    """Of the service that `reference` names; a locked keyring tells that much. Raises CredentialUnavailable."""
    from secretstorage import search_items

    if _other_backend(reference, environment) is not None:
        raise unavailable(reference, "unsupported", "the keyring that is configured cannot list what it holds")
    with _session(reference, environment) as bus:
        found = search_items(bus, {"service": reference.service})
        accounts = {item.get_attributes().get("username", ""): item.is_locked() for item in found}
        accounts.pop("", None)  # a locked one may keep its attributes to itself
        if not accounts and _is_locked(bus):
            raise unavailable(reference, "locked", f"the keyring is locked, and does not tell what it holds; {_UNLOCK}")
    return [Entry(account, locked) for account, locked in sorted(accounts.items())]


def state(reference: FromKeyring, environment: Mapping[str, str]) -> str:
    """In a few words, for people. Raises CredentialUnavailable where there is none, or it is locked."""
    if _other_backend(reference, environment) is not None:
        return f"{_configured(environment)} is configured"
    with _session(reference, environment) as bus:
        if _is_locked(bus):
            raise unavailable(reference, "locked", f"it is locked; {_UNLOCK}")
    return "unlocked"


def _how_to_set(reference: FromKeyring) -> str:
    return f"; `nono-ebpf credential set {reference.account}`" if reference.service == "nono" else ""


def _other_backend(reference: FromKeyring, environment: Mapping[str, str]) -> Any:  # noqa: ANN401  # untyped library
    """The backend of the keyring library that its settings name; None: the Secret Service, as without settings."""
    name = _configured(environment)
    if name in _SECRET_SERVICE:
        return None
    if name in _NONE:
        raise unavailable(reference, "no_keyring", f"the keyring library is configured to use none ({name})")
    if not name.startswith(_OWN_BACKENDS):
        raise unavailable(reference, "no_keyring", f"{name[:80]} is configured, which is not trusted with secrets")
    try:
        from keyring import core

        return core.load_keyring(name)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise unavailable(reference, "no_keyring", f"{name} is configured, and does not work here") from error


def _text(path: Path) -> str:
    """Of a file that the sandboxed command may have written."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(fd, _SETTINGS_BYTES).decode() if stat.S_ISREG(os.fstat(fd).st_mode) else ""
    finally:
        os.close(fd)


def _configured(environment: Mapping[str, str]) -> str:
    """As keyring.core.load_env and load_config find it."""
    if name := environment.get("PYTHON_KEYRING_BACKEND", ""):
        return name
    home = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '')}/.config"
    settings = configparser.RawConfigParser()
    try:
        settings.read_string(_text(Path(home, "python_keyring/keyringrc.cfg")))
        return settings.get("backend", "default-keyring").strip()
    except (OSError, UnicodeDecodeError, configparser.Error):
        return ""


@contextmanager
def _session(reference: FromKeyring, environment: Mapping[str, str]) -> Iterator[DBusConnection]:
    """A connection to the session's bus, and every failure of it as ours."""
    import secretstorage
    from jeepney import DBusErrorResponse

    _surround(environment)
    try:
        with closing(secretstorage.dbus_init()) as bus:
            yield bus
    except secretstorage.LockedException as error:
        raise unavailable(reference, "locked", f"the keyring is locked; {_UNLOCK}") from error
    except (secretstorage.SecretServiceNotAvailableException, OSError) as error:
        raise unavailable(reference, "no_keyring", f"no keyring service answers here; {_START}") from error
    except (secretstorage.SecretStorageException, DBusErrorResponse) as error:
        raise unavailable(reference, "failed", f"the keyring failed ({type(error).__name__})") from error


def _surround(environment: Mapping[str, str]) -> None:
    """What D-Bus finds its bus by, in our own environment; nothing secret."""
    given = {name: text for name in _VARIABLES if (text := environment.get(name))}
    for name in _VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(given)
    # Where the standard puts it, for sessions that do not say. systemd's, of 2014 and later.
    if "DBUS_SESSION_BUS_ADDRESS" not in os.environ and "XDG_RUNTIME_DIR" in os.environ:
        os.environ["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={os.environ['XDG_RUNTIME_DIR']}/bus"


def _find(reference: FromKeyring, bus: DBusConnection) -> bytearray | None:
    from secretstorage import search_items

    locked = False
    for item in search_items(bus, {"service": reference.service, "username": reference.account}):
        if not item.is_locked():
            return bytearray(item.get_secret())
        locked = True
    if locked or _is_locked(bus):  # some do not tell what a locked one holds
        raise unavailable(reference, "locked", f"the keyring is locked; {_UNLOCK}")
    return None


def _is_locked(bus: DBusConnection) -> bool:
    collection = _default_collection(bus)
    return collection is not None and collection.is_locked()


def _default_collection(bus: DBusConnection) -> Collection | None:
    """Never made here: that would open a prompt."""
    from secretstorage import Collection, ItemNotFoundException

    try:
        return Collection(bus)
    except ItemNotFoundException:
        return None


def _decoded(reference: FromKeyring, found: bytearray) -> bytearray:
    try:
        if not found.startswith(_GO_KEYRING):
            raise unavailable(reference, "failed", "it was not written by go-keyring: leave out ?decode=go-keyring")
        return bytearray(base64.b64decode(found.removeprefix(_GO_KEYRING), validate=True))
    except binascii.Error as error:
        raise unavailable(reference, "failed", "it is no base64, though it says so") from error
    finally:
        found[:] = bytes(len(found))
