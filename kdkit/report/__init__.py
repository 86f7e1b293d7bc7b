"""Reports: runs side by side, and what a teacher saw and predicted, as tables, pictures and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdkit._lazy import lazy_exports

if TYPE_CHECKING:
    from kdkit.report.comparison import RunSummary as RunSummary
    from kdkit.report.comparison import compare as compare
    from kdkit.report.report import ReportFile as ReportFile
    from kdkit.report.report import write_report as write_report
    from kdkit.report.show import ShowReport as ShowReport
    from kdkit.report.show import show_cache as show_cache
    from kdkit.report.table import RunTable as RunTable

__all__ = ["ReportFile", "RunSummary", "RunTable", "ShowReport", "compare", "show_cache", "write_report"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ReportFile": "kdkit.report.report",
        "RunSummary": "kdkit.report.comparison",
        "RunTable": "kdkit.report.table",
        "ShowReport": "kdkit.report.show",
        "compare": "kdkit.report.comparison",
        "show_cache": "kdkit.report.show",
        "write_report": "kdkit.report.report",
    },
)
