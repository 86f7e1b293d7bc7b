"""The examples run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_distill_digits_teaches_a_student_without_labels() -> None:
    assert runpy.run_path(str(EXAMPLES / "distill_digits.py"))["main"]() > 70


@pytest.mark.slow
# Lightning and Accelerate use what Python and torch have deprecated; an example for them cannot help it.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["timm_train", "lightning_module", "accelerate_loop"])
def test_a_task_takes_part_in_a_loop_that_is_not_kdkits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as when the script is run
    assert runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]() > 60
