"""Run by test_injected_faults.py and benchmarks/kills.py: commands that are killed, or whose file system fails.

    LD_PRELOAD=shim.so python inject.py FOLDER SHIM COMMAND:FAULT:TRIALS...

Each trial forks a process that runs the command with a fault at a counted call, or a kill at a random time. Then the
same command runs again, at once and without a fault: it must work, its output must equal that of an undisturbed run,
and nothing may be left beside it. Prints one line of JSON a trial: [command, fault, number, how the disturbed run
ended], and before those of a command and fault the number of calls of an undisturbed run. The calls are spread evenly
over those of an undisturbed run; with more trials than calls each call is met once.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from foreign_caches import Keys, write_ml_dr
from safetensors.torch import save_file
from support import Pixels, cache_contents, digits, tiny_model, write_digits

from kdkit import ClassificationTask, build_cache, extend_cache
from kdkit.building.config import BuildConfig
from kdkit.building.merge import merge_caches, prune_cache
from kdkit.building.recode import recode_cache
from kdkit.cache.places import pack_cache
from kdkit.cli import main as kdkit
from kdkit.data import ReplayedDataset
from kdkit.errors import KdkitError
from kdkit.importers import import_mldr
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher
from kdkit.training.checkpoint import Checkpoints
from kdkit.training.state import Position, RunState

FAULTS = {"kill": 0, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
TIMINGS = ("seconds", "images_per_second", "waiting")
DONE, REFUSED, UNTYPED = 0, 3, 4


def dataset(views: int, rows: range = range(40)) -> ReplayedDataset:
    return ReplayedDataset(digits(60), ViewRecipe(size=8, num_views=views, hflip=0.0)).selecting(list(rows))


def build(
    folder: Path,
    *,
    views: int = 3,
    workers: int = 2,
    pack: bool = True,
    rows: range = range(40),
    name: str = "t.h5",
    codec: str = "lowrank",
) -> None:
    options = {"row_bytes": 6} if codec == "lowrank" else {}
    config = BuildConfig(codec=codec, codec_options=options, num_workers=workers, pack=pack, batch_size=16)
    build_cache(Teacher(Pixels()), dataset(views, rows), folder / name, config)


def extend(folder: Path) -> None:
    extend_cache(Teacher(Pixels()), dataset(3), folder / "t.h5", num_workers=2, batch_size=16)


def add_images(folder: Path) -> None:
    extend_cache(Teacher(Pixels()), dataset(3, range(60)), folder / "t.h5", num_workers=2, batch_size=16)


def build_two(folder: Path) -> None:
    build(folder, workers=0, name="a.h5")
    build(folder, workers=0, name="b.h5", rows=range(40, 60))


def import_(folder: Path) -> None:
    import_mldr(folder.parent / "foreign", Keys([f"{n}.png" for n in range(12)]), folder / "t.h5", codec="topk")


def distill(folder: Path) -> None:
    """A short training run, resumed where there is a checkpoint."""
    shared = folder.parent
    code = kdkit([
        "distill", str(shared / "images"), "--cache", str(shared / "cache" / "t.h5"), "--output", str(folder / "run"),
        "--student", "test_vit3", "--student-options", "{img_size: 32}", "--train.epochs", "2",
        "--train.num_workers", "2", "--train.batch_size", "16", "--train.checkpoint_every", "1",
        "--views-per-decode", "2", "--device", "cpu", "--resume",
    ])  # fmt: skip
    if code == 1:
        raise KdkitError("the command printed an error of one line")
    assert code == 0, code


def run_contents(folder: Path) -> Any:
    """Weights and records of a run, without times."""
    content = torch.load(folder / "run" / "last.pth.tar", weights_only=True)
    weights = {name: weight.numpy().tobytes() for name, weight in content["state_dict"].items()}
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]
    return weights, records, sorted(path.name for path in (folder / "run").iterdir())


def checkpoint(folder: Path) -> None:
    """Three checkpoints of a run, the second the best; continued after the newest that there is."""
    checkpoints = Checkpoints(folder / "run", resume=True)
    state = state_after(0)
    checkpoints.restore(state)
    for update in range(state.position.update + 1, 4):
        checkpoints.save(state_after(update), is_best=update == 2)


def state_after(update: int) -> RunState:
    """The state of a run after so many updates, its weights drawn from a seed."""
    task = ClassificationTask(tiny_model(seed=update))
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(enabled=False)
    return RunState(task, optimizer, None, scaler, torch.device("cpu"), Position(0, update, update))


def checkpoint_contents(folder: Path) -> Any:
    """The updates that the checkpoints hold, and their weights."""
    contents = {}
    for path in sorted((folder / "run").iterdir()):
        content = torch.load(path, weights_only=True)
        weights = [weight.numpy().tobytes() for weight in content["state_dict"].values()]
        contents[path.name] = (content["kdkit"]["position"], weights)
    return contents


@dataclass(frozen=True)
class Command:
    """A command, what must be there before it, and its output."""

    run: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None
    contents: Callable[[Path], Any] = lambda folder: cache_contents(folder / "t.h5")
    output: tuple[str, ...] = ("t.h5",)
    in_place: bool = False
    """Whether the output was there before, and is at any time as it was or as it will be."""


COMMANDS = {
    "build": Command(build),
    "extend": Command(extend, lambda folder: build(folder, views=2, workers=0), in_place=True),
    "add images": Command(add_images, lambda folder: build(folder, workers=0), in_place=True),
    "prune": Command(
        lambda folder: prune_cache(folder / "t.h5", dataset(3, range(0, 40, 3))),
        lambda folder: build(folder, workers=0),
        in_place=True,
    ),
    "merge": Command(
        lambda folder: merge_caches([folder / "a.h5", folder / "b.h5"], folder / "t.h5"),
        build_two,
        output=("a.h5", "b.h5", "t.h5"),
    ),
    "recode": Command(
        lambda folder: recode_cache(folder / "float.h5", folder / "t.h5", codec="lowrank", row_bytes=6, num_views=2),
        lambda folder: build(folder, workers=0, name="float.h5", codec="float16"),
        output=("float.h5", "t.h5"),
    ),
    "pack": Command(lambda folder: pack_cache(folder / "t.h5"), lambda folder: build(folder, workers=0, pack=False)),
    "import": Command(import_),
    "checkpoint": Command(checkpoint, lambda folder: (folder / "run").mkdir(), checkpoint_contents, ("run",)),
    "distill": Command(distill, contents=run_contents, output=("run",)),
}


class Injector:
    """Runs one command, disturbed and undisturbed, in folders below `root`."""

    def __init__(self, root: Path, shim: str, name: str) -> None:
        self.root, self.command = root, COMMANDS[name]
        root.mkdir()
        self.shim = ctypes.CDLL(shim)
        self.shim.disarm.restype = ctypes.c_long
        self.shared = root / "prepared"
        self.shared.mkdir()
        in_child(lambda: self.command.prepare(self.shared))
        write_ml_dr(root / "foreign", 12)
        if name == "distill":
            write_digits(root / "images", 48)
            in_child(self._cache)
        self.num_calls: dict[str, int] = {}
        self.seconds = 0.0
        self.expected: Any = None
        self.before = self.command.contents(self.shared) if self.command.in_place else None

    def _cache(self) -> None:
        (self.root / "cache").mkdir()
        weights = str(self.root / "teacher.safetensors")
        save_file(tiny_model().state_dict(), weights)
        command = ["cache", "build", str(self.root / "images"), "--teacher", "test_resnet", "--size", "32"]
        command += ["--views", "2", "--teacher.checkpoint", weights, "--build.num_workers", "0"]
        assert kdkit([*command, "-o", str(self.root / "cache" / "t.h5")]) == 0

    def fresh(self) -> Path:
        """A folder in the state before the command."""
        folder = self.root / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.shared, folder)
        return folder

    def undisturbed(self, fault: str) -> None:
        """Counts the calls, takes the time and keeps the output of a run without a fault."""
        folder = self.fresh()
        counts = self.root / "count"

        def run() -> None:
            self.shim.arm(str(folder).encode(), 0, FAULTS[fault], 0)
            self.command.run(folder)
            counts.write_text(str(self.shim.disarm()))

        begun = time.monotonic()
        assert in_child(run) == DONE
        self.seconds = time.monotonic() - begun
        counted = int(counts.read_text())
        self.num_calls |= {fault: counted} if fault == "ENOSPC" else {"kill": counted, "EIO": counted}
        self.expected = self.command.contents(folder)

    def trial(self, fault: str, number: int, seed: int | None) -> str:
        """One disturbed run, at call `number`, or killed after a random time drawn from `seed`; then the repeat."""
        folder = self.fresh()

        def run() -> None:
            if seed is None:
                self.shim.arm(str(folder).encode(), number, FAULTS[fault], int(fault == "ENOSPC"))
            self.command.run(folder)

        after = None if seed is None else random.Random(seed).uniform(0.0, 1.1) * self.seconds
        ended = in_child(run, kill_after=after)
        if ended == UNTYPED or (ended < 0 and ended != -signal.SIGKILL) or (ended < 0 and fault != "kill"):
            raise AssertionError(f"{fault} at {number}: ended with {ended}")
        place = f"{fault} at {number}, ended with {ended}"
        if self.command.in_place:
            assert self.command.contents(folder) in (self.before, self.expected), f"{place}: neither old nor new"
        repeated = in_child(lambda: self.command.run(folder))
        assert repeated == DONE, f"{place}: the repeat ended with {repeated}"
        assert self.command.contents(folder) == self.expected, f"{place}: the output differs"
        left = sorted(path.name for path in folder.iterdir())
        assert left == sorted(self.command.output), f"{place}: left {left}"
        return {DONE: "done", REFUSED: "refused"}.get(ended, "killed")


def in_child(work: Callable[[], object], kill_after: float | None = None) -> int:
    """The exit code of a forked process that does the work; negative for a signal."""
    process = os.fork()
    if process == 0:
        code = UNTYPED
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            work()
            code = DONE
        except KdkitError as error:
            code = REFUSED if "\n" not in str(error) else UNTYPED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(injector: Injector, name: str, fault: str, trials: int) -> None:
    """Runs the trials of one command and fault; "kill" is half at counted calls and half at random times."""
    if fault not in injector.num_calls:
        injector.undisturbed(fault)
    calls = injector.num_calls[fault]
    counted = min(calls, (trials + 1) // 2 if fault == "kill" else trials)
    chosen = [1 + (2 * index + 1) * calls // (2 * counted) for index in range(counted)]
    print(json.dumps({"command": name, "fault": fault, "calls": calls, "seconds": injector.seconds}), flush=True)
    for number in chosen:
        print(json.dumps([name, fault, number, injector.trial(fault, number, None)]), flush=True)
    for seed in range(trials - counted if fault == "kill" else 0):
        print(json.dumps([name, fault, f"seed {seed}", injector.trial(fault, seed, seed)]), flush=True)


def main(root: Path, shim: str, requests: list[str]) -> None:
    """Runs all requests in this one process: loading torch takes longer than a trial."""
    torch.set_num_threads(1)
    injectors: dict[str, Injector] = {}
    for name, fault, trials in (request.split(":") for request in requests):
        if name not in injectors:
            injectors[name] = Injector(root / name, shim, name)
        run(injectors[name], name, fault, int(trials))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
