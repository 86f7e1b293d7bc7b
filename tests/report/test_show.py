"""kdkit cache show: the sheet holds the very views and predictions of the cache, and nothing in it is trusted."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import digits_dataset, tiny_model, write_digits

from kdkit.building.build import build_cache
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher, open_cache
from kdkit.cli import main
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.dataset import open_dataset
from kdkit.errors import CacheStreamError, ClassMismatchError, ConfigError, OutputExistsError
from kdkit.recipe import ViewRecipe
from kdkit.report import show_cache
from kdkit.report.config import CacheShowConfig
from kdkit.report.page import make_page, sheet_html
from kdkit.report.predictions import scores
from kdkit.report.selection import check_size
from kdkit.report.sheet import make_sheet
from kdkit.student import BEST, Student
from kdkit.teachers import Teacher

RECIPE = ViewRecipe(size=32, scale=(0.3, 1.0), num_views=5, seed=3)


def build(dataset: ReplayedDataset, path: Path, **options: object) -> CachedTeacher:
    """An exact cache of a tiny teacher, matched with its dataset."""
    config = BuildConfig(codec="float32", num_workers=0, **options)  # type: ignore[arg-type]
    build_cache(Teacher(tiny_model()), dataset, path, config)
    return open_cache(path, dataset)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 digits as an image folder, and a cache of five of their views."""
    root = tmp_path_factory.mktemp("show")
    write_digits(root / "images", 40)
    build(open_dataset(root / "images", recipe=RECIPE), root / "t.h5")
    return root


def config(folder: Path, output: Path, **options: object) -> CacheShowConfig:
    values = {"cache": str(folder / "t.h5"), "data": str(folder / "images"), "output": str(output), **options}
    return CacheShowConfig(**values)  # type: ignore[arg-type]


def write_student(folder: Path, *, class_names: Sequence[str] | None, num_classes: int = 10) -> Path:
    """A run whose student is the tiny teacher itself."""
    folder.mkdir()
    Student("test_resnet", {"num_classes": num_classes}, 32, 1.0, "bicubic", tuple(class_names or ())).write(folder)
    torch.save({"state_dict": tiny_model(num_classes=num_classes).state_dict()}, folder / BEST)
    return folder


def plain_probabilities(dataset: ReplayedDataset, row: int, view: int) -> torch.Tensor:
    """The tiny teacher's probabilities of a view, computed without cache, loader or Teacher."""
    pixels = dataset[row, view].image.float().div(255)
    model = tiny_model().eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]) for name in ("mean", "std"))
    with torch.no_grad():
        logits = model(((pixels - mean[:, None, None]) / std[:, None, None])[None])
    return logits[0].double().softmax(0)


def test_the_sheet_shows_the_replayed_views_and_what_the_teacher_predicts_of_them(folder: Path, tmp_path: Path) -> None:
    sheet = show_cache(config(folder, tmp_path / "s.png", rows="3,7", views="4,1")).sheet
    dataset = open_dataset(folder / "images", recipe=RECIPE)
    assert [(row.row, row.key) for row in sheet.rows] == [(3, dataset.keys[3]), (7, dataset.keys[7])]
    for row in sheet.rows:
        assert [cell.view for cell in row.cells] == [4, 1]
        for cell in row.cells:
            sample = dataset[row.row, cell.view]
            assert np.array_equal(cell.image, sample.image.permute(1, 2, 0).numpy())
            assert dataset.class_names is not None
            assert cell.label == dataset.class_names[sample.target]
            expected = plain_probabilities(dataset, row.row, cell.view)
            order = expected.argsort(descending=True)[:3].tolist()
            assert [guess.name for guess in cell.teacher] == [dataset.class_names[index] for index in order]
            assert [guess.probability for guess in cell.teacher] == pytest.approx(expected[order].tolist(), abs=1e-5)
            assert [guess.is_label for guess in cell.teacher] == [index == sample.target for index in order]


