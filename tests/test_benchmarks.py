"""Shared parts of the benchmarks: fair turns, results that are found again, peers that return the same bytes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_result")


def test_each_side_is_first_equally_often_and_warm_ups_do_not_count(result: ModuleType) -> None:
    called: list[str] = []
    times = result.take_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, turns=4, warm_up=2)
    assert [len(times[side]) for side in "ab"] == [4, 4]
    firsts = called[::2]
    assert firsts.count("a") == firsts.count("b") == 3


def test_a_ratio_is_the_median_of_the_turns_own_ratios(result: ModuleType) -> None:
    found = result.ratio([1.0, 10.0, 3.0], [1.0, 5.0, 1.0])  # 1, 2, 3: a slow turn slows both of its sides
    assert found.median == 2
    assert found.low <= found.median <= found.high


def test_a_report_is_found_again_as_the_latest(result: ModuleType, tmp_path: Path) -> None:
    report = result.Report("made_up", "Made up")
    assert report.figure("speed", result.Spread(2.0, 1.0, 3.0)).median == 2
    report.table(["what", "how much"], [["speed", 2]])
    page = report.write(tmp_path)
    assert "| speed | 2 |" in page.read_text()
    found = result.latest("made_up", tmp_path)
    assert found["figures"] == {"speed": {"median": 2.0, "low": 1.0, "high": 3.0}}
    assert json.loads(page.with_suffix(".json").read_text()) == found


def test_all_peers_return_the_bytes_they_stored(result: ModuleType, tmp_path: Path) -> None:
    ways = importlib.import_module("_ways")
    rows = np.random.default_rng(0).integers(0, 256, (50, 12), dtype=np.uint8)
    chosen = np.array([3, 49, 3, 0])  # unsorted, with a repeat
    makers = ("numpy_in_memory", "numpy_memmap", "h5py_contiguous", "h5py_chunked", "pt_files", "seek_and_read")
    for maker in makers:
        way = getattr(ways, maker)(rows, tmp_path)
        assert np.array_equal(way.gather(chosen), rows[chosen]), maker
        way.close()
        assert (way.num_bytes == 0) == (maker == "numpy_in_memory")
