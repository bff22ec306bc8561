"""What `make test` makes of a failure: which may be asked again, and what then."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from kit.checkout import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
_PASSES_LATER = """
from pathlib import Path
import pytest
@pytest.mark.parametrize("number", range({0}))
def test_it(number):
    tried = Path(f"tried-{{number}}")
    assert tried.exists(), tried.touch()
"""
_FAILS = "def test_it():\n    assert False\n"
_IS_SKIPPED_LATER = """
from pathlib import Path
import pytest
def test_it():
    if Path("tried").exists():
        pytest.skip("not any more")
    assert Path("tried").touch()
"""
_ENDS_BADLY_ONCE = """
from pathlib import Path
import pytest
@pytest.fixture
def left():
    yield
    assert Path("tried").exists(), Path("tried").touch()
def test_it(left):
    pass
"""
_KILLS_ITS_WORKER_ONCE = """
from pathlib import Path
import os
def test_it():
    if not Path("tried").exists():
        Path("tried").touch()
        os._exit(1)
"""
_PASSES = "def test_it():\n    pass\n"
_IS_NOT_READ = "import there_is_no_such_module\n"


def _ended(place: Path, file: str, text: str) -> tuple[int, str]:
    """Status and words of the two steps, for a suite of this file and one that passes."""
    for name, content in {"pytest.ini": "[pytest]\n", "tests/unit/test_fine.py": _PASSES, file: text}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    command = [sys.executable, "-m", "pytest", "-p", "tests.again", "-n", "2", "--dist", "loadfile", "-q"]
    first = subprocess.run(command, cwd=place, check=False, capture_output=True, env=_ENVIRONMENT)
    again = [sys.executable, ROOT / "tests/again.py", str(first.returncode)]
    done = subprocess.run(again, cwd=place, check=False, capture_output=True, text=True, env=_ENVIRONMENT)
    return done.returncode, done.stdout


def test_what_passes_alone_is_named_and_forgiven(tmp_path: Path) -> None:
    """A race that was lost, and a note of it."""
    status, said = _ended(tmp_path, "tests/unit/test_some.py", _PASSES_LATER.format(3))
    assert status == 0
    assert "3 passed" in said
    names = "".join(f"\n  tests/unit/test_some.py::test_it[{n}]" for n in range(3))
    assert said.endswith(f"which is theirs to repair:{names}\n")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tests/unit/test_some.py", _FAILS),
        ("tests/unit/test_some.py", _PASSES_LATER.format(4)),
        ("tests/bypass/test_some.py", _PASSES_LATER.format(1)),
        ("tests/unit/test_some.py", _IS_NOT_READ),
        ("tests/unit/test_some.py", _IS_SKIPPED_LATER),
        ("tests/unit/test_some.py", _ENDS_BADLY_ONCE),
        ("tests/unit/test_some.py", _KILLS_ITS_WORKER_ONCE),
    ],
    ids=["fails again", "too many", "a way around", "no test's failure", "not asked", "its end", "its worker's death"],
)
def test_everything_else_stays_red(tmp_path: Path, file: str, text: str) -> None:
    """A failure that means something is not asked away."""
    status, _ = _ended(tmp_path, file, text)
    assert status not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}


def test_no_tests_is_no_failure(tmp_path: Path) -> None:
    """ARGS may name tests of which none is to run alone."""
    done = subprocess.run([sys.executable, ROOT / "tests/again.py", "5"], cwd=tmp_path, check=False)
    assert done.returncode == 0
