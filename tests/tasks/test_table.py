"""Every task with every loss: what one step does, for convolutional and transformer students and teachers.

For each row, in float64, from a live teacher and from a cache: a step lowers the loss by as much as its gradient
predicts, and gradients reach every parameter that trains and none of the teacher's. Live and cached give the same
result, as far as a cache in float32 is exact for a teacher in float64; test_from_cache.py has one in float32. A
checkpoint brings the very same task back. What several ranks do is in tests/distributed.
"""

from __future__ import annotations

import functools
import io
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import digits_dataset, tiny_model
from task_rows import CNN, INNER, LOSSES, TEACHER_SEED, VIT, batch, every_loss, make, pairs
from torch import Tensor, nn

from kdkit import build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.tasks import DistillationTask
from kdkit.types import Batch, Normalization, TeacherOutput

Step = Callable[[DistillationTask], dict[str, Tensor]]
Result = dict[str, Tensor]


@pytest.fixture(scope="module")
def dataset() -> ReplayedDataset:
    return digits_dataset(6)


@pytest.fixture(scope="module")
def caches(dataset: ReplayedDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CachedTeacher]:
    """The outputs of each kind of teacher for six images, at every tap that a row compares."""
    folder, opened = tmp_path_factory.mktemp("caches"), {}
    for name in (CNN, VIT):
        config = BuildConfig(
            streams=("logits", "pooled", *INNER[name]), codec="float32", feature_codec="float32", num_workers=0
        )
        build_cache(create_teacher(tiny_model(name, seed=TEACHER_SEED)), dataset, folder / name, config)
        opened[name] = open_cache(folder / name, dataset)
    return opened


@functools.cache
def images_for(dataset: ReplayedDataset, normalization: Normalization) -> Batch:
    """The six images as all students of this normalisation see them."""
    sampler = EpochSampler(range(len(dataset)), len(dataset), num_views=dataset.recipe.num_views)
    return next(iter(ReplayLoader(dataset, sampler, normalization)))


def steps(dataset: ReplayedDataset, student: nn.Module, cache: CachedTeacher) -> tuple[Step, Step]:
    """One forward pass on the same images, with the same random numbers: with the live teacher, and from the cache."""
    images = images_for(dataset, Normalization.of(student))

    def step(task: DistillationTask, outputs: TeacherOutput | None = None) -> Result:
        torch.manual_seed(17)
        return task(images.input.double(), images.target, outputs)

    return step, lambda task: step(task, cache(images))


def step_down(task: DistillationTask, before: Result, step: Step) -> Result:
    """Asserts that a short step along the gradient lowers the loss by as much as it predicts; returns the result."""
    loss = before["loss"]
    loss.backward()
    with torch.no_grad():
        squared = sum(float(p.grad.square().sum()) for p in task.trainable_module.parameters())
        drop = 1e-5 * float(loss.detach())
        for parameter in task.trainable_module.parameters():
            parameter -= drop / squared * parameter.grad
    after = step(task)
    assert float(loss.detach()) - float(after["loss"].detach()) == pytest.approx(drop, rel=0.1)
    return after


def assert_gradients_are_where_they_belong(task: DistillationTask) -> None:
    assert [n for n, p in task.trainable_module.named_parameters() if p.grad is None] == []
    if task.teacher is not None:
        assert all(p.grad is None and not p.requires_grad for p in task.teacher.model.parameters())
    assert {id(p) for p in task.parameters()} == {id(p) for p in task.trainable_module.parameters()}


