"""Tars: which are shards and which are classes, told by their content; and tars that are damaged."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from kdkit.data import TarSource, WebDatasetSource, create_source
from kdkit.errors import ConfigError, DatasetError

Members = Sequence[tuple[str, bytes]]


def png(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, format="PNG")
    return stream.getvalue()


def write(root: Path, tars: Mapping[str, Members]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, members in tars.items():
        with tarfile.open(root / f"{name}.tar", "w") as archive:
            for member, content in members:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return root


def flat(names: Sequence[str]) -> dict[str, Members]:
    return {name: [(f"{name}-{row}.png", png()) for row in range(2)] for name in names}


@pytest.mark.parametrize(
    "names",
    [
        ["00000", "00001"],
        ["0", "1"],
        ["train-001", "train-002"],
        ["shard0000", "shard0001"],
        ["part1", "part2"],
        ["x_1", "y_1"],
        ["imagenet-train-000000-of-000128"],
        ["photos3", "photos4"],
        ["birds"],
        ["train", "rest"],
        ["a000", "b"],
    ],
)
def test_images_in_tars_that_may_be_shards_have_no_label_unless_it_is_named(tmp_path: Path, names: list[str]) -> None:
    path = write(tmp_path / "tars", flat(names))
    with pytest.raises(DatasetError, match=r"may be a shard: .*--labels tar .*--labels none") as caught:
        create_source(path)
    assert "\n" not in str(caught.value)
    source = create_source(path, labels="tar")
    assert list(source.class_names or ()) == sorted(names)
    assert all((source.class_names or ())[source[row][1]] == source.keys[row].split(".tar/")[0] for row in range(2))
    without = create_source(path, labels="none")
    assert (without.class_names, without[0][1], list(without.keys)) == (None, -1, list(source.keys))


@pytest.mark.parametrize(
    "names", [["cat", "dog"], ["n01440764", "n01443537"], ["c2", "c10"], ["b", "c2", "C3"], ["a b", "é 寺"]]
)
def test_images_in_tars_of_other_names_have_the_tars_name_as_their_class(tmp_path: Path, names: list[str]) -> None:
    source = create_source(write(tmp_path / "tars", flat(names)))
    assert set(source.class_names or ()) == set(names)


def test_tars_whose_images_have_other_files_of_their_name_are_no_classes(tmp_path: Path) -> None:
    tars = {name: [("0.png", png()), ("0.txt", b"a caption")] for name in ("cat", "dog")}
    path = write(tmp_path / "tars", tars)
    with pytest.raises(DatasetError, match="may be a shard"):
        create_source(path)
    assert list(create_source(path, labels="none").keys) == ["cat.tar/0", "dog.tar/0"]
    assert create_source(path, labels="tar").class_names == ["cat", "dog"]


def test_flat_tars_among_tars_of_class_folders_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "tars", {"cat": [("0.png", png())], "more": [("dog/0.png", png())]})
    with pytest.raises(DatasetError, match="may be a shard"):
        create_source(path)


def test_a_label_is_found_however_late_it_comes(tmp_path: Path) -> None:
    images: list[tuple[str, bytes]] = [(f"{row:06d}.png", png()) for row in range(150)]
    labels = [(f"{row:06d}.cls", str(row % 3).encode()) for row in range(150)]
    source = create_source(write(tmp_path / "one", {"birds": [*images, *labels]}))
    assert isinstance(source, WebDatasetSource)
    assert [source[row][1] for row in range(150)] == [row % 3 for row in range(150)]
    with pytest.raises(DatasetError, match=r"the sample 'a\.tar/000000' has no label"):
        create_source(write(tmp_path / "two", {"a": images[:2], "b": [("0.png", png()), ("0.cls", b"1")]}))


def test_a_field_that_is_named_goes_before_the_cls_file(tmp_path: Path) -> None:
    members = [("0.png", png()), ("0.cls", b"7"), ("0.json", json.dumps({"fine": 3, "label": None}).encode())]
    path = write(tmp_path / "tars", {"shard-0": members})
    assert create_source(path)[0][1] == 7
    assert create_source(path, label_column="fine")[0][1] == 3
    assert create_source(path, label_column="label")[0][1] == -1
    with pytest.raises(DatasetError, match=r"the field 'coarse' of its \.json"):
        create_source(path, label_column="coarse")
    with pytest.raises(ConfigError, match="image_column came with WebDataset shards"):
        create_source(path, image_column="png")


def test_annotations_beside_images_in_class_folders_are_asked_about(tmp_path: Path) -> None:
    members = [(f"{name}/0.{end}", content) for name in "ab" for end, content in (("png", png()), ("json", b"{}"))]
    path = write(tmp_path / "tars", {"all": members}) / "all.tar"
    with pytest.raises(DatasetError, match="name the field with --label-column"):
        create_source(path)
    source = create_source(path, labels="folder")
    assert isinstance(source, TarSource)
    assert source.class_names == ["a", "b"]


def test_the_mask_of_a_sample_whose_image_is_missing_does_not_take_its_place(tmp_path: Path) -> None:
    members = [("0.png", png(40)), ("0.cls", b"0"), ("1.mask.png", png(255)), ("1.cls", b"1")]
    root = write(tmp_path / "s", {"000": members})
    with pytest.raises(DatasetError, match=r"'000\.tar/1' has no image"):
        create_source(root)
    assert len(create_source(root, skip_missing=True)) == 1


def test_a_label_that_a_json_file_names_twice_is_refused(tmp_path: Path) -> None:
    members = [("0.png", png()), ("0.json", b'{"label": 1, "label": 2}')]
    with pytest.raises(DatasetError, match=r"the sample '000\.tar/0' has no label"):
        create_source(write(tmp_path / "s", {"000": members}))


def test_a_mask_of_an_image_is_not_taken_for_it(tmp_path: Path) -> None:
    members = [("0.mask.png", png(255)), ("0.png", png(40)), ("0.cls", b"1")]
    source = create_source(write(tmp_path / "tars", {"shard-0": members}))
    assert source[0][0].getpixel((0, 0)) == (40, 0, 0)


def test_files_of_no_sample_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [("0.png", png()), ("0.cls", b"1"), ("README.txt", b""), ("x/other.bin", b""), (".hidden", b"")]
    create_source(write(tmp_path / "tars", {"shard-0": members}))
    assert "ignored 2 files in" in caplog.text
    assert "1 .txt, 1 .bin" in caplog.text


@pytest.mark.parametrize("inner", ["{row}.png", "class {row}/0.png"])
def test_tars_of_two_splits_are_not_merged(tmp_path: Path, inner: str) -> None:
    tars = {
        f"imagenet-{split}-{row}": [(inner.format(row=row), png()), (inner.format(row=row)[:-4] + ".cls", b"1")]
        for split in ("train", "val")
        for row in range(2)
    }
    with pytest.raises(DatasetError, match="holds tars of train and val: put them into separate folders"):
        create_source(write(tmp_path / "tars", tars))


def test_a_folder_around_the_classes_of_every_shard_is_no_class(tmp_path: Path) -> None:
    tars = {f"shard-{row}": [(f"data/{name}/{row}.png", png()) for name in ("cat", "dog")] for row in range(2)}
    assert create_source(write(tmp_path / "tars", tars)).class_names == ["cat", "dog"]


@pytest.mark.parametrize("name", ["more.tar.gz", "more.tgz", "more.zip", "stray.png"])
def test_other_data_beside_tars_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "tars", flat(["cat", "dog"]))
    (path / name).write_bytes(b"")
    with pytest.raises(DatasetError, match=f"holds tars and .*'{name}'"):
        create_source(path)


def test_a_tar_without_images_among_others_is_refused_and_skipped_on_request(tmp_path: Path) -> None:
    path = write(tmp_path / "tars", {**flat(["cat", "dog"]), "fox": [("notes.txt", b"")]})
    with pytest.raises(DatasetError, match=r"fox\.tar' holds no image"):
        create_source(path)
    assert create_source(path, skip_missing=True).class_names == ["cat", "dog"]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path, {"a": [(f"{name}/{row}.png", png()) for name in "ab" for row in range(3)]}) / "a.tar"


def test_a_tar_that_is_cut_anywhere_is_refused(whole: Path) -> None:
    content = whole.read_bytes()
    with tarfile.open(whole) as archive:
        end = archive.getmembers()[-1].offset_data + 512
    assert content[end:].strip(b"\0") == b""
    for length in range(0, end + 1, 512):  # at a member's end, too, where tarfile stops without an error
        whole.write_bytes(content[:length])
        with pytest.raises(DatasetError, match=r"a\.tar"):
            create_source(whole)


def test_a_damaged_header_does_not_hide_the_members_after_it(whole: Path) -> None:
    content = bytearray(whole.read_bytes())
    with tarfile.open(whole) as archive:
        header = archive.getmembers()[3].offset
    content[header + 148 : header + 156] = b"7777777\0"  # its checksum
    whole.write_bytes(content)
    with pytest.raises(DatasetError, match="truncated or damaged after"):
        create_source(whole)


def test_tars_that_were_joined_are_refused(whole: Path) -> None:
    whole.write_bytes(whole.read_bytes() * 2)
    with pytest.raises(DatasetError, match="goes on after its end"):
        create_source(whole)


def test_a_link_to_a_class_folder_in_a_tar_is_refused_and_skipped_on_request(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": [("a/0.png", png())]}) / "a.tar"
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("b")
        link.type, link.linkname = tarfile.SYMTYPE, "a"
        archive.addfile(link)
    with pytest.raises(DatasetError, match=r"'b' in the tar .* is a link"):
        create_source(path)
    source = create_source(path, skip_missing=True)
    assert source.class_names == ["a"]
    assert len(source.skipped) == 1  # type: ignore[attr-defined]


def test_a_class_may_be_empty_in_one_shard_if_it_has_images_in_another(tmp_path: Path) -> None:
    path = write(tmp_path / "tars", {"s0": [("cat/0.png", png())], "s1": [("dog/0.png", png())]})
    for name in ("s0", "s1"):
        with tarfile.open(path / f"{name}.tar", "a") as archive:
            for folder in ("cat", "dog"):
                info = tarfile.TarInfo(folder)
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
    assert create_source(path).class_names == ["cat", "dog"]


def test_one_folder_of_one_name_in_every_tar_is_asked_about(tmp_path: Path) -> None:
    path = write(tmp_path / "tars", {name: [("images/0.png", png())] for name in ("cat", "dog")})
    with pytest.raises(DatasetError, match=r"all 2 tars in .* are in one folder, 'images': --labels tar"):
        create_source(path)
    assert create_source(path, labels="tar").class_names == ["cat", "dog"]
    assert create_source(path, labels="folder").class_names == ["images"]
