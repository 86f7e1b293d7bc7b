"""From a dataclass to flags: every field is one, --config reads a YAML file, --print_config writes one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar, get_type_hints

from jsonargparse import ArgumentParser, set_parsing_settings

from kdkit.cli._preset import COMMANDS as PRESET_COMMANDS
from kdkit.cli._preset import begin_with_preset, spell_out_recipe
from kdkit.errors import KdkitError

Config = TypeVar("Config")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse_config(config_class: type[Config], command: str, arguments: list[str]) -> Config:
    """The `config_class` that the command line describes; exits with 2 on wrong usage."""
    arguments = spell_out_recipe(begin_with_preset(command, arguments))
    description = (config_class.__doc__ or "").splitlines()[0]
    if command in PRESET_COMMANDS:
        description += " With --preset NAME it begins from a published setting: see kdkit presets list."
    parser = ArgumentParser(prog=f"kdkit {command}", description=description)
    parser.add_argument("--config", action="config", help="YAML file of these options")
    parser.add_class_arguments(config_class)
    parsed = parser.parse_args(_gather(arguments, config_class))
    try:
        values: dict[str, Any] = vars(parser.instantiate(parsed))
    except ValueError as error:  # of a part that may be left out; the parser says so at length
        raise error.__cause__ if isinstance(error.__cause__, KdkitError) else error from None
    return config_class(**{name: value for name, value in values.items() if name != "config"})


def parse_argument(name: str, command: str, meaning: str, arguments: list[str]) -> str:
    """The one positional argument of a command; exits with 2 if it is missing."""
    parser = ArgumentParser(prog=f"kdkit {command}")
    parser.add_argument(name, type=str, help=meaning)
    return str(vars(parser.parse_args(arguments))[name])


def parse_nothing(command: str, description: str, arguments: list[str]) -> None:
    """Refuses every argument but --help."""
    ArgumentParser(prog=f"kdkit {command}", description=description).parse_args(arguments)


def _gather(arguments: list[str], config_class: type) -> list[str]:
    """Lists of names as people type them, `--list a --list b,c`, as the one `--list=[a,b,c]` that the parser takes."""
    lists: dict[str, list[str]] = {f"--{name}": [] for name in _name_lists(config_class)}
    ensemble, rest = [], iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        flag = flag.replace("-", "_").replace("__", "--", 1)
        if flag not in lists or not (equals or (value := next(rest, ""))):
            ensemble.append(argument)
        else:
            lists[flag] += [name.strip(" '\"") for name in value.strip("[]()").split(",") if name.strip()]
    return [*ensemble, *(f"{flag}=[{','.join(names)}]" for flag, names in lists.items() if names)]


def _name_lists(config_class: type, prefix: str = "") -> Iterator[str]:
    """The options of a configuration that are lists of names, with dots before those of its parts."""
    for name, kind in get_type_hints(config_class).items():
        if kind in (tuple[str, ...], tuple[str, ...] | None):
            yield prefix + name
        elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _name_lists(kind, f"{prefix}{name}.")
