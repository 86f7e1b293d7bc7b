"""The command line: thin, each command calls one Python function of the same name.

This module loads neither torch nor the commands, so that `kdkit --help` answers at once.

Where to look:
    COMMANDS        every command; `kdkit cache build` is cache_build.py, and so on
    _flags.py       short flags (`SHORT_FORMS`), positional arguments; _preset.py reads --preset and --recipe
    _fields.py      fields of a configuration; _parse.py fills it, _help.py prints --help, _defaults.py has the defaults
                    that depend on other fields
    _flag_names.py  the flags of the fields that an error names
    _header.py      the description printed before a build; _loading.py, a notice while torch loads
    _sweep.py       several runs of kdkit distill, one after the other
    _stopped.py     what Ctrl-C leaves behind, and which command continues
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import textwrap
from collections.abc import Sequence

from kdkit._version import __version__
from kdkit.cli._flag_names import note_flags, with_flags
from kdkit.cli._loading import loading_notice
from kdkit.cli._stopped import Interrupt
from kdkit.errors import KdkitError, UsageError, first_line, nearest

COMMANDS = {
    "demo": "train students on scikit-learn's digits with and without a cached teacher",
    "distill": "train a student from a cache, from a live teacher, or from labels alone",
    "evaluate": "measure a student's top-1, top-5 and speed on validation images",
    "export": "write a student as a folder for timm.create_model, and as ONNX",
    "compare": "list runs side by side, the best first",
    "report": "write runs, curves, the best student and a cache as one HTML page",
    "presets list": "list the published settings that --preset takes",
    "presets show": "show a published setting with its sources",
    "teachers list": "list the teacher cards",
    "teachers show": "show a teacher card with its sources",
    "teachers check": "compare a teacher's top-1 on your images with its card",
    "cache estimate": "estimate the size, time and fidelity of a cache from a short sample",
    "cache build": "run a teacher over every view of every image and store its outputs",
    "cache extend": "add views and images to a finished cache",
    "cache prune": "remove the rows of images that the data lacks",
    "cache merge": "write one cache of the different images of several",
    "cache recode": "write a cache again in a smaller codec or with fewer views",
    "cache info": "show what a cache holds and how it was made",
    "cache show": "draw views that the teacher saw, with its predictions and the labels",
    "cache verify": "check all checksums, and run the teacher again on sampled rows",
    "cache import": "import a cache of ml-dr or FKD, or arrays of logits or probabilities",
    "cache pack": "pack a finished folder of shards into one file",
    "cache export": "write decoded rows as npz or safetensors",
    "doctor": "show versions and devices, and which packages are missing",
}
"""Command -> what it does; each is a module of this package with a function `run(arguments)`."""

_HELP = ("-h", "--help")
_OF_THE_SYSTEM = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE),
    errno.ESTALE,
}
"""What a file system refuses in a place that expected nothing of it: no bug of kdkit, so one line."""


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
    note_flags({})
    interrupt = Interrupt(command_of(arguments), ends_process=argv is None)
    try:
        with loading_notice():
            code = _dispatch(arguments)
        sys.stdout.flush()
        interrupt.end()
        return code
    except KeyboardInterrupt:
        interrupt.report()
        return 130
    except Exception as error:
        if interrupt.came and not isinstance(error, BrokenPipeError):
            interrupt.report()
            return 130
        return _report(error, debug=debug)
    except SystemExit as stop:  # --help and --print_config end this way, and SIGTERM
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        if argv is None:  # torch reports workers that end with the process by raising from this signal
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _print_error(text: str) -> None:
    """Writes an error's line in one call: another rank may write its own to the same place."""
    sys.stderr.write(f"kdkit: error: {text}\n")


def _report(error: Exception, *, debug: bool) -> int:
    """Prints an error in one line and returns its exit code; raises it under --debug, or if it is a bug of kdkit."""
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone, e.g. head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if debug:
        raise error
    if isinstance(error, KdkitError):
        _print_error(with_flags(" ".join(str(error).split())))
        return 2 if isinstance(error, UsageError) else 1
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        _print_error(f"{f'{os.fspath(error.filename)!r}: ' if error.filename else ''}{error.strerror}")
        return 1
    if "torch" in sys.modules:
        from kdkit.runtime.memory import is_out_of_memory

        if is_out_of_memory(error):
            reason = first_line(error)
            _print_error(f"not enough memory ({reason}): lower --batch-size, or free memory")
            return 1
    raise error


def command_of(arguments: Sequence[str]) -> str:
    """The name of the command that a command line gives, e.g. "cache build"; "" if it gives none."""
    names = (" ".join(arguments[:length]) for length in (2, 1))
    return next((name for name in names if name in COMMANDS), "")


def _dispatch(arguments: list[str]) -> int:
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):  # bytes of a name that are not UTF-8
            raise UsageError(f"the argument {argument!a} is not text in UTF-8: rename the file, or make a link to it")
    if arguments[:1] == ["--version"]:
        print(f"kdkit {__version__}")
        return 0
    if name := command_of(arguments):
        module = importlib.import_module(f"kdkit.cli.{name.replace(' ', '_')}")
        module.run(arguments[len(name.split()) :])
        return 0
    group = arguments[0] if arguments and any(name.startswith(f"{arguments[0]} ") for name in COMMANDS) else ""
    if arguments in ([], [_HELP[0]], [_HELP[1]], [group], [group, _HELP[0]], [group, _HELP[1]]):
        print(_usage(group))
        return 0
    unknown = " ".join(argument for argument in arguments[:2] if not argument.startswith("-"))
    raise UsageError(f"no command {unknown or arguments[0]!r}{nearest(unknown, COMMANDS)} (see kdkit --help)")


def _usage(group: str) -> str:
    """The list of commands, or of those of one group."""
    shown = {name: text for name, text in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, shown))
    indent = " " * (len("  kdkit   ") + width)
    lines = [
        textwrap.fill(text, 80, initial_indent=f"  kdkit {name:<{width}}  ", subsequent_indent=indent)
        for name, text in shown.items()
    ]
    return "\n".join(
        [
            "Knowledge distillation with teacher caching for timm image models.",
            "",
            *lines,
            "",
            "kdkit COMMAND --help lists its flags; --debug shows tracebacks; kdkit --version.",
        ]
    )


def _exit_on_sigterm(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