def test_scores_are_mean_entropy_and_jensen_shannon_divergence(folder: Path) -> None:
    dataset = open_dataset(folder / "images", recipe=RECIPE)
    cache = open_cache(folder / "t.h5", dataset)
    found = scores(cache, np.arange(6), [0, 2, 3])
    for row in range(6):
        views = np.stack([plain_probabilities(dataset, row, view).numpy() for view in (0, 2, 3)])
        mean_entropy = -(views * np.log(views)).sum(axis=1).mean()
        mean = views.mean(axis=0)
        assert float(found["entropy"][row]) == pytest.approx(mean_entropy, abs=1e-5)
        assert float(found["disagreement"][row]) == pytest.approx(-(mean * np.log(mean)).sum() - mean_entropy, abs=1e-5)


@pytest.mark.parametrize("sort", ["entropy", "disagreement"])
def test_sorting_shows_the_rows_with_the_largest_score_first(folder: Path, tmp_path: Path, sort: str) -> None:
    sheet = show_cache(config(folder, tmp_path / "s.html", sort=sort, views="0-4", images=5)).sheet
    dataset = open_dataset(folder / "images", recipe=RECIPE)
    values = scores(open_cache(folder / "t.h5", dataset), np.arange(40), range(5))[sort]
    assert [row.row for row in sheet.rows] == values.argsort(descending=True, stable=True)[:5].tolist()
    assert sheet.rows[0].note == f"{sort} {values.max():.3f} nats"
    among = show_cache(config(folder, tmp_path / "t.html", sort=sort, views="0-4", rows="10-14", images=2)).sheet
    assert [row.row for row in among.rows] == (10 + values[10:15].argsort(descending=True, stable=True)[:2]).tolist()


def test_images_are_named_by_number_range_or_key_and_spread_evenly_by_default(folder: Path, tmp_path: Path) -> None:
    keys = open_dataset(folder / "images", recipe=RECIPE).keys
    named = show_cache(config(folder, tmp_path / "a.png", rows=f"5-7, {keys[9]},6")).sheet
    assert [row.row for row in named.rows] == [5, 6, 7, 9]
    spread = show_cache(config(folder, tmp_path / "b.png", images=4)).sheet
    assert [row.row for row in spread.rows] == [0, 13, 26, 39]
    assert [cell.view for cell in spread.rows[0].cells] == [0, 1, 2, 3]


def test_the_picture_holds_the_pixels_of_the_views(folder: Path, tmp_path: Path) -> None:
    report = show_cache(config(folder, tmp_path / "s.png", rows="3", views="2"))
    with Image.open(report.output) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    side = report.sheet.rows[0].cells[0].image
    enlarged = np.asarray(Image.fromarray(side).resize((144, 144), Image.Resampling.NEAREST))
    found = np.lib.stride_tricks.sliding_window_view(pixels[:, 168], 144, axis=0)  # the column where views begin
    tops = [top for top in range(len(found)) if np.array_equal(pixels[top : top + 144, 168 : 168 + 144], enlarged)]
    assert len(tops) == 1


def test_the_page_holds_every_view_as_a_picture_and_loads_nothing(folder: Path, tmp_path: Path) -> None:
    report = show_cache(config(folder, tmp_path / "s.html", rows="3,4"))
    text = report.output.read_text()
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(images) == 8
    with Image.open(io.BytesIO(base64.b64decode(images[0]))) as image:
        shown = np.asarray(image, dtype=float)
    assert np.abs(shown - report.sheet.rows[0].cells[0].image).mean() < 8  # a JPEG
    assert len(re.findall(r"src=", text)) == 8
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text


