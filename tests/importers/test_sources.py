"""Foreign caches that are not those of the images: refused, with the image or the file named."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_caches import DATA, Keys, photographs, write_ml_dr

from kdkit.errors import ConfigError, DatasetError
from kdkit.importers import import_fkd, import_mldr

KEYS = [f"a/{number}.png" for number in range(4)]


def rewrite(path: Path, change: Callable[[tuple], tuple]) -> None:
    torch.save(change(torch.load(path, weights_only=False)), path, pickle_protocol=4)


def check_mldr_refused(folder: Path, message: str, keys: list[str] = KEYS) -> None:
    with pytest.raises(DatasetError, match=message) as error:
        import_mldr(folder, Keys(keys), folder.parent / "teacher.h5")
    assert "\n" not in str(error.value)
    assert not (folder.parent / "teacher.h5").exists()


def test_a_missing_file_names_its_image(tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "foreign", 4)
    (folder / "2.pth.tar").unlink()
    check_mldr_refused(folder, r"lacks 1 of 4 images \('a/2\.png'\)")


def test_a_file_without_image_is_named(tmp_path: Path) -> None:
    check_mldr_refused(
        write_ml_dr(tmp_path / "foreign", 6), r"2 files for which there is no image \('4\.pth\.tar', '5\.pth"
    )


def test_a_misnumbered_file_is_named_with_its_image(tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "foreign", 4)
    shutil.copy(folder / "1.pth.tar", folder / "2.pth.tar")
    check_mldr_refused(folder, r"'2\.pth\.tar'.*\(image 'a/2\.png'\) is misnumbered: its index is 1")


def test_two_files_that_were_swapped_are_found(tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "foreign", 4)
    (folder / "1.pth.tar").rename(tmp_path / "spare")
    (folder / "2.pth.tar").rename(folder / "1.pth.tar")
    (tmp_path / "spare").rename(folder / "2.pth.tar")
    check_mldr_refused(folder, "misnumbered")


def test_images_are_numbered_in_the_order_of_torchvision(tmp_path: Path) -> None:
    """b/10.png comes before b/9.png, and z/ before the files of its own sub-folder, whatever kdkit's own order is."""
    from torchvision.datasets import ImageFolder

    from kdkit.importers._foreign import torchvision_order

    keys = ["b/9.png", "b/10.png", "B/1.png", "b/x/1.png", "b/x.png", "b/x-1/0.png", "a/z.png", "a10/0.png", "a9/0.png"]
    for key in keys:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).touch()
    expected = [Path(path).relative_to(tmp_path).as_posix() for path, _ in ImageFolder(tmp_path).samples]
    assert [keys[place] for place in torchvision_order(keys)] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: (file[0], file[1][:1]), "1 views, its configuration 2"),
        (lambda file: (file[0], [{"params": [(0, 0, 8, 8), True]}] * 2), "without params and"),
        (lambda file: (file[0], [{**file[1][0], "params": [(0, 0, 8, 8)]}] * 2), "does not fit its configuration"),
        (lambda file: (file[0], [{**file[1][0], "params": [(0, 0, 8), True]}] * 2), "whole numbers"),
        (lambda file: (file[0], [{**file[1][0], "params": [(0, 0, 8, -8), True]}] * 2), "a parameter is -8"),
        (lambda file: (file[0], [{**file[1][0], "params": [(0, 0, 8, 70_000), True]}] * 2), "or 70000"),
        (lambda file: (file[0], [{**file[1][0], "prob": ([0.5] * 3, [0, 1, 10])}] * 2), "class 10, expected 0 to 9"),
        (lambda file: (file[0], [{**file[1][0], "prob": ([0.3] * 3, [0, 1, 1])}] * 2), "names a class twice"),
        (lambda file: (file[0], [{**file[1][0], "prob": ([0.5] * 3, [0, 1, 2])}] * 2), "sum to more"),
        (lambda file: (file[0], [{**file[1][0], "prob": ([float("nan")] * 3, [0, 1, 2])}] * 2), "outside 0 to 1"),
        (lambda file: (file[0], [{**file[1][0], "prob": ([0.5] * 2, [0, 1])}] * 2), r"labels \[2, 2\].*not \[2, 3\]"),
        (lambda file: (file[0], [{**file[1][0], "prob": ([0.3] * 3, [0, 1, 1.5])}] * 2), "classes must be whole"),
        (lambda file: (file[0], [{**file[1][0], "prob": ([0.3] * 3, ["0", "1", "2"])}] * 2), "classes must be whole"),
        (lambda file: (file[0], [{**file[1][0], "prob": (["0.3"] * 3, [0, 1, 2])}] * 2), "expected numbers"),
        (lambda file: (file[0], [{**file[1][0], "params": [(0, 0, 8, 0), True]}] * 2), "height or width 0"),
        (lambda file: (file[0], [{**file[1][0], "params": [(0, 0, 8, 8), "no"]}] * 2), "whole numbers"),
        (lambda file: [file[0]], r"expected \(index, views\)"),
    ],
)
def test_a_file_of_other_content_is_named(change: Callable[[tuple], tuple], message: str, tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "foreign", 4)
    rewrite(folder / "3.pth.tar", change)
    check_mldr_refused(folder, rf"'3\.pth\.tar'.*a/3\.png.*{message}")


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        ({"trivial_augment": {}}, "'trivial_augment' is not known"),
        ({"random_horizontal_flip": {}}, "crops"),
        ({"random_resized_crop": {"size": [32, 64]}}, "not square"),
        ({"random_resized_crop": {"size": 32}, "center_crop": {"size": 32}}, "crops"),
        ({"random_crop": {"size": 32, "pad_if_needed": True}}, "'pad_if_needed'"),
    ],
)
def test_an_augmentation_that_cannot_be_replayed_is_refused(augmentation: dict, message: str, tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "foreign", 4)
    torch.save(
        {"reinforce": {"image_augmentation": augmentation, "num_samples": 2}, "num_classes": 10},
        folder / "config.pth.tar",
    )
    check_mldr_refused(folder, message)


