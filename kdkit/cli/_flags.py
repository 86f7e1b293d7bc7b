"""Expand command-line arguments to `--field=value`: short forms, positional arguments, bare booleans, lists.

This is the one place that reads a command line; jsonargparse parses the result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence

import yaml

from kdkit.cli import _preset
from kdkit.cli._fields import Field, fields_of, is_number, split_list
from kdkit.errors import UsageError, nearest

SHORT_FORMS: Mapping[str, tuple[str, ...]] = {
    "teacher": ("teacher.model",),
    "teacher_normalization": ("teacher.normalization",),
    "arch": ("teacher.arch", "arch"),
    "student": ("student",),
    "pretrained": ("pretrained",),
    "cache": ("cache",),
    "views": ("recipe.num_views", "num_views"),
    "size": ("recipe.size", "input_size", "teacher.input_size"),
    "codec": ("build.codec", "codec"),
    "bytes": ("build.row_bytes", "row_bytes"),
    "streams": ("build.streams",),
    "pack": ("build.pack",),
    "loss": ("distill_loss",),
    "epochs": ("train.epochs", "epochs"),
    "lr": ("train.lr",),
    "batch_size": ("train.batch_size", "build.batch_size", "batch_size"),
    "views_per_decode": ("train.views_per_decode",),
    "memory": ("build.memory", "memory"),
    "workers": ("train.num_workers", "build.num_workers", "num_workers"),
    "device": ("device",),
    "val": ("validation",),
    "like": ("like",),
    "resume": ("resume",),
    "overwrite": ("overwrite",),
    "unreadable": ("unreadable", "build.unreadable"),
    "output": ("output",),
}
"""Short form -> the fields that it may mean: the first one that the command's configuration has."""

COMMAND_LINE_DEFAULTS: Mapping[str, Mapping[str, str]] = {"distill": {"train.views_per_decode": "auto"}}
"""Command -> fields whose default on the command line differs from the one in Python."""

LETTERS = {"-o": "--output"}
_CONFIG, _RECIPE, _PRESET, _PRINT, _SWEEP = "config", "recipe", "preset", "print_config", "sweep"
PRINT_FLAG = f"--{_PRINT}"


