"""Trackers: destinations of a run's metrics besides its files. A new one is a module of this package and a line in
TRACKERS."""

from __future__ import annotations

import importlib

from kdkit.errors import ConfigError, MissingDependencyError, UnknownNameError, nearest
from kdkit.training.trackers.tracker import Run, Tracker

TENSORBOARD = "tensorboard"
"""Name of a tracker, and of the folder of its files in a run's output folder."""

TRACKERS = {
    TENSORBOARD: "kdkit.training.trackers.tensorboard:TensorBoard",
    "trackio": "kdkit.training.trackers.wandb:Trackio",
    "wandb": "kdkit.training.trackers.wandb:Wandb",
}
"""Name -> module:NAME of a class, or a function, that makes a Tracker of a Run."""


def create_tracker(name: str, run: Run) -> Tracker:
    """The tracker called `name` in TRACKERS, or a user's own, given as `module:NAME`.

    Raises:
        UnknownNameError: there is no such tracker.
        MissingDependencyError: its module is not installed.
        ConfigError: the module has no such NAME.
    """
    if name not in TRACKERS and ":" not in name:
        raise UnknownNameError(
            f"there is no tracker {name!r}{nearest(name, TRACKERS)}: expected one of {', '.join(TRACKERS)}, or the "
            "module:NAME of your own"
        )
    module, _, attribute = TRACKERS.get(name, name).partition(":")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise MissingDependencyError(f"the tracker {name!r} cannot be imported: {error}; install it first") from error
    except AttributeError as error:
        raise ConfigError(f"the module {module!r} has no {attribute!r}: give the tracker as module:NAME") from error
    tracker: Tracker = make(run)
    return tracker


__all__ = ["TENSORBOARD", "TRACKERS", "Run", "Tracker", "create_tracker"]
