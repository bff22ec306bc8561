"""Asks what failed beside other tests once more, one at a time: `make test` calls it with pytest's exit status.

A test that lost a race on a busy machine says nothing about the product, and a run of thousands that is red for one of
them teaches people to look away. So a few may be asked again, and are named. Nothing in tests/bypass is: a way around
that works now and then is a way around. Nor is a failure that is not a test's own: at the end of its fixtures, of a
worker, of a file that cannot be read.

It is also the plugin (`-p tests.again`) that notes in pytest's cache what failed where.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

AT_MOST = 3
_KEY = "again/outcomes"
_NOTED = Path(".pytest_cache/v", _KEY)
_PYTEST = (sys.executable, "-m", "pytest", "-p", "tests.again")


class _Notes:
    """What became of each test: the phase in which it failed, or "passed"."""

    def __init__(self, config: pytest.Config) -> None:
        _NOTED.unlink(missing_ok=True)
        self._config = config
        self._outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A failure in any phase stays one; `when` is something else for a worker that died."""
        if report.failed:
            self._outcomes[report.nodeid] = str(report.when)
        elif report.when == "call" and report.passed:
            self._outcomes.setdefault(report.nodeid, "passed")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be read."""
        if report.failed:
            self._outcomes[report.nodeid] = "collect"

    def pytest_sessionfinish(self) -> None:
        """Where `main` looks."""
        cache = self._config.cache
        assert cache is not None
        cache.set(_KEY, self._outcomes)


def pytest_configure(config: pytest.Config) -> None:
    """In the process that hears of all tests, not in its workers."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Notes(config))


def main(status: int) -> int:
    """The status to end with: 0 when all that failed may be asked again and passes alone."""
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:  # of the tests that ARGS names, none is of that kind
        return 0
    failed = {test: phase for test, phase in _noted().items() if phase != "passed"}
    if status != pytest.ExitCode.TESTS_FAILED or not 0 < len(failed) <= AT_MOST:
        return status
    if not all(phase in {"setup", "call"} and not test.startswith("tests/bypass/") for test, phase in failed.items()):
        return status
    print("failed beside others, asked again alone:", *failed, sep="\n  ", flush=True)
    again = subprocess.run([*_PYTEST, "-q", *failed], check=False).returncode
    if again or _noted() != dict.fromkeys(failed, "passed"):
        print("these fail also alone:", *failed, sep="\n  ")
        return again or status
    print("these lost a race, which is theirs to repair:", *failed, sep="\n  ")
    return 0


def _noted() -> dict[str, str]:
    """What the last run has noted, once; nothing when it ended before it could."""
    if not _NOTED.exists():
        return {}
    outcomes: dict[str, str] = json.loads(_NOTED.read_text())
    _NOTED.unlink()
    return outcomes


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
