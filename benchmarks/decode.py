"""What one decode for several views is worth: loading, building and an epoch of training, and ways to decode.

    python benchmarks/decode.py                                (about 45 minutes on 2 calm cores)
    python benchmarks/decode.py --parts loader ways            (some parts: loader, build, epoch, ways)

Images are JPEG files of ImageNet's size, 500 x 375 pixels and about 110 kB, cut from photographs of scikit-image and
scikit-learn. All sides of a comparison take turns in one run; a figure is the median over the turns of the ratio of two
sides of a turn.
"""

from __future__ import annotations

import io
import itertools
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from _photographs import photographs
from _result import Report, Spread, ratio, take_turns
from _result import parser as options_parser
from PIL import Image
from timm.data import create_dataset, create_loader
from torch import nn
from views import drain

import kdkit
from kdkit.building.config import BuildConfig
from kdkit.building.plan import BuildPlan
from kdkit.data import EpochSampler, FolderSource, RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.data.views.planes import to_planes
from kdkit.data.views.seed import preserve_rng_state, seed_all, view_seed
from kdkit.data.views.transform import create_view_transform
from kdkit.recipe import ViewRecipe
from kdkit.types import Normalization

SIZE, BATCH, VIEWS, BYTES = 224, 32, 8, 110_000
RECIPES = {
    "crop and flip": ViewRecipe.preset("rrc", size=SIZE, num_views=VIEWS),
    "RandAugment": ViewRecipe.preset("rrc", size=SIZE, num_views=VIEWS, auto_augment="rand-m7-mstd0.5-inc1"),
}
LOADED: dict[str, dict[int, float | None]] = {
    "crop and flip": {1: 0.95, 4: 1.4, 8: 1.5},
    "RandAugment": {1: 0.95, 4: 1.15, 8: None},
}
"""Transform -> views per decode -> target of views/s relative to timm's create_loader."""
OVER_BOUND = 1.10
SMALL = {"img_size": SIZE, "patch_size": 32, "depth": 2}
"""Arguments of test_vit that make it so small that loading is the limit even here, where it runs on a CPU too."""
TEACHERS = (
    ("test_vit", SMALL, 192, 0, 1.4),
    ("mobilenetv3_small_050", {}, 192, 0, 1.4),
    ("mobilenetv3_small_050", {}, 192, 1, None),
    ("tf_efficientnet_lite0", {}, 64, 0, 1.0),
    ("resnet50", {}, 32, 0, 0.95),
)
"""Teacher, arguments, images, workers, and the target of its build's speed relative to the bare loop's with as many
workers."""
STUDENTS = {"test_vit": (384, 1, SMALL, 0.70), "resnet18": (64, 0, {}, 1.03)}
"""Student -> images, workers, arguments, and the target of an epoch's time relative to timm's supervised epoch."""
PARTS = ("loader", "build", "epoch", "ways")


def write_images(root: Path, count: int) -> Path:
    """`count` JPEG files of 500 x 375 pixels and about 110 kB, in one class folder per photograph."""
    images = list(photographs())
    for index in range(count):
        name, image = images[index % len(images)]
        width = max(320, int(image.width * (0.5 + 0.5 * (index * 37 % 100) / 100)))
        height = width * 3 // 4
        left, top = (37 * index) % max(1, image.width - width), (23 * index) % max(1, image.height - height)
        view = image.crop((left, top, left + min(width, image.width), top + min(height, image.height)))
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{index}.jpg").write_bytes(as_jpeg(view.resize((500, 375), Image.Resampling.BICUBIC)))
    return root


def as_jpeg(image: Image.Image) -> bytes:
    """The image at the lowest quality from 75 on that takes 110 kB, or at the highest."""
    for quality in range(75, 101):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        if stream.tell() >= BYTES:
            break
    return stream.getvalue()


def timm_loader(root: Path, recipe: ViewRecipe, workers: int) -> Any:
    return create_loader(
        create_dataset("", root=str(root), search_split=False),
        (3, recipe.size, recipe.size),
        BATCH,
        is_training=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        device=torch.device("cpu"),
        pin_memory=False,
        scale=recipe.scale,
        ratio=recipe.ratio,
        hflip=recipe.hflip,
        interpolation=recipe.interpolation,
        auto_augment=recipe.auto_augment,
        color_jitter=None,
    )


def replayed(dataset: ReplayedDataset, views: int, workers: int) -> ReplayLoader:
    sampler = EpochSampler(range(len(dataset)), BATCH, num_views=VIEWS, views_per_decode=views)
    return ReplayLoader(dataset, sampler, Normalization(), num_workers=workers)


def transform_all(dataset: ReplayedDataset, images: list[Image.Image], view: int) -> None:
    """Draws one view of each decoded image, as a loader's worker does."""
    transform = create_view_transform(dataset.recipe)
    with preserve_rng_state():
        for row, image in enumerate(images):
            seed = view_seed(dataset.recipe.seed, dataset.keys[row], view)
            seed_all(seed, numpy=dataset.recipe.auto_augment is not None)  # crop and flip do not draw from NumPy
            transform(image)


