"""Mounting over what others may take away meanwhile."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.kernel]

_MOUNT = """
import os, sys
from pathlib import Path
from nono_ebpf.errors import KernelError
from nono_ebpf.kernel import mounts
place = Path(sys.argv[1])
for name in ("source", "there", "gone"):
    (place / name).mkdir()
(place / "source/file").touch()
handles = mounts.handles([place / "there", place / "gone", place / "missing"])
(place / "gone").rmdir()
for name in ("there", "gone"):
    handle = handles.pop(place / name)
    mounts.bind_over(place / "source", handle)
    mounts.bind_handle(handle, place / f"seen-{name}")
assert not handles
try:
    mounts.bind_over(place / "missing", os.open(place / "there", os.O_PATH))
    print("no error")
except KernelError:
    print(*(os.listdir(place / name) for name in ("there", "seen-gone")))
"""


def test_a_directory_that_was_removed_is_no_failure(tmp_path: Path) -> None:
    """Nobody can put anything there any more. Any other failure is one: what is not covered is in sight."""
    command = ["unshare", "--mount", "--propagation=private", sys.executable, "-c", _MOUNT, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("['file'] []\n", "")
