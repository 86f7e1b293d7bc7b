"""The digests of the images' files go with their rows when a cache grows, shrinks, is merged or recoded."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from support import CLASSES, Pixels, digits, tiny_model

from kdkit import CacheSpec, ViewRecipe, build_cache, create_teacher, extend_cache, open_cache, open_dataset
from kdkit.building.config import BuildConfig
from kdkit.building.merge import merge_caches, prune_cache
from kdkit.building.recode import recode_cache
from kdkit.cache import CachedTeacher, CacheWriter, ClassSelection, content
from kdkit.data import MultiLabelSource, ReplayedDataset
from kdkit.data.sources.classes import ClassesSource
from kdkit.data.sources.content import SampleContent
from kdkit.data.sources.selection import SelectedSource
from kdkit.errors import CacheMismatchError, ConfigError, UnreadableError
from kdkit.teachers import Teacher

RECIPE = ViewRecipe(size=8, hflip=0.0, num_views=2)
CONFIG = BuildConfig(codec="float32", num_workers=0)
COUNT = 24


def write(root: Path, row: int, seed: int | None = None) -> None:
    """An image of noise; all have the same number of bytes."""
    pixels = np.random.default_rng(row if seed is None else seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "BMP")
    place = root / str(row % 3) / f"{row:03d}.bmp"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(stream.getvalue())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row in range(COUNT):
        write(tmp_path / "images", row)
    return tmp_path / "images"


def some(folder: Path, rows: Any, recipe: ViewRecipe = RECIPE) -> ReplayedDataset:
    """These images of the folder, by their numbers; without labels, because `Pixels` has ten classes."""
    whole = open_dataset(folder, recipe=recipe).without_labels()
    places = {int(Path(key).stem): place for place, key in enumerate(whole.keys)}
    return whole.selecting([places[row] for row in rows])


def build(folder: Path, rows: Any, path: Path, config: BuildConfig = CONFIG) -> Path:
    build_cache(Teacher(Pixels()), some(folder, rows), path, config)
    return path


def extended(folder: Path, root: Path) -> Path:
    path = build(folder, range(15), root / "t.h5")
    assert extend_cache(Teacher(Pixels()), some(folder, range(COUNT)), path, num_workers=0).images_built == 2 * 9
    return path


def extended_by_views_too(folder: Path, root: Path) -> Path:
    path = build(folder, range(15), root / "t.h5")
    more = some(folder, range(COUNT), dataclasses.replace(RECIPE, num_views=3))
    extend_cache(Teacher(Pixels()), more, path, num_workers=0)
    return path


def pruned(folder: Path, root: Path) -> Path:
    path = build(folder, range(COUNT), root / "t.h5")
    prune_cache(path, some(folder, range(1, COUNT, 2)))
    return path


def merged(folder: Path, root: Path) -> Path:
    parts = [build(folder, rows, root / f"{at}.h5") for at, rows in enumerate([range(9), range(15, COUNT)])]
    merge_caches(parts, root / "t.h5")
    return root / "t.h5"


def merged_with_another_fit(folder: Path, root: Path) -> Path:
    lossy = dataclasses.replace(CONFIG, codec="lowrank", codec_options={"row_bytes": 12})
    parts = [build(folder, rows, root / f"{at}.h5", lossy) for at, rows in enumerate([range(9), range(9, COUNT)])]
    merge_caches(parts, root / "t.h5")
    return root / "t.h5"


def recoded(folder: Path, root: Path) -> Path:
    recode_cache(build(folder, range(COUNT), root / "old.h5"), root / "t.h5", codec="float16")
    return root / "t.h5"


def of_fewer_views(folder: Path, root: Path) -> Path:
    recode_cache(build(folder, range(COUNT), root / "old.h5"), root / "t.h5", num_views=1)
    return root / "t.h5"


CHANGES = [extended, extended_by_views_too, pruned, merged, merged_with_another_fit, recoded, of_fewer_views]
Change = Callable[[Path, Path], Path]


@pytest.mark.parametrize("change", CHANGES)
def test_each_row_has_the_size_the_crc_and_the_digest_of_its_file(folder: Path, tmp_path: Path, change: Change) -> None:
    path = change(folder, tmp_path)
    keys = open_cache(path).keys()
    with h5py.File(path, "r") as file:  # not through kdkit
        (found,) = (dataset for dataset in _datasets(file) if dataset.shape == (len(keys), 28))
        records = found[()]
    assert len(keys) >= 12
    for key, record in zip(keys, records, strict=True):
        plain = (folder / key).read_bytes()
        expected = len(plain).to_bytes(8, "little") + zlib.crc32(plain).to_bytes(4, "little")
        assert record.tobytes() == expected + hashlib.blake2b(plain, digest_size=16).digest()


def _datasets(file: h5py.File) -> list[h5py.Dataset]:
    found: list[h5py.Dataset] = []
    file.visititems(lambda name, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_an_image_replaced_before_or_after_the_change_is_refused_at_opening(
    folder: Path, tmp_path: Path, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its time alone: no file is drawn, no pixel compared. Its time is after the build, and before "today"."""
    path = change(folder, tmp_path)
    rows = sorted(int(Path(key).stem) for key in open_cache(path).keys())  # noqa: SIM118 -- of a cache, not of a dict
    recipe = open_cache(path).recipe
    monkeypatch.setattr(content, "SAMPLED", 0)
    monkeypatch.setattr("kdkit.cache.matching.check_pixels", lambda *arguments: None)
    open_cache(path, some(folder, rows, recipe))
    write(folder, rows[4], seed=1000)
    with pytest.raises(
        CacheMismatchError, match=f"another image under the name '.*{rows[4]:03d}.bmp'.*content differs"
    ):
        open_cache(path, some(folder, rows, recipe))
    assert open_cache(path, some(folder, [rows[0], rows[7]], recipe)).num_rows == len(rows)


