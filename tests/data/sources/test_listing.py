"""Which files are images, which folder is a class, and in which order: one table for folders, zips and tars."""

from __future__ import annotations

import inspect
import io
import os
import re
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image
from timm.data import create_dataset

from kdkit.data import FolderSource, MappedSource, create_source
from kdkit.data.sources.listing import natural_order
from kdkit.errors import DatasetError

KINDS = ("folder", "zip", "tar")


def write(root: Path, kind: str, files: Iterable[str]) -> Path:
    """A folder, zip or tar of those files; a name that ends in a slash is an empty folder, .txt and .xml are texts."""
    folder = root / "data"
    for name in files:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".xml", ".db", ".heic"):
            path.write_text("no image")
        else:
            known = Image.registered_extensions().get(path.suffix.lower(), "PNG")
            Image.new("RGB", (8, 8), (90, 60, 30)).save(path, format=known)
    if kind == "folder":
        return folder
    paths = sorted(folder.rglob("*"), reverse=True)
    if kind == "zip":
        with zipfile.ZipFile(root / "data.zip", "w") as archive:
            for path in paths:
                archive.write(path, path.relative_to(folder))
        return root / "data.zip"
    with tarfile.open(root / "data.tar", "w") as archive:
        for path in paths:
            archive.add(path, arcname=str(path.relative_to(folder)), recursive=False)
    return root / "data.tar"


