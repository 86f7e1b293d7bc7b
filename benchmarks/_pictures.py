"""Pictures of results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Figures = dict[str, Any]


def kl_against_bytes(figures: Figures, axes: Axes) -> None:
    """Codecs: divergence against bytes per row."""
    families = {
        "lowrank (default)": ("o-", lambda n: n.startswith("lowrank") and "no head" not in n),
        "lowrank, without the teacher's classifier": ("o:", lambda n: n.endswith("no head")),
        "topk, bit-packed": ("s-", lambda n: n.startswith("topk")),
        "top-k as float16 value + 16-bit id": ("^-", lambda n: n.startswith("published")),
        "int8": ("D", lambda n: n == "int8"),
        "float16": ("P", lambda n: n == "float16"),
    }
    for label, (style, belongs) in families.items():
        points = sorted((f["bytes"], f["kl"]) for name, f in figures.items() if belongs(name))
        axes.loglog(*zip(*points, strict=True), style, label=label, markersize=5)
    axes.set(xlabel="bytes per row, 1,000 classes", ylabel="mean KL(teacher || decoded), nats")
    axes.set_title("tf_efficientnet_lite0 on photographs not fitted to", fontsize=10)
    axes.legend(fontsize=8)


def rows_per_second(figures: Figures, axes: Axes) -> None:
    """Storage formats: speed of gathering a random batch."""
    speeds = {name.removesuffix(": rows/s"): value for name, value in figures.items() if name.endswith(": rows/s")}
    names = sorted(speeds, key=speeds.__getitem__)
    bars = axes.barh(names, [speeds[name] for name in names], color=["C1" if "kdkit" in n else "C0" for n in names])
    axes.bar_label(bars, [f" {speeds[name]:,}" for name in names], fontsize=8)
    axes.set(xscale="log", xlabel="rows/s, 256 random rows of 1,004 bytes, page cache warm")
    axes.margins(x=0.25)
    axes.tick_params(axis="y", labelsize=8)


def step_times(figures: Figures, axes: Axes) -> None:
    """A step against the teacher's size."""
    points = sorted(figures.values(), key=lambda figure: figure["millions"])
    sizes = [point["millions"] for point in points]
    for side in (name for name in points[0] if name not in ("millions", "cross-entropy, ms")):
        axes.plot(sizes, [point[side] for point in points], "o-", label=side)
    axes.axhline(1, color="grey", linestyle=":", label="cross-entropy alone")
    axes.set(xlabel="teacher, million weights", ylabel="step, relative to cross-entropy alone", ylim=(0, None))
    axes.set_xscale("log")
    axes.legend(fontsize=8)


def build_throughput(figures: Figures, axes: Axes) -> None:
    """A build relative to the bare loop."""
    ending = "/build over bare loop"
    found = {name.removesuffix(ending): figure for name, figure in figures.items() if name.endswith(ending)}
    medians = [figure["median"] for figure in found.values()]
    errors = [[f["median"] - f["low"] for f in found.values()], [f["high"] - f["median"] for f in found.values()]]
    axes.barh(list(found), medians, xerr=errors)
    axes.axvline(1, color="grey", linestyle=":")
    axes.set(xlabel="images/s of a build relative to load, forward, discard")
    axes.tick_params(axis="y", labelsize=8)


PICTURES: dict[str, tuple[str, Callable[[Figures, Axes], None]]] = {
    "codecs": ("kl-against-bytes", kl_against_bytes),
    "read": ("rows-per-second", rows_per_second),
    "peers": ("step-time", step_times),
    "build": ("build-throughput", build_throughput),
}
"""Benchmark -> name of its picture and function that draws it."""


def draw(result: dict[str, Any], folder: Path) -> Path | None:
    """Draws the picture of a result into `folder`; None if it has none."""
    if result["name"] not in PICTURES:
        return None
    name, drawn = PICTURES[result["name"]]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    drawn(result["figures"], axes)
    path = folder / f"{result['date']}-{name}.png"
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path