def test_a_cache_without_its_configuration_is_refused(tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "foreign", 4)
    (folder / "config.pth.tar").unlink()
    check_mldr_refused(folder, r"no config\.pth\.tar")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 10**12), ("num_classes", None), ("num_classes", 2.5), ("num_samples", 10**12),
        ("num_samples", "two"), ("num_samples", 0), ("size", "big"), ("size", None),
    ],
)  # fmt: skip
def test_a_configuration_with_absurd_numbers_is_refused_in_one_line(field: str, value: object, tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "foreign", 4)
    config = torch.load(folder / "config.pth.tar", weights_only=True)
    crop = config["reinforce"]["image_augmentation"]["random_resized_crop"]
    {"num_classes": config, "num_samples": config["reinforce"], "size": crop}[field][field] = value
    torch.save(config, folder / "config.pth.tar")
    check_mldr_refused(folder, "must be whole numbers|is not known|is not square")


def test_a_cache_of_joblib_is_refused_by_its_configuration(tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "foreign", 4)
    torch.save({"reinforce": {"image_augmentation": {}, "num_samples": 2, "joblib": True}}, folder / "config.pth.tar")
    check_mldr_refused(folder, "joblib")


def test_a_source_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    check_mldr_refused(tmp_path / "none", "neither a folder nor a readable tar")
    (tmp_path / "empty").mkdir()
    check_mldr_refused(tmp_path / "empty", "holds no file")
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as archive:
        archive.add(write_ml_dr(tmp_path / "foreign", 4), "foreign")
    check_mldr_refused(tmp_path / "packed.tar.gz", "gzip -d")