def test_a_prune_by_another_folder_or_by_renamed_images_removes_nothing(folder: Path, tmp_path: Path) -> None:
    path = build(folder, range(COUNT), tmp_path / "t.h5")
    before = path.read_bytes()
    write(tmp_path / "other", 3, seed=1000)
    (tmp_path / "other" / "2").mkdir()
    shutil.copy(folder / "2" / "005.bmp", tmp_path / "other" / "2")
    with pytest.raises(CacheMismatchError, match=r"another image under the name '0/003\.bmp'"):
        prune_cache(path, some(tmp_path / "other", [3, 5]))
    (folder / "0" / "000.bmp").rename(folder / "0" / "100.bmp")
    renamed = some(folder, [*range(1, COUNT), 100])
    reason = r"1 images to remove from .* \('0/000\.bmp' is '0/100\.bmp'\).*--allow-mismatch dataset\.content"
    with pytest.raises(CacheMismatchError, match=reason):
        prune_cache(path, renamed)
    assert path.read_bytes() == before
    assert prune_cache(path, renamed, allow_mismatch=["dataset.content"]).num_rows == COUNT - 1


def test_a_prune_may_remove_all_images_of_a_class(folder: Path, tmp_path: Path) -> None:
    build_cache(
        create_teacher(tiny_model(num_classes=3)), open_dataset(folder, recipe=RECIPE), tmp_path / "t.h5", CONFIG
    )
    shutil.rmtree(folder / "1")
    assert prune_cache(tmp_path / "t.h5", open_dataset(folder, recipe=RECIPE)).num_rows == 16
    cache = open_cache(tmp_path / "t.h5", class_names=["0", "2"])
    assert len(open_dataset(folder, cache=cache)) == 16


def test_copies_of_cached_images_are_added_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = build(folder, range(10), tmp_path / "t.h5")
    shutil.copy(folder / "0" / "003.bmp", folder / "0" / "100.bmp")
    assert extend_cache(Teacher(Pixels()), some(folder, [10, 100]), path, num_workers=0).images_built == 4
    assert "new images that are copies: 1, '0/100.bmp' is '0/003.bmp'" in caplog.text


def test_unreadable_further_images_are_all_named_or_left_out_and_recorded(folder: Path, tmp_path: Path) -> None:
    path = build(folder, range(10), tmp_path / "t.h5")
    before = path.read_bytes()
    for name in ("0/012.bmp", "2/014.bmp"):
        (folder / name).write_bytes((folder / name).read_bytes()[:100])

    def extend(**options: Any) -> int:
        return extend_cache(Teacher(Pixels()), some(folder, range(16)), path, num_workers=0, **options).images_built

    with pytest.raises(UnreadableError, match=r"2 of 6 images cannot be read: '0/012\.bmp', '2/014\.bmp'"):
        extend()
    assert path.read_bytes() == before
    assert extend(unreadable="skip") == 8
    cache = open_cache(path)
    assert (cache.num_rows, sorted(cache.absent_keys)) == (14, ["0/012.bmp", "2/014.bmp"])
    assert extend() == 0
    prune_cache(path, some(folder, range(13)))
    assert sorted(open_cache(path).absent_keys) == ["0/012.bmp", "2/014.bmp"]


