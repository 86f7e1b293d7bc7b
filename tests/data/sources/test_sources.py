"""Archives, map-style datasets, and names of datasets as sources."""

from __future__ import annotations

import dataclasses
import re
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from support import RECIPE, digits
from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder

from kdkit.data import (
    EpochSampler,
    FolderSource,
    MappedSource,
    ReplayedDataset,
    ReplayLoader,
    TarSource,
    ZipSource,
    create_source,
)
from kdkit.errors import DatasetError, MissingDependencyError
from kdkit.runtime.install import install_command
from kdkit.types import Normalization


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of two photographs in the class folders c2 and c10, which sort naturally."""
    root = tmp_path_factory.mktemp("images") / "train"
    for name, photograph in zip(("c2", "c10"), load_sample_images().images, strict=True):
        (root / name).mkdir(parents=True)
        for index in range(4):
            Image.fromarray(photograph[index * 50 : index * 50 + 48, :56]).save(root / name / f"{index}.png")
    return root


def write_tar(path: Path, folder: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for entry in sorted(folder.iterdir()):
            archive.add(entry, arcname=entry.name)
    return path


def write_zip(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
        archive.writestr("c2/._0.png", b"a Mac's shadow of a file")
    return path


WRITE = {"tar": write_tar, "zip": write_zip}


@pytest.mark.parametrize("kind", WRITE)
def test_an_archive_shows_what_its_folder_shows(tmp_path: Path, folder: Path, kind: str) -> None:
    plain = FolderSource(folder)
    archive = create_source(
        write_tar(tmp_path / "a.tar", folder) if kind == "tar" else write_zip(tmp_path / "a.zip", folder)
    )
    assert isinstance(archive, TarSource if kind == "tar" else ZipSource)
    assert list(archive.keys) == list(plain.keys)
    assert archive.class_names == plain.class_names == ["c2", "c10"]
    for index in range(len(plain)):
        (image, target), (expected, label) = archive[index], plain[index]
        assert np.array_equal(np.asarray(image), np.asarray(expected))
        assert target == label


def test_tars_in_a_folder_and_tars_in_a_tar_are_classes(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "tars").mkdir()
    for name in ("c2", "c10"):
        write_tar(tmp_path / "tars" / f"{name}.tar", folder / name)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "tars", arcname="tars")
    plain = FolderSource(folder)
    for source in (create_source(tmp_path / "tars"), create_source(tmp_path / "all.tar")):
        assert len(set(source.keys)) == 8
        assert source.class_names == ["c2", "c10"]
        shown = {(np.asarray(source[index][0]).tobytes(), source[index][1]) for index in range(8)}
        assert shown == {(np.asarray(plain[index][0]).tobytes(), plain[index][1]) for index in range(8)}


def test_a_zip_whose_members_begin_with_a_dot_shows_what_its_folder_shows(tmp_path: Path, folder: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in folder.rglob("*.png"):
            archive.writestr(f"./{file.relative_to(folder)}", file.read_bytes())
    source, plain = ZipSource(tmp_path / "a.zip"), FolderSource(folder)
    assert list(source.keys) == list(plain.keys)
    for index in range(8):
        assert np.array_equal(np.asarray(source[index][0]), np.asarray(plain[index][0]))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_workers_and_their_parent_read_one_archive_at_once(tmp_path: Path, folder: Path, kind: str) -> None:
    source = create_source(
        write_tar(tmp_path / "a.tar", folder) if kind == "tar" else write_zip(tmp_path / "a.zip", folder)
    )
    dataset = ReplayedDataset(source, RECIPE)
    expected = [dataset[row, 0].image for row in range(8)]  # the parent has opened it before its workers start
    loader = ReplayLoader(dataset, EpochSampler(range(8), 1, num_views=2), Normalization(), num_workers=2)
    for pixels in loader.pixel_batches():
        assert torch.equal(pixels.images[0], expected[int(pixels.row)])
        assert torch.equal(dataset[int(pixels.row), 0].image, expected[int(pixels.row)])


@pytest.mark.parametrize(("name", "message"), [("a.zip", "zip file"), ("a.tar", "listed in the tar")])
def test_what_is_no_archive_or_holds_no_image_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        create_source(tmp_path / name)
    (tmp_path / name).write_bytes(b"neither of the two")
    with pytest.raises(DatasetError, match=message):
        create_source(tmp_path / name)
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "a.tar", tmp_path / "empty")
    write_zip(tmp_path / "a.zip", tmp_path / "empty")
    with pytest.raises(DatasetError):
        create_source(tmp_path / name)


def test_a_tar_whose_images_lie_in_no_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder / "c2", arcname=".")
    with pytest.raises(DatasetError, match="outside any class folder"):
        TarSource(tmp_path / "a.tar")


def test_a_damaged_member_is_an_error_that_names_it(tmp_path: Path, folder: Path) -> None:
    path = write_zip(tmp_path / "a.zip", folder)
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"c10/0\.png.*unreadable"):
        ZipSource(path)[4]
    path = write_tar(tmp_path / "a.tar", folder)
    source = TarSource(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DatasetError, match=r"c10/3\.png.*unreadable"):
        source[7]


class Mine(Dataset[Any]):
    """A custom map-style dataset."""

    def __init__(self, form: str = "pil") -> None:
        self.form = form
        self.plain = digits(6)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        image, target = self.plain[index]
        array = np.asarray(image)
        forms = {"pil": image, "array": array, "tensor": torch.from_numpy(array.copy()).movedim(-1, 0)}
        if self.form == "mapping":
            return {"image": image, "label": target}
        return forms.get(self.form, torch.from_numpy(array / 255)), target


@pytest.mark.parametrize("form", ["pil", "array", "tensor", "mapping"])
def test_a_custom_dataset_is_a_source(form: str) -> None:
    source = MappedSource(Mine(form), class_names=[str(i) for i in range(10)])
    assert list(source.keys) == [str(index) for index in range(6)]
    for index in range(6):
        assert np.array_equal(np.asarray(source[index][0]), np.asarray(digits(6)[index][0]))
        assert source[index][1] == digits(6)[index][1]
    named = MappedSource(Mine(form), keys=digits(6).keys)
    there, here = ReplayedDataset(named, RECIPE), ReplayedDataset(digits(6), RECIPE)
    assert torch.equal(there[4, 1].image, here[4, 1].image)


def test_a_dataset_that_makes_views_by_itself_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"'0' is a torch\.float64 Tensor"):
        MappedSource(Mine("floats"))[0]
    with pytest.raises(DatasetError, match="6 samples came with 2 keys"):
        MappedSource(Mine(), keys=["a", "b"])


def test_torchvisions_and_timms_folders_tell_keys_and_classes(folder: Path) -> None:
    plain = FolderSource(folder)
    torchvisions, timms = MappedSource(ImageFolder(str(folder))), MappedSource(create_dataset("", root=str(folder)))
    assert sorted(torchvisions.keys) == sorted(plain.keys)
    assert torchvisions.class_names == ["c10", "c2"]
    assert (timms.keys, timms.class_names) == (plain.keys, plain.class_names)
    assert np.array_equal(np.asarray(timms[5][0]), np.asarray(plain[5][0]))
    assert timms[5][1] == plain[5][1]


def test_a_subset_keeps_the_keys_of_the_whole(folder: Path) -> None:
    whole = MappedSource(create_dataset("", root=str(folder)))
    part = MappedSource(Subset(Subset(whole.dataset, [1, 3, 5, 7]), [3, 0]))
    assert list(part.keys) == [whole.keys[7], whole.keys[1]]
    assert part.class_names == whole.class_names
    assert np.array_equal(np.asarray(part[0][0]), np.asarray(whole[7][0]))


def test_timms_dataset_never_returns_the_next_image(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "c2" / "1.png").write_bytes(b"no image")
    source = MappedSource(create_dataset("", root=str(tmp_path / "copy")))
    with pytest.raises(DatasetError, match=r"c2/1\.png"):
        source[1]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from ()


@pytest.mark.parametrize("name", ["hfids/imagenet", "tfds/mnist", "wds/shards"])
def test_streams_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(DatasetError, match="without length and ids"):
        create_source(name)
    with pytest.raises(DatasetError, match="without length and ids"):
        MappedSource(Stream())


def test_a_hugging_face_dataset_is_a_source(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="not installed; the extra `test` has it")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    source, plain = create_source(f"hfds/{folder.parent}"), FolderSource(folder)
    assert sorted(source.keys) == sorted(plain.keys)
    assert sorted(source.class_names or ()) == ["c10", "c2"]
    for index in range(8):
        image, target = source[index]
        expected, label = plain[list(plain.keys).index(source.keys[index])]
        assert np.array_equal(np.asarray(image), np.asarray(expected))
        assert (source.class_names or ())[target] == (plain.class_names or ())[label]
    with pytest.raises(DatasetError, match="cannot be loaded"):
        create_source(f"hfds/{folder.parent}:nosuchsplit")


def test_the_missing_package_of_hugging_face_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    monkeypatch.delitem(__import__("sys").modules, "timm.data.readers.reader_hfds", raising=False)
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("hfds"))):
        create_source("hfds/whatever")


@dataclasses.dataclass
class ArrowReader:
    """The interface of timm's reader of Hugging Face datasets, as far as keys need it."""

    paths: list[str | None]
    image_key: str = "image"
    type: str = "string"
    class_to_idx: dict[str, int] = dataclasses.field(default_factory=lambda: {"a": 0, "b": 1})

    @property
    def dataset(self) -> ArrowReader:
        return self

    def select_columns(self, names: list[str]) -> ArrowReader:
        assert names == ["image"]
        return self

    def with_format(self, name: str) -> ArrowReader:
        assert name == "arrow"
        return self

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> ArrowReader:
        return ArrowReader(self.paths[rows])

    def column(self, name: str) -> ArrowReader:
        return self

    def combine_chunks(self) -> ArrowReader:
        return self

    def field(self, name: str) -> ArrowReader:
        assert name == "path"
        return self

    def to_pylist(self) -> list[str | None]:
        return self.paths


