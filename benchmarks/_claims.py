"""The project's targets: each is a figure of a benchmark with its limit. The summary and the README show them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _result import RESULTS, Spread, latest


@dataclass(frozen=True)
class Claim:
    """A figure and its target.

    Attributes:
        text: what the figure measures.
        benchmark: name of the benchmark that measures it.
        figure: its name in that benchmark's result.
        limit: the target, in the unit of the figure.
        at_least: whether the figure should be at least the limit; else at most.
        field: the member that counts, if the figure is an object.
    """

    text: str
    benchmark: str
    figure: str
    limit: float
    at_least: bool = False
    field: str | None = None

    @property
    def target(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass(frozen=True)
class Verdict:
    """A claim and its newest measurement. Without a measurement the claim is neither met nor missed."""

    claim: Claim
    shown: str = "not measured"
    met: bool | None = None
    date: str | None = None

    @property
    def result(self) -> str:
        """Name of the result's page; empty without a result."""
        return f"{self.date}-{self.claim.benchmark}" if self.date else ""


def _codec(row_bytes: int, limit: float) -> Claim:
    return Claim(f"lowrank, {row_bytes} bytes per row: mean KL", "codecs", f"lowrank {row_bytes}", limit, field="kl")


def _at_equal_bytes(row_bytes: int, other: str, figure: str, limit: float) -> Claim:
    return Claim(
        f"mean KL of lowrank relative to {other} at {row_bytes} bytes",
        "codecs",
        f"{row_bytes} bytes: lowrank over {figure}",
        limit,
    )


def _build(teacher: str, codec: str, workers: int) -> Claim:
    loads = f"{workers} loading process{'' if workers == 1 else 'es'}"
    text = f"speed of a build relative to a bare loop of load and forward: {teacher}, {codec}, {loads}"
    return Claim(text, "build", f"{teacher}/{codec}/{workers} workers/build over bare loop", 0.95, at_least=True)


def _loss(loss: str, shape: str, limit: float) -> Claim:
    return Claim(
        f"time of forward and backward of {loss} at {shape} relative to plain log_softmax and kl_div",
        "losses",
        f"Logits {shape}, float32: {loss}: time",
        limit,
    )


def _step(student: str) -> Claim:
    return Claim(
        f"time of a step from the cache relative to cross-entropy alone: {student}",
        "step",
        f"{student}/cache over cross-entropy",
        1.03,
    )


def _views(transform: str, workers: int) -> Claim:
    return Claim(
        f"views/s of the replayed loader relative to timm's create_loader: {transform}, {workers} workers",
        "views",
        f"{transform}, {workers} workers: kdkit over timm create_loader",
        0.95,
        at_least=True,
    )


def _several(transform: str, workers: int, views: int, limit: float) -> Claim:
    return Claim(
        f"views/s with {views} views per decode relative to timm's create_loader: {transform}, {workers} workers",
        "decode",
        f"{transform}, {workers} workers, k = {views}: views/s over timm's",
        limit,
        at_least=True,
    )


def _bare(transform: str, workers: int, views: int) -> Claim:
    return Claim(
        f"time to load at k = {views} views per decode relative to a bare loop that only decodes and draws them: "
        f"{transform}, {workers} workers",
        "decode",
        f"{transform}, {workers} workers, k = {views}: time over the bare loop",
        1.10,
    )


def _features(tap: str, float16: float, int8: float) -> Iterator[Claim]:
    for name, limit in (("float16", float16), ("int8", int8)):
        text = f"compact at an error of 0.02, {tap} of tf_efficientnet_lite0: times fewer bytes than {name}"
        yield Claim(text, "features", f"{tap}: times fewer than {name}", limit, at_least=True)


SHAPES = ("[1024, 1000]", "[256, 21841]")
"""Shapes of logits: the classes of ImageNet-1k and of ImageNet-21k."""

