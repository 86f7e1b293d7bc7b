"""Fault 39: an image replaced under its name after the build is noticed, in every kind of data and in every row."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import timm.data
import torchvision.datasets
from PIL import Image
from support import RECIPE, Pixels, loader_for, tiny_model

from kdkit import CacheSpec, build_cache, extend_cache, open_cache, open_dataset, verify_cache
from kdkit.building.build import BuildReport
from kdkit.building.config import BuildConfig
from kdkit.cache import content, create_codec
from kdkit.cache.content import CONTENT_FIELD
from kdkit.data import ArraySource, MappedSource
from kdkit.errors import CacheMismatchError, ConfigError
from kdkit.recipe import ViewRecipe
from kdkit.tasks import LogitDistillationTask
from kdkit.teachers import Teacher
from kdkit.training.config import TrainConfig
from kdkit.training.train import train

COUNT = 30
CONFIG = BuildConfig(codec="float32", num_workers=0)


def as_bmp(seed: int, side: int = 8) -> bytes:
    """An image of noise; all of one side have the same number of bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "BMP")
    return stream.getvalue()


def write_folder(root: Path, contents: list[bytes]) -> Path:
    for row, each in enumerate(contents):
        place = root / "images" / str(row % 3) / f"{row:05d}.bmp"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(each)
    return root / "images"


def write_zip(root: Path, contents: list[bytes]) -> Path:
    with zipfile.ZipFile(root / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for row, each in enumerate(contents):
            archive.writestr(f"{row % 3}/{row:05d}.bmp", each)
    return root / "images.zip"


def write_tar(root: Path, contents: list[bytes]) -> Path:
    with tarfile.open(root / "images.tar", "w") as archive:
        for row, each in enumerate(contents):
            _add(archive, f"{row % 3}/{row:05d}.bmp", each)
    return root / "images.tar"


def write_shards(root: Path, contents: list[bytes]) -> Path:
    (root / "shards").mkdir(exist_ok=True)
    with tarfile.open(root / "shards" / "shard-00000.tar", "w") as archive:
        for row, each in enumerate(contents):
            _add(archive, f"{row:05d}.bmp", each)
            _add(archive, f"{row:05d}.cls", str(row % 3).encode())
    return root / "shards"


def _add(archive: tarfile.TarFile, name: str, each: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(each)
    archive.addfile(info, io.BytesIO(each))


def write_table(root: Path, contents: list[bytes]) -> Path:
    images = write_folder(root, contents)
    with open(root / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([f"images/{each.parent.name}/{each.name}", each.parent.name] for each in images.rglob("*.bmp"))
    return root / "list.csv"


def torchvision_folder(root: Path, contents: list[bytes]) -> MappedSource:
    return MappedSource(torchvision.datasets.ImageFolder(str(write_folder(root, contents))))


def timm_folder(root: Path, contents: list[bytes]) -> MappedSource:
    images = write_folder(root, contents)
    for file in images.rglob("*.bmp"):  # timm lists no .bmp
        file.rename(file.with_suffix(".png"))
    return MappedSource(timm.data.ImageDataset(str(images)))


def hugging_face(root: Path, contents: list[bytes]) -> MappedSource:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("012"))})
    images = [{"bytes": each, "path": None} for each in contents]
    labels = [row % 3 for row in range(len(contents))]
    return MappedSource(datasets.Dataset.from_dict({"image": images, "label": labels}, features=features))


def in_memory(root: Path, contents: list[bytes]) -> ArraySource:
    images = np.stack([np.asarray(Image.open(io.BytesIO(each)).resize((8, 8))) for each in contents])
    return ArraySource(images, [row % 3 for row in range(len(contents))], class_names=list("012"))


FILES = [write_folder, write_zip, write_tar, write_shards, write_table, torchvision_folder]
KINDS = [*FILES, timm_folder, hugging_face, in_memory]


def build(data: Any, path: Path, recipe: ViewRecipe = RECIPE) -> BuildReport:
    return build_cache(Teacher(Pixels()), _nameless(data, recipe), path, CONFIG)


def _nameless(data: Any, recipe: ViewRecipe = RECIPE, **options: Any) -> Any:
    """The images without class names, which `Pixels` does not know."""
    return open_dataset(data, recipe=recipe, **options).without_labels()


