"""The README's figures are those of the newest results, and its training loop runs."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from commands import blocks
from support import tiny_model, write_digits

from kdkit import losses

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("_front")


def write_result(folder: Path, date: str, name: str, figures: dict[str, object]) -> None:
    result = {"name": name, "date": date, "command": "", "quick": False, "figures": figures, "machine": ""}
    (folder / f"{date}-{name}.json").write_text(json.dumps(result))


def test_every_figure_of_the_readme_and_of_the_benchmarks_is_that_of_the_newest_results(front: ModuleType) -> None:
    pages = [page.read_text(encoding="utf-8") for page in front.PAGES]
    for page in pages:
        assert front.fill(page) == page, "run: python benchmarks/run.py --readme"
    assert {name for page in pages for _, name, _, _ in front.BLOCK.findall(page)} == set(front.FIGURES)


@pytest.mark.parametrize("loss", losses.available())
def test_the_page_of_each_loss_has_its_cost_as_measured(front: ModuleType, loss: str) -> None:
    page = (ROOT / "docs" / "losses" / f"{loss}.md").read_text(encoding="utf-8")
    assert f"<!-- figures: cost {loss} -->" in page
    assert f"\n| {loss} |" in page


@pytest.mark.parametrize(("picture", "benchmark"), [("kl-against-bytes", "codecs"), ("students", "demo")])
def test_the_pictures_are_those_of_the_newest_results(picture: str, benchmark: str) -> None:
    newest = sorted(RESULTS.glob(f"*-{picture}.png"))[-1]
    assert (ROOT / "docs" / f"{picture}.png").read_bytes() == newest.read_bytes()
    assert newest.name[:10] == sorted(RESULTS.glob(f"*-{benchmark}.json"))[-1].name[:10]


def test_the_readme_counts_losses_and_faults_and_is_short() -> None:
    numbers = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"\n- **The field's losses.** {len(losses.available())} of them," in README
    assert f"; {len(set(numbers))} [kinds of failure](docs/faults.md)" in README
    assert len(README.splitlines()) <= 110


def test_the_newest_of_two_results_counts_and_is_judged_by_its_limit(front: ModuleType, tmp_path: Path) -> None:
    figure = "numpy fancy indexing in memory / kdkit, time"
    write_result(tmp_path, "2020-01-01", "read", {figure: {"median": 0.95, "low": 0.9, "high": 1.0}})
    assert "| ≥ 0.9 | 0.95 (0.9 to 1) | yes | 2020-01-01-read |" in front.ratios(tmp_path)
    write_result(
        tmp_path, "2020-01-02", "read", {figure: {"median": 0.8, "low": 0.7, "high": 0.9}, "open: first, ms": 7}
    )
    assert "| ≥ 0.9 | 0.8 (0.7 to 0.9) | **no** | 2020-01-02-read |" in front.ratios(tmp_path)
    assert "| ≤ 50 | 7 | yes | 2020-01-02-read |" in front.ratios(tmp_path)


def test_a_claim_without_a_result_is_shown_as_not_measured(front: ModuleType, tmp_path: Path) -> None:
    claims = importlib.import_module("_claims").CLAIMS
    assert front.ratios(tmp_path).count("| not measured |") == len(claims)
    write_result(tmp_path, "2020-01-01", "step", {"loop over minimal loop": {"median": 1.5, "low": 1, "high": 2}})
    assert "| ≤ 1.02 | 1.5 (1 to 2) | **no** | 2020-01-01-step |" in front.ratios(tmp_path)
    assert front.ratios(tmp_path).count("| not measured |") == len(claims) - 1


def test_the_page_of_results_is_written_from_any_of_them(
    front: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--readme"])
    write_result(tmp_path, "2020-01-01", "step", {"loop over minimal loop": {"median": 1.5, "low": 1, "high": 2}})
    run = importlib.import_module("run")
    run.draw(tmp_path)
    run.summarise(tmp_path, quick=False, failed=[])
    assert "| not measured |" in next(tmp_path.glob("*-summary.md")).read_text()
    assert "Not measured yet" in front.fill(BENCHMARKS, tmp_path)


def test_no_result_of_a_quick_run_is_kept() -> None:
    for path in RESULTS.glob("*.json"):
        assert not json.loads(path.read_text(encoding="utf-8"))["quick"], path


def test_the_loop_of_the_readme_runs_as_it_stands_on_a_small_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = blocks("README.md", language="python")
    smaller = {
        '"resnet50.a1_in1k"': "teacher",
        '"resnet18"': '"test_resnet"',
        "size=224": "size=32",
        "num_views=10": "num_views=2",
        "batch_size=256": "batch_size=20",
        "range(100)": "range(2)",
    }
    for published, small in smaller.items():
        assert published in block
        block = block.replace(published, small)
    write_digits(tmp_path / "train", 40)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"teacher": tiny_model(seed=1)}
    before = tiny_model().state_dict()
    exec(block, names)
    assert names["cache"].num_views == 2
    assert any(not torch.equal(value, before[name]) for name, value in names["student"].state_dict().items())
