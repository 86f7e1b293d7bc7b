"""Why a cache's outputs are not the teacher's: one change at a time is tried, and the one that explains them is named.

What is compared is always what the cache would hold after the change, KL(changed teacher || cache) less what the codec
loses, as a share of how much the changed outputs differ between images. 0 explains everything, 1 nothing. A cause is
named if it leaves less than a quarter of what was unexplained. Dimensions: R rows, C classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.building.cause import Cause, fit_temperature, match_columns, nearest_rows
from kdkit.building.other_views import NORMALIZATIONS, as_model_sees, other_views
from kdkit.building.teacher import device_of, run_teacher
from kdkit.cache import CachedTeacher
from kdkit.cache.codecs import Codec
from kdkit.cache.encoding import encode_in_parts
from kdkit.cache.fidelity import kl_divergence
from kdkit.cache.format.constants import LOGITS
from kdkit.data import EpochSampler, PixelBatch, ReplayedDataset, ReplayLoader
from kdkit.errors import DatasetError
from kdkit.teachers import Teacher, TeacherEnsemble
from kdkit.types import Normalization

Array = np.ndarray[Any, Any]
_logger = logging.getLogger(__name__)
_ROWS = 64
_SEARCHED, _CHUNK = 50_000, 4096
_NEIGHBOURS = 8
_EXPLAINS, _MOST_LEFT = 0.25, 0.2
"""Share of the unexplained that a cause may leave, and the most that may be left of all."""
_SETTLED = 0.05
"""Share of the unexplained that a cause leaves beyond which no other kind is tried."""
_SAME_OUTPUT = 0.02
"""Share of unexplained difference up to which a row is taken for the outputs of an image."""
_ONE_HOT = -0.01
"""Log-probability from which on a class is the only one."""
_MANY = 0.9
Place = tuple[int, int]
"""View and row of the dataset."""


@dataclass(frozen=True)
class Rerun:
    """The teacher on chosen rows, as it is or with one thing changed."""

    teacher: Teacher
    """Runs where its weights are."""
    cache: CachedTeacher
    """Matched with the dataset."""
    dataset: ReplayedDataset
    """As the teacher sees it."""
    places: Sequence[Place]
    """Views and rows to compare, sorted by view."""
    batch_size: int
    """Images per forward pass."""

    def outputs(
        self,
        dataset: ReplayedDataset | None = None,
        normalization: Normalization | None = None,
        change: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> Tensor:
        """Log-probabilities [R, C] in the order of the places, in float32 on the CPU.

        Args:
            dataset: other views; one view alone serves for all.
            normalization: of what arrives at the teacher; what it expects by default.
            change: of uint8 pixels [B, 3, H, W].
        """
        shown, found = dataset or self.dataset, []
        for view in sorted({view for view, _ in self.places}):
            rows = [row for of, row in self.places if of == view]
            sampler = EpochSampler(rows, self.batch_size, num_views=shown.recipe.num_views, shuffle=False)
            sampler.set_epoch(view if shown.recipe.num_views > 1 else 0)
            incoming = normalization or self.teacher.input_normalization
            loader = ReplayLoader(shown, sampler, incoming, device=device_of(self.teacher))
            by_row: dict[int, Tensor] = {}
            for pixels in loader.pixel_batches():
                changed: PixelBatch = replace(pixels, images=change(pixels.images))
                logits = run_teacher(self.teacher, loader, changed, [LOGITS])[LOGITS]
                by_row.update(zip(pixels.row.tolist(), logits.float().log_softmax(dim=1).cpu(), strict=True))
            found += [by_row[row] for row in rows]
        return torch.stack(found)

    def cached(self, places: Array | None = None, view_shift: int = 0) -> Tensor:
        """The cached log-probabilities [R, C] of the chosen rows, or of rows `places` [N] or of other views instead."""
        found = []
        for view in sorted({view for view, _ in self.places}):
            rows = self.cache.rows_of(torch.tensor([row for of, row in self.places if of == view]))
            rows = rows if places is None else places[rows]
            stored = (view + view_shift) % self.cache.num_views
            found.append(self.codec.decode(self.cache.read_encoded(rows, stored)))
        return torch.cat(found)

    @cached_property
    def codec(self) -> Codec:
        """Of the logits."""
        codec = self.cache.codecs[LOGITS]
        assert isinstance(codec, Codec)
        return codec

    def as_stored(self, log_probs: Tensor) -> Tensor:
        """What the codec keeps of log-probabilities [R, C]."""
        return self.codec.decode(encode_in_parts(self.codec, log_probs))

    def judge(self, expected: Tensor) -> Callable[[Tensor], Tensor]:
        """Makes a function of cached log-probabilities: how far, per row [R], they are from `expected`; both [R, C]."""
        lost = kl_divergence(expected, self.as_stored(expected))
        between = kl_divergence(expected, expected.double().exp().mean(dim=0, keepdim=True).log().expand_as(expected))
        spread = between.mean().clamp_min(1e-9)
        return lambda cached: (kl_divergence(expected, cached) - lost).clamp_min(0) / spread

    def unexplained(self, expected: Tensor, cached: Tensor) -> float:
        """The mean of that."""
        return float(self.judge(expected)(cached).mean())


def choose_places(places: Sequence[Place]) -> list[Place]:
    """Up to 64 of the rows that were compared, in two views: one row per view would not show their order."""
    views, rows = sorted({view for view, _ in places}), sorted({row for _, row in places})
    shown = sorted({views[0], views[-1]})
    chosen = rows[:: -(-len(rows) // _ROWS)]
    return sorted((shown[place % len(shown)], row) for place, row in enumerate(chosen))


def find_cause(run: Rerun) -> tuple[Cause | None, float]:
    """The change that explains the cache's outputs, and the share of them that is unexplained without it.

    Returns:
        The cause, None if none of those that are known explains them; and 0 (explained) to 1 (unrelated) or more.
    """
    plain, cached = run.outputs(), run.cached()
    left = run.unexplained(plain, cached)
    least, cause = min(_EXPLAINS * left, _MOST_LEFT), None
    for tried in (_of_outputs, _of_order, _of_pixels, _of_crops):
        for share, possible in tried(run, plain, cached):
            _logger.debug("%.4f of %.4f is left by: %s", share, left, possible.text)
            if share < least:
                least, cause = share, possible
        if least <= _SETTLED * left:
            break
    return cause or _find_rows(run, plain), left


def _of_outputs(run: Rerun, plain: Tensor, cached: Tensor) -> Iterator[tuple[float, Cause]]:
    """Temperature, softmax applied twice, permuted classes."""
    temperature = fit_temperature(plain, cached, run.as_stored)
    if abs(math.log(temperature)) > 0.03:
        softened = (plain / temperature).log_softmax(dim=1)
        cause = Cause(
            "temperature",
            f"its outputs have temperature {temperature:.3g}, that is softmax(logits / {temperature:.3g})",
        )
        if bool((cached.amax(dim=1) > _ONE_HOT).all()):
            cause = Cause("one-hot", "its outputs are one-hot: they hold the likeliest class alone, not probabilities")
        yield run.unexplained(softened, cached), cause
    text = "softmax was applied twice: its logits are probabilities"
    yield run.unexplained(plain.exp().log_softmax(dim=1), cached), Cause("softmax", text)
    shown = run.as_stored(plain) if run.codec.name == "topk" else plain
    class_map = match_columns(shown, cached)
    if class_map != sorted(class_map):
        expected = torch.empty_like(plain)
        expected[:, class_map] = plain
        yield run.unexplained(expected, cached), Cause.of_classes(class_map)


def _of_order(run: Rerun, plain: Tensor, cached: Tensor) -> Iterator[tuple[float, Cause]]:
    """Rows or views that are shifted, one view for all, and rows in another order of the keys."""
    judge, num_rows = run.judge(plain), run.cache.num_rows
    for shift in (step * sign for step in range(1, _NEIGHBOURS + 1) for sign in (1, -1)):
        share = float(judge(run.cached((np.arange(num_rows) + shift) % num_rows)).mean())
        yield share, Cause("shifted", f"its rows are shifted by {shift:+}: the outputs of row r are in row r{shift:+}")
    for shift in sorted({step % run.cache.num_views for step in (*range(1, _NEIGHBOURS + 1), -1)} - {0}):
        text = (
            f"its views are in another order: the outputs of view v are in view (v + {shift}) mod {run.cache.num_views}"
        )
        yield float(judge(run.cached(view_shift=shift)).mean()), Cause("views", text)
    if run.cache.num_views > 1 and run.dataset.recipe.recorded is None:
        only = ReplayedDataset(run.dataset.source, replace(run.dataset.recipe, num_views=1)).for_teacher()
        yield run.unexplained(run.outputs(only), cached), Cause("views", "the outputs of view 0 are in all views")
    keys = run.cache.keys()
    for name, key in (("keys", str), ("file names", lambda key: key.rpartition("/")[2])):
        order = np.array(sorted(range(len(keys)), key=lambda row: key(keys[row])))
        for places in (order, np.argsort(order)):
            share = float(judge(run.cached(places)).mean())
            yield share, Cause("shuffled", f"its rows are in another order: that of the sorted {name}, or its inverse")


def _of_pixels(run: Rerun, plain: Tensor, cached: Tensor) -> Iterator[tuple[float, Cause]]:
    """Flipped views, colours in another order, normalisations."""
    flipped = run.judge(run.outputs(change=lambda images: images.flip(-1)))(cached)
    own = run.judge(plain)(cached)
    count = int((flipped < own).sum())
    which = "all views" if count >= _MANY * len(own) else f"{count} of {len(own)} views"
    text = f"{which} were flipped from left to right when the teacher saw them"
    yield float(torch.minimum(flipped, own).mean()), Cause("flipped", text)
    text = "the teacher saw blue, green, red instead of red, green, blue"
    yield run.unexplained(run.outputs(change=lambda images: images.flip(1)), cached), Cause("normalization", text)
    for text, wanted in NORMALIZATIONS.items() if not isinstance(run.teacher, TeacherEnsemble) else ():
        if wanted != run.teacher.normalization:
            seen = as_model_sees(wanted, run.teacher.normalization, run.teacher.input_normalization)
            cause = Cause("normalization", f"the teacher saw another normalisation: {text}")
            yield run.unexplained(run.outputs(normalization=seen), cached), cause


def _of_crops(run: Rerun, _: Tensor, cached: Tensor) -> Iterator[tuple[float, Cause]]:
    """Other crops."""
    records = run.cache if run.dataset.recipe.recorded is not None else None
    for text, views in other_views(run.dataset, records):
        try:
            expected = run.outputs(views)
        except DatasetError:  # a box, read otherwise, that is not inside its image
            continue
        yield run.unexplained(expected, cached), Cause("crop", f"the teacher saw another crop: {text}")


def _find_rows(run: Rerun, plain: Tensor) -> Cause | None:
    """Rows that are shuffled: the outputs of most images that do not match are found, each in another row."""
    view = run.places[0][0]
    mine = [place for place, (of, _) in enumerate(run.places) if of == view]
    own = run.cache.rows_of(torch.tensor([run.places[place][1] for place in mine]))
    every = -(-run.cache.num_rows // _SEARCHED)
    searched = np.arange(0, run.cache.num_rows, every)
    pieces = (searched[start : start + _CHUNK] for start in range(0, len(searched), _CHUNK))
    read = ((torch.from_numpy(rows), run.codec.decode(run.cache.read_encoded(rows, view))) for rows in pieces)
    nearest = nearest_rows(plain[mine], read).numpy()
    found = run.codec.decode(run.cache.read_encoded(nearest, view))
    judge = run.judge(plain[mine])
    elsewhere, left = judge(found).numpy(), judge(run.codec.decode(run.cache.read_encoded(own, view))).numpy()
    wrong = left >= _SAME_OUTPUT
    same = wrong & (elsewhere < _SAME_OUTPUT) & (nearest != own)
    if same.sum() < max(4, int(wrong.sum()) / every / 2) or len(set(nearest[same].tolist())) < _MANY * same.sum():
        return None
    if elsewhere[same].sum() >= _EXPLAINS * left[same].sum():  # among many outputs with noise, one is nearer by chance
        return None
    keys, first = run.cache.keys(), int(np.flatnonzero(same)[0])
    text = f"the outputs of {keys[own[first]]!r} are in the row of {keys[nearest[first]]!r}"
    return Cause("shuffled", f"its rows are in another order: {text}, and {int(same.sum()) - 1} more of {len(mine)}")
