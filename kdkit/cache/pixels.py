"""The check that a student will see the same pixels as the teacher."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL
import torch

from kdkit.errors import CacheMismatchError, DatasetError
from kdkit.runtime.pixels import pixel_crc32

_REPLAYED = 64


def transform_versions() -> dict[str, str]:
    """Versions of the libraries that draw the pixels."""
    import timm  # here, because reading a cache without data needs neither, and they take as long to load as torch
    import torchvision

    return {
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "timm": timm.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def check_pixels(
    dataset: Any,
    cache_rows: np.ndarray[Any, Any],
    hashes: Mapping[int, Mapping[int, int]],
    made_with: Mapping[str, Any],
    origin: str,
    num_replayed: int = _REPLAYED,
) -> None:
    """Replays samples, spread over the views and the hashed rows, and compares their pixels with the build's.

    Args:
        dataset: as open_cache takes it.
        cache_rows: cache row of each dataset sample, int64 [N].
        hashes: view -> cache row -> CRC-32 of its pixels, as the teacher saw them.
        made_with: versions of the libraries that drew the teacher's pixels.
        origin: the cache's path, for the message.
        num_replayed: approximate number of samples to replay; at least one per view.

    Raises:
        CacheMismatchError: a replayed sample looks different; names it and the library versions.
    """
    seen, draw = dataset.for_teacher(), random.Random()  # another sample at each opening
    each = max(1, num_replayed // max(1, len(hashes)))
    for view, expected in hashes.items():
        candidates = [(index, row) for index, row in enumerate(cache_rows.tolist()) if row in expected]
        for index, row in (candidates[at] for at in _spread(len(candidates), each, draw)):
            try:
                image = seen[index, view].image
            except DatasetError:
                if not getattr(dataset, "skips_unreadable", False):
                    raise
                continue
            if pixel_crc32(image) != expected[row]:
                raise other_pixels(dataset.keys[index], view, made_with, origin)


def other_pixels(key: str, view: int, made_with: Mapping[str, Any], origin: str) -> CacheMismatchError:
    """The error for a sample that looks different from what the teacher saw."""
    return CacheMismatchError(
        f"{origin} shows other pixels for {key!r} (view {view}) than this run draws: {_what_changed(made_with)}; use "
        "what it was made with, or build another cache"
    )


def _spread(num_rows: int, count: int, draw: random.Random) -> list[int]:
    """Up to `count` of `num_rows` places, one drawn from each equal stretch."""
    count = min(count, num_rows)
    return [int((stretch + draw.random()) * num_rows / count) for stretch in range(count)]


def _what_changed(made_with: Mapping[str, Any]) -> str:
    """Names the libraries whose versions differ, or else the image."""
    now = transform_versions()
    changed = [name for name in now if name in made_with and made_with[name] != now[name]]
    if changed:
        return ", ".join(f"{name} {str(made_with[name])[:40]} has become {now[name]}" for name in changed)
    shown = ", ".join(f"{name} {version}" for name, version in now.items())
    return f"the image has changed ({'its libraries are the same' if made_with else 'or a library, now'}: {shown})"


def checked_views(num_views: int) -> list[int]:
    """Up to 64 views, spread evenly."""
    return sorted({round(place) for place in np.linspace(0, num_views - 1, min(_REPLAYED, num_views))})
