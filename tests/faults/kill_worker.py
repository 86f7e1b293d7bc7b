"""Run by test_fault_18: a training or a build, one of whose loader's workers is killed; prints the error.

A process of its own, since torch reports a worker's death by raising from whatever runs then.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from support import tiny_model

from kdkit import ClassificationTask, build_cache, create_teacher
from kdkit.building.config import BuildConfig
from kdkit.data import EpochSampler, FolderSource, ReplayedDataset, ReplayLoader
from kdkit.errors import DatasetError
from kdkit.recipe import ViewRecipe
from kdkit.training.config import TrainConfig
from kdkit.training.train import train
from kdkit.types import Normalization


class _Deadly(FolderSource):
    """Ends the process that reads the 21st image, unless it is the main one."""

    main = os.getpid()

    def __getitem__(self, index: int) -> Any:
        if index == 20 and os.getpid() != self.main:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def run(images: Path, what: str) -> None:
    dataset = ReplayedDataset(_Deadly(images), ViewRecipe(size=32, num_views=2))
    try:
        if what == "train":
            loader = ReplayLoader(dataset, EpochSampler(range(len(dataset)), 10), Normalization(), num_workers=1)
            train(ClassificationTask(tiny_model()), loader, TrainConfig(epochs=1))
        else:
            config = BuildConfig(codec="float32", num_workers=1, batch_size=10)
            build_cache(create_teacher(tiny_model()), dataset, images.parent / "t.h5", config)
    except DatasetError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(0)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
