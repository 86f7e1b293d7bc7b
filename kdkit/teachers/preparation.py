"""From images as they arrive to images as a model takes them: size, normalisation, dtype.

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
"""How images of another size are taken."""


class Preparation(nn.Module):
    """One multiply-add from the arriving normalisation to the model's, none where both agree; no device is waited for.

    Args:
        model: whose dtype and device are those of the result; it stays unregistered.
        own: what the model expects.
        arriving: what images arrive in.
        size: (height, width) in pixels that the model is given; None takes them as they are.
        resize: how images of another size become so.
        who: how errors call the model.
    """

    def __init__(
        self,
        model: nn.Module,
        own: Normalization,
        arriving: Normalization,
        size: tuple[int, int] | None,
        resize: Resize,
        who: str,
    ) -> None:
        super().__init__()
        if resize not in get_args(Resize):
            raise ConfigError(f"resize must be one of {', '.join(get_args(Resize))}, got {resize!r}")
        sides: Sequence[int] = (1, 1) if size is None else size
        if len(sides) != 2 or min(sides) < 1:
            raise ConfigError(f"input_size is (height, width) in pixels, at least 1 each, got {size}")
        self._model = (model,)  # a tuple hides it from nn.Module's registry
        self.own, self.arriving, self.size, self.resize, self.who = own, arriving, size, resize, who
        self._refresh_constants()

    _scale: Tensor | None
    _shift: Tensor | None

    def _refresh_constants(self) -> None:
        """Makes the constants anew from their exact values, which a conversion to half precision would round."""
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
        """Images [B, 3, H, W] at the model's size, dtype and normalisation."""
        parameter = next(self._model[0].parameters(), images)
        images = images.to(torch.promote_types(images.dtype, torch.float32))  # rounded to the model's dtype at the end
        if self.size is not None and tuple(images.shape[-2:]) != tuple(self.size):
            images = self._resize(images, self.size)
        if self._scale is not None and self._shift is not None:
            images = torch.addcmul(self._shift.to(images.dtype), images, self._scale.to(images.dtype))
        return images.to(parameter.dtype)

    def _resize(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        if self.resize == "error":
            raise ShapeError(f"{self.who} is to see {list(size)} pixels, got images of {list(images.shape[-2:])}")
        return F.interpolate(images, size, mode=self.resize, antialias=True, align_corners=False)
