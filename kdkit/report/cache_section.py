"""The page's part on a cache: what it holds, how much its codecs keep, and how sure the teacher is, view by view.

Dimensions: R rows, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.cache import CachedTeacher
from kdkit.cache.format.constants import LOGITS
from kdkit.recipe import ViewRecipe
from kdkit.report.chart import Chart
from kdkit.report.page import escape
from kdkit.report.predictions import Array, entropy, read_log_probs

_FACTS = ("rows", "bytes", "classes", "teacher")  # of cache.summary(), and its streams with their codecs
_QUANTILES = (0.1, 0.5, 0.9)


def facts_html(cache: CachedTeacher) -> str:
    """What the cache holds, as a list of names and values."""
    summary = cache.summary()
    shown = [(name, text) for name, text in summary.items() if name in _FACTS or name.startswith("  ")]
    default = ViewRecipe().to_dict()
    recipe = [f"{name} {value}" for name, value in cache.metadata.recipe.items() if value != default.get(name)]
    lines = [("file", summary["path"]), *shown, ("recipe", ", ".join(recipe) or "the default")]
    return f"<dl>{''.join(f'<dt>{escape(name.strip())}</dt><dd>{escape(text)}</dd>' for name, text in lines)}</dl>"


def cache_charts(cache: CachedTeacher, rows: Array, labels: Tensor | None = None) -> list[Chart]:
    """Fidelity, confidence and entropy by view; with labels, accuracy by view too.

    Args:
        cache: the cache.
        rows: rows of the cache that are read, int64 [R].
        labels: of these rows [R], -1 if there is none.
    """
    charts = fidelity_charts(cache)
    if LOGITS not in cache.codecs or cache.is_multi_label:
        return charts
    confidence, entropies, accuracy = [], [], []
    for view in range(cache.num_views):
        log_probs = read_log_probs(cache, rows, view)
        confidence.append(log_probs.amax(dim=1).exp())
        entropies.append(entropy(log_probs))
        if labels is not None:
            right = (log_probs.argmax(dim=1) == labels)[labels >= 0].double()
            accuracy.append(100 * float(right.mean()) if len(right) else None)
    charts.append(_quantile_chart("cache-confidence", "Teacher's confidence by view", torch.stack(confidence)))
    charts.append(_quantile_chart("cache-entropy", "Teacher's entropy by view, nats", torch.stack(entropies)))
    charts.append(_histogram(torch.cat(confidence)))
    if any(value is not None for value in accuracy):
        trace = _line(accuracy, "top-1")
        charts.append(Chart("cache-top1", "Teacher's top-1 by view, %", [trace], x="view", layout=_view_axis(cache)))
    return charts


def fidelity_charts(cache: CachedTeacher) -> list[Chart]:
    """What each stream's codec keeps, by view; none for caches from before that was measured in every view."""
    charts = []
    for stream, views in cache.fidelity().items():
        if "kl_mean_t1" in views[0]:
            names = {"kl_p99_t1": "99th percentile", "kl_mean_t1": "mean"}
            title = f"Fidelity of {stream} by view: KL at T = 1, nats"
        else:
            names = {"relative_error_max": "largest", "relative_error_mean": "mean"}
            title = f"Fidelity of {stream} by view: relative error"
        traces = [
            _line([view[key] for view in views], name, color="faint" if number == 0 else "accent")
            for number, (key, name) in enumerate(names.items())
        ]
        kept = [view["top1_agreement"] for view in views if "top1_agreement" in view and not cache.is_multi_label]
        note = "lower keeps more" + (f"; top-1 kept in {min(kept):.2%} of rows" if kept else "")
        layout = {**_view_axis(cache), "yaxis": {"rangemode": "tozero", "exponentformat": "e"}, "showlegend": True}
        charts.append(Chart(f"fidelity-{stream}", title, traces, note=note, x="view", layout=layout))
    return charts


def _quantile_chart(name: str, title: str, values: Tensor) -> Chart:
    """Median, and the band from the 10th to the 90th percentile, of [V, R]."""
    low, middle, high = torch.quantile(values.double(), torch.tensor(_QUANTILES, dtype=torch.double), dim=1).tolist()
    mean = values.double().mean(dim=1).tolist()
    traces = [
        {**_line(low, "10th percentile"), "width": 0, "mode": "lines", "showlegend": False},
        {**_line(high, "90th percentile"), "width": 0, "mode": "lines", "showlegend": False, "band": True},
        _line(middle, "median"),
        _line(mean, "mean", color="faint", dash="dot"),
    ]
    layout = {"showlegend": True, "yaxis": {"rangemode": "tozero"}, "xaxis": {"dtick": max(1, len(mean) // 10)}}
    return Chart(name, title, traces, note="band: 10th to 90th percentile", x="view", layout=layout)


def _histogram(confidence: Tensor) -> Chart:
    counts, edges = np.histogram(confidence.numpy(), bins=25, range=(0.0, 1.0))
    centres = ((edges[:-1] + edges[1:]) / 2).tolist()
    share = (100 * counts / counts.sum()).tolist()
    trace = {"type": "bar", "x": centres, "y": share, "hovertemplate": "%{x:.2f}: %{y:.1f} %<extra></extra>"}
    layout = {"bargap": 0.05, "xaxis": {"range": [0, 1]}}
    return Chart("cache-histogram", "Teacher's confidence, % of rows", [trace], x="confidence", layout=layout)


def _line(values: Sequence[float | None], name: str, *, color: str = "accent", dash: str = "solid") -> dict[str, Any]:
    mode = "lines+markers"
    x = list(range(len(values)))
    return {"type": "scatter", "mode": mode, "name": name, "color": color, "dash": dash, "x": x, "y": list(values)}


def _view_axis(cache: CachedTeacher) -> dict[str, Any]:
    return {"xaxis": {"dtick": max(1, cache.num_views // 10)}}
