"""Views per second of the replayed loader, timm's create_loader and torch's DataLoader with the same transform.

    python benchmarks/views.py            (about 4 minutes on 2 calm cores)

All sides read the same folder of JPEG files, draw timm's own transforms, and hand over normalised float batches on the
CPU; kdkit's and timm's leave the normalising to the main process, torch's DataLoader does it in the transform. Only
kdkit's seeds each view and puts the generators' states back. The sides take turns, an epoch each, in one run. Without
workers the processor's time is taken too, which a neighbour on the machine disturbs less than it does the clock's.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from _photographs import photographs
from _result import Report, parser, ratio, take_turns
from timm.data import Mixup, create_dataset, create_loader
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader

from kdkit.data import EpochSampler, FolderSource, RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.recipe import ViewRecipe
from kdkit.types import IMAGENET_MEAN, IMAGENET_STD, Normalization

SIZE, BATCH = 224, 32
OTHERS = ("timm create_loader", "torch DataLoader")
RECIPES = {
    "crop and flip": ViewRecipe.preset("rrc", size=SIZE, num_views=4),
    "RandAugment": ViewRecipe.preset("rrc", size=SIZE, num_views=4, auto_augment="rand-m7-mstd0.5-inc1"),
}
MIXED = ViewRecipe.preset("rrc", size=SIZE, num_views=4, mixup_alpha=0.8, cutmix_alpha=1.0)


def write_folder(root: Path, count: int) -> Path:
    """`count` JPEG crops of photographs, up to 400 by 320 pixels, in one class folder per photograph."""
    images = list(photographs())
    for index in range(count):
        name, image = images[index % len(images)]
        left, top = (37 * index) % max(1, image.width - 400), (23 * index) % max(1, image.height - 320)
        (root / name).mkdir(parents=True, exist_ok=True)
        image.crop((left, top, left + min(400, image.width), top + min(320, image.height))).save(
            root / name / f"{index}.jpg", quality=90
        )
    return root


def timm_options(recipe: ViewRecipe) -> dict[str, Any]:
    return {
        "scale": recipe.scale,
        "ratio": recipe.ratio,
        "hflip": recipe.hflip,
        "interpolation": recipe.interpolation,
        "auto_augment": recipe.auto_augment,
        "color_jitter": None,
    }


def timm_loader(root: Path, recipe: ViewRecipe, workers: int) -> Any:
    """timm's loader of the recipe's transform, with persistent workers, on the CPU."""
    return create_loader(
        create_dataset("", root=str(root), search_split=False),
        (3, recipe.size, recipe.size),
        BATCH,
        is_training=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        device=torch.device("cpu"),
        pin_memory=False,
        **timm_options(recipe),
    )


def drain(batches: Iterable[Any]) -> int:
    """Number of images of an epoch, with each batch accessed."""
    count = 0
    for batch in batches:
        images = batch[0] if isinstance(batch, (list, tuple)) else batch.input
        assert images.dtype == torch.float32
        count += len(images)
    return count


def sides(root: Path, recipe: ViewRecipe, workers: int) -> dict[str, Callable[[], object]]:
    """One epoch of each, with persistent workers."""
    dataset = ReplayedDataset(FolderSource(root), recipe)
    sampler = EpochSampler(range(len(dataset)), BATCH, num_views=recipe.num_views)
    replayed = ReplayLoader(dataset, sampler, Normalization(), num_workers=workers)
    epochs = itertools.count()

    def next_epoch() -> int:
        replayed.set_epoch(next(epochs))  # other views each time, as the other sides have
        return drain(replayed)

    timms = timm_loader(root, recipe, workers)
    plain = create_dataset("", root=str(root), search_split=False)
    plain.transform = create_transform(SIZE, is_training=True, **timm_options(recipe))
    torchs = DataLoader(plain, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return {
        "kdkit ReplayLoader": next_epoch,
        "timm create_loader": lambda: drain(timms),
        "torch DataLoader": lambda: drain(torchs),
    }


def counted(side: Callable[[], object], seconds: list[float]) -> Callable[[], object]:
    """Wraps `side` so that it adds the processor time of this process to `seconds`."""

    def run() -> None:
        begun = time.process_time()
        side()
        seconds.append(time.process_time() - begun)

    return run


def compare_plain(report: Report, root: Path, count: int, turns: int) -> None:
    rows = []
    for name, recipe in RECIPES.items():
        for workers in (0, 2):
            used: dict[str, list[float]] = {side: [] for side in ("kdkit ReplayLoader", *OTHERS)}
            epochs = {side: counted(run, used[side]) for side, run in sides(root, recipe, workers).items()}
            times = take_turns(epochs, turns, warm_up=1)
            mine = times["kdkit ReplayLoader"]
            rows.append([name, workers, "kdkit ReplayLoader", f"{count / statistics.median(mine):.0f}", "1", "1"])
            for side in OTHERS:
                title, speed = f"{name}, {workers} workers: kdkit over {side}", count / statistics.median(times[side])
                over = report.figure(title, ratio(times[side], mine))
                effort: object = "not measured for workers"
                if workers == 0:
                    effort = ratio(used[side][1:], used["kdkit ReplayLoader"][1:])
                    report.figure(f"{title}, processor time", effort)
                rows.append([name, workers, side, f"{speed:.0f}", over, effort])
    report.table(
        ["transform", "workers", "side", "views/s", "kdkit / side, median (quartiles)", "by processor time"], rows
    )


def compare_mixed(report: Report, root: Path, count: int, turns: int) -> None:
    """Mixing in the worker, in a training epoch and in a build's order, compared with timm's Mixup on the batch."""
    dataset = ReplayedDataset(FolderSource(root), MIXED)
    training = ReplayLoader(dataset, EpochSampler(range(len(dataset)), BATCH, num_views=4), Normalization())
    build = ReplayLoader(dataset, RangeSampler([(0, 0, len(dataset))], BATCH), Normalization())
    plain = create_dataset("", root=str(root), search_split=False)
    plain.transform = create_transform(SIZE, is_training=True, **timm_options(MIXED))
    mixup = Mixup(0.8, 1.0, mode="pair", num_classes=dataset.num_classes)

    def timms() -> int:
        loaded = DataLoader(plain, BATCH, shuffle=True, drop_last=False)
        return drain(mixup(images.clone(), target) for images, target in loaded)

    times = take_turns(
        {"an epoch": lambda: drain(training), "a build": lambda: drain(build), "timm's Mixup": timms}, turns, warm_up=1
    )
    over, cost = ratio(times["timm's Mixup"], times["an epoch"]), ratio(times["a build"], times["an epoch"])
    report.figure("mixed epoch over timm's Mixup", over)
    report.figure("mixed build's time over an epoch's", cost)
    report.text(
        f"""Mixup and CutMix, crop and flip, no workers: a training epoch has {over} of the speed of torch's DataLoader
        with timm's `Mixup` (mode pair) on the float batch. A build, which goes through the rows in order and so finds
        few partners in one batch, takes {cost} times as long as that epoch to make the views."""
    )


def main() -> None:
    options = parser(__doc__).parse_args()
    count, turns = (64, 1) if options.quick else (192, 21)
    torch.set_num_threads(1)
    report = Report("views", "Views per second", quick=options.quick)
    report.text(
        f"""{count} JPEG files, at most 400 by 320 pixels, to {SIZE} pixels in batches of {BATCH}; {turns} turns of one
        epoch each; ratios are of the two epochs of a turn, above 1 where kdkit is faster. Mean {IMAGENET_MEAN}, std
        {IMAGENET_STD}."""
    )
    with tempfile.TemporaryDirectory() as name:
        root = write_folder(Path(name), count)
        compare_plain(report, root, count, turns)
        compare_mixed(report, root, count, turns)
    report.write(options.output)


if __name__ == "__main__":
    main()
