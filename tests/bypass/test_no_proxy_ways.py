"""NO_PROXY changes the road that a client takes, never where it may go: what a program sets there is its own affair."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from kit import zone
from kit.expect import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kit.machine import Run
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

ALLOWED, JUDGED, DENIED = "one.example.com", "git.example.com", "other.example.net"
RULES = [
    *("--allow-domain", ALLOWED),
    *("--allow-domain", f"http://{JUDGED}/public/**"),
]


class Target(NamedTuple):
    """One request, and whether it is let through."""

    url: str
    permitted: bool


TARGETS = [
    Target(f"http://{ALLOWED}/", permitted=True),
    Target(f"https://{ALLOWED}/", permitted=True),
    Target(f"http://{DENIED}/", permitted=False),
    Target(f"https://{DENIED}/", permitted=False),
    Target(f"http://{JUDGED}/public/page", permitted=True),
    Target(f"http://{JUDGED}/private/page", permitted=False),
    Target(f"http://{JUDGED}/public/../private/page", permitted=False),
    Target(f"https://{JUDGED}/public/page", permitted=False),
]
PAST_THE_PROXY = {
    "everything": "*",
    "by-name": f"{ALLOWED},{JUDGED},{DENIED}",
    "by-suffix": ".example.com,example.com,.net,net",
    "by-address": f"0.0.0.0/0,::/0,{ALLOWED},{JUDGED},{DENIED}",
}


def _fetched(world: World, environment: Mapping[str, str]) -> tuple[Run, list[bool]]:
    """The run, and which of the targets answered. The denied host has an address, though our resolver gives none."""
    known = [f"{DENIED}:{port}:{zone.v4(DENIED)}" for port in (zone.HTTP_PORT, zone.HTTPS_PORT)]
    curl = [require("curl"), "-sSk", "--fail", "--path-as-is", "--max-time", "120"]
    curl += [word for entry in known for word in ("--resolve", entry)]
    run = world.machine.run_steps(RULES, [[*curl, target.url] for target in TARGETS], env=environment)
    return run, [step.returncode == 0 for step in run.steps()]


def _modes(run: Run) -> set[object]:
    """The roads that were taken; a lookup is none."""
    return {record["mode"] for record in run.records if record["event"] != "dns"}


def _assert_judged(world: World, run: Run, answered: list[bool]) -> None:
    """Every verdict is the rules', and the refused requests arrived nowhere."""
    assert answered == [target.permitted for target in TARGETS], run
    arrived = sorted(seen.what for seen in world.seen if seen.service in {"http", "https"})
    assert arrived == sorted([f"GET {ALLOWED}/", f"GET {ALLOWED}/", f"GET {JUDGED}/public/page"])
    denied = [(record["target"], record["port"]) for record in run.flows("deny")]
    assert sorted(denied) == sorted(
        [(DENIED, 80), (DENIED, 443), (JUDGED, 80), (JUDGED, 80), (JUDGED, 443)],
    )


@pytest.mark.bypass("proxy-variables")
@pytest.mark.parametrize("value", PAST_THE_PROXY.values(), ids=PAST_THE_PROXY)
def test_past_the_proxy_everything_is_redirected(world: World, value: str) -> None:
    """A client that asks the proxy for nothing is redirected to it, and gets the verdicts it would have asked for."""
    run, answered = _fetched(world, dict.fromkeys(("NO_PROXY", "no_proxy"), value))
    _assert_judged(world, run, answered)
    assert _modes(run) == {"redirect"}


@pytest.mark.bypass("proxy-variables")
def test_asked_of_the_proxy_the_verdicts_are_the_same(world: World) -> None:
    """A client that asks the proxy for everything is no better off."""
    run, answered = _fetched(world, dict.fromkeys(("NO_PROXY", "no_proxy"), ""))
    _assert_judged(world, run, answered)
    assert _modes(run) == {"http", "connect"}
