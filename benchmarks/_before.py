"""Run by faults_before.py with the kdkit of one version: reproduces faults by their cause, and says what happened.

    PYTHONPATH=CHECKOUT python _before.py FOLDER SHIM [FAULT]...

Each case runs commands in forked processes, which may hang, die or take memory. It uses flags and files that both
versions have. Prints one line of JSON a case: fault, what was done, what happened.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kdkit.cli import main as kdkit

PATIENCE = 60  # seconds after which a command hangs; a good one takes a tenth of that
MEMORY = 4 << 30  # bytes of address space beyond the start
GOLDEN = Path(__file__).parents[1] / "cache" / "golden" / "v1-lowrank.h5"
HANG, DIED = "waits for ever", "killed by signal"

Case = Callable[[Path, ctypes.CDLL], str]
CASES: dict[str, tuple[str, Case]] = {}


def case(fault: str, done: str) -> Callable[[Case], Case]:
    """Registers a case."""

    def register(run: Case) -> Case:
        CASES[fault] = (done, run)
        return run

    return register


def command(*arguments: object, before: Callable[[], object] = lambda: None, patience: float = PATIENCE) -> str:
    """What a command ended with, in a process of its own: the last line of its errors, or of its output."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        os.setsid()
        _child([str(argument) for argument in arguments], before, writer)
    os.close(writer)
    deadline = time.monotonic() + patience
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return HANG
        time.sleep(0.02)
    with open(reader, encoding="utf-8", errors="replace") as answer:
        return answer.read() or DIED


def must(*arguments: object) -> None:
    """Runs a command that has to succeed: it prepares a case."""
    end = command(*arguments, patience=600)
    if not end.startswith("exit 0"):
        raise RuntimeError(end)


def _child(arguments: Sequence[str], before: Callable[[], object], writer: int) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            before()
            code: object = kdkit(arguments)
        except BaseException as error:
            code = f"untyped {type(error).__name__}: {' '.join(str(error).split())[:120]}"
            place = traceback.extract_tb(error.__traceback__)[-1]
            code = f"{code} at {Path(place.filename).name}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) >> 10
    shown = (errors.getvalue().strip() if code else output.getvalue().strip()).splitlines()[-1:]
    text = code if isinstance(code, str) else f"exit {code}: {shown[0] if shown else ''}"
    raw = "; raw control characters in the output" if "\x1b" in output.getvalue() else ""
    memory = f"; {grown:,} MiB" if grown > 512 else ""
    os.write(writer, f"{text}{raw}{memory}".encode())
    os._exit(0)


