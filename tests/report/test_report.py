"""kdkit report: its figures are those of plain implementations, and nothing odd in a run or a cache stops it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_caches import TRAIN, import_sample
from run_samples import step_record, write_run
from support import tiny_model, write_digits

from kdkit.building.build import build_cache
from kdkit.building.config import BuildConfig
from kdkit.cache import open_cache
from kdkit.cli import main
from kdkit.dataset import open_dataset
from kdkit.errors import ConfigError, DatasetError, MissingDependencyError, OutputExistsError
from kdkit.recipe import ViewRecipe
from kdkit.report import report as report_module
from kdkit.report import write_report
from kdkit.report.calibration import calibrate
from kdkit.report.class_charts import class_charts, confusion
from kdkit.report.config import ReportConfig
from kdkit.report.curves import curve_charts
from kdkit.report.run_files import Run, read_runs
from kdkit.runtime.install import install_command
from kdkit.student import BEST
from kdkit.teachers import Teacher

RECIPE = ViewRecipe(size=32, scale=(0.5, 1.0), num_views=3, seed=1)


def charts_of(page: Path) -> dict[str, dict[str, object]]:
    """The charts of a page by their ids, as its own script reads them."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert found is not None
    return {chart["id"]: chart for chart in json.loads(found[1])["charts"]}


def test_expected_calibration_error_is_that_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(500, 4, generator=generator)).softmax(1)
    labels = torch.randint(4, (500,), generator=generator)
    error = 0.0
    for low in range(15):
        rows = [row for row in range(500) if low / 15 < float(probabilities[row].double().max()) <= (low + 1) / 15]
        if rows:
            right = np.mean([int(probabilities[row].argmax()) == int(labels[row]) for row in rows])
            confidence = np.mean([float(probabilities[row].max()) for row in rows])
            error += len(rows) / 500 * abs(right - confidence)
    found = calibrate(probabilities, labels)
    assert found.error == pytest.approx(error, abs=1e-6)
    assert sum(found.count) == 500


def test_calibration_is_perfect_where_certainty_is_right_and_worst_where_it_is_wrong() -> None:
    certain = torch.eye(3)
    assert calibrate(certain, torch.tensor([0, 1, 2])).error == 0
    assert calibrate(certain, torch.tensor([1, 2, 0])).error == 1


def test_confusion_counts_what_is_taken_for_what() -> None:
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0], [0.0, 0.1, 0.9]])
    assert confusion(probabilities, torch.tensor([0, 1, 1, 2])).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    accuracy, _ = class_charts(probabilities, torch.tensor([0, 1, 1, 2]), ["a", "b", "c"])
    (trace,) = accuracy.traces
    assert dict(zip(trace["y"], trace["x"], strict=True)) == {"a": 100.0, "b": 50.0, "c": 100.0}


def test_of_many_classes_those_with_the_most_mistakes_are_shown() -> None:
    labels = torch.arange(100).repeat(2)
    predicted = labels.clone()
    predicted[:7] = 99
    accuracy, matrix = class_charts(torch.eye(100)[predicted], labels, [str(index) for index in range(100)])
    assert len(accuracy.traces[0]["y"]) == 40
    assert {str(index) for index in range(7)} <= {*accuracy.traces[0]["y"]}
    assert "most mistakes" in matrix.note


