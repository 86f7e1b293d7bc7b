"""What renders the views of a recipe: its own transform, a custom one, or the record of each view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdkit.data.views.custom import CustomTransform
from kdkit.data.views.recorded import RecordedRenderer
from kdkit.data.views.transform import Transform, create_view_transform
from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe


def create_renderer(
    recipe: ViewRecipe, size: int, transform: Callable[..., Any] | None = None
) -> Transform | RecordedRenderer:
    """The renderer of views with sides of `size` pixels.

    Args:
        recipe: the settings of the views.
        size: side of the view in pixels.
        transform: a custom transform, whose identity the recipe names.

    Raises:
        ConfigError: the recipe is for a custom transform, and there is none; or it cannot be rendered.
    """
    if recipe.recorded is not None:
        return RecordedRenderer(recipe, size)
    if transform is not None:
        return CustomTransform(transform, size)
    if recipe.transform is not None:
        raise ConfigError(f"the recipe is for the transform {recipe.transform!r}: ReplayedDataset(..., transform=...)")
    return create_view_transform(recipe, size)
