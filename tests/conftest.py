"""Fixtures for every suite: the test world (root only), and the hypothesis profiles."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("kit")

from kit.expect import missing  # noqa: E402  # after: or its assertions say nothing
from kit.world import World  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kit.machine import Machine

# The tests are root's own, also when an ordinary user started them through sudo.
os.environ.pop("SUDO_UID", None)
# A job in the background has them ignored, and would hand that down to every program that is tried.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# How fast the machine is says nothing about what is tried.
_ANY_PACE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=100, **_ANY_PACE)
settings.register_profile("deep", max_examples=5000, **_ANY_PACE)
settings.load_profile("fast")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here, since options are read before any other directory's conftest."""
    parser.addoption("--bypass-report", metavar="FILE", help="write the results of tests/bypass by class, as JSON")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without root, the tests marked `root` are skipped, unless NONO_EXPECT names root."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        missing("root", "this test needs root")


@pytest.fixture(scope="session")
def _world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture
def world(_world: World) -> World:
    """The test world, with nothing seen yet."""
    _world.forget()
    return _world


@pytest.fixture
def machine(world: World) -> Machine:
    """The machine of the test world, where nono-ebpf runs."""
    return world.machine
