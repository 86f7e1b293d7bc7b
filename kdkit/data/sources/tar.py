"""Images in tar files, read without unpacking them: class folders in a tar, tars in a tar, or a folder of tars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from kdkit.data.sources.base import ImageSource, LabelRule, SourceOptions, describe
from kdkit.data.sources.class_folders import check_class_folders
from kdkit.data.sources.class_order import index_classes
from kdkit.data.sources.image import is_image
from kdkit.data.sources.left_out import LeftOut
from kdkit.data.sources.listing import Listing, is_ignored, natural_order
from kdkit.data.sources.member import Member, read_image
from kdkit.data.sources.shard_names import is_series, is_shard_name, splits_of
from kdkit.data.sources.tar_listing import list_members, tar_files
from kdkit.data.sources.webdataset import WebDatasetSource, companions, has_labels
from kdkit.errors import DatasetError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
Tars = tuple[str, ...]
"""Names of the tars that an image is in, outermost first."""


class TarSource:
    """A tar file, a tar of tars, or a folder of tars.

    The class of an image is the top folder in its tar; for an image in no folder, the name of its tar, if that cannot
    be the name of a shard. Top folders that hold nothing but one folder are skipped, if all tars have the same. A key
    is the path in the tar, preceded by the names of the tars that it is in.

    Args:
        path: the tar file, or the folder.
        labels: "folder" takes the top folders as classes, whatever their names; "tar" takes the name of its tar as the
            class of each image; "none" takes every image without a label.
        skip_missing: skips what should hold an image and does not; see `kdkit.data.create_source`.
        members: everything in the tars, if it has been listed.

    Attributes:
        skipped: one text for each entry that was skipped.

    Raises:
        DatasetError: there is no tar, no image in it, or a class is ambiguous.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        labels: LabelRule | None = None,
        skip_missing: bool = False,
        members: Sequence[Member] | None = None,
    ) -> None:
        self.path = Path(path)
        options = SourceOptions(labels=labels, skip_missing=skip_missing)
        left_out = LeftOut(str(path), skip_missing)
        found = list_members(self.path) if members is None else members
        listings = _listings(found, self.path, options, left_out)
        names = _classes(listings, found, str(path), options)
        images = [
            (_member(image.member), name)
            for tars, listing in listings.items()
            for image, name in zip(listing.images, names[tars], strict=True)
        ]
        images.sort(key=lambda image: (natural_order(image[0].name), image[0].key))
        self._members = [member for member, _ in images]
        self.keys: Sequence[str] = [member.key for member in self._members]
        self.class_names: Sequence[str] | None = None
        self.targets = [-1] * len(self.keys)
        if labels != "none":
            self.targets, self.class_names = index_classes([name for _, name in images], str(path))
        self.skipped: Sequence[str] = left_out.skipped
        left_out.log()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self._members[index], self.keys[index], str(self.path)), self.targets[index]

    def __repr__(self) -> str:
        return describe(self, repr(str(self.path)))


def create(name: str, options: SourceOptions) -> ImageSource | None:
    """The images of a .tar file, a folder of tars or WebDataset shards; None for anything else."""
    path = Path(name)
    if name.lower().endswith(_COMPRESSED) and not path.is_dir():
        raise DatasetError(f"{name!r} is compressed, so its images cannot be read in any order: unpack it to a .tar")
    if not (_is_tar_folder(path) if path.is_dir() else path.suffix.lower() == ".tar"):
        return None
    by_rule = options.labels in ("folder", "tar")
    if not by_rule and len(splits := splits_of(file.stem for file in tar_files(path))) > 1:
        raise DatasetError(f"{name!r} holds tars of {' and '.join(splits)}: put them into separate folders")
    members = list_members(path)
    if not by_rule and (has_labels(members) or (options.labels == "none" and companions(members))):
        SourceOptions(image_column=options.image_column).check_no_columns("WebDataset shards")
        return WebDatasetSource(
            path,
            label_field=options.label_column,
            labels=options.labels,
            skip_missing=options.skip_missing,
            members=members,
        )
    options.check_no_columns(f"a tar {'' if by_rule else 'without .cls or .json files'}".rstrip())
    return TarSource(path, labels=options.labels, skip_missing=options.skip_missing, members=members)


def _is_tar_folder(path: Path) -> bool:
    """Whether a folder holds tars, and which nothing else is data.

    Raises:
        DatasetError: other data is next to the tars.
    """
    try:
        inner = sorted(entry for entry in path.iterdir() if not is_ignored(entry.name))
    except OSError:
        return False  # the folder's own error says why
    if not tar_files(path):
        return False
    if any(entry.is_dir() for entry in inner):
        return False
    for entry in inner:
        if is_image(entry.name):
            raise DatasetError(f"{str(path)!r} holds tars and images ({entry.name!r}): expected one of the two")
        if entry.name.lower().endswith((*_COMPRESSED, ".zip")):
            raise DatasetError(
                f"{str(path)!r} holds tars and {entry.name!r}: unpack it to a .tar, or move it elsewhere"
            )
    return True


