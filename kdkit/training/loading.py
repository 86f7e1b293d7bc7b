"""How many views one decode serves, where the run is to choose: several if loading takes longer than training."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kdkit.data import ReplayedDataset, ReplayLoader
from kdkit.data.batch import collate
from kdkit.data.sampler import EpochSampler
from kdkit.errors import ConfigError
from kdkit.runtime import distributed
from kdkit.runtime.reading import read_yaml
from kdkit.student import LAST
from kdkit.tasks import TrainingTask
from kdkit.training.checkpoint import PREVIOUS
from kdkit.training.config import DistillConfig
from kdkit.training.preflight import time_step
from kdkit.training.run import CONFIG
from kdkit.training.train_config import TrainConfig
from kdkit.types import Batch, Normalization, TeacherSource

MOST_VIEWS = 4
"""Number of views that one decode serves at most: the published precedent (Shen and Xing 2022, arXiv 2112.01528) trains
with 4 crops of an image in a batch, and more speed up loading little."""
_IMAGES = 16
_MAX_ALIASES = 100  # yaml.dump writes one where a list occurs twice
_LEAST_GAIN = 1.1  # in loading; less is not worth that the views of a batch are of fewer images


@dataclass(frozen=True)
class Choice:
    """The number of views that one decode serves, and the reason in a few words."""

    views_per_decode: int
    reason: str


def choose_views_per_decode(
    dataset: ReplayedDataset,
    task: TrainingTask,
    source: TeacherSource | None,
    config: TrainConfig,
    device: torch.device,
) -> Choice:
    """Measures loading and a training step on up to 16 images, and chooses up to 4 views per decode, or 1.

    Args:
        dataset: training images, as the loader shows them.
        task: what a step computes, not yet distributed; the step's effects are undone.
        source: the teacher or cache; None if the task has no teacher.
        config: the training configuration.
        device: where batches arrive.
    """
    recipe = dataset.recipe
    views = min(MOST_VIEWS, recipe.num_views, recipe.views_per_partner if recipe.mixes else MOST_VIEWS)
    if views == 1:
        one = "the recipe has one view" if recipe.num_views == 1 else "each view is mixed with another image"
        return Choice(1, one)
    measured = _measure_loading(dataset)
    if measured is None:
        return Choice(1, "loading could not be measured")
    decode, whole, samples = measured
    step = _measure_step(dataset, samples, task, source, config, device)
    loading, gain = whole / max(1, config.workers), whole / (whole - decode + decode / views)
    times = f"{1e3 * loading:.2g} ms an image, {1e3 * step:.2g} ms in a step"
    if loading <= step:
        return Choice(1, f"loading is not the limit: {times}")
    if gain < _LEAST_GAIN:
        return Choice(1, f"decoding takes only {decode / whole:.0%} of loading")
    return Choice(views, f"loading is the limit: {times}")


def settle_views_per_decode(
    config: DistillConfig,
    dataset: ReplayedDataset,
    task: TrainingTask,
    source: TeacherSource | None,
    device: torch.device,
) -> tuple[DistillConfig, str]:
    """The configuration with a number in place of auto, the same on all ranks, and what the header says of it.

    A resumed run keeps its number, because the order of the images depends on it. The other arguments are those of
    `choose_views_per_decode`.
    """
    given = config.train.views_per_decode
    if isinstance(given, int):
        return config, f"{given} per decode"

    def choose() -> Choice:
        stored = _stored_views_per_decode(Path(config.output)) if resumes(config) else None
        if stored is not None:
            return Choice(stored, "as the run began")
        return choose_views_per_decode(dataset, task, source, config.train, device)

    found = distributed.on_rank_zero(choose)
    settled = replace(config, train=replace(config.train, views_per_decode=found.views_per_decode))
    return settled, f"{found.views_per_decode} per decode ({found.reason})"


def resumes(config: DistillConfig) -> bool:
    """Whether there is a checkpoint that the run resumes from."""
    return config.resume and any((Path(config.output) / name).exists() for name in (LAST, PREVIOUS))


def _stored_views_per_decode(output: Path) -> int | None:
    """The number with which the run in `output` was trained; None if its configuration cannot be read."""
    try:
        stored = read_yaml(output / CONFIG, max_aliases=_MAX_ALIASES)["train"].get("views_per_decode", 1)
    except (ConfigError, LookupError, TypeError, AttributeError):
        return None
    return stored if isinstance(stored, int) else None


def _measure_loading(dataset: ReplayedDataset) -> tuple[float, float, list[Any]] | None:
    """Seconds per image of decoding, and of decoding and transforming together, and the samples; None without any."""
    decode, whole, samples = 0.0, 0.0, []
    for number, row in enumerate(_readable_rows(dataset)):
        begun = time.perf_counter()
        dataset.source[row]
        decoded = time.perf_counter()
        samples += dataset.__getitems__([(row, number % dataset.recipe.num_views)])
        if number > 0:  # the first one also loads libraries
            decode += decoded - begun
            whole += time.perf_counter() - decoded
    count = len(samples) - 1
    return (min(decode, whole) / count, whole / count, samples) if count > 0 and whole > 0 else None


def _readable_rows(dataset: ReplayedDataset) -> Iterator[int]:
    """Some rows; an image that cannot be read is left to the loader, which knows what to do about it."""
    rows = random.Random(dataset.recipe.seed).sample(range(len(dataset)), min(_IMAGES, len(dataset)))
    for row in rows:
        try:
            dataset[row, 0]
        except Exception:
            continue
        yield row


def _measure_step(
    dataset: ReplayedDataset,
    samples: list[Any],
    task: TrainingTask,
    source: TeacherSource | None,
    config: TrainConfig,
    device: torch.device,
) -> float:
    """Seconds per image of a step; on a GPU of a whole batch, because a small one takes as long."""
    if device.type == "cuda":
        samples = (samples * -(-config.batch_size // len(samples)))[: config.batch_size]
    sampler = EpochSampler(range(len(dataset)), len(samples))
    loader = ReplayLoader(dataset, sampler, Normalization.of(cast(nn.Module, task.get_eval_model())), device=device)
    batch: Batch = loader.to_batch(collate(samples))
    return time_step(task, batch, source, config) / len(samples)
