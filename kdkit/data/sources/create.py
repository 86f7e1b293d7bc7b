"""From what --data says to a source: a folder, an archive, or a dataset that timm knows by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.data import create_dataset

from kdkit.data.sources.archive import TarSource, ZipSource
from kdkit.data.sources.base import ImageSource
from kdkit.data.sources.folder import FolderSource
from kdkit.data.sources.mapped import MappedSource
from kdkit.errors import DatasetError, MissingDependencyError

_STREAMS = ("hfids/", "tfds/", "wds/")


def create_source(name: str | Path) -> ImageSource:
    """The images that `name` means.

    Args:
        name: a folder of class folders, a folder of tar files, a .tar or .zip file, or hfds/NAME or hfds/NAME:SPLIT, a
            Hugging Face dataset as timm.data.create_dataset finds it (split train by default).

    Raises:
        DatasetError: there is no such thing, it holds no images, or it is a stream.
        MissingDependencyError: hfds/ was asked for without the package `datasets`.
    """
    text, path = str(name), Path(name)
    if text.lower().startswith(_STREAMS):
        raise DatasetError(
            f"{text!r} is a stream, without length and ids: a view could not be found again, in the cache or at all; "
            "use hfds/NAME, which is map-style, or write it to a folder"
        )
    if text.lower().startswith("hfds/"):
        return _hugging_face(text)
    if path.suffix.lower() == ".zip":
        return ZipSource(path)
    if path.suffix.lower() == ".tar" or _holds_tars_alone(path):
        return TarSource(path)
    return FolderSource(path)


def _holds_tars_alone(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*.tar")) and not any(inner.is_dir() for inner in path.iterdir())


def _hugging_face(name: str) -> ImageSource:
    name, _, split = name.partition(":")
    try:
        dataset: Any = create_dataset(name, split=split or "train")
    except ImportError as error:
        raise MissingDependencyError(f'{name!r} needs the package datasets: pip install "kdkit[hfds]"') from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DatasetError(f"the dataset {name!r} cannot be loaded: {error}") from error
    return MappedSource(dataset)
