"""Reports: runs side by side, and what a teacher saw and predicted, as tables, pictures and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdkit._lazy import lazy_exports

if TYPE_CHECKING:
    from kdkit.report.comparison import RunSummary as RunSummary
    from kdkit.report.comparison import compare as compare
    from kdkit.report.table import RunTable as RunTable

__all__ = ["RunSummary", "RunTable", "compare"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "RunSummary": "kdkit.report.comparison",
        "RunTable": "kdkit.report.table",
        "compare": "kdkit.report.comparison",
    },
)
