"""Fuzz the targets, one after the other: `run.py [--seconds N] [TARGET ...]`. Ends with 1 when something was found.

What was found is made small and kept in `corpus/TARGET/`, where `test_corpus.py` replays it from then on.
Inputs that only reached new code stay in `build/fuzz/TARGET/`, and the next run begins with them.

A process of its own fuzzes each target, because atheris has to instrument modules as they are imported and
ends the process when it is done. It notes each kind of failure once and goes on, so a failure that is kept
already does not hide the next one.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import re
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Check = Callable[[bytes], None]

_TESTS = Path(__file__).resolve().parents[1]
_WORK = _TESTS.parent / "build" / "fuzz"
# Ours. Larger ones are tried too seldom to find anything; the bounds above are the unit tests' affair.
_INPUT_BYTES = 4096
_MEMORY_MB, _SECONDS_EACH = 1024, 30
# Whose branches count as coverage: ours, and what decides about our inputs in our place or beside us.
_INSTRUMENTED = ["nono_ebpf", "dns", "h11", "idna"]
_LAST_LINE = re.compile(r"#(?P<runs>\d+)\s+DONE\s+(?P<rest>.*)")

# The type of a failure, the line that raised it, and that of the error which was being looked at.
Kind = tuple[str, str, str]


def main() -> int:
    """Parse the command line and obey it."""
    sys.path[0] = str(_TESTS)
    if sys.argv[1:2] == ["--child"]:
        return _fuzz(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
    from fuzz.targets import NAMES

    parser = argparse.ArgumentParser(description="Fuzz the parsers and the rules.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument(
        "targets", nargs="*", choices=[*NAMES, "all"], default="all", metavar="TARGET", help=", ".join(NAMES)
    )
    options = parser.parse_args()
    names = NAMES if "all" in options.targets else options.targets
    return 1 if sum([_run(name, options.seconds) for name in names]) else 0


def _run(name: str, seconds: int) -> int:
    """Fuzz one target and keep what was found; the number of findings."""
    from fuzz.targets import CORPUS, target

    check = target(name).check
    work = _WORK / name
    work.mkdir(parents=True, exist_ok=True)
    for seed in target(name).seeds():
        _keep(work, seed)
    print(f"{name}: {seconds} s, log in {work}.log", flush=True)
    with tempfile.TemporaryDirectory() as found, Path(f"{work}.log").open("wb") as log:
        command = [sys.executable, __file__, "--child", name, str(work), found, str(seconds)]
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False).returncode
        kept = {_keep(CORPUS / name, _small(check, path)) for path in sorted(Path(found).iterdir())}
    text = Path(f"{work}.log").read_text(errors="replace")
    last = _LAST_LINE.search(text)
    print(f"{name}: {last['runs']} runs, {last['rest']}" if last else f"{name}: ended with {status}, see the log")
    for path in sorted(kept):
        print(f"{name}: found {path.relative_to(_TESTS.parent)}")
    return len(kept) + (not last)


def _small(check: Check, path: Path) -> bytes:
    """The input in `path`, made small unless libFuzzer wrote it: it takes too long, or too much memory."""
    return path.read_bytes() if "-" in path.name else smallest(check, path.read_bytes())


def _keep(directory: Path, data: bytes) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return path


def kind_of(check: Check, data: bytes) -> Kind | None:
    """How `check` fails for `data`; None when it does not."""
    try:
        check(data)
    except Exception as error:  # noqa: BLE001  # whatever comes out is what is looked for
        return type(error).__name__, _raised_at(error), _raised_at(error.__context__)
    return None


def _raised_at(error: BaseException | None) -> str:
    frames = traceback.extract_tb(error.__traceback__) if error else []
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def smallest(check: Check, data: bytes) -> bytes:
    """`data` without any part that the failure does not need; `data` itself when it does not fail here."""
    kind = kind_of(check, data)
    size = len(data) // 2 if kind else 0
    while size:
        for start in range(len(data) - size, -1, -size):
            shorter = data[:start] + data[start + size :]
            if kind_of(check, shorter) == kind:
                data = shorter
        size //= 2
    return data


def _fuzz(name: str, work: Path, found: Path, seconds: str) -> int:
    """The child: never returns while there is time left."""
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        targets = importlib.import_module("fuzz.targets")
        check: Check = targets.target(name).check
    known = {kind_of(check, path.read_bytes()) for path in targets.examples(name)}

    def note(data: bytes) -> None:
        if (kind := kind_of(check, data)) not in known and kind is not None:
            known.add(kind)
            _keep(found, data)
            print(f"found {kind}", flush=True)

    libfuzzer = [
        f"-max_total_time={seconds}",
        f"-max_len={_INPUT_BYTES}",
        f"-rss_limit_mb={_MEMORY_MB}",
        f"-timeout={_SECONDS_EACH}",
        f"-artifact_prefix={found}/",
        str(work),
        str(targets.CORPUS / name),
    ]
    (targets.CORPUS / name).mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *libfuzzer], note)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