CLAIMS = (
    Claim(
        "speed of cache.read of 256 random rows relative to numpy fancy indexing in memory",
        "read",
        "numpy fancy indexing in memory / kdkit, time",
        0.9,
        at_least=True,
    ),
    Claim(
        "the same, relative to h5py fancy indexing of a contiguous dataset",
        "read",
        "h5py fancy indexing, contiguous / kdkit, time",
        10,
        at_least=True,
    ),
    Claim("open_cache of 1.28 million rows x 10 views, ms", "read", "open: first, ms", 50),
    Claim(
        "memory after 1,000 random batches of a tenth of the rows: resident pages of the file over touched pages",
        "read",
        "1,000 batches: pages of the file over touched ones",
        1.05,
    ),
    Claim("the same: other memory, MiB", "read", "1,000 batches: anonymous memory, MiB", 16),
    _step("resnet18"),
    _step("vit_tiny_patch16_224"),
    Claim(
        "time of an epoch of kdkit's loop relative to a hand-written loop: resnet18",
        "step",
        "loop over minimal loop",
        1.02,
    ),
    _views("crop and flip", 0),
    _views("crop and flip", 2),
    _views("RandAugment", 0),
    _views("RandAugment", 2),
    *(_loss(loss, shape, limit) for loss, limit in (("kl", 1.15), ("dist", 3)) for shape in SHAPES),
    *(
        _build(teacher, codec, workers)
        for teacher in ("resnet50", "tf_efficientnet_lite0")
        for codec in ("lowrank", "int8")
        for workers in (0, 1)
    ),
    *(_several("crop and flip", workers, views, limit) for workers in (0, 2) for views, limit in ((4, 1.4), (8, 1.5))),
    *(_several("RandAugment", workers, 4, 1.15) for workers in (0, 2)),
    *(
        _bare(transform, workers, views)
        for transform in ("crop and flip", "RandAugment")
        for workers in (0, 2)
        for views in (1, 4, 8)
    ),
    *(
        Claim(
            f"speed of a build of 8 views relative to a bare loop that decodes each view: {teacher}",
            "decode",
            f"{teacher}, 0 workers: build over bare loop",
            limit,
            at_least=True,
        )
        for teacher, limit in (
            ("test_vit", 1.4),
            ("mobilenetv3_small_050", 1.4),
            ("tf_efficientnet_lite0", 1.0),
            ("resnet50", 0.95),
        )
    ),
    *(
        Claim(
            f"time of an epoch from the cache, 4 views per decode, relative to timm's supervised epoch: {student}",
            "decode",
            f"{student}: epoch from the cache over timm's",
            limit,
        )
        for student, limit in (("test_vit", 0.70), ("resnet18", 1.03))
    ),
    Claim(
        "time of a step with the mix of two caches relative to one: resnet18",
        "caches",
        "step_two_caches_over_one",
        1.05,
    ),
    Claim(
        "time to encode with lowrank at 96 bytes relative to the first version",
        "encode_before",
        "96 bytes: time",
        0.625,
    ),
    Claim("the same, ms per row on one core", "encode_before", "96 bytes: ms per row", 1.0),
    _codec(52, 0.100),
    _codec(68, 0.074),
    _codec(102, 0.044),
    _codec(134, 0.030),
    _codec(202, 0.016),
    *(_at_equal_bytes(row_bytes, "bit-packed top-k", "topk", 0.4) for row_bytes in (64, 96, 128, 192)),
    *(_at_equal_bytes(row_bytes, "the published top-k", "published", 0.25) for row_bytes in (96, 128, 192)),
    *_features("pooled", 10, 5),
    *_features("tokens", 25, 14),
    *_features("stages.4", 8.5, 5),
    *_features("stages.3", 5.5, 2.8),
    *_features("stages.2", 5.5, 2.8),
    Claim("int8: mean KL", "codecs", "int8", 1e-4, field="kl"),
    Claim("lowrank, 96 bytes: decode of 256 rows, ms, one core", "codecs", "lowrank 96", 2, field="decode_ms"),
)


def verdicts(folder: Path = RESULTS) -> Iterator[Verdict]:
    """One verdict per claim. A claim without a figure in the newest results in `folder` is shown as not measured."""
    for claim in CLAIMS:
        try:
            result = latest(claim.benchmark, folder)
        except FileNotFoundError:
            yield Verdict(claim)
            continue
        found = result["figures"].get(claim.figure)
        yield Verdict(claim) if found is None else _judge(claim, found, result["date"])


def _judge(claim: Claim, found: Any, date: str) -> Verdict:
    if isinstance(found, dict) and set(found) == {"median", "low", "high"}:
        value, shown = found["median"], str(Spread(**found))
    else:
        value = found if claim.field is None else found[claim.field]
        shown = f"{value:.2g}" if value < 1e-2 else f"{value:.3g}"
    return Verdict(claim, shown, value >= claim.limit if claim.at_least else value <= claim.limit, date)
