"""`distill` as a whole: its files, its check before the first step, how it resumes, and its trackers."""

from __future__ import annotations

import importlib
import json
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from support import tiny_model, write_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.models import load_checkpoint, resume_checkpoint

from kdkit.cli import main
from kdkit.config import TeacherConfig
from kdkit.errors import CheckpointError, ConfigError, MissingDependencyError, NonFiniteLossError, UnknownNameError
from kdkit.recipe import ViewRecipe
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.distill import distill
from kdkit.training.trackers import TRACKERS, Run, create_tracker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 digits as images, and a teacher."""
    folder = tmp_path_factory.mktemp("distill")
    write_digits(folder / "images", 60)
    save_file(tiny_model(seed=1).state_dict(), folder / "teacher.safetensors")
    return folder


def config(folder: Path, output: Path, **changes: Any) -> DistillConfig:
    train = TrainConfig(epochs=2, batch_size=20, lr=1e-3, num_workers=0, ema_decay=0.9, checkpoint_every=2)
    return DistillConfig(
        data=str(folder / "images"),
        validation=str(folder / "images"),
        output=str(output),
        student="test_vit",
        teacher=TeacherConfig("test_resnet", checkpoint=str(folder / "teacher.safetensors")),
        recipe=ViewRecipe(size=32, num_views=2),
        train=replace(train, **changes.pop("train", {})),
        **changes,
    )


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """The output of a run that has ended."""
    distill(config(folder, folder / "run"))
    return folder / "run"


def test_a_finished_run_leaves_checkpoints_that_timm_loads_and_resumes(finished: Path) -> None:
    left = {path.name for path in finished.iterdir()}
    assert left == {
        "last.pth.tar", "previous.pth.tar", "model_best.pth.tar", "config.yaml", "student.json",
        "metrics.jsonl", "summary.csv",
    }  # fmt: skip
    content = torch.load(finished / "last.pth.tar", weights_only=True)
    assert content["epoch"] == 1
    assert content["version"] == 2
    model = timm.create_model("test_vit", num_classes=10, img_size=32)
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    assert resume_checkpoint(model, str(finished / "last.pth.tar"), optimizer, log_info=False) == 2
    assert all(torch.equal(value, content["state_dict"][name]) for name, value in model.state_dict().items())
    assert optimizer.state_dict()["state"][0]["exp_avg"].abs().sum() > 0
    assert resume_checkpoint(model, str(finished / "previous.pth.tar"), optimizer, log_info=False) == 1
    load_checkpoint(model, str(finished / "last.pth.tar"), use_ema=True, weights_only=True)
    assert all(torch.equal(value, content["state_dict_ema"][name]) for name, value in model.state_dict().items())


def test_the_best_checkpoint_is_that_of_the_best_epoch(folder: Path) -> None:
    report = distill(config(folder, folder / "best", train={"epochs": 4, "lr": 3e-3}))
    scores = [record["val_ema_top1"] for record in report.training.epochs]
    best = torch.load(folder / "best" / "model_best.pth.tar", weights_only=True)
    assert best["metric"] == max(scores)
    assert best["epoch"] == scores.index(max(scores))


def test_a_run_that_has_ended_and_is_resumed_reports_the_same_and_changes_nothing(folder: Path, finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    report = distill(config(folder, finished, resume=True))
    assert len(report.training.epochs) == 2
    assert report.preflight is None
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_restart_by_torchrun_resumes_a_run_even_if_it_was_started_with_overwrite(
    folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    before = (finished / "metrics.jsonl").read_bytes()
    report = distill(config(folder, finished, overwrite=True))
    assert len(report.training.epochs) == 2
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_the_saved_configuration_is_accepted_again(folder: Path, finished: Path) -> None:
    saved = yaml.safe_load((finished / "config.yaml").read_text())
    assert saved["train"]["epochs"] == 2
    assert saved["recipe"]["size"] == 32
    arguments = ["distill", "--config", str(finished / "config.yaml"), "--output", str(folder / "again")]
    assert main([*arguments, "--train.epochs", "1"]) == 0
    again = yaml.safe_load((folder / "again" / "config.yaml").read_text())
    assert again == {**saved, "output": str(folder / "again"), "train": {**saved["train"], "epochs": 1}}


def test_a_run_is_not_resumed_with_another_configuration(folder: Path, finished: Path) -> None:
    for changes, message in {
        "lr": ({"train": {"lr": 0.5}}, r"train.lr = 0.001, this run has 0.5"),
        "student": ({"student": "test_vit2"}, r"student = 'test_vit', this run has 'test_vit2'"),
        "recipe": ({"recipe": ViewRecipe(size=32, num_views=2, hflip=0.1)}, r"recipe.hflip = 0.5, this run has 0.1"),
    }.values():
        other = replace(config(folder, finished, resume=True, train=changes.pop("train", {})), **changes)
        with pytest.raises(ConfigError, match=message):
            distill(other)
    distill(config(folder, finished, resume=True, train={"log_every": 7, "num_workers": 1, "checkpoint_every": 0}))
    with pytest.raises(ConfigError, match=r"--resume.*--overwrite"):
        config(folder, finished, resume=True, overwrite=True)


def test_a_run_resumes_with_the_same_teacher_wherever_its_weights_lie(folder: Path, finished: Path) -> None:
    for seed, name in ((1, "moved"), (2, "other")):
        save_file(tiny_model(seed=seed).state_dict(), folder / f"{name}.safetensors")
    resumed = config(folder, finished, resume=True)
    distill(replace(resumed, teacher=TeacherConfig("test_resnet", checkpoint=str(folder / "moved.safetensors"))))
    with pytest.raises(ConfigError, match=r"teacher\.weights_sha256"):
        distill(replace(resumed, teacher=TeacherConfig("test_resnet", checkpoint=str(folder / "other.safetensors"))))


def test_a_run_does_not_resume_with_a_teacher_of_another_structure_or_precision(
    folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = config(folder, finished, resume=True)
    teacher = resumed.teacher
    assert teacher is not None
    with pytest.raises(ConfigError, match=r"teacher\.autocast = None, this run has 'bfloat16'"):
        distill(replace(resumed, teacher=replace(teacher, autocast="bfloat16")))
    create = timm.create_model

    def pooled_otherwise(name: str, **options: Any) -> torch.nn.Module:
        return create(name, **options, **({"global_pool": "max"} if name == teacher.model else {}))

    monkeypatch.setattr(timm, "create_model", pooled_otherwise)
    with pytest.raises(ConfigError, match=r"teacher\.structure_sha256"):
        distill(resumed)


def test_a_damaged_log_is_not_resumed_from_and_a_damaged_checkpoint_gives_way_to_the_one_before(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distill(config(folder, tmp_path))
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(metrics[:-10])
    with pytest.raises(CheckpointError, match=r"metrics.jsonl.*put it back"):
        distill(config(folder, tmp_path, resume=True))
    (tmp_path / "metrics.jsonl").write_bytes(metrics)
    (tmp_path / "last.pth.tar").write_bytes(b"not a checkpoint")
    capsys.readouterr()
    report = distill(config(folder, tmp_path, resume=True))
    assert len(report.training.epochs) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"kdkit: '.*last.pth.tar' cannot be read: .*; resuming from the one before, .*", line)
    assert len(line) < 300
    for name in ("last.pth.tar", "previous.pth.tar"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"last.pth.tar' cannot be read"):
        distill(config(folder, tmp_path, resume=True))


def test_resume_starts_a_run_that_has_no_checkpoint_yet(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / ".last.pth.tar.0123456789ab.tmp").write_text("half")
    report = distill(config(folder, tmp_path, resume=True, train={"epochs": 1}))
    assert report.preflight is not None
    assert not list(tmp_path.glob(".*"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["step"] == 0


def test_the_preflight_measures_teacher_classes_and_memory_and_changes_nothing(folder: Path) -> None:
    reports = [
        distill(config(folder, folder / f"preflight {is_on}", preflight=is_on, student_options={"drop_rate": 0.2}))
        for is_on in (True, False)
    ]
    seen = reports[0].preflight
    assert seen is not None
    assert seen.images == 60
    assert seen.num_classes == 10
    assert 0 <= seen.teacher_top1 < 30
    assert seen.is_suspicious
    assert "memory; the teacher is hardly better than chance" in str(seen)
    assert seen.step_bytes > 2**20
    weights = [torch.load(report.checkpoint, weights_only=True)["state_dict"] for report in reports]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_the_preflight_names_the_weight_of_a_loss_that_leaves_the_labels_no_part(folder: Path) -> None:
    reports = {}
    for weight in (1.0, 1e4):
        output = folder / f"weight-{weight:g}"
        reports[weight] = distill(config(folder, output, distill_loss_weight=weight)).preflight
    assert reports[1.0] is not None
    assert reports[1e4] is not None
    assert reports[1e4].distill_loss == pytest.approx(1e4 * reports[1.0].distill_loss, rel=1e-5)
    assert reports[1e4].label_loss == pytest.approx(reports[1.0].label_loss)
    assert "times the loss on labels" not in str(reports[1.0])
    share = reports[1e4].label_loss / reports[1e4].distill_loss
    assert f"with {share:.2g} of its weight (--distill-loss-weight) both begin alike" in str(reports[1e4])


class _Tracker(types.ModuleType):
    """A module of wandb's shape."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, project: str, name: str, config: dict[str, Any], resume: str = "never") -> None:  # trackio's: no id
        self.runs.append({"project": project, "name": name, "config": config, "resume": resume})

    def log(self, row: dict[str, float], step: int) -> None:
        self.rows.append((step, row))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> _Tracker:
    module = _Tracker()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_every_step_and_epoch(folder: Path, tracker: _Tracker) -> None:
    distill(config(folder, folder / "tracked", tracker="wandb", project="mine"))
    (run,) = tracker.runs
    assert run["project"] == "mine"
    assert run["name"] == "tracked"
    assert run["config"]["train"]["epochs"] == 2
    steps = [(step, row) for step, row in tracker.rows if "loss" in row]
    assert [step for step, _ in steps] == list(range(6))
    assert [step for step, row in tracker.rows if "epoch/val_top1" in row] == [2, 5]
    logged = [json.loads(line) for line in (folder / "tracked" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for _, row in steps] == [record["loss"] for record in logged if record["kind"] == "step"]
    assert tracker.finished == 1


def test_a_tracker_that_cannot_be_used_is_refused_with_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match="pip install wandb"):
        create_tracker("wandb", run)
    monkeypatch.setitem(sys.modules, "wandb", json)
    with pytest.raises(MissingDependencyError, match="no function init"):
        create_tracker("wandb", run)
    with pytest.raises(UnknownNameError, match=r"'wandbb'; did you mean .*tensorboard, trackio, wandb, or"):
        create_tracker("wandbb", run)
    with pytest.raises(MissingDependencyError, match="No module named 'no_such_module'"):
        create_tracker("no_such_module:Tracker", run)
    with pytest.raises(ConfigError, match="'json' has no 'Tracker'"):
        create_tracker("json:Tracker", run)


