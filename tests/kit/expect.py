"""What this machine must be able to do, so that a skipped test cannot pass for a green one.

`NONO_EXPECT` is a comma list of programs (`curl`, `java`, …) and abilities (`root`). What it names and the
machine lacks is a failure; what it does not name and the machine lacks is a skip with the reason.
"""

from __future__ import annotations

import os
import shutil

import pytest


def expected() -> frozenset[str]:
    """The names in NONO_EXPECT."""
    return frozenset(name.strip() for name in os.environ.get("NONO_EXPECT", "").split(",") if name.strip())


def missing(name: str, why: str) -> None:
    """Fail or skip the running test, as NONO_EXPECT has it for `name`. Does not return."""
    if name in expected():
        pytest.fail(f"NONO_EXPECT names {name}, but {why}", pytrace=False)
    pytest.skip(why)


def require(program: str) -> str:
    """The path of `program`; without it the running test fails or is skipped."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")
    if path is None:
        missing(program, f"{program} is not installed")
        raise AssertionError
    return path
