"""Imported labels or one's own cache of the same views: which trains the better student?

    python benchmarks/imported_students.py       (half an hour on 2 busy cores; perhaps 5 minutes on calm ones)

Needs the `test` extra.

Labels are stored as FKD publishes them: for each image a file of crop boxes, flips and the ten likeliest classes as
float16, of tf_efficientnet_lite0 with ImageNet weights at 224 pixels. `import_fkd` makes them a cache. The same
teacher's own cache is built on the views of the import (`cache build --like`) and recoded in lowrank with as many
bytes per row. Students, split and scores are those of story.py.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from _photographs import CropSource, create_imagenet_model
from _result import Report, parser
from story import BATCH, COLUMNS, VIEWS, Data, divergence, evaluate, outputs, predictor_of, split, table, train_student
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from kdkit import build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.building.like import open_like
from kdkit.building.recode import recode_cache
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.importers import import_fkd
from kdkit.types import Normalization

TOP, SIZE, STUDENT_SIZE = 10, 224, 64
HELD_OUT = ("new_crop", "other_half", "held_out")


def write_fkd(folder: Path, source: CropSource, log_p: Tensor | None) -> None:
    """FKD's files: [coords, flips, labels] for each image; without log_p [V, N, C] the labels are class 0."""
    generator = torch.random.manual_seed(0)
    for row, key in enumerate(source.keys):
        image, _ = source[row]
        boxes = [RandomResizedCrop.get_params(image, [0.05, 1.0], [3 / 4, 4 / 3]) for _ in range(VIEWS)]
        coords = torch.tensor(boxes) / torch.tensor([image.height, image.width] * 2)
        flips = torch.rand(VIEWS, generator=generator) < 0.5
        labels = torch.zeros(VIEWS, dtype=torch.int64)
        if log_p is not None:
            values, ids = log_p[:, row].exp().topk(TOP)
            labels = torch.stack([ids.half(), values.half()], dim=1)
        place = folder / f"{key}.tar"
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save([part.numpy() for part in (coords, flips, labels)], place)


def load(crops: int, folder: Path) -> tuple[Data, dict[str, tuple[int, Tensor]]]:
    """The views with the teacher's outputs, and for each cache its bytes per row and what it decodes to [V, N, C]."""
    source = CropSource(crops)
    source.keys = [key.replace("/", "-", 1) for key in source.keys]  # FKD's names are CLASS/STEM
    write_fkd(folder / "views", source, None)
    import_fkd(folder / "views", source, folder / "views.h5", size=SIZE)
    dataset = open_like(source, folder / "views.h5")
    config = BuildConfig(codec="float16", batch_size=32)
    build_cache(create_teacher(create_imagenet_model()), dataset, folder / "float16.h5", config, show_progress=True)
    own = open_cache(folder / "float16.h5", dataset)
    exact = outputs(own, len(dataset))

    write_fkd(folder / "labels", source, exact)
    import_fkd(folder / "labels", source, folder / "imported.h5", size=SIZE)
    imported = open_cache(folder / "imported.h5", dataset)
    row_bytes = imported.codecs["logits"].row_bytes
    recode_cache(folder / "float16.h5", folder / "lowrank.h5", codec="lowrank", row_bytes=row_bytes)
    small = open_cache(folder / "lowrank.h5", dataset)
    caches = {f"FKD's top-{TOP}, imported": imported, "own cache, lowrank": small, "own cache, float16": own}
    decoded = {name: (cache.codecs["logits"].row_bytes, outputs(cache, len(dataset))) for name, cache in caches.items()}
    return Data(seen_by_students(dataset), exact, {}, exact, source.half, source.names), decoded


def seen_by_students(dataset: ReplayedDataset) -> Tensor:
    """The views at the students' size, uint8 [V, N, 3, 64, 64]."""
    views = []
    for view in range(VIEWS):
        sampler = EpochSampler(range(len(dataset)), 256, num_views=VIEWS, shuffle=False)
        sampler.set_epoch(view)
        batches = ReplayLoader(dataset, sampler, Normalization(), num_workers=2).pixel_batches()
        sides = (STUDENT_SIZE, STUDENT_SIZE)
        small = [interpolate(b.images.float(), sides, mode="bilinear", antialias=True) for b in batches]
        views.append(torch.cat(small).round().to(torch.uint8))
    return torch.stack(views)


def run_seed(
    data: Data, decoded: Mapping[str, tuple[int, Tensor]], seed: int, epochs: int
) -> dict[str, dict[str, float]]:
    """Cache -> scores, for one split and initialisation, the same for all caches."""
    parts, results = split(data.half, seed), {}
    true = data.log_p[:, parts.training]
    for name, (row_bytes, log_p) in decoded.items():
        student = train_student(data, log_p, parts.training, epochs, seed)
        scores = evaluate(data, parts, predictor_of(data, student))
        results[name] = {
            "bytes": row_bytes,
            "target_kl": divergence(true, log_p[:, parts.training]),
            "target_l1": (true.exp() - log_p[:, parts.training].exp()).abs().sum(dim=-1).mean().item(),
            **{f"{part}_{key}": scores[f"{part}_{key}"] for part in HELD_OUT for key in ("kl", "top1")},
        }
        print(seed, name, {key: round(value, 4) for key, value in results[name].items()}, flush=True)
    return results


def main() -> None:
    args = parser(__doc__).parse_args()
    crops, epochs, seeds = (8, 2, 1) if args.quick else (16, 64, 3)
    report = Report("imported_students", "Imported labels and one's own cache of the same views", args.quick)
    with tempfile.TemporaryDirectory() as temporary:
        data, decoded = load(crops, Path(temporary))
    report.text(
        f"""Students of story.py's protocol, {epochs} epochs in batches of {BATCH}, from tf_efficientnet_lite0's outputs
        for {VIEWS} recorded crops of each of {crops} samples of the left half of each of {len(data.names)} photographs;
        {seeds} seed(s), each with another fold of the photographs held out. KL(teacher || student) in nats and top-1
        agreement with the teacher (its float16 outputs), mean over seeds ± half the range. The record of a crop and a
        flip takes 17 further bytes per row in each cache."""
    )
    runs = [run_seed(data, decoded, seed, epochs) for seed in range(seeds)]
    for name in decoded:
        report.figure(name, {key: statistics.mean(run[name][key] for run in runs) for key in runs[0][name]})
    report.table(["trained from", *COLUMNS.values()], table(runs, list(decoded), COLUMNS))
    report.text(
        """"KL of the cache" is KL(teacher || decoded) over the training rows. lowrank is fitted to rows of the cache
        itself, as in every build; labels that were imported could not be, because their other classes are not known."""
    )
    report.write(args.output)


if __name__ == "__main__":
    main()
