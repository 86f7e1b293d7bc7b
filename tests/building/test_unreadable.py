"""Images that cannot be read: a build names all of them in one line, or leaves them out, as does all that follows."""

from __future__ import annotations

import csv
import dataclasses
import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from support import RECIPE, Watched, cache_contents, tiny_model, write_digits

from kdkit import build_cache, create_teacher, extend_cache, open_cache, open_dataset, verify_cache
from kdkit.building.config import BuildConfig
from kdkit.building.like import open_like
from kdkit.cache.export import export_cache
from kdkit.cli import main
from kdkit.data import FolderSource, ReplayedDataset
from kdkit.errors import CacheMismatchError, ConfigError, DatasetError, UnreadableError
from kdkit.recipe import ViewRecipe
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.distill import distill

COUNT = 40
BAD = ("1/011.png", "3/013.png", "6/034.png")
MIXED = ViewRecipe.preset("funmatch", size=32, num_views=2, seed=3)
SKIP = BuildConfig(codec="float32", num_workers=0, batch_size=16, unreadable="skip")
STOP = BuildConfig(codec="float32", num_workers=0, batch_size=16)


def damage(images: Path) -> Path:
    for key in BAD:
        (images / key).write_bytes((images / key).read_bytes()[:60])
    return images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return damage(write_digits(tmp_path / "images", COUNT))


def zipped(images: Path) -> Path:
    with zipfile.ZipFile(images.parent / "images.zip", "w") as archive:
        for file in sorted(images.rglob("*.png")):
            archive.write(file, file.relative_to(images).as_posix())
    return images.parent / "images.zip"


def tarred(images: Path) -> Path:
    with tarfile.open(images.parent / "images.tar", "w") as archive:
        for file in sorted(images.rglob("*.png")):
            archive.add(file, file.relative_to(images).as_posix())
    return images.parent / "images.tar"


