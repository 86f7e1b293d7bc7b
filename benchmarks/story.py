"""Which cache trains the better student? A small student learns from cached ImageNet teachers, without labels.

    python benchmarks/story.py            (needs the `test` extra; about 20 minutes on 2 cores)

Teacher: the ensemble of tf_efficientnet_lite2 and lite0, ImageNet weights. Its outputs for replayed crops of 19
photographs, which it sees at 224 pixels, are cached once by build_cache, as float16. The student, timm's
test_efficientnet, sees the same crops at 64 pixels. It is trained from that cache, and from smaller formats of the same
outputs: kdkit's codecs, fitted as in a build, and two published formats, all at about 48 bytes per row. Three sets are
held out from training and fitting: new crops of the same left halves of photographs, the right halves of these, and
other photographs.
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
FOLDS = 4  # one fold is held out: 4 or 5 photographs
NEW_CROPS = 8  # one in this many crops of a training photograph is held out as well
BATCH, BYTES = 64, 48
STUDENT, RATE = "test_efficientnet", 4e-3


@dataclass(frozen=True)
class Data:
    """Images of the students and outputs of the teacher: N crops, V views, C classes."""

    images: Tensor  # uint8 [V, N, 3, 64, 64]
    log_p: Tensor  # float32 [V, N, C], from the cache
    half: Tensor  # index of the half photograph, int64 [N]; even ones are left
    head: Tensor | None  # [C, F], the teacher's last layer, where it has one
    names: tuple[str, ...]
    teacher: str


@dataclass(frozen=True)
class Split:
    """Crops of each purpose: int64 indices."""

    training: Tensor
    new_crop: Tensor  # of the training halves
    other_half: Tensor  # of the photographs whose left half is used
    held_out: Tensor  # of other photographs


def load(members: Sequence[int], crops: int, folder: Path) -> Data:
    """Builds the cache, or opens the one in `folder`, and reads it and the views."""
    teachers = [create_teacher(create_imagenet_model(size)) for size in members]
    teacher = teachers[0] if len(teachers) == 1 else TeacherEnsemble(teachers)
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
        log_p.append(cache.codecs["logits"].decode(cache.read_encoded(torch.arange(len(dataset)), view)))
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


def targets(data: Data, training: Tensor) -> dict[str, tuple[int, Tensor]]:
    """Format -> bytes per row, and log-probabilities [V, N, C] as decoded from it."""
    num_classes = data.log_p.shape[-1]
    widest = max(k for k in range(1, 99) if create_codec("topk", num_classes, k=k).row_bytes <= BYTES)
    lowrank = create_codec("lowrank", num_classes, row_bytes=BYTES).fit(data.log_p[0, training], data.head)
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


def train_student(data: Data, log_p: Tensor, training: Tensor, epochs: int, seed: int) -> torch.nn.Module:
    """Trains a student without labels: KL to the cached outputs, view e mod V in epoch e."""
    student = create_student(data, seed)
    task = LogitDistillationTask(student, task_loss_weight=0.0, verbose=False)
    optimizer = create_optimizer_v2(student, "adamw", lr=RATE, weight_decay=0.05)
    steps = epochs * (len(training) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
    student.train()
    for epoch in range(epochs):
        order = training[torch.randperm(len(training))]
        for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
            teacher_output = TeacherOutput(log_p[epoch % VIEWS, rows])
            image = normalised(data.images[epoch % VIEWS, rows])
            loss = task(image, torch.full((len(rows),), -1), teacher_output)["loss"]
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
    """Divergence and agreement of log_q [R, C] with the teacher's log_p."""
    agreement = (log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).float().mean().item()
    return {"kl": divergence(log_p, log_q), "top1": 100 * agreement}


Predictor = Callable[[Tensor], Tensor]