class Grammar:
    """The flags and positional arguments of one command.

    Args:
        command: its name, e.g. "cache build".
        config_class: the dataclass that its flags fill.
        positionals: the positional arguments: metavar -> field, in order; a metavar in brackets may be left out, and a
            list takes all that follow.
    """

    def __init__(self, command: str, config_class: type, positionals: Mapping[str, str]) -> None:
        self.command, self.positionals = command, positionals
        self.fields: dict[str, Field] = {field.path: field for field in fields_of(config_class)}
        self.short_forms: dict[str, str] = {}
        for short, paths in SHORT_FORMS.items():
            path = next((path for path in paths if path in self.fields), None)
            if path is not None and path not in positionals.values():
                self.short_forms[short] = path
        self.takes_recipe = any(path.startswith(f"{_RECIPE}.") for path in self.fields)
        self.takes_preset = command in _preset.COMMANDS
        self.takes_sweep = command == "distill"

    def to_long_forms(self, arguments: Sequence[str]) -> list[str]:
        """The arguments as `--field=value`, a preset and configuration files first, so that flags override them.

        Raises:
            UsageError: there is no such flag, value or positional argument.
        """
        defaults = [f"--{name}={value}" for name, value in COMMAND_LINE_DEFAULTS.get(self.command, {}).items()]
        files: list[str] = []
        recipe: list[str] = []
        preset: str | None = None
        values: list[tuple[str, str]] = []
        lists: dict[str, list[str]] = {}
        for name, value in self._read(arguments):
            if name == _CONFIG:
                files.insert(0, f"--{_CONFIG}={value}")
            elif name == _RECIPE:
                recipe = _preset.recipe_flags(value)
            elif name == _PRESET:
                preset = value
            elif name in self.fields and self.fields[name].is_list:
                items = split_list(value) if self._splits_commas(name) else [value]
                listed_so_far = lists.get(name, [])
                is_full = len(listed_so_far) + len(items) > (self.fields[name].length or math.inf)
                lists[name] = items if is_full else [*listed_so_far, *items]
            else:
                values.append((name, value))
        if preset is not None:
            from_cache = "cache" in lists
            files.append(f"--{_CONFIG}={_preset.as_yaml(self.command, preset, from_cache=from_cache)}")
        given = [f"--{name}={value}" if name != _PRINT else PRINT_FLAG for name, value in values]
        listed = [f"--{name}={self._as_value(name, items)}" for name, items in lists.items()]
        return [*defaults, *files, *recipe, *given, *listed]

    def _as_value(self, name: str, items: list[str]) -> str:
        """The items of a list as the parser reads them; one path as it is, where the parser reads it as text."""
        if self.fields[name].numbers is not None:
            if items in (["null"], ["None"]):
                return "null"
            return f"[{','.join(items)}]"
        if self._splits_commas(name):
            return json.dumps(items, ensure_ascii=False)  # in quotes, so that a name such as 02 stays a text
        stands_alone = len(items) == 1 and not self.fields[name].splits_commas and _is_plain_text(items[0])
        return items[0] if stands_alone else json.dumps(items, ensure_ascii=False)

    def _splits_commas(self, name: str) -> bool:
        """Whether one argument may hold several items of a list; the names of files may hold commas."""
        return self.fields[name].splits_commas and name not in self.positionals.values()

    def _read(self, arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Field and value of each argument, in order."""
        waiting, positionals = list(arguments), list(self.positionals.values())
        missing = list(positionals)
        while waiting:
            argument = waiting.pop(0)
            if argument.startswith("-") and argument != "-":
                for name, value in self._read_flag(argument, waiting, missing):
                    missing[:] = [path for path in missing if path != name]
                    yield name, value
            elif positionals:
                if not argument:
                    raise UsageError(f"{self.shortest(positionals[0])} is empty")
                missing = positionals[1:]
                yield positionals[0] if self.fields[positionals[0]].is_list else positionals.pop(0), argument
            else:
                raise UsageError(f"unexpected argument {argument!r}: this command takes {self.described_positionals}")

    def _read_flag(self, argument: str, waiting: list[str], missing: list[str]) -> Iterator[tuple[str, str]]:
        """Field and value of a flag, whose values are taken from `waiting`: several if no positional is `missing`."""
        flag, equals, value = argument.partition("=")
        name, is_negated = self._resolve(LETTERS.get(flag, flag))
        field = self.fields.get(name)
        if name == _PRINT:
            yield name, ""
        elif field is not None and field.is_flag:
            yield name, self._boolean(flag, value if equals else None, is_negated, waiting)
        else:
            if not equals and (not waiting or waiting[0].startswith("--")):
                raise UsageError(f"{flag} needs a value{self._example(field)}")
            value = value if equals else waiting.pop(0)
            if not value:
                raise UsageError(f"{flag} needs a value, got an empty one{self._example(field)}")
            if field is not None:
                field.check(flag, value)
            yield name, value
            while field is not None and field.is_list and not equals and not missing and waiting:
                if waiting[0].startswith("-") and not (field.numbers and is_number(waiting[0])):
                    break
                field.check(flag, waiting[0])
                yield name, waiting.pop(0)

    def _resolve(self, flag: str) -> tuple[str, bool]:
        """The field that a flag means, and whether it is negated, as --no-preflight is."""
        name = flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""
        for candidate, is_negated in ((name, False), (name.removeprefix("no_"), name.startswith("no_"))):
            path = self.short_forms.get(candidate, candidate)
            if path in self.fields and (not is_negated or self.fields[path].is_flag):
                return path, is_negated
        parent = name
        while "." in parent:  # --train.opt_options.betas is a name within a mapping
            parent = parent.rpartition(".")[0]
            if parent in self.fields and self.fields[parent].is_mapping:
                return name, False
        if name in self._special:
            return name, False
        raise UsageError(f"no flag {flag}{nearest(flag.replace('_', '-'), self.spellings)}")

    @property
    def _special(self) -> list[str]:
        """Flags that are not configuration fields."""
        taken = {_RECIPE: self.takes_recipe, _PRESET: self.takes_preset, _SWEEP: self.takes_sweep}
        return [_CONFIG, _PRINT, *(name for name, is_taken in taken.items() if is_taken)]

    @property
    def spellings(self) -> list[str]:
        """Every flag as it is shown, the short forms first; `--no-FLAG` for booleans that default to true."""
        return list(dict.fromkeys(self.spell(name) for name in [*self.short_forms, *self._special, *self.fields]))

    def spell(self, name: str) -> str:
        """A flag as help shows it: with dashes in short forms and for top-level names, underscores in nested fields."""
        field = self.fields.get(self.short_forms.get(name, name))
        negation = "no-" if field is not None and field.is_flag and field.default is True else ""
        return f"--{negation}{name if '.' in name else name.replace('_', '-')}"

    @property
    def described_positionals(self) -> str:
        """The positional arguments, e.g. "FILE DATA"."""
        return " ".join(self.positionals) or "no arguments but flags"

    def shortest(self, path: str) -> str:
        """Shortest spelling of a field: as a positional argument, its short form, or its long form."""
        for metavar, field in self.positionals.items():
            if field == path:
                return metavar.strip("[]")
        return self.spell(next((short for short, field in self.short_forms.items() if field == path), path))

    @staticmethod
    def _boolean(flag: str, value: str | None, is_negated: bool, waiting: list[str]) -> str:
        if value is None and waiting and waiting[0].lower() in ("true", "false"):
            raise UsageError(f"{flag} takes no value: leave out {waiting[0]!r}, or give {flag}={waiting[0]}")
        if value is not None and value.lower() not in ("true", "false"):
            raise UsageError(f"{flag} takes no value, or true or false, got {value!r}")
        return str((value is None or value.lower() == "true") != is_negated).lower()

    @staticmethod
    def _example(field: Field | None) -> str:
        return f": {field.expected}" if field is not None and field.expected else ""


def _is_plain_text(value: str) -> bool:
    """Whether YAML reads a value as the text that it is, rather than as null, a number or a list."""
    try:
        return bool(yaml.safe_load(value) == value)
    except yaml.YAMLError:
        return False
