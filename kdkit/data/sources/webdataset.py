"""WebDataset shards, read in any order: tars in which the files of a sample share a name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image

from kdkit.data.sources.base import Columns, ImageSource, describe
from kdkit.data.sources.image import is_image
from kdkit.data.sources.labels import index_labels
from kdkit.data.sources.listing import is_ignored
from kdkit.data.sources.tar import Member, is_tar_folder, list_members, read_image, tar_files
from kdkit.errors import DatasetError

_LABELS = {"cls", "json"}
_MEMBERS_READ = 100
Sample = dict[str, Member]
"""Extension, lower case without its first dot -> the file of a sample."""


class WebDatasetSource:
    """A folder of WebDataset shards, or one shard, with an index of the position of each image.

    The files of a sample share their name up to its first dot: `0001.jpg`, `0001.cls`. The label is the text of the
    .cls file, or else a field of the .json file; the name of a shard is never a label. Labels are whole numbers, or
    names, which become classes in natural order. A key is the name of the shard and of the sample; images are in the
    order of the shards.

    Args:
        path: folder of .tar files, or one .tar file.
        label_field: field of the .json files that holds the label.

    Raises:
        DatasetError: a shard cannot be read, or a sample has not exactly one image and a label.
    """

    def __init__(self, path: str | Path, *, label_field: str = "label") -> None:
        self.path = Path(path)
        self._images: list[Member] = []
        keys: list[str] = []
        labels: list[object] = []
        for shard in tar_files(self.path):
            for stem, sample in _group(list_members(shard), shard).items():
                key = f"{shard.name}/{stem}"
                image = _image(sample, key)
                if image is not None:
                    keys.append(key)
                    self._images.append(image)
                    labels.append(_label(sample, label_field, key))
        if not keys:
            raise DatasetError(f"the shards in {str(path)!r} hold no images: expected NAME.jpg beside NAME.cls")
        self.keys: Sequence[str] = keys
        self.class_names: Sequence[str] | None
        self.targets, self.class_names = index_labels(labels, keys, str(path))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self._images[index], self.keys[index], str(self.path)), self.targets[index]

    def __repr__(self) -> str:
        return describe(self, repr(str(self.path)))


def create(name: str, columns: Columns) -> ImageSource | None:
    """The images of WebDataset shards; None for anything else."""
    path = Path(name)
    if not (is_tar_folder(path) or (path.suffix.lower() == ".tar" and path.is_file())) or not _has_labels(path):
        return None
    Columns(image=columns.image).check_unused("WebDataset shards")
    return WebDatasetSource(path, label_field=columns.label or "label")


def _has_labels(path: Path) -> bool:
    """Whether one of the first images of the first shard has a file for its label."""
    shard = tar_files(path)[0]
    samples = _group(islice(list_members(shard), _MEMBERS_READ), shard).values()
    return any(_images(sample) and sample.keys() & _LABELS for sample in samples)


def _group(members: Iterable[Member], shard: Path) -> dict[str, Sample]:
    """The files of each sample by its name, in the order of the shard; those of a tar within the shard are no part."""
    samples: dict[str, Sample] = {}
    for member in members:
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        stem, _, end = name.partition(".")
        if member.tars or member.size < 0 or is_ignored(f"{folder}{slash}{name}"):
            continue
        if samples.setdefault(f"{folder}{slash}{stem}", {}).setdefault(end.lower(), member) is not member:
            raise DatasetError(f"the shard {str(shard)!r} holds {member.name!r} twice: expected one file of a name")
    return samples


def _image(sample: Sample, key: str) -> Member | None:
    """The one image of a sample; None for files that belong to no image."""
    found = _images(sample)
    if len(found) > 1:
        raise DatasetError(f"the sample {key!r} holds {len(found)} images ({', '.join(sample)}): expected one")
    if not found and sample.keys() & _LABELS:
        raise DatasetError(f"the sample {key!r} has no image that Pillow can decode ({', '.join(sample)}): remove it")
    return found[0] if found else None


def _images(sample: Sample) -> list[Member]:
    return [member for member in sample.values() if is_image(member.name)]


def _label(sample: Sample, field: str, key: str) -> object:
    """The label of a sample, as its file has it."""
    try:
        if "cls" in sample:
            return sample["cls"].read().decode()
        if "json" in sample:
            return json.loads(sample["json"].read())[field]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"the sample {key!r} has no label in its .cls or the field {field!r} of its .json "
            f"({type(error).__name__}: {error}): name the field with label_column"
        ) from error
    raise DatasetError(f"the sample {key!r} has no label ({', '.join(sample)}): expected a .cls or .json file")
