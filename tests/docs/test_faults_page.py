"""The table of docs/faults.md and the tests name the same faults."""

from __future__ import annotations

import re

from commands import ROOT

TESTS = ROOT / "tests"
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
CLOSED = {int(row[1]): row[0] for row in re.finditer(r"^\| (\d+) \|.*\|.*\|.*\|$", PAGE, re.MULTILINE)}
OPEN = {int(row[1]) for row in re.finditer(r"^\| (\d+) \|[^|]*\|$", PAGE, re.MULTILINE)}


def named_in(text: str) -> set[int]:
    """Numbers of the faults that a text names: `test_fault_05_...`, "Fault 5", "Faults 5, 6 and 21"."""
    functions = re.findall(r"test_fault_(\d+)", text)
    lists = re.findall(r"\bfaults? ((?:\d+(?:, | and | to )?)+)", text, re.IGNORECASE)
    return {int(number) for found in (*functions, *lists) for number in re.findall(r"\d+", found)}


def test_the_faults_of_the_table_are_numbered_without_a_gap() -> None:
    assert sorted([*CLOSED, *OPEN]) == list(range(1, len(CLOSED) + len(OPEN) + 1))


def test_every_fault_that_a_test_names_is_in_the_table() -> None:
    named = {
        path: named_in(path.read_text(encoding="utf-8")) for path in TESTS.rglob("*.py") if "docs" not in path.parts
    }
    assert {path.name: sorted(numbers - set(CLOSED)) for path, numbers in named.items() if numbers - set(CLOSED)} == {}


def test_every_closed_fault_has_a_test_in_each_file_that_its_row_names() -> None:
    for number, row in CLOSED.items():
        files = re.findall(r"`([\w/]+\.py)`", row)
        assert files, row
        for file in files:
            assert f"def test_fault_{number:02d}_" in (TESTS / file).read_text(encoding="utf-8"), (number, file)


def test_every_file_with_a_test_of_a_fault_is_in_the_row_of_that_fault() -> None:
    for path in TESTS.rglob("test_*.py"):
        for number in re.findall(r"def test_fault_(\d+)_", path.read_text(encoding="utf-8")):
            assert f"`{path.relative_to(TESTS).as_posix()}`" in CLOSED[int(number)], (number, path)
