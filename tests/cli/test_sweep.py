"""kdkit distill --sweep: a run per combination, in folders of their own, resumed by the same command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import write_digits

from kdkit.cli import main
from kdkit.cli._sweep import combinations, run_each, split_sweep
from kdkit.errors import DatasetError, KdkitError, UsageError

TRAIN = ["--student", "test_resnet", "--epochs", "1", "--batch-size", "10", "--workers", "0", "--size", "32"]


def test_every_combination_is_named_and_commas_in_braces_do_not_split() -> None:
    assert combinations("loss=kl,dkd lr=1e-3,3e-4") == [
        {"loss": "kl", "lr": "1e-3"},
        {"loss": "kl", "lr": "3e-4"},
        {"loss": "dkd", "lr": "1e-3"},
        {"loss": "dkd", "lr": "3e-4"},
    ]
    found = combinations("'loss={kl: 1, dist: 2},kl' --train.opt_options.betas=[0.9,0.95],[0.9,0.99]")
    assert [run["loss"] for run in found] == ["{kl: 1, dist: 2}", "{kl: 1, dist: 2}", "kl", "kl"]
    assert [run["train.opt_options.betas"] for run in found[:2]] == ["[0.9,0.95]", "[0.9,0.99]"]
    assert split_sweep(["data", "--sweep", "lr=1", "-o", "x"]) == ("lr=1", ["data", "-o", "x"])
    assert split_sweep(["data", "--sweep=lr=1,2"]) == ("lr=1,2", ["data"])


@pytest.mark.parametrize("text", ["", "loss", "loss=", "=kl", "lr=1 lr=2"])
def test_a_sweep_that_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--sweep"):
        combinations(text)


def test_a_sweep_trains_each_run_compares_them_and_leaves_finished_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digits(tmp_path / "data", 20)
    monkeypatch.chdir(tmp_path)
    command = ["distill", "data", *TRAIN, "--val", "data", "-o", "runs", "--sweep", "lr=1e-3,1e30"]
    assert main(command) == 1  # the second one diverges, and does not keep the first from being compared
    shown = capsys.readouterr()
    assert "1 of 2 runs failed, the first: lr=1e30" in shown.err
    weights = tmp_path / "runs" / "lr=1e-3" / "last.pth.tar"
    before = weights.read_bytes()
    assert main(["compare", "runs", "--json"]) == 0
    assert "runs/lr=1e-3" in {run["run"] for run in json.loads(capsys.readouterr().out)["runs"]}
    assert main([*command[:-1], "lr=1e-3,1e-2"]) == 0
    assert weights.read_bytes() == before
    assert (tmp_path / "runs" / "lr=1e-2" / "last.pth.tar").is_file()


def test_a_wrong_value_is_refused_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digits(tmp_path / "data", 10)
    monkeypatch.chdir(tmp_path)
    assert main(["distill", "data", *TRAIN, "-o", "runs", "--sweep", "lr=1e-3,fast"]) == 2
    assert "--lr takes a number, got 'fast'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("overwrite", ["--overwrite", "--overwrite=true", "--config=over.yaml"])
def test_runs_of_a_sweep_are_replaced_however_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: str
) -> None:
    write_digits(tmp_path / "data", 20)
    monkeypatch.chdir(tmp_path)
    Path("over.yaml").write_text("overwrite: true\n")
    command = ["distill", "data", *TRAIN, "-o", "runs", "--sweep", "lr=1e-3"]
    assert main(command) == 0
    written = Path("runs/lr=1e-3/config.yaml").stat().st_mtime_ns
    assert main([*command, overwrite]) == 0
    assert Path("runs/lr=1e-3/config.yaml").stat().st_mtime_ns > written


@pytest.mark.parametrize(("world_size", "count"), [(1, 2), (2, 1)])
def test_a_run_that_fails_ends_the_sweep_where_other_ranks_may_wait_for_it(
    world_size: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdkit.runtime.distributed.world_size", lambda: world_size)
    begun: list[str] = []

    def fail(arguments: list[str]) -> None:
        begun.extend(arguments)
        raise DatasetError("no image")

    with pytest.raises(KdkitError, match="no image"):
        run_each([(tmp_path / "a", ["a"]), (tmp_path / "b", ["b"])], fail)
    assert len(begun) == count


def test_the_error_of_a_sweep_of_which_no_run_began_is_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_digits(tmp_path / "data", 20)
    next(images.rglob("*.png")).write_bytes(b"no image")
    command = ["distill", str(images), *TRAIN, "--no-preflight", "-o", str(tmp_path / "out"), "--sweep", "lr=1e-3,1e-2"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "kdkit: error: 2 of 2 runs failed, the first: lr=1e-3 (the image" in " ".join(error.split())
    assert "is not a run" not in error
