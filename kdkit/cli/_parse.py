"""From a dataclass to flags: every field is one, --config reads a YAML file, --print_config writes one."""

from __future__ import annotations

from typing import Any, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

Config = TypeVar("Config")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse_config(config_class: type[Config], command: str, arguments: list[str]) -> Config:
    """The `config_class` that the command line describes; exits with 2 on wrong usage."""
    parser = ArgumentParser(prog=f"kdkit {command}", description=(config_class.__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML file of these options")
    parser.add_class_arguments(config_class)
    values: dict[str, Any] = vars(parser.instantiate(parser.parse_args(arguments)))
    return config_class(**{name: value for name, value in values.items() if name != "config"})


def parse_argument(name: str, command: str, meaning: str, arguments: list[str]) -> str:
    """The one positional argument of a command; exits with 2 if it is missing."""
    parser = ArgumentParser(prog=f"kdkit {command}")
    parser.add_argument(name, type=str, help=meaning)
    return str(vars(parser.parse_args(arguments))[name])


def parse_nothing(command: str, description: str, arguments: list[str]) -> None:
    """Refuses every argument but --help."""
    ArgumentParser(prog=f"kdkit {command}", description=description).parse_args(arguments)
