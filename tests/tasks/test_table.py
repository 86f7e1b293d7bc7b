"""Every task with every loss: what one step does, for convolutional and transformer students and teachers.

For each row, in float64: the step goes down the loss by as much as its gradient says; gradients reach every parameter
that trains and none of the teacher's; what a teacher said, handed in, gives the result of the teacher asked; and a
checkpoint brings the very same task back.
"""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
import torch
from task_rows import CNN, FEATURE, LOGIT, VIT, batch, make
from torch import Tensor

from kdkit.signals import Batch, Normalization, TeacherOutput
from kdkit.tasks import DistillationTask


def step(task: DistillationTask, said: TeacherOutput | None = None) -> dict[str, Tensor]:
    """One forward pass on the same images, with the same random numbers."""
    torch.manual_seed(17)
    return task(*batch(), said)


def as_a_cache_says(task: DistillationTask) -> TeacherOutput:
    assert task.teacher is not None
    return task.teacher(Batch(batch()[0], torch.zeros(0)))


def assert_one_step_lowers_the_loss_as_its_gradient_says(task: DistillationTask) -> None:
    before = step(task)["loss"]
    before.backward()
    with torch.no_grad():
        squared = sum(float(p.grad.square().sum()) for p in task.trainable_module.parameters())
        drop = 1e-5 * float(before.detach())
        for parameter in task.trainable_module.parameters():
            parameter -= drop / squared * parameter.grad
    assert float(before.detach()) - float(step(task)["loss"].detach()) == pytest.approx(drop, rel=0.1)


def assert_gradients_are_where_they_belong(task: DistillationTask) -> None:
    assert [n for n, p in task.trainable_module.named_parameters() if p.grad is None] == []
    assert task.teacher is not None
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.model.parameters())
    assert {id(p) for p in task.parameters()} == {id(p) for p in task.trainable_module.parameters()}


def assert_a_checkpoint_brings_it_back(task: DistillationTask, other: DistillationTask) -> None:
    buffer = io.BytesIO()
    torch.save(task.get_checkpoint_state(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other.load_checkpoint_state(state["state_dict"], state.get("task_state"))
    mine, theirs = step(task), step(other)
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


ROWS = [
    *(("logit", loss) for loss in LOGIT),
    ("logit", {"kl": 1.0, "dist": 2.0}),
    *(("feature", loss) for loss in [*FEATURE, "several"]),
    ("token", "soft"),
    ("token", "hard"),
]


@pytest.mark.parametrize(("kind", "loss"), ROWS, ids=lambda value: value if isinstance(value, str) else "several")
def test_one_step_of_every_task(kind: str, loss: Any) -> None:
    students = [CNN, VIT] if kind != "token" and loss != "vitkd" else [VIT]
    teachers = [CNN, VIT] if loss != "vitkd" else [VIT]  # it compares blocks of one width
    for student, teacher in itertools.product(students, teachers):
        task = make(kind, loss, student, teacher)
        live = step(task)
        given = step(task, as_a_cache_says(task))
        for name, value in live.items():
            torch.testing.assert_close(given[name], value, msg=f"{student}, {teacher}: {name}")
        assert_one_step_lowers_the_loss_as_its_gradient_says(task)
        assert_gradients_are_where_they_belong(task)
        assert_a_checkpoint_brings_it_back(task, make(kind, loss, student, teacher, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "loss", "student", "teacher"),
    [
        ("logit", {"kl": 1.0, "dist": 2.0}, CNN, VIT),
        ("feature", "several", VIT, CNN),
        ("feature", "review", CNN, CNN),
        ("token", "soft", VIT, CNN),
    ],
    ids=lambda value: value if isinstance(value, str) else "several",
)
def test_compiled_tasks_say_what_eager_ones_say(kind: str, loss: Any, student: str, teacher: str) -> None:
    task = make(kind, loss, student, teacher).float()
    images, target = batch()
    eager = task(images.float(), target)
    task.compile(backend="aot_eager")
    compiled = task(images.float(), target)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-4, msg=name)
    compiled["loss"].backward()
    assert all(parameter.grad is not None for parameter in task.trainable_module.parameters())


def test_the_same_normalisation_is_asked_of_both() -> None:
    task = make("feature", "hint_mse", VIT, CNN)
    assert task.teacher is not None
    assert task.teacher.input_normalization == Normalization.of(task.get_eval_model())
