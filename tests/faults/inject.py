"""Run by test_injected_faults.py and benchmarks/kills.py: commands that are killed, or whose file system fails.

    LD_PRELOAD=shim.so python inject.py FOLDER SHIM COMMAND FAULT TRIALS

Each trial forks a process that runs the command with a fault at a counted call, or a kill at a random time. Then the
same command runs again, at once and without a fault: it must work, its output must equal that of an undisturbed run,
and nothing may be left beside it. Prints one line of JSON a trial: [fault, number, how the disturbed run ended]. The
calls are spread evenly over those of an undisturbed run; with more trials than calls each call is met once.
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

from kdkit import build_cache, extend_cache
from kdkit.building.config import BuildConfig
from kdkit.cache.places import pack_cache
from kdkit.cli import main as kdkit
from kdkit.data import ReplayedDataset
from kdkit.errors import KdkitError
from kdkit.importers import import_mldr
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher

FAULTS = {"kill": 0, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
TIMINGS = ("seconds", "images_per_second", "waiting")
DONE, REFUSED, UNTYPED = 0, 3, 4


def dataset(views: int) -> ReplayedDataset:
    return ReplayedDataset(digits(40), ViewRecipe(size=8, num_views=views, hflip=0.0))


def build(folder: Path, *, views: int = 3, workers: int = 2, pack: bool = True) -> None:
    config = BuildConfig(codec="lowrank", codec_options={"row_bytes": 6}, num_workers=workers, pack=pack, batch_size=16)
    build_cache(Teacher(Pixels()), dataset(views), folder / "t.h5", config)


def extend(folder: Path) -> None:
    extend_cache(Teacher(Pixels()), dataset(3), folder / "t.h5", num_workers=2, batch_size=16)


def import_(folder: Path) -> None:
    import_mldr(folder.parent / "foreign", Keys([f"{n}.png" for n in range(12)]), folder / "t.h5", codec="topk")


def distill(folder: Path) -> None:
    """A short training run, resumed where there is a checkpoint."""
    shared = folder.parent
    code = kdkit([
        "distill", str(shared / "images"), "--cache", str(shared / "cache" / "t.h5"), "--output", str(folder / "run"),
        "--student", "test_vit3", "--student_options", "{img_size: 32}", "--train.epochs", "2",
        "--train.num_workers", "2", "--train.batch_size", "16", "--train.checkpoint_every", "1",
        "--device", "cpu", "--resume",
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


@dataclass(frozen=True)
class Command:
    """A command, what must be there before it, and its output."""

    run: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None
    contents: Callable[[Path], Any] = lambda folder: cache_contents(folder / "t.h5")
    output: tuple[str, ...] = ("t.h5",)


COMMANDS = {
    "build": Command(build),
    "extend": Command(extend, lambda folder: build(folder, views=2, workers=0)),
    "pack": Command(lambda folder: pack_cache(folder / "t.h5"), lambda folder: build(folder, workers=0, pack=False)),
    "import": Command(import_),
    "distill": Command(distill, contents=run_contents, output=("run",)),
}


class Injector:
    """Runs one command, disturbed and undisturbed, in folders below `root`."""

    def __init__(self, root: Path, shim: str, name: str) -> None:
        self.root, self.command = root, COMMANDS[name]
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
        self.num_calls[fault] = int(counts.read_text())
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
        repeated = in_child(lambda: self.command.run(folder))
        place = f"{fault} at {number}, ended with {ended}"
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


def main(root: Path, shim: str, name: str, fault: str, trials: int) -> None:
    """Runs the trials; "kill" is half at counted calls and half at random times."""
    torch.set_num_threads(1)
    injector = Injector(root, shim, name)
    injector.undisturbed(fault)
    calls = injector.num_calls[fault]
    counted = min(calls, (trials + 1) // 2 if fault == "kill" else trials)
    chosen = [1 + index * calls // counted for index in range(counted)]
    print(json.dumps({"calls": calls, "seconds": injector.seconds}), flush=True)
    for number in chosen:
        print(json.dumps([fault, number, injector.trial(fault, number, None)]), flush=True)
    for seed in range(trials - counted if fault == "kill" else 0):
        print(json.dumps(["kill at random", seed, injector.trial(fault, seed, seed)]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
