"""The normalisation of a model's input, as it is named on the command line."""

from __future__ import annotations

import math
from typing import Final

from kdkit.errors import ConfigError, nearest

NAMES: Final = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Name -> mean and std of pixels from 0 to 1, as in timm.data.constants; `none` leaves them from 0 to 1."""
_CHANNELS = 3


def parse_normalization(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the channels [3], each of pixels from 0 to 1.

    Args:
        text: a name, or MEAN/STD with one number or three each, e.g. "0.5/0.5" or "0.48,0.45,0.40/0.23,0.22,0.22".

    Raises:
        ConfigError: it is neither.
    """
    if text in NAMES:
        return NAMES[text]
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
    except ValueError as error:
        raise _odd(text) from error
    mean, std = (part * _CHANNELS if len(part) == 1 else part for part in (mean, std))
    if len(mean) != _CHANNELS or len(std) != _CHANNELS or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise _odd(text)
    return mean, std


def format_normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """Inverse of `parse_normalization`."""
    return "/".join(",".join(repr(float(number)) for number in part) for part in (mean, std))


def _odd(text: str) -> ConfigError:
    return ConfigError(
        f"normalization must be {', '.join(NAMES)}, or MEAN/STD with one number or three each and a std above 0, as "
        f"0.485,0.456,0.406/0.229,0.224,0.225, got {text!r:.80}{nearest(text, NAMES)}"
    )
