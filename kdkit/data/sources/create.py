"""Opens `data`, as the command line or a custom loop names it, as an image source."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from kdkit.data.sources.base import ImageSource, LabelRule, SourceOptions
from kdkit.data.sources.joined import JoinedSource
from kdkit.data.sources.mapped import MappedSource
from kdkit.data.sources.selection import Unlabelled
from kdkit.errors import ConfigError, DatasetError

_KINDS = ("stream", "hfds", "zip", "tar", "multi_label", "table", "folder")
"""Modules of this package, in the order in which they are tried. Each has `create(name, options)`, which returns the
source that a name refers to, or None if the name is of another kind. A new kind is one module, and one name here."""


def create_source(
    data: Any,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: LabelRule | None = None,
    skip_missing: bool = False,
) -> ImageSource:
    """Opens `data` as an image source.

    Args:
        data: a name or path, or a dataset. A name is one of: a folder of class folders; a flat folder of
            unlabelled images; a .zip or .tar file, or a folder of .tar files, of class folders; a folder of
            WebDataset shards; a .csv, .tsv or .parquet file of paths and labels; hfds/NAME or hfds/NAME:SPLIT, a
            Hugging Face dataset (split train by default). A dataset is a source, a datasets.Dataset, or any map-style
            dataset (see MappedSource). A list of names is their images together, as JoinedSource joins them.
        image_column: column of the images or their paths, if `data` has columns.
        label_column: column of the labels, if `data` has columns; of WebDataset shards, a field of the .json files. For
            several labels per image of a table: columns of 0 and 1 as "sea,city", or a column of names with its
            separator as "tags[|]".
        labels: where labels come from, if the content of `data` does not decide: "folder", the top folder, whatever
            its name; "tar", the name of the tar; "none", no image has a label.
        skip_missing: leaves out empty class folders, dangling links, folders that cannot be listed, image formats that
            Pillow cannot decode, and links in archives, which are errors otherwise. A warning counts them, and
            `skipped` of the source lists them.

    Raises:
        DatasetError: `data` does not exist, holds no images, has ambiguous classes, or is a stream.
        MissingDependencyError: the kind of data needs a package that is not installed.
        ConfigError: an option does not fit the kind of data.
    """
    options = SourceOptions(image_column, label_column, labels, skip_missing)
    if isinstance(data, (list, tuple)) and data and all(isinstance(name, (str, Path)) for name in data):
        return _open(data[0], options) if len(data) == 1 else _join(list(map(str, data)), options)
    return _open(data, options)


def _join(names: list[str], options: SourceOptions) -> ImageSource:
    """The source of several names; columns are those of the data that has any."""
    without, found, refused = replace(options, image_column=None, label_column=None), [], []
    for name in names:
        try:
            found.append(_open(name, options))
        except ConfigError as error:
            if without == options:
                raise
            refused.append(error)
            found.append(_open(name, without))
    if len(refused) == len(names):
        raise refused[0]
    return JoinedSource(found, names)


def _open(data: Any, options: SourceOptions) -> ImageSource:
    """The source of one name, or of a dataset."""
    if not isinstance(data, (str, Path)):
        return _wrap(data, options)
    if not str(data).strip():
        raise DatasetError("the name of the data is empty: expected a folder, an archive, a table or hfds/NAME")
    for kind in _KINDS:
        try:
            found: ImageSource | None = import_module(f"kdkit.data.sources.{kind}").create(str(data), options)
        except OSError as error:  # of the name itself; a source describes its own
            raise DatasetError(f"the data {str(data)!r:.80} cannot be read: {error.strerror or error}") from error
        if found is not None:
            return found
    raise DatasetError(f"kdkit cannot read {str(data)!r}: expected a folder, an archive, a table or hfds/NAME")


def _wrap(data: Any, options: SourceOptions) -> ImageSource:
    """A source for a dataset that is given as an object."""
    options.check_rule(f"a {type(data).__name__}")
    if all(hasattr(data, name) for name in ("keys", "class_names", "__getitem__", "__len__")):
        options.check_no_columns(f"a {type(data).__name__}")
        source: ImageSource = data
        return source if options.labels is None else Unlabelled(source)
    return MappedSource(
        data, image_column=options.image_column, label_column=options.label_column, labels=options.labels
    )