def decode_all(dataset: ReplayedDataset) -> None:
    for row in range(len(dataset)):
        dataset.source[row]


class TimmsParts:
    """The decoding and the transform of timm's loader, each alone, as its workers run them."""

    def __init__(self, root: Path, loader: Any) -> None:
        self._files = create_dataset("", root=str(root), search_split=False)
        self._transform = loader.dataset.transform

    def decode(self) -> None:
        for index in range(len(self._files)):
            self._files[index]

    def transform(self, images: list[Image.Image]) -> None:
        for image in images:
            self._transform(image)


def compare_loaders(report: Report, root: Path, turns: int) -> None:
    rows, count = [], len(list(root.rglob("*.jpg")))
    report.text("## Loading", f"An epoch of {count} images, to {SIZE} pixels in batches of {BATCH}.")
    for (name, recipe), workers in itertools.product(RECIPES.items(), (0, 2)):
        times = time_loaders(root, recipe, workers, tuple(LOADED[name]), turns)
        cores = max(1, workers)

        def above(side: str, parts: tuple[str, str], k: int, times: Any = times, cores: int = cores) -> Spread:
            bound = [(d / k + t) / cores for d, t in zip(*(times[part] for part in parts), strict=True)]
            return ratio(times[side], bound)

        title = f"{name}, {workers} workers"
        own = report.figure(f"{title}: timm's time over its bound", above("timm", ("timm decodes", "timm draws"), 1))
        rows.append([name, workers, "timm's", f"{count / statistics.median(times['timm']):.0f}", 1, "-", own])
        for k, target in LOADED[name].items():
            over = report.figure(f"{title}, k = {k}: views/s over timm's", ratio(times["timm"], times[str(k)]))
            mine = report.figure(f"{title}, k = {k}: time over the bound", above(str(k), ("decode", "transform"), k))
            rows.append(
                [name, workers, k, f"{count / statistics.median(times[str(k)]):.0f}", over, target or "-", mine]
            )
        parts = {part: 1e3 * statistics.median(times[part]) / count for part in PARTS_OF_LOADING}
        report.figure(f"{title}: ms an image", {part: round(value, 3) for part, value in parts.items()})
        report.text(f"{title}: " + ", ".join(f"{part} {value:.2f} ms" for part, value in parts.items()) + ".")
        print(*rows[-1 - len(LOADED[name]) :], report.lines[-2], sep="\n", flush=True)
    report.table(["transform", "workers", "k", "views/s", "views/s over timm's", "target", "time over the bound"], rows)
    report.text(
        f"""The bound is (decode + k transform) / k, divided by the number of workers, from the same turn; the target is
        at most {OVER_BOUND}. Decode: an image file is opened, read and decoded to RGB. Transform: the generators are
        seeded, the view is drawn and its uint8 pixels are put in a tensor. The rest of loading is above the bound:
        collating, hashing pixels (of the first 1,024 images of a data set and of each 64th, so here of all), copying
        between processes, and turning the batch into normalised floats, which the main process does. With 2 workers on
        2 cores the main process takes that time from the workers. timm's bound is that of its own decoding and
        transform; it seeds and hashes nothing."""
    )


PARTS_OF_LOADING = ("decode", "transform", "timm decodes", "timm draws")


def time_loaders(
    root: Path, recipe: ViewRecipe, workers: int, several: tuple[int, ...], turns: int
) -> dict[str, list[float]]:
    """Seconds of an epoch of timm's loader, of ours at each number of views per decode, and of their parts."""
    dataset = ReplayedDataset(FolderSource(root), recipe)
    images, views = [dataset.source[row][0] for row in range(len(dataset))], itertools.count()
    theirs = timm_loader(root, recipe, workers)
    timms, ours = TimmsParts(root, theirs), {k: replayed(dataset, k, workers) for k in several}
    sides: dict[str, Callable[[], object]] = {
        "timm": lambda: drain(theirs),
        "timm decodes": timms.decode,
        "timm draws": lambda: timms.transform(images),
        "decode": lambda: decode_all(dataset),
        "transform": lambda: transform_all(dataset, images, next(views) % VIEWS),
        **{str(k): (lambda loader=loader: drain(loader)) for k, loader in ours.items()},  # type: ignore[misc]
    }
    return take_turns(sides, turns, warm_up=1)


def bare_loop(teacher: Any, dataset: ReplayedDataset, workers: int) -> None:
    """Loads each view, runs the teacher and discards its outputs."""
    ranges = [(view, 0, len(dataset)) for view in range(VIEWS)]
    loader = ReplayLoader(dataset, RangeSampler(ranges, BATCH), teacher.input_normalization, num_workers=workers)
    for batch in loader:
        assert teacher(batch).logits is not None


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


