"""Run by run_ranks: two ranks with data or settings that differ in one thing; rank 0 saves each rank's error."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from support import CLASSES, RECIPE, digits, tiny_model

from kdkit import build_cache, create_teacher
from kdkit.building.config import BuildConfig
from kdkit.data import ArraySource, MultiLabelSource, ReplayedDataset
from kdkit.data.ranks import check_same_on_ranks, open_on_all_ranks
from kdkit.errors import DatasetError, KdkitError
from kdkit.recipe import ViewRecipe
from kdkit.runtime import distributed
from kdkit.runtime.agreement import check_same_settings

COUNT = 12


def dataset(recipe: ViewRecipe = RECIPE, *, count: int = COUNT, **changes: Any) -> ReplayedDataset:
    plain = digits(count)
    values = {"targets": plain.targets, "keys": plain.keys, "class_names": CLASSES, **changes}
    return ReplayedDataset(ArraySource(plain.images, values.pop("targets"), **values), recipe)


def several(is_odd: bool) -> ReplayedDataset:
    vectors = [[0, 1, -1]] * (COUNT - 1) + [[1, int(is_odd), 0]]
    return ReplayedDataset(MultiLabelSource(dataset().source, vectors, class_names=list("abc")), RECIPE)


def missing() -> ReplayedDataset:
    raise DatasetError("there is no image folder here")


def relabelled() -> ReplayedDataset:
    labels = list(digits(COUNT).targets)
    labels[5] = 9
    return dataset(targets=labels)


OTHERS: dict[str, Callable[[], ReplayedDataset]] = {
    "nothing": dataset,
    "count": lambda: dataset(count=COUNT - 1),
    "key": lambda: dataset(keys=["other", *digits(COUNT).keys[1:]]),
    "order of keys": lambda: dataset(keys=digits(COUNT).keys[::-1]),
    "label": relabelled,
    "no label": lambda: dataset(targets=[-1] * COUNT),
    "class order": lambda: dataset(class_names=CLASSES[::-1]),
    "class count": lambda: dataset(class_names=[*CLASSES, "ten"]),
    "no class names": lambda: dataset(class_names=None, targets=digits(COUNT).targets),
    "recipe": lambda: dataset(dataclasses.replace(RECIPE, seed=8)),
    "cannot be opened": missing,
}


def error_of(function: Callable[[], object]) -> str | None:
    try:
        function()
    except KdkitError as error:
        return f"{type(error).__name__}: {error}"
    return None


def main(output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    is_odd = dist.get_rank() == 1
    found = {what: error_of(partial(open_on_all_ranks, other if is_odd else dataset)) for what, other in OTHERS.items()}
    found["several labels"] = error_of(lambda: check_same_on_ranks(several(is_odd)))
    found["loaded"] = error_of(lambda: check_same_on_ranks(dataset()))
    found["same settings"] = error_of(lambda: check_same_settings(lambda: {"train": {"lr": 0.1}, "seed": 1}))
    found["settings"] = error_of(lambda: check_same_settings(lambda: {"train": {"lr": 0.1 * (1 + is_odd)}, "seed": 1}))
    teacher, path = create_teacher(tiny_model(seed=int(is_odd))), Path(output).parent / "t.h5"
    found["teacher"] = error_of(lambda: build_cache(teacher, dataset(), path, BuildConfig(num_workers=0)))
    ends = distributed.all_gather(found)
    if not is_odd:
        Path(output).write_text(json.dumps(ends))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
