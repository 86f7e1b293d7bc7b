"""Trackers: destinations of a run's metrics besides its files. A new one is a module of this package and a line in
TRACKERS."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

from kdkit.bounds import shown
from kdkit.errors import ConfigError, KdkitError, MissingDependencyError, UnknownNameError, first_line, nearest
from kdkit.training.trackers.tracker import Run, Tracker

TENSORBOARD = "tensorboard"
"""Name of a tracker, and of the folder of its files in a run's output folder."""

TRACKERS = {
    TENSORBOARD: "kdkit.training.trackers.tensorboard:TensorBoard",
    "trackio": "kdkit.training.trackers.wandb:Trackio",
    "wandb": "kdkit.training.trackers.wandb:Wandb",
}
"""Name -> module:NAME of a class, or a function, that makes a Tracker of a Run."""

_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_METHODS = ("log", "rewind", "close")


def check_tracker(name: str) -> None:
    """Checks that a name is one of TRACKERS, or written as module:NAME; imports nothing.

    Raises:
        UnknownNameError: it is neither.
    """
    if name not in TRACKERS and not _OWN.fullmatch(name):
        raise UnknownNameError(
            f"there is no tracker {shown(name)}{nearest(name, TRACKERS)}: expected one of {', '.join(TRACKERS)}, or "
            "the module:NAME of your own"
        )


def create_tracker(name: str, run: Run) -> Tracker:
    """The tracker called `name` in TRACKERS, or a user's own, given as `module:NAME`.

    Raises:
        UnknownNameError: there is no such tracker.
        MissingDependencyError: its module is not installed.
        ConfigError: the module has no such NAME, or it makes no tracker of a run.
    """
    check_tracker(name)
    make = _import(name)
    try:
        tracker: Tracker = make(run)
    except KdkitError:
        raise
    except (Exception, SystemExit) as error:  # of the user's own, or of a service that it logs in to
        raise ConfigError(
            f"the tracker {name!r} could not be made of a kdkit.training.trackers.Run: {_reason(error)}"
        ) from error
    if missing := [method for method in _METHODS if not callable(getattr(tracker, method, None))]:
        raise ConfigError(
            f"the tracker {name!r} makes a {type(tracker).__name__}, which has no method {missing[0]}: expected the "
            f"methods {', '.join(_METHODS)} of kdkit.training.trackers.Tracker"
        )
    return tracker


def _import(name: str) -> Callable[[Run], Tracker]:
    module, _, attribute = TRACKERS.get(name, name).partition(":")
    try:
        found: Callable[[Run], Tracker] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise MissingDependencyError(f"the tracker {name!r} cannot be imported: {error}; install it first") from error
    except AttributeError as error:
        raise ConfigError(f"the module {module!r} has no {attribute!r}: give the tracker as module:NAME") from error
    except (Exception, SystemExit) as error:  # whatever a user's module does when it is imported
        raise ConfigError(f"the module {module!r} of the tracker cannot be imported: {_reason(error)}") from error
    return found


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


__all__ = ["TENSORBOARD", "TRACKERS", "Run", "Tracker", "check_tracker", "create_tracker"]
