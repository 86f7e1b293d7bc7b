"""The scripts for ImageNet run as they stand, over a small folder with its layout and a teacher with its weights."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import ROOT

from kdkit.cache import open_cache
from kdkit.evaluation.config import EvaluateConfig
from kdkit.evaluation.student import evaluate_student

pytestmark = pytest.mark.xdist_group("imagenet")  # they share what takes long to set up


SCRIPTS = ROOT / "examples" / "imagenet"
TEACHER = "tf_efficientnet_lite0.in1k"
WEIGHTS = ("--teacher.checkpoint", "imagenet/tf_efficientnet_lite0.safetensors")


def start(script: str, folder: Path, *options: str, **settings: str) -> subprocess.Popen[str]:
    """Starts a script in `folder` on the CPU."""
    environment = {
        **os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DEVICE": "cpu",
        "WORKERS": "0", "PROCESSES": "2", "SIZE": "32", "VIEWS": "1", "TEACHER": TEACHER, "STUDENT": "test_resnet",
        "EPOCHS": "1", "BATCH": "100", "AMP": "null", **settings,
    }  # fmt: skip
    return subprocess.Popen(
        [str(SCRIPTS / script), *options], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(script: str, folder: Path, *options: str) -> None:
    """Runs a script to its end; it must succeed."""
    process = start(script, folder, *options)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """imagenet/train and imagenet/val, and a cache made by cache_teacher.sh in two processes."""
    folder = tmp_path_factory.mktemp("imagenet")
    runpy.run_path(str(ROOT / "examples" / "small_imagenet.py"))["main"](folder / "imagenet")
    run("cache_teacher.sh", folder, *WEIGHTS, "--codec", "topk")
    return folder


@pytest.mark.slow
def test_a_teacher_is_cached_and_a_student_trained_by_two_processes(folder: Path) -> None:
    cache = open_cache(folder / "teacher.h5")
    assert (cache.num_rows, cache.num_views, cache.num_classes) == (1000, 1, 1000)
    assert cache.metadata.dataset["class_names"][0] == "n01440764"
    run("distill.sh", folder, "--no-preflight")
    state = torch.load(folder / "runs/student/last.pth.tar", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    report = evaluate_student(
        EvaluateConfig(student=str(folder / "runs/student"), data=str(folder / "imagenet/val"), num_workers=0)
    )
    assert report.num_images == 1000


def test_what_is_not_set_is_left_to_the_preset(tmp_path: Path) -> None:
    """`echo` in Python's place prints the command."""
    student, teacher = ("STUDENT", "EPOCHS", "BATCH", "AMP"), ("TEACHER", "SIZE", "VIEWS")
    unset = {"PYTHON": "echo", **dict.fromkeys(student + teacher, "")}
    preset = ("--preset", "resnet50_a2_kl")
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\nexec "$@"\n')
    (tmp_path / "scontrol").write_text("#!/usr/bin/env bash\necho localhost\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    slurm = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n", "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": "7", "BUILD_OPTIONS": " ".join(preset), "DISTILL_OPTIONS": " ".join(preset),
    }  # fmt: skip
    scripts = {"distill.sh": {}, "cache_teacher.sh": {}, "distill_slurm.sh": slurm}
    for script, settings in scripts.items():
        options = () if settings else preset
        shown, _ = start(script, tmp_path, *options, **{**unset, **settings}).communicate(timeout=60)
        assert shown.count("--preset resnet50_a2_kl") == len(shown.splitlines())
        for flag in ("student", "epochs", "batch-size", "train.amp", "teacher", "size", "views"):
            assert f"--{flag}" not in shown, script
        given = {**unset, **settings, "EPOCHS": "3", "TEACHER": "a card.yaml"}
        shown, _ = start(script, tmp_path, **given).communicate(timeout=60)
        assert ("--epochs 3" in shown) == (script != "cache_teacher.sh")
        assert ("--teacher a card.yaml" in shown) == (script != "distill.sh")


@pytest.mark.slow
def test_a_slurm_job_whose_time_ends_leaves_a_checkpoint_and_is_queued_again(folder: Path, tmp_path: Path) -> None:
    """srun only starts its command and scontrol only records its arguments, because there is no Slurm here."""
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\nexec "$@"\n')
    (tmp_path / "scontrol").write_text(
        f'#!/usr/bin/env bash\n[ "$1" = show ] && echo localhost || echo "$@" >> {tmp_path}/shown\n'
    )
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    process = start(
        "distill_slurm.sh", folder, PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_NODELIST="localhost",
        SLURM_JOB_NUM_NODES="1", SLURM_JOB_ID="7", PROCESSES="1", OUTPUT="runs/slurm", EPOCHS="500",
        BUILD_OPTIONS=f"{' '.join(WEIGHTS)} --build.codec topk", DISTILL_OPTIONS="--no-preflight",
    )  # fmt: skip
    summary = folder / "runs/slurm/summary.csv"
    deadline = time.monotonic() + 200
    while not summary.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert summary.is_file()
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate(timeout=100)
    assert process.returncode == 0, shown[-4000:]
    assert (tmp_path / "shown").read_text() == "requeue 7\n"
    position = torch.load(folder / "runs/slurm/last.pth.tar", weights_only=True)
    assert 0 <= position["epoch"] < 499


@pytest.mark.slow
def test_the_tables_of_the_page_are_what_the_script_computes() -> None:
    made = runpy.run_path(str(SCRIPTS / "tables.py"))["tables"]()
    assert made in (SCRIPTS / "README.md").read_text(encoding="utf-8")
