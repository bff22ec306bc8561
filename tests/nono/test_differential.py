"""nono's live proxy and ours, asked the same under the same rules: they agree but for `differences.py`, which says why.

Both run in a network namespace without a route, where a request that the rules let through ends in 502 at once. nono's
package takes no deny rules; its proxy reads them as it reads allow rules, so a second proxy, which allows just those,
tells which requests they match.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import ours
import pytest
from cases import HOSTS, Case, rule_sets
from differences import DIFFERENCES, Difference
from kit.alone import command_with_hosts, namespace_alone
from kit.expect import missing
from kit.namespaces import inside
from kit.patience import patient

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.root

SEED, RULE_SETS, CASES_EACH = 1, 500, 8
NONO = Path(__file__).parent / "nono_proxy.py"
TIMEOUT_S = patient(300)
FORBIDDEN, BAD_GATEWAY = 403, 502
# Each name in both of its absolute spellings: a hosts file is matched by text, which DNS is not.
HOSTS_FILE = "".join(f"{address} {name} {name}.\n" for name, addresses in HOSTS.items() for address in addresses)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What was said of one case: by nono, by our `decide()`, and by our relay as a status (0: closed, or no start)."""

    case: Case
    nono: bool
    decided: bool
    relayed: int

    def explanations(self) -> list[Difference]:
        """The differences that account for a disagreement."""
        return [each for each in DIFFERENCES if each.we_allow == self.decided and each.holds(self.case)]


@dataclass(frozen=True, slots=True)
class Everything:
    """All verdicts, and what nono's proxies answered and recorded, a set each."""

    verdicts: list[Verdicts]
    answers: list[dict[str, Any]]

    def disagreements(self) -> list[Verdicts]:
        """Where nono and we say different things."""
        return [each for each in self.verdicts if each.nono != each.decided]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Everything:
    """Every case asked once, of everybody."""
    if find_spec("nono_py") is None:
        missing("nono-py", "nono's Python package is not installed")
    work = tmp_path_factory.mktemp("differential")
    sets = rule_sets(Random(SEED), RULE_SETS, CASES_EACH)
    with namespace_alone() as name:
        command = command_with_hosts(name, HOSTS_FILE, work)
        answers = _ask_nono(command, sets)
        mine = inside(name, lambda: asyncio.run(_ask_ourselves(sets, work)))
    nono = _verdicts_of_nono(sets, answers)
    cases = [case for each in sets for case in each]
    return Everything([Verdicts(*each) for each in zip(cases, nono, *zip(*mine, strict=True), strict=True)], answers)


def _ask_nono(command: list[str], sets: list[list[Case]]) -> list[dict[str, Any]]:
    """For every set what a proxy with its allow rules answers, then what one that allows its deny rules does."""
    rules = [cases[0].allow for cases in sets] + [cases[0].deny for cases in sets]
    questions = [
        {"rules": [rule.text for rule in each], "requests": [case.request for case in cases]}
        for each, cases in zip(rules, sets * 2, strict=True)
    ]
    done = subprocess.run(
        [*command, sys.executable, str(NONO)],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def _verdicts_of_nono(sets: list[list[Case]], answers: list[dict[str, Any]]) -> Iterable[bool]:
    for cases, allowed, denied in zip(sets, answers[: len(sets)], answers[len(sets) :], strict=True):
        for case, status, matched in zip(cases, allowed["answers"], denied["answers"], strict=True):
            yield status == BAD_GATEWAY and not (case.deny and matched == BAD_GATEWAY)


async def _ask_ourselves(sets: list[list[Case]], work: Path) -> list[tuple[bool, int]]:
    resolver = ours.resolver(work / "hosts", work / "none")
    (work / "hosts").write_text(HOSTS_FILE)
    (work / "none").touch()
    answers: list[tuple[bool, int]] = []
    for cases in sets:
        decided = [await ours.permitted(case, resolver) for case in cases]
        answers += zip(decided, await ours.relayed(cases, resolver), strict=True)
    await resolver.aclose()
    return answers


def test_we_agree(everything: Everything) -> None:
    """Every request that one of the two lets through and the other does not has a difference that accounts for it."""
    unexplained = [each for each in everything.disagreements() if not each.explanations()]
    assert not unexplained, "\n".join(f"{each.case}: we {each.decided}, nono {each.nono}" for each in unexplained[:10])


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda each: each.name)
def test_difference_occurs(everything: Everything, difference: Difference) -> None:
    """There is a disagreement for which nothing else accounts: none of the differences is out of date."""
    assert any(each.explanations() == [difference] for each in everything.disagreements())


def test_relay_does_what_was_decided(everything: Everything) -> None:
    """What the rules permit is dialled, in vain, and nothing else is."""
    wrong = [each for each in everything.verdicts if (each.relayed == BAD_GATEWAY) != each.decided]
    assert not wrong, "\n".join(f"{each.case}: {each.relayed}" for each in wrong[:10])


def test_nono_records_what_it_answers(everything: Everything) -> None:
    """403 is a denial by host and 502 a request let through: so says nono's own audit log."""
    for each in everything.answers:
        recorded = Counter(category for _, category in each["audit"])
        statuses = Counter(each["answers"])
        assert recorded["host_denied"] == statuses[FORBIDDEN], each
        assert recorded["upstream_connect_failed"] == statuses[BAD_GATEWAY], each


def test_cases_are_near_the_rules(everything: Everything) -> None:
    """A tenth of the requests are let through by both, a tenth by neither."""
    agreed = Counter(each.nono for each in everything.verdicts if each.nono == each.decided)
    assert min(agreed[True], agreed[False]) > len(everything.verdicts) / 10
