"""Faults 19, 20, 31 and 32 in one process: memory, interrupts, losses and clocks that go wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import cache_contents, digits_dataset, loader_for, tiny_model
from torch import nn

from kdkit import FeatureDistillationTask, LogitDistillationTask, TrainingTask, build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.data import EpochSampler, ReplayLoader
from kdkit.errors import CacheDiskFullError, CheckpointError, ConfigError, NonFiniteLossError
from kdkit.recipe import ViewRecipe
from kdkit.runtime import distributed
from kdkit.runtime.progress import Display
from kdkit.training.checkpoint import LAST, PREVIOUS, Checkpoints
from kdkit.training.checkpoint_file import load_checkpoint
from kdkit.training.config import TrainConfig
from kdkit.training.interrupt import stop_request
from kdkit.training.logger import RunLogger
from kdkit.training.optimizer import create_optimizer, create_schedule
from kdkit.training.state import RunState
from kdkit.training.train import train
from kdkit.types import Batch, Normalization

CONFIG = TrainConfig(epochs=2, opt="momentum", lr=0.01, log_every=3, checkpoint_every=1)
TIMINGS = ("seconds", "images_per_second", "waiting")


class At(Display):
    """Does something when so many images are done."""

    def __init__(self, count: int, action: Any) -> None:
        self.left, self.action = count, action

    def __call__(self, count: int) -> None:
        self.left -= count
        if self.left == 0:
            self.action()


class Held(ReplayLoader):
    """40 images in batches of 8; calls `action` before it yields one of them."""

    def __init__(self, student: nn.Module, number: int = 0, action: Callable[[], None] = lambda: None) -> None:
        sampler = EpochSampler(range(40), 8, shuffle=False)
        super().__init__(digits_dataset(40, ViewRecipe.evaluation(32)), sampler, Normalization.of(student))
        self.left, self.action = number, action

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            self.left -= 1
            if self.left == 0:
                self.action()
            yield batch


def run(
    folder: Path,
    config: TrainConfig = CONFIG,
    *,
    task: TrainingTask | None = None,
    display: Display | None = None,
    validation: ReplayLoader | None = None,
    resume: bool = False,
    num_workers: int = 0,
) -> nn.Module:
    """A distillation on 96 digits in batches of 16."""
    task = task or LogitDistillationTask(tiny_model("test_vit"), tiny_model(seed=1))
    loader = loader_for(digits_dataset(96), task.trainable_module, batch_size=16, num_workers=num_workers)
    checkpoints = Checkpoints(folder, resume=resume)
    logger = RunLogger(folder)
    train(task, loader, config, validation=validation, logger=logger, checkpoints=checkpoints, display=display)
    return task.trainable_module


def logged(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, run(folder)


def assert_equal(folder: Path, model: nn.Module, plain: tuple[Path, nn.Module]) -> None:
    assert logged(folder) == logged(plain[0])
    for ours, theirs in zip(model.parameters(), plain[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_fault_20_a_signal_ends_training_after_the_step_with_a_checkpoint_to_resume_from(
    tmp_path: Path, plain: tuple[Path, nn.Module], number: int, error: type[BaseException]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(error) as raised:
        run(tmp_path, display=At(4 * 16, lambda: os.kill(os.getpid(), number)))
    assert number == signal.SIGINT or raised.value.code == 143
    assert signal.getsignal(number) is before
    assert load_checkpoint(tmp_path / "last.pth.tar")["kdkit"]["position"] == {"epoch": 0, "batch": 4, "update": 4}
    assert len(logged(tmp_path)) == 4
    assert_equal(tmp_path, run(tmp_path, resume=True), plain)


def test_fault_20_a_signal_sent_to_every_process_of_a_run_leaves_a_checkpoint_too(
    tmp_path: Path, plain: tuple[Path, nn.Module]
) -> None:
    def supervise() -> None:
        workers = [str(child.pid) for child in multiprocessing.active_children()]
        assert len(workers) == 2
        for name in ("-INT", "-TERM"):
            subprocess.run(["kill", name, *workers], check=True)  # from a process that is not their parent
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)  # for what the workers would do about it

    with pytest.raises(SystemExit):
        run(tmp_path, display=At(2 * 16, supervise), num_workers=2)
    assert load_checkpoint(tmp_path / "last.pth.tar")["kdkit"]["position"]["update"] == 2
    assert_equal(tmp_path, run(tmp_path, resume=True, num_workers=2), plain)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 5 + 2, 10 + 4])
def test_fault_20_a_signal_ends_a_validation_too_which_the_resumed_run_repeats(tmp_path: Path, number: int) -> None:
    """In the student's, in its average's, and in the second epoch."""
    config = TrainConfig(**{**vars(CONFIG), "checkpoint_every": 0, "ema_decay": 0.9})
    student = tiny_model("test_vit")
    plain = run(tmp_path / "plain", config, validation=Held(student))
    stopped = Held(student, number, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as raised:
        run(tmp_path / "stopped", config, validation=stopped)
    assert raised.value.code == 143
    assert stopped.left == 0  # no further batch was loaded
    done = number // 10
    position = load_checkpoint(tmp_path / "stopped" / "last.pth.tar")["kdkit"]["position"]
    assert position == {"epoch": done, "batch": 6, "update": 6 * (done + 1)}
    assert [record["kind"] for record in logged(tmp_path / "stopped")].count("epoch") == done
    model = run(tmp_path / "stopped", config, validation=Held(student), resume=True)
    assert_equal(tmp_path / "stopped", model, (tmp_path / "plain", plain))
    assert {"val_top1", "val_ema_top1"} <= set(logged(tmp_path / "plain")[-1])


@pytest.mark.slow
def test_fault_30_what_losses_learn_scaler_and_schedules_by_epoch_resume_too(tmp_path: Path) -> None:
    config = TrainConfig(
        **{**vars(CONFIG), "amp": "float16", "ema_decay": 0.9, "accumulate": 2, "sched": "step", "sched_unit": "epoch"}
    )

    def feature_task() -> FeatureDistillationTask:
        return FeatureDistillationTask(tiny_model("test_vit"), tiny_model(seed=1), distill_loss="hint_mse")

    def go(folder: Path, **how: Any) -> dict[str, Any]:
        torch.manual_seed(3)  # of what the loss learns
        run(folder, config, task=feature_task(), **how)
        return load_checkpoint(folder / "last.pth.tar")

    expected = go(tmp_path / "plain")
    with pytest.raises(SystemExit):
        go(tmp_path / "stopped", display=At(3 * 16, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert load_checkpoint(tmp_path / "stopped" / "last.pth.tar")["kdkit"]["position"]["batch"] == 4  # a whole update
    found = go(tmp_path / "stopped", resume=True)
    assert found["amp_scaler"] == expected["amp_scaler"]
    parts = ["state_dict", "state_dict_ema"]
    for mine, plain in [(found[part], expected[part]) for part in parts] + [
        (found[part]["comparisons"], expected[part]["comparisons"]) for part in ("task_state", "task_state_ema")
    ]:
        assert plain
        assert all(torch.equal(mine[name], value) for name, value in plain.items())
    assert logged(tmp_path / "stopped") == logged(tmp_path / "plain")


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler")  # timm's, as its own checkpoints leave the patience out
def test_fault_30_a_plateaus_patience_is_resumed_too(tmp_path: Path) -> None:
    config = TrainConfig(epochs=9, lr=0.1, sched="plateau", sched_unit="epoch", sched_options={"patience_epochs": 2})

    def rates(*epochs: int, state: dict[str, Any] | None = None) -> tuple[list[float], dict[str, Any]]:
        task = LogitDistillationTask(tiny_model("test_vit"), tiny_model(seed=1))
        optimizer = create_optimizer(task.trainable_module, config)
        schedule = create_schedule(optimizer, config, 1)
        assert schedule is not None
        whole = RunState(task, optimizer, schedule, torch.amp.GradScaler(enabled=False), torch.device("cpu"))
        if state is not None:
            whole.load_dict(state)
        found = []
        for epoch in epochs:
            schedule.step(epoch, 50.0)  # percent, the same in each epoch
            found.append(optimizer.param_groups[0]["lr"])
        return found, whole.to_dict()

    first, state = rates(1, 2)
    assert first + rates(3, 4, 5, 6, state=state)[0] == rates(1, 2, 3, 4, 5, 6)[0]
    with pytest.raises(ConfigError, match="give validation images"):
        run(tmp_path, config)


def test_fault_30_metrics_are_flushed_after_the_same_steps_whatever_is_saved_in_between(tmp_path: Path) -> None:
    config = TrainConfig(**{**vars(CONFIG), "epochs": 1, "log_every": 2, "log_gradients": True})
    run(tmp_path, config)
    assert [record["step"] for record in logged(tmp_path) if "gradient_ratio" in record] == [1, 3, 5]


def test_fault_20_a_second_interrupt_leaves_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LeftError(BaseException):
        pass

    def leave(code: int) -> None:
        raise LeftError(code)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(LeftError, match="130"):
        run(tmp_path, display=At(4 * 16, interrupt))
    assert load_checkpoint(tmp_path / "last.pth.tar")["kdkit"]["position"]["update"] == 3  # not that of this step


def test_fault_31_a_learning_rate_that_makes_the_loss_nan_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = TrainConfig(
        **{
            **vars(CONFIG),
            "sched": "multistep",
            "sched_unit": "epoch",
            "sched_options": {"decay_milestones": [1], "decay_rate": 1e30},
        }
    )
    with pytest.raises(
        NonFiniteLossError, match=r"step 7, in epoch 2 \(.*task_loss nan.*previous.pth.tar' is"
    ) as raised:
        run(tmp_path, config)
    assert "kd_loss" in str(raised.value)
    kept = load_checkpoint(tmp_path / "previous.pth.tar")
    assert kept["kdkit"]["position"]["update"] == 6  # the seventh made weights of 1e28: finite, but their loss is not
    model = tiny_model("test_vit")
    model.load_state_dict(kept["state_dict"])
    assert all(torch.isfinite(model(torch.randn(2, 3, 32, 32))).flatten())
    assert all(np.isfinite(record["loss"]) for record in logged(tmp_path))
    with pytest.raises(NonFiniteLossError, match=r"step 7.*previous.pth.tar' is from before"):
        run(tmp_path, config, resume=True)
    assert load_checkpoint(tmp_path / "previous.pth.tar")["kdkit"]["position"]["update"] == 6


def test_fault_31_two_checkpoints_of_the_same_bad_weights_leave_the_one_before(tmp_path: Path) -> None:
    # At the epoch's last update, after which one is written, as at the epoch's end.
    options = {"decay_milestones": [1], "decay_rate": 1e30}
    config = TrainConfig(**{**vars(CONFIG), "sched": "multistep", "sched_options": options})
    with pytest.raises(NonFiniteLossError, match=r"step 6, in epoch 2.*previous.pth.tar' is from before"):
        run(tmp_path, config)
    assert load_checkpoint(tmp_path / "previous.pth.tar")["kdkit"]["position"]["update"] == 5


def test_fault_31_a_nan_long_after_the_newest_checkpoint_names_that_one(tmp_path: Path) -> None:
    options = {"decay_milestones": [1], "decay_rate": 1e30}
    config = TrainConfig(
        **{**vars(CONFIG), "sched": "multistep", "sched_unit": "epoch", "sched_options": options, "checkpoint_every": 0}
    )
    with pytest.raises(NonFiniteLossError, match=r"step 7, .*last.pth.tar' is from before"):
        run(tmp_path, config)
    assert load_checkpoint(tmp_path / "last.pth.tar")["kdkit"]["position"]["update"] == 6


@pytest.mark.parametrize("damage", ["cut", "flipped", "not finite", "missing"])
def test_fault_30_a_newest_checkpoint_that_is_damaged_gives_way_to_the_one_before_with_one_line(
    tmp_path: Path, plain: tuple[Path, nn.Module], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, display=At(4 * 16, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    last = tmp_path / LAST
    content, middle = last.read_bytes(), last.stat().st_size // 2
    if damage == "cut":
        last.write_bytes(content[:middle])
    elif damage == "flipped":
        flipped = bytes(byte ^ 0xFF for byte in content[middle : middle + 64])
        last.write_bytes(content[:middle] + flipped + content[middle + 64 :])
    elif damage == "not finite":
        loaded = load_checkpoint(last)
        next(iter(loaded["state_dict"].values())).fill_(torch.nan)
        torch.save(loaded, last)
    else:
        last.unlink()
    capsys.readouterr()
    model = run(tmp_path, resume=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kdkit: '{last}' ")
    assert line.endswith("; resuming from the one before, previous.pth.tar")
    assert_equal(tmp_path, model, plain)


def test_fault_30_a_damaged_checkpoint_never_replaces_the_good_one_before_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, display=At(4 * 16, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    (tmp_path / LAST).write_bytes(b"damaged")
    with pytest.raises(SystemExit):  # in the first step, which writes a checkpoint
        run(tmp_path, resume=True, display=At(16, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    updates = [load_checkpoint(tmp_path / name)["kdkit"]["position"]["update"] for name in (PREVIOUS, LAST)]
    assert updates == [3, 4]


def test_fault_30_two_damaged_checkpoints_end_the_run_with_the_newest_ones_error(tmp_path: Path) -> None:
    run(tmp_path)
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"last.pth.tar' cannot be read"):
        run(tmp_path, resume=True)


def test_ranks_that_validate_on_other_numbers_of_batches_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdkit.runtime.distributed.all_gather", lambda count: [count, count + 1])
    with pytest.raises(ConfigError, match=r"the same number of validation batches, got \[5, 6\]"):
        run(tmp_path, validation=Held(tiny_model("test_vit")))


def test_fault_32_a_clock_set_back_a_year_changes_nothing(
    tmp_path: Path, plain: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, year, shift = time.time, 365 * 24 * 3600.0, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() - shift[0])

    def set_back() -> None:
        shift[0] += year

    with pytest.raises(SystemExit):
        run(tmp_path, display=At(4 * 16, lambda: (set_back(), os.kill(os.getpid(), signal.SIGTERM))))
    os.utime(tmp_path / "last.pth.tar", (real() + year, real() + year))  # written in what is now the future
    set_back()
    assert_equal(tmp_path, run(tmp_path, resume=True), plain)

    config = BuildConfig(codec="float32", num_workers=0, batch_size=16)
    teacher, dataset = create_teacher(tiny_model(seed=1)), digits_dataset(96)
    build_cache(teacher, dataset, tmp_path / "a.h5", config)
    set_back()
    build_cache(teacher, dataset, tmp_path / "b.h5", config)
    assert cache_contents(tmp_path / "a.h5") == cache_contents(tmp_path / "b.h5")


class Small(nn.Module):
    """A teacher on a device with room for so many images."""

    num_classes = 10

    def __init__(self, room: int) -> None:
        super().__init__()
        self.model, self.room, self.seen = tiny_model(seed=1), room, []
        self.pretrained_cfg = self.model.pretrained_cfg

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.seen.append(len(images))
        return self.model(images)


def test_fault_19_a_build_continues_with_halved_batches_when_the_teacher_has_no_memory(tmp_path: Path) -> None:
    dataset, config = digits_dataset(96), BuildConfig(codec="float32", num_workers=0, batch_size=64)
    build_cache(create_teacher(tiny_model(seed=1)), dataset, tmp_path / "plain.h5", config)
    small = Small(room=20)
    build_cache(create_teacher(small), dataset, tmp_path / "small.h5", config)
    assert max(small.seen) == 16
    rows = np.arange(96)
    for view in range(dataset.recipe.num_views):
        found = [open_cache(tmp_path / name).read_encoded(rows, view) for name in ("small.h5", "plain.h5")]
        decoded = [open_cache(tmp_path / "plain.h5").codecs["logits"].decode(payload) for payload in found]
        torch.testing.assert_close(decoded[0], decoded[1], rtol=1e-4, atol=1e-5)


def test_fault_20_a_full_disk_after_a_signal_is_an_error_and_no_clean_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On several ranks, where an error after a signal is mostly the other ranks' having left."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    ends: list[tuple[Exception, type[BaseException]]] = [
        (CacheDiskFullError("the disk is full"), CacheDiskFullError),
        (RuntimeError("Connection closed by peer"), SystemExit),
    ]

    def stop_and_fail(error: Exception) -> None:
        with stop_request() as stop:
            stop._handle(signal.SIGTERM, None)
            raise error

    for error, end in ends:
        with pytest.raises(end):
            stop_and_fail(error)
