"""One sandbox that many attacks share, the witnesses of what left, and the results by class."""

from __future__ import annotations

import json
import platform
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from catalogue import CATALOGUE
from kit import zone
from kit.account import AS_NOBODY, RUN, place  # noqa: F401  # a fixture
from kit.guarded import _sandboxed, guarded, sandboxed  # noqa: F401  # fixtures
from kit.inside import COMMAND, Agent, environment, sources
from kit.namespaces import enter_command
from kit.sandboxes import Sandbox
from kit.witness import Witness
from results import HELD, LEAKS, NOT_TRIED, Results, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kit.world import World

_RESULTS: pytest.StashKey[Results] = pytest.StashKey()
_VERDICT: pytest.StashKey[Verdict] = pytest.StashKey()

ATTACKS = sources(Path(__file__).parent / "attacks")
RULES = [
    "one.example.com",
    f"echo.example.com:{zone.SUM_PORT}",
    f"{zone.v4('echo.example.com')}:{zone.SUM_PORT}",
    f"[{zone.v6('echo.example.com')}]:{zone.SUM_PORT}",
    f"banner.example.com:{zone.BANNER_PORT}",
    "rebind.example.com",
    "inward.example.com",
    "own.example.com",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "bypass(slug, …): the classes of tests/bypass/catalogue.py that the test tries")
    config.stash[_RESULTS] = Results()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test of a class that the catalogue does not have is a mistake."""
    if unknown := set(_slugs(item)) - set(CATALOGUE):
        pytest.fail(f"the catalogue has no {', '.join(sorted(unknown))}", pytrace=False)


def _slugs(item: pytest.Item) -> list[str]:
    return [slug for marker in item.iter_markers("bypass") for slug in marker.args]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield
    for slug in _slugs(item):
        item.config.stash[_RESULTS].add(slug, _verdict_of(report, item))
    return report  # type: ignore[return-value]  # a wrapper returns the hook's result


def _verdict_of(report: pytest.TestReport, item: pytest.Item) -> Verdict | None:
    """What one phase of a test says; None: nothing."""
    if hasattr(report, "wasxfail"):
        return Verdict(LEAKS, report.wasxfail) if report.skipped else None
    if report.failed:
        return Verdict(NOT_TRIED if report.when == "setup" else LEAKS, report.longreprtext.strip().split("\n")[-1])
    if report.skipped:
        return Verdict(NOT_TRIED, str(report.longrepr[-1]) if isinstance(report.longrepr, tuple) else "")
    return item.stash.get(_VERDICT, Verdict(HELD, "")) if report.when == "call" else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--bypass-report")
    if path is not None:
        results = session.config.stash[_RESULTS].by_class()
        Path(path).write_text(json.dumps({"kernel": platform.release(), "results": results}, indent=1) + "\n")


@pytest.fixture
def instead(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`instead(REPORTED, why)` or `instead(REFUSED, why)`: on this kernel the class is not held, and how that shows."""

    def note(verdict: str, why: str) -> None:
        request.node.stash[_VERDICT] = Verdict(verdict, why)

    return note


@pytest.fixture(scope="session")
def _witness(_world: World) -> Iterator[Witness]:
    made = Witness(_world)
    made.permit("one.example.com", *(80, 443))
    made.permit("echo.example.com", zone.SUM_PORT)
    made.permit("banner.example.com", zone.BANNER_PORT)
    made.names |= {"rebind.example.com", "inward.example.com", "own.example.com"}
    yield made
    made.close()


@pytest.fixture
def witness(world: World, _witness: Witness) -> Iterator[Witness]:
    """What left and what arrived. Every test ends with a look at both."""
    targets, names = set(_witness.targets), set(_witness.names)
    _witness.forget()
    yield _witness
    try:
        _witness.assert_nothing_leaked()
    finally:
        _witness.targets, _witness.names = targets, names


def _start_inside(world: World, options: Sequence[str]) -> Agent:
    machine = world.machine
    command = machine.enter([*RUN, *options, "--", *COMMAND])
    return Agent(command, ATTACKS, cwd=machine.home, env=machine.environment())


@pytest.fixture(scope="session")
def _inside(_world: World) -> Iterator[Agent]:
    made = _start_inside(_world, [word for rule in RULES for word in ("--allow-domain", rule)])
    yield made
    made.close()


@pytest.fixture
def start_inside(world: World, witness: Witness) -> Iterator[Callable[..., Agent]]:
    """`start_inside(*options)`: a sandbox with these options, for the length of a test."""
    with ExitStack() as stack:

        def start(*options: str) -> Agent:
            made = _start_inside(world, options)
            stack.callback(made.close)
            return made

        yield start


@pytest.fixture
def inside(_inside: Agent, witness: Witness) -> Agent:
    """Runs attacks in the sandbox that the tests share (RULES are its rules), under the eyes of the witnesses."""
    return _inside


@pytest.fixture
def sandbox(inside: Agent) -> Iterator[Sandbox]:
    """The shared sandbox, seen from outside."""
    found = Sandbox.of(inside.process.pid)
    yield found
    found.close()


@pytest.fixture(scope="session")
def _outside(_world: World) -> Iterator[Agent]:
    made = Agent([*enter_command(_world.namespaces.world), *AS_NOBODY, *COMMAND], ATTACKS, env=environment())
    yield made
    made.close()


@pytest.fixture
def outside(_outside: Agent) -> Agent:
    """Runs attacks as the same account in the world's namespace, without a sandbox: the control of an experiment."""
    return _outside
