"""A network namespace with loopback and nothing else: whatever runs in it can reach nobody, and learns so at once.

A destination that is let through ends in "network unreachable" there, without a timeout and without a packet.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kit.account import with_file
from kit.namespaces import enter_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NSSWITCH = "hosts: files\n"


@contextmanager
def namespace_alone() -> Iterator[str]:
    """Its name; it goes at the end, and what is left of a killed test with `kit.namespaces`, whose prefix it has."""
    name = f"nono-test-{os.getpid()}-alone"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def command_with_hosts(name: str, hosts: str, work: Path) -> list[str]:
    """What to put before a command that runs in namespace `name` and for which the text `hosts` is all of DNS."""
    files = {"/etc/hosts": hosts, "/etc/nsswitch.conf": _NSSWITCH}
    command = enter_command(name)
    for target, text in files.items():
        source = work / target.replace("/", "_")
        source.write_text(text)
        command += with_file(source, target)
    return command
