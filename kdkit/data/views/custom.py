"""A custom transform: how it is called, what it must return, and whether its views can be drawn again."""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kdkit.data.views.planes import to_planes
from kdkit.errors import ConfigError, ShapeError

AnyTransform = Callable[..., Any]
_VIEWS_DRAWN = 64
_SECONDS_DRAWN = 2.0


class CustomTransform:
    """Applies a custom transform to a PIL image, and checks that the result is uint8 [3, size, size].

    A transform that takes only keywords, as albumentations' Compose does, is called with image=[H, W, 3] uint8; any
    other with the PIL image. A transform with a method `set_random_seed` is seeded by it, since it draws from its own
    generators.

    Args:
        transform: the callable; it returns a PIL image, uint8 [3, H, W], an array uint8 [H, W, 3], or a mapping with
            one of these as "image".
        size: side of the view in pixels, which the callable must return.
    """

    def __init__(self, transform: AnyTransform, size: int) -> None:
        self.transform = transform
        self.size = size
        self._by_keyword = _takes_keywords_alone(transform)

    def __call__(self, image: Image.Image) -> Tensor:
        """The view, uint8 [3, size, size].

        Raises:
            ShapeError: the callable returned another type, dtype or shape.
        """
        seed: Any = getattr(self.transform, "set_random_seed", None)
        if seed is not None:
            seed(random.getrandbits(31))
        # a copy, because a transform may draw on the image, which shows further views
        result = self.transform(image=np.array(image)) if self._by_keyword else self.transform(image.copy())
        pixels = _to_pixels(result["image"] if isinstance(result, dict) else result)
        if pixels.dtype != torch.uint8 or tuple(pixels.shape) != (3, self.size, self.size):
            raise ShapeError(
                f"the transform returned {pixels.dtype} {list(pixels.shape)}, expected torch.uint8 "
                f"[3, {self.size}, {self.size}]: leave normalisation out, end at the recipe's size"
            )
        return pixels


def check_replayable(draw: Callable[[int], Tensor]) -> None:
    """Raises ConfigError if one of 64 views, drawn twice, differs; stops early if drawing takes more than 2 seconds.

    Args:
        draw: draws the view with a given number.
    """
    end = time.monotonic() + _SECONDS_DRAWN
    for view in range(_VIEWS_DRAWN):  # a draw that is rare, in one view of ten, would be missed with a few
        if torch.equal(draw(view), draw(view)):
            if time.monotonic() > end:
                return
            continue
        raise ConfigError(
            "the transform drew two different views from one seed, so it cannot be replayed: let it draw from "
            "`random`, numpy.random or torch's default generator, or give it a method set_random_seed(seed)"
        )


def _takes_keywords_alone(transform: AnyTransform) -> bool:
    if isinstance(transform, nn.Module):
        return False
    try:
        parameters = inspect.signature(transform).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = {parameter.kind for parameter in parameters}
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return not kinds & positional and bool(kinds & {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD})


def _to_pixels(result: Any) -> Tensor:
    if isinstance(result, Image.Image):
        return to_planes(result if result.mode == "RGB" else result.convert("RGB"))
    if isinstance(result, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(result)).movedim(-1, 0).contiguous()
    if isinstance(result, Tensor):
        plain: Tensor = result.as_subclass(Tensor)  # torchvision's v2 returns a subclass
        return plain.contiguous()
    raise ShapeError(f"the transform returned a {type(result).__name__}, expected an image, an array or a tensor")
