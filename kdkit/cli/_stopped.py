"""What Ctrl-C leaves behind: for each command, what is kept, and which command continues."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from kdkit.runtime.hardware import is_first_process

_NOTHING = "nothing was changed; run the same command again"
_COMPILED = ("torch", "numpy", "torchvision", "h5py", "timm")
_CHECKPOINTS = ("last.pth.tar", "previous.pth.tar")

_parsed: list[Any] = []  # the configuration of the command that runs, as soon as it is known


class Interrupt:
    """SIGINT in the command line's process: the first raises KeyboardInterrupt, wherever the process is.

    Another package may turn that into an error of its own, or drop it; `came` says that it was one. While compiled
    packages are loaded, an exception from within would abort the process, so it ends at once; no work has begun then.

    Args:
        command: the name of the command, "" if there is none.
        ends_process: whether the process ends with the command, as it does on the command line.
    """

    def __init__(self, command: str, *, ends_process: bool) -> None:
        self.came, self._command, self._ends_process = False, command, ends_process
        _parsed.clear()
        if ends_process:
            sys.excepthook = self._show
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell sets it for what runs in the background
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if self._ends_process and any(map(_is_loading, _COMPILED)):
            self.report()
            sys.stdout.flush()
            os._exit(128 + number)
        raise KeyboardInterrupt

    def _show(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """An excepthook: threads that serve the workers may find these gone before the main thread hears of SIGINT."""
        in_thread = threading.current_thread() is not threading.main_thread()
        if not self.came and not (in_thread and isinstance(error, OSError | EOFError)):
            sys.__excepthook__(kind, error, trace)

    def end(self) -> None:
        """The command is done: while the process ends, which takes a second, there is nothing left to stop."""
        if self._ends_process:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def report(self) -> None:
        """Prints, on rank 0, what is kept and which command continues; a further SIGINT then ends the process."""
        if self._ends_process:
            signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
        if is_first_process():
            print(f"kdkit: stopped: {describe_stop(self._command)}", file=sys.stderr, flush=True)


def _is_loading(package: str) -> bool:
    """Whether a package is being imported at this moment."""
    return bool(getattr(getattr(sys.modules.get(package), "__spec__", None), "_initializing", False))


def note_config(config: Any) -> None:
    """Notes the configuration of the command that runs, for `describe_stop`."""
    _parsed[:] = [config]


def describe_stop(command: str) -> str:
    """What a command that was stopped has left, and which command continues, in one line."""
    if not _parsed:
        return _NOTHING
    try:
        return _KEPT.get(command, lambda config: _NOTHING)(_parsed[0])
    except OSError as error:
        return f"what is kept cannot be seen ({error}); run the same command again"


def _of_build(config: Any) -> str:
    return _of_shards(Path(config.output), "the same command resumes the build")


def _of_extension(config: Any) -> str:
    again = "the same command resumes the extension"
    return f"the views that {config.cache!r} had are unchanged; {_of_shards(Path(config.cache), again)}"


def _of_import(config: Any) -> str:
    return _of_shards(Path(config.output), "the same command resumes the import")


def _of_shards(path: Path, again: str) -> str:
    folder = path.with_name(f"{path.name}.parts")
    shards = len(list(folder.glob("v*.h5")))
    if shards == 0:
        return f"no shard is finished yet; {again}"
    return f"{shards} finished shard{'s are' if shards > 1 else ' is'} kept in {str(folder)!r}; {again}"


def _of_pack(config: Any) -> str:
    return f"the shards of {config.cache!r} are kept; the same command packs them"


def _of_training(config: Any) -> str:
    found = [place for name in _CHECKPOINTS if (place := Path(config.output) / name).exists()]
    if found:
        return f"the checkpoint {str(found[0])!r} is kept; the same command with --resume continues"
    return "there is no checkpoint yet; the same command with --resume starts from the beginning"


def _of_demo(config: Any) -> str:
    return f"what is in {config.output!r} is incomplete; kdkit demo --overwrite starts again"


_KEPT: dict[str, Callable[[Any], str]] = {
    "cache build": _of_build,
    "cache extend": _of_extension,
    "cache import": _of_import,
    "cache pack": _of_pack,
    "distill": _of_training,
    "demo": _of_demo,
}
"""Command -> what it leaves; all others write one file at their end, or none."""
