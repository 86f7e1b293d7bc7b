"""Recipe presets: published settings as YAML, each with its source and its differences from it.

A preset does not promise the published number; it is a starting point. Flags on the command line override the preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

from kdkit.errors import UnknownNameError, nearest

_SUFFIX = ".yaml"


@dataclass(frozen=True)
class Source:
    """A publication of a setting."""

    cite: str
    """Citation, with the figures that were taken from it."""
    url: str
    """Address of the source."""


@dataclass(frozen=True)
class Preset:
    """One published setting."""

    name: str
    """Name of its file."""
    summary: str
    """Description in one line."""
    processes: int
    """Number of processes, each with batches of `train.batch_size` images."""
    sources: tuple[Source, ...]
    """Sources of its numbers."""
    differs: tuple[str, ...]
    """Differences from the source's setting."""
    teacher: Mapping[str, Any]
    """Fields of TeacherConfig."""
    recipe: Mapping[str, Any]
    """Fields of ViewRecipe."""
    distill: Mapping[str, Any]
    """Further fields of DistillConfig."""
    build: Mapping[str, Any] = field(default_factory=dict)
    """Fields of BuildConfig: what a cache for this training holds, unless that is the teacher's logits."""

    def options(self, command: str, *, from_cache: bool = False) -> dict[str, Any]:
        """The options for `command`: teacher and recipe, unless a cache has them, and the training.

        The number of views is that of a cache. With a live teacher the command line then shows new views in each
        epoch, as in the sources; in Python give recipe["num_views"], which is 1 by default.
        """
        shared = {"teacher": dict(self.teacher), "recipe": dict(self.recipe)}
        if command != "distill":
            return {**shared, "build": dict(self.build)} if self.build else shared
        shared["recipe"].pop("num_views", None)
        return dict(self.distill) if from_cache else {**shared, **self.distill}


def list_presets() -> list[str]:
    """Names of the presets that ship."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX))


def preset_text(name: str) -> str:
    """The preset's YAML text, with its comments.

    Raises:
        UnknownNameError: there is no such preset.
    """
    if name not in list_presets():
        known = list_presets()
        raise UnknownNameError(f"there is no preset {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    return (resources.files(__name__) / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def load_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        UnknownNameError: there is no such preset.
    """
    values = yaml.safe_load(preset_text(name))
    sources = tuple(Source(**source) for source in values.pop("sources"))
    return Preset(name=name, sources=sources, differs=tuple(values.pop("differs")), **values)
