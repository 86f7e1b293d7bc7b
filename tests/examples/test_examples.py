"""The examples run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_distill_digits_teaches_a_student_without_labels() -> None:
    assert runpy.run_path(str(EXAMPLES / "distill_digits.py"))["main"]() > 70
