"""A pytest plugin: which tests run in a guest when none are named.

Compiling the programs takes most of a sandbox's start: ten seconds and more where the processor is emulated. So these
are the tests that share a sandbox or a set of hooks with others, and the few below, each worth a start of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_SHARED = {"inside", "bench"}
_OTHERS = (
    "tests/kernel/test_doctor.py::test_doctor_finds_everything_here",
    "tests/kernel/test_confinement.py::test_landlock_judges_ports_when_told_to",
    "tests/kernel/test_confinement.py::test_files_can_be_moved_and_linked_between_directories",
    "tests/kernel/test_confinement.py::test_who_breaks_into_the_proxy_finds_nothing",
    "tests/kernel/test_redirect.py::test_io_uring[4000-allow-203.0.113.14]",
    "tests/kernel/test_redirect.py::test_pid_is_the_real_one",
    "tests/kernel/test_run.py::test_the_command_has_no_privilege",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep those."""
    kept = [item for item in items if _SHARED & set(getattr(item, "fixturenames", ())) or item.nodeid in _OTHERS]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
