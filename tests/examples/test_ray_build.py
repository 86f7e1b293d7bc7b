"""Ray Data writes the shards that a build writes. Skipped without Ray, which is no dependency of the tests."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from support import cache_contents, tiny_model

from kdkit import build_cache, create_teacher
from kdkit.building.config import BuildConfig
from kdkit.data import FolderSource, ReplayedDataset
from kdkit.recipe import ViewRecipe


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "ray[data]"')
def test_two_ray_actors_make_the_cache_that_a_build_makes(tmp_path: Path) -> None:
    digits = load_digits()
    for index in range(300):
        place = tmp_path / "images" / str(digits.target[index]) / f"{index:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 15).astype("uint8")).save(place)
    save_file(tiny_model(seed=1).state_dict(), tmp_path / "teacher.safetensors")
    command = [
        sys.executable, str(ROOT / "examples" / "ray_build.py"), "--data", str(tmp_path / "images"),
        "--teacher", "test_resnet", "--checkpoint", str(tmp_path / "teacher.safetensors"),
        "--output", str(tmp_path / "ray.h5"), "--size", "32", "--views", "2", "--codec", "int8", "--actors", "2",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "300 images x 2 views, 600 asked" in done.stdout
    dataset = ReplayedDataset(FolderSource(tmp_path / "images"), ViewRecipe(size=32, num_views=2))
    teacher = create_teacher("test_resnet", checkpoint=tmp_path / "teacher.safetensors")
    build_cache(teacher, dataset, tmp_path / "plain.h5", BuildConfig(codec="int8", num_workers=0))
    assert cache_contents(tmp_path / "ray.h5") == cache_contents(tmp_path / "plain.h5")
