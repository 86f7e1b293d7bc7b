"""From a recipe to the transform that draws its views: PIL image -> uint8 [3, H, W]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor

from kdkit.config import ReplayRecipe
from kdkit.errors import ConfigError

Transform = Callable[[Image.Image], Tensor]


def create_view_transform(recipe: ReplayRecipe) -> Transform:
    """timm's transform for the recipe, ending in uint8 pixels [3, size, size]; normalisation is the device's work."""
    options: dict[str, Any] = {"interpolation": recipe.interpolation, "use_prefetcher": True}  # timm's way to say uint8
    if recipe.augment:
        options |= {
            "scale": recipe.scale,
            "ratio": recipe.ratio,
            "hflip": recipe.hflip,
            "color_jitter": recipe.color_jitter,
            "auto_augment": recipe.auto_augment,
        }
    else:
        options |= {"crop_pct": recipe.crop_pct}
    try:
        transform: Transform = create_transform(recipe.size, is_training=recipe.augment, **options)
    except (AssertionError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"timm makes no transform of auto_augment={recipe.auto_augment!r}: {error}") from error
    return transform
