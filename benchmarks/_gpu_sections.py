"""The sections of gpu.py. Each runs alone in a process, and says each finding as a line of JSON.

On the CPU they run through with tiny models, and leave out what only CUDA has: streams, memory, graphs.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import kdkit
from kdkit.building.config import BuildConfig
from kdkit.building.verify import verify_cache
from kdkit.cache.codecs import RowCodec, create_codec
from kdkit.data import EpochSampler, FolderSource, ReplayedDataset, ReplayLoader
from kdkit.errors import KdkitError
from kdkit.recipe import ViewRecipe
from kdkit.runtime.hardware import fast_kernels
from kdkit.teachers import Teacher
from kdkit.training.train import train as train_task
from kdkit.training.train_config import TrainConfig
from kdkit.types import Batch, Normalization

IS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if IS_CUDA else torch.device("cpu")
SIZE, CLASSES, BATCH = (224, 1000, 256) if IS_CUDA else (32, 40, 8)
WORKERS = min(14, os.cpu_count() or 1) if IS_CUDA else 0
NAMES = {"large": "vit_large_patch16_224", "base": "vit_base_patch16_224", "cnn": "resnet50", "student": "resnet50"}
if not IS_CUDA:
    NAMES = {"large": "test_vit", "base": "test_vit", "cnn": "test_resnet", "student": "test_resnet"}
BFLOAT16 = {"autocast": torch.bfloat16}
MIB = 2**20


def say(what: str, **figures: Any) -> None:
    """Prints a finding as a line of JSON."""
    print(json.dumps({"what": what, **figures}, default=str), flush=True)


def wait() -> None:
    """Waits for the GPU."""
    if IS_CUDA:
        torch.cuda.synchronize()


def clock(call: Callable[[], object], runs: int = 20) -> dict[str, float]:
    """Milliseconds of a call until its end, and until it is launched."""
    runs = runs if IS_CUDA else 2
    for _ in range(3 if IS_CUDA else 1):
        call()
    wait()
    begun = time.perf_counter()
    for _ in range(runs):
        call()
    launched = time.perf_counter() - begun
    wait()
    each = 1e3 / runs
    return {"ms": round((time.perf_counter() - begun) * each, 3), "launch_ms": round(launched * each, 3)}


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Fills in the MiB that are allocated at most within the context, above those before it."""
    found: dict[str, float] = {}
    wait()
    before = 0
    if IS_CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    yield found
    wait()
    if IS_CUDA:
        found["peak_MiB"] = round((torch.cuda.max_memory_allocated() - before) / MIB)


def make_teacher(name: str, *, spread: float | None = None, **options: Any) -> Teacher:
    """A teacher with random weights; with `spread`, its logits have this standard deviation in nats."""
    torch.manual_seed(0)
    model = timm.create_model(NAMES[name], num_classes=CLASSES).eval()
    if spread is not None:
        with torch.no_grad():
            head: Any = model.get_classifier()
            head.weight.mul_(spread / model(torch.randn(16, 3, SIZE, SIZE)).std())
    return kdkit.create_teacher(model, device=DEVICE, **options)


def noise(count: int) -> Batch:
    """A batch on the device."""
    return Batch(torch.randn(count, 3, SIZE, SIZE, device=DEVICE), torch.zeros(count, device=DEVICE).long())


