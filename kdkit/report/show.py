"""`kdkit cache show`: the views that a teacher saw, and its predictions, as a picture or a page."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from kdkit.cache import CachedTeacher, open_cache
from kdkit.config import StudentConfig
from kdkit.data import ReplayedDataset
from kdkit.dataset import open_dataset
from kdkit.errors import OutputExistsError
from kdkit.report.config import CacheShowConfig
from kdkit.report.page import make_page, sheet_html
from kdkit.report.picture import draw_sheet
from kdkit.report.run_student import RunStudent
from kdkit.report.selection import check_size, rank_rows, select_rows, select_views
from kdkit.report.sheet import Sheet, make_sheet, names_of
from kdkit.resolve import resolve_device
from kdkit.runtime import files
from kdkit.runtime.output import check_not_input

_SIDE = 224  # of a view on a page, pixels


@dataclass(frozen=True)
class ShowReport:
    """A contact sheet that was written."""

    output: Path
    """The picture or page."""
    sheet: Sheet
    """What it shows."""


def show_cache(config: CacheShowConfig) -> ShowReport:
    """Replays views of a cache's images and writes them with the label and the likeliest classes of the teacher.

    With `config.student`, the likeliest classes of a student are below those of the teacher.

    Raises:
        OutputExistsError: there is a file at the output already, or it is one of the images.
        CacheMismatchError: the images are not those of the cache.
        CacheStreamError: the cache holds no logits.
        CheckpointError: the student has no weights, or they do not fit.
        ClassMismatchError: the student has other classes than the images.
        ConfigError: there is no such row or view.
    """
    output = Path(config.output)
    check_output(output, overwrite=config.overwrite)
    check_not_input(output, [config.cache, *([config.data] if isinstance(config.data, (str, Path)) else config.data)])
    cache = open_cache(config.cache)
    dataset = open_dataset(config.data, recipe=cache.recipe, records=cache, **config.columns)
    dataset = dataset.without(cache.absent_keys)
    cache.match(dataset, allow_mismatch=config.allow_mismatch)
    views = select_views(config.views, cache.num_views)
    notes: list[str] = []
    if config.sort is None:
        rows = select_rows(config.rows, dataset, config.images)
    else:
        rows, notes = rank_rows(cache, dataset, config.rows, views, config.sort, config.images)
    check_size(rows, views)
    student = _load_student(config, cache, dataset)
    shown = f"{cache.metadata.teacher['name']}" + ("" if student is None else f" and {config.student}")
    title = f"{shown}: {len(rows)} of {len(dataset):,} images"
    predict = None if student is None else student.predict_samples
    sheet = make_sheet(title, cache, dataset, rows, views, notes=notes, predict=predict)
    files.write_bytes(output, _render(sheet, output))
    return ShowReport(output, sheet)


def _load_student(config: CacheShowConfig, cache: CachedTeacher, dataset: ReplayedDataset) -> RunStudent | None:
    """The student that the configuration names, if it does."""
    if config.student is None:
        return None
    named = StudentConfig(student=config.student, arch=config.arch)
    student = RunStudent(named, device=resolve_device(config.device), is_multi_label=cache.is_multi_label)
    student.check_classes(names_of(cache, dataset))
    return student


def check_output(output: Path, *, overwrite: bool) -> None:
    """Checks that a file may be written.

    Raises:
        OutputExistsError: it exists.
    """
    if output.is_dir() or (output.exists() and not overwrite):
        advice = "choose a file" if output.is_dir() else "pass --overwrite to replace it, or choose another name"
        raise OutputExistsError(f"the output {str(output)!r} exists: {advice}")


def _render(sheet: Sheet, output: Path) -> bytes:
    if output.suffix == ".html":
        return make_page(sheet.title, sheet_html(sheet, side=_SIDE)).encode()
    file = io.BytesIO()
    draw_sheet(sheet).save(file, "PNG")
    return file.getvalue()
