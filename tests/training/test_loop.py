"""What the loop does beside a plain step, each compared with a few lines that a reader can check by eye."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support import RECIPE, digits, digits_dataset, loader_for, tiny_model
from torch import nn

from kdkit import ClassificationTask, LogitDistillationTask
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.errors import ConfigError, UnknownNameError
from kdkit.runtime.progress import Display
from kdkit.tasks import TrainingTask
from kdkit.training.config import TrainConfig
from kdkit.training.logger import RunLogger
from kdkit.training.train import train

PLAIN = TrainConfig(epochs=1, opt="momentum", opt_options={"momentum": 0.0}, lr=0.1, weight_decay=0.0, sched="none")


def changed(**fields: Any) -> TrainConfig:
    return TrainConfig(**{**vars(PLAIN), **fields})


def student(seed: int = 0) -> nn.Module:
    """Without batch norm, whose statistics are those of the batch that it sees."""
    return tiny_model("test_vit", seed=seed)


def run(config: TrainConfig, *, count: int = 32, batch_size: int = 16, **options: Any) -> TrainingTask:
    task = options.pop("task", None) or ClassificationTask(student())
    loader = loader_for(digits_dataset(count), task.trainable_module, batch_size=batch_size)
    train(task, loader, config, **options)
    return task


def by_hand(*, count: int = 32, batch_size: int = 16, clip: float = math.inf) -> tuple[nn.Module, list[nn.Module]]:
    """Plain SGD; the model, and its state after each step."""
    model, states = student().train(), []
    for batch in loader_for(digits_dataset(count), model, batch_size=batch_size):
        model.zero_grad()
        nn.functional.cross_entropy(model(batch.input), batch.target).backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.data -= 0.1 * min(1.0, clip / (float(norm) + 1e-6)) * parameter.grad
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    return model, states


def assert_close(mine: nn.Module, plain: nn.Module, **tolerance: float) -> None:
    for ours, theirs in zip(mine.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **{"rtol": 1e-4, "atol": 1e-6, **tolerance})


def test_accumulated_steps_equal_one_step_with_the_big_batch() -> None:
    plain, _ = by_hand(count=48, batch_size=24)
    assert_close(run(changed(accumulate=3), count=48, batch_size=8).trainable_module, plain)


def test_a_last_group_that_is_smaller_is_averaged_over_its_own_size() -> None:
    task = run(changed(accumulate=2), count=24, batch_size=8)  # 8 + 8, then 8 alone
    plain = student().train()
    batches = list(loader_for(digits_dataset(24), plain, batch_size=8))
    for group in (batches[:2], batches[2:]):
        plain.zero_grad()
        for batch in group:
            (nn.functional.cross_entropy(plain(batch.input), batch.target) / len(group)).backward()
        for parameter in plain.parameters():
            parameter.data -= 0.1 * parameter.grad
    assert_close(task.trainable_module, plain)


def test_gradients_are_clipped_by_their_norm() -> None:
    plain, _ = by_hand(clip=0.05)
    assert_close(run(changed(clip_grad=0.05)).trainable_module, plain)


def test_the_moving_average_moves_by_its_decay_and_is_evaluated() -> None:
    _, states = by_hand(count=48)
    average = {name: value.clone() for name, value in states[0].items()}  # timm's average begins at the first update
    for state in states[1:]:
        average = {name: 0.9 * value + 0.1 * state[name] for name, value in average.items()}
    task = ClassificationTask(student())
    loader = loader_for(digits_dataset(48), task.trainable_module, batch_size=16)
    report = train(task, loader, changed(ema_decay=0.9), validation=loader)
    found = task.get_checkpoint_state(ema=True)["state_dict_ema"]
    for name, value in average.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    assert {"val_top1", "val_ema_top1", "val_ema_loss"} <= set(report.epochs[0])


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_stays_near_full_precision_and_keeps_float32_weights(amp: str) -> None:
    plain, _ = by_hand()
    task = run(changed(amp=amp))
    assert_close(task.trainable_module, plain, rtol=0.1, atol=2e-3)
    assert all(parameter.dtype == torch.float32 for parameter in task.trainable_module.parameters())
    assert any(
        not torch.equal(ours, theirs)
        for ours, theirs in zip(task.trainable_module.parameters(), plain.parameters(), strict=True)
    )


def test_a_float16_step_that_overflows_is_left_out_and_the_scale_halved() -> None:
    class Overflowing(ClassificationTask):
        def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
            result = super().forward(input, target)
            return {**result, "loss": result["loss"] * 1e35}  # finite, but not its gradient times the scale

    before = student()
    task = run(changed(amp="float16"), task=Overflowing(student()))
    assert_close(task.trainable_module, before, rtol=0, atol=0)


def test_channels_last_changes_the_layout_alone() -> None:
    plain = run(changed(lr=1e-3), task=ClassificationTask(tiny_model()))
    task = run(changed(lr=1e-3, channels_last=True), task=ClassificationTask(tiny_model()))
    assert_close(task.trainable_module, plain.trainable_module, rtol=1e-3, atol=1e-5)
    kernel = next(weight for weight in task.trainable_module.parameters() if weight.ndim == 4 and weight.shape[1] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_a_compiled_student_trains_as_an_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled, averaged and saved; how well is the compiler's matter, and its time."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **options: compile_(module, backend="eager"))
    plain, _ = by_hand()
    task = run(changed(compile=True, ema_decay=0.9))
    weights = task.get_checkpoint_state()["state_dict"]
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)


def test_compiling_compiles_the_live_teacher_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def compile_(module: Any, **options: Any) -> Any:
        def counting(*arguments: Any) -> Any:
            compiled.append(arguments[0])
            return module(*arguments)

        return module if isinstance(module, nn.Module) else counting

    monkeypatch.setattr(torch, "compile", compile_)
    task = LogitDistillationTask(student(), tiny_model(seed=1))
    assert task.teacher is not None
    run(changed(compile=True), task=task, teacher_source=task.teacher)
    assert compiled == [task.teacher.model] * 2


def logged(tmp_path: Path, config: TrainConfig, **options: Any) -> list[dict[str, Any]]:
    import json

    run(config, logger=RunLogger(tmp_path), **options)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "step"]


def test_the_learning_rate_follows_timms_schedule_by_update_or_by_epoch(tmp_path: Path) -> None:
    cosine = changed(epochs=4, sched="cosine", warmup_epochs=1, warmup_lr=0.02, min_lr=0.01)
    rates = [record["lr"] for record in logged(tmp_path / "update", cosine)]
    expected = [0.02, 0.06] + [0.01 + 0.045 * (1 + math.cos(math.pi * t / 8)) for t in range(2, 8)]
    assert rates == pytest.approx(expected)
    steps = changed(epochs=4, sched="multistep", sched_options={"decay_milestones": [1]}, sched_unit="epoch")
    rates = [record["lr"] for record in logged(tmp_path / "epoch", steps)]
    assert rates == pytest.approx([0.1] * 2 + [0.01] * 6)


def test_layers_learn_the_slower_the_deeper_they_lie() -> None:
    before = student()
    task = run(changed(layer_decay=0.5, sched="constant"), count=16)
    plain = run(PLAIN, count=16)

    def ratio(part: str) -> float:
        first, decayed, full = (
            next(p.detach() for name, p in model.named_parameters() if name.startswith(part) and p.ndim > 1)
            for model in (before, task.trainable_module, plain.trainable_module)
        )
        return float((decayed - first).norm() / (full - first).norm())

    assert ratio("head") == pytest.approx(1.0, rel=1e-3)
    assert ratio("patch_embed") < ratio("blocks.1") < 1.0


def test_the_distillation_weight_rises_from_zero_and_is_put_back(tmp_path: Path) -> None:
    task = LogitDistillationTask(student(), tiny_model(seed=1), distill_loss_weight=2.0)
    records = logged(tmp_path, changed(epochs=3, distill_warmup_epochs=2), task=task)
    weights = [record["weighted_kd_loss"] / record["kd_loss"] for record in records]
    assert weights == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.0], rel=1e-4)
    assert task.distill_loss_weight == 2.0
    with pytest.raises(ConfigError, match="no distill_loss_weight"):
        run(changed(epochs=3, distill_warmup_epochs=2))


def test_a_run_without_labels_learns_from_the_teacher_alone() -> None:
    states = []
    for shift in (0, 1):  # other labels
        task = LogitDistillationTask(student(), tiny_model(seed=1), task_loss_weight=0.0)
        images = digits(32)
        dataset = ReplayedDataset(ArraySource(images.images, (images.targets + shift) % 10), RECIPE)
        train(task, loader_for(dataset, task.trainable_module, batch_size=16), PLAIN)
        states.append(task.trainable_module)
    assert_close(*states, rtol=0, atol=0)
    assert not torch.equal(states[0].head.weight, student().head.weight)


def test_every_step_is_logged_with_its_terms_however_often_they_are_flushed(tmp_path: Path) -> None:
    logs = []
    for log_every in (1, 3, 100):
        task = LogitDistillationTask(student(), tiny_model(seed=1))
        config = changed(epochs=2, log_every=log_every)
        logs.append(logged(tmp_path / str(log_every), config, task=task, count=80))
        for record in logs[-1]:
            assert record.pop("images_per_second") > 0
    assert logs[0] == logs[1] == logs[2]
    assert [record["step"] for record in logs[0]] == list(range(10))
    for record in logs[0]:
        assert record["loss"] == pytest.approx(record["weighted_task_loss"] + record["weighted_kd_loss"])
        assert {"task_loss", "kd_loss", "teacher_top1", "agreement_top1", "lr", "epoch"} <= set(record)


def test_settings_that_cannot_work_are_refused_before_the_first_step() -> None:
    with pytest.raises(UnknownNameError, match="'cosine'"):
        run(changed(sched="cosin"))
    for field, value in {"layer_decay": 0.5, "warmup_epochs": 1, "sched_options": {"cycle_mul": 2.0}}.items():
        with pytest.raises(ConfigError, match=f"{field} acts through the schedule.* use the schedule 'constant'"):
            run(changed(epochs=2, **{field: value}))
    for field, value in {"ema_warmup": True, "clip_mode": "agc"}.items():
        with pytest.raises(ConfigError, match=f"{field}.*there is none"):
            changed(**{field: value})
    with pytest.raises(ConfigError, match="does not take these options"):
        run(changed(opt_options={"momentun": 0.9}))
    with pytest.raises(ConfigError, match="takes 3 epochs, the run 2"):
        run(changed(epochs=2, sched="cosine", sched_options={"cooldown_epochs": 1}))
    for field, value in {"amp": "fp8", "clip_mode": "hard", "sched_unit": "step", "accumulate": 0}.items():
        with pytest.raises(ConfigError, match=field):
            changed(**{field: value})


class Interrupted(Display):
    """The user loses patience after the first batch."""

    def __call__(self, count: int) -> None:
        raise KeyboardInterrupt


def test_a_run_that_is_interrupted_in_its_warm_up_leaves_the_full_weight() -> None:
    task = LogitDistillationTask(student(), tiny_model(seed=1), distill_loss_weight=2.0)
    with pytest.raises(KeyboardInterrupt):
        run(changed(epochs=3, distill_warmup_epochs=2), task=task, display=Interrupted())
    assert task.distill_loss_weight == 2.0
