"""Every input that ever broke a promise, and every seed, checked again. Needs no fuzzer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fuzz.targets import CORPUS, NAMES, examples, target

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = [pytest.param(name, path, id=f"{name}/{path.name}") for name in NAMES for path in examples(name)]


@pytest.mark.parametrize(("name", "path"), EXAMPLES)
def test_a_kept_input_breaks_no_promise(name: str, path: Path) -> None:
    """What was found once is not found again."""
    target(name).check(path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_no_seed_breaks_a_promise(name: str) -> None:
    """The inputs that fuzzing begins with are sound, cut anywhere, and so is none at all."""
    check = target(name).check
    check(b"")
    for seed in target(name).seeds():
        check(seed)
        for size in range(0, len(seed), 1 + len(seed) // 16):
            check(seed[:size])


def test_every_kept_input_has_a_target() -> None:
    """No example lies where nothing replays it."""
    assert {path.name for path in CORPUS.iterdir()} <= set(NAMES)
