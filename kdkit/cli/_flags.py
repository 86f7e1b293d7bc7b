"""From what people type to the long form of every flag: short forms, objects, bare booleans, lists of names.

This is the one place that reads a command line; what it returns, `--field=value` each, goes to jsonargparse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

import yaml

from kdkit.cli import _preset
from kdkit.cli._fields import Field, fields_of, split_list
from kdkit.errors import UsageError, nearest

SHORT_FORMS: Mapping[str, tuple[str, ...]] = {
    "teacher": ("teacher.model",),
    "arch": ("teacher.arch",),
    "student": ("student",),
    "pretrained": ("pretrained",),
    "cache": ("cache",),
    "views": ("recipe.num_views", "num_views"),
    "size": ("recipe.size", "input_size", "teacher.input_size"),
    "codec": ("build.codec",),
    "bytes": ("build.row_bytes",),
    "streams": ("build.streams",),
    "pack": ("build.pack",),
    "loss": ("distill_loss",),
    "epochs": ("train.epochs", "epochs"),
    "lr": ("train.lr",),
    "batch_size": ("train.batch_size", "build.batch_size", "batch_size"),
    "views_per_decode": ("train.views_per_decode",),
    "workers": ("train.num_workers", "build.num_workers", "num_workers"),
    "device": ("device",),
    "val": ("validation",),
    "like": ("like",),
    "resume": ("resume",),
    "overwrite": ("overwrite",),
    "output": ("output",),
}
"""Short form -> the fields that it may mean; of a command, the first that its configuration has."""

_LETTERS = {"-o": "--output"}
_CONFIG, _RECIPE, _PRESET, _PRINT = "config", "recipe", "preset", "print_config"


class Grammar:
    """The flags and objects of one command.

    Args:
        command: its name, e.g. "cache build".
        config_class: the dataclass that its flags fill.
        objects: what stands first, without a flag: metavar -> field, in order; a metavar in brackets may be left out,
            and a list takes all that follow.
    """

    def __init__(self, command: str, config_class: type, objects: Mapping[str, str]) -> None:
        self.command, self.objects = command, objects
        self.fields: dict[str, Field] = {field.path: field for field in fields_of(config_class)}
        self.short_forms: dict[str, str] = {}
        for short, paths in SHORT_FORMS.items():
            path = next((path for path in paths if path in self.fields), None)
            if path is not None and path not in objects.values():
                self.short_forms[short] = path
        self.takes_recipe = any(path.startswith(f"{_RECIPE}.") for path in self.fields)
        self.takes_preset = command in _preset.COMMANDS

    def to_long_forms(self, arguments: Sequence[str]) -> list[str]:
        """The arguments as `--field=value`, a preset and configuration files first, so that flags replace their values.

        Raises:
            UsageError: there is no such flag, value or object.
        """
        files: list[str] = []
        recipe: list[str] = []
        preset: str | None = None
        values: list[tuple[str, str]] = []
        lists: dict[str, list[str]] = {}
        for name, value in self._read(arguments):
            if name == _CONFIG:
                files.append(f"--{_CONFIG}={value}")
            elif name == _RECIPE:
                recipe = _preset.recipe_flags(value)
            elif name == _PRESET:
                preset = value
            elif name in self.fields and self.fields[name].is_list:
                items = split_list(value) if self._splits_commas(name) else [value]
                lists.setdefault(name, []).extend(items)
            else:
                values.append((name, value))
        if preset is not None:
            from_cache = "cache" in lists
            files.insert(0, f"--{_CONFIG}={_preset.as_yaml(self.command, preset, from_cache=from_cache)}")
        given = [f"--{name}={value}" if name != _PRINT else f"--{name}" for name, value in values]
        return [*files, *recipe, *given, *(f"--{name}={self._as_value(name, items)}" for name, items in lists.items())]

    def _as_value(self, name: str, items: list[str]) -> str:
        """The items of a list as the parser reads them; one path as it is, where the parser reads it as text."""
        if self._splits_commas(name):
            return f"[{','.join(items)}]"
        stands_alone = len(items) == 1 and not self.fields[name].splits_commas and _is_plain_text(items[0])
        return items[0] if stands_alone else json.dumps(items, ensure_ascii=False)

    def _splits_commas(self, name: str) -> bool:
        """Whether one argument may hold several items of a list; the names of files may hold commas."""
        return self.fields[name].splits_commas and name not in self.objects.values()

    def _read(self, arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Field and value of each argument, in order."""
        waiting, objects = list(arguments), list(self.objects.values())
        while waiting:
            argument = waiting.pop(0)
            if argument.startswith("-") and argument != "-":
                yield from self._read_flag(argument, waiting, objects)
            elif objects:
                if not argument:
                    raise UsageError(f"{self.shortest(objects[0])} is empty")
                yield objects[0] if self.fields[objects[0]].is_list else objects.pop(0), argument
            else:
                raise UsageError(f"unexpected argument {argument!r}: this command takes {self.described_objects}")

    def _read_flag(self, argument: str, waiting: list[str], objects: list[str]) -> Iterator[tuple[str, str]]:
        """Field and value of a flag, whose values are taken from those `waiting`."""
        flag, equals, value = argument.partition("=")
        name, is_negated = self._resolve(_LETTERS.get(flag, flag))
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
            while field is not None and field.is_list and not equals and not objects and waiting:
                if waiting[0].startswith("-"):
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
        """Flags that are no field."""
        return [_CONFIG, _PRINT] + [_RECIPE] * self.takes_recipe + [_PRESET] * self.takes_preset

    @property
    def spellings(self) -> list[str]:
        """Every flag as it is shown, the short forms first; of booleans that are on by default, --no-FLAG."""
        return list(dict.fromkeys(self.spell(name) for name in [*self.short_forms, *self._special, *self.fields]))

    def spell(self, name: str) -> str:
        """A flag as help shows it: with dashes in short forms and in one word, underscores in nested fields."""
        field = self.fields.get(self.short_forms.get(name, name))
        negation = "no-" if field is not None and field.is_flag and field.default is True else ""
        return f"--{negation}{name if '.' in name else name.replace('_', '-')}"

    @property
    def described_objects(self) -> str:
        """The objects, e.g. "FILE DATA"."""
        return " ".join(self.objects) or "no arguments but flags"

    def shortest(self, path: str) -> str:
        """How a field is given: as an object, by its short form, or by its long one."""
        for metavar, field in self.objects.items():
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
