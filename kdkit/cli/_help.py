"""The help of a command, at 80 columns: its positional arguments, the short forms, then every field."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator

from kdkit.cli._fields import Field
from kdkit.cli._flags import LETTERS, Grammar
from kdkit.recipe import PRESETS
from kdkit.runtime.layout import COLUMNS

_INDENT = 26
_NOT_TYPED = ("recipe.transform", "recipe.recorded")
"""Fields that code sets, or an importer."""


def describe_command(grammar: Grammar, summary: str) -> str:
    """What `kdkit COMMAND --help` prints."""
    first = [*grammar.positionals.values(), *grammar.short_forms.values()]
    rest = [path for path in grammar.fields if path not in (*first, *_NOT_TYPED)]
    lines = [*_usage(grammar), "", *textwrap.wrap(f"{summary[:1].upper()}{summary[1:]}.", COLUMNS), ""]
    for metavar, path in grammar.positionals.items():
        lines += _entry(metavar.strip("[]"), _meaning(grammar.fields[path], is_positional=True))
    lines += [""] if grammar.positionals else []
    for path in grammar.short_forms.values():
        letter = "".join(f"{letter}, " for letter, flag in LETTERS.items() if flag == f"--{path}")
        lines += _entry(letter + _with_metavar(grammar, path), _meaning(grammar.fields[path]))
        if path.startswith("recipe.") and not any("--recipe " in line for line in lines):
            lines += _entry(
                "--recipe NAME",
                f"Published recipe to start from, which other recipe flags override: {', '.join(PRESETS)}.",
            )
    if grammar.takes_preset:
        lines += _entry("--preset NAME", "Published setting that flags override; see kdkit presets list.")
    if grammar.takes_sweep:
        lines += _entry(
            "--sweep VALUES",
            'Train one student for each combination of values, e.g. "loss=kl,dkd lr=1e-3,3e-4", each in a folder of '
            "its own below the output; the same command resumes.",
        )
    if grammar.fields:
        lines += _entry("--config FILE", "YAML file of these fields; --print_config prints one.")
    lines += _entry("--debug", "Show the traceback of an error.")
    if rest:
        lines += ["", "Further fields:"]
    for path in rest:
        lines += _entry(_with_metavar(grammar, path), _meaning(grammar.fields[path]))
    if grammar.short_forms and any("." in path for path in grammar.short_forms.values()):
        pairs = [
            f"{grammar.spell(s)} is {grammar.spell(path)}" for s, path in grammar.short_forms.items() if "." in path
        ]
        lines += ["", *textwrap.wrap(f"Long forms: {', '.join(pairs)}.", COLUMNS, break_on_hyphens=False)]
    return "\n".join(lines)


def _usage(grammar: Grammar) -> list[str]:
    """The usage line: command, positional arguments, required flags."""
    required = [
        f"{'-o' if path == 'output' else grammar.shortest(path)} {field.metavar}"
        for path, field in grammar.fields.items()
        if field.is_required and path not in grammar.positionals.values()
    ]
    words = ["usage: kdkit", grammar.command, *grammar.positionals, *required, *["[flags]"] * bool(grammar.fields)]
    return textwrap.wrap(" ".join(words), COLUMNS, subsequent_indent="    ", break_on_hyphens=False)


def _entry(flag: str, meaning: str) -> Iterator[str]:
    """A flag with its meaning next to it, or below it if the flag is long."""
    wrapped = textwrap.wrap(meaning, COLUMNS - _INDENT, break_on_hyphens=False) or [""]
    beside = len(flag) + 3 <= _INDENT - 1
    yield f"  {flag}".ljust(_INDENT) + wrapped[0] if beside else f"  {flag}"
    for line in wrapped[1:] if beside else wrapped:
        yield " " * _INDENT + line


def _with_metavar(grammar: Grammar, path: str) -> str:
    field, flag = grammar.fields[path], grammar.shortest(path)
    return flag if field.is_flag else f"{flag} {field.metavar}"


def _meaning(field: Field, *, is_positional: bool = False) -> str:
    """The field's docstring with its choices and its default, unless it names them already."""
    text = field.meaning
    default = field.default
    if default is True:
        otherwise = text.partition("; otherwise ")[2]
        return f"{otherwise[:1].upper()}{otherwise[1:]}"
    named = field.expected.replace(" or ", ", ").split(", ")
    is_listed = "{" in field.metavar or all(name in text for name in named if not name.startswith("a "))
    if " or " in field.expected and not is_listed:
        text += f" One of {field.expected}."
    if is_positional or default is dataclasses.MISSING or field.is_flag or default in (None, "", (), {}):
        return text
    shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
    return text if "default" in text else f"{text} Default: {shown}."