def test_the_changed_cache_is_as_old_as_its_oldest_part(folder: Path, tmp_path: Path) -> None:
    """Or else a file that was replaced between the build and the change would not look changed."""
    path = build(folder, range(COUNT), tmp_path / "t.h5")
    begun = _begun(path)
    recode_cache(path, tmp_path / "r.h5", codec="int8")
    prune_cache(path, some(folder, range(10)))
    assert _begun(path) == _begun(tmp_path / "r.h5") == begun


def _begun(path: Path) -> float:
    with h5py.File(path, "r") as file:
        return float(json.loads(file.attrs["build"])["begun"])


def test_a_replaced_image_is_found_in_a_part_of_the_classes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_dataset(folder, recipe=RECIPE)
    build_cache(create_teacher(tiny_model(num_classes=3)), whole, tmp_path / "t.h5", CONFIG)
    monkeypatch.setattr("kdkit.cache.matching.check_pixels", lambda *arguments: None)
    cache = open_cache(tmp_path / "t.h5", class_names=["2", "0"])
    assert list(open_dataset(folder, cache=cache).keys) == [key for key in whole.keys if key[0] != "1"]
    write(folder, 5, seed=1000)
    with pytest.raises(CacheMismatchError, match=r"another image under the name '2/005\.bmp'"):
        open_dataset(folder, cache=cache)


def test_the_content_of_chosen_classes_and_samples_is_that_of_their_files(folder: Path) -> None:
    source = SelectedSource(ClassesSource(open_dataset(folder, recipe=RECIPE).source, ["2", "0"]), [7, 0])
    found = SampleContent(source)
    assert found.kind == "files"
    assert [found.read(row) for row in range(2)] == [(folder / key).read_bytes() for key in source.keys]


def test_caches_of_which_one_has_no_digests_are_merged_without_them_and_this_is_said(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = build(folder, range(10), tmp_path / "a.h5")
    first = CachedTeacher(path)
    spec = CacheSpec(
        keys=["x", "y"],
        num_views=2,
        codecs=first.codecs,
        teacher=first.teacher,
        recipe=first.recipe,
        class_names=first.class_names,
    )
    with CacheWriter.create(tmp_path / "b.h5", spec) as writer:
        for shard in writer.missing():
            writer.write(shard, {"logits": np.zeros((2, 10), np.float32)})
        writer.finish()
    merge_caches([path, tmp_path / "b.h5"], tmp_path / "t.h5")
    assert "digests of images are left out" in caplog.text
    assert open_cache(tmp_path / "t.h5").metadata.content_kind is None
    assert len(open_cache(tmp_path / "t.h5").content()) == 0


def test_multi_label_caches_are_recoded_in_their_own_codecs_and_have_no_part_of_the_classes(tmp_path: Path) -> None:
    labels = np.eye(10, dtype=np.float32)[np.arange(12) % 10]
    dataset = ReplayedDataset(MultiLabelSource(digits(12), labels, class_names=CLASSES), RECIPE)
    build_cache(create_teacher(tiny_model()), dataset, tmp_path / "m.h5", CONFIG)
    recode_cache(tmp_path / "m.h5", tmp_path / "r.h5", codec="float16")
    old, new = open_cache(tmp_path / "m.h5"), open_cache(tmp_path / "r.h5", dataset)
    rows = np.arange(12)
    assert (old.codecs["logits"].name, new.codecs["logits"].name) == ("sigmoid_float32", "sigmoid_float16")
    assert np.array_equal(new.decode_logits(rows, 1).half().numpy(), old.decode_logits(rows, 1).half().numpy())
    assert np.array_equal(new.content(), old.content())
    for kind, options in ((r"lowrank", {"codec": "lowrank"}), ("leave out row_bytes", {"row_bytes": 9})):
        with pytest.raises(ConfigError, match=kind):
            recode_cache(tmp_path / "m.h5", tmp_path / "x.h5", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is multi-label, whose classes do not share one distribution"):
        ClassSelection(old, ["1", "2"])
