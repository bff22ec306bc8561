"""/etc/hosts, and files that are read again when they change.

Knows the format of hosts(5). Must not know what an answer is used for.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Generic, TypeVar

from nono_ebpf.authority import canonical_host
from nono_ebpf.errors import InvalidAuthority

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from nono_ebpf.model import IPAddress

T = TypeVar("T")


class Reread(Generic[T]):
    """The parsed content of a small text file, parsed again whenever the file is another one or was changed.

    A missing file reads as empty: both files we read may be absent on a sound system.
    """

    def __init__(self, path: Path, parse: Callable[[str], T]) -> None:
        self._path = path
        self._parse = parse
        self._seen: tuple[int, ...] | None = None
        self._value: T | None = None

    def get(self) -> T:
        """The current value. Raises what `parse` raises, and OSError for a file that cannot be read."""
        seen = self._identity()
        if self._value is None or seen != self._seen:
            self._value = self._parse(self._text())
            self._seen = seen
        return self._value

    def _identity(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return ()
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def _text(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""


def parse_hosts(text: str) -> Mapping[str, tuple[IPAddress, ...]]:
    """Canonical name to its addresses, in the file's order.

    As hosts(5) readers do, lines that are not "address name…" are passed over: the file belongs to the host
    and has more readers than us.
    """
    table: dict[str, list[IPAddress]] = {}
    for line in text.splitlines():
        fields = line.partition("#")[0].split()
        address = _address(fields[0]) if fields else None
        for host in filter(None, map(_name, fields[1:])) if address is not None else ():
            held = table.setdefault(host, [])
            if address is not None and address not in held:
                held.append(address)
    return {host: tuple(addresses) for host, addresses in table.items()}


def _address(text: str) -> IPAddress | None:
    try:
        # "fe80::1%lo0" occurs in hosts files; without its zone it is no address we could dial.
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def _name(text: str) -> str | None:
    try:
        return canonical_host(text)
    except InvalidAuthority:
        return None
