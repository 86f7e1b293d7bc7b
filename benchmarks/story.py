"""Which cache teaches better? A small student learns ImageNet teachers from their cache, without a label.

    python benchmarks/story.py            (needs the `test` extra; about 20 minutes on 2 cores)

Teacher: the ensemble of tf_efficientnet_lite2 and lite0, ImageNet weights. Its answers about replayed crops of 19
photographs, which it sees at 224 pixels, are cached once by build_cache, as float16. The student, timm's
test_efficientnet, sees the same crops at 64 pixels. It is taught from that cache, and from what smaller formats leave
of it: kdkit's codecs, fitted as a build fits them, and two published formats, all at about 48 bytes a row. Three things
are held out, on which nothing is taught and nothing fitted: new crops of the same left halves of photographs, the right
halves of these, and other photographs.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from _photographs import CropSource, create_imagenet_model
from _result import Report, parser
from timm.optim import create_optimizer_v2
from torch import Tensor

from kdkit import LogitDistillationTask, build_cache, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache.codecs import create_codec
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.recipe import ViewRecipe
from kdkit.teachers import TeacherEnsemble, create_teacher
from kdkit.types import Normalization, TeacherOutput

VIEWS = 2
FOLDS = 4  # a fold is held out: 4 or 5 photographs
NEW_CROPS = 8  # one of so many crops of a taught photograph is held out as well
BATCH, BYTES = 64, 48
STUDENT, RATE = "test_efficientnet", 4e-3


@dataclass(frozen=True)
class Data:
    """What students see and what the teacher said: N crops, V views, C classes."""

    images: Tensor  # uint8 [V, N, 3, 64, 64]
    log_p: Tensor  # float32 [V, N, C], from the cache
    half: Tensor  # of which photograph, int64 [N]; even ones are left
    head: Tensor | None  # [C, F], the teacher's last layer, where it has one
    names: tuple[str, ...]
    teacher: str


@dataclass(frozen=True)
class Split:
    """Which crops are for what: int64 indices."""

    taught: Tensor
    new_crop: Tensor  # of the taught halves
    other_half: Tensor  # of the photographs that are taught by half
    held_out: Tensor  # of other photographs


def load(members: Sequence[int], crops: int, folder: Path) -> Data:
    """Builds the cache, or opens the one in `folder`, and reads it and the views."""
    asked = [create_teacher(create_imagenet_model(size)) for size in members]
    teacher = asked[0] if len(asked) == 1 else TeacherEnsemble(asked)
    recipe = ViewRecipe(size=64, teacher_size=224, scale=(0.05, 1.0), num_views=VIEWS)
    source = CropSource(crops)
    dataset = ReplayedDataset(source, recipe)
    path = folder / f"lite{'+'.join(map(str, members))}-{crops}.h5"
    build_cache(teacher, dataset, path, BuildConfig(codec="float16", batch_size=32), show_progress=True)
    cache = open_cache(path, dataset)
    images, log_p = [], []
    for view in range(VIEWS):
        sampler = EpochSampler(range(len(dataset)), 256, num_views=VIEWS, shuffle=False)
        sampler.set_epoch(view)
        loader = ReplayLoader(dataset, sampler, Normalization(), num_workers=2)
        images.append(torch.cat([batch.images for batch in loader.pixel_batches()]))
        log_p.append(cache.codecs["logits"].decode(cache.read(torch.arange(len(dataset)), view)))
    name, head = teacher.name, teacher.head_weight
    return Data(torch.stack(images), torch.stack(log_p), source.half, head, source.names, name)


def split(half: Tensor, fold: int) -> Split:
    """Every FOLDS-th photograph is held out; of the others the right half, and every NEW_CROPS-th crop of the left."""
    held_out, right = half // 2 % FOLDS == fold, half % 2 == 1
    new_crop = torch.arange(len(half)) % NEW_CROPS == 0
    parts = (~held_out & ~right & ~new_crop, ~held_out & ~right & new_crop, ~held_out & right, held_out)
    return Split(*(part.nonzero()[:, 0] for part in parts))


def published_topk(log_p: Tensor, k: int, *, renormalise: bool) -> Tensor:
    """Float16 values and 16-bit ids of the k likeliest classes, 4 k bytes, decoded.

    The rest is spread evenly, as TinyViT does it (microsoft/Cream, TinyViT/main.py), or left out and the k scaled to
    sum 1, as FKD's marginal_renorm does it (szq0214/FKD, utils_FKD.py); a class left out is put at e^-30.
    """
    values, ids = log_p.exp().topk(k, dim=-1)
    values = values.half().float()
    left = (1 - values.sum(dim=-1, keepdim=True)).clamp_min(1e-7)
    if renormalise:
        values, left = values / values.sum(dim=-1, keepdim=True), torch.full_like(left, math.exp(-30))
    else:
        left = left / (log_p.shape[-1] - k)
    return left.expand(log_p.shape).scatter(-1, ids, values).log()


def targets(data: Data, taught: Tensor) -> dict[str, tuple[int, Tensor]]:
    """Format -> bytes a row, and log-probabilities [V, N, C] as its cache would give them."""
    num_classes = data.log_p.shape[-1]
    widest = max(k for k in range(1, 99) if create_codec("topk", num_classes, k=k).row_bytes <= BYTES)
    lowrank = create_codec("lowrank", num_classes, row_bytes=BYTES).fit(data.log_p[0, taught], data.head)
    topk = create_codec("topk", num_classes, k=widest)
    flat = data.log_p.flatten(0, 1)
    coded = {codec.name: (codec.row_bytes, codec.decode(codec.encode(flat))) for codec in (lowrank, topk)}
    return {
        "float16": (2 * num_classes, data.log_p),
        "lowrank": (coded["lowrank"][0], coded["lowrank"][1].view_as(data.log_p)),
        f"topk k={widest}": (coded["topk"][0], coded["topk"][1].view_as(data.log_p)),
        f"top-{BYTES // 4} spread evenly (TinyViT)": (BYTES, published_topk(data.log_p, BYTES // 4, renormalise=False)),
        f"top-{BYTES // 4} renormalised (FKD)": (BYTES, published_topk(data.log_p, BYTES // 4, renormalise=True)),
    }


def normalised(images: Tensor) -> Tensor:
    """Uint8 -> float in ImageNet's normalisation."""
    norm = Normalization()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (norm.mean, norm.std))
    return (images.float() / 255 - mean) / std


