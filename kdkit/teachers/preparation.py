"""Preparation of images for a model: size, normalisation, dtype.

Dimensions: B batch, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit.errors import ConfigError, ShapeError
from kdkit.types import Normalization

Resize = Literal["bicubic", "bilinear", "error"]
"""Interpolation to the model's input size; "error" refuses images of another size."""


class Preparation(nn.Module):
    """Resizes images, and brings them to the model's normalisation with one multiply-add; it waits for no device.

    Args:
        model: gives dtype and device of the result; it stays unregistered.
        own: normalisation of the model's input.
        arriving: normalisation of the images that arrive.
        size: (height, width) in pixels of the model's input; None takes images as they are.
        resize: interpolation of images of another size.
        subject: the model's name in errors.
    """

    def __init__(
        self,
        model: nn.Module,
        own: Normalization,
        arriving: Normalization,
        size: tuple[int, int] | None,
        resize: Resize,
        subject: str,
    ) -> None:
        super().__init__()
        if resize not in get_args(Resize):
            raise ConfigError(f"resize must be one of {', '.join(get_args(Resize))}, got {resize!r}")
        sides: Sequence[int] = (1, 1) if size is None else size
        if len(sides) != 2 or min(sides) < 1:
            raise ConfigError(f"input_size is (height, width) in pixels, at least 1 each, got {size}")
        self._model = (model,)  # a tuple hides it from nn.Module's registry
        self.own, self.arriving, self.size, self.resize, self.subject = own, arriving, size, resize, subject
        self._refresh_constants()

    _scale: Tensor | None
    _shift: Tensor | None

    def _refresh_constants(self) -> None:
        """Computes the constants from their exact values, because a conversion to half precision rounds them."""
        reference = next(self._model[0].parameters(), torch.empty(0))
        mean, std, input_mean, input_std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
            for values in (self.own.mean, self.own.std, self.arriving.mean, self.arriving.std)
        )
        same = self.own == self.arriving
        dtype = torch.promote_types(reference.dtype, torch.float32)
        scale = None if same else (input_std / std).to(reference.device, dtype)
        shift = None if same else ((input_mean - mean) / std).to(reference.device, dtype)
        self.register_buffer("_scale", scale, persistent=False)
        self.register_buffer("_shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns images [B, 3, H, W] at the model's size, dtype and normalisation."""
        parameter = next(self._model[0].parameters(), images)
        images = images.to(torch.promote_types(images.dtype, torch.float32))  # rounded to the model's dtype at the end
        if self.size is not None and tuple(images.shape[-2:]) != tuple(self.size):
            images = self._resize(images, self.size)
        if self._scale is not None and self._shift is not None:
            images = torch.addcmul(self._shift.to(images.dtype), images, self._scale.to(images.dtype))
        return images.to(parameter.dtype)

    def _resize(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        if self.resize == "error":
            raise ShapeError(
                f"{self.subject} takes images of {list(size)} pixels, got images of {list(images.shape[-2:])}"
            )
        return F.interpolate(images, size, mode=self.resize, antialias=True, align_corners=False)