@torch.inference_mode()
def evaluate(data: Data, parts: Split, predict: Predictor) -> dict[str, float]:
    """Scores on all that is held out; `predict`: rows -> log_q [V, R, C]."""
    scores = {}
    for name in ("new_crop", "other_half", "held_out"):
        rows = getattr(parts, name)
        scores |= {f"{name}_{key}": value for key, value in score(data.log_p[:, rows], predict(rows)).items()}
    return scores


def predictor_of(data: Data, student: torch.nn.Module) -> Predictor:
    """A student's log-probabilities, all views."""

    def predict(rows: Tensor) -> Tensor:
        images = data.images[:, rows].flatten(0, 1)
        log_q = torch.cat([student(normalised(batch)).log_softmax(dim=-1) for batch in images.split(256)])
        return log_q.view(VIEWS, len(rows), -1)

    return predict


def mean_predictor(data: Data, parts: Split) -> Predictor:
    """The best constant prediction: the mean of the teacher's distributions on the training crops."""
    mean = data.log_p[:, parts.training].flatten(0, 1).exp().mean(dim=0).log()
    return lambda rows: mean.expand(VIEWS, len(rows), -1)


def run_seed(data: Data, seed: int, epochs: int) -> dict[str, dict[str, float]]:
    """Format -> scores, for one split and initialisation, the same for all formats."""
    parts = split(data.half, seed % FOLDS)
    untaught = predictor_of(data, create_student(data, seed).eval())
    results = {
        "untaught": evaluate(data, parts, untaught),
        "the taught crops' mean answer": evaluate(data, parts, mean_predictor(data, parts)),
    }
    true = data.log_p[:, parts.training]
    for name, (row_bytes, log_p) in targets(data, parts.training).items():
        kept = log_p[:, parts.training]
        student = train_student(data, log_p, parts.training, epochs, seed)
        results[name] = evaluate(data, parts, predictor_of(data, student)) | {
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
    made.add_argument("--keep", type=Path, help="folder in which the teacher's cache is kept and found again")
    made.add_argument("--members", type=int, nargs="+", default=[2, 0], help="efficientnet lite models of the teacher")
    made.add_argument("--crops", type=int, default=48, help="crops of each half and view")
    made.add_argument("--epochs", type=int, default=24)
    made.add_argument("--seeds", type=int, default=3)
    args = made.parse_args()
    crops, epochs, seeds = (16, 2, 1) if args.quick else (args.crops, args.epochs, args.seeds)
    report = Report("story", "Which cache teaches better", args.quick)
    with tempfile.TemporaryDirectory() as temporary:
        data = load(args.members, crops, args.keep or Path(temporary))
    report.text(
        f"""A {STUDENT} of timm, 1,000 classes, 64 px, is trained without labels for {epochs} epochs from the
        outputs of the teacher ({data.teacher}; ImageNet weights, 224 px) for {VIEWS} views of {crops} crops of the
        left half of each of {len(data.names)} photographs, except for the held-out crops: one in {NEW_CROPS} of
        these crops, as many crops of the right halves, and every {FOLDS}th photograph, different ones for each of
        {seeds} seed(s). KL(teacher || student) in nats and top-1 agreement with the teacher (its float16 outputs),
        mean over seeds ± half the range."""
    )
    runs = [run_seed(data, seed, epochs) for seed in range(seeds)]
    rows = []
    for name in runs[0]:
        values = {key: [run[name][key] for run in runs] for key in COLUMNS if key in runs[0][name]}
        report.figure(name, {key: statistics.mean(value) for key, value in values.items()})
        rows.append([name, *(shown(values[key]) if key in values else "" for key in COLUMNS)])
    report.table(["trained from", *COLUMNS.values()], rows)
    report.text(
        """"KL of the cache" is KL(teacher || decoded) over the training rows. FKD omits classes, which count as
        e^-30 each; the number would be infinite otherwise. L1 is the sum of |p - q|: the error of the gradient
        with respect to the student's logits."""
    )
    report.write(args.output)


if __name__ == "__main__":
    main()
