"""Renders an image as its record says; nothing is drawn.

The steps are those of torchvision on PIL images, in the order crop, flip, operations, erasing, so that the pixels are
those that the projects which wrote such records show in training.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from kdkit.data.views.operations import apply_operation
from kdkit.data.views.planes import to_planes
from kdkit.data.views.record import RecordedSteps, unpack_operations, unpack_rectangle
from kdkit.errors import ConfigError, DatasetError
from kdkit.recipe import ViewRecipe

_MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


class RecordedRenderer:
    """Renders an image by its recorded steps.

    Args:
        recipe: names the steps, the size and the interpolation.
        size: side of the view, pixels.

    Raises:
        ConfigError: the steps hold pixels of another size.
    """

    def __init__(self, recipe: ViewRecipe, size: int) -> None:
        assert recipe.recorded is not None
        self._steps = RecordedSteps.parse(recipe.recorded)
        if size != recipe.size and not self._steps.is_scalable:
            raise ConfigError(
                f"operations, erasing and mixing are recorded in pixels of size {recipe.size}: a view of size {size} "
                "would differ; leave teacher_size out"
            )
        self._size = size
        self._mode = _MODES[recipe.interpolation]

    def __call__(self, image: Image.Image, steps: Any) -> Tensor:
        """The view, uint8 [3, size, size], of an RGB image; `steps`: one side of a record.

        Raises:
            DatasetError: the steps do not fit the image.
        """
        view = self._cropped(self._prepared(image), steps)
        if steps["flip"]:
            view = F.hflip(view)
        if self._steps.ops:
            numbers = unpack_operations(steps["ops"], self._steps.ops)
            for number, magnitude in zip(numbers, steps["magnitudes"].tolist(), strict=True):
                view = apply_operation(view, number, magnitude)
        pixels = to_planes(view)
        if self._steps.erasing:
            top, left, height, width = unpack_rectangle(steps["erasing"])
            pixels[:, top : top + height, left : left + width] = 0
        return pixels

    def _prepared(self, image: Image.Image) -> Image.Image:
        """The image that the crop box is in."""
        if self._steps.resize:
            image = F.resize(image, self._steps.resize, self._mode)
        return F.pad(image, self._steps.pad) if self._steps.pad else image

    def _cropped(self, image: Image.Image, steps: Any) -> Image.Image:
        if self._steps.crop == "center":
            centre: Image.Image = F.center_crop(image, self._size)
            return centre
        top, left, height, width = steps["crop"].tolist()
        if self._steps.crop == "fractions":
            top, height = top * image.height, height * image.height
            left, width = left * image.width, width * image.width
        outside = top + height > image.height + 0.5 or left + width > image.width + 0.5
        if outside or not (top >= 0 and left >= 0 and height > 0 and width > 0):
            raise DatasetError(
                f"the recorded crop (top {top:g}, left {left:g}, height {height:g}, width {width:g}) is not inside "
                f"the image of {image.width} x {image.height} pixels: it is another image than the one recorded"
            )
        view: Image.Image = F.resized_crop(image, top, left, height, width, [self._size, self._size], self._mode)
        return view
