"""WebDataset shards, read in any order: tars in which the files of a sample share a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from kdkit.data.sources.base import LabelRule, SourceOptions, describe
from kdkit.data.sources.image import is_image
from kdkit.data.sources.labels import index_labels
from kdkit.data.sources.left_out import LeftOut
from kdkit.data.sources.listing import is_ignored
from kdkit.data.sources.member import Member, read_image, reading_in_order
from kdkit.data.sources.tar_listing import list_members
from kdkit.errors import DatasetError
from kdkit.runtime.documents import parse_json

_LABELS = {"cls", "json"}
_Sample = dict[str, Member]
"""Extension, lower case without its first dot -> the file of a sample."""
_Name = tuple[str, str]
"""Name of the shard, and name of the sample in it."""


class WebDatasetSource:
    """A folder of WebDataset shards, or one shard, with an index of the position of each image.

    The files of a sample share their name up to its first dot: `0001.jpg`, `0001.cls`. The label is the text of the
    .cls file, or else a field of the .json file; the name of a shard is never a label. Labels are whole numbers, or
    names, which become classes in natural order. A key is the name of the shard and of the sample; images are in the
    order of the shards.

    Args:
        path: folder of .tar files, or one .tar file.
        label_field: field of the .json files that holds the label; if given, .cls files are not read. By default, the
            label is in the .cls file, or else in the field `label`.
        labels: "none" takes every image without a label.
        skip_missing: skips links, and samples without an image that Pillow decodes.
        members: everything in the shards, if it has been listed.

    Attributes:
        skipped: one text for each entry that was skipped.

    Raises:
        DatasetError: a shard cannot be read, or a sample has not exactly one image and a label.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        label_field: str | None = None,
        labels: LabelRule | None = None,
        skip_missing: bool = False,
        members: Sequence[Member] | None = None,
    ) -> None:
        self.path = Path(path)
        SourceOptions(labels=labels).check_rule("WebDataset shards")
        left_out = LeftOut(str(path), skip_missing)
        self._images: list[Member] = []
        keys: list[str] = []
        found: list[object] = []
        samples = _group(list_members(self.path) if members is None else members, left_out)
        only_plain = any(_plain_images(sample) for sample in samples.values())
        with reading_in_order() as read:
            for (shard, stem), sample in samples.items():
                key = f"{shard or self.path.name}/{stem}"
                image = _image(sample, key, left_out, only_plain=only_plain)
                if image is not None:
                    keys.append(key)
                    self._images.append(image)
                    found.append(None if labels == "none" else _label(sample, label_field, key, read))
        if not keys:
            raise DatasetError(f"the shards in {str(path)!r} hold no images: expected NAME.jpg beside NAME.cls")
        self.keys: Sequence[str] = keys
        self.class_names: Sequence[str] | None
        self.targets, self.class_names = index_labels(found, keys, str(path))
        self.skipped: Sequence[str] = left_out.skipped
        left_out.log()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self._images[index], self.keys[index], str(self.path)), self.targets[index]

    def __repr__(self) -> str:
        return describe(self, repr(str(self.path)))


def has_labels(members: Iterable[Member]) -> bool:
    """Whether an image has a file for its label: the members are those of WebDataset shards."""
    images, labels = set(), set()
    for member in members:
        (name, extension) = _split(member)
        if member.kind == "file" and not is_ignored(member.path):
            if extension in _LABELS:
                labels.add((member.tars, name))
            elif is_image(member.name):
                images.add((member.tars, name))
    return not images.isdisjoint(labels)


def companions(members: Iterable[Member]) -> bool:
    """Whether an image shares its name with another file, as in WebDataset shards."""
    files = [(member.tars, _split(member)[0]) for member in members if member.kind == "file"]
    return len(set(files)) < len(files)


def _split(member: Member) -> tuple[str, str]:
    """The name of the sample that a file belongs to, and the file's extension: both end at the first dot."""
    folder, slash, name = member.path.rpartition("/")
    stem, _, extension = name.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _group(members: Iterable[Member], left_out: LeftOut) -> dict[_Name, _Sample]:
    """The files of each sample, in the order of the shards; files of a tar within a shard are not part of it."""
    samples: dict[_Name, _Sample] = {}
    depth: int | None = None
    for member in members:
        depth = len(member.tars) if depth is None else depth  # the first is the shard itself
        if member.kind == "folder" or is_ignored(member.path):
            continue
        if len(member.tars) > depth:
            left_out.count(member.key)
        elif member.kind == "link":
            left_out.miss(f"{member.key!r} in {left_out.origin!r} is a link", "pack its target instead")
        else:
            stem, extension = _split(member)
            sample = samples.setdefault((member.tars[0] if member.tars else "", stem), {})
            if sample.setdefault(extension, member) is not member:
                raise DatasetError(f"{left_out.origin!r} holds {member.name!r} twice: expected one file of a name")
    return samples


def _plain_images(sample: _Sample) -> list[Member]:
    """The images without another word in their extension: of 0001, not 0001.mask.png."""
    return [member for extension, member in sample.items() if is_image(member.name) and "." not in extension]


def _image(sample: _Sample, key: str, left_out: LeftOut, *, only_plain: bool) -> Member | None:
    """The one image of a sample; None for files that belong to no image.

    Where one sample has a plain image, all have: the mask of a sample whose image is missing does not take its place.
    """
    images = _plain_images(sample) if only_plain else [member for member in sample.values() if is_image(member.name)]
    if len(images) > 1:
        raise DatasetError(f"the sample {key!r} holds {len(images)} images ({', '.join(sample)}): expected one")
    if not images and sample.keys() & _LABELS:
        left_out.miss(f"the sample {key!r} has no image that Pillow can decode ({', '.join(sample)})", "remove it")
    elif not images:
        for member in sample.values():
            left_out.count(member.key)
    return images[0] if images else None


def _label(sample: _Sample, field: str | None, key: str, read: Callable[[Member], bytes]) -> object:
    """The label of a sample, as its file has it."""
    name = "label" if field is None else field
    try:
        if "cls" in sample and field is None:
            return read(sample["cls"]).decode()
        if "json" in sample:
            return parse_json(read(sample["json"]), f"the .json of {key!r}", error=DatasetError)[name]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"the sample {key!r} has no label in its .cls or the field {name!r} of its .json "
            f"({type(error).__name__}: {error}): name the field with --label-column; --labels none takes all images "
            "without labels"
        ) from error
    expected = "a .cls or .json file" if field is None else f"a .json file with the field {field!r}"
    raise DatasetError(f"the sample {key!r} has no label ({', '.join(sample)}): expected {expected}, or --labels none")
