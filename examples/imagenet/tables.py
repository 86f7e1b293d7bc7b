"""Costs of caching a teacher on ImageNet: the tables of README.md in this folder.

    python examples/imagenet/tables.py

Prints the tables; --write inserts them into README.md. Bytes are computed as in `kdkit cache estimate`, from the layout
of the file in memory, for ImageNet's 1,281,167 training images. Takes 10 s on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch

from kdkit import CacheSpec
from kdkit.building.config import BuildConfig
from kdkit.building.fit import FIT_ROWS
from kdkit.cache.codecs import create_codec

IMAGES, CLASSES = 1_281_167, 1000
VIEWS = (1, 10, 50, 300)
CODECS = {
    "lowrank, 64 B": {"name": "lowrank", "row_bytes": 64},
    "lowrank, 96 B (the default)": {"name": "lowrank", "row_bytes": 96},
    "topk, k = 10": {"name": "topk", "k": 10},
    "int8": {"name": "int8"},
    "float16": {"name": "float16"},
}
SPEEDS = (500, 2_000, 8_000)  # images per second of all GPUs together
BEGIN, END = "<!-- tables.py begins -->", "<!-- tables.py ends -->"


@functools.cache
def keys() -> list[str]:
    """Names as ImageNet has them."""
    return [f"n{row % CLASSES:08d}/n{row % CLASSES:08d}_{row}.JPEG" for row in range(IMAGES)]


def num_bytes(codec_options: dict[str, object], num_views: int) -> int:
    """Bytes of the packed cache."""
    options = dict(codec_options)
    codec = create_codec(str(options.pop("name")), CLASSES, **options)
    if codec.needs_fit:
        torch.manual_seed(0)
        codec = codec.fit(torch.randn(2048, CLASSES))  # the size of the fitted arrays does not depend on the data
    return CacheSpec(
        keys=keys(),
        num_views=num_views,
        codecs={"logits": codec},
        teacher={"name": "convnext_base.fb_in22k_ft_in1k", "weights_sha256": "0" * 64},
        class_names=[f"n{label:08d}" for label in range(CLASSES)],
        has_pixels=True,
    ).packed_bytes


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def tables() -> str:
    """Storage, time and memory."""
    views = [f"{count} view{'s' if count > 1 else ''}" for count in VIEWS]
    storage = []
    for label, options in CODECS.items():
        one, two = num_bytes(options, 1), num_bytes(options, 2)  # every view takes the same number of bytes
        storage.append([label, *(f"{(one + (count - 1) * (two - one)) / 1e9:,.2f} GB" for count in VIEWS)])
    time = [
        [f"{speed:,} images/s", *(f"{IMAGES * count / speed / 3600:,.1f} h" for count in VIEWS)] for speed in SPEEDS
    ]
    fitted = FIT_ROWS * CLASSES * 4
    largest = BuildConfig.shard_rows * create_codec("float16", CLASSES).row_bytes
    memory = [
        [
            "a build, per process, in addition to teacher and loader",
            f"up to `--memory`, {BuildConfig.memory:,} MiB by default, for as many views at a time as fit: each an "
            f"unfinished shard ({largest / 1e6:,.0f} MB in float16) and a batch of pixels",
        ],
        [
            "fitting lowrank, once",
            f"{fitted / 1e6:,.0f} MB for {FIT_ROWS:,} rows of logits, and about five times that at its peak",
        ],
        ["training: index and keys of the samples", f"{IMAGES * 58 / 1e6:,.0f} MB"],
        [
            "training: the payload",
            "memory-mapped: pages of the file, which the system can reclaim at any time",
        ],
    ]
    return "\n\n".join(
        [
            "Storage, the packed file (twice as much while it is packed):",
            table(["codec", *views], storage),
            "Time to run the teacher, by its total speed on all GPUs:",
            table(["speed", *views], time),
            "Memory:",
            table(["what", "how much"], memory),
        ]
    )


def main() -> None:
    """Prints the tables, and writes them into the page if requested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="insert the tables into README.md")
    made = tables()
    print(made)
    if parser.parse_args().write:
        page = Path(__file__).parent / "README.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
