"""Images in memory for benchmarks that need any images: crops of real photographs, with labels assigned in turn."""

from __future__ import annotations

import numpy as np
from _photographs import photographs

from kdkit.data import ArraySource, ReplayedDataset
from kdkit.recipe import ViewRecipe

SIDE = 256  # pixels of a stored image
NUM_CLASSES = 1000


def crop_dataset(count: int, size: int) -> ReplayedDataset:
    """`count` images, replayed as crops and flips of `size` pixels, one view."""
    large = [np.asarray(image) for _, image in photographs() if min(image.size) > SIDE]
    draw = np.random.default_rng(0)
    images = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    for index in range(count):
        picture = large[index % len(large)]
        top, left = (draw.integers(0, length - SIDE) for length in picture.shape[:2])
        images[index] = picture[top : top + SIDE, left : left + SIDE]
    return ReplayedDataset(ArraySource(images, np.arange(count) % NUM_CLASSES), ViewRecipe(size=size))
