"""Output folders: never overwritten by accident."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdkit.errors import KdkitError, OutputError, OutputExistsError
from kdkit.runtime import files
from kdkit.runtime.lock import one_writer


@contextmanager
def held_output(folder: str | Path, names: Collection[str], **options: Any) -> Iterator[Path]:
    """Yields the folder that `prepare_output` makes, with the same arguments, and holds it for this process alone.

    Raises:
        OutputExistsError: as for `prepare_output`, or another process writes there.
    """
    if Path(folder).is_dir():
        with one_writer(Path(folder)):
            """Before any file there is removed."""
    prepared = prepare_output(folder, names, **options)
    with one_writer(prepared):
        yield prepared


def prepare_output(
    folder: str | Path,
    names: Collection[str],
    *,
    overwrite: bool,
    checkpoints: Collection[str] | None = None,
    advice: str = "",
) -> Path:
    """Makes a folder for the output, before any work is done.

    Args:
        folder: the folder to make.
        names: names of the files that the caller writes there; only these are ever removed.
        overwrite: whether such files of an earlier run are removed.
        checkpoints: names of checkpoints, to resume the run that left at least one of them. If all are missing, that
            run did not get as far as a checkpoint, and its other files are removed. None without resuming.
        advice: what else may be done about a folder that is not empty, for the error.

    Raises:
        OutputExistsError: it holds a file, and `overwrite` is False or the file is not one of `names`.
        OutputError: it cannot be made or written.
    """
    folder = Path(folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputExistsError(f"the output {str(folder)!r} is a file: choose a folder")
        if folder.is_symlink() and not folder.exists():
            raise OutputError(f"the output {str(folder)!r} is a link that leads nowhere: remove it, or choose a folder")
        for name in names:
            files.remove_leftovers(folder, name)
        found = sorted(place.name for place in folder.iterdir()) if folder.exists() else []
        if checkpoints is not None and not set(checkpoints).isdisjoint(found):
            files.check_writable(folder)
            return folder
        if found and not overwrite and checkpoints is None:
            raise OutputExistsError(
                f"the output folder {str(folder)!r} is not empty: pass --overwrite to replace what an earlier run "
                f"left, {advice}or choose another folder"
            )
        if foreign := [name for name in found if name not in names]:
            raise OutputExistsError(
                f"the output folder {str(folder)!r} holds {foreign[0]!r}, which is not an output of this command and "
                "would be lost: move it away, or choose another folder"
            )
        for name in found:
            _remove(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        files.check_writable(folder)
    except KdkitError:
        raise
    except OSError as error:
        raise OutputError(f"the output folder {str(folder)!r} cannot be written: {error.strerror}") from error
    return folder


def check_not_input(output: str | Path, inputs: Iterable[str | Path]) -> None:
    """Checks that an output which is replaced is nothing that the command reads, and holds nothing of it.

    Args:
        output: a file, or a folder whose files are replaced.
        inputs: files and folders that are read; names of anything else are left out.

    Raises:
        OutputExistsError: an input would be lost.
    """
    place = Path(output).resolve()
    for name in inputs:
        path = Path(name)
        try:
            found = path.resolve() if str(name) and path.exists() else None
        except OSError:  # a name that is no path
            continue
        if found is None:
            continue
        if found == place or place in found.parents or (place.is_file() and found in place.parents):
            raise OutputExistsError(
                f"the output {str(output)!r} would replace {str(name)!r}, or a part of it, which this command reads: "
                "choose another output"
            )


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink()
