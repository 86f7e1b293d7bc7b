"""What a cache holds, at first sight and for programs; summary.py has every detail as text."""

from __future__ import annotations

from typing import Any

from kdkit.cache.codecs import Codec
from kdkit.cache.file import CacheFile
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.summary import describe_p90, describe_sums, main_measure, num_bytes

_UNUSUAL = {"pixels": "hashed", "left out": None, "skipped": None}  # line of the summary -> what it is in most caches


def overview(cache: CacheFile) -> dict[str, str]:
    """Label -> text: images, views, bytes per row, teacher, size and fidelity, and whatever is unusual of the cache."""
    recipe, teacher, summary = cache.recipe, cache.metadata.teacher, cache.summary()
    lines = {
        "cache": f"{cache.path}, {_size(num_bytes(cache.path))}",
        "images": f"{cache.num_rows:,}",
        "classes": summary["classes"],
        "views": f"{cache.num_views} per image, {recipe.teacher_size or recipe.size} pixels: {recipe.describe_steps()}",
        **{f"  {stream}": summary[f"  {stream}"] for stream in cache.codecs},
        "teacher": f"{teacher['name']}, {'precision ' * (teacher['dtype'] == 'unknown')}"
        + teacher["dtype"].removeprefix("torch."),
    }
    for stream, views in _fidelity(cache).items():
        lines[f"{stream} kept"] = _describe_kept(views, multi_label=cache.is_multi_label)
    return lines | {name: summary[name] for name, usual in _UNUSUAL.items() if summary.get(name, usual) != usual}


def describe(cache: CacheFile) -> dict[str, Any]:
    """The same and the rest as plain values for JSON; docs/compare_and_report.md explains the names."""
    metadata, fidelity = cache.metadata, _fidelity(cache)
    logits = cache.codecs.get(LOGITS)
    names = metadata.dataset["class_names"]
    return {
        "path": str(cache.path),
        "bytes": num_bytes(cache.path),
        "images": cache.num_rows,
        "views": cache.num_views,
        "classes": logits.num_classes if isinstance(logits, Codec) else len(names or ()) or None,
        "multi_label": cache.is_multi_label,
        "row_bytes": metadata.all_row_bytes,
        "streams": {
            stream: {"codec": codec.to_dict(), "row_bytes": codec.row_bytes, "fidelity": fidelity.get(stream, [])}
            for stream, codec in cache.codecs.items()
        },
        "teacher": metadata.teacher,
        "recipe": metadata.recipe,
        "class_names": names,
        "has_pixels": metadata.has_pixels,
        "content": metadata.content_kind,
        "left_out": metadata.num_absent,
        "skipped": metadata.num_skipped,
        "keys_sha256": metadata.dataset["keys_sha256"],
    }


def _fidelity(cache: CacheFile) -> dict[str, list[dict[str, float]]]:
    """Stream -> fidelity in each view, or in view 0 alone if no other was measured; only of measured streams."""
    measured: dict[str, list[dict[str, float]]] = {
        stream: [dict(values)] for stream, values in cache.metadata.fidelity.items()
    }
    return measured | {stream: [dict(view) for view in views] for stream, views in cache.fidelity().items() if views}


def _describe_kept(views: list[dict[str, float]], *, multi_label: bool) -> str:
    """The worst view's fidelity, in a few words."""
    least = max(views, key=main_measure)
    worst, where = main_measure(least), f"in the worst of {len(views)} views" if len(views) > 1 else "in view 0"
    if "kl_mean_t1" not in views[0]:
        together = f"; {describe_sums(views[0])}" + (" in view 0" if len(views) > 1 else "")
        return f"relative error {worst:.2g}{describe_p90(least)} {where}{together}"
    top1 = "" if multi_label else f"top-1 of {min(view['top1_agreement'] for view in views):.2%} of the rows, "
    return f"{top1}KL {worst:.2g} nats {where}"


def _size(count: int) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.3g} {unit} ({count:,} bytes)"
    return f"{count:,} bytes"