def tabled(images: Path) -> Path:
    with open(images / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows(
            [path.relative_to(images).as_posix(), path.parent.name] for path in sorted(images.rglob("*.png"))
        )
    return images / "list.csv"


def skipping_cache(images: Path, recipe: ViewRecipe = RECIPE, name: str = "t.h5") -> Path:
    dataset = open_dataset(images, recipe=recipe)
    return build_cache(create_teacher(tiny_model(seed=1)), dataset, images.parent / name, SKIP).path


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("fails_in", ["the fit", "the build"])
def test_fault_18_a_build_that_stops_names_every_bad_image_in_one_line(
    images: Path, num_workers: int, fails_in: str, tmp_path: Path
) -> None:
    dataset = open_dataset(images, recipe=RECIPE)
    teacher = create_teacher(tiny_model(seed=1))
    config = BuildConfig(codec="float32", num_workers=num_workers, batch_size=16)
    if fails_in == "the build":  # the fit has read all rows of so few images
        for key in BAD:
            (images / key).write_bytes((images / "0/000.png").read_bytes())
        teacher = Watched(lambda batch, logits: damage(images) and None if batch == 2 else None)
    with pytest.raises(UnreadableError) as raised:
        build_cache(teacher, dataset, tmp_path / "t.h5", config)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(f"3 of 40 images cannot be read: {', '.join(map(repr, BAD))} (the first: ")
    assert "Traceback" not in message
    assert list(raised.value.samples) == list(BAD)
    assert all("truncated" in reason for reason in raised.value.samples.values())


@pytest.mark.slow
def test_the_command_prints_a_line_for_each_bad_image_and_no_traceback(
    images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(tiny_model(seed=1).state_dict(), images.parent / "teacher.pt")
    command = [
        "cache", "build", str(images), "-o", str(images.parent / "t.h5"), "--size", "32", "--workers", "1",
        "--teacher", "test_resnet", "--teacher.checkpoint", str(images.parent / "teacher.pt"),
    ]  # fmt: skip
    assert main(command) == 1
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert len([line for line in printed.splitlines() if "unreadable: the image" in line]) == len(BAD)
    assert printed.splitlines()[-1].startswith("kdkit: error: 3 of 40 images cannot be read")
    assert main([*command, "--unreadable", "skip"]) == 0
    assert "37 images x 1 views" in capfd.readouterr().out
    assert main(["cache", "info", str(images.parent / "t.h5")]) == 0
    assert "3 unreadable images" in capfd.readouterr().out


def test_a_view_that_cannot_be_drawn_of_a_readable_image_is_named_as_it_is(images: Path, tmp_path: Path) -> None:
    class Fragile:
        def __call__(self, image: Any) -> Any:
            if image.size == (9, 9):
                raise ZeroDivisionError("no such view")
            return torch.zeros(3, 32, 32, dtype=torch.uint8)

        def __repr__(self) -> str:
            return "Fragile()"

    for key in BAD:
        (images / key).unlink()
    source = FolderSource(images)
    image, _ = source[5]
    image.resize((9, 9)).save(images / source.keys[5])
    dataset = ReplayedDataset(source, ViewRecipe(size=32), transform=Fragile())
    with pytest.raises(UnreadableError, match=f"{source.keys[5]!r} could not be loaded: ZeroDivisionError: no such"):
        build_cache(create_teacher(tiny_model()), dataset, tmp_path / "t.h5", STOP)


@pytest.mark.parametrize("packed", [lambda images: images, zipped, tarred, tabled])
def test_fault_18_skipped_images_are_recorded_and_have_no_rows_in_any_kind_of_data(
    images: Path, packed: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = packed(images)
    build_cache(create_teacher(tiny_model(seed=1)), open_dataset(data, recipe=RECIPE), tmp_path / "t.h5", SKIP)
    cache = open_cache(tmp_path / "t.h5")
    assert cache.absent_keys == list(BAD)
    assert cache.num_rows == COUNT - len(BAD)
    assert not set(BAD) & set(cache.keys())
    dataset = open_dataset(data, cache=cache)
    assert list(dataset.keys) == cache.keys()
    with h5py.File(tmp_path / "t.h5", "r") as file:  # as FORMAT.md has it
        assert zlib.decompress(file["rows/absent_zlib"][()].tobytes()).decode().split("\0") == list(BAD)


@pytest.mark.parametrize("recipe", [RECIPE, MIXED])
def test_a_cache_that_skips_equals_the_cache_of_a_folder_without_the_bad_images(
    images: Path, recipe: ViewRecipe
) -> None:
    skipping = skipping_cache(images, recipe)
    for key in BAD:
        (images / key).unlink()
    teacher = create_teacher(tiny_model(seed=1))
    build_cache(teacher, open_dataset(images, recipe=recipe), images.parent / "clean.h5", STOP)
    found, expected = cache_contents(skipping), cache_contents(images.parent / "clean.h5")
    assert set(found) - set(expected) == {"rows/absent_zlib"}
    assert {name: found[name] for name in expected if name != "metadata"} == {
        name: value for name, value in expected.items() if name != "metadata"
    }
    assert len(open_dataset(images, cache=skipping)) == 37  # the files are gone, which is fine


@pytest.mark.parametrize("recipe", [RECIPE, MIXED])
def test_fault_18_no_path_trains_on_a_skipped_image_even_if_it_was_repaired(images: Path, recipe: ViewRecipe) -> None:
    path = skipping_cache(images, recipe)
    for key in BAD:  # they could be read again, but the teacher has not seen them
        (images / key).write_bytes((images / "0/000.png").read_bytes())
    assert (
        verify_cache(path, create_teacher(tiny_model(seed=1)), open_dataset(images, recipe=recipe)).rows_compared == 64
    )
    exported = np.load(export_cache(path, images.parent / "t.npz"))
    assert not set(BAD) & set(exported["keys"].tolist())
    with pytest.raises(
        CacheMismatchError, match=r"has no rows for 3 of 40 images \('1/011.png'.*open_dataset\(DATA, cache"
    ):
        open_cache(path, open_dataset(images, recipe=recipe))
    report = distill(
        DistillConfig(
            data=str(images),
            output=str(images.parent / "run"),
            student="test_resnet",
            cache=str(path),
            train=TrainConfig(epochs=1, batch_size=10, num_workers=0),
        )
    )
    assert report.training.epochs[0]["images"] == 30
    extended = open_dataset(images, recipe=ViewRecipe(**{**vars(recipe), "num_views": 3}))
    extend_cache(create_teacher(tiny_model(seed=1)), extended, path, batch_size=16, num_workers=0)
    whole = skipping_cache(damage(images), extended.recipe, "whole.h5")
    assert cache_contents(path) == cache_contents(whole)


def test_several_caches_leave_out_what_one_of_them_skipped(images: Path, tmp_path: Path) -> None:
    bad = {key: (images / key).read_bytes() for key in BAD}
    for key in BAD:
        (images / key).write_bytes((images / "0/000.png").read_bytes())
    dataset = open_dataset(images, recipe=RECIPE)
    build_cache(create_teacher(tiny_model(seed=2)), dataset, tmp_path / "whole.h5", STOP)
    for key, content in bad.items():
        (images / key).write_bytes(content)
    skipping = skipping_cache(images)
    dataset = open_dataset(images, cache=[tmp_path / "whole.h5", skipping])
    assert len(dataset) == 37
    (images / BAD[0]).unlink()
    assert len(open_dataset(images, cache=[tmp_path / "whole.h5", skipping])) == 37
    (images / "0/000.png").unlink()
    assert len(open_dataset(images, cache=[tmp_path / "whole.h5", skipping])) == 36


def test_several_caches_of_mixed_views_are_refused_if_one_lacks_partners(images: Path, tmp_path: Path) -> None:
    skipping = skipping_cache(images, MIXED)
    for key in BAD:
        (images / key).write_bytes((images / "0/000.png").read_bytes())
    dataset = open_dataset(images, recipe=MIXED)
    build_cache(create_teacher(tiny_model(seed=2)), dataset, tmp_path / "whole.h5", STOP)
    with pytest.raises(CacheMismatchError, match="mixes each image with another, and 3 of its 40 images are not"):
        open_dataset(images, cache=[tmp_path / "whole.h5", skipping])


def test_another_teacher_on_the_views_of_a_cache_takes_over_what_it_skipped(images: Path, tmp_path: Path) -> None:
    path = skipping_cache(images)
    build_cache(create_teacher(tiny_model(seed=2)), open_like(images, path), tmp_path / "like.h5", STOP)
    assert open_cache(tmp_path / "like.h5").absent_keys == list(BAD)


def test_a_stopped_build_resumes_with_the_skipped_images_that_it_recorded(images: Path, tmp_path: Path) -> None:
    def stop(batch: int, logits: torch.Tensor) -> None:
        if batch == 3:
            raise KeyboardInterrupt

    dataset = open_dataset(images, recipe=RECIPE)
    with pytest.raises(KeyboardInterrupt):
        build_cache(Watched(stop), dataset, tmp_path / "t.h5", SKIP)
    for key in BAD:
        (images / key).write_bytes((images / "0/000.png").read_bytes())
    build_cache(Watched(lambda batch, logits: None), dataset, tmp_path / "t.h5", STOP)
    assert open_cache(tmp_path / "t.h5").absent_keys == list(BAD)
    again = build_cache(Watched(lambda batch, logits: None), dataset, tmp_path / "t.h5", SKIP)
    assert again.images_built == 0


def test_a_folder_of_which_no_image_can_be_read_is_refused(tmp_path: Path) -> None:
    images = write_digits(tmp_path / "images", 5)
    for file in images.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"none of 5 images can be read, the first: the image '0/000.png'"):
        skipping_cache(images)
    with pytest.raises(ConfigError, match="unreadable must be one of stop, skip"):
        BuildConfig(unreadable="ignore")  # type: ignore[arg-type]


def test_what_skip_missing_leaves_out_is_recorded_in_the_cache_and_in_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_digits(tmp_path / "images", 10)
    (data / "none").mkdir()
    (data / "gone.png").symlink_to(tmp_path / "gone")
    left_out = ["'gone.png' is a dangling symlink", "the class folder 'none' holds no image that Pillow can decode"]
    dataset = open_dataset(data, recipe=ViewRecipe(size=32), skip_missing=True)
    path = build_cache(create_teacher(tiny_model()), dataset, tmp_path / "t.h5", STOP).path
    with h5py.File(path, "r") as file:  # as FORMAT.md has it
        described = json.loads(file.attrs["kdkit"])["dataset"]["skipped"]
    assert described == {"count": 2, "first": left_out}
    main(["cache", "info", str(path)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 entries of the data, by --skip-missing: 'gone.png' is a dangling" in shown
    config = DistillConfig(
        data=str(data),
        output=str(tmp_path / "run"),
        student="test_resnet",
        cache=str(path),
        skip_missing=True,
        preflight=False,
        train=TrainConfig(epochs=1, batch_size=10, num_workers=0),
    )
    distill(config)
    distill(dataclasses.replace(config, resume=True, train=dataclasses.replace(config.train, num_workers=0)))
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [line["entry"] for line in lines] == left_out
    (data / "none").rmdir()
    (data / "gone.png").unlink()
    assert open_dataset(data, cache=path).class_names == dataset.class_names
    build_cache(create_teacher(tiny_model()), open_dataset(data, recipe=ViewRecipe(size=32)), path, STOP)
