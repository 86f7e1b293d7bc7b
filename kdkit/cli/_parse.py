"""Turn a dataclass into flags: one per field; --config reads a YAML file, --print_config writes one."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser

from kdkit.bounds import shown
from kdkit.cli import COMMANDS
from kdkit.cli._flag_names import note_flags
from kdkit.cli._flags import PRINT_FLAG, Grammar
from kdkit.cli._help import describe_command
from kdkit.cli._stopped import note_config
from kdkit.errors import KdkitError, UsageError, first_line, nearest
from kdkit.runtime.reading import read_yaml

Config = TypeVar("Config")
Defaults = Callable[[Config, Set[str]], Mapping[str, object]]

_MAX_ALIASES = 100  # yaml.dump writes one where a list occurs twice
_MAX_ITEMS = 2048  # the configuration of a run has 300; jsonargparse takes seconds for a list of 10,000
_STANDS_FOR = {"format": "arrays"}  # a required field that is not given; for others any text does
_REQUIRED = re.compile(r"following arguments are required: (.+)")
_KEY = re.compile(r'Parser key "([\w.]+)"')
_UNKNOWN = re.compile(r"Option '([\w.]+)' is not accepted")


def parse_config(
    config_class: type[Config],
    command: str,
    arguments: list[str],
    positionals: Mapping[str, str] | None = None,
    defaults: Defaults[Config] | None = None,
) -> Config:
    """The `config_class` that the command line describes.

    Args:
        config_class: the dataclass that the flags fill.
        command: the command's name, e.g. "cache build".
        arguments: the arguments after the command.
        positionals: the positional arguments: metavar -> field; a metavar in brackets may be left out.
        defaults: from the configuration and the names of the fields that are given, field -> its default, for those
            whose default depends on other fields.

    Raises:
        UsageError: the command takes no such flag or value, or something is missing.
        ConfigError: the values cannot work together.
        SystemExit: help or the configuration was printed.
    """
    grammar = Grammar(command, config_class, positionals or {})
    note_flags({path: grammar.shortest(path) for path in grammar.fields})
    if "-h" in arguments or "--help" in arguments:
        print(describe_command(grammar, COMMANDS[command]))
        raise SystemExit(0)
    parser = ArgumentParser(prog=f"kdkit {command}", exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(config_class)
    long_forms = grammar.to_long_forms(arguments)
    _check_config_files(arguments)  # as given: a preset becomes the text of a configuration in the long forms
    try:
        if defaults is not None:
            long_forms += _dependent(defaults, config_class, parser, grammar, long_forms)
        config = _create(config_class, parser, long_forms)
    except (ArgumentError, TypeError) as error:
        raise UsageError(_reason(str(error), grammar)) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config names a file that is not YAML ({first_line(error)})") from error
    except ValueError as error:  # of a part that may be left out, about which the parser writes many lines
        found = next((cause for cause in (error, error.__cause__) if isinstance(cause, KdkitError)), None)
        raise found or UsageError(_reason(str(error), grammar)) from None
    note_config(config)
    return config


def _dependent(
    defaults: Defaults[Config],
    config_class: type[Config],
    parser: ArgumentParser,
    grammar: Grammar,
    long_forms: Sequence[str],
) -> list[str]:
    """The long flags of defaults that depend on other fields; what is only printed need not be complete for that."""
    given = _given(long_forms)
    flags = [flag for flag in long_forms if flag != PRINT_FLAG]
    if PRINT_FLAG in long_forms:
        missing = [path for path, field in grammar.fields.items() if field.is_required and path not in given]
        flags += [f"--{path}={_STANDS_FOR.get(path, '.')}" for path in missing]
    found = defaults(_create(config_class, parser, flags), given)
    return [f"--{name}={value}" for name, value in found.items() if name not in given]


def _create(config_class: type[Config], parser: ArgumentParser, long_forms: list[str]) -> Config:
    values: dict[str, Any] = vars(parser.instantiate(parser.parse_args(long_forms)))
    return config_class(**{name: value for name, value in values.items() if name != "config"})


def _check_config_files(arguments: Sequence[str]) -> None:
    """Reads each file of --config once, within the bounds of any document; jsonargparse has none."""
    for number, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag == "--config" and (value or number + 1 < len(arguments)):
            path = value or arguments[number + 1]
            found = read_yaml(path, error=_not_config, max_items=_MAX_ITEMS, max_aliases=_MAX_ALIASES)
            if not isinstance(found, Mapping):
                raise _not_config(f"{path!r} holds {shown(found)}, expected fields, as --print_config writes them")


def _given(long_forms: Sequence[str]) -> set[str]:
    """The fields that flags, configuration files and a preset, which is the text of one, give a value."""
    found = set()
    for flag in long_forms:
        name, _, value = flag.removeprefix("--").partition("=")
        if name == "config":
            found |= set(_filled(yaml.safe_load(value if "\n" in value else Path(value).read_text(encoding="utf-8"))))
        else:
            found.add(name)
    return found


def _filled(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The paths of the values in a configuration, but for null."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _filled(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}"


def _not_config(reason: str) -> UsageError:
    return UsageError(f"--config names no configuration that can be read: {reason}")


def _reason(text: str, grammar: Grammar) -> str:
    """jsonargparse's message in one line, in the words of this command line."""
    if found := _REQUIRED.search(text):
        part = f"{_KEY.findall(text)[0]}." if _KEY.search(text) else ""
        names = [grammar.shortest(f"{part}{name}") for name in found[1].split(", ")]
        listed = " and ".join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:])
        return f"{listed} {'is' if len(names) == 1 else 'are'} missing (see kdkit {grammar.command} --help)"
    if found := _UNKNOWN.search(text):
        return f"the configuration has no field {found[1]!r}{nearest(found[1], grammar.fields)}"
    if keys := _KEY.findall(text):
        values = re.findall(r"(?:Given value|Got value): (.+)", text)
        path = next(
            (".".join(keys[:n]) for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in grammar.fields), keys[0]
        )
        expected = grammar.fields[path].expected if path in grammar.fields else ""
        return f"{path} cannot be {values[0] if values else 'that'}" + (f": it takes {expected}" if expected else "")
    return " ".join(text.split())
