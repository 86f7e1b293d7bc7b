"""A student class by class: its accuracy, what it takes for what, and whether its probabilities are right.

Dimensions: C classes, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.report.calibration import calibrate
from kdkit.report.chart import Chart

MAX_CLASSES = 40
"""Classes that charts show; of more, those with the most mistakes."""


def class_charts(probabilities: Tensor, labels: Tensor, names: Sequence[str]) -> list[Chart]:
    """Accuracy by class, and which classes are taken for which.

    Args:
        probabilities: [N, C].
        labels: [N].
        names: of the classes.
    """
    matrix = confusion(probabilities, labels)
    mistakes = (matrix.sum(dim=1) - matrix.diag()).argsort(descending=True, stable=True)
    shown = mistakes[matrix.sum(dim=1)[mistakes] > 0][:MAX_CLASSES]
    note = "" if len(shown) == len(names) else f"the {len(shown)} classes with the most mistakes"
    return [_accuracy_chart(matrix, shown, names, note), _confusion_chart(matrix, shown.sort().values, names, note)]


def confusion(probabilities: Tensor, labels: Tensor) -> Tensor:
    """How many images of class i were taken for class j, int64 [C, C]."""
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(dim=1)
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _accuracy_chart(matrix: Tensor, shown: Tensor, names: Sequence[str], note: str) -> Chart:
    percent = 100 * matrix.diag()[shown].double() / matrix.sum(dim=1)[shown]
    order = percent.argsort(descending=True, stable=True)  # plotly draws the first one lowest
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": percent[order].tolist(),
        "y": [names[index] for index in shown[order].tolist()],
        "text": [f"{int(matrix[index].sum())} images" for index in shown[order].tolist()],
        "textposition": "none",
        "hovertemplate": "%{y}: %{x:.1f} % of %{text}<extra></extra>",
    }
    layout = {
        "height": max(250, 80 + 17 * len(shown)),
        "xaxis": {"range": [0, 100]},
        "yaxis": {"type": "category", "dtick": 1, "tickfont": {"size": 11}},
    }
    return Chart("class-accuracy", "Top-1 by class, %", [trace], note=note, layout=layout)


def _confusion_chart(matrix: Tensor, shown: Tensor, names: Sequence[str], note: str) -> Chart:
    part, labels = matrix[shown][:, shown], [names[index] for index in shown.tolist()]
    counts = part.tolist()
    trace = {
        "type": "heatmap",
        "x": labels,
        "y": labels,
        "z": part.double().sqrt().tolist(),  # so that a few mistakes are seen beside many right predictions
        "text": [[str(count) if count else "" for count in row] for row in counts],
        "hovertemplate": "label %{y}, taken for %{x}: %{text} images<extra></extra>",
        **({"texttemplate": "%{text}"} if len(shown) <= 12 else {}),
    }
    axis = {"type": "category", "dtick": 1, "tickfont": {"size": 11}, "showgrid": False}
    layout = {
        "height": max(300, 110 + 17 * len(shown)),
        "xaxis": {**axis, "title": {"text": "predicted"}},
        "yaxis": {**axis, "autorange": "reversed", "title": {"text": "label"}},
    }
    return Chart("confusion", "Confusion, images", [trace], note=note, layout=layout)


def calibration_chart(predictions: dict[str, tuple[Tensor, Tensor]]) -> Chart:
    """Reliability of the teacher and the student.

    Args:
        predictions: name -> probabilities [N, C] and labels [N].
    """
    diagonal = {"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "color": "faint", "dash": "dot"}
    traces: list[dict[str, Any]] = [{**diagonal, "hoverinfo": "skip", "showlegend": False, "name": "", "width": 1}]
    for number, (name, (probabilities, labels)) in enumerate(predictions.items()):
        found = calibrate(probabilities, labels)
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "color": ("accent", "second")[number % 2], "dash": "solid",
                "name": f"{name}, error {found.error:.3f}",
                "x": found.confidence, "y": found.accuracy,
                "text": [f"{count} images" for count in found.count],
                "hovertemplate": "confidence %{x:.3f}, accuracy %{y:.3f}, %{text}",
            }
        )  # fmt: skip
    layout = {"showlegend": True, "height": 320, "xaxis": {"range": [0, 1.02]}, "yaxis": {"range": [0, 1.02]}}
    note = "on the diagonal, probabilities are as large as they are right"
    return Chart("calibration", "Calibration: accuracy by confidence", traces, note=note, x="confidence", layout=layout)
