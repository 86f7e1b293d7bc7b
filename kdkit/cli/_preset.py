"""--preset NAME: a published setting's options, which flags override; --recipe NAME: a published recipe's fields."""

from __future__ import annotations

import json

from kdkit.errors import UsageError, nearest
from kdkit.recipe import PRESETS

COMMANDS = ("cache build", "cache estimate", "distill")
"""The commands that take --preset."""


def as_yaml(command: str, name: str, *, from_cache: bool) -> str:
    """The options that the preset called `name` gives a command, as YAML text.

    Raises:
        UnknownNameError: there is no such preset.
    """
    import yaml

    from kdkit.presets import load_preset

    return yaml.safe_dump(load_preset(name).options(command, from_cache=from_cache))


def recipe_flags(name: str) -> list[str]:
    """The long flags of the fields that the recipe called `name` sets.

    Raises:
        UsageError: there is no such recipe.
    """
    if name not in PRESETS:
        raise UsageError(f"--recipe takes {', '.join(PRESETS)}, got {name!r}{nearest(name, PRESETS)}")
    given = {"augment": True, **PRESETS[name]}  # one of only defaults is still a recipe that was given
    texts = {field: value if isinstance(value, str) else json.dumps(value) for field, value in given.items()}
    return [f"--recipe.{field}={text}" for field, text in texts.items()]
