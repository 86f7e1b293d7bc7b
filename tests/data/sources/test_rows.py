"""Keys, rows and classes of the kinds that caches were made from before: what they were, they remain."""

from __future__ import annotations

import json
import tarfile
import unicodedata
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import PIL
import pytest
import timm
import torch
from commands import ROOT
from PIL import Image

import kdkit
from kdkit.building.config import BuildConfig
from kdkit.cache.format.keys import key_digests, match_rows
from kdkit.data import create_source
from kdkit.errors import CacheMismatchError
from kdkit.recipe import ViewRecipe

NAMES = [
    *("c2/10.png", "c2/9.png", "c2/deep/1.png", "c10/B.png", "c10/a b.jpg"),
    *("C3/x02.png", "C3/x1.png", "é 寺/1.jpeg", "b/2.JPG"),
]
ROWS = [
    *("b/2.JPG", "c2/9.png", "c2/10.png", "c2/deep/1.png", "C3/x1.png"),
    *("C3/x02.png", "c10/a b.jpg", "c10/B.png", "é 寺/1.jpeg"),
]
TARS = ["b.tar/2.JPG", "c2.tar/9.png", "c2.tar/10.png", "c10.tar/a b.jpg", "c10.tar/B.png"]
TARS += ["C3.tar/x1.png", "C3.tar/x02.png"]
KINDS = {
    "folder": ROWS,
    "images.zip": ROWS,
    "images.tar": [f"./{key}" for key in ROWS],
    "tars": TARS,
    "tars.tar": [f"tars/{key}" for key in TARS],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same nine images in each kind; the red of an image is 20 times its place in NAMES."""
    root = tmp_path_factory.mktemp("rows")
    for place, name in enumerate(NAMES):
        (root / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (place * 20, 0, 0)).save(root / "folder" / name)
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for name in reversed(NAMES):
            archive.write(root / "folder" / name, name)
    with tarfile.open(root / "images.tar", "w") as archive:
        for name in reversed(NAMES):
            archive.add(root / "folder" / name, arcname=f"./{name}")
    (root / "tars").mkdir()
    for label in ("c2", "c10", "C3", "b"):
        with tarfile.open(root / "tars" / f"{label}.tar", "w") as archive:
            for file in (root / "folder" / label).glob("*.*"):
                archive.add(file, arcname=file.name)
    with tarfile.open(root / "tars.tar", "w") as archive:
        archive.add(root / "tars", arcname="tars")
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_keys_rows_and_pixels_are_those_of_version_1(root: Path, kind: str) -> None:
    source = create_source(root / kind)
    assert list(source.keys) == KINDS[kind]
    classes = ["b", "c2", "C3", "c10", *(["é 寺"] if len(source) == len(NAMES) else [])]
    assert source.class_names == classes
    for row, key in enumerate(source.keys):
        image, target = source[row]
        name = key.removeprefix("./").removeprefix("tars/").replace(".tar/", "/")
        assert round(image.getpixel((0, 0))[0] / 20) == NAMES.index(name)
        assert classes[target] == name.split("/")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_shows_its_kind_place_images_and_classes_in_one_line(root: Path, kind: str) -> None:
    source = create_source(root / kind)
    names = {"folder": "FolderSource", "images.zip": "ZipSource"}
    images, classes = len(KINDS[kind]), len(source.class_names or ())
    assert repr(source) == f"{names.get(kind, 'TarSource')}('{root / kind}': {images} images, {classes} classes)"


def test_a_cache_with_class_names_in_the_decomposed_form_still_matches_its_folder(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "zé") for form in ("NFC", "NFD"))
    for name in ("a", decomposed):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(tmp_path / "data" / name / "0.png")
    recipe = ViewRecipe.evaluation(8)
    dataset = kdkit.open_dataset(tmp_path / "data", recipe=recipe)
    assert dataset.class_names == ["a", composed]
    dataset.class_names = ["a", decomposed]  # as versions wrote it that took the names of folders as they were
    config = BuildConfig(codec="float32", num_workers=0)
    teacher = kdkit.create_teacher(timm.create_model("test_vit", num_classes=2, img_size=8, patch_size=4))
    kdkit.build_cache(teacher, dataset, tmp_path / "c.h5", config)
    with h5py.File(tmp_path / "c.h5") as file:
        assert json.dumps(decomposed) in json.dumps(json.loads(file.attrs["kdkit"]))
    matched = kdkit.open_dataset(tmp_path / "data", cache=tmp_path / "c.h5")
    assert list(matched.keys) == ["a/0.png", f"{decomposed}/0.png"]
    kdkit.build_cache(teacher, kdkit.open_dataset(tmp_path / "data", recipe=recipe), tmp_path / "c.h5", config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_of_the_same_keys_in_another_order_gives_each_image_its_own_row(root: Path, kind: str) -> None:
    source = create_source(root / kind)
    keys = sorted(source.keys, reverse=True)  # as another version, or another reader, may have listed them
    digests = key_digests(keys)
    assert [keys[row] for row in match_rows(digests, key_digests(source.keys))] == list(source.keys)


BEFORE = ROOT / "cache" / "golden" / "folder-970d0ad.h5"
"""Built by kdkit at commit 970d0ad from the images of `of_before`: float16, 2 views, teacher MeanColour."""
BEFORE_ROWS = ["b/12.png", "c2/007.png", "c2/9.png", "c2/10.png", "C3/x1.jpeg", "C3/x02.png"]
BEFORE_ROWS += ["c10/a b.png", "c10/B.png", "é 寺/1.png", "é 寺/2.PNG"]
BEFORE_NUMBERS = (9, 2, 1, 0, 6, 5, 4, 3, 7, 8)


class MeanColour(torch.nn.Module):
    """The teacher of that cache: a linear function of the mean colour."""

    num_classes = 5

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = torch.nn.Linear(3, 5)
        torch.nn.init.constant_(self.fc.weight, 0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(images.mean((2, 3))) * images.new_tensor([1.0, 2, 3, 4, 5])
        return logits


def of_before(root: Path, kind: str) -> Path:
    """The images that the cache BEFORE was built from."""
    y, x, c = np.ogrid[:20, :24, :3]
    for key, n in zip(BEFORE_ROWS, BEFORE_NUMBERS, strict=True):
        (root / "images" / key).parent.mkdir(parents=True, exist_ok=True)
        pixels = (7 * x * (c + 1) + 13 * y * n + 29 * n + x * y * (c + n)) % 256
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / key, "PNG")
    if kind == "zip":
        with zipfile.ZipFile(root / "images.zip", "w") as archive:
            for key in BEFORE_ROWS:
                archive.write(root / "images" / key, key)
    if kind == "tar":
        with tarfile.open(root / "images.tar", "w") as tar:
            for key in BEFORE_ROWS:
                tar.add(root / "images" / key, key)
    return root / {"folder": "images"}.get(kind, f"images.{kind}")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_fault_29_a_cache_of_before_still_matches_the_images_it_was_built_from(tmp_path: Path, kind: str) -> None:
    data = of_before(tmp_path, kind)
    cache = kdkit.open_cache(BEFORE)
    if int(PIL.__version__.split(".")[0]) < 13:
        with pytest.raises(CacheMismatchError, match=r"shows other pixels .* pillow 13\.0\.0 has become 12"):
            kdkit.open_dataset(data, cache=cache)
        return
    dataset = kdkit.open_dataset(data, cache=cache)
    assert list(dataset.keys) == cache.keys() == BEFORE_ROWS
    assert dataset.class_names == cache.class_names == ["b", "c2", "C3", "c10", "é 寺"]
    assert dataset.targets is not None
    assert dataset.targets.tolist() == [0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    teacher = kdkit.create_teacher(MeanColour())
    for view in range(2):
        pixels = {row: zlib.crc32(dataset[row, view].image.numpy().tobytes()) for row in range(len(dataset))}
        assert cache.pixel_crc32(view) == pixels
        images = torch.stack([dataset[row, view].image for row in range(len(dataset))]).float() / 255
        decoded = cache.codecs["logits"].decode(cache.read_encoded(np.arange(10), view))
        with torch.no_grad():
            live = teacher.model(
                (images - torch.tensor(teacher.normalization.mean)[:, None, None])
                / torch.tensor(teacher.normalization.std)[:, None, None]
            )
        torch.testing.assert_close(decoded, live.log_softmax(1), rtol=0, atol=5e-3)
    config = BuildConfig(codec="float16", num_workers=0)
    (tmp_path / "again.h5").write_bytes(BEFORE.read_bytes())
    recipe = kdkit.open_cache(BEFORE).recipe
    built = kdkit.build_cache(teacher, kdkit.open_dataset(data, recipe=recipe), tmp_path / "again.h5", config)
    assert built.images_built == 0
