"""The flags of the fields that an error names: errors come from Python functions, in which a field is class_map."""

from __future__ import annotations

import re
from collections.abc import Mapping

_WORD = re.compile(r"(?<![\w.'\"/\\-])[a-z][a-z0-9]*(?:_[a-z0-9]+)+(?![\w.'\"/\\-])")
_MOST = 3

_flags: dict[str, str] = {}  # field as Python names it -> flag, of the command that runs


def note_flags(flags: Mapping[str, str]) -> None:
    """Notes the flags of the command that runs: path of a field, e.g. teacher.class_map, -> flag."""
    _flags.clear()
    told = {flag.removeprefix("--").replace("-", "_") for flag in flags.values()}
    for path, flag in flags.items():
        name = path.rpartition(".")[2]
        if name not in told:  # else the name itself tells
            _flags.setdefault(name, flag)


def with_flags(message: str) -> str:
    """The message, with the flags of the fields that it names by their Python names only."""
    named = {word: _flags[word] for word in _WORD.findall(message) if word in _flags}
    unsaid = [f"{word} is {flag}" for word, flag in named.items() if flag not in message][:_MOST]
    return f"{message} ({', '.join(unsaid)})" if unsaid else message
