"""From a recipe to the transform that draws its views: PIL image -> uint8 [3, H, W]."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor

from kdkit.config import ReplayRecipe

Transform = Callable[[Image.Image], Tensor]


def create_view_transform(recipe: ReplayRecipe) -> Transform:
    """timm's transform for the recipe, ending in uint8 pixels [3, size, size]; normalisation is the device's work."""
    if not recipe.augment:
        transform: Transform = create_transform(
            recipe.size,
            is_training=False,
            use_prefetcher=True,  # timm's name for: leave the pixels uint8
            interpolation=recipe.interpolation,
            crop_pct=recipe.crop_pct,
        )
        return transform
    transform = create_transform(
        recipe.size,
        is_training=True,
        use_prefetcher=True,
        scale=recipe.scale,
        ratio=recipe.ratio,
        hflip=recipe.hflip,
        color_jitter=recipe.color_jitter,
        auto_augment=recipe.auto_augment,
        interpolation=recipe.interpolation,
    )
    return transform
