"""The command line: thin, each command calls one Python function of the same name.

This module loads neither torch nor the commands, so that `kdkit --help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from kdkit._version import __version__
from kdkit.errors import KdkitError, nearest

COMMANDS = {
    "demo": "the whole story on real digits, a few minutes of CPU, no download",
    "distill": "train a student from a cache or a live teacher",
    "evaluate": "a student's top-1, top-5 and speed on a validation folder",
    "export": "a student as a folder that timm.create_model loads, and as ONNX",
    "compare": "runs side by side: what they were and what came of them",
    "report": "a page in one file: runs, their curves and best student, a cache and its images",
    "presets list": "published settings to begin from",
    "presets show": "one of them, with its sources",
    "teachers list": "the teacher cards",
    "teachers show": "one card with its sources",
    "teachers check": "a teacher's top-1 on your images beside its card's",
    "cache estimate": "bytes and time of a cache, and what it would keep of the teacher, from a short look",
    "cache build": "ask a teacher about every view of every image, and keep what it says",
    "cache extend": "add views to a finished cache",
    "cache info": "what a cache holds and what it was made with",
    "cache show": "a sheet of views that the teacher saw, with its predictions and the labels",
    "cache verify": "compare every checksum, and rows with what the teacher says now",
    "cache pack": "make one file of a finished folder of shards",
    "cache export": "decoded rows as npz or safetensors",
    "doctor": "versions, devices, and what is missing",
}
"""Command -> what it does; each is a module of this package with a function `run(arguments)`."""

_HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` names and returns the exit code.

    0 done; 1 a KdkitError, as one line on standard error (with its traceback under --debug); 2 wrong usage;
    130 and 143 for SIGINT and SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # before h5py is imported: no plugin is ever loaded
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except KdkitError as error:
        if debug:
            raise
        print(f"kdkit: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kdkit: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, e.g. head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as stop:  # jsonargparse ends this way after --help and after wrong usage
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"kdkit {__version__}")
        return 0
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in COMMANDS:
            module = importlib.import_module(f"kdkit.cli.{name.replace(' ', '_')}")
            module.run(arguments[length:])
            return 0
    group = arguments[0] if arguments and any(name.startswith(f"{arguments[0]} ") for name in COMMANDS) else ""
    if arguments in ([_HELP[0]], [_HELP[1]], [group], [group, _HELP[0]], [group, _HELP[1]]):
        print(_usage(group))
        return 0
    unknown = " ".join(argument for argument in arguments[:2] if not argument.startswith("-"))
    hint = f"no command {unknown!r}{nearest(unknown, COMMANDS)}" if unknown else "a command is needed"
    print(f"kdkit: {hint} (see kdkit --help)", file=sys.stderr)
    return 2


def _usage(group: str) -> str:
    """The list of commands, or of those of one group."""
    shown = {name: text for name, text in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, shown))
    lines = [f"  kdkit {name:<{width}}  {text}" for name, text in shown.items()]
    return "\n".join(
        [
            "Knowledge distillation with teacher caching for timm image models.",
            "",
            *lines,
            "",
            "kdkit COMMAND --help lists a command's options; --debug shows tracebacks; --version.",
        ]
    )


def _exit_on_sigterm(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