ACCEPTED = {
    "the top folder is the class, however deep an image lies": (
        ["cat/day/0.png", "cat/night/0.png", "dog/day/0.png", "dog/1.png"],
        {"cat/day/0.png": "cat", "cat/night/0.png": "cat", "dog/1.png": "dog", "dog/day/0.png": "dog"},
    ),
    "every format that Pillow decodes": (
        ["a/0.jpg", "b/0.webp", "c/0.BMP", "d/0.gif", "e/0.tiff", "f/0.jp2", "g/0.ppm"],
        {
            "a/0.jpg": "a",
            "b/0.webp": "b",
            "c/0.BMP": "c",
            "d/0.gif": "d",
            "e/0.tiff": "e",
            "f/0.jp2": "f",
            "g/0.ppm": "g",
        },
    ),
    "hidden files and what systems leave behind are ignored": (
        [
            *("a/0.png", "b/0.png", "a/.ipynb_checkpoints/0.png", ".git/0.png", "__MACOSX/a/._0.png", "a/._0.png"),
            *("a/Thumbs.db", "b/@eaDir/0.png", ".trash/"),
        ],
        {"a/0.png": "a", "b/0.png": "b"},
    ),
    "numbers by value, and ties by the exact name": (
        ["A/0.png", "a/0.png", "10/0.png", "2/0.png", "02/0.png", "b/0.png", "B/0.png"],
        {
            "02/0.png": "02",
            "2/0.png": "2",
            "10/0.png": "10",
            "A/0.png": "A",
            "a/0.png": "a",
            "B/0.png": "B",
            "b/0.png": "b",
        },
    ),
    "one class alone": (["a/0.png", "a/deep/0.png"], {"a/0.png": "a", "a/deep/0.png": "a"}),
    "a class that is called train": (
        ["train/0.png", "car/0.png", "car/deep/0.png"],
        {"car/0.png": "car", "car/deep/0.png": "car", "train/0.png": "train"},
    ),
    "other files beside images": (["a/0.png", "a/notes.txt", "readme.txt"], {"a/0.png": "a"}),
}
REFUSED = {
    "train and val": (
        ["train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png"],
        "'train' and 'val'.* e.g. '.*/train'",
    ),
    "train and val without classes": (["train/0.png", "val/0.png"], "'train' and 'val'"),
    "splits with years": (["train2017/a/0.png", "val2017/a/0.png"], "'train2017' and 'val2017'"),
    "a split among classes": (["train/a/0.png", "train/b/0.png", "cat/0.png"], "holds 'train', not class folders"),
    "pieces of a dataset": (["fold1/a/0.png", "fold1/b/0.png", "fold2/a/0.png"], "'fold1' and 'fold2'"),
    "a backup of the classes": (
        ["cat/0.png", "dog/0.png", "backup/cat/0.png", "backup/dog/0.png"],
        "'cat' and 'backup/cat', expected each class in one place: move 'backup' elsewhere .*--labels folder",
    ),
    "a backup of deeper classes": (
        ["cat/day/0.png", "dog/day/0.png", "backup/cat/day/0.png", "backup/dog/day/0.png"],
        "move 'backup'",
    ),
    "a backup of numbered classes": (["0/0.png", "1/0.png", "copy/0/0.png", "copy/1/0.png"], "'0' and 'copy/0'"),
    "a class folder that was moved into another": (["cat/0.png", "dog/0.png", "dog/cat/0.png"], "'cat' and 'dog/cat'"),
    "splits with a prefix": (
        ["seg_train/cat/0.png", "seg_train/dog/0.png", "seg_test/cat/0.png", "seg_test/dog/0.png"],
        "'seg_test' and 'seg_train', not class folders: give only one, e.g. '.*/seg_train', or --labels folder",
    ),
    "a split of images among classes": (["cat/0.png", "dog/0.png", "test/0.png"], "holds 'test', not class folders"),
    "images without labels among classes": (["cat/0.png", "dog/0.png", "unlabeled/0.png"], "holds 'unlabeled', not"),
    **{
        f"a copy by its name, {copy}": (["cat/0.png", f"{copy}/0.png"], f"'cat' and '{re.escape(copy)}', expected each")
        for copy in ("cat - Copy", "cat - Copy (2)", "cat copy 3", "cat (1)", "cat.bak", "cat_backup", "Copy of cat")
    },
    "splits in short": (["trn/0/0.png", "trn/1/0.png", "tst/0/0.png", "tst/1/0.png"], "'trn' and 'tst', not class"),
    "splits of which one lacks a class": (
        [*(f"trn/{name}/0.png" for name in "abc"), "tst/a/0.png", "tst/b/0.png"],
        "'trn' and 'tst', not class",
    ),
    "versions of one dataset": (
        [f"{top}/{name}/0.png" for top in ("raw", "augmented") for name in ("cat", "dog")],
        "'augmented' and 'raw', not class",
    ),
    "images next to masks": (["images/0.png", "masks/0.png"], "'images' and 'masks'"),
    "images next to annotations": (["images/0.png", "annotations/0.xml"], "class folder 'annotations'"),
    "an empty class folder": (["a/0.png", "b/0.png", "e/"], "class folder 'e'"),
    "a class folder of other files": (["a/0.png", "b/notes.xml"], "class folder 'b'"),
    "images outside class folders": (["a/0.png", "0.png"], r"outside any class folder \('0\.png'\)"),
    "a format that Pillow does not decode": (["a/0.png", "a/1.heic"], r"cannot decode 'a/1\.heic'"),
    "no image": (["a/notes.txt"], "holds no images"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ACCEPTED)
def test_images_and_classes_are(tmp_path: Path, kind: str, case: str) -> None:
    files, expected = ACCEPTED[case]
    source = create_source(write(tmp_path, kind, files))
    names = source.class_names
    assert names is not None
    assert {key: names[source[row][1]] for row, key in enumerate(source.keys)} == expected
    assert list(source.keys) == list(expected)
    assert list(names) == list(dict.fromkeys(expected.values()))


def trees(tops: str, names: str) -> list[str]:
    """An image in each of some folders in each top folder."""
    return [f"{top}/{name}/0.png" for top in tops.split() for name in names.split()]


UNCLEAR = {
    "years": trees("2019 2020", "cat dog"),
    "letters": trees("A B", "cat dog owl"),
    "numbered classes in few folders": trees("A B", "0 1 2"),
    "times of the day": trees("cat dog", "day night"),
    "one folder of the name of another class": ["cat/0.png", "pets/cat/0.png", "pets/eel/0.png", "pets/owl/0.png"],
}
CLEAR = {
    "sessions of persons": trees("1 2 3", "1 2"),
    "fewer sessions of some persons": [*trees("1 2 3 4", "1 2"), *trees("5", "1")],
    "years of persons": trees("ann bob", "2019 2020"),
    "dates of persons": trees("ann bob", "2019-01-02 2020-03-04"),
    "splits of classes": trees("bolt cable", "train test"),
    "images and masks of classes": trees("bolt cable", "images masks"),
    "folds of classes": trees("bolt cable", "fold1 fold2"),
    "kinds of super-classes": [*trees("pets", "cat dog"), *trees("trees", "oak elm")],
    "one common name": [*trees("pets", "cat other"), *trees("trees", "oak other elm")],
    "crops beside the images": [*trees("a b", "crops flips"), "a/0.png"],
    "a class folder in itself": ["cat/cat/0.png", "dog/dog/0.png"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", UNCLEAR)
def test_folders_that_may_be_splits_or_classes_are_classes_with_a_warning(
    tmp_path: Path, kind: str, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, kind, UNCLEAR[case])
    tops = sorted({name.partition("/")[0] for name in UNCLEAR[case]})
    assert create_source(path).class_names == tops
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "--labels folder takes them" in record.getMessage()
    assert all(repr(top) in record.getMessage() for top in tops)
    caplog.clear()
    assert create_source(path, labels="folder").class_names == tops
    assert not caplog.records


@pytest.mark.parametrize("case", CLEAR)
def test_common_folders_within_classes_are_no_splits(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = create_source(write(tmp_path, "folder", CLEAR[case]))
    assert source.class_names == sorted({name.partition("/")[0] for name in CLEAR[case]})
    assert not caplog.records


def test_splits_in_different_tars_of_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    for name, files in (("x", trees("seg_train", "a b")), ("y", trees("seg_test", "a b"))):
        write(tmp_path / name, "tar", files).rename(tmp_path / "tars" / f"{name}.tar")
    with pytest.raises(DatasetError, match="'seg_test' and 'seg_train', not class folders"):
        create_source(tmp_path / "tars")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_by_name(tmp_path: Path, kind: str, case: str) -> None:
    files, message = REFUSED[case]
    with pytest.raises(DatasetError, match=message) as caught:
        create_source(write(tmp_path, kind, files))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_order_of_classes_and_rows_is_one_in_every_process_and_kind(tmp_path: Path) -> None:
    names = [f"{name}/{name}.png" for name in ("A", "a", "B", "b", "01", "1")]
    paths = [str(write(tmp_path / kind, kind, names)) for kind in KINDS]
    code = f"""from kdkit.data import create_source
for path in {paths!r}:
    source = create_source(path)
    print(list(source.class_names), list(source.keys))"""
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "13"
    }
    assert len(seen) == 1
    lines = seen.pop().splitlines()
    assert len(lines) == len(KINDS)
    assert len(set(lines)) == 1
    assert lines[0].startswith("['01', '1', 'A', 'a', 'B', 'b']")


def test_a_lone_folder_of_folders_is_refused_in_a_folder_and_skipped_in_an_archive(tmp_path: Path) -> None:
    files = ["pets/cat/0.png", "pets/dog/0.png", "__MACOSX/pets/cat/._0.png"]
    with pytest.raises(DatasetError, match=r"holds 'pets', not class folders: .* '.*/pets'"):
        create_source(write(tmp_path / "folder", "folder", files))
    for kind in ("zip", "tar"):
        source = create_source(write(tmp_path / kind, kind, files))
        assert (list(source.keys), source.class_names) == (files[:2], ["cat", "dog"])
        with pytest.raises(DatasetError, match="class folder 'bird'"):
            create_source(write(tmp_path / f"{kind} empty", kind, [*files, "pets/bird/"]))


def test_of_tars_of_classes_the_top_folder_in_each_is_the_class(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        tar = write(tmp_path / name, "tar", [f"{name}/day/0.png", f"{name}/night/0.png"])
        (tmp_path / "tars").mkdir(exist_ok=True)
        tar.rename(tmp_path / "tars" / f"{name}.tar")
    source = create_source(tmp_path / "tars")
    assert source.class_names == ["cat", "dog"]
    assert {key: source[row][1] for row, key in enumerate(source.keys)} == {
        f"{name}.tar/{name}/{time}/0.png": index
        for index, name in enumerate(("cat", "dog"))
        for time in ("day", "night")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_no_images_are_counted_by_suffix_in_one_warning(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = ["a/0.png", "a/b.txt", "a/a.txt", "a/a.xml", "a/LICENSE.txt", ".hidden/c.txt", "a/Thumbs.db"]
    create_source(write(tmp_path, kind, files))
    (record,) = caplog.records
    assert "ignored 4 files in" in record.getMessage()
    assert "3 .txt, 1 .xml (the first is 'a/LICENSE.txt')" in record.getMessage()


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_folders_take_the_top_folder_whatever_its_name(tmp_path: Path, kind: str) -> None:
    for number, (files, classes) in enumerate(
        [
            (["train/a/0.png", "val/a/0.png"], ["train", "val"]),
            (["images/0.png", "masks/0.png"], ["images", "masks"]),
            (["pets/cat/0.png", "pets/dog/0.png"], ["pets"]),
        ]
    ):
        assert create_source(write(tmp_path / str(number), kind, files), labels="folder").class_names == classes


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_folders_are_refused_where_images_are_in_none(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DatasetError, match=r"outside any class folder \('1\.png'\).*--labels none"):
        create_source(write(tmp_path, kind, ["1.png", "2.png"]), labels="folder")


@pytest.mark.parametrize("kind", KINDS)
def test_any_tree_is_read_without_labels_on_request(tmp_path: Path, kind: str) -> None:
    files = ["0.png", "train/a/0.png", "train/b/c/0.png", "val/1.png", "empty/"]
    source = create_source(write(tmp_path, kind, files), labels="none")
    assert list(source.keys) == files[:-1]
    assert source.class_names is None
    assert [source[row][1] for row in range(4)] == [-1] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_what_holds_no_image_is_skipped_and_recorded_on_request(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, kind, ["a/0.png", "a/1.heic", "b/0.png", "c/notes.txt", "d/"])
    source = create_source(path, skip_missing=True)
    assert list(source.keys) == ["a/0.png", "b/0.png"]
    assert source.class_names == ["a", "b"]
    assert source.skipped == [  # without the path, which differs between machines
        "Pillow cannot decode 'a/1.heic'",
        "the class folder 'c' holds no image that Pillow can decode",
        "the class folder 'd' holds no image that Pillow can decode",
    ]
    assert f"skipped 3 entries in {path}: Pillow cannot decode 'a/1.heic'; the class" in caplog.text


@pytest.mark.parametrize("name", ["../a/0.png", "/a/0.png", "a/../b/0.png"])
@pytest.mark.parametrize("kind", ["zip", "tar", "shards"])
def test_a_member_that_leads_out_of_its_archive_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    write(tmp_path, "folder", ["a/0.png", "b/0.png"])
    content = (tmp_path / "data" / "a" / "0.png").read_bytes()
    if kind == "zip":
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("c/0.png", content)
            archive.writestr(name, content)
    else:
        path = tmp_path / "a.tar"
        members = [("c/0.png", content), (name, content), *([("c/0.cls", b"1")] if kind == "shards" else [])]
        with tarfile.open(path, "w") as tar:
            for member, held in members:
                info = tarfile.TarInfo(member)
                info.size = len(held)
                tar.addfile(info, io.BytesIO(held))
    with pytest.raises(DatasetError, match=rf"'{re.escape(name)}' in .* leads out of the archive"):
        create_source(path)


def test_a_link_in_a_zip_is_refused_and_skipped_on_request(tmp_path: Path) -> None:
    path = write(tmp_path, "zip", ["a/0.png"])
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("b")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "a")
    with pytest.raises(DatasetError, match=r"'b' in the zip file .* is a link"):
        create_source(path)
    assert create_source(path, skip_missing=True).class_names == ["a"]


def zip_of_bytes(path: Path, names: Iterable[bytes]) -> Path:
    """A zip of images whose names are these bytes, without the flag of UTF-8."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, format="PNG")
    texts = {"abc"[number] * len(name): name for number, name in enumerate(names)}
    with zipfile.ZipFile(path, "w") as archive:
        for text in texts:
            archive.writestr(text, stream.getvalue())
    content = path.read_bytes()
    for text, name in texts.items():
        content = content.replace(text.encode(), name)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("names", "classes", "is_told"),
    [
        (["käse/00000.png".encode(), "日本/00000.png".encode()], ["käse", "日本"], False),
        (["ka\u0308se/00000.png".encode()], ["käse"], False),
        (["käse/00000.png".encode("cp437")], ["käse"], True),
        (
            ["käse/00000.png".encode("cp437"), "日本/00000.png".encode()],
            ["käse", "日本".encode().decode("cp437")],
            True,
        ),
        (["käse/00000.png".encode("latin-1")], ["kΣse"], True),
    ],
)
def test_names_in_a_zip_without_a_flag_are_utf_8_where_all_are_and_else_a_line_says_how_they_are_read(
    tmp_path: Path, names: list[bytes], classes: list[str], is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source = create_source(zip_of_bytes(tmp_path / "a.zip", names))
    assert bool(re.search("not in UTF-8, .* code page 437", caplog.text)) is is_told
    assert sorted(source.class_names or ()) == sorted(classes)
    assert len([source[row] for row in range(len(source))]) == len(names)


def test_a_zip_with_backslashes_between_its_folders_is_refused(tmp_path: Path) -> None:
    path = zip_of_bytes(tmp_path / "a.zip", [b"cat\\00000.png", b"dog\\000000.png"])
    with pytest.raises(DatasetError, match=r"has backslashes between its folders \('cat"):
        create_source(path)
    assert len(create_source(path, labels="none")) == 2


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_that_is_packed_twice_is_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, ["a/0.png", "b/0.png"])
    extra = tmp_path / "data" / "a" / "0.png"
    if kind == "zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("./a/0.png", extra.read_bytes())
    else:
        with tarfile.open(path, "a") as tar:
            tar.add(extra, "./a/0.png")
    with pytest.raises(DatasetError, match=r"holds 'a/0\.png' twice"):
        create_source(path)


@pytest.mark.parametrize("skip", [False, True])
def test_links_that_lead_nowhere_and_folders_that_cannot_be_listed_are_refused_or_skipped(
    tmp_path: Path, skip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, "folder", ["a/0.png", "b/0.png", "secret/0.png"])
    scandir = os.scandir

    def guarded(path: object) -> object:
        if str(path).endswith("secret"):  # tests may run as root, to which no permission applies
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)  # type: ignore[call-overload]

    os.mkfifo(folder / "a" / "2.png")
    troubles = {
        "a/1.png": "is a dangling symlink",
        "a/2.png": "is neither a file nor a folder",
        "loop": "cannot be followed",
        "b/up": "is a symlink to a folder that contains it",
        "secret": "cannot be listed (Permission denied)",
    }
    (folder / "a" / "1.png").symlink_to(tmp_path / "gone.png")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "b" / "up").symlink_to(folder)
    monkeypatch.setattr("os.scandir", guarded)
    if skip:
        source = FolderSource(folder, skip_missing=True)
        assert list(source.keys) == ["a/0.png", "b/0.png"]
        assert source.class_names == ["a", "b"]
        for name, reason in troubles.items():
            assert f"{name!r} {reason}" in " ".join(source.skipped)
    else:
        for name in ("loop", "b/up", "a/1.png", "a/2.png"):
            with pytest.raises(DatasetError) as caught:
                FolderSource(folder)
            assert any(f"{known!r} in" in str(caught.value) for known in troubles)
            assert "\n" not in str(caught.value)
            (folder / name).unlink()
        with pytest.raises(DatasetError, match=r"'secret' in .* cannot be listed \(Permission denied\)"):
            FolderSource(folder)


def test_a_folder_may_be_deeper_than_python_recurses(tmp_path: Path) -> None:
    deep = "/".join(["d"] * 300)
    folder = write(tmp_path, "folder", ["a/0.png", f"a/{deep}/0.png"])
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 200)
    try:
        keys = FolderSource(folder).keys
    finally:
        sys.setrecursionlimit(limit)
    assert list(keys) == ["a/0.png", f"a/{deep}/0.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_of_many_digits_has_its_place(tmp_path: Path, kind: str) -> None:
    source = create_source(write(tmp_path, kind, [f"{'1' * 200}/0.png", "2/0.png"]))
    assert source.class_names == ["2", "1" * 200]
    assert natural_order("1" * 5000 + "a") > natural_order("2b")


@pytest.mark.parametrize("name", ["a/1.png", "c"])
def test_a_dangling_link_to_an_image_or_a_class_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, "folder", ["a/0.png", "b/0.png"])
    (folder / name).symlink_to(tmp_path / "gone")
    with pytest.raises(DatasetError, match=rf"'{name}' in .* is a dangling symlink"):
        FolderSource(folder)


def test_linked_class_folders_are_followed_and_a_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "folder", ["a/0.png"])
    elsewhere = write(tmp_path / "elsewhere", "folder", ["x/0.png"])
    (folder / "b").symlink_to(elsewhere / "x")
    assert list(FolderSource(folder).keys) == ["a/0.png", "b/0.png"]
    (folder / "a" / "up").symlink_to(folder)
    with pytest.raises(DatasetError, match="a symlink to a folder that contains it"):
        FolderSource(folder)


def test_a_flat_folder_has_images_without_labels_and_no_class_names(tmp_path: Path) -> None:
    source = create_source(write(tmp_path, "folder", ["10.png", "9.png", "notes/a.txt", ".hidden/1.png"]))
    assert list(source.keys) == ["9.png", "10.png"]
    assert source.class_names is None
    assert [source[row][1] for row in range(2)] == [-1, -1]
    assert repr(source).endswith("data': 2 images, no class names)")


def test_a_tar_that_holds_a_link_to_an_image_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "folder", ["a/0.png"])
    (folder / "a" / "1.png").symlink_to("0.png")
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(folder, arcname=".")
    with pytest.raises(DatasetError, match=r"a/1\.png' in the tar .* is a link"):
        create_source(tmp_path / "data.tar")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz"])
def test_a_compressed_tar_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"is compressed.*unpack it to a \.tar"):
        create_source(tmp_path / name)


def test_timms_dataset_is_refused_where_the_order_of_its_classes_is_chance(tmp_path: Path) -> None:
    folder = write(tmp_path, "folder", ["A/0.png", "a/0.png"])
    with pytest.raises(DatasetError, match="orders class names by chance"):
        MappedSource(create_dataset("", root=str(folder)))


@pytest.mark.parametrize("name", ["classes.zip", "classes.tar", "classes.csv", "classes.tar.gz"])
def test_a_folder_is_a_folder_whatever_its_name(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, "folder", ["a/0.png", "b/0.png"]).rename(tmp_path / name)
    assert create_source(folder).class_names == ["a", "b"]


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for name in ("0.bin", "1.bin", "README"):
        (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=r"holds no images but 2 \.bin, 1 without suffix: expected CLASS"):
        create_source(tmp_path)


def test_an_empty_name_is_not_taken_for_the_current_folder() -> None:
    with pytest.raises(DatasetError, match="the name of the data is empty"):
        create_source("")
