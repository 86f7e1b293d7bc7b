"""--preset NAME: a published setting's options, before those that are given beside it; --recipe NAME: a recipe's."""

from __future__ import annotations

import json

from kdkit.recipe import PRESETS

_FLAG = "--preset"
COMMANDS = ("cache build", "cache estimate", "distill")
"""The commands that take it."""


def begin_with_preset(command: str, arguments: list[str]) -> list[str]:
    """`arguments` with `--preset NAME` replaced by that preset's options, as a configuration that comes first."""
    if command not in COMMANDS:
        return arguments
    names, rest = [], iter(arguments)
    ensemble = []
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag == _FLAG:
            names.append(value if equals else next(rest, ""))
        else:
            ensemble.append(argument)
    if not names:
        return ensemble
    import yaml

    from kdkit.presets import load_preset

    from_cache = any(argument.partition("=")[0] == "--cache" for argument in ensemble)
    options = load_preset(names[-1]).options(command, from_cache=from_cache)
    return [f"--config={yaml.safe_dump(options)}", *ensemble]


def spell_out_recipe(arguments: list[str]) -> list[str]:
    """`arguments` with `--recipe NAME`, a preset of ViewRecipe, replaced by its fields, which later flags replace."""
    spelt_out: list[str] = []
    for argument in arguments:
        if spelt_out[-1:] == ["--recipe"]:
            argument = f"{spelt_out.pop()}={argument}"
        name = argument.removeprefix("--recipe=")
        spelt_out += _recipe_flags(name) if name != argument and name in PRESETS else [argument]
    return spelt_out


def _recipe_flags(name: str) -> list[str]:
    texts = {field: value if isinstance(value, str) else json.dumps(value) for field, value in PRESETS[name].items()}
    return [f"--recipe.{field}={text}" for field, text in texts.items()]
