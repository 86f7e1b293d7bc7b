"""Finds a dataset that returns another image or label each time, which no view could be drawn from again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from kdkit.data.views.seed import preserve_rng_state, seed_all
from kdkit.errors import DatasetError

_ROWS, _DRAWS = 8, 8
_SECONDS = 2.0


def check_repeatable(load: Callable[[int], tuple[Image.Image, Any]], count: int, name: str) -> None:
    """Loads up to eight samples eight times each, under other seeds; stops after two seconds.

    A sample that cannot be loaded is passed over: the error names it when it is needed.

    Args:
        load: gives image and label of a row.
        count: number of rows.
        name: of the dataset, for the message.

    Raises:
        DatasetError: a sample differed. A change that is rarer than one load in twenty may be missed.
    """
    end = time.monotonic() + _SECONDS
    with preserve_rng_state():
        for row in sorted({step * (count - 1) // (_ROWS - 1) for step in range(_ROWS)} if count else ()):
            first = None
            for draw in range(_DRAWS):
                seed_all(draw)
                try:
                    image, label = load(row)
                except Exception:  # whatever a dataset raises
                    break
                seen = (image.size, np.asarray(image).tobytes(), label)
                if first is not None and seen != first:
                    raise DatasetError(
                        f"the dataset {name} returned another {'label' if seen[1] == first[1] else 'image'} for row "
                        f"{row} when it was loaded again: take its random transform out, kdkit makes the views"
                    )
                first = seen
                if draw and time.monotonic() > end:
                    return