class Rolled:
    """A source of many images that cost almost nothing to load, so that the GPU is the limit."""

    def __init__(self, count: int) -> None:
        self.keys = [f"{index}.png" for index in range(count)]
        self.class_names = [f"c{index}" for index in range(CLASSES)]
        self._images = np.random.default_rng(0).integers(0, 255, (64, SIZE, SIZE, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.roll(self._images[index % 64], index, 0)), index % CLASSES


def pictures(count: int) -> ReplayedDataset:
    """`count` images without augmentation, fewer of them on the CPU."""
    count = count if IS_CUDA else 48
    return ReplayedDataset(Rolled(count), ViewRecipe(size=SIZE, scale=(1, 1), ratio=(1, 1)))  # type: ignore[arg-type]


def built(codec: str, **options: Any) -> BuildConfig:
    return BuildConfig(codec=codec, num_workers=WORKERS, batch_size=BATCH, **options)


def fitted(num_classes: int, row_bytes: int) -> tuple[RowCodec, Callable[[int], Tensor]]:
    """A lowrank codec fitted to logits of 300 random features, and a function that draws such logits."""
    torch.manual_seed(0)
    weight = torch.randn(300, num_classes) / 5
    sample = torch.randn(1200 if num_classes > 5000 or not IS_CUDA else 3000, 300) @ weight
    codec = create_codec("lowrank", num_classes, row_bytes=row_bytes).fit(sample)
    return codec, lambda count: torch.randn(count, 300, device=DEVICE) @ weight.to(DEVICE)


def tests() -> None:
    """The tests that need CUDA; elsewhere they are only collected."""
    here = Path(__file__).parents[1] / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(here)]
    run = subprocess.run(command if IS_CUDA else [*command, "--collect-only"], capture_output=True, text=True)
    say("pytest -m gpu", rc=run.returncode, end=run.stdout.strip().splitlines()[-1:])


def encode() -> None:
    """Time and memory of lowrank, its stream beside a busy teacher, and the encode as a CUDA graph."""
    teacher, batch = make_teacher("large", dtype=torch.bfloat16), noise(BATCH)
    say(f"run {NAMES['large']} in bfloat16 on {BATCH} images", **clock(lambda: teacher(batch), 8))
    for num_classes, row_bytes in ((1000, 96), (21_841, 96), (21_841, 256)) if IS_CUDA else ((40, 24),):
        codec, draw = fitted(num_classes, row_bytes)
        rows = draw(2 * BATCH)
        encoded = codec.encode(rows)
        with peak_memory() as peak:
            codec.encode(rows)
        name = f"{2 * BATCH} rows of {num_classes} classes in {row_bytes} bytes"
        say(f"encode {name}", **peak, **clock(lambda codec=codec, rows=rows: codec.encode(rows), 6))
        say(f"decode {name}", **clock(lambda codec=codec, encoded=encoded: codec.decode(encoded), 30))
    codec, draw = fitted(1000 if IS_CUDA else 40, 96 if IS_CUDA else 24)
    if IS_CUDA:
        _encode_beside(teacher, batch, codec, draw(BATCH))
        _encode_as_graph(codec, draw(BATCH))


def _encode_beside(teacher: Teacher, batch: Batch, codec: RowCodec, rows: Tensor) -> None:
    """Whether an encode on a side stream gets its turn while a teacher is busy."""
    for priority in (0, -1):
        side, taken = torch.cuda.Stream(priority=priority), []
        for _ in range(4):
            for _ in range(3):
                teacher(batch)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with torch.cuda.stream(side):
                start.record(side)
                codec.encode(rows)
                end.record(side)
            wait()
            taken.append(round(start.elapsed_time(end), 1))
        say(f"encode {len(rows)} rows beside a busy teacher, priority {priority}", ms=taken)


