"""What draws the views of a recipe: the recipe's own transform, a custom one, or the record of each view."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from kdkit.data.views.custom import CustomTransform
from kdkit.data.views.identity import transform_identity
from kdkit.data.views.recorded_renderer import RecordedRenderer
from kdkit.data.views.transform import Transform, create_view_transform
from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe


def with_identity(recipe: ViewRecipe, transform: Callable[..., Any], name: str | None) -> ViewRecipe:
    """The recipe with the custom transform's identity in it.

    Raises:
        ConfigError: the recipe was made for another transform.
    """
    identity = name or transform_identity(transform)
    if recipe.transform not in (None, identity):
        raise ConfigError(f"the recipe is for the transform {recipe.transform!r}, but this one is {identity!r}")
    return dataclasses.replace(recipe, transform=identity)


def create_renderer(
    recipe: ViewRecipe, size: int, transform: Callable[..., Any] | None
) -> Transform | RecordedRenderer:
    """What draws the recipe's views at `size` pixels.

    Raises:
        ConfigError: the recipe needs a transform that it cannot hold.
    """
    if recipe.recorded is not None:
        return RecordedRenderer(recipe, size)
    if transform is not None:
        return CustomTransform(transform, size)
    if recipe.transform is not None:
        raise ConfigError(f"the recipe is for the transform {recipe.transform!r}: ReplayedDataset(..., transform=...)")
    return create_view_transform(recipe, size)
