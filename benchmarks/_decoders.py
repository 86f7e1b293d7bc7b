"""Ways to decode JPEG files, and to resize what was decoded, for `decode.py`."""

from __future__ import annotations

import io
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from _result import Report, ratio, take_turns
from PIL import Image
from torch import nn
from views import SIZE

from kdkit.data.views.planes import to_planes
from kdkit.data.views.seed import preserve_rng_state, seed_all
from kdkit.data.views.transform import create_view_transform
from kdkit.recipe import ViewRecipe


def by_pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def by_torchvision(data: bytes) -> Image.Image:
    pixels = torchvision.io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def crops_of(transform: Any, size: tuple[int, int], seeds: Iterator[int], views: int) -> list[tuple[int, int]]:
    """Width and height of the crops that the recipe draws for the views of an image."""
    found = []
    for _ in range(views):
        seed_all(next(seeds))
        _, _, height, width = transform.get_params(Image.new("L", size), transform.scale, transform.ratio)
        found.append((width, height))
    return found


def by_draft(data: bytes, crops: list[tuple[int, int]], size: int) -> Image.Image:
    """Decodes at 1/2, 1/4 or 1/8 where no crop would be enlarged more than after a full decode."""
    image = Image.open(io.BytesIO(data))
    scale = min(min(crop) for crop in crops) / size
    if scale >= 2:
        image.draft("RGB", (int(image.width / scale), int(image.height / scale)))
    return image.convert("RGB")


def compare_ways(report: Report, root: Path, turns: int) -> None:
    """Ways to decode, with crop and flip after them: time of a view at several sizes and views per decode."""
    files = [path.read_bytes() for path in sorted(root.rglob("*.jpg"))]
    rows = []
    for size, views in itertools.product((224, 112), (1, 4)):
        transform: Any = create_view_transform(ViewRecipe.preset("rrc", size=size))
        seeds, reduced = itertools.count(), list[bool]()

        def views_by(decode: Callable[[bytes], Image.Image], views: int = views, transform: Any = transform) -> None:
            for data in files:
                image = decode(data)
                for _ in range(views):
                    transform(image)

        def drafted(
            data: bytes,
            size: int = size,
            views: int = views,
            transform: Any = transform,
            seeds: Any = seeds,
            reduced: list[bool] = reduced,
        ) -> Image.Image:
            crops = crops_of(transform.transforms[0], (500, 375), seeds, views)
            image = by_draft(data, crops, size)
            reduced.append(image.width < 500)
            return image

        sides: dict[str, Callable[[], object]] = {
            "Pillow": lambda v=views_by: v(by_pillow),  # type: ignore[misc]
            "torchvision": lambda v=views_by: v(by_torchvision),  # type: ignore[misc]
            "draft": lambda v=views_by, d=drafted: v(d),  # type: ignore[misc]
        }
        with preserve_rng_state():
            times = take_turns(sides, turns, warm_up=1)
        plain = 1e3 * statistics.median(times["Pillow"]) / len(files) / views
        gains = {
            way: report.figure(f"{size} px, k = {views}: {way} over Pillow", ratio(times["Pillow"], times[way]))
            for way in ("torchvision", "draft")
        }
        rows.append([size, views, f"{plain:.2f}", *gains.values(), f"{100 * statistics.mean(reduced):.0f} %"])
        print(rows[-1], flush=True)
    report.text(
        "## Ways to decode",
        "Crop and flip of decoded files, end to end; a way is worth taking from 1.15 on. `draft` decodes at 1/2 or",
        "less where the crops of all k views are at least twice the view's size.",
    )
    report.table(["pixels", "k", "Pillow, ms a view", "torchvision", "draft", "images that draft reduces"], rows)


def compare_resizing(report: Report, root: Path, turns: int) -> None:
    """Pillow's resizing and torch's of the same crops: time, and difference of the pixels."""
    transform: Any = create_view_transform(ViewRecipe.preset("rrc", size=SIZE)).transforms[0]  # type: ignore[attr-defined]
    crops = []
    with preserve_rng_state():
        for index, path in enumerate(sorted(root.rglob("*.jpg"))):
            image = by_pillow(path.read_bytes())
            seed_all(index)
            top, left, height, width = transform.get_params(image, transform.scale, transform.ratio)
            crops.append(image.crop((left, top, left + width, top + height)))

    def by_torch(crop: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
        return nn.functional.interpolate(pixels, (SIZE, SIZE), mode="bicubic", antialias=True)[0]

    def as_recipe(crop: Image.Image) -> torch.Tensor:
        return to_planes(crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    apart = max(int((by_torch(crop).int() - as_recipe(crop).int()).abs().max()) for crop in crops)
    sides: dict[str, Callable[[], object]] = {
        "Pillow": lambda: [as_recipe(crop) for crop in crops],
        "torch": lambda: [by_torch(crop) for crop in crops],
    }
    times = take_turns(sides, turns, warm_up=1)
    gain = report.figure("resizing: torch over Pillow", ratio(times["Pillow"], times["torch"]))
    report.figure("resizing: largest difference of a pixel", apart)
    report.text(
        f"""Resizing alone: torch's `interpolate` of uint8 pixels with antialiasing is {gain} times as fast as Pillow's
        `resize` ({1e3 * statistics.median(times["Pillow"]) / len(crops):.2f} ms a view), but pixels differ by up to
        {apart} of 255, so that its views would not be timm's."""
    )
