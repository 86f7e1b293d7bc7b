"""Output folders: never written over by accident."""

from __future__ import annotations

import shutil
from pathlib import Path

from kdkit.cache import durable
from kdkit.errors import KdkitError, OutputExistsError


class OutputError(KdkitError, OSError):
    """An output folder that cannot be made or written."""


def prepare_output(folder: str | Path, *, overwrite: bool) -> Path:
    """Makes an empty folder, before any work is done.

    Raises:
        OutputExistsError: it holds something and `overwrite` is False.
        OutputError: it cannot be made or written.
    """
    folder = Path(folder)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not overwrite:
                raise OutputExistsError(
                    f"the output {str(folder)!r} is not an empty folder: pass --overwrite true to replace it, "
                    "or choose another"
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        durable.probe(folder)
    except KdkitError:
        raise
    except OSError as error:
        raise OutputError(f"the output folder {str(folder)!r} cannot be written: {error.strerror}") from error
    return folder
