"""The demonstration of `kdkit demo`: accuracy and time of students of labels alone, a live and a cached teacher.

python benchmarks/demo.py            (about 3 minutes on 2 calm cores)
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from _result import Report, parser

from kdkit.demo.config import DemoConfig
from kdkit.demo.report import COLUMNS, DemoReport, table_rows
from kdkit.demo.run import demo


def main() -> None:
    args = parser(__doc__).parse_args()
    report = Report("demo", "The demonstration", args.quick)
    with tempfile.TemporaryDirectory() as folder:
        small = {"epochs": 2, "teacher_epochs": 2, "num_views": 2, "seeds": 1} if args.quick else {}
        found = demo(DemoConfig(output=f"{folder}/demo", **small))
        page = _write(report, found, args.output)
        shutil.copy(
            Path(folder) / "demo" / "students.png", page.with_name(page.name.replace("-demo.md", "-students.png"))
        )


def _write(report: Report, found: DemoReport, output: Path | None) -> Path:
    report.text("`kdkit demo` with its defaults: mean and standard deviation of the seeds.")
    report.table(COLUMNS, table_rows(found))
    report.figure("labels", found.num_labels)
    report.figure("seeds", len(found.students["labels alone"]))
    report.figure("build: seconds", round(found.build.seconds, 1))
    report.figure("cached over live, images/s", round(found.speedup, 2))
    for way in found.students:
        top1, spread = found.top1(way)
        report.figure(
            way, {"top1": round(top1, 1), "spread": round(spread, 1), "seconds": round(found.seconds_each(way), 1)}
        )
    return report.write(output)


if __name__ == "__main__":
    main()
