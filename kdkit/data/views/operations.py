"""The operations of torchvision's RandAugment (Cubuk et al. 2020, arXiv 1909.13719) with an explicit magnitude.

torchvision draws and applies them in one step. A record holds the number of the operation and its magnitude, signed
and in torchvision's units: here they are applied alone, nearest neighbour, what comes from outside the image black.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from kdkit.errors import DatasetError

Operation = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, **changed: Any) -> Image.Image:
    options = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **changed}
    transformed: Image.Image = F.affine(image, interpolation=InterpolationMode.NEAREST, **options)
    return transformed


def _degrees(shear: float) -> float:
    """The angle of a shear by so many pixels per pixel."""
    return math.degrees(math.atan(shear))


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    """With 0 bits black, which Pillow 13 refuses."""
    posterized: Image.Image = F.posterize(image, int(bits)) if bits >= 1 else Image.new(image.mode, image.size)
    return posterized


OPERATIONS: Mapping[str, Operation] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, shear: _affine(image, shear=[_degrees(shear), 0.0], center=[0, 0]),
    "ShearY": lambda image, shear: _affine(image, shear=[0.0, _degrees(shear)], center=[0, 0]),
    "TranslateX": lambda image, pixels: _affine(image, translate=[int(pixels), 0]),
    "TranslateY": lambda image, pixels: _affine(image, translate=[0, int(pixels)]),
    "Rotate": lambda image, degrees: F.rotate(image, degrees, interpolation=InterpolationMode.NEAREST),
    "Brightness": lambda image, change: F.adjust_brightness(image, 1.0 + change),
    "Color": lambda image, change: F.adjust_saturation(image, 1.0 + change),
    "Contrast": lambda image, change: F.adjust_contrast(image, 1.0 + change),
    "Sharpness": lambda image, change: F.adjust_sharpness(image, 1.0 + change),
    "Posterize": _posterize,
    "Solarize": F.solarize,
    "AutoContrast": lambda image, _: F.autocontrast(image),
    "Equalize": lambda image, _: F.equalize(image),
}
"""Name -> operation on a PIL image; the number in a record is the place in this order."""
_IN_ORDER = tuple(OPERATIONS.values())


def apply_operation(image: Image.Image, number: int, magnitude: float) -> Image.Image:
    """The image after the operation of that number.

    Raises:
        DatasetError: there is no such operation, or the magnitude is not a number.
    """
    if not (number < len(_IN_ORDER) and math.isfinite(magnitude)):
        raise DatasetError(
            f"the recorded operation {number} with magnitude {magnitude} is none: expected 0 to {len(_IN_ORDER) - 1} "
            "and a finite magnitude"
        )
    return _IN_ORDER[number](image, magnitude)
