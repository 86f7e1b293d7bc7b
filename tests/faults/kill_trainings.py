"""Run by test_fault_30: forks trainings, ends each at random moments, and resumes until one finishes.

    python kill_trainings.py FOLDER SEEDS [WAY RANKS]...       WAY is live or cached; all four by default

Prints a line a run: how it was ended. Ends with an error if metrics or weights differ from the undisturbed run's by one
bit. A process of its own, since forking wants one without threads.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support import tiny_model, write_digits

from kdkit.cli import main

TIMINGS = ("seconds", "images_per_second", "waiting")
ALL = [("live", 1), ("cached", 2), ("live", 2), ("cached", 1)]
ENDS = 3
GRACE = 8.0  # seconds


def prepare(folder: Path) -> None:
    """64 digits as images, a teacher, and its cache."""
    write_digits(folder / "images", 64)
    save_file(tiny_model(seed=1).state_dict(), folder / "teacher.safetensors")
    build = ["cache", "build", "--data", str(folder / "images"), "--output", str(folder / "t.h5")]
    assert main([*build, *teacher(folder), *RECIPE, "--build.codec", "float32", "--build.num_workers", "0"]) == 0


RECIPE = ["--recipe.size", "32", "--recipe.num_views", "2"]


def teacher(folder: Path) -> list[str]:
    return ["--teacher.model", "test_resnet", "--teacher.checkpoint", str(folder / "teacher.safetensors")]


def distill(folder: Path, output: Path, way: str, ranks: int) -> list[str]:
    """A run with everything that has a state: dropout, moving average, accumulation, both kinds of warm-up.

    From a cache, one decode serves two views, so that the two epochs are one group, in whose middle a run stops.
    """
    return [
        "distill", "--data", str(folder / "images"), "--validation", str(folder / "images"), "--output", str(output),
        *(["--cache", str(folder / "t.h5")] if way == "cached" else [*teacher(folder), *RECIPE]),
        "--views-per-decode", "2" if way == "cached" else "1",
        "--student", "test_vit", "--student-options", "{drop_rate: 0.1, drop_path_rate: 0.1}",
        "--train.epochs", "2", "--train.batch_size", str(8 // ranks), "--train.accumulate", "2",
        "--train.num_workers", "0",
        "--train.ema_decay", "0.9", "--train.warmup_epochs", "1", "--train.distill_warmup_epochs", "1",
        "--train.clip_grad", "1.0", "--train.log_every", "3", "--train.checkpoint_every", "1", "--resume",
    ]  # fmt: skip


def start(arguments: list[str], ranks: int, log: Path) -> list[int]:
    """Forks the ranks of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        process = os.fork()
        if process == 0:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if ranks > 1:
                os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{ranks}"}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
            os._exit(main(arguments))
        processes.append(process)
    return processes


def wait(processes: list[int]) -> list[int]:
    """The exit codes; negative for a signal's. As under torchrun, no rank outlives one that failed by more than GRACE.

    A rank that waits for another which died before they met would wait for the whole timeout of a process group.
    """
    codes: dict[int, int] = {}
    deadline = math.inf
    while len(codes) < len(processes):
        for process in set(processes) - set(codes):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                codes[process] = os.waitstatus_to_exitcode(status)
                deadline = min(deadline, time.monotonic() + GRACE) if codes[process] else deadline
            elif time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[process] for process in processes]


def wait_for(file: Path, seconds: float = 60.0) -> None:
    """Until it is there."""
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} never came"
        time.sleep(0.005)


def updates(output: Path) -> int:
    """Updates after which the next run resumes."""
    content = torch.load(output / "last.pth.tar", weights_only=True)
    return int(content["kdkit"]["position"]["update"])


def result(output: Path) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """Metrics and checkpoint of a run, without timings."""
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    summary = [line.split(",") for line in (output / "summary.csv").read_text().splitlines()]
    timed = [summary[0].index(name) for name in TIMINGS]
    rows = "\n".join(",".join(cell for i, cell in enumerate(row) if i not in timed) for row in summary)
    kept = [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]
    return kept, torch.load(output / "last.pth.tar", weights_only=True), rows


def assert_equal(mine: Path, plain: Path) -> None:
    (records, checkpoint, rows), (expected, plain_checkpoint, plain_rows) = result(mine), result(plain)
    assert records == expected
    assert rows == plain_rows
    for part in ("state_dict", "state_dict_ema"):
        assert all(torch.equal(weight, plain_checkpoint[part][name]) for name, weight in checkpoint[part].items())
    states = [content["optimizer"]["state"] for content in (checkpoint, plain_checkpoint)]
    assert all(torch.equal(states[0][i]["exp_avg_sq"], states[1][i]["exp_avg_sq"]) for i in states[1])
    assert sorted(path.name for path in mine.iterdir()) == sorted(path.name for path in plain.iterdir())


def disturb(folder: Path, way: str, ranks: int, seed: int, duration: float) -> None:
    """Ends a run a few times, then lets it finish. The first end is by another signal in each way and seed."""
    draw = random.Random(seed)
    output, log = folder / f"{way}-{ranks}-{seed}", folder / f"{way}-{ranks}-{seed}.log"
    for attempt in range(ENDS + 1):
        processes = start(distill(folder, output, way, ranks), ranks, log)
        kinds = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
        kind = None if attempt == ENDS else draw.choice(kinds) if attempt else kinds[(seed + (way == "cached")) % 3]
        if attempt == 0:
            wait_for(output / "last.pth.tar")  # within the first epoch: the resumed run starts in its middle
        elif kind is not None:
            time.sleep(draw.uniform(0.2, 0.8) * duration)
        if kind is not None:
            hit = [draw.choice(processes)] if kind == signal.SIGKILL else processes  # torchrun sends SIGTERM to all
            for process in hit:
                os.kill(process, kind)
        codes = wait(processes)
        print(way, ranks, seed, kind.name if kind else "none", codes, updates(output), flush=True)
        if set(codes) == {0}:
            break
        allowed = {signal.SIGTERM: {143, 0}, signal.SIGINT: {130, 0}, signal.SIGKILL: {-9, 1, 0}, None: {0}}[kind]
        if attempt and kind is not None:  # two ranks that got the signal before they met: one waits for the other
            allowed |= {-9}
        assert set(codes) <= allowed, log.read_text()[-3000:]
    assert_equal(output, folder / f"{way}-{ranks}")


def kill_trainings(folder: Path, seeds: int, cases: list[tuple[str, int]]) -> None:
    torch.set_num_threads(1)
    prepare(folder)
    for way, ranks in cases:
        begun = time.monotonic()
        plain, log = folder / f"{way}-{ranks}", folder / f"{way}-{ranks}.log"
        assert set(wait(start(distill(folder, plain, way, ranks), ranks, log))) == {0}, log.read_text()[-3000:]
        duration = time.monotonic() - begun
        for seed in range(seeds):
            disturb(folder, way, ranks, seed, duration)


if __name__ == "__main__":
    chosen = [(way, int(ranks)) for way, ranks in zip(sys.argv[3::2], sys.argv[4::2], strict=True)]
    kill_trainings(Path(sys.argv[1]), int(sys.argv[2]), chosen or ALL)