def test_links_and_odd_names_in_a_tar_lead_nowhere(tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "foreign", 4)
    with tarfile.open(tmp_path / "foreign.tar", "w") as archive:
        archive.add(folder, "reinforced_data")
        for name, kind in (("reinforced_data/4.pth.tar", tarfile.SYMTYPE), ("../5.pth.tar", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/hostname"
            archive.addfile(link)
    import_mldr(tmp_path / "foreign.tar", Keys(KEYS), tmp_path / "teacher.h5")
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        archive.add(folder, "reinforced_data")
        archive.add(folder / "1.pth.tar", "reinforced_data/1.pth.tar")
    with pytest.raises(DatasetError, match="twice"):
        import_mldr(tmp_path / "twice.tar", Keys(KEYS), tmp_path / "other.h5")


def fkd_folder(folder: Path, keys: list[str]) -> Path:
    for key in keys:
        path = folder / "train" / key.split("/")[0] / f"{key.split('/')[-1].split('.')[0]}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save([np.full((2, 4), 0.5, "f4"), np.array([True, False]), np.array([1, 2])], path)
    return folder


def test_fkd_names_missing_and_left_over_images(tmp_path: Path) -> None:
    folder = fkd_folder(tmp_path / "fkd", KEYS)
    for keys, message in (([*KEYS, "b/x.png"], r"lacks 1 of 5 images \('b/x\.png'\)"), (KEYS[:3], r"a/3\.tar")):
        with pytest.raises(DatasetError, match=message):
            import_fkd(folder, Keys(keys), tmp_path / "teacher.h5")


def test_fkd_refuses_images_whose_names_it_cannot_tell_apart(tmp_path: Path) -> None:
    folder = fkd_folder(tmp_path / "fkd", ["a/x.1.png"])
    with pytest.raises(DatasetError, match="first dot"):
        import_fkd(folder, Keys(["a/x.1.png", "a/x.2.png"]), tmp_path / "teacher.h5")


BOXES = np.full((2, 4), 0.25, "f4")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.zeros((2, 3), "f4"), np.zeros(2, bool), np.zeros(2, int)], r"coords \[V, 4\]"),
        ([BOXES, np.zeros(3, bool), np.zeros(2, int)], r"flips \[V\]"),
        ([np.full((2, 4), np.nan, "f4"), np.zeros(2, bool), np.zeros(2, int)], "not numbers"),
        ([BOXES, np.zeros(2, bool), np.full((2, 2), 0.5, "f4")], "classes must be whole numbers"),
        ([BOXES, np.zeros(2, bool), np.zeros((2, 3, 5), "f4")], "expected one of"),
        ([BOXES, np.zeros(2, bool), np.full(2, 1000)], "class 1000"),
        ([-BOXES, np.zeros(2, bool), np.zeros(2, int)], "fractions of its sides"),
        ([4 * BOXES, np.zeros(2, bool), np.zeros(2, int)], "fractions of its sides"),
        ([0 * BOXES, np.zeros(2, bool), np.zeros(2, int)], "fractions of its sides"),
        ([BOXES, np.array([0, 7]), np.zeros(2, int)], "flips must be whole numbers from 0 to 1"),
        ([BOXES, np.zeros(2, bool), np.array([0.5, 1])], "classes must be whole numbers"),
        ([BOXES, np.zeros(2, bool), np.array([np.nan, 1])], "classes must be whole numbers"),
        ([0, 1, 2], "three arrays"),
    ],
)
def test_a_file_of_fkd_with_other_arrays_is_named(arrays: list, message: str, tmp_path: Path) -> None:
    folder = fkd_folder(tmp_path / "fkd", KEYS)
    torch.save(arrays, folder / "train/a/0.tar")
    with pytest.raises(DatasetError, match=rf"a/0\.(tar|png).*{message}"):
        import_fkd(folder, Keys(KEYS), tmp_path / "teacher.h5")


def test_fkd_takes_the_labels_only_as_what_they_can_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label_type must be one of"):
        import_fkd(DATA / "fkd/hard", photographs(), tmp_path / "teacher.h5", label_type="soft")
    with pytest.raises(DatasetError, match=r"expected \[V, 2, 10\]"):
        import_fkd(
            DATA / "fkd/marginal_smoothing_k5",
            photographs(),
            tmp_path / "teacher.h5",
            label_type="marginal_smoothing_k10",
        )