def test_names_with_html_in_them_are_shown_as_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    pixels = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    source = ArraySource(pixels, [0, 1, 2, 3], keys=[f"{i}{evil}" for i in range(4)], class_names=[evil, *"abcdefghi"])
    dataset = ReplayedDataset(source, ViewRecipe(size=32))
    cache = build(dataset, tmp_path / "t.h5")
    page = make_page(evil, sheet_html(make_sheet(evil, cache, dataset, [0, 1], [0]), side=64), data={evil: evil})
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "\"'&" not in page


def test_a_mixed_view_is_labelled_with_both_classes_and_their_shares(tmp_path: Path) -> None:
    dataset = digits_dataset(24, ViewRecipe(size=32, mixup_alpha=1.0, num_views=1))
    cache = build(dataset, tmp_path / "t.h5")
    sheet = make_sheet("mixed", cache, dataset, range(24), [0])
    mixed = 0
    for row in sheet.rows:
        sample = dataset[row.row, 0]
        if sample.share == 1 or sample.partner_target == sample.target:
            continue
        mixed += 1
        assert row.label == row.cells[0].label  # of one view; several views have a label each
        label = f"{sample.share:.0%} {sample.target} + {1 - sample.share:.0%} {sample.partner_target}"
        assert row.cells[0].label == label  # digits are called by their number
    assert mixed > 5


@pytest.mark.parametrize("mixup_alpha", [0.0, 1.0])
def test_of_several_labels_each_class_has_its_own_probability(tmp_path: Path, mixup_alpha: float) -> None:
    write_digits(tmp_path / "images", 12)
    paths = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "images").rglob("*.png"))
    digit = [int(Path(path).parent.name) for path in paths]
    tags = [f"{each}|{'odd' if each % 2 else 'even'}" if each < 8 else "" for each in digit]
    names = sorted({tag for each in tags for tag in each.split("|") if tag})
    lines = [f"{path},{tag}" for path, tag in zip(paths, tags, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["path,tags", *lines]) + "\n")
    recipe = ViewRecipe(size=32, num_views=2, mixup_alpha=mixup_alpha)
    dataset = open_dataset(tmp_path / "t.csv", recipe=recipe, label_column="tags[|]")
    assert dataset.class_names == names
    assert len(names) == 10  # as many as the teacher has classes
    build(dataset, tmp_path / "t.h5")
    options = {"data": str(tmp_path / "t.csv"), "label_column": "tags[|]", "rows": "0-11"}
    report = show_cache(config(tmp_path, tmp_path / "s.png", **options, views="1"))
    for row in report.sheet.rows:
        (cell,) = row.cells
        sample = dataset[row.row, 1]
        pixels = sample.image.float().div(255)
        model = tiny_model().eval()
        mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
        with torch.no_grad():
            expected = model(((pixels - mean) / std)[None])[0].double().sigmoid()
        best = expected.argsort(descending=True)[:3].tolist()
        assert [guess.name for guess in cell.teacher] == [names[index] for index in best]
        assert [guess.probability for guess in cell.teacher] == pytest.approx(expected[best].tolist(), abs=1e-5)
        own = {tag for tag in tags[row.row].split("|") if tag}
        if sample.share == 1:
            assert set(cell.label.split(" + ")) == (own or {"no label"})
            assert [guess.is_label for guess in cell.teacher] == [names[index] in own for index in best]
        elif len(own) == 2 and isinstance(sample.partner_target, torch.Tensor) and not sample.partner_target.any():
            assert cell.label == " + ".join(f"{sample.share:.0%} {name}" for name in sorted(own))
    cache = open_cache(tmp_path / "t.h5", dataset)
    p = torch.stack([cache.decode_logits(np.arange(12), view).double().sigmoid() for view in range(2)])
    plain = -(p * p.log() + (1 - p) * (1 - p).log()).sum(-1).mean(0)
    assert torch.allclose(scores(cache, np.arange(12), [0, 1])["entropy"], plain)
    assert float(scores(cache, np.arange(12), [1, 1])["disagreement"].max()) == pytest.approx(0, abs=1e-12)
    assert len(show_cache(config(tmp_path, tmp_path / "d.html", **options, sort="disagreement")).sheet.rows) == 8


