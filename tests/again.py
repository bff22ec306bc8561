"""Asks what failed beside other tests once more, one at a time: `make test` calls it with pytest's exit status.

A test that lost a race on a busy machine says nothing about the product, and a run of thousands that is red for one of
them teaches people to look away. So a few may be asked again, and are named. Nothing in tests/bypass is: a way around
that works now and then is a way around. Nor is a failure that is not a test's: collection, interruption, wrong use.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

AT_MOST = 3
_FAILED = Path(".pytest_cache/v/cache/lastfailed")


def main(status: int, arguments: list[str]) -> int:
    """The status to end with: 0 when all that failed may be asked again and passes alone."""
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:  # of the tests that ARGS names, none is of that kind
        return 0
    failed = sorted(json.loads(_FAILED.read_text())) if status == pytest.ExitCode.TESTS_FAILED else []
    if not failed or len(failed) > AT_MOST or not all(_may_be_asked_again(test) for test in failed):
        return status
    print("failed beside others, asked again alone:", *failed, sep="\n  ", flush=True)
    only = ["--last-failed", "--last-failed-no-failures", "none"]
    again = subprocess.run([sys.executable, "-m", "pytest", *arguments, *only], check=False).returncode
    print("these lost a race: it is theirs to repair" if again == 0 else "these fail also alone", *failed, sep="\n  ")
    return again


def _may_be_asked_again(test: str) -> bool:
    """Of a node id; one without a function is of a file that could not be read."""
    return "::" in test and not test.startswith("tests/bypass/")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
