"""What a cache was made with, and each single change of it: refused before the first step, and named."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import digits, digits_dataset, tiny_model, write_digits

from kdkit import build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher, pixels
from kdkit.data import ArraySource, FolderSource, ReplayedDataset
from kdkit.errors import CacheMismatchError
from kdkit.recipe import ViewRecipe

RECIPE = ViewRecipe(
    size=16,
    auto_augment="rand-m5-t3a",
    color_jitter=0.2,
    erasing=0.3,
    erasing_count=2,
    mixup_alpha=0.4,
    cutmix_alpha=0.6,
    mix_prob=0.9,
    num_views=2,
)
MUTATIONS = {
    "views_per_partner": 2,
    "size": 17,
    "scale": (0.09, 1.0),
    "ratio": (0.75, 1.33),
    "interpolation": "bilinear",
    "hflip": 0.45,
    "auto_augment": "rand-m6-t3a",
    "color_jitter": 0.21,
    "erasing": 0.31,
    "erasing_mode": "pixel",
    "erasing_count": 1,
    "mixup_alpha": 0.41,
    "cutmix_alpha": 0.61,
    "mix_prob": 0.91,
    "switch_prob": 0.51,
    "num_views": 3,
    "seed": 1,
    "crop_pct": 0.9,
}
EXACT = BuildConfig(codec="float32", num_workers=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CachedTeacher:
    path = tmp_path_factory.mktemp("cache") / "t.h5"
    build_cache(create_teacher(tiny_model()), digits_dataset(6, RECIPE), path, EXACT)
    return open_cache(path, digits_dataset(6, RECIPE))


@pytest.mark.parametrize("field", MUTATIONS)
def test_fault_14_one_changed_field_of_the_recipe_is_refused_and_named(cache: CachedTeacher, field: str) -> None:
    other = digits_dataset(6, dataclasses.replace(RECIPE, **{field: MUTATIONS[field]}))
    with pytest.raises(CacheMismatchError, match=rf"recipe\.{field} = .*, this run has "):
        cache.match(other)
    with pytest.raises(CacheMismatchError, match=rf"recipe\.{field} = .*, this run has "):
        build_cache(create_teacher(tiny_model()), other, cache.path, EXACT)


class Records:
    """Stands for a cache that records one byte per view."""

    def match_keys(self, keys: Sequence[str]) -> np.ndarray:
        return np.arange(len(keys))

    def read_records(self, rows: np.ndarray, view: int) -> torch.Tensor:
        return torch.zeros(len(rows), 1, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("field", "value"), [("augment", False), ("teacher_size", 24), ("transform", "mine"), ("recorded", "center")]
)
def test_every_other_field_is_compared_too(tmp_path: Path, field: str, value: object) -> None:
    assert {field.name for field in dataclasses.fields(ViewRecipe)} == {
        *MUTATIONS,
        "augment",
        "teacher_size",
        "transform",
        "recorded",
    }
    plain = ViewRecipe(size=16)
    build_cache(create_teacher(tiny_model()), digits_dataset(4, plain), tmp_path / "t.h5", EXACT)
    changed = dataclasses.replace(plain, **{field: value})
    own = (lambda image: image.resize((16, 16))) if field == "transform" else None
    other = ReplayedDataset(digits(4), changed, transform=own, transform_id="mine" if own else None, records=Records())
    with pytest.raises(CacheMismatchError, match=rf"recipe\.{field} = .*, this run has "):
        open_cache(tmp_path / "t.h5", other)


@dataclasses.dataclass
class Turned:
    """A transform whose repr shows one of its two parameters."""

    angle: float
    hidden: float = dataclasses.field(default=0, repr=False)

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.resize((16, 16)).rotate(self.angle + self.hidden)


def test_a_changed_custom_transform_is_refused_by_its_identity_or_else_by_its_pixels(tmp_path: Path) -> None:
    recipe = ViewRecipe(size=16)
    dataset = ReplayedDataset(digits(4), recipe, transform=Turned(3))
    build_cache(create_teacher(tiny_model()), dataset, tmp_path / "t.h5", EXACT)
    open_cache(tmp_path / "t.h5", ReplayedDataset(digits(4), recipe, transform=Turned(3)))
    with pytest.raises(CacheMismatchError, match=r"recipe\.transform = .*angle=3.*, this run has .*angle=4"):
        open_cache(tmp_path / "t.h5", ReplayedDataset(digits(4), recipe, transform=Turned(4)))
    with pytest.raises(CacheMismatchError, match="shows other pixels for 'digit-"):
        open_cache(tmp_path / "t.h5", ReplayedDataset(digits(4), recipe, transform=Turned(3, hidden=90)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 digits as an image folder."""
    return write_digits(tmp_path / "images", 20)


