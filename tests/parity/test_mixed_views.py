"""Distilling on mixed views, with a teacher that sees its own larger ones: live and from a float32 cache.

Compared: every logged loss of two short runs, to 1e-4. Not promised: equal bits, since a teacher's matrix products may
round otherwise in another batch.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from support import tiny_model, write_digits

from kdkit import build_cache
from kdkit.building.config import BuildConfig
from kdkit.config import TeacherConfig
from kdkit.dataset import open_dataset
from kdkit.recipe import ViewRecipe
from kdkit.resolve import resolve_device, resolve_teacher
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.distill import distill


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """51 digits as an image folder, and a ten-class teacher beside it."""
    write_digits(tmp_path / "images", 51)
    save_file(tiny_model(seed=1).state_dict(), tmp_path / "teacher.safetensors")
    return tmp_path


@pytest.mark.parametrize("teacher_size", [None, 48])
def test_a_live_teacher_and_its_cache_teach_alike(folder: Path, teacher_size: int | None) -> None:
    data, named = str(folder / "images"), TeacherConfig("test_resnet", checkpoint=str(folder / "teacher.safetensors"))
    recipe = ViewRecipe.preset(
        "deit", size=32, teacher_size=teacher_size, erasing_mode="rand", num_views=2, scale=(0.4, 1.0)
    )
    teacher = resolve_teacher(named, resolve_device("cpu"))
    build = BuildConfig(codec="float32", num_workers=0, batch_size=20)
    build_cache(teacher, open_dataset(data, recipe=recipe), folder / "t.h5", build)
    training = TrainConfig(epochs=2, batch_size=10, opt="sgd", lr=1e-3, weight_decay=0.0, num_workers=0)
    losses = {}
    for way in ("live", "cached"):
        report = distill(
            DistillConfig(
                data=data,
                output=str(folder / way),
                student="test_efficientnet",
                cache=str(folder / "t.h5") if way == "cached" else None,
                teacher=named if way == "live" else None,
                recipe=recipe if way == "live" else None,
                train=training,
            )
        )
        losses[way] = [record[term] for record in report.training.epochs for term in ("loss", "task_loss", "kd_loss")]
    assert losses["cached"] == pytest.approx(losses["live"], rel=1e-4)