def create_student(data: Data, seed: int) -> torch.nn.Module:
    """The same weights for all formats."""
    torch.manual_seed(seed)
    student: torch.nn.Module = timm.create_model(STUDENT, num_classes=data.log_p.shape[-1])
    return student


def teach(data: Data, log_p: Tensor, taught: Tensor, epochs: int, seed: int) -> torch.nn.Module:
    """A student that never sees a label: KL to the cached answers, view e mod V in epoch e."""
    student = create_student(data, seed)
    task = LogitDistillationTask(student, task_loss_weight=0.0, verbose=False)
    optimizer = create_optimizer_v2(student, "adamw", lr=RATE, weight_decay=0.05)
    steps = epochs * (len(taught) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
    student.train()
    for epoch in range(epochs):
        order = taught[torch.randperm(len(taught))]
        for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
            said = TeacherOutput(log_p[epoch % VIEWS, rows])
            image = normalised(data.images[epoch % VIEWS, rows])
            loss = task(image, torch.full((len(rows),), -1), said)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return student.eval()


@torch.inference_mode()
def divergence(log_p: Tensor, log_q: Tensor) -> float:
    """Mean KL(teacher || other), nats; [R, C] both."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean().item()


@torch.inference_mode()
def score(log_p: Tensor, log_q: Tensor) -> dict[str, float]:
    """How near log_q [R, C] is to what the teacher said."""
    agreement = (log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).float().mean().item()
    return {"kl": divergence(log_p, log_q), "top1": 100 * agreement}


Answer = Callable[[Tensor], Tensor]


@torch.inference_mode()
def evaluate(data: Data, parts: Split, answer: Answer) -> dict[str, float]:
    """Scores on all that is held out; `answer`: rows -> log_q [V, R, C]."""
    scores = {}
    for name in ("new_crop", "other_half", "held_out"):
        rows = getattr(parts, name)
        scores |= {f"{name}_{key}": value for key, value in score(data.log_p[:, rows], answer(rows)).items()}
    return scores


def answers_of(data: Data, student: torch.nn.Module) -> Answer:
    """A student's log-probabilities, all views."""

    def answer(rows: Tensor) -> Tensor:
        images = data.images[:, rows].flatten(0, 1)
        log_q = torch.cat([student(normalised(batch)).log_softmax(dim=-1) for batch in images.split(256)])
        return log_q.view(VIEWS, len(rows), -1)

    return answer


def mean_answer(data: Data, parts: Split) -> Answer:
    """The best answer without looking: the mean of what the teacher said about the taught crops."""
    mean = data.log_p[:, parts.taught].flatten(0, 1).exp().mean(dim=0).log()
    return lambda rows: mean.expand(VIEWS, len(rows), -1)


def run_seed(data: Data, seed: int, epochs: int) -> dict[str, dict[str, float]]:
    """Format -> scores, for one split and initialisation, the same for all formats."""
    parts = split(data.half, seed % FOLDS)
    untaught = answers_of(data, create_student(data, seed).eval())
    results = {
        "untaught": evaluate(data, parts, untaught),
        "the taught crops' mean answer": evaluate(data, parts, mean_answer(data, parts)),
    }
    true = data.log_p[:, parts.taught]
    for name, (row_bytes, log_p) in targets(data, parts.taught).items():
        kept = log_p[:, parts.taught]
        student = teach(data, log_p, parts.taught, epochs, seed)
        results[name] = evaluate(data, parts, answers_of(data, student)) | {
            "bytes": row_bytes,
            "target_kl": divergence(true, kept),
            "target_l1": (true.exp() - kept.exp()).abs().sum(dim=-1).mean().item(),
        }
        print(seed, name, {key: round(value, 4) for key, value in results[name].items()}, flush=True)
    return results


COLUMNS: Mapping[str, str] = {
    "bytes": "bytes",
    "target_kl": "KL of the cache",
    "target_l1": "L1 of the cache",
    "new_crop_kl": "KL, new crops",
    "new_crop_top1": "agreement, %",
    "other_half_kl": "KL, other halves",
    "other_half_top1": "agreement, %",
    "held_out_kl": "KL, other photographs",
    "held_out_top1": "agreement, %",
}


def shown(values: list[float]) -> str:
    """Mean and, of several, the spread (half the range)."""
    mean, half = statistics.mean(values), (max(values) - min(values)) / 2
    return f"{mean:.4g}" + (f" ± {half:.2g}" if half else "")


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--keep", type=Path, help="folder to keep the teacher's cache in, and to take it from")
    made.add_argument(
        "--members", type=int, nargs="+", default=[2, 0], help="which efficientnet lites the teacher is of"
    )
    made.add_argument("--crops", type=int, default=48, help="crops of each half and view")
    made.add_argument("--epochs", type=int, default=24)
    made.add_argument("--seeds", type=int, default=3)
    args = made.parse_args()
    crops, epochs, seeds = (16, 2, 1) if args.quick else (args.crops, args.epochs, args.seeds)
    report = Report("story", "Which cache teaches better", args.quick)
    with tempfile.TemporaryDirectory() as temporary:
        data = load(args.members, crops, args.keep or Path(temporary))
    report.text(
        f"""A {STUDENT} of timm, 1,000 classes, 64 px, is taught label-free for {epochs} epochs from what the teacher
        ({data.teacher}; ImageNet weights, 224 px) said about {VIEWS} views of {crops} crops of the left half of each of
        {len(data.names)} photographs, but for what is held out: one in {NEW_CROPS} of these crops, as many crops of the
        right halves, and every {FOLDS}th photograph, others for each of {seeds} seed(s). KL(teacher || student) in nats
        and top-1 agreement with the teacher (its float16 answers), mean over seeds ± half the range."""
    )
    runs = [run_seed(data, seed, epochs) for seed in range(seeds)]
    rows = []
    for name in runs[0]:
        values = {key: [run[name][key] for run in runs] for key in COLUMNS if key in runs[0][name]}
        report.figure(name, {key: statistics.mean(value) for key, value in values.items()})
        rows.append([name, *(shown(values[key]) if key in values else "" for key in COLUMNS)])
    report.table(["taught from", *COLUMNS.values()], rows)
    report.text(
        """"KL of the cache" is KL(teacher || decoded) over the taught rows. FKD leaves classes out, which counts as
        e^-30 each; the number would be infinite otherwise. L1 is the sum of |p - q|: what the format does to the
        gradient of the student's logits."""
    )
    report.write(args.output)


if __name__ == "__main__":
    main()