def test_a_sheet_with_a_student_shows_the_likeliest_classes_of_both(folder: Path) -> None:
    dataset = open_dataset(folder / "images", recipe=RECIPE)
    student = torch.tensor([0.05, 0.5, 0.01, 0.3, 0.02, 0.02, 0.04, 0.03, 0.02, 0.01])
    cache = open_cache(folder / "t.h5", dataset)
    sheet = make_sheet("both", cache, dataset, [1], [0, 2], predict=lambda seen: student.expand(len(seen), 10))
    (row,) = sheet.rows
    for cell in row.cells:
        assert [(guess.name, guess.is_label) for guess in cell.student] == [
            (name, name == row.label) for name in ("1", "3", "0")
        ]
        assert [guess.probability for guess in cell.student] == pytest.approx([0.5, 0.3, 0.05])
        assert cell.teacher[0].probability == pytest.approx(float(plain_probabilities(dataset, 1, cell.view).max()))
    page = sheet_html(sheet, side=32)
    lists = re.findall(r'<div class="source">(\w+)</div><ol>(.*?)</ol>', page)
    assert [(name, text.count("<li")) for name, text in lists] == [("teacher", 3), ("student", 3)] * 2


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_a_student_that_is_the_teacher_predicts_the_same_in_picture_and_page(
    folder: Path, tmp_path: Path, suffix: str
) -> None:
    names = open_dataset(folder / "images", recipe=RECIPE).class_names
    run = write_student(tmp_path / "run", class_names=names)
    report = show_cache(config(folder, tmp_path / f"s.{suffix}", rows="3", views="2", student=str(run)))
    (cell,) = report.sheet.rows[0].cells
    assert [guess.name for guess in cell.student] == [guess.name for guess in cell.teacher]
    assert [guess.probability for guess in cell.student] == pytest.approx(
        [g.probability for g in cell.teacher], abs=1e-4
    )
    assert report.sheet.title.startswith(f"test_resnet and {run}: 1 of 40")
    if suffix == "html":
        assert report.output.read_text().count("<li class=") == 6
        return
    with Image.open(report.output) as picture:
        column = np.asarray(picture.convert("RGB")).astype(int)[-150:, 168]  # where the bars begin
    is_bar = (abs(column - (0xDF, 0xE4, 0xEC)).sum(1) < 9) | (abs(column - (0xB9, 0xE3, 0xC6)).sum(1) < 9)
    bars = np.lib.stride_tricks.sliding_window_view(is_bar, 15).all(axis=1)  # each is 15 pixels high
    assert int(bars.sum()) == 6, "three of the teacher, three of the student"


@pytest.mark.parametrize("names", [[*"abcdefghij"], [*"abcde"]])
def test_a_student_of_other_classes_is_refused(folder: Path, tmp_path: Path, names: list[str]) -> None:
    run = write_student(tmp_path / "run", class_names=names, num_classes=len(names))
    with pytest.raises(ClassMismatchError, match="the images have 10 classes from '0' on"):
        show_cache(config(folder, tmp_path / "s.png", student=str(run)))
    assert not (tmp_path / "s.png").exists()


def test_images_without_labels_are_shown_with_the_names_of_the_teachers_classes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    dataset = ReplayedDataset(ArraySource(pixels, [-1] * 4), ViewRecipe(size=32))
    names = [f"digit {number}" for number in range(10)]
    teacher = Teacher(tiny_model(), class_names=names)
    build_cache(teacher, dataset, tmp_path / "t.h5", BuildConfig(codec="float32", num_workers=0))
    (row,) = make_sheet("names", open_cache(tmp_path / "t.h5", dataset), dataset, [0], [0]).rows
    expected = plain_probabilities(dataset, 0, 0).topk(3).indices.tolist()
    assert row.label == "no label"
    assert [guess.name for guess in row.cells[0].teacher] == [names[index] for index in expected]


