"""10,000 of 10,000 views are the same bytes, however they are loaded.

A reference pass draws each view by itself, in this process. Then 125 views are loaded in each of 80 ways: every preset
with 0, 1 and 4 forked workers, on 1, 2 and 3 ranks, shuffled and sequential, in batches of 1, 7 and 32, an epoch whole
and one that was stopped and resumed; spawn and forkserver with some presets, as they take seconds to start. Ranks are
samplers of one process here, since a rank's sampler alone decides what it shows; tests/distributed runs real ones.
"""

from __future__ import annotations

import hashlib
import random
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support import CLASSES, digits

from kdkit.data import ArraySource, EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.recipe import PRESETS, ViewRecipe
from kdkit.types import Normalization

ROWS = 125


class Way(NamedTuple):
    """How an epoch is loaded."""

    workers: int = 0
    context: str | None = None
    ranks: int = 1
    shuffle: bool = False
    batch: int = 32
    stopped_after: int | None = None


EVERYWHERE = {
    "alone": Way(),
    "shuffled": Way(shuffle=True),
    "batches of 1": Way(batch=1),
    "batches of 7, shuffled": Way(batch=7, shuffle=True),
    "1 worker": Way(workers=1),
    "4 workers": Way(workers=4, batch=8),
    "4 workers, shuffled": Way(workers=4, batch=8, shuffle=True),
    "forked": Way(workers=2, context="fork", batch=1),
    "2 ranks": Way(ranks=2),
    "2 ranks, shuffled, a worker each": Way(ranks=2, workers=1, shuffle=True),
    "3 ranks": Way(ranks=3, batch=1),
    "3 ranks, shuffled": Way(ranks=3, shuffle=True),
    "resumed": Way(stopped_after=2),
    "resumed, shuffled, a worker": Way(stopped_after=3, workers=1, shuffle=True, batch=8),
    "resumed on 3 ranks": Way(stopped_after=5, ranks=3, shuffle=True, batch=7),
}
CASES = [(preset, name, way) for preset in PRESETS for name, way in EVERYWHERE.items()]
CASES += [("deit", "spawned", Way(workers=1, context="spawn"))]
CASES += [(preset, "forkserver", Way(workers=1, context="forkserver")) for preset in PRESETS if preset != "eval"]


def make_dataset(preset: str) -> ReplayedDataset:
    plain = digits(ROWS)
    source = ArraySource(plain.images, plain.targets, keys=plain.keys, class_names=CLASSES)
    return ReplayedDataset(source, ViewRecipe.preset(preset, size=32, num_views=1 if preset == "eval" else 4, seed=5))


def digest(image: torch.Tensor) -> bytes:
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()


def load(dataset: ReplayedDataset, epoch: int, way: Way) -> dict[int, set[bytes]]:
    """Row -> the hashes of the pixels that are shown of it in an epoch."""
    shown: dict[int, set[bytes]] = {}
    options: dict[str, Any] = {"num_workers": way.workers}
    if way.context:
        options["multiprocessing_context"] = way.context
    for rank in range(way.ranks):
        pieces = [(0, None)] if way.stopped_after is None else [(0, way.stopped_after), (way.stopped_after, None)]
        for start, stop in pieces:
            share = {"rank": rank, "world_size": way.ranks}
            views = dataset.recipe.num_views
            sampler = EpochSampler(range(ROWS), way.batch, num_views=views, shuffle=way.shuffle, seed=9, **share)
            loader = ReplayLoader(dataset, sampler, Normalization(), **options)
            loader.set_epoch(epoch, start)
            for pixels in islice(loader.pixel_batches(), stop):
                assert set(pixels.view.tolist()) == {epoch % dataset.recipe.num_views}
                for row, image in zip(pixels.row.tolist(), pixels.images, strict=True):
                    shown.setdefault(row, set()).add(digest(image))
    return shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # more than there are cores, on purpose
def test_ten_thousand_of_ten_thousand_views_are_the_same_bytes() -> None:
    datasets = {preset: make_dataset(preset) for preset in PRESETS}
    reference = {
        (preset, view): {row: {digest(make[row, view].image)} for row in range(ROWS)}
        for preset, make in datasets.items()
        for view in range(make.recipe.num_views)
    }
    drawn = [one for preset, view in reference if preset != "eval" for one in reference[preset, view].values()]
    assert len({next(iter(one)) for one in drawn}) > 0.99 * len(drawn)
    same = 0
    for number, (preset, name, way) in enumerate(CASES):
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        shown = load(datasets[preset], number, way)
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()), name
        expected = reference[preset, number % datasets[preset].recipe.num_views]
        assert shown == expected, (preset, name)
        same += len(shown)
    assert same == 10_000
