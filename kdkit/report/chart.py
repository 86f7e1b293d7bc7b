"""Charts as plain values, which app.js hands to plotly in the colours of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdkit.report.page import escape

_DIGITS = 5


@dataclass(frozen=True)
class Chart:
    """One chart of a page."""

    id: str
    """Id of its element."""
    title: str
    """What is drawn, with its unit."""
    traces: Sequence[Mapping[str, Any]]
    """What plotly calls traces; `run` is the number of the run that gives a trace its colour."""
    note: str = ""
    """How the chart is read."""
    x: str = ""
    """Title of the horizontal axis."""
    smooth: bool = False
    """Whether the smoothing slider acts on it."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    """What plotly's layout has besides."""

    def to_html(self) -> str:
        """The element that the chart is drawn in."""
        return (
            f'<figure class="chart"><figcaption>{escape(self.title)}<span class="note">{escape(self.note)}</span>'
            f'</figcaption><div class="plot" id="{escape(self.id)}"></div></figure>'
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; texts but templates are escaped, because plotly takes some HTML in them."""
        traces = [
            {name: value if name.endswith("template") else _plain(value) for name, value in trace.items()}
            for trace in self.traces
        ]
        return {"id": self.id, "x": self.x, "smooth": self.smooth, "traces": traces, "layout": self.layout}


def charts_html(charts: Sequence[Chart]) -> str:
    """The elements of several charts, side by side if there is room."""
    figures = "\n".join(chart.to_html() for chart in charts)
    return f'<div class="charts">\n{figures}\n</div>'


def round_number(value: float) -> float:
    """The number in five digits, which is more than a chart shows."""
    return float(f"{value:.{_DIGITS}g}")


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, float):
        return round_number(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
