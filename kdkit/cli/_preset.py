"""--preset NAME: a published setting's options, before those that are given beside it."""

from __future__ import annotations

_FLAG = "--preset"
COMMANDS = ("cache build", "cache estimate", "distill")
"""The commands that take it."""


def begin_with_preset(command: str, arguments: list[str]) -> list[str]:
    """`arguments` with `--preset NAME` replaced by that preset's options, as a configuration that comes first."""
    if command not in COMMANDS:
        return arguments
    names, rest = [], iter(arguments)
    others = []
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag == _FLAG:
            names.append(value if equals else next(rest, ""))
        else:
            others.append(argument)
    if not names:
        return others
    import yaml

    from kdkit.presets import load_preset

    from_cache = any(argument.partition("=")[0] == "--cache" for argument in others)
    options = load_preset(names[-1]).options(command, from_cache=from_cache)
    return [f"--config={yaml.safe_dump(options)}", *others]