def _listings(
    members: Sequence[Member], path: Path, options: SourceOptions, left_out: LeftOut
) -> Mapping[Tars, Listing]:
    """The images of each tar; tars that hold only tars are left out."""
    listings: dict[Tars, Listing] = {}
    for member in members:
        listing = listings.get(member.tars)
        if listing is None:
            listing = listings[member.tars] = Listing("/".join((str(path), *member.tars)), options, left_out)
        if member.kind == "folder":
            listing.add_folder(member.path)
        elif member.kind == "link":
            listing.add_link(member.path, "tar")
        else:
            listing.add_file(member.path, key=member.key, member=member)
    outer = {tars[:depth] for tars in listings for depth in range(len(tars))}
    found = {tars: listing for tars, listing in listings.items() if listing.images or tars not in outer}
    if not any(listing.images for listing in found.values()):
        raise DatasetError(
            f"no images can be listed in the tar {str(path)!r}: it holds no images{left_out.but()}, expected "
            "CLASS/IMAGE.jpg"
        )
    for tars, listing in list(found.items()):
        if listing.images:
            listing.finish()
        else:
            left_out.miss(f"the tar {listing.origin!r} holds no image that Pillow can decode", "remove it")
            del found[tars]
    return found


def _classes(
    listings: Mapping[Tars, Listing], members: Sequence[Member], origin: str, options: SourceOptions
) -> dict[Tars, list[str]]:
    """The class name of each image of each tar; empty names if no image has a label."""
    if options.labels in ("tar", "none"):
        stems = {tars: "" if options.labels == "none" else _stem(tars, origin) for tars in listings}
        return {tars: [stems[tars]] * len(listing.images) for tars, listing in listings.items()}
    flat = {tars for tars, listing in listings.items() if tars and listing.is_flat}
    if options.labels is None:
        if flat:
            beside = companions(member for member in members if member.tars in flat)
            _check_not_shards(flat, origin, is_mixed=beside or len(flat) < len(listings))
        _unwrap(list(listings.values()))
    else:
        flat = set()
    folders = {image.path.partition("/")[0] for listing in listings.values() for image in listing.images}
    if options.labels is None and not flat and len(listings) > 1 and len(folders) == 1:
        raise DatasetError(
            f"the images of all {len(listings)} tars in {origin!r} are in one folder, {min(folders)!r}: --labels tar "
            "takes the name of each tar as the class, --labels folder the folder"
        )
    names = {
        tars: [_stem(tars, origin)] * len(listing.images) if tars in flat else listing.classes(folders)
        for tars, listing in listings.items()
    }
    if options.labels is None:
        nested = [listing for tars, listing in listings.items() if tars not in flat]
        check_class_folders((image.path for listing in nested for image in listing.images), origin)
    return names


def _unwrap(listings: Sequence[Listing]) -> None:
    """Removes the top folders that all tars have in common and that hold nothing but one folder."""
    while all(listing.is_wrapped for listing in listings):
        if len(set().union(*(listing.top_folders for listing in listings))) > 1:
            return
        for listing in listings:
            listing.remove_top_folder()


def _stem(tars: Tars, origin: str) -> str:
    if not tars:
        raise DatasetError(
            f"--labels tar came with {origin!r}, which holds images in no inner tar: give --labels folder"
        )
    return PurePosixPath(tars[-1]).stem


def _check_not_shards(flat: set[Tars], origin: str, *, is_mixed: bool) -> None:
    """Raises DatasetError if images that are in no folder may be in shards instead of one tar per class.

    `is_mixed` says that the content speaks against one tar per class.
    """
    names = sorted({_stem(tars, origin) for tars in flat}, key=natural_order)
    unclear = next(filter(is_shard_name, names), None)
    if unclear is None and (is_mixed or is_series(names) or len(names) == 1):
        unclear = names[0]
    if unclear is not None:
        raise DatasetError(
            f"the images in {origin!r} have no label, and {unclear + '.tar'!r} may be a shard: the name of a numbered "
            "shard is not a class; expected CLASS/IMAGE.jpg, or a .cls or .json file for each image; --labels tar "
            "takes the name of each tar as the class, --labels none takes all images without labels"
        )


def _member(value: object) -> Member:
    assert isinstance(value, Member)
    return value
