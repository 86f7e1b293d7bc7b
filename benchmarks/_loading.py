"""Loading for `decode.py`: kdkit's loader and timm's, and the bare loops that no loader can be faster than."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from _photographs import photographs
from _result import Report, ratio, take_turns
from PIL import Image
from views import BATCH, SIZE, drain, timm_loader

from kdkit.data import EpochSampler, FolderSource, ReplayedDataset, ReplayLoader
from kdkit.data.views.seed import preserve_rng_state, seed_all, view_seed
from kdkit.data.views.transform import create_view_transform
from kdkit.recipe import ViewRecipe
from kdkit.runtime.pixels import HASHED_EACH, HASHED_FIRST
from kdkit.types import Normalization

VIEWS, BYTES = 8, 110_000
RECIPES = {
    "crop and flip": ViewRecipe.preset("rrc", size=SIZE, num_views=VIEWS),
    "RandAugment": ViewRecipe.preset("rrc", size=SIZE, num_views=VIEWS, auto_augment="rand-m7-mstd0.5-inc1"),
}
LOADED: dict[str, dict[int, float | None]] = {
    "crop and flip": {1: 0.95, 4: 1.4, 8: 1.5},
    "RandAugment": {1: 0.95, 4: 1.15, 8: None},
}
"""Transform -> views per decode -> target of views/s relative to timm's create_loader."""
OVER_BARE = 1.10
ItemLoader = Callable[[int], object]
"""Loads what an index stands for."""


def write_images(root: Path, count: int) -> Path:
    """`count` JPEG files of 500 x 375 pixels and about 110 kB, in one class folder per photograph."""
    images = list(photographs())
    for index in range(count):
        name, image = images[index % len(images)]
        width = max(320, int(image.width * (0.5 + 0.5 * (index * 37 % 100) / 100)))
        height = width * 3 // 4
        left, top = (37 * index) % max(1, image.width - width), (23 * index) % max(1, image.height - height)
        view = image.crop((left, top, left + min(width, image.width), top + min(height, image.height)))
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{index}.jpg").write_bytes(as_jpeg(view.resize((500, 375), Image.Resampling.BICUBIC)))
    return root


def as_jpeg(image: Image.Image) -> bytes:
    """The image at the lowest quality from 75 on that takes 110 kB, or at the highest."""
    for quality in range(75, 101):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        if stream.tell() >= BYTES:
            break
    return stream.getvalue()


def within_many(root: Path, larger: Path) -> FolderSource:
    """The images below `root` after HASHED_FIRST others, as most of a large data set comes after these."""
    files = sorted(root.rglob("*.jpg"))
    (larger / "0").mkdir(parents=True)
    for index in range(HASHED_FIRST):
        os.link(files[index % len(files)], larger / "0" / f"{index}.jpg")
    for path in files:
        (larger / path.parent.name).mkdir(exist_ok=True)
        os.link(path, larger / path.relative_to(root))
    source = FolderSource(larger)
    assert all(key.startswith("0/") for key in source.keys[:HASHED_FIRST]), "the others come first"
    return source


def replayed(dataset: ReplayedDataset, views: int, workers: int, first: int = 0) -> ReplayLoader:
    """Loads the rows from `first` on."""
    sampler = EpochSampler(range(first, len(dataset)), BATCH, num_views=VIEWS, views_per_decode=views)
    return ReplayLoader(dataset, sampler, Normalization(), num_workers=workers)


class Replaying:
    """Decodes an image and draws some of its views, with their seeds, and keeps none of them.

    Args:
        dataset: the images and their views.
        views: how many views of an image are drawn.
    """

    def __init__(self, dataset: ReplayedDataset, views: int) -> None:
        self._dataset = dataset
        self._views = views
        self._next = itertools.count(step=views)
        self._draw = create_view_transform(dataset.recipe)
        self._numpy = dataset.recipe.auto_augment is not None  # crop and flip do not draw from NumPy

    def __call__(self, row: int) -> None:
        image, _ = self._dataset.source[row]
        begin = next(self._next)
        for view in range(begin, begin + self._views):
            seed_all(view_seed(self._dataset.recipe.seed, self._dataset.keys[row], view % VIEWS), numpy=self._numpy)
            self._draw(image)


_inherited: dict[str, ItemLoader] = {}  # by the processes of `bare_loops`, which are forked


def run_share(side: str, indices: Sequence[int]) -> None:
    with preserve_rng_state():
        for index in indices:
            _inherited[side](index)


