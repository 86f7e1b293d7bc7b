"""The commands under torchrun: they join by themselves, share the work, and go on after a rank has died."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import cache_contents, tiny_model, write_digits

from kdkit import open_dataset
from kdkit.cli import main

pytestmark = pytest.mark.xdist_group("commands")  # they share what takes long to set up


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 digits, of which two ranks do not get equally many, a teacher, and its cache."""
    folder = tmp_path_factory.mktemp("commands")
    write_digits(folder / "images", 75)
    save_file(tiny_model(seed=1).state_dict(), folder / "teacher.safetensors")
    assert main(build(folder, folder / "t.h5")) == 0
    return folder


def build(folder: Path, output: Path) -> list[str]:
    return [
        "cache", "build", "--data", str(folder / "images"), "--output", str(output),
        "--teacher.model", "test_resnet", "--teacher.checkpoint", str(folder / "teacher.safetensors"),
        "--recipe.size", "32", "--recipe.num_views", "2", "--build.num_workers", "0", "--build.codec", "float32",
        "--build.batch_size", "25",
    ]  # fmt: skip


def distill(folder: Path, output: Path, *more: str) -> list[str]:
    return [
        "distill", "--data", str(folder / "images"), "--validation", str(folder / "images"), "--cache",
        str(folder / "t.h5"), "--student", "test_vit", "--output", str(output), "--train.epochs", "2",
        "--train.num_workers", "0", "--train.opt", "momentum", "--train.lr", "0.01", "--views-per-decode", "1", *more,
    ]  # fmt: skip


def torchrun(arguments: list[str], *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two ranks, as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    everything = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    everything["PYTHONPATH"] = os.pathsep.join([environment.get("PYTHONPATH", ""), *sys.path])
    return subprocess.run(
        [*command, "-m", "kdkit", *arguments], env=everything, capture_output=True, text=True, timeout=200
    )


def epochs(output: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "epoch"]


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> Path:
    """The output of an undisturbed run on two ranks."""
    run = torchrun(distill(folder, folder / "two", "--train.batch_size", "15"))
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("test_vit: best top-1") == 1
    return folder / "two"


@pytest.mark.slow
def test_two_ranks_train_as_one_with_twice_the_batch(folder: Path, two_ranks: Path) -> None:
    assert main(distill(folder, folder / "one", "--train.batch_size", "30")) == 0
    weights = [
        torch.load(path / "last.pth.tar", weights_only=True)["state_dict"] for path in (folder / "one", two_ranks)
    ]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5)
    for one, two in zip(epochs(folder / "one"), epochs(two_ranks), strict=True):
        for name in ("loss", "kd_loss", "val_loss", "val_top1"):  # evaluation is shared, and no image counted twice
            assert two[name] == pytest.approx(one[name], rel=1e-4), name


_DIE = """
import glob, os, signal, time
if os.environ.get("RANK") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
    import kdkit.{module} as module
    original, calls = module.{name}, []

    def dying(*arguments, **options):
        calls.append(0)
        if len(calls) > {calls}:
            deadline = time.monotonic() + 60
            while "AWAITED" in os.environ and not glob.glob(os.environ["AWAITED"]) and time.monotonic() < deadline:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    module.{name} = dying
elif os.environ.get("RANK") == "0" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "1":
    time.sleep(5)  # so that rank 1 is there first, and must not take the dead rank 0's address for the new one's
    import kdkit.{module} as module
    original = module.{name}

    def counted(*arguments, **options):
        with open(os.environ["CALLS"], "a") as file:
            file.write("x")
        return original(*arguments, **options)

    module.{name} = counted
"""


IN_ITS_SECOND_BATCH = ("building.shards", "run_teacher", 1)


def deadly(folder: Path, module: str, name: str, calls: int) -> dict[str, str]:
    """An environment in which rank 1 dies at a call of a function, at its first start; once there are AWAITED files."""
    place = folder / f"deadly-{name}"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(_DIE.format(module=module, name=name, calls=calls))
    return {"PYTHONPATH": str(place)}


