"""`table.py A.json B.json …`: what `pytest tests/bypass --bypass-report` wrote, as Markdown, a column a kernel."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalogue import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Sequence


def render(reports: Sequence[dict[str, Any]]) -> str:
    """One line a class: what it is, what is right, what each kernel showed."""
    lines = [_row("way around", "right", *(_short(report["kernel"]) for report in reports))]
    lines.append("|" + "---|" * (2 + len(reports)))
    lines += [
        _row(each.title, each.right, *(_result(report, slug) for report in reports)) for slug, each in CATALOGUE.items()
    ]
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _short(release: str) -> str:
    return ".".join(release.split(".")[:2])


def _result(report: dict[str, Any], slug: str) -> str:
    return str(report["results"].get(slug, {"result": "not tried"})["result"])


def main() -> None:
    sys.stdout.write(render([json.loads(Path(name).read_text()) for name in sys.argv[1:]]))


if __name__ == "__main__":
    main()