def by_pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def by_torchvision(data: bytes) -> Image.Image:
    pixels = torchvision.io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def crops_of(transform: Any, size: tuple[int, int], seeds: Iterator[int], views: int) -> list[tuple[int, int]]:
    """Width and height of the crops that the recipe draws for the views of an image."""
    found = []
    for _ in range(views):
        seed_all(next(seeds))
        _, _, height, width = transform.get_params(Image.new("L", size), transform.scale, transform.ratio)
        found.append((width, height))
    return found


def by_draft(data: bytes, crops: list[tuple[int, int]], size: int) -> Image.Image:
    """Decodes at 1/2, 1/4 or 1/8 where no crop would be enlarged more than after a full decode."""
    image = Image.open(io.BytesIO(data))
    scale = min(min(crop) for crop in crops) / size
    if scale >= 2:
        image.draft("RGB", (int(image.width / scale), int(image.height / scale)))
    return image.convert("RGB")


def compare_ways(report: Report, root: Path, turns: int) -> None:
    """Ways to decode, with crop and flip after them: time of a view at several sizes and views per decode."""
    files = [path.read_bytes() for path in sorted(root.rglob("*.jpg"))]
    rows = []
    for size, views in itertools.product((224, 112), (1, 4)):
        transform: Any = create_view_transform(ViewRecipe.preset("rrc", size=size))
        seeds, reduced = itertools.count(), list[bool]()

        def views_by(decode: Callable[[bytes], Image.Image], views: int = views, transform: Any = transform) -> None:
            for data in files:
                image = decode(data)
                for _ in range(views):
                    transform(image)

        def drafted(
            data: bytes,
            size: int = size,
            views: int = views,
            transform: Any = transform,
            seeds: Any = seeds,
            reduced: list[bool] = reduced,
        ) -> Image.Image:
            crops = crops_of(transform.transforms[0], (500, 375), seeds, views)
            image = by_draft(data, crops, size)
            reduced.append(image.width < 500)
            return image

        sides: dict[str, Callable[[], object]] = {
            "Pillow": lambda v=views_by: v(by_pillow),  # type: ignore[misc]
            "torchvision": lambda v=views_by: v(by_torchvision),  # type: ignore[misc]
            "draft": lambda v=views_by, d=drafted: v(d),  # type: ignore[misc]
        }
        with preserve_rng_state():
            times = take_turns(sides, turns, warm_up=1)
        plain = 1e3 * statistics.median(times["Pillow"]) / len(files) / views
        gains = {
            way: report.figure(f"{size} px, k = {views}: {way} over Pillow", ratio(times["Pillow"], times[way]))
            for way in ("torchvision", "draft")
        }
        rows.append([size, views, f"{plain:.2f}", *gains.values(), f"{100 * statistics.mean(reduced):.0f} %"])
        print(rows[-1], flush=True)
    report.text(
        "## Ways to decode",
        "Crop and flip of decoded files, end to end; a way is worth taking from 1.15 on. `draft` decodes at 1/2 or",
        "less where the crops of all k views are at least twice the view's size.",
    )
    report.table(["pixels", "k", "Pillow, ms a view", "torchvision", "draft", "images that draft reduces"], rows)


def compare_resizing(report: Report, root: Path, turns: int) -> None:
    """Pillow's resizing and torch's of the same crops: time, and difference of the pixels."""
    transform: Any = create_view_transform(ViewRecipe.preset("rrc", size=SIZE)).transforms[0]  # type: ignore[attr-defined]
    crops = []
    with preserve_rng_state():
        for index, path in enumerate(sorted(root.rglob("*.jpg"))):
            image = by_pillow(path.read_bytes())
            seed_all(index)
            top, left, height, width = transform.get_params(image, transform.scale, transform.ratio)
            crops.append(image.crop((left, top, left + width, top + height)))

    def by_torch(crop: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
        return nn.functional.interpolate(pixels, (SIZE, SIZE), mode="bicubic", antialias=True)[0]

    def as_recipe(crop: Image.Image) -> torch.Tensor:
        return to_planes(crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    apart = max(int((by_torch(crop).int() - as_recipe(crop).int()).abs().max()) for crop in crops)
    sides: dict[str, Callable[[], object]] = {
        "Pillow": lambda: [as_recipe(crop) for crop in crops],
        "torch": lambda: [by_torch(crop) for crop in crops],
    }
    times = take_turns(sides, turns, warm_up=1)
    gain = report.figure("resizing: torch over Pillow", ratio(times["Pillow"], times["torch"]))
    report.figure("resizing: largest difference of a pixel", apart)
    report.text(
        f"""Resizing alone: torch's `interpolate` of uint8 pixels with antialiasing is {gain} times as fast as Pillow's
        `resize` ({1e3 * statistics.median(times["Pillow"]) / len(crops):.2f} ms a view), but pixels differ by up to
        {apart} of 255, so that its views would not be timm's."""
    )


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
