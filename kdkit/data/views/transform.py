"""Create the transform that renders the views of a recipe: PIL image -> uint8 [3, H, W]."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image, ImageOps
from timm.data.auto_augment import AugmentOp
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import RandomHorizontalFlip

from kdkit.data.views.erasing import Erasing
from kdkit.data.views.planes import to_planes
from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe

Transform = Callable[[Image.Image], Tensor]

_IN_PIXELS = {"TranslateX", "TranslateY", "GaussianBlur", "GaussianBlurRand"}
"""timm's operations whose strength is in pixels, so their effect depends on the size of the image."""


def create_view_transform(recipe: ViewRecipe, size: int | None = None) -> Transform:
    """timm's transform for the recipe, which ends in uint8 pixels [3, size, size]; normalisation follows on the device.

    Args:
        recipe: the settings of the views.
        size: side of the view in pixels; the recipe's by default. The random draws do not depend on it.

    Raises:
        ConfigError: timm makes no such transform, or the recipe cannot be rendered at two sizes.
    """
    options: dict[str, Any] = {"interpolation": recipe.interpolation, "use_prefetcher": True}  # timm then returns uint8
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
        transform: Any = create_transform(size or recipe.size, is_training=recipe.augment, **options)
    except (AssertionError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"timm makes no transform of auto_augment={recipe.auto_augment!r}: {error}") from error
    steps = transform.transforms
    steps[-1] = to_planes  # the same pixels as timm's last step, which only copies them
    if isinstance(steps[-2], RandomHorizontalFlip):  # the same draw and pixels, but planes are quicker to flip
        steps[-2:] = reversed(steps[-2:])
    for operation in _operations(transform):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    if recipe.erasing:
        steps.append(Erasing(recipe.erasing, recipe.erasing_mode, recipe.erasing_count))
    if recipe.teacher_size is not None:
        _check_no_pixel_units(recipe, transform)
    drawn: Transform = transform
    return drawn


def _check_no_pixel_units(recipe: ViewRecipe, transform: Any) -> None:
    """Raises ConfigError for an operation whose effect would differ at the teacher's size."""
    for operation in _operations(transform):
        if operation.name in _IN_PIXELS:
            raise ConfigError(
                f"auto_augment={recipe.auto_augment!r} holds {operation.name}, whose strength is in pixels: a view at "
                f"teacher_size {recipe.teacher_size} would differ from that at size {recipe.size}; leave one out"
            )
    if recipe.erasing and recipe.erasing_mode == "pixel":
        raise ConfigError(
            f"erasing_mode 'pixel' draws a colour for each pixel, so teacher_size {recipe.teacher_size} and size "
            f"{recipe.size} would draw different ones: use const or rand, or leave teacher_size out"
        )


def _operations(transform: Any) -> Iterator[AugmentOp]:
    """timm's augmentation operations anywhere inside a transform."""
    if isinstance(transform, AugmentOp):
        yield transform
    parts = [transform] if isinstance(transform, (list, tuple)) else []
    parts += [getattr(transform, inner, ()) for inner in ("transforms", "ops", "policy")]
    for part in parts:
        for item in part:
            yield from _operations(item)


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's posterize, which also takes the 0 bits that timm's strings sometimes draw and Pillow 13 rejects."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)