def images(folder: Path, count: int, *, seed: int = 0, size: int = 32) -> Path:
    """`count` images of noise in two classes."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        path = folder / str(number % 2) / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return folder


def weights(folder: Path) -> Path:
    """Weights of a teacher of two classes."""
    path = folder / "teacher.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), path)
    return path


def sharp(folder: Path, factor: float) -> Path:
    """The same teacher with larger logits."""
    state = load_file(weights(folder))
    state["fc.weight"] *= factor
    save_file(state, folder / "sharp.safetensors")
    return folder / "sharp.safetensors"


def build(data: Path, output: Path, *more: object) -> list[object]:
    """The arguments of a build."""
    teacher = ["--teacher.model", "test_resnet", "--teacher.checkpoint", weights(data.parent)]
    sizes = ["--recipe.size", 32, "--recipe.num_views", 2, "--build.codec", "float32", "--device", "cpu"]
    return ["cache", "build", "--data", data, "--output", output, *teacher, *sizes, "--build.num_workers", 0, *more]


def distill(data: Path, output: Path, *more: object) -> list[object]:
    """The arguments of a short training."""
    train = ["--train.epochs", 1, "--train.batch_size", 8, "--train.num_workers", 0, "--device", "cpu"]
    return ["distill", "--data", data, "--output", output, "--student", "test_resnet", *train, *more]


def golden(folder: Path, change: Callable[[h5py.File], object]) -> Path:
    """A cache of version 1, changed."""
    path = folder / "golden.h5"
    shutil.copy(GOLDEN, path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def document(file: h5py.File, name: str, change: Callable[[dict[str, object]], object]) -> None:
    """Changes a document at the root of a cache, with its right checksum."""
    values = json.loads(file.attrs[name] if isinstance(file.attrs[name], str) else file.attrs[name].decode())
    change(values)
    content = json.dumps(values).encode()
    for attribute in (name, f"{name}_crc32"):
        del file.attrs[attribute]
    file.attrs.create(name, np.array(content, dtype=h5py.string_dtype("utf-8", len(content))))
    file.attrs.create(f"{name}_crc32", np.uint32(zlib.crc32(content)))


def replace_array(file: h5py.File, name: str, array: np.ndarray) -> None:  # type: ignore[type-arg]
    """Replaces an array of a cache, with its right checksum."""
    del file[name]
    file[name] = array
    document(file, "kdkit_arrays", lambda values: values.update({name: zlib.crc32(array.tobytes())}))


@case("33 pipe", "cache info of a pipe")
def _pipe(folder: Path, shim: ctypes.CDLL) -> str:
    os.mkfifo(folder / "t.h5")
    return command("cache", "info", "--cache", folder / "t.h5")


@case("33 name", "cache info of a cache whose table of checksums names an array behind an external link to a pipe")
def _name(folder: Path, shim: ctypes.CDLL) -> str:
    os.mkfifo(folder / "bait.h5")

    def change(file: h5py.File) -> None:
        file["codecs/logits/x"] = h5py.ExternalLink(str(folder / "bait.h5"), "/")
        document(file, "kdkit_arrays", lambda values: values.update({"codecs/logits/x/y": 0}))

    return command("cache", "info", "--cache", golden(folder, change))


@case("33 card", "a teacher card that is a pipe")
def _card(folder: Path, shim: ctypes.CDLL) -> str:
    os.mkfifo(folder / "card.yaml")
    return command("teachers", "show", folder / "card.yaml", patience=10)


@case("34", "cache verify of a folder of shards, one of which is that of a cache with equal metadata and other rows")
def _shard(folder: Path, shim: ctypes.CDLL) -> str:
    teacher = ["--teacher.checkpoint", sharp(folder, 1e7)]  # of which the codec keeps all: its fidelity is equal
    for number, name in enumerate(("made", "other")):
        data = images(folder / name / "images", 8, seed=number)
        must(*build(data, folder / name / "t.h5", *teacher, "--build.pack=false"))
    (shard,) = (folder / "other" / "t.h5.parts").glob("v0001*.h5")
    shutil.copy(shard, folder / "made" / "t.h5.parts" / shard.name)
    return command("cache", "verify", "--cache", folder / "made" / "t.h5")


@case("35", "an export of 1,000 rows, one of which has a key of 3,000,000 letters; 4 GiB of memory")
def _key(folder: Path, shim: ctypes.CDLL) -> str:
    must(*build(images(folder / "images", 1000), folder / "t.h5", "--build.batch_size", 100))
    with h5py.File(folder / "t.h5", "r+") as file:
        joined = zlib.decompress(file["rows/keys_zlib"][()].tobytes()).split(b"\0")
        joined[0] = b"k" * 3_000_000
        digests = b"".join(hashlib.blake2b(key, digest_size=16).digest() for key in joined)
        replace_array(file, "rows/keys_zlib", np.frombuffer(zlib.compress(b"\0".join(joined)), np.uint8))
        replace_array(file, "rows/key_digest", np.frombuffer(digests, np.uint8).reshape(-1, 16))
        sha256 = hashlib.sha256(b"\0".join(joined)).hexdigest()
        document(file, "kdkit", lambda values: values["dataset"].update(keys_sha256=sha256))  # type: ignore
    return command("cache", "export", "--cache", folder / "t.h5", "--output", folder / "out.npz")


@case("36", "a build whose n-th call is an input/output error, n = 1 to 16")
def _lock(folder: Path, shim: ctypes.CDLL) -> str:
    data, ends = images(folder / "images", 4), []
    for number in range(1, 17):
        place = folder / f"out{number}"
        place.mkdir()

        def arm(place: Path = place, number: int = number) -> None:
            shim.arm(str(place).encode(), number, errno.EIO, 0)

        ends.append(command(*build(data, place / "t.h5"), before=arm))
    return worst(ends)


@case("37", "a build with 2 loader workers, killed, and repeated at once")
def _orphans(folder: Path, shim: ctypes.CDLL) -> str:
    data = images(folder / "images", 600)
    arguments = build(data, folder / "t.h5", "--build.num_workers", 2, "--build.batch_size", 4)
    process = os.fork()
    if process == 0:
        _silent()
        os._exit(kdkit([str(argument) for argument in arguments]))
    wait_until(lambda: len(children(process)) >= 2 and (folder / "t.h5.parts").is_dir())
    time.sleep(1.0)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return command(*arguments, patience=240)


@case("38", "cache pack, killed at its n-th call, and repeated; n = 10, 50, ..., 290")
def _pack(folder: Path, shim: ctypes.CDLL) -> str:
    data = images(folder / "images", 8)
    (folder / "made").mkdir()
    must(*build(data, folder / "made" / "t.h5", "--build.pack=false"))
    ends = []
    for number in range(10, 300, 40):
        place = folder / "trial"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "made", place)

        def arm(place: Path = place, number: int = number) -> None:
            shim.arm(str(place).encode(), number, 0, 0)

        command("cache", "pack", place / "t.h5", before=arm)
        end = command("cache", "pack", place / "t.h5")
        left = sorted(path.name for path in place.iterdir())
        ends.append(f"{end}; left: {left}" if left != ["t.h5"] else end)
    return worst(ends)


@case("39", "image 1,090 of 1,100 replaced after the build; a training from the cache")
def _replaced(folder: Path, shim: ctypes.CDLL) -> str:
    data = images(folder / "images", 1100)
    must(*build(data, folder / "t.h5", "--build.batch_size", 100))
    replaced = sorted(path for path in data.rglob("*.png"))[1090]
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(replaced)
    options = ["--cache", folder / "t.h5", "--train.batch_size", 100]
    return command(*distill(data, folder / "run", *options), patience=300)


@case("40", "a recipe of 10^9 erased rectangles")
def _absurd(folder: Path, shim: ctypes.CDLL) -> str:
    data = images(folder / "images", 4)
    return command(*build(data, folder / "t.h5", "--recipe.erasing", 1, "--recipe.erasing_count", 10**9))


@case("41", "class maps of 100,000 levels, of 30 digits and of texts and numbers")
def _types(folder: Path, shim: ctypes.CDLL) -> str:
    data, ends = images(folder / "images", 4), []
    for text in ("[" * 100_000, f"[{'9' * 30}, 1]", '["a", 1]', "{}"):
        (folder / "map.json").write_text(text)
        ends.append(command(*build(data, folder / "t.h5", "--teacher.class_map", folder / "map.json")))
    return worst(ends)


@case("42", "a build killed at its n-th call, n = 1 to 8, and repeated to its end: what is left beside it")
def _left(folder: Path, shim: ctypes.CDLL) -> str:
    data, left = images(folder / "images", 4), set[str]()
    for number in range(1, 9):
        place = folder / f"out{number}"
        place.mkdir()

        def arm(place: Path = place, number: int = number) -> None:
            shim.arm(str(place).encode(), number, 0, 0)

        command(*build(data, place / "t.h5"), before=arm)
        must(*build(data, place / "t.h5"))
        left |= {path.name for path in place.iterdir()} - {"t.h5"}
    return f"left: {sorted(left) or 'nothing'}"


@case("43", "cache info of a folder of shards that becomes one file at the n-th call of the reader, n = 1 to 12")
def _swap(folder: Path, shim: ctypes.CDLL) -> str:
    data = images(folder / "images", 8)
    (folder / "made").mkdir()
    must(*build(data, folder / "made" / "t.h5", "--build.pack=false"))
    ends = []
    for number in range(1, 13):
        place = folder / "trial"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "made", place)

        def arm(place: Path = place, number: int = number) -> None:
            sys.addaudithook(Countdown(place, number, lambda: pack(place / "t.h5")))

        ends.append(command("cache", "info", "--cache", place / "t.h5", before=arm))
    failed = [end for end in ends if not end.startswith("exit 0")]
    return f"{len(failed)} of {len(ends)}: {failed[0]}" if failed else f"all {len(ends)} read: {ends[-1]}"


class Countdown:
    """An audit hook that does something before the n-th opening or listing of a place."""

    def __init__(self, place: Path, number: int, action: Callable[[], object]) -> None:
        self.place, self.left, self.action = str(place), number, action

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(self.place):
            self.left -= 1
            if self.left == 0:
                self.action()


def pack(path: Path) -> None:
    """Packs a cache in another process."""
    process = os.fork()
    if process == 0:
        _silent()
        os._exit(kdkit(["cache", "pack", str(path)]))
    os.waitpid(process, 0)


@case("44", "cache info of a cache whose teacher's name holds terminal escapes")
def _escapes(folder: Path, shim: ctypes.CDLL) -> str:
    def change(file: h5py.File) -> None:
        document(file, "kdkit", lambda values: values["teacher"].update(name="bad\x1b]0;title\x07"))  # type: ignore

    return command("cache", "info", "--cache", golden(folder, change))


@case("45", "a training whose disk is full from its n-th call on, n = 20, 60, 100 and 140")
def _checkpoint(folder: Path, shim: ctypes.CDLL) -> str:
    data, ends = images(folder / "images", 16), []
    for number in (20, 60, 100, 140):
        place = folder / f"out{number}"
        place.mkdir()

        def arm(place: Path = place, number: int = number) -> None:
            shim.arm(str(place).encode(), number, errno.ENOSPC, 1)

        teacher = ["--teacher.model", "test_resnet", "--teacher.checkpoint", weights(folder), "--recipe.size", 32]
        options = [*teacher, "--train.checkpoint_every", 1]
        ends.append(command(*distill(data, place / "run", *options), before=arm, patience=120))
    return worst(ends)


@case("46", "a training whose first step is out of memory, in the words of three backends")
def _memory(folder: Path, shim: ctypes.CDLL) -> str:
    data, ends = images(folder / "images", 16), []
    words = ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "")
    for number, text in enumerate(words):
        error = RuntimeError(text) if text else torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        options = ["--teacher.model", "test_resnet", "--teacher.checkpoint", weights(folder), "--recipe.size", 32]
        arm = lambda error=error: fail_in(lambda module: module.training, error, 0)  # noqa: E731
        ends.append(command(*distill(data, folder / f"run{number}", *options), before=arm))
    return worst(ends)


def fail_in(chosen: Callable[[torch.nn.Conv2d], bool], error: Exception, calls: int) -> None:
    """Makes the convolutions of the chosen models raise after so many calls."""
    forward, done = torch.nn.Conv2d.forward, [0]

    def failing(module: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        done[0] += chosen(module)
        if chosen(module) and done[0] > calls:
            raise error
        return forward(module, images)

    torch.nn.Conv2d.forward = failing  # type: ignore[method-assign]


@case("47", "two ranks, the second fails in its fourth step; under NCCL, ending its process group waits for the other")
def _rank(folder: Path, shim: ctypes.CDLL) -> str:
    data, log = images(folder / "images", 64), folder / "log"
    teacher = ["--teacher.model", "test_resnet", "--teacher.checkpoint", weights(folder), "--recipe.size", 32]
    layers = sum(isinstance(module, torch.nn.Conv2d) for module in timm.create_model("test_resnet").modules())
    end_group = torch.distributed.destroy_process_group

    def noted() -> None:
        print("the group is ended", file=sys.stderr, flush=True)
        end_group()

    def arm(rank: int) -> None:
        if rank == 1:
            torch.distributed.destroy_process_group = noted  # type: ignore[assignment]
            fail_in(lambda module: module.training, RuntimeError("it broke"), 3 * layers)

    ends = ranks([distill(data, folder / "run", *teacher)] * 2, log, arm)
    is_ended = "the group is ended" in log.read_text()
    return f"{ends}; the failing rank {'ends' if is_ended else 'leaves'} the process group"


@case("48", "two ranks, of which one has another image folder")
def _ranks(folder: Path, shim: ctypes.CDLL) -> str:
    data = [images(folder / "a", 16), images(folder / "b", 24, seed=1)]
    teacher = ["--teacher.model", "test_resnet", "--teacher.checkpoint", weights(folder), "--recipe.size", 32]
    return ranks([distill(each, folder / "run", *teacher) for each in data], folder / "log")


def ranks(commands: Sequence[Sequence[object]], log: Path, before: Callable[[int], object] = lambda rank: None) -> str:
    """What two ranks ended with; both write to `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank, arguments in enumerate(commands):
        process = os.fork()
        if process == 0:
            _silent()
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
            code = 1
            try:
                before(rank)
                code = kdkit([str(argument) for argument in arguments])
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        processes.append(process)
    ends, deadline = [HANG] * len(processes), time.monotonic() + PATIENCE
    while HANG in ends and time.monotonic() < deadline:
        for rank, process in enumerate(processes):
            if ends[rank] == HANG and (status := os.waitpid(process, os.WNOHANG))[0]:
                ends[rank] = f"exit {os.waitstatus_to_exitcode(status[1])}"
        time.sleep(0.1)
    for process, end in zip(processes, ends, strict=True):
        if end == HANG:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    return ", ".join(f"rank {rank}: {end}" for rank, end in enumerate(ends))


@case(
    "49", "cache verify of a bfloat16 teacher's cache with other kernels than those of its build, as another device has"
)
def _precision(folder: Path, shim: ctypes.CDLL) -> str:
    data = images(folder / "images", 64)  # and logits as large as a trained model's
    options = ["--teacher.checkpoint", sharp(folder, 30), "--teacher.dtype", "bfloat16"]
    must(*build(data, folder / "t.h5", *options, "--build.batch_size", 64))

    def other_kernels() -> None:
        def in_halves(module: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
            """The sum over the input channels in two parts, each of which is rounded, as kernels of GPUs do."""
            if module.groups > 1:
                return forward(module, images)
            middle = (module.in_channels + 1) // 2
            parts = ((images[:, :middle], module.weight[:, :middle]), (images[:, middle:], module.weight[:, middle:]))
            first, second = (torch.nn.functional.conv2d(*part, None, module.stride, module.padding) for part in parts)
            return first + second if module.bias is None else first + second + module.bias[:, None, None]

        forward, torch.nn.Conv2d.forward = torch.nn.Conv2d.forward, in_halves  # type: ignore[method-assign]

    teacher = ["--teacher.model", "test_resnet", *options, "--device", "cpu"]
    return command("cache", "verify", "--cache", folder / "t.h5", "--data", data, *teacher, before=other_kernels)


@case("50", "Ctrl-C 0.7, 1.5, 3 and 5 s after the start of a build")
def _interrupt(folder: Path, shim: ctypes.CDLL) -> str:
    data, ends = images(folder / "images", 400), []
    for seconds in (0.7, 1.5, 3.0, 5.0):
        arguments = [str(argument) for argument in build(data, folder / f"{seconds}.h5", "--build.batch_size", 2)]
        process = subprocess.Popen(
            [sys.executable, "-m", "kdkit", *arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=120)[1].strip().splitlines()
        is_raw = any(line.startswith("Traceback") for line in errors)
        ends.append(
            f"{'untyped ' if is_raw else ''}exit {process.returncode}: {errors[-1] if errors else 'says nothing'}"
        )
    return worst(ends)


def worst(ends: Sequence[str]) -> str:
    """The end that is least like one line of an error, and how many were like it."""
    marks = (HANG, DIED, "untyped", "left: ", "says nothing", "exit 2")
    odd = [end for end in ends if any(mark in end for mark in marks)]
    return f"{len(odd)} of {len(ends)}: {odd[0]}" if odd else f"all {len(ends)} in one line: {ends[-1]}"


def children(process: int) -> list[str]:
    """The processes that a process has started."""
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def wait_until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    """Waits for something another process does."""
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)


def _silent() -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)


def main(root: Path, shim: str, faults: Sequence[str]) -> None:
    """Runs the chosen cases, or all."""
    torch.set_num_threads(1)
    for fault, (done, run) in CASES.items():
        if faults and fault.split()[0] not in faults:
            continue
        folder = root / fault.replace(" ", "-")
        folder.mkdir()
        try:
            found = run(folder, ctypes.CDLL(shim))
        except Exception as error:  # the case itself does not work with this version
            found = f"not reproduced ({type(error).__name__}: {error})"
        found = " ".join(found.replace(str(folder), "FOLDER").split())
        print(json.dumps([fault, done, found[:260].encode("unicode_escape").decode()]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
