"""Real processes, the ranks of a gloo group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks
from support import tiny_model
from task_rows import IDLE_HEADS, ROWS

from kdkit import FeatureDistillationTask, LogitDistillationTask
from kdkit.tasks import LossTerm

pytestmark = pytest.mark.slow


def saved_by(script: str, output: Path, *, ranks: int) -> Any:
    """What rank 0 of the script saved."""
    run_ranks(f"distributed/{script}", str(output), ranks=ranks)
    return torch.load(output, weights_only=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What rank 0 of ddp_step.py saved."""
    return saved_by("ddp_step.py", tmp_path_factory.mktemp("ddp") / "saved.pt", ranks=2)


def test_a_signal_to_one_rank_stops_all_long_before_the_next_flush_and_their_teachers_are_equal(saved: Any) -> None:
    assert saved["stop"]["exit_codes"] == [143, 143]
    assert 2 <= saved["stop"]["steps"] < 20  # of 40; metrics are flushed after the last
    assert saved["stop"]["teachers_differ"] == []


def test_two_ranks_train_the_head_alone_and_then_the_whole_student_with_equal_weights(saved: Any) -> None:
    first, second = saved["frozen"]["moved"]
    assert first == {"fc.weight", "fc.bias"}
    assert len(second) > 10
    assert saved["frozen"]["ranks_differ"] == []


def test_a_memory_of_two_ranks_is_that_of_one_process_with_the_whole_batch(saved: Any) -> None:
    found = saved["remembered"]
    term = LossTerm("crd", options={"negatives": 4, "width": 6})
    task = FeatureDistillationTask(
        tiny_model("test_vit"), tiny_model("test_vit", seed=1), distill_loss=term, num_rows=9
    ).double()
    task.load_task_state({"comparisons": found["start"]})
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3)).double()
    task(images, torch.zeros(5, dtype=torch.int64), row=torch.arange(5))
    expected = task.get_task_state()["comparisons"]
    memories = [name for name in expected if name.endswith("_memory")]
    assert len(memories) == 2
    for name in memories:
        torch.testing.assert_close(found["after_one"][name], expected[name])
        assert not torch.equal(found["start"][name][:5], expected[name][:5])
    assert found["ranks_differ"] == []


def test_two_ranks_make_the_gradients_of_one_process_and_leave_the_teacher_alone(saved: Any) -> None:
    task = LogitDistillationTask(
        tiny_model("test_efficientnet").eval(), tiny_model("test_resnet", seed=1), temperature=2.0
    )
    generator = torch.Generator().manual_seed(11)
    images = torch.randn(8, 3, 32, 32, generator=generator)
    target = torch.randint(10, (8,), generator=generator)
    task(images, target)["loss"].backward()
    expected = {name: parameter.grad for name, parameter in task.trainable_module.named_parameters()}
    assert set(saved["gradients"]) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(saved["gradients"][name], gradient, rtol=1e-5, atol=1e-5)
    assert any(not torch.allclose(saved["unsynced"][name], expected[name], atol=1e-5) for name in expected)
    assert saved["wrapped"]
    assert not saved["teacher_in_buckets"]
    assert not saved["teacher_requires_grad"]
    assert not saved["teacher_training"]
    assert not saved["teacher_changed"]
    assert not [key for key in saved["state_keys"] if "teacher" in key]
    assert saved["checkpoint_keys"] == list(task.trainable_module.state_dict())


def test_compiling_around_ddp_gives_the_eager_loss(tmp_path: Path) -> None:
    eager, *compiled = saved_by("ddp_compile.py", tmp_path / "losses.pt", ranks=1)
    assert compiled == pytest.approx([eager, eager], abs=1e-4)


def test_every_row_of_the_table_makes_the_gradients_of_one_process(tmp_path: Path) -> None:
    """Each row in float64, with the live teacher and with its output given; see ddp_tasks.py for the comparisons."""
    rows = [*ROWS, *IDLE_HEADS]
    distances = saved_by("ddp_tasks.py", tmp_path / "distances.pt", ranks=2)
    assert len(distances) == len(rows)
    assert [str(row) for row, far in zip(rows, distances, strict=True) if far["from halves"] > 1e-8] == []
    apart = [row for row, far in zip(rows, distances, strict=True) if far["from the whole batch"] > 1e-8]
    assert apart == [row for row in rows if not row.is_mean_over_samples]
