"""The loop, the logger and the output folder."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from support import digits_dataset, loader_for, tiny_model

from kdkit import ClassificationTask, LogitDistillationTask, TrainingTask, create_teacher
from kdkit.errors import ConfigError, NonFiniteLossError, OutputExistsError, UnknownNameError
from kdkit.recipe import ViewRecipe
from kdkit.runtime import distributed
from kdkit.runtime.output import held_output, prepare_output
from kdkit.runtime.progress import Display
from kdkit.training.config import TrainConfig
from kdkit.training.evaluate import evaluate
from kdkit.training.logger import RunLogger
from kdkit.training.report import TrainReport
from kdkit.training.setup import prepare
from kdkit.training.train import train


class Count(Display):
    """Counts what it is shown."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, count: int) -> None:
        self.count += count


SMALL = TrainConfig(epochs=3, lr=2e-3, opt="adamw")


def test_training_lowers_the_loss_and_reports_what_it_did() -> None:
    dataset = digits_dataset(200, ViewRecipe(size=32, scale=(0.8, 1.0), hflip=0.0))
    task = ClassificationTask(tiny_model("test_efficientnet"))
    loader = loader_for(dataset, task.trainable_module)
    display = Count()
    report = train(task, loader, SMALL, validation=loader, display=display)
    losses = [record["loss"] for record in report.epochs]
    assert losses[2] < 0.8 * losses[0]
    assert display.count == 3 * 200
    assert report.top1 == report.epochs[-1]["val_top1"] > 30
    assert report.images_per_second == pytest.approx(600 / report.train_seconds)
    assert report.epochs[-1]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_the_loop_equals_a_loop_written_by_hand() -> None:
    dataset = digits_dataset(64)
    config = TrainConfig(epochs=1, opt="sgd", lr=0.1, weight_decay=0.0)
    task = LogitDistillationTask(tiny_model("test_efficientnet"), tiny_model(seed=1))
    train(task, loader_for(dataset, task.trainable_module), config)
    plain = tiny_model("test_efficientnet").train()
    mine = LogitDistillationTask(plain, tiny_model(seed=1))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step, batch in enumerate(loader_for(dataset, plain)):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + torch.cos(torch.tensor(torch.pi * step / 2)).item()) / 2
        optimizer.zero_grad()
        mine(batch.input, batch.target)["loss"].backward()
        optimizer.step()
    for ours, theirs in zip(task.trainable_module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_evaluation_counts_as_a_plain_loop_does() -> None:
    dataset = digits_dataset(50)
    task = ClassificationTask(tiny_model("test_efficientnet"))
    loader = loader_for(dataset, task.trainable_module, batch_size=16)
    result = evaluate(task, loader)
    assert task.trainable_module.training
    model = task.trainable_module.eval()
    loader.set_epoch(0)  # the same views again
    with torch.no_grad():
        right = sum(int((model(batch.input).argmax(1) == batch.target).sum()) for batch in loader)
    assert result["top1"] == pytest.approx(100 * right / 50)
    with pytest.raises(ConfigError, match="setup_ema"):
        evaluate(task, loader, ema=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_terms() -> None:
    dataset = digits_dataset(64)
    task = LogitDistillationTask(tiny_model("test_efficientnet"), tiny_model())
    config = TrainConfig(epochs=3, opt="sgd", lr=1e30, weight_decay=0.0)
    with pytest.raises(NonFiniteLossError, match="kd_loss"):
        train(task, loader_for(dataset, task.trainable_module), config)


def test_the_summary_gains_columns_and_loses_no_row(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.with_context(way="a").log_epoch({"epoch": 0, "loss": 1.5})
    logger.with_context(way="b").log_epoch({"epoch": 0, "loss": 1.0, "kd_loss": 0.5})
    logger.with_context(way="b").log_epoch({"epoch": 1, "loss": 0.5, "kd_loss": 0.25})
    with open(tmp_path / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == ["1.5", "1.0", "0.5"]
    assert [row["kd_loss"] for row in rows] == ["", "0.5", "0.25"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_number_that_is_not_finite_is_null_as_json_has_no_word_for_it(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.log_steps([{"step": 0, "loss": 1.0, "gradient_ratio": math.inf}])
    logger.log_epoch({"epoch": 0, "loss": 1.0, "val_loss": math.nan})
    step, epoch = (
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    )
    assert step == {"kind": "step", "step": 0, "loss": 1.0, "gradient_ratio": None}
    assert epoch["val_loss"] is None
    rows = (tmp_path / "summary.csv").read_text()
    logger.rewind(logger.position())
    assert (tmp_path / "summary.csv").read_text() == rows


def test_an_output_folder_is_written_over_on_demand_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert prepare_output(folder, ["ours"], overwrite=False).is_dir()
    (folder / "ours").write_text("")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        prepare_output(folder, ["ours"], overwrite=False)
    assert (folder / "ours").exists()
    prepare_output(folder, ["ours"], overwrite=True)
    assert not (folder / "ours").exists()


def test_fault_11_an_output_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "ours").write_text("")
    with (
        held_output(tmp_path / "run", ["ours"], overwrite=False) as folder,
        pytest.raises(OutputExistsError, match="another process is writing to the output folder"),
        held_output(folder, ["ours"], overwrite=True),
    ):
        """The second one removes nothing."""
    with held_output(folder, ["ours"], overwrite=False):
        assert list(folder.iterdir()) == []


def test_overwriting_never_removes_what_kdkit_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "ours").write_text("")
    (tmp_path / "precious").mkdir()
    with pytest.raises(OutputExistsError, match="'precious', which is not an output of this command"):
        prepare_output(tmp_path, ["ours"], overwrite=True)
    assert (tmp_path / "ours").exists()
    assert (tmp_path / "precious").exists()


def test_a_live_teacher_as_the_source_gets_images_in_the_students_normalisation() -> None:
    dataset, model = digits_dataset(64), tiny_model(seed=1)  # 0.5 all over; the student has ImageNet's
    config = TrainConfig(epochs=1, opt="sgd", lr=1e-4, weight_decay=0.0)
    losses = []
    for inside in (True, False):
        task = LogitDistillationTask(tiny_model("test_efficientnet"), model if inside else None)
        source = None if inside else create_teacher(model)
        report = train(task, loader_for(dataset, task.trainable_module), config, teacher_source=source)
        losses.append(report.epochs[0]["kd_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_what_cannot_train_is_refused_before_the_first_step() -> None:
    task = ClassificationTask(tiny_model("test_efficientnet"))
    loader = loader_for(digits_dataset(8), task.trainable_module)
    with pytest.raises(UnknownNameError, match="'adamw'"):
        train(task, loader, TrainConfig(epochs=1, opt="adamww"))
    loader.sampler.drop_last = True
    with pytest.raises(ConfigError, match="batch size"):
        train(task, loader, TrainConfig(epochs=1))


def test_a_task_that_wraps_nothing_on_several_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(TrainingTask):
        def __init__(self) -> None:
            super().__init__()
            self.trainable_module = tiny_model()

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"Own\.prepare_distributed wraps nothing.*2 ranks.*StudentTask"):
        prepare(Own(), TrainConfig(epochs=1), torch.device("cpu"))


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", 0), ("batch_size", 0), ("num_workers", -1), ("warmup_epochs", 100)]
)
def test_a_training_config_refuses_what_cannot_work(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=field):
        TrainConfig(**{field: value})


def test_an_epoch_whose_metric_is_no_number_is_not_reported_as_the_best() -> None:
    records = [{"seconds": 1.0, "images": 8.0, "val_top1": top1} for top1 in (math.nan, 50.0, 20.0, math.nan)]
    assert TrainReport.of(records).best == (2, 50.0)
    epoch, value = TrainReport.of(records[:1]).best or (0, 0.0)
    assert epoch == 1
    assert math.isnan(value)