@contextmanager
def bare_loops(
    sides: dict[str, tuple[ItemLoader, Sequence[int]]], workers: int
) -> Iterator[dict[str, Callable[[], None]]]:
    """Loops that load the items of a side; with workers in as many processes at once, each its share."""
    _inherited.update({side: load for side, (load, _) in sides.items()})
    if workers == 0:
        yield {side: partial(run_share, side, indices) for side, (_, indices) in sides.items()}
        return

    def run(side: str, indices: Sequence[int]) -> None:
        list(pool.map(run_share, [side] * workers, [indices[part::workers] for part in range(workers)]))

    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        yield {side: partial(run, side, indices) for side, (_, indices) in sides.items()}


def time_loaders(
    root: Path, recipe: ViewRecipe, workers: int, several: Sequence[int], turns: int
) -> dict[str, list[float]]:
    """Seconds a view: timm's loader, ours at each number of views per decode, their bare loops, decoding, drawing."""
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        dataset = ReplayedDataset(within_many(root, Path(folder) / "larger"), recipe)
        rows = range(HASHED_FIRST, len(dataset))
        theirs = timm_loader(root, recipe, workers)
        decoded = {row: dataset.source[row][0] for row in rows}
        draw = create_view_transform(recipe)
        numpy = recipe.auto_augment is not None
        bare: dict[str, tuple[ItemLoader, Sequence[int]]] = {
            "bare timm": (theirs.dataset.__getitem__, range(len(rows))),
            **{f"bare {k}": (Replaying(dataset, k), rows[::k]) for k in several},
            "decode": (dataset.source.__getitem__, rows),
            "draw": (lambda row: (seed_all(row, numpy=numpy), draw(decoded[row])), rows),
        }
        with bare_loops(bare, workers) as loops:
            loaders = {str(k): replayed(dataset, k, workers, HASHED_FIRST) for k in several}
            sides: dict[str, Callable[[], object]] = {**loops, "timm": partial(drain, theirs)}
            sides.update({side: partial(drain, loader) for side, loader in loaders.items()})
            times = take_turns(sides, turns, warm_up=1)
    return {side: [second / len(rows) for second in seconds] for side, seconds in times.items()}


def compare_loaders(report: Report, root: Path, turns: int) -> None:
    rows, count = [], len(list(root.rglob("*.jpg")))
    report.text("## Loading", f"An epoch of {count} views, to {SIZE} pixels in batches of {BATCH}.")
    for (name, recipe), workers in itertools.product(RECIPES.items(), (0, 2)):
        title = f"{name}, {workers} workers"
        times = time_loaders(root, recipe, workers, tuple(LOADED[name]), turns)
        for side, target in {"timm": None, **{str(k): target for k, target in LOADED[name].items()}}.items():
            of = f"{title}, timm's" if side == "timm" else f"{title}, k = {side}"
            speed = report.figure(f"{of}: views/s over timm's", ratio(times["timm"], times[side]))
            over = report.figure(f"{of}: time over the bare loop", ratio(times[side], times[f"bare {side}"]))
            k = 1 if side == "timm" else int(side)
            apart = [decode / k + draw for decode, draw in zip(times["decode"], times["draw"], strict=True)]
            parts = "-" if side == "timm" else report.figure(f"{of}: time over the parts", ratio(times[side], apart))
            views = f"{1 / statistics.median(times[side]):.0f}"
            rows.append([name, workers, "timm's" if side == "timm" else k, views, speed, target or "-", over, parts])
            print(rows[-1], flush=True)
        spent = {part: round(1e3 * statistics.median(times[part]), 3) for part in ("decode", "draw")}
        report.text(f"{title}: " + ", ".join(f"{part} {ms:.2f} ms" for part, ms in spent.items()) + ".")
        report.figure(f"{title}: ms an image", spent)
    report.table(
        ["transform", "workers", "k", "views/s", "over timm's", "target", "time over the bare loop", "over its parts"],
        rows,
    )
    report.text(
        f"""The bare loop decodes an image, seeds the generators, draws k views as uint8 tensors and discards them, in
        as many processes at once as there are workers; the target is at most {OVER_BARE} of its time. The last column
        is relative to decode / k + draw, each timed alone in such a loop: it lacks that views which are drawn between
        two decodes take the processor's cache from them. The rest of loading is above both: collating, copying between
        processes, hashing pixels, and turning batches into normalised floats, which the main process does; with 2
        workers on 2 cores it takes that time from the workers. The images come after {HASHED_FIRST} others, as in a
        large data set, so that each {HASHED_EACH}th is hashed. timm's bare loop is over its own data set."""
    )
