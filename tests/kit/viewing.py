"""A sandbox without network: pid 1, its namespaces and its view, as `nono-ebpf run` makes them, and nothing besides.

For what a view is to show and to hide. `command` runs this file as a process of its own, since pid 1 is its child:
`viewing.py '{"hidden_directories": […], …}' COMMAND…`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.kernel import cgroup
from nono_ebpf.sandbox import signals
from nono_ebpf.sandbox.init import Command, Init, Surroundings, cgroups_under
from nono_ebpf.sandbox.landlock import Domain
from nono_ebpf.sandbox.user import find_user
from nono_ebpf.sandbox.view import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def command(
    *argv: str,
    hidden_directories: Iterable[Path] = (),
    hidden: Iterable[Path] = (),
    ca_bundle: Path | None = None,
    certificates: Path | None = None,
) -> Sequence[str]:
    """What to run, as root, for `argv` to run as nobody in a view with these; both kinds of certificates are files."""
    options = {
        "hidden_directories": list(map(str, hidden_directories)),
        "hidden": list(map(str, hidden)),
        "ca_bundle": _one(ca_bundle),
        "certificates": _one(certificates),
    }
    return [sys.executable, "-I", __file__, json.dumps(options), *argv]


def main(options: dict[str, object], argv: Sequence[str]) -> int:
    """The command's exit status."""
    signals.block()
    bundle, certificates = _paths(options["ca_bundle"]), _paths(options["certificates"])
    view = View(
        user=find_user("nobody"),
        sockets=(),
        allowed={},
        hosts=b"127.0.0.1 localhost\n",
        resolv_conf=b"",
        ca_bundle=bundle[0].read_bytes() if bundle else None,
        hidden=_paths(options["hidden"]),
        hidden_directories=_paths(options["hidden_directories"]),
    )
    environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    group = cgroup.hierarchy() / f"nono-test-viewing-{os.getpid()}"
    groups = cgroups_under(group)
    try:
        init = Init.start(Command(tuple(argv), environment, 0o022), groups, Surroundings(view, Domain()))
        with init.listeners():
            init.map_ids()
            init.wait_ready()
            init.go({"GIVEN": "late"}, certificates[0].read_bytes() if certificates else b"")
            return signals.wait_for(init.pid, lambda _pid, _status: None)
    finally:
        for each in (groups.sandbox, groups.proxy):
            each.remove()
        group.rmdir()


def _one(path: Path | None) -> list[str]:
    return [] if path is None else [str(path)]


def _paths(value: object) -> tuple[Path, ...]:
    assert isinstance(value, list)
    return tuple(map(Path, value))


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2:]))