@pytest.mark.parametrize("write", KINDS)
@pytest.mark.parametrize("side", [8, 9])
def test_fault_39_a_replaced_image_is_found_by_verify_in_any_kind_of_data(
    tmp_path: Path, write: Callable[[Path, list[bytes]], Any], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [as_bmp(row) for row in range(COUNT)]
    build(write(tmp_path, contents), tmp_path / "t.h5")
    data = write(tmp_path, contents)  # the same images again, with new times
    assert verify_cache(tmp_path / "t.h5", dataset=_nameless(data)).num_files == COUNT
    contents[17] = as_bmp(1000, side)
    monkeypatch.setattr("kdkit.cache.matching.check_content", lambda *arguments: None)  # chance may find it at opening
    monkeypatch.setattr("kdkit.cache.matching.check_pixels", lambda *arguments: None)
    with pytest.raises(CacheMismatchError, match=r"from other images under the names of 1 of 30 \('.*17"):
        verify_cache(tmp_path / "t.h5", dataset=_nameless(write(tmp_path, contents)))


@pytest.mark.parametrize("write", FILES)
@pytest.mark.parametrize("side", [8, 9])
def test_fault_39_a_replaced_file_is_found_at_opening_by_its_size_its_checksum_or_its_time(
    tmp_path: Path, write: Callable[[Path, list[bytes]], Any], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [as_bmp(row) for row in range(COUNT)]
    build(write(tmp_path, contents), tmp_path / "t.h5")
    contents[17] = as_bmp(1000, side)
    data = write(tmp_path, contents)
    monkeypatch.setattr(content, "SAMPLED", 0)
    monkeypatch.setattr("kdkit.cache.matching.check_pixels", lambda *arguments: None)
    reason = {8: "CRC-32" if write is write_zip else "its content differs", 9: "its size in bytes was 246 and is 306"}
    with pytest.raises(CacheMismatchError, match=f"another image under the name '.*17.*{reason[side]}"):
        open_cache(tmp_path / "t.h5", _nameless(data))
    open_cache(tmp_path / "t.h5").match(_nameless(data), allow_mismatch=[CONTENT_FIELD])


def test_files_that_all_have_new_times_are_sampled_anew_at_each_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [as_bmp(row) for row in range(COUNT)]
    build(write_folder(tmp_path, contents), tmp_path / "t.h5")
    contents[17] = as_bmp(1000)
    data = write_folder(tmp_path, contents)
    monkeypatch.setattr(content, "SUSPECTS", 3)
    monkeypatch.setattr(content, "SAMPLED", 3)
    monkeypatch.setattr("kdkit.cache.matching.check_pixels", lambda *arguments: None)
    refused = 0
    for _ in range(60):
        try:
            open_cache(tmp_path / "t.h5", _nameless(data))
        except CacheMismatchError:
            refused += 1
    assert 2 <= refused <= 30  # each time with the chance 1 - (27 / 30) ** 2, or a little less


@pytest.mark.parametrize("kind", ["build", "extend"])
def test_a_build_or_an_extension_does_not_go_on_with_a_replaced_image(tmp_path: Path, kind: str) -> None:
    contents = [as_bmp(row) for row in range(COUNT)]
    data = write_folder(tmp_path, contents)
    build(data, tmp_path / "t.h5")
    contents[17] = as_bmp(1000, 9)
    write_folder(tmp_path, contents)
    more = ViewRecipe(**{**vars(RECIPE), "num_views": 3})
    teacher, dataset = Teacher(Pixels()), _nameless(data, RECIPE if kind == "build" else more)
    go_on = partial(build_cache, config=CONFIG) if kind == "build" else extend_cache
    with pytest.raises(CacheMismatchError, match=r"another image under the name '.*17"):
        go_on(teacher, dataset, tmp_path / "t.h5")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_fault_39_training_stops_at_an_image_that_is_replaced_while_it_runs(tmp_path: Path, num_workers: int) -> None:
    contents = [as_bmp(row) for row in range(COUNT)]
    data = write_folder(tmp_path, contents)
    build(data, tmp_path / "t.h5")
    dataset = _nameless(data)
    cache = open_cache(tmp_path / "t.h5", dataset)
    task = LogitDistillationTask(tiny_model(), None, task_loss_weight=0.0)
    loading = loader_for(dataset, task, batch_size=10, num_workers=num_workers)
    train(task, loading, TrainConfig(epochs=1), teacher_source=cache)
    contents[17] = as_bmp(1000)
    write_folder(tmp_path, contents)
    with pytest.raises(CacheMismatchError, match=r"shows other pixels for '2/00017.bmp' \(view [01]\)"):
        train(task, loader_for(dataset, task, batch_size=10), TrainConfig(epochs=1), teacher_source=cache)


def test_training_compares_the_hashed_rows_alone_and_no_view_at_another_size(tmp_path: Path) -> None:
    data = write_folder(tmp_path, [as_bmp(row) for row in range(3)])
    recipe = ViewRecipe(size=8, teacher_size=16)
    build(data, tmp_path / "t.h5", recipe)
    dataset = _nameless(data, recipe)
    cache = open_cache(tmp_path / "t.h5", dataset)
    for shown in (dataset, dataset.with_teacher_view()):
        (batch,) = loader_for(shown, tiny_model())
        assert cache(batch).logits is not None
    wide = ArraySource(np.zeros((1100, 4, 4, 3), dtype=np.uint8), [-1] * 1100)
    (batch,) = loader_for(open_dataset(wide, recipe=ViewRecipe(size=4)), tiny_model(), batch_size=1100)
    hashed = {row for row, crc in zip(batch.row.tolist(), batch.pixel_crc32.tolist(), strict=True) if crc >= 0}
    assert hashed == {*range(1024), 1024, 1088}


def test_a_cache_of_a_folder_is_also_that_of_a_zip_of_it_but_not_of_its_decoded_pixels(tmp_path: Path) -> None:
    contents = [as_bmp(row) for row in range(COUNT)]
    build(write_folder(tmp_path, contents), tmp_path / "t.h5")
    dataset = _nameless(write_zip(tmp_path, contents))
    assert verify_cache(tmp_path / "t.h5", dataset=dataset).num_files == COUNT
    pixels = in_memory(tmp_path, contents)
    order = np.argsort([row % 3 for row in range(COUNT)], kind="stable")
    keys = [f"{row % 3}/{row:05d}.bmp" for row in order]
    renamed = ArraySource(pixels.images[order], [0] * COUNT, keys=keys)
    assert verify_cache(tmp_path / "t.h5", dataset=_nameless(renamed)).num_files == 0


def test_the_records_are_those_that_the_format_describes(tmp_path: Path) -> None:
    contents = [as_bmp(row, 8 + row % 2) for row in range(COUNT)]
    build(write_folder(tmp_path, contents), tmp_path / "t.h5")
    keys = open_cache(tmp_path / "t.h5").keys()
    with h5py.File(tmp_path / "t.h5", "r") as file:
        records = file["rows/content"][()]
    for key, record in zip(keys, records, strict=True):
        each = contents[int(Path(key).stem)]
        assert int.from_bytes(record[:8].tobytes(), "little") == len(each)
        assert int.from_bytes(record[8:12].tobytes(), "little") == zlib.crc32(each)
        assert record[12:].tobytes() == hashlib.blake2b(each, digest_size=16).digest()


def test_a_folder_with_other_times_still_opens_and_an_older_cache_has_no_records(tmp_path: Path) -> None:
    data = write_folder(tmp_path, [as_bmp(row) for row in range(COUNT)])
    build(data, tmp_path / "t.h5")
    for file in data.rglob("*.bmp"):
        os.utime(file, (0, 2_000_000_000))
    open_cache(tmp_path / "t.h5", _nameless(data))
    golden = open_cache(Path(__file__).parents[2] / "cache" / "golden" / "v1-float32.h5")
    assert golden.metadata.content_kind is None
    assert golden.content().shape == (0, 28)


def test_records_that_no_cache_can_hold_are_refused() -> None:
    spec: dict[str, Any] = {"keys": ["a"], "num_views": 1, "codecs": {"logits": create_codec("float32", 2)}}
    with pytest.raises(ConfigError, match=r"content must be uint8 \[1, 28\]"):
        CacheSpec(**spec, content=np.zeros((1, 27), dtype=np.uint8))
    with pytest.raises(ConfigError, match="content_kind must be files or pixels, got 'mtimes'"):
        CacheSpec(**spec, content=np.zeros((1, 28), dtype=np.uint8), content_kind="mtimes")
