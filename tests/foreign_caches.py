"""Samples of other projects' caches, made by their own code; replayed.npz is what their own training loaders show.

Six photographs, tf_efficientnet_lite0's labels of 1,000 classes, 6 views each at 64 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdkit.data import create_source
from kdkit.data.sources.base import ImageSource
from kdkit.importers import import_fkd, import_mldr
from kdkit.importers._write import ImportReport

DATA = Path(__file__).parent / "importers" / "data"
TRAIN = DATA / "train"
ML_DR = ("cropflip_plain", "randaug", "randaug_mixing")
FKD = ("hard", "marginal_smoothing_k5", "marginal_renorm_fp16")
SAMPLES = tuple(f"ml-dr/{name}" for name in ML_DR) + tuple(f"fkd/{name}" for name in FKD)
CLASSES = 1000


def photographs() -> ImageSource:
    return create_source(TRAIN)


def import_sample(name: str, path: Path, **options: Any) -> ImportReport:
    """Imports one of SAMPLES."""
    if name.startswith("ml-dr"):
        return import_mldr(DATA / name, photographs(), path, **options)
    if "renorm" in name:
        options["label_type"] = "marginal_renorm"
    return import_fkd(DATA / name, photographs(), path, size=64, **options)


def normalized(image: torch.Tensor) -> np.ndarray:
    """Pixels uint8 [3, H, W] in ImageNet's normalisation."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return (image.numpy() / 255 - mean[:, None, None]) / std[:, None, None]


class Keys:
    """A source of which only the keys are ever used."""

    def __init__(self, keys: Sequence[str], class_names: Sequence[str] | None = None) -> None:
        self.keys, self.class_names = keys, class_names

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("an import decodes no image")


def write_ml_dr(folder: Path, count: int, *, num_views: int = 2, num_classes: int = 10, top: int = 3) -> Path:
    """A small cache of ml-dr's crops and flips, `count` files, labels drawn from each index."""
    folder.mkdir(parents=True)
    augmentation = {"random_resized_crop": {"enable": True, "size": 32}, "random_horizontal_flip": {"p": 0.5}}
    reinforce = {"image_augmentation": augmentation, "num_samples": num_views, "compress": True, "topk": top}
    torch.save({"reinforce": reinforce, "num_classes": num_classes}, folder / "config.pth.tar")
    for index in range(count):
        draw = np.random.default_rng(index)
        views = [
            {"params": [(0, 0, 8, 8), bool(view % 2)], "prob": _label(draw, num_classes, top)}
            for view in range(num_views)
        ]
        torch.save((index, views), folder / f"{index}.pth.tar", pickle_protocol=4)
    return folder


def _label(draw: np.random.Generator, num_classes: int, top: int) -> tuple[list[float], list[int]]:
    probs = draw.dirichlet(np.full(num_classes, 0.3))
    ids = np.argsort(-probs)[:top]
    return probs[ids].tolist(), ids.tolist()