def test_an_added_a_removed_and_a_renamed_image_are_refused_and_named(folder: Path) -> None:
    recipe = dataclasses.replace(RECIPE, size=8)
    path = folder.parent / "t.h5"
    build_cache(create_teacher(tiny_model()), ReplayedDataset(FolderSource(folder), recipe), path, EXACT)
    open_cache(path, ReplayedDataset(FolderSource(folder), recipe))
    first = folder / "0" / "000.png"
    changes: dict[str, Callable[[], object]] = {
        "0/00.png": lambda: shutil.copy(first, folder / "0" / "00.png"),
        "3/003.png": (folder / "3" / "003.png").unlink,
        "0/0000.png": lambda: first.rename(folder / "0" / "0000.png"),
    }
    for name, change in changes.items():
        shutil.copytree(folder, folder.parent / "kept")
        change()
        with pytest.raises(CacheMismatchError, match=f"'{name}'"):
            open_cache(path, ReplayedDataset(FolderSource(folder), recipe))
        shutil.rmtree(folder)
        (folder.parent / "kept").rename(folder)


def test_rows_and_pairs_follow_the_keys_of_a_re_ordered_dataset(cache: CachedTeacher) -> None:
    plain = digits(6)
    order = [3, 0, 5, 1, 4, 2]
    moved = ArraySource(
        plain.images[order], plain.targets[order], keys=[plain.keys[i] for i in order], class_names=plain.class_names
    )
    cache.match(ReplayedDataset(moved, RECIPE))  # replays pixels of both views, mixed with the partners' new rows
    assert cache._rows is not None
    assert cache._rows.tolist() == order


def test_other_pixels_name_the_libraries_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = pixels.transform_versions()
    monkeypatch.setattr("kdkit.building.plan.transform_versions", lambda: {**now, "pillow": "9.9", "timm": "0.1"})
    build_cache(create_teacher(tiny_model()), digits_dataset(6), tmp_path / "t.h5", EXACT)
    open_cache(tmp_path / "t.h5", digits_dataset(6))  # another version alone harms nothing
    changed = digits(6)
    changed.images = changed.images ^ 0x10
    message = f"pillow 9.9 has become {now['pillow']}, timm 0.1 has become {now['timm']}; use what"
    with pytest.raises(CacheMismatchError, match=message):
        open_cache(
            tmp_path / "t.h5",
            ReplayedDataset(changed, digits_dataset(6).recipe),
            allow_mismatch={"dataset.content"},
        )


def test_a_transform_library_that_draws_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ViewRecipe(size=16, num_views=2)
    build_cache(create_teacher(tiny_model()), digits_dataset(6, recipe), tmp_path / "t.h5", EXACT)
    plain = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *more, **named: plain(self, size, Image.Resampling.BOX)
    )
    with pytest.raises(CacheMismatchError, match=r"shows other pixels for 'digit-.*its libraries are the same"):
        open_cache(tmp_path / "t.h5", digits_dataset(6, recipe))


@pytest.mark.parametrize(
    "num_views",
    [
        1,
        pytest.param(40, marks=pytest.mark.slow),
        pytest.param(64, marks=pytest.mark.slow),
        pytest.param(100, marks=pytest.mark.slow),
    ],
)
def test_a_change_of_the_last_rows_alone_is_found_however_many_views_there_are(num_views: int) -> None:
    recipe = ViewRecipe(size=8, num_views=num_views)
    plain = digits(100)
    images = plain.images.copy()
    images[-10:] = images[-10:][::-1]
    changed = ArraySource(images, plain.targets, keys=plain.keys, class_names=plain.class_names)
    seen = digits_dataset(100, recipe)
    hashes = {
        view: {row: pixels.pixel_crc32(seen[row, view].image) for row in range(100)}
        for view in pixels.checked_views(num_views)
    }
    check = functools.partial(pixels.check_pixels, cache_rows=np.arange(100), hashes=hashes, made_with={}, origin="it")
    check(seen)
    with pytest.raises(CacheMismatchError, match="shows other pixels for 'digit-9"):
        check(ReplayedDataset(changed, recipe))