def test_each_term_is_drawn_raw_and_weighted_at_the_epoch_of_its_step(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [50.0, 60.0, 70.0])
    runs, _ = read_runs([tmp_path / "run"], max_steps=100)
    charts = {chart.id: chart for chart in curve_charts(runs, ["run"])}
    raw, weighted = charts["curve-kd_loss"].traces
    steps = [step_record(step // 2, step) for step in range(6)]
    assert raw["x"] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    assert raw["y"] == [step["kd_loss"] for step in steps]
    assert weighted["y"] == [step["weighted_kd_loss"] for step in steps]
    assert (raw["dash"], weighted["dash"]) == ("solid", "dash")
    assert charts["curve-val_top1"].traces[0]["x"] == [1, 2, 3]
    assert {"curve-loss", "curve-task_loss", "curve-agreement_top1", "curve-lr"} <= set(charts)


def test_long_runs_are_thinned_and_keep_their_last_step(tmp_path: Path) -> None:
    steps = [{"epoch": step // 100, "step": step, "loss": 1.0} for step in range(2000)]
    (chart,) = curve_charts([Run(tmp_path, steps=steps)] * 50, [str(number) for number in range(50)])
    assert len(chart.traces) == 50
    assert 20 <= len(chart.traces[0]["x"]) <= 800
    assert chart.traces[0]["x"][-1] == 20.0


def test_steps_are_thinned_evenly_while_they_are_read(tmp_path: Path) -> None:
    lines = [json.dumps({"kind": "step", "epoch": 0, "step": step, "loss": 1.0}) for step in range(1000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (run,) = read_runs([tmp_path], max_steps=50)[0]
    numbers = [record["step"] for record in run.steps]
    assert 50 <= len(numbers) < 100
    assert {*np.diff(numbers)} == {numbers[1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, a cache of a tiny teacher, and a run whose student is that very teacher."""
    root = tmp_path_factory.mktemp("whole")
    write_digits(root / "images", 60)
    dataset = open_dataset(root / "images", recipe=RECIPE)
    build_cache(Teacher(tiny_model()), dataset, root / "t.h5", BuildConfig(codec="float32", num_workers=0))
    assert dataset.class_names is not None
    student = {"model_args": {"num_classes": 10}, "input_size": 32, "crop_pct": 1.0, "interpolation": "bicubic"}
    config = {"student": "test_resnet", "cache": str(root / "t.h5"), "validation": str(root / "images")}
    run = write_run(root / "runs" / "same", [50.0], config=config, **student, class_names=list(dataset.class_names))
    described = json.loads((run / "student.json").read_text())
    (run / "student.json").write_text(json.dumps({**described, "model": "test_resnet"}))
    torch.save({"state_dict": tiny_model().state_dict()}, run / BEST)
    write_run(root / "runs" / "better", [99.0])
    return root


def config(folder: Path, output: Path, **options: object) -> ReportConfig:
    paths = {"runs": (str(folder / "runs"),), "cache": str(folder / "t.h5"), "data": str(folder / "images")}
    return ReportConfig(**{**paths, "output": str(output), **options})  # type: ignore[arg-type]


def test_the_page_shows_runs_cache_images_and_a_student_that_is_the_teacher_as_the_teacher(
    folder: Path, tmp_path: Path
) -> None:
    report = write_report(config(folder, tmp_path / "r.html"))
    text, charts = report.output.read_text(encoding="utf-8"), charts_of(report.output)
    assert report.num_bytes == report.output.stat().st_size < 6e6
    assert [row["best_top1"] for row in report.table.rows] == [99.0, 50.0]
    assert "better" in report.problems[0]  # the best run has no student to load: the next one is shown
    assert "Best run" in text
    assert {
        "class-accuracy",
        "confusion",
        "calibration",
        "cache-confidence",
        "cache-entropy",
        "fidelity-logits",
    } <= set(charts)
    for title in ("Hardest images", "Most disputed images", "Images evenly spread"):
        assert title in text
    assert text.count("data:image/jpeg;base64,") == 3 * 6 * 3 == text.count('<div class="source">student</div>')
    assert "https://" not in text.split("<script>")[0]
    _, teacher, student = charts["calibration"]["traces"]  # type: ignore[misc]  # the student is that very teacher
    assert student["x"] == pytest.approx(teacher["x"], abs=1e-4)
    assert student["y"] == pytest.approx(teacher["y"], abs=1e-4)


def test_the_best_student_is_measured_on_its_validation_images(folder: Path, tmp_path: Path) -> None:
    charts = charts_of(write_report(config(folder, tmp_path / "r.html", cache=None, data=None)).output)
    dataset = open_dataset(folder / "images", recipe=ViewRecipe.evaluation(32, crop_pct=1.0))
    model = tiny_model().eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    images = torch.stack([(dataset[row, 0].image / 255 - mean) / std for row in range(60)])
    with torch.no_grad():
        right = model(images).argmax(1) == torch.tensor([dataset[row, 0].target for row in range(60)])
    (trace,) = charts["class-accuracy"]["traces"]  # type: ignore[misc]
    counts = [int(text.split()[0]) for text in trace["text"]]
    hits = sum(count * percent / 100 for count, percent in zip(counts, trace["x"], strict=True))
    assert hits == pytest.approx(int(right.sum()), abs=0.01)
    assert "calibration" not in charts


def test_the_student_beside_the_teacher_is_the_best_that_learned_from_the_cache(folder: Path, tmp_path: Path) -> None:
    """The best run of all is often the teacher itself, trained from labels."""
    for name, seed, top1, cache in (("taught", 1, 60.0, folder / "t.h5"), ("alone", 2, 70.0, None)):
        run = write_run(tmp_path / "runs" / name, [top1])
        caches = [{"teacher": "t", "identity": open_cache(cache).identity}] if cache else []
        described = json.loads((folder / "runs" / "same" / "student.json").read_text())
        (run / "student.json").write_text(json.dumps({**described, "caches": caches}))
        torch.save({"state_dict": tiny_model(seed=seed).state_dict()}, run / BEST)
    runs = (str(tmp_path / "runs"), str(folder / "runs" / "same"))
    text = write_report(config(folder, tmp_path / "r.html", runs=runs)).output.read_text(encoding="utf-8")
    assert text.count(f"The student is that of {tmp_path}/runs/taught.") == 3


def test_a_cache_without_its_images_lists_the_keys_to_look_at(folder: Path, tmp_path: Path) -> None:
    page = write_report(config(folder, tmp_path / "r.html", data=None)).output
    assert "cache-confidence" in charts_of(page)
    assert page.read_text().count("<li>") >= 12
    assert "data:image/jpeg" not in page.read_text()


def test_a_cache_of_features_alone_is_shown_without_predictions(folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(folder / "images", recipe=RECIPE)
    build = BuildConfig(num_workers=0, streams=("pooled",))
    build_cache(Teacher(tiny_model()), dataset, tmp_path / "f.h5", build)
    charts = charts_of(write_report(config(folder, tmp_path / "r.html", cache=str(tmp_path / "f.h5"))).output)
    assert "fidelity-pooled" in charts
    assert "cache-confidence" not in charts


def test_mixed_views_are_shown_without_accuracy_and_the_page_says_why(folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(folder / "images", recipe=ViewRecipe(size=32, mixup_alpha=1.0, num_views=2))
    build_cache(Teacher(tiny_model()), dataset, tmp_path / "m.h5", BuildConfig(codec="float32", num_workers=0))
    report = write_report(config(folder, tmp_path / "r.html", cache=str(tmp_path / "m.h5")))
    assert "calibration" not in charts_of(report.output)
    assert any("its recipe mixes" in problem for problem in report.problems)
    text = report.output.read_text()
    assert text.count('<div class="source">student</div>') == text.count("data:image/jpeg;base64,") > 0
    assert len(re.findall(r'class="label">\d+% \w+ \+ \d+% \w+<', text)) > 10  # a label for each view, as they differ


@pytest.mark.parametrize("name", ["ml-dr/randaug", "fkd/hard"])
def test_a_cache_of_recorded_views_is_shown_with_its_images(folder: Path, tmp_path: Path, name: str) -> None:
    import_sample(name, tmp_path / "imported.h5")
    report = write_report(
        config(folder, tmp_path / "r.html", cache=str(tmp_path / "imported.h5"), data=str(TRAIN), images=6)
    )
    assert "data:image/jpeg;base64," in report.output.read_text()


def test_the_images_of_a_cache_and_of_a_validation_are_read_as_their_columns_say(folder: Path, tmp_path: Path) -> None:
    paths = sorted((folder / "images").rglob("*.png"))
    rows = [f"{path},{path.parent.name}" for path in paths]
    (tmp_path / "t.csv").write_text("\n".join(["path,species", *rows]) + "\n")
    dataset = open_dataset(tmp_path / "t.csv", recipe=RECIPE, label_column="species")
    build_cache(Teacher(tiny_model()), dataset, tmp_path / "t.h5", BuildConfig(codec="float32", num_workers=0))
    table = {"data": str(tmp_path / "t.csv"), "validation": str(tmp_path / "t.csv"), "label_column": "species"}
    report = write_report(config(folder, tmp_path / "r.html", cache=str(tmp_path / "t.h5"), **table))
    assert {"calibration", "confusion"} <= {*charts_of(report.output)}


def test_damaged_runs_are_named_on_the_page(folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "<b>cut", [50.0])
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:-30])
    report = write_report(ReportConfig(runs=(str(tmp_path / "runs"), "nowhere"), output=str(tmp_path / "r.html")))
    text = report.output.read_text()
    assert any("'nowhere' does not exist" in problem for problem in report.problems)
    assert "Could not be read or computed" in text
    assert "<b>cut" not in text


def test_what_cannot_work_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    output = str(tmp_path / "r.html")
    for options, message in (
        ({"runs": ()}, "no run is given"),
        ({"output": "r.pdf"}, r"ends in \.html"),
        ({"data": "images"}, "no cache is given"),
        ({"images": 0}, "images must be at least 1"),
        ({"num_workers": -1}, "num_workers"),
    ):
        with pytest.raises(ConfigError, match=message):
            ReportConfig(**{"runs": ("a",), "output": output, **options})  # type: ignore[arg-type]
    (tmp_path / "r.html").touch()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_report(ReportConfig(runs=("a",), output=output))


def test_validation_images_that_were_named_must_be_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        write_report(config(folder, tmp_path / "r.html", validation=str(tmp_path / "none")))


def test_without_plotly_one_line_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Path:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(report_module.resources, "files", missing)
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("report"))):
        write_report(config(folder, tmp_path / "r.html"))


def test_the_command_prints_where_the_page_is(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder / "runs"), "-o", str(tmp_path / "r.html")]) == 0
    streams = capsys.readouterr()
    assert "r.html: 2 runs, " in streams.out
    assert "kdkit: warning: the student of" in streams.err
