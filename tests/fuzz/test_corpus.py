"""Every input that ever broke a promise, and every seed, checked again. Needs no fuzzer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fuzz.targets import CORPUS, NAMES, examples, target

if TYPE_CHECKING:
    from pathlib import Path

# Findings whose repair is still to come, with the reason. An entry that no longer fails is an error.
_PRODUCT_IS_WRONG: dict[str, str] = {}


def _param(name: str, path: Path) -> object:
    key = f"{name}/{path.name}"
    wrong = _PRODUCT_IS_WRONG.get(key)
    return pytest.param(name, path, id=key, marks=pytest.mark.xfail(reason=wrong, strict=True) if wrong else ())


@pytest.mark.parametrize(("name", "path"), [_param(name, path) for name in NAMES for path in examples(name)])
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
    """No example lies where nothing replays it, and no note is about an example that is gone."""
    assert {path.name for path in CORPUS.iterdir()} <= set(NAMES)
    kept = {f"{name}/{path.name}" for name in NAMES for path in examples(name)}
    assert set(_PRODUCT_IS_WRONG) <= kept
