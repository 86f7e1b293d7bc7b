"""Recipe presets: published settings as YAML, each with its source and with what differs from it.

A preset is no promise of the published number; it is a place to begin from. Options given beside it go before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from kdkit.errors import UnknownNameError, nearest

_SUFFIX = ".yaml"


@dataclass(frozen=True)
class Source:
    """Who says so."""

    cite: str
    """What the source is and what it says."""
    url: str
    """Where to read it."""


@dataclass(frozen=True)
class Preset:
    """One published setting."""

    name: str
    """Its file's name."""
    summary: str
    """One line."""
    processes: int
    """Processes of which each takes `train.batch_size` images."""
    sources: tuple[Source, ...]
    """Where its numbers are from."""
    differs: tuple[str, ...]
    """In what it is not the source's setting."""
    teacher: Mapping[str, Any]
    """Fields of TeacherConfig."""
    recipe: Mapping[str, Any]
    """Fields of ViewRecipe."""
    distill: Mapping[str, Any]
    """Fields of DistillConfig beside these."""

    def options(self, command: str, *, from_cache: bool = False) -> dict[str, Any]:
        """What `command` is given: teacher and recipe, unless they are a cache's, and the training."""
        asked = {"teacher": dict(self.teacher), "recipe": dict(self.recipe)}
        if command != "distill":
            return asked
        return dict(self.distill) if from_cache else {**asked, **self.distill}


def list_presets() -> list[str]:
    """Names of the presets that ship."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX))


def preset_text(name: str) -> str:
    """The preset's YAML as it stands, with its comments.

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