def _encode_as_graph(codec: RowCodec, rows: Tensor) -> None:
    """The encode has static shapes and reads nothing back, so that a graph can hold it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        codec.encode(rows)
    wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        encoded = codec.encode(rows)
    graph.replay()
    wait()
    is_equal = bool((encoded == codec.encode(rows)).all())
    say(f"encode {len(rows)} rows as a CUDA graph", equal=is_equal, **clock(graph.replay, 10))


def build() -> None:
    """Builds with each codec: their difference is what encoding costs."""
    for name in ("large", "cnn"):
        teacher, dataset = make_teacher(name, **BFLOAT16), pictures(12_000)
        for codec in ("float16", "topk", "lowrank"):
            with tempfile.TemporaryDirectory() as folder:
                report = kdkit.build_cache(teacher, dataset, f"{folder}/a.h5", built(codec))
            reserved = round(torch.cuda.memory_reserved() / 2**30, 1) if IS_CUDA else None
            speed = round(report.images_built / report.seconds)
            say(f"build {NAMES[name]} {codec}", images_per_second=speed, reserved_GiB=reserved)


def verify() -> None:
    """What another batch size changes, and whether verify accepts it, also on another device, and no other teacher."""
    for name, options in (("base", BFLOAT16), ("base", {}), ("cnn", {}), ("cnn", BFLOAT16)):
        teacher, batch = make_teacher(name, spread=2.5, **options), noise(BATCH)
        parts = [
            teacher(Batch(part, part.new_zeros(len(part)).long())).logits for part in batch.input.split(BATCH // 4)
        ]
        whole, split = (logits.float().log_softmax(1) for logits in (teacher(batch).logits, torch.cat(parts)))
        title = f"{NAMES[name]} {'in bfloat16' if options else 'in float32'}"
        say(f"{title}: batch {BATCH} against {BATCH // 4}", mean_nats=float((whole - split).abs().mean()))
        for codec in ("float16", "lowrank"):
            _verify(title, teacher, name, codec, options)


def _verify(title: str, teacher: Teacher, name: str, codec: str, options: dict[str, Any]) -> None:
    dataset, other = pictures(600), make_teacher(name, spread=2.5, **options)
    with torch.no_grad():
        layer = [module for module in other.model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-2]
        layer.weight.copy_(layer.weight.flip(0))
    with tempfile.TemporaryDirectory() as folder:
        kdkit.build_cache(teacher, dataset, f"{folder}/a.h5", built(codec))
        tried = {"itself": (teacher, DEVICE, BATCH), "another batch size": (teacher, DEVICE, 16)}
        tried |= {"one layer changed": (other, DEVICE, BATCH)}
        if not options:
            tried["the CPU"] = (teacher, torch.device("cpu"), 16)
        for what, (against, device, batch_size) in tried.items():
            allowed = ("teacher.weights_sha256",)
            try:
                report = verify_cache(
                    f"{folder}/a.h5",
                    against,
                    dataset,
                    num_rows=32,
                    batch_size=batch_size,
                    device=device,
                    allow_mismatch=allowed,
                )
                found = f"agrees, {dict(report.differences)}"
            except KdkitError as error:
                found = f"refused, {error}"[-160:]
            say(f"verify {title} {codec} against {what}", found=found)
        teacher.to(DEVICE)


def streams() -> None:
    """Memory that a loader holds from epoch to epoch: it must not grow."""
    dataset = pictures(4 * BATCH)
    sampler = EpochSampler(range(len(dataset)), BATCH)
    loader, reserved = ReplayLoader(dataset, sampler, Normalization(), device=DEVICE, num_workers=WORKERS), []
    for epoch in range(12 if IS_CUDA else 2):
        loader.set_epoch(epoch)
        for batch in loader:
            batch.input.mul_(2)
        wait()
        reserved.append(round(torch.cuda.memory_reserved() / MIB) if IS_CUDA else 0)
    say("memory reserved after each epoch", MiB=reserved)


def train() -> None:
    """A student from a cache in several precisions: speed, memory, and the places where the host waits."""
    dataset, folder = pictures(2048), tempfile.mkdtemp()
    kdkit.build_cache(make_teacher("cnn"), dataset, f"{folder}/a.h5", built("lowrank", row_bytes=96))
    cache = kdkit.open_cache(f"{folder}/a.h5", dataset)
    ways: list[dict[str, Any]] = [{}, {"amp": "bfloat16", "channels_last": False}, {"amp": "bfloat16"}]
    ways += [{"amp": "float16"}, {"amp": "bfloat16", "compile": True}] if IS_CUDA else []
    for way in ways:
        torch.manual_seed(0)
        student = timm.create_model(NAMES["student"], num_classes=CLASSES)
        task = kdkit.LogitDistillationTask(student, device=DEVICE)
        sampler = EpochSampler(range(len(dataset)), BATCH // 2, drop_last=True)
        loader = ReplayLoader(dataset, sampler, Normalization(), device=DEVICE, num_workers=WORKERS)
        options: dict[str, Any] = {"ema_decay": 0.9, "clip_grad": 1.0, "log_every": 100, **way}
        config = TrainConfig(epochs=2, batch_size=BATCH // 2, accumulate=2, **options)
        with warnings.catch_warnings(record=True) as seen, peak_memory() as peak, fast_kernels(DEVICE):
            warnings.simplefilter("always")
            if IS_CUDA and not config.compile:
                torch.cuda.set_sync_debug_mode("warn")
            report = train_task(task, loader, config, teacher_source=cache)
            if IS_CUDA:
                torch.cuda.set_sync_debug_mode("default")
        places = Counter(f"{found.filename.split('site-packages/')[-1]}:{found.lineno}" for found in seen)
        last = {name: round(report.epochs[-1][name], 4) for name in ("loss", "images_per_second", "waiting")}
        say(f"train {way or 'in float32'}", **last, **peak, waits=dict(places.most_common(6)))


def resume() -> None:
    """A run, and one that SIGTERM stops after its first checkpoint and that resumes: the same losses."""
    root = Path(tempfile.mkdtemp())
    draw = np.random.default_rng(0)
    for index in range(64):
        place = root / "data" / f"c{index % 4}" / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(place)
    options = "--student test_resnet --size 32 --epochs 6 --batch-size 16 --workers 0 --train.checkpoint_every 1"
    command = [sys.executable, "-m", "kdkit", "distill", str(root / "data"), *options.split(), "--device", str(DEVICE)]
    losses = []
    for name in ("whole", "resumed"):
        output, codes = root / name, []
        if name == "resumed":
            stopped = subprocess.Popen([*command, "-o", str(output)], stderr=subprocess.DEVNULL)
            while stopped.poll() is None and not (output / "last.pth.tar").exists():
                time.sleep(0.05)
            stopped.terminate()
            codes.append(stopped.wait())
        codes.append(subprocess.run([*command, "-o", str(output), "--resume"], capture_output=True).returncode)
        records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        losses.append([record["loss"] for record in records if record["kind"] == "step"])
    say("a run that resumes", equal=losses[0] == losses[1], codes=codes, last=[found[-1] for found in losses])


def ddp() -> None:
    """One rank under NCCL, and two on one GPU under gloo, compiled too."""
    runs = ((1, "nccl", "no"), (2, "gloo", "no"), (2, "gloo", "compile")) if IS_CUDA else ((2, "gloo", "no"),)
    for ranks, backend, compiled in runs:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        script = [str(Path(__file__).with_name("_gpu_ddp.py")), DEVICE.type, backend, compiled]
        run = subprocess.run([*command, *script], capture_output=True, text=True)
        error = run.stderr[-400:] if run.returncode else ""
        say(f"ddp {ranks} {backend} {compiled}", rc=run.returncode, out=run.stdout[-200:], error=error)


def oom() -> None:
    """A build in too little memory continues in smaller batches."""
    for gibibytes in (4, 3, 2) if IS_CUDA else (0,):
        teacher = make_teacher("large")
        if IS_CUDA:
            torch.cuda.empty_cache()
            share = gibibytes * 2**30 / torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(share)
        with tempfile.TemporaryDirectory() as folder:
            try:
                report = kdkit.build_cache(teacher, pictures(1500), f"{folder}/a.h5", built("lowrank", row_bytes=96))
                speed = round(report.images_built / report.seconds)
                found: dict[str, Any] = {"images_per_second": speed, "batch": teacher._split.max_batch_size or BATCH}
            except KdkitError as error:
                found = {"refused": str(error)}
        say(f"build in {gibibytes} GiB", **found)


def loader() -> None:
    """JPEGs of ImageNet's size with 2 to 16 workers."""
    folder, draw = Path(tempfile.mkdtemp()), np.random.default_rng(0)
    (folder / "a").mkdir()
    for index in range(256 if IS_CUDA else 8):
        coarse = Image.fromarray(draw.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize((500, 375))
        pixels = np.clip(np.asarray(coarse) + draw.normal(0, 12, (375, 500, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "a" / f"{index}.jpg", quality=90)
    dataset = ReplayedDataset(FolderSource(folder), ViewRecipe(size=SIZE))
    for workers in (2, 8, 16) if IS_CUDA else (0,):
        rows = list(range(len(dataset))) * (2 if workers <= 2 else 12)
        sampler = EpochSampler(rows, 64 if IS_CUDA else 4)
        batches = iter(ReplayLoader(dataset, sampler, Normalization(), device=DEVICE, num_workers=workers))
        next(batches)
        begun, count = time.perf_counter(), 0
        for batch in itertools.chain(batches):
            count += len(batch.input)
        wait()
        say(f"load with {workers} workers", images_per_second=round(count / (time.perf_counter() - begun)))
