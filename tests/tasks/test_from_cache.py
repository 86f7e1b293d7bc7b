"""Every kind of task learns from a cache what it learns from the teacher that made it, to 1e-6 in float32.

Logits and features are kept as float32. Not promised: equal bits, since a teacher's matrix products may round otherwise
in another batch.
"""

from __future__ import annotations

import pytest
import torch
from support import digits_dataset, loader_for, tiny_model
from task_rows import CNN, INNER, REMEMBERING, VIT, distilled_student, every_loss

from kdkit import (
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
    build_cache,
    create_teacher,
    open_cache,
)
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher
from kdkit.data import ReplayedDataset
from kdkit.errors import MissingTeacherError
from kdkit.tasks import LossTerm


@pytest.fixture(scope="module")
def dataset() -> ReplayedDataset:
    return digits_dataset(48)


@pytest.fixture(scope="module", params=[CNN, VIT])
def cached(request: pytest.FixtureRequest, dataset: ReplayedDataset, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A teacher, its name, and a cache of its outputs."""
    name = request.param
    path = tmp_path_factory.mktemp(name) / "t.h5"
    streams = ("logits", "pooled", "tokens", *INNER[name])
    build_cache(
        create_teacher(tiny_model(name, seed=1)),
        dataset,
        path,
        BuildConfig(streams=streams, codec="float32", feature_codec="float32", num_workers=0),
    )
    return tiny_model(name, seed=1), name, open_cache(path, dataset)


def assert_the_same(live: TrainingTask, task: TrainingTask, cache: CachedTeacher, dataset: ReplayedDataset) -> None:
    """Both results on every batch of an epoch, with the same random numbers."""
    task.load_state_dict(live.state_dict())
    for batch in loader_for(dataset, live.get_eval_model(), batch_size=24):
        torch.manual_seed(3)
        from_live = live(batch.input, batch.target, row=batch.row)
        torch.manual_seed(3)
        read = task(batch.input, batch.target, cache(batch), batch.row)
        assert list(from_live) == list(read)
        for name, value in from_live.items():
            torch.testing.assert_close(read[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_logits_and_tokens(cached, dataset: ReplayedDataset) -> None:  # type: ignore[no-untyped-def]
    teacher, _, cache = cached
    assert_the_same(
        LogitDistillationTask(tiny_model("test_efficientnet"), teacher, distill_loss={"kl": 1.0, "dist": 1.0}),
        LogitDistillationTask(tiny_model("test_efficientnet"), distill_loss={"kl": 1.0, "dist": 1.0}),
        cache,
        dataset,
    )
    assert_the_same(
        TokenDistillationTask(distilled_student(), teacher), TokenDistillationTask(distilled_student()), cache, dataset
    )


@pytest.mark.parametrize("student", [CNN, VIT])
def test_every_loss_on_features(cached, dataset: ReplayedDataset, student: str) -> None:  # type: ignore[no-untyped-def]
    teacher, name, cache = cached
    terms = [*every_loss("feature", student, name), LossTerm("hint_cosine", key="at_tokens", student_taps="tokens")]
    terms += [LossTerm(loss, options={"negatives": 9}) for loss in REMEMBERING]
    options = {"distill_loss": terms, "num_rows": len(dataset), "task_loss_weight": 0.5}
    live = FeatureDistillationTask(tiny_model(student), teacher, **options)
    task = FeatureDistillationTask(
        tiny_model(student), teacher_widths=cache.feature_widths, head_weight=live.teacher.head_weight, **options
    )
    assert_the_same(live, task, cache, dataset)


def test_a_cache_without_the_stream_is_refused_by_the_command_that_adds_it(cached, dataset: ReplayedDataset) -> None:  # type: ignore[no-untyped-def]
    _, _, cache = cached
    narrow = open_cache(cache.path, dataset, streams=["logits"])
    task = FeatureDistillationTask(tiny_model("test_efficientnet"), teacher_widths=cache.feature_widths)
    batch = next(iter(loader_for(dataset, task.get_eval_model())))
    with pytest.raises(MissingTeacherError, match=r"kdkit cache build .* --streams logits,pooled"):
        task(batch.input, batch.target, narrow(batch))