@pytest.mark.parametrize(
    ("paths", "keys"),
    [
        (["/data/x/a/0.png", "/data/x/b/0.png"], ["a/0.png", "b/0.png"]),
        (["0.png", "1.png"], ["0.png", "1.png"]),
        (["0.png", "0.png"], ["0", "1"]),
        ([None, "1.png"], ["0", "1"]),
    ],
)
def test_keys_of_arrow_tables_are_paths_where_these_tell_samples_apart(
    paths: list[str | None], keys: list[str]
) -> None:
    from timm.data import ImageDataset

    source = MappedSource(ImageDataset("", reader=ArrowReader(paths)))
    assert list(source.keys) == keys
    assert source.class_names == ["a", "b"]


def test_workers_and_their_parent_read_timms_tar_dataset_at_once(tmp_path: Path, folder: Path) -> None:
    timms = create_dataset("", root=str(write_tar(tmp_path / "a.tar", folder)))
    dataset = ReplayedDataset(MappedSource(timms), RECIPE)
    expected = [dataset[row, 0].image for row in range(8)]  # the parent has opened it before its workers start
    assert timms.reader.tar_state.tf is not None
    loader = ReplayLoader(dataset, EpochSampler(range(8), 1, num_views=2), Normalization(), num_workers=2)
    for _ in range(10):
        loader.set_epoch(0)
        for pixels in loader.pixel_batches():
            assert torch.equal(pixels.images[0], expected[int(pixels.row)])
    timms.reader.tar_state.tf.close()


def test_timms_target_transform_is_applied(folder: Path) -> None:
    plain, moved = (
        MappedSource(create_dataset("", root=str(folder), target_transform=change))
        for change in (None, lambda t: 9 - t)
    )
    assert [9 - plain[row][1] for row in range(8)] == [moved[row][1] for row in range(8)]
    assert (plain.class_names, moved.class_names) == (["c2", "c10"], None)  # index 9 is not the class c10
