"""The demonstration, made small: its files and its report. CI runs it whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdkit.cache import open_cache
from kdkit.demo.config import DemoConfig
from kdkit.demo.report import print_table
from kdkit.demo.run import WAYS, demo
from kdkit.errors import OutputExistsError


@pytest.mark.slow
def test_the_demo_writes_cache_metrics_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = DemoConfig(output=str(tmp_path / "demo"), seeds=1, epochs=2, teacher_epochs=2, num_views=2, num_workers=0)
    report = demo(config)
    assert set(report.students) == set(WAYS)
    assert open_cache(tmp_path / "demo" / "teacher.h5").num_rows == 1347
    assert (tmp_path / "demo" / "curves.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in (tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()]
    assert len([record for record in records if record["kind"] == "epoch"]) == 2 + 3 * 2
    assert report.teacher_top1 > 50
    print_table(report)
    out = capsys.readouterr().out
    assert all(way in out for way in WAYS)
    with pytest.raises(OutputExistsError):
        demo(config)
