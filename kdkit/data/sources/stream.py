"""Names of datasets that are streams, which are refused."""

from __future__ import annotations

from kdkit.data.sources.base import ImageSource, SourceOptions
from kdkit.errors import DatasetError

_STREAMS = ("hfids/", "tfds/", "wds/")


def create(name: str, options: SourceOptions) -> ImageSource | None:
    """Raises DatasetError for a stream, and returns None for anything else."""
    if name.lower().startswith(_STREAMS):
        raise DatasetError(
            f"{name!r} is a stream, without length and ids, so a view could not be drawn again: use hfds/NAME, which "
            "is map-style, the folder of WebDataset shards, or write it to a folder"
        )
    return None
