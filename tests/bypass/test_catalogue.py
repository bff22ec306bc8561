"""The catalogue of ways around, its tests, and the table of results."""

from __future__ import annotations

import ast
from pathlib import Path

import table
from catalogue import CATALOGUE
from results import HELD, LEAKS, NOT_TRIED, REPORTED, Results, Verdict

HERE = Path(__file__).parent


def test_every_class_has_a_test() -> None:
    """A class that nobody tries is a promise that nobody keeps."""
    texts: set[str] = set()
    for path in HERE.glob("test_*.py"):
        if path != Path(__file__):
            tree = ast.parse(path.read_text())
            texts |= {
                node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
    assert set(CATALOGUE) - texts == set()


def test_the_worst_of_a_class_is_its_result() -> None:
    """One test that leaks, or is only reported, outweighs all that hold; a skip outweighs nothing."""
    results = Results()
    for slug, said in (
        ("datagrams", HELD),
        ("datagrams", NOT_TRIED),
        ("quic", HELD),
        ("quic", LEAKS),
        ("sudo", REPORTED),
        ("sudo", HELD),
    ):
        results.add(slug, Verdict(said, said))
    found = results.by_class()
    assert [found[slug]["result"] for slug in ("datagrams", "quic", "sudo", "vsock")] == [
        HELD,
        LEAKS,
        REPORTED,
        NOT_TRIED,
    ]
    assert found["datagrams"]["tests"] == 1
    assert list(found) == list(CATALOGUE)


def test_the_table_has_a_line_a_class_and_a_column_a_kernel() -> None:
    """Rendered from what `--bypass-report` wrote; what a report does not have was not tried."""
    reports = [{"kernel": release, "results": {"quic": {"result": HELD}}} for release in ("6.1.0-50-amd64", "7.3.4")]
    lines = table.render(reports).splitlines()
    assert len(lines) == 2 + len(CATALOGUE)
    assert lines[0].endswith("| 6.1 | 7.3 |")
    (quic,) = [line for line in lines if CATALOGUE["quic"].title in line]
    assert quic.endswith("| held | held |")
    assert all(line.count("|") == lines[0].count("|") for line in lines)
