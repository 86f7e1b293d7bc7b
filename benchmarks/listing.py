"""Opening data before the first image is read: shards listed and from their index, and a folder of 100,000 images.

    python benchmarks/listing.py [--quick]

Needs about 250 MB of disk in the temporary folder; takes about a minute on a calm core. Times of 50,000 samples
(100,000 members in 10 shards) are extrapolated to ImageNet's 1,281,167 images; the files are in the page cache, so a
disk or a network file system adds its own time.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from pathlib import Path

from _result import Report, Spread, parser
from PIL import Image

from kdkit.data import create_source
from kdkit.data.sources import tar_index

IMAGENET = 1_281_167


def write_shards(root: Path, num_samples: int) -> Path:
    """Ten WebDataset shards of small JPEGs with their labels."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    for number in range(10):
        with tarfile.open(root / f"shard-{number:06d}.tar", "w") as archive:
            for sample in range(num_samples // 10):
                for suffix, content in (("jpg", stream.getvalue()), ("cls", str(sample % 1000).encode())):
                    info = tarfile.TarInfo(f"{number}-{sample:06d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return root


def write_folder(root: Path, num_files: int) -> Path:
    """Empty files in a hundred class folders: listing opens none of them."""
    for number in range(100):
        (root / f"class {number}").mkdir()
        for file in range(num_files // 100):
            (root / f"class {number}" / f"{file:06d}.jpg").touch()
    return root


def opening(data: Path, count: int) -> float:
    """Seconds of one opening, per sample in microseconds."""
    begun = time.perf_counter()
    assert len(create_source(data)) == count
    return 1e6 * (time.perf_counter() - begun) / count


def main() -> None:
    options = parser(__doc__).parse_args()
    report = Report("listing", "Opening data before the first image is read", options.quick)
    count, turns = (1000, 2) if options.quick else (50_000, 3)
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder, name) for name in ("shards", "images", "cache")}
        places["shards"].mkdir()
        places["images"].mkdir()
        shards, images = write_shards(places["shards"], count), write_folder(places["images"], 2 * count)
        os.environ["XDG_CACHE_HOME"] = str(places["cache"] / "none")
        places["cache"].mkdir()
        (places["cache"] / "none").touch()  # a file, in which no index can be written
        times = {"shards, listed": [opening(shards, count) for _ in range(turns)]}
        os.environ["XDG_CACHE_HOME"] = str(places["cache"])
        time.sleep(tar_index._SETTLED)
        opening(shards, count)
        times["shards, from the index"] = [opening(shards, count) for _ in range(turns)]
        times["a folder"] = [opening(images, 2 * count) for _ in range(turns)]
        size = sum(file.stat().st_size for file in (places["cache"] / "kdkit" / "tars").iterdir()) / count
    rows = []
    for what, each in times.items():
        spread = Spread.of(each)
        report.figure(f"{what}, microseconds per image", spread)
        rows.append([what, spread, f"{IMAGENET * spread.median / 1e6:.0f} s"])
    report.figure("index, bytes per sample", size)
    report.table(["data", "per image, µs", "at 1,281,167 images"], rows)
    report.text(f"The index takes {size:.0f} bytes per sample, {IMAGENET * size / 1e6:.0f} MB of ImageNet.")
    report.write(options.output)


if __name__ == "__main__":
    main()