def test_labels_of_other_classes_than_the_teachers_keep_their_names_and_mark_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CachedTeacher, "names_classes", property(lambda cache: False))  # as of an import
    dataset = open_dataset(folder / "images", recipe=RECIPE)
    sheet = make_sheet("foreign", open_cache(folder / "t.h5", dataset), dataset, range(10), [0])
    assert dataset.class_names is not None
    assert {row.label for row in sheet.rows} <= {*dataset.class_names}
    guesses = [guess for row in sheet.rows for guess in row.cells[0].teacher]
    assert all(guess.name.startswith("class ") and not guess.is_label for guess in guesses)


def test_the_teachers_own_view_is_shown_where_it_has_a_size_of_its_own(tmp_path: Path) -> None:
    dataset = digits_dataset(8, ViewRecipe(size=32, teacher_size=48))
    sheet = make_sheet("sizes", build(dataset, tmp_path / "t.h5"), dataset, [2], [0])
    assert np.array_equal(sheet.rows[0].cells[0].image, dataset.for_teacher()[2, 0].image.permute(1, 2, 0).numpy())


def test_an_image_that_cannot_be_read_is_named_on_the_sheet(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", 12)
    dataset = open_dataset(tmp_path / "images", recipe=RECIPE)
    cache = build(dataset, tmp_path / "t.h5")
    (tmp_path / "images" / dataset.keys[3]).write_bytes(b"no image")
    sheet = make_sheet("damaged", cache, dataset, [3, 4], [0, 1])
    assert sheet.rows[0].cells == ()
    assert dataset.keys[3] in sheet.rows[0].problem
    assert len(sheet.rows[1].cells) == 2
    assert "cannot be read" in sheet_html(sheet, side=32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "40"}, "there is no row 40: there are rows 0 to 39"),
        ({"rows": "7-5"}, "there is no row 7-5"),
        ({"rows": "no/such.png"}, "'no/such.png' is not a row: expected a number"),
        ({"views": "5"}, "there is no view 5: there are views 0 to 4"),
        ({"views": "one"}, "'one' is not a view"),
        ({"sort": "disagreement", "views": "1"}, "disagreement is between views"),
        ({"output": "s.gif"}, r"must be a file that ends in \.png or \.html"),
        ({"sort": "beauty"}, "sort must be one of entropy, disagreement"),
        ({"images": 0}, "images must be at least 1"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_line(
    folder: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        show_cache(config(folder, **{"output": tmp_path / "s.png", **options}))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_of_more_images_than_there_are_all_are_shown_and_too_many_views_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    assert len(show_cache(config(folder, tmp_path / "s.png", images=300)).sheet.rows) == 40
    with pytest.raises(ConfigError, match="at most 1,000 views, got 40 images x 30 views"):
        check_size(range(40), range(30))


def test_a_cache_without_logits_has_no_predictions_to_show(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", 8)
    build(open_dataset(tmp_path / "images", recipe=RECIPE), tmp_path / "t.h5", streams=("pooled",))
    with pytest.raises(CacheStreamError, match="no stream 'logits'"):
        show_cache(config(tmp_path, tmp_path / "s.png"))


def test_a_file_that_is_there_is_kept_unless_it_may_be_replaced(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.png"
    output.write_text("mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        show_cache(config(folder, output))
    assert output.read_text() == "mine"
    assert show_cache(config(folder, output, overwrite=True)).output.read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_where_the_sheet_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "s.html"
    paths = [str(folder / "t.h5"), str(folder / "images"), "-o", str(output)]
    assert main(["cache", "show", *paths, "--images", "3", "--sort", "entropy"]) == 0
    assert "12 views of 3 images" in capsys.readouterr().out
    assert output.read_text().startswith("<!doctype html>")
