"""What one decode for several views is worth: loading, building and an epoch of training, and ways to decode.

    python benchmarks/decode.py                                (about 30 minutes on 2 calm cores)
    python benchmarks/decode.py --parts loader ways            (some parts: loader, build, epoch, ways)

Images are JPEG files of ImageNet's size, 500 x 375 pixels and about 110 kB, cut from photographs of scikit-image and
scikit-learn. All sides of a comparison take turns in one run; a figure is the median over the turns of the ratio of two
sides of a turn.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from _decoders import compare_resizing, compare_ways
from _loading import RECIPES, VIEWS, compare_loaders, replayed, write_images
from _result import Report, ratio, take_turns
from _result import parser as options_parser
from torch import nn
from views import BATCH, SIZE, drain, timm_loader

import kdkit
from kdkit.building.config import BuildConfig
from kdkit.building.plan import BuildPlan
from kdkit.data import FolderSource, RangeSampler, ReplayedDataset, ReplayLoader

SMALL = {"img_size": SIZE, "patch_size": 32, "depth": 2}
"""Arguments of test_vit that make it so small that loading is the limit even here, where it runs on a CPU too."""
TEACHERS = (
    ("test_vit", SMALL, 256, 0, 1.4),
    ("mobilenetv3_small_050", {}, 256, 0, 1.4),
    ("mobilenetv3_small_050", {}, 256, 1, None),
    ("tf_efficientnet_lite0", {}, 64, 0, 1.0),
    ("resnet50", {}, 32, 0, 0.95),
)
"""Teacher, arguments, images, workers, and the target of its build's speed relative to the bare loop's with as many
workers."""
STUDENTS = {"test_vit": (384, 1, SMALL, 0.70), "resnet18": (64, 0, {}, 1.03)}
"""Student -> images, workers, arguments, and the target of an epoch's time relative to timm's supervised epoch."""
PARTS = ("loader", "build", "epoch", "ways")


def bare_loop(teacher: Any, dataset: ReplayedDataset, workers: int) -> None:
    """Loads each view, runs the teacher and discards its outputs."""
    ranges = [(view, 0, len(dataset)) for view in range(VIEWS)]
    loader = ReplayLoader(dataset, RangeSampler(ranges, BATCH), teacher.input_normalization, num_workers=workers)
    for batch in loader:
        assert teacher(batch).logits is not None


def decode_all(dataset: ReplayedDataset) -> None:
    for row in range(len(dataset)):
        dataset.source[row]


def planned_build(teacher: Any, dataset: ReplayedDataset, folder: Path, workers: int) -> Callable[[], None]:
    """A build that starts from the same plan, with fitted codecs, each time."""
    config = BuildConfig(batch_size=BATCH, num_workers=workers)
    kdkit.CacheWriter.create(folder / "plan.h5", BuildPlan(teacher, dataset.for_teacher(), config)).close()

    def build() -> None:
        (folder / "teacher.h5").unlink(missing_ok=True)
        shutil.copytree(folder / "plan.h5.parts", folder / "teacher.h5.parts")
        report = kdkit.build_cache(teacher, dataset, folder / "teacher.h5", config)
        assert report.images_built == len(dataset) * VIEWS

    return build


def compare_builds(report: Report, quick: bool, turns: int) -> None:
    rows = []
    for name, options, count, workers, target in TEACHERS:
        torch.manual_seed(0)
        teacher = kdkit.create_teacher(timm.create_model(name, **options))
        with tempfile.TemporaryDirectory() as folder:
            root = write_images(Path(folder) / "images", BATCH if quick else count)
            dataset = ReplayedDataset(FolderSource(root), RECIPES["crop and flip"])
            dataset.class_names = None  # of the photographs; the teacher has a thousand
            dataset.source = dataset.source.__class__(root)
            dataset = dataset.without_labels()
            build = planned_build(teacher, dataset, Path(folder), workers)
            sides: dict[str, Callable[[], object]] = {
                "bare": lambda t=teacher, d=dataset, w=workers: bare_loop(t, d, w),  # type: ignore[misc]
                "build": build,
                "decode": lambda d=dataset: decode_all(d),  # type: ignore[misc]
            }
            times = take_turns(sides, turns, warm_up=1)
        over = report.figure(f"{name}, {workers} workers: build over bare loop", ratio(times["bare"], times["build"]))
        most: object = "-"
        if workers == 0:
            saved = [bare - (VIEWS - 1) * once for bare, once in zip(times["bare"], times["decode"], strict=True)]
            most = report.figure(f"{name}: most that decoding once gives", ratio(times["bare"], saved))
        speed = VIEWS * len(dataset) / statistics.median(times["build"])
        rows.append([name, len(dataset), workers, f"{speed:.0f}", over, most, target or "-"])
        print(rows[-1], flush=True)
    report.text(
        "## Building",
        f"""All of a build of {VIEWS} views from its plan to the packed file, {BATCH} images per forward pass. The
        bare loop loads a view, runs the teacher and discards its outputs. Without workers the build encodes in a
        thread, on the second core, while the loop uses one core; with a worker both use two. The most that decoding
        once gives is the bare loop's time over the same time less {VIEWS - 1} of its {VIEWS} decodes: the teacher's
        share of the loop limits it. test_vit has 2 blocks and patches of 32 pixels.""",
    )
    columns = ["teacher", "images", "workers", "views/s of the build", "speed over the bare loop's", "most", "target"]
    report.table(columns, rows)


def train_timm(student: nn.Module, loader: Any, optimizer: torch.optim.Optimizer) -> None:
    loss_of = nn.CrossEntropyLoss()
    for images, target in loader:
        loss = loss_of(student(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train_from_cache(task: nn.Module, loader: ReplayLoader, teacher: Any, optimizer: torch.optim.Optimizer) -> None:
    for batch in loader:
        loss = task(batch.input, batch.target, teacher_output=teacher(batch))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def compare_epochs(report: Report, quick: bool, turns: int) -> None:
    rows = []
    for name, (count, workers, options, target) in STUDENTS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = write_images(Path(folder) / "images", 2 * BATCH if quick else count)
            dataset = ReplayedDataset(FolderSource(root), RECIPES["crop and flip"])
            classes = len(dataset.class_names or ())
            light = kdkit.create_teacher(timm.create_model("test_efficientnet", num_classes=classes))
            kdkit.build_cache(light, dataset, Path(folder) / "t.h5", BuildConfig(num_workers=0, batch_size=BATCH))
            teacher = kdkit.open_cache(Path(folder) / "t.h5", dataset)
            students = [timm.create_model(name, num_classes=classes, **options) for _ in range(2)]
            task = kdkit.LogitDistillationTask(students[0], teacher=None)
            optimizers = [torch.optim.AdamW(student.parameters(), lr=1e-4) for student in students]
            theirs, ours = timm_loader(root, dataset.recipe, workers), replayed(dataset, 4, workers)
            sides: dict[str, Callable[[], object]] = {
                "loading": lambda t=theirs: drain(t),  # type: ignore[misc]
                "timm": lambda s=students[1], t=theirs, o=optimizers[1]: train_timm(s, t, o),  # type: ignore[misc]
                "cache": lambda k=task, u=ours, t=teacher, o=optimizers[0]: train_from_cache(k, u, t, o),  # type: ignore[misc]
            }
            times = take_turns(sides, turns, warm_up=1)
            del theirs, ours
        over = report.figure(f"{name}: epoch from the cache over timm's", ratio(times["cache"], times["timm"]))
        share = report.figure(f"{name}: timm's loading alone over timm's epoch", ratio(times["loading"], times["timm"]))
        rows.append([name, len(dataset), workers, f"{statistics.median(times['timm']):.2f}", share, over, target])
        print(rows[-1], flush=True)
    report.text(
        "## An epoch",
        """A hand-written loop over labels and timm's create_loader, and one over a cache with 4 views per decode. Where
        timm's loading alone takes nearly as long as its epoch, loading is the limit. The small student is test_vit
        with 2 blocks and patches of 32 pixels: others of timm take longer for a step on a core than loading does.""",
    )
    columns = ["student", "images", "workers", "timm's epoch, s", "loading alone", "time over timm's", "target"]
    report.table(columns, rows)


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--turns", type=int, default=11, help="turns of each comparison")
    options = parser.parse_args()
    count, turns = (64, 1) if options.quick else (192, options.turns)
    torch.set_num_threads(1)
    report = Report("decode", "One decode for several views", quick=options.quick)
    with tempfile.TemporaryDirectory() as name:
        root = write_images(Path(name), count)
        sizes = [path.stat().st_size for path in root.rglob("*.jpg")]
        report.text(
            f"JPEG files of 500 x 375 pixels and {statistics.mean(sizes) / 1e3:.0f} kB on average; {turns} turns;",
            "ratios are medians (quartiles) over the turns.",
        )
        if "loader" in options.parts:
            compare_loaders(report, root, turns)
        if "build" in options.parts:
            compare_builds(report, options.quick, max(1, turns // 2))
        if "epoch" in options.parts:
            compare_epochs(report, options.quick, turns)
        if "ways" in options.parts:
            compare_ways(report, root, turns)
            compare_resizing(report, root, turns)
    report.write(options.output)


if __name__ == "__main__":
    main()