class Kept:
    """A user's own tracker."""

    runs: ClassVar[list[Kept]] = []

    def __init__(self, run: Run) -> None:
        self.run, self.steps, self.closed = run, [], False
        self.runs.append(self)

    def log(self, record: Mapping[str, Any], step: int) -> None:
        self.steps.append(step)

    def rewind(self, step: int) -> None:
        self.steps = [done for done in self.steps if done < step]

    def close(self) -> None:
        self.closed = True


def test_a_users_own_tracker_is_named_by_its_module_and_class(folder: Path) -> None:
    distill(config(folder, folder / "own", tracker=f"{__name__}:Kept", project="mine"))
    (kept,) = Kept.runs
    assert (kept.run.project, kept.run.folder, kept.run.config["train"]["epochs"]) == ("mine", folder / "own", 2)
    assert sorted(set(kept.steps)) == list(range(6))
    assert kept.closed


@pytest.mark.parametrize("name", TRACKERS)
def test_every_tracker_of_the_table_is_there(name: str) -> None:
    module, _, attribute = TRACKERS[name].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_a_tracker_is_closed_when_the_run_fails(folder: Path, tracker: _Tracker) -> None:
    with pytest.raises(NonFiniteLossError):
        distill(config(folder, folder / "failed", tracker="wandb", train={"opt": "sgd", "lr": 1e30, "log_every": 1}))
    assert tracker.finished == 1


def test_tensorboard_holds_the_same_numbers(folder: Path) -> None:
    distill(config(folder, folder / "board", tracker="tensorboard"))
    events = EventAccumulator(str(folder / "board" / "tensorboard"))
    events.Reload()
    logged = [json.loads(line) for line in (folder / "board" / "metrics.jsonl").read_text().splitlines()]
    expected = [record["loss"] for record in logged if record["kind"] == "step"]
    assert [event.value for event in events.Scalars("loss/loss")] == pytest.approx(expected)
    assert [event.step for event in events.Scalars("validation/top1")] == [2, 5]
    assert {tag.partition("/")[0] for tag in events.Tags()["scalars"]} == {
        *("loss", "teacher", "speed", "optimizer", "validation", "validation (EMA)"),
        *("loss (mean of the epoch)", "teacher (mean of the epoch)", "speed (mean of the epoch)"),
        "optimizer (mean of the epoch)",
    }
    create_tracker("tensorboard", Run(folder / "empty")).close()
    assert not (folder / "empty" / "tensorboard").exists()