@pytest.mark.slow
def test_fault_12_a_rank_that_dies_is_started_again_by_torchrun_and_training_resumes_by_itself(
    folder: Path, two_ranks: Path
) -> None:
    run = torchrun(
        distill(folder, folder / "died", "--train.batch_size", "15", "--train.checkpoint_every", "1"),
        "--max-restarts=1",
        **deadly(folder, "training.train", "Meter", 1),
        CALLS=str(folder / "calls"),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (folder / "calls").read_text() == "x"  # the second epoch alone
    states = [torch.load(path / "last.pth.tar", weights_only=True) for path in (folder / "died", two_ranks)]
    assert all(torch.equal(states[0]["state_dict"][name], value) for name, value in states[1]["state_dict"].items())


_TELL = """
import os, signal
if os.environ.get("RANK"):
    import kdkit.training.train as module
    original = module.evaluate_each

    def signalled(*arguments, **options):
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            found = original(*arguments, **options)
        except SystemExit as left:
            open(os.environ["LEFT"] + os.environ["RANK"], "x").write(str(left.code))
            raise
        return found

    module.evaluate_each = signalled
"""


@pytest.mark.slow
def test_fault_20_ranks_stop_a_validation_together_on_a_signal_to_one_and_resume_before_it(
    folder: Path, two_ranks: Path
) -> None:
    (folder / "signalled").mkdir()
    (folder / "signalled" / "sitecustomize.py").write_text(_TELL)
    arguments = distill(folder, folder / "stopped", "--train.batch_size", "15", "--resume")
    run = torchrun(arguments, PYTHONPATH=str(folder / "signalled"), LEFT=str(folder / "left"))
    assert run.returncode != 0
    assert not epochs(folder / "stopped")
    run = torchrun(arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    assert [(folder / f"left{rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    states = [torch.load(path / "last.pth.tar", weights_only=True) for path in (folder / "stopped", two_ranks)]
    assert all(torch.equal(states[0]["state_dict"][name], value) for name, value in states[1]["state_dict"].items())
    for mine, plain in zip(epochs(folder / "stopped"), epochs(two_ranks), strict=True):
        timings = {"seconds": 0, "images_per_second": 0, "waiting": 0}
        assert {**mine, **timings} == {**plain, **timings}


@pytest.mark.slow
def test_fault_12_when_one_of_two_building_ranks_dies_the_other_stops_and_a_new_run_does_the_rest(
    folder: Path,
) -> None:
    begun = time.monotonic()
    sealed = str(folder / "u.h5.parts" / "v0000-*.json")
    run = torchrun(build(folder, folder / "u.h5"), **deadly(folder, *IN_ITS_SECOND_BATCH), AWAITED=sealed)
    assert run.returncode != 0
    assert time.monotonic() - begun < 100
    assert not (folder / "u.h5").exists()
    run = torchrun(build(folder, folder / "u.h5"))
    assert run.returncode == 0, run.stderr[-3000:]
    assert "75 images x 2 views" in run.stdout
    assert "built        75 images" in run.stdout  # rank 0 had sealed a view
    assert cache_contents(folder / "u.h5") == cache_contents(folder / "t.h5")


@pytest.mark.slow
def test_fault_12_a_rank_whose_other_one_died_ends_by_itself_with_a_message(folder: Path) -> None:
    """Without torchrun, which would end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        **deadly(folder, *IN_ITS_SECOND_BATCH),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
    }
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "TORCHELASTIC_RESTART_COUNT": "0"}
    shared["PYTHONPATH"] = os.pathsep.join([shared["PYTHONPATH"], *sys.path])
    command = [sys.executable, "-m", "kdkit", *build(folder, folder / "v.h5")]
    ranks = [
        subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}, stderr=stderr, text=True)
        for rank, stderr in (("0", subprocess.PIPE), ("1", subprocess.DEVNULL))
    ]
    try:
        _, message = ranks[0].communicate(timeout=200)
        assert ranks[1].wait(timeout=10) == -signal.SIGKILL
    finally:
        for rank in ranks:
            rank.kill()
    assert ranks[0].returncode == 1
    assert "rank 0 lost another one" in message


@pytest.mark.slow
@pytest.mark.parametrize("broken", [(1, 3, 5, 7), (9, 11, 13, 15), range(1, 16, 2)])
def test_ranks_finish_together_if_one_cannot_read_a_batch_of_the_validation(
    folder: Path, tmp_path: Path, broken: Sequence[int]
) -> None:
    held_out = write_digits(tmp_path / "val", 16)
    for row in broken:
        (held_out / open_dataset(held_out).keys[row]).write_bytes(b"no image")
    options = ["--train.batch_size", "4", "--train.ema_decay", "0.9", "--unreadable", "skip"]
    run = torchrun([*distill(folder, tmp_path / "run", *options), "--validation", str(held_out)])
    assert run.returncode == 0, run.stderr
    assert len(epochs(tmp_path / "run")) == 2
    skipped = [json.loads(line)["key"] for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) == len(set(skipped)) == len(broken)


@pytest.mark.slow
def test_a_sweep_on_two_ranks_trains_each_run_in_a_group_of_its_own_and_prints_once(
    folder: Path, tmp_path: Path
) -> None:
    sweep = ["--sweep", "train.lr=0.01,0.02,0.03"]
    run = torchrun(distill(folder, tmp_path / "runs", "--train.batch_size", "15", *sweep))
    assert run.returncode == 0, run.stderr
    for rate in ("0.01", "0.02", "0.03"):
        assert len(epochs(tmp_path / "runs" / f"train.lr={rate}")) == 2
    assert [run.stderr.count(f"run {number} of 3:") for number in (1, 2, 3)] == [1, 1, 1]
    assert run.stdout.count("train.lr=0.03") == run.stdout.count("train.lr=0.01") > 0
    assert run.stdout.count("best top-1") == 3
