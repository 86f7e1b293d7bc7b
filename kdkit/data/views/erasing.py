"""Random erasing (Zhong et al. 2017, arXiv 1708.04896) of uint8 pixels, with the same draws at every size.

timm erases after normalisation. Here teacher and student must see the same pixels though their normalisations may
differ, so the uint8 pixels are erased, with colours drawn in ImageNet's normalisation and clipped to 0 to 255. Area,
aspect ratio and position are drawn as fractions, so one draw can be rendered at two sizes.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from kdkit.types import IMAGENET_MEAN, IMAGENET_STD

_AREA = (0.02, 1 / 3)
_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))
_ATTEMPTS = 10


class Erasing:
    """Erases up to `max_count` rectangles of an image with a probability, by timm's ranges.

    Args:
        probability: probability that a view is erased at all.
        mode: const fills with ImageNet's mean, rand with one normally distributed colour, pixel with a normally
            distributed colour per pixel.
        max_count: maximum number of rectangles; the area is shared among them.
    """

    def __init__(self, probability: float, mode: str, max_count: int) -> None:
        self.probability = probability
        self.mode = mode
        self.max_count = max_count
        self._mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float32, device="cpu").mul(255).view(3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, dtype=torch.float32, device="cpu").mul(255).view(3, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        """The image, uint8 [3, H, W], erased in place."""
        if random.random() >= self.probability:
            return image
        count = random.randint(1, self.max_count)
        for _ in range(count):
            self._erase_one(image, count)
        return image

    def _erase_one(self, image: Tensor, count: int) -> None:
        _, height, width = image.shape
        for _ in range(_ATTEMPTS):
            area = random.uniform(*_AREA) / count
            ratio = math.exp(random.uniform(*_LOG_RATIO))
            tall, wide = math.sqrt(area * ratio), math.sqrt(area / ratio)  # as shares of the image's sides
            if tall < 1 and wide < 1:
                h, w = round(tall * height), round(wide * width)
                top, left = round(random.random() * (height - h)), round(random.random() * (width - w))
                image[:, top : top + h, left : left + w] = self._fill(h, w)
                return

    def _fill(self, h: int, w: int) -> Tensor:
        if self.mode == "const":
            noise = torch.zeros(3, 1, 1)
        elif self.mode == "rand":
            noise = torch.randn(3, 1, 1)
        else:
            noise = torch.randn(3, h, w)
        return noise.mul_(self._std).add_(self._mean).round_().clamp_(0, 255).to(torch.uint8)
