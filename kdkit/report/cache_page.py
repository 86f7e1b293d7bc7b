"""The page's part on a cache and, with its images, on what teacher and student predict of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.cache import CachedTeacher, open_cache
from kdkit.cache.format.constants import LOGITS
from kdkit.data import ReplayedDataset
from kdkit.dataset import describe_foreign_labels, has_foreign_labels, open_dataset
from kdkit.errors import ClassMismatchError
from kdkit.report.cache_section import cache_charts, facts_html
from kdkit.report.chart import Chart, charts_html
from kdkit.report.class_charts import calibration_chart
from kdkit.report.config import ReportConfig
from kdkit.report.page import escape, sheet_html
from kdkit.report.predictions import Array, label_loss, read_log_probs, scores, spread
from kdkit.report.run_student import RunStudent
from kdkit.report.sheet import make_sheet, names_of

_IMAGES, _VIEWS = 6, 4  # of each sheet
_SIDE = 112  # of a view, pixels: three sheets in full stay below half a megabyte
_LISTED = 10  # keys, if the images are not given


@dataclass(frozen=True)
class CachePart:
    """The cache's part of a page."""

    html: str
    """Its HTML."""
    charts: list[Chart]
    """Its charts."""


@dataclass(frozen=True)
class _Ranking:
    """Images that one should look at."""

    title: str
    rows: list[int]
    notes: list[str]


def show_cache_part(config: ReportConfig, student: RunStudent | None, notes: list[str]) -> CachePart:
    """The part on the cache that `config` names.

    Args:
        config: cache, images and how many of them are read.
        student: that of the best run that learned from the cache, where one could be loaded.
        notes: takes a line for each thing that cannot be shown.

    Raises:
        CacheError: the cache cannot be read, or is not that of the images.
    """
    assert config.cache is not None
    cache = open_cache(config.cache)
    has_classes = LOGITS in cache.codecs and not cache.is_multi_label
    if cache.is_multi_label:
        notes.append("the cache has several labels per image: the page shows no probabilities over its classes")
    if config.data is None or not has_classes:
        rows = spread(config.images, cache.num_rows)
        charts = cache_charts(cache, rows)
        listed = _key_lists(cache, rows) if has_classes else ""
        return CachePart(f"<h2>Cache</h2>\n{facts_html(cache)}\n{charts_html(charts)}\n{listed}", charts)
    dataset = open_dataset(config.data, recipe=cache.recipe, records=cache, **config.columns)
    dataset = dataset.without(cache.absent_keys)
    cache.match(dataset, allow_mismatch=config.allow_mismatch)
    if has_foreign_labels(dataset, cache):
        notes.append(f"{describe_foreign_labels(dataset, cache)}: the page compares no label")
        dataset = dataset.without_labels()
    return _with_images(config, cache, dataset, student, notes)


def _with_images(
    config: ReportConfig, cache: CachedTeacher, dataset: ReplayedDataset, student: RunStudent | None, notes: list[str]
) -> CachePart:
    chosen = spread(config.images, len(dataset))
    rows = cache.rows_of(torch.from_numpy(chosen))
    student = _of_same_classes(student, names_of(cache, dataset), cache.num_classes, notes)
    labels, student_probs = _labels_and_predictions(dataset, chosen, student, notes)
    charts = cache_charts(cache, rows, None if dataset.recipe.mixes else labels)
    known = labels >= 0
    if bool(known.any()) and not dataset.recipe.mixes:
        predictions = {"teacher": (read_log_probs(cache, rows[known.numpy()], 0).exp(), labels[known])}
        if student is not None and student_probs is not None:
            predictions[f"student {student.name}"] = (student_probs[known], labels[known])
        charts.append(calibration_chart(predictions))
    rankings = _rankings(cache, rows, chosen, labels)
    who = "" if student is None else f"<p>The student is that of {escape(student.name)}.</p>\n"
    sheets = [f"<h2>{escape(each.title)}</h2>\n{who}{_sheet(cache, dataset, each, student)}" for each in rankings]
    return CachePart(f"<h2>Cache</h2>\n{facts_html(cache)}\n{charts_html(charts)}\n{''.join(sheets)}", charts)


def _of_same_classes(
    student: RunStudent | None, class_names: Sequence[str] | None, num_classes: int, notes: list[str]
) -> RunStudent | None:
    """The student if it has the classes of the cache; else None, and a note why."""
    try:
        if student is not None:
            student.check_classes(class_names, num_classes)
        return student
    except ClassMismatchError as error:
        notes.append(f"the best run's student is not shown on the cache's images: {error}")
        return None


def _labels_and_predictions(
    dataset: ReplayedDataset, chosen: Array, student: RunStudent | None, notes: list[str]
) -> tuple[Tensor, Tensor | None]:
    """Labels of the chosen rows, and the student's probabilities of their view 0, unless two images are mixed in it."""
    if dataset.recipe.mixes:
        notes.append("calibration and accuracy are not shown on the cache's images: its recipe mixes two in a view")
    elif student is not None:
        probabilities, labels = student.predict(dataset, chosen.tolist())
        return labels, probabilities
    samples = (dataset[int(row), 0] for row in chosen)
    return torch.tensor([sample.target for sample in samples]), None


def _rankings(cache: CachedTeacher, rows: Array, chosen: Array, labels: Tensor) -> list[_Ranking]:
    views = range(cache.num_views)
    found = scores(cache, rows, views)
    values = {"Most uncertain images: mean entropy of the teacher": found["entropy"]}
    if bool((labels >= 0).any()):
        values = {"Hardest images: the teacher's loss on the label": label_loss(cache, rows, views, labels)}
    if cache.num_views > 1:
        values["Most disputed images: divergence between the teacher's views"] = found["disagreement"]
    rankings = []
    for title, score in values.items():
        order = score.argsort(descending=True, stable=True)[:_IMAGES].tolist()
        rankings.append(
            _Ranking(title, [int(chosen[i]) for i in order], [f"{float(score[i]):.3f} nats" for i in order])
        )
    even = [int(row) for row in chosen[spread(_IMAGES, len(chosen))]]
    return [*rankings, _Ranking("Images evenly spread over the data", even, [""] * len(even))]


def _sheet(cache: CachedTeacher, dataset: ReplayedDataset, ranking: _Ranking, student: RunStudent | None) -> str:
    views = range(min(_VIEWS, cache.num_views))
    predict = None if student is None else student.predict_samples
    sheet = make_sheet(ranking.title, cache, dataset, ranking.rows, views, notes=ranking.notes, predict=predict)
    return sheet_html(sheet, side=_SIDE)


def _key_lists(cache: CachedTeacher, rows: Array) -> str:
    """Keys of the images that one should look at, if the images themselves are not given."""
    keys = cache.keys()
    unlabelled = torch.full((len(rows),), -1)
    return "".join(
        f"<h2>{escape(ranking.title)}</h2>\n<ol>{_items(keys, ranking.rows, ranking.notes)}</ol>"
        for ranking in _rankings(cache, rows, rows, unlabelled)[:-1]
    )


def _items(keys: Sequence[str], rows: Sequence[int], notes: Sequence[str]) -> str:
    pairs = zip(rows, notes, strict=True)
    return "".join(f'<li>{escape(keys[row])}<span class="note">{escape(note)}</span></li>' for row, note in pairs)
