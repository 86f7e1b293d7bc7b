"""Real digits, three seeds, the commands alone: what a codec costs a student, and what its teacher is worth to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import ttest_ind
from sklearn.datasets import load_digits
from support import tiny_model

from kdkit.cli import main

SEEDS = range(3)
CODECS = {
    "float32": ["--build.codec", "float32"],
    "lowrank": ["--build.codec", "lowrank", "--build.codec_options", "{row_bytes: 16}"],
}
RECIPE = ["--recipe.size", "32", "--recipe.scale", "[0.8, 1.0]", "--recipe.hflip", "0", "--recipe.num_views", "3"]


def write_parts(folder: Path) -> None:
    """600 digits to learn from, ten labelled ones of each class among them once more, and 300 others to evaluate on."""
    data = load_digits()
    written = dict.fromkeys(range(10), 0)
    for index, target in enumerate(data.target[:900]):
        held_out = index % 3 == 2
        few = not held_out and written[target] < 10
        written[target] += few
        for part in ("held out",) if held_out else ("all", "few") if few else ("all",):
            place = folder / part / f"{target}" / f"{index:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((data.images[index] * 15).astype(np.uint8)).save(place)


def distill(folder: Path, name: str, part: str, epochs: int, *more: str) -> float:
    """Held-out top-1, percent, of a student trained on the images of `part`."""
    train = ["--train.epochs", f"{epochs}", "--train.num_workers", "0", "--no-preflight"]
    images = ["--data", str(folder / part), "--output", str(folder / name)]
    assert main(["distill", *images, *train, *more]) == 0
    evaluated = ["--student", str(folder / name), "--data", str(folder / "held out"), "--num_workers", "0"]
    assert main(["evaluate", *evaluated, "--output", str(folder / f"{name}.json")]) == 0
    return float(json.loads((folder / f"{name}.json").read_text())["top1"])


def create_teacher(folder: Path) -> list[str]:
    """A teacher of every label, trained and exported by the commands too; the options that name it."""
    save_file(tiny_model(seed=1).state_dict(), folder / "nobody.safetensors")
    nobody = ["--teacher.model", "test_resnet", "--teacher.checkpoint", str(folder / "nobody.safetensors"), *RECIPE]
    alone = ["--distill_loss_weight", "0", "--student", "test_resnet", "--train.lr", "2e-3", "--train.batch_size", "64"]
    assert distill(folder, "teacher", "all", 8, *nobody, *alone) > 90
    assert main(["export", "--student", str(folder / "teacher"), "--output", str(folder / "exported")]) == 0
    return ["--teacher.model", "test_resnet", "--teacher.checkpoint", str(folder / "exported" / "model.safetensors")]


@pytest.mark.slow
def test_students_of_compressed_outputs_are_within_the_spread_of_seeds_and_those_of_100_labels_far_below(
    tmp_path: Path,
) -> None:
    write_parts(tmp_path)
    teacher = create_teacher(tmp_path)
    for name, codec in CODECS.items():
        build = ["cache", "build", "--data", str(tmp_path / "all"), "--output", str(tmp_path / f"{name}.h5")]
        assert main([*build, *teacher, *RECIPE, "--build.num_workers", "0", *codec]) == 0
    top1: dict[str, list[float]] = {name: [] for name in (*CODECS, "labels")}
    for seed in SEEDS:
        student = ["--student", "test_efficientnet", "--train.seed", f"{seed}", "--train.lr", "4e-3"]
        for name in CODECS:
            cache = ["--cache", str(tmp_path / f"{name}.h5"), "--task_loss_weight", "0", "--train.batch_size", "64"]
            top1[name].append(distill(tmp_path, f"{name} {seed}", "all", 6, *student, *cache))
        labels = [*teacher, *RECIPE, "--distill_loss_weight", "0", "--train.batch_size", "25"]
        top1["labels"].append(
            distill(tmp_path, f"labels {seed}", "few", 15, *student, *labels)
        )  # 60 updates to their 54

    # A difference of two means of three seeds is judged by the seeds' own spread (Student's t, pooled, 1 %).
    differs = {name: ttest_ind(values, top1["float32"]).pvalue < 0.01 for name, values in top1.items()}
    assert differs == {"float32": False, "lowrank": False, "labels": True}, top1
    assert max(top1["labels"]) < min(top1["float32"] + top1["lowrank"]), top1
