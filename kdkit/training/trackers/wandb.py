"""Weights & Biases, and modules with the same functions init, log and finish, such as trackio."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from typing import Any

from kdkit.errors import MissingDependencyError
from kdkit.training.trackers.tracker import Record, Run, numbers


class WandbLike:
    """A module with wandb's init, log and finish.

    Args:
        module: its name.
        run: the run that is tracked; a run that resumes in the same folder has the same id.

    Raises:
        MissingDependencyError: there is no such module, or it lacks one of the functions.
    """

    def __init__(self, module: str, run: Run) -> None:
        try:
            self._module: Any = importlib.import_module(module)
        except ImportError as error:
            raise MissingDependencyError(f"the tracker {module!r} is not installed: pip install {module}") from error
        missing = [name for name in ("init", "log", "finish") if not callable(getattr(self._module, name, None))]
        if missing:
            raise MissingDependencyError(
                f"the module {module!r} has no function {missing[0]}: expected wandb's or trackio's functions"
            )
        identity = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:16]
        options = {"project": run.project, "name": run.folder.name, "config": dict(run.config)}
        options |= {"resume": "allow", "id": identity}
        known = inspect.signature(self._module.init).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            options = {name: value for name, value in options.items() if name in known}  # trackio has no id
        self._module.init(**options)

    def log(self, record: Record, step: int) -> None:
        """Passes on every number of the record."""
        self._module.log(numbers(record), step=step)

    def rewind(self, step: int) -> None:
        """Does nothing: the tracker keeps the first record of each step."""

    def close(self) -> None:
        """Ends the run."""
        self._module.finish()


Wandb = functools.partial(WandbLike, "wandb")
Trackio = functools.partial(WandbLike, "trackio")