def restored(task: DistillationTask, other: DistillationTask) -> DistillationTask:
    """The other task with the first one's checkpoint, from a file."""
    buffer = io.BytesIO()
    torch.save(task.get_checkpoint_state(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other.load_checkpoint_state(state["state_dict"], state.get("task_state"))
    return other


ONE_LABEL = [(kind, loss) for kind, loss in LOSSES if loss != "sigmoid_kl"]  # tasks/test_multi_label.py has that one


@pytest.mark.parametrize(("kind", "loss"), ONE_LABEL, ids=lambda value: value if isinstance(value, str) else "several")
def test_one_step_of_every_task(
    kind: str, loss: Any, dataset: ReplayedDataset, caches: dict[str, CachedTeacher]
) -> None:
    for student, teacher in pairs(kind, loss):
        task = make(kind, loss, student, teacher)
        from_cache = make(kind, loss, student, teacher, cache=caches[teacher])
        live, cached = steps(dataset, task.get_eval_model(), caches[teacher])
        from_live, read = live(task), cached(from_cache)
        assert list(from_live) == list(read)
        for name, value in from_live.items():
            torch.testing.assert_close(read[name], value, rtol=1e-4, atol=1e-6, check_dtype=False, msg=name)
        after = step_down(task, from_live, live)
        step_down(from_cache, read, cached)
        for trained in (task, from_cache):
            assert_gradients_are_where_they_belong(trained)
        again = live(restored(task, make(kind, loss, student, teacher, seed=1)))
        assert list(again) == list(after)
        assert all(torch.equal(again[name], value) for name, value in after.items())


def slopes(task: DistillationTask, result: Result) -> Result:
    """Term -> its gradient at all that trains, one after the other."""
    parameters = list(task.trainable_module.parameters())
    found = {}
    for name, value in result.items():
        if name.startswith("weighted_") and value.requires_grad:
            from_live = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
            found[name] = torch.cat([gradient.flatten() for gradient in from_live])
    return found


KINDS = {"logit": "kl", "feature": "pkt", "token": "soft"}  # each with a loss that any student and teacher can have
PAIRS = [(kind, *pair) for kind, loss in KINDS.items() for pair in pairs(kind, loss)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "student", "teacher"), [pair for pair in PAIRS if pair[1] != pair[2]])
def test_each_task_with_every_loss_is_one_graph_with_the_eager_result(kind: str, student: str, teacher: str) -> None:
    """Values and gradients of every term. Autograd's compiler, which takes long, sees a pair of each task."""
    task = make(kind, every_loss(kind, student, teacher), student, teacher).float()
    images, target = batch()[0].float(), batch()[1]
    assert task.teacher is not None
    ways: list[tuple[TeacherOutput | None, str]] = [(None, "eager")]
    if (student, teacher) == (VIT, CNN):
        ways = [(None, "aot_eager"), (task.teacher(Batch(images, torch.zeros(0))), "eager")]
    for outputs, backend in ways:
        assert_compiles_to_the_same(task, (images, target, outputs), backend)


def assert_compiles_to_the_same(
    task: DistillationTask, arguments: tuple[Tensor, Tensor, TeacherOutput | None], backend: str
) -> None:
    """Values and gradients of every term, of one graph."""
    torch.compiler.reset()
    results: list[Result] = []
    for step in (task, torch.compile(task, fullgraph=True, backend=backend)):
        torch.manual_seed(17)
        result = step(*arguments)
        results.append(result | slopes(task, result))
    eager, compiled = results
    assert list(eager) == list(compiled)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-4, msg=f"{name}, {backend}")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's own compiler needs g++")
@pytest.mark.filterwarnings("ignore:.*torch._prims_common.check.* is deprecated:FutureWarning")  # torch's own
@pytest.mark.parametrize("kind", ["feature"])  # which compares logits, too
def test_each_task_compiled_to_machine_code_has_the_eager_result(kind: str) -> None:
    task = make(kind, KINDS[kind], VIT, CNN).float()
    assert_compiles_to_the_same(task, (batch()[0].float(), batch()[1], None), "inductor")


def test_teacher_and_student_get_the_same_normalisation() -> None:
    task = make("feature", "hint_mse", VIT, CNN)
    assert task.teacher is not None
    assert task.teacher.input_normalization == Normalization.of(task.get_eval_model())
