"""An array of logits becomes a cache that a student trains from, by the example's dozen lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT
from support import write_digits

from kdkit import open_cache
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.distill import distill


@pytest.mark.slow
def test_an_array_of_logits_becomes_a_cache_that_distill_trains_from(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "images", 60)
    logits = np.random.default_rng(0).normal(size=(60, 10)).astype(np.float32)
    np.save(tmp_path / "logits.npy", logits)
    script, path = str(ROOT / "examples" / "array_to_cache.py"), tmp_path / "teacher.h5"
    command = [sys.executable, script, str(tmp_path / "logits.npy"), str(data), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    cache = open_cache(path)
    expected = torch.log_softmax(torch.from_numpy(logits), dim=1)
    for view in range(10):
        decoded = cache.codecs["logits"].decode(cache.read_encoded(np.arange(60), view))
        torch.testing.assert_close(decoded, expected, rtol=0, atol=4e-3)
    assert cache.keys()[0] == "0/000.png"
    assert cache.metadata.dataset["class_names"] == [str(digit) for digit in range(10)]
    assert cache.summary()["pixels"] == "not known: opening compares keys and recipe, but no pixels"
    train = TrainConfig(epochs=1, batch_size=20, num_workers=0)
    config = DistillConfig(
        data=str(data), cache=str(path), student="test_resnet", output=str(tmp_path / "run"), train=train
    )
    assert np.isfinite(distill(config).training.epochs[-1]["loss"])
