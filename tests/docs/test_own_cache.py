"""The Python of docs/own_cache.md runs as it stands: a loop over a cache that its example wrote from an array."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ROOT, blocks
from support import tiny_model, write_digits

import kdkit


@pytest.mark.slow
def test_the_loop_of_the_page_trains_from_the_cache_that_the_example_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(tmp_path / "train", 40)
    np.save(tmp_path / "logits.npy", np.random.default_rng(0).normal(size=(40, 10)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["array_to_cache.py", "logits.npy", "train", "teacher.h5"])
    runpy.run_path(str(ROOT / "examples" / "array_to_cache.py"), run_name="__main__")
    student = tiny_model()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    names: dict[str, Any] = {
        "student": student,
        "task": kdkit.LogitDistillationTask(student),
        "optimizer": torch.optim.SGD(student.parameters(), lr=0.1),
    }
    block = blocks("docs/own_cache.md", language="python")[-1]
    exec(block, names)
    assert names["losses"]["kd_loss"] > 0
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_the_example_is_short() -> None:
    code = blocks("docs/own_cache.md", language="python")[0].splitlines()
    assert code[0] == "import sys"
    assert len([line for line in code if line and "import" not in line]) <= 12
