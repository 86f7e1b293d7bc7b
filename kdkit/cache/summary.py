"""A cache's contents and origin, as text for display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdkit.cache.codecs import Codec, FeatureCodec, RowCodec
from kdkit.cache.format.constants import ABOUT_MEAN, COSINE, LOGITS, TEMPERATURES
from kdkit.cache.format.metadata import CacheMetadata
from kdkit.cache.shards.packed import follow_packing

_SKIPPED_SHOWN = 5
_TOGETHER = {ABOUT_MEAN: "2g", COSINE: "4f"}  # and the digits that are shown


@follow_packing
def num_bytes(path: Path) -> int:
    """Bytes on disk of a packed file or a parts folder."""
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def summarise(
    path: Path,
    metadata: CacheMetadata,
    codecs: Mapping[str, RowCodec],
    by_view: Mapping[str, Sequence[Mapping[str, float]]],
) -> dict[str, str]:
    """Label -> text, in reading order; `by_view`: stream -> the fidelity in each view."""
    teacher, names = metadata.teacher, metadata.dataset["class_names"]
    rows = metadata.num_rows * metadata.num_views * metadata.all_row_bytes
    logits = codecs.get(LOGITS)
    several = isinstance(logits, Codec) and logits.multi_label
    num_classes = logits.num_classes if isinstance(logits, Codec) else len(names or ())
    return {
        "path": str(path),
        "rows": f"{metadata.num_rows:,} samples x {metadata.num_views} views",
        "bytes": f"{num_bytes(path):,} ({describe_bytes(rows)})",
        **{f"  {name}": _describe_codec(codec) for name, codec in codecs.items()},
        "classes": f"{num_classes or 'not known'}"
        + (f" ({names[0]!r} ... {names[-1]!r})" if names is not None and len(names) == num_classes else ""),
        "teacher": f"{teacher['name']}, {teacher['dtype']}, weights {teacher['weights_sha256'][:16]}",
        "recipe": ", ".join(f"{name} {value}" for name, value in metadata.recipe.items() if value is not None),
        **{
            f"{name} kept": describe_fidelity({**values, **_first(by_view.get(name))}, multi_label=several)
            for name, values in metadata.fidelity.items()
        },
        **{f"{name} worst": _describe_worst(views, several) for name, views in by_view.items() if len(views) > 1},
        "pixels": "hashed" if metadata.has_pixels else "not known: opening compares keys and recipe, but no pixels",
        "content": f"digests of {metadata.content_kind}" if metadata.content_kind else "not recorded",
        **({"left out": f"{metadata.num_absent:,} unreadable images"} if metadata.num_absent else {}),
        **({"skipped": _describe_skipped(metadata.dataset["skipped"])} if metadata.num_skipped else {}),
        "dataset": f"SHA-256 of its keys {metadata.dataset['keys_sha256'][:16]}",
        "versions": ", ".join(f"{name} {value}" for name, value in teacher["versions"].items()),
    }


def describe_content(metadata: CacheMetadata, codecs: Mapping[str, RowCodec]) -> str:
    """Rows, views, streams and teacher, in a line."""
    streams = ", ".join(f"{name} in {_describe_codec(codec)}" for name, codec in codecs.items())
    return f"{metadata.num_rows:,} rows x {metadata.num_views} views; {streams}; teacher {metadata.teacher['name']!r}"


def describe_bytes(rows: int) -> str:
    """Describes a cache's bytes, `rows` of them encoded rows."""
    return f"{rows:,} of rows; the rest is fitted codecs, keys and checksums"


def _describe_codec(codec: RowCodec) -> str:
    shape = f"{' x '.join(map(str, codec.shape))} numbers, " if isinstance(codec, FeatureCodec) else ""
    return f"{codec.name}, {shape}{codec.row_bytes} bytes per row"


def _describe_skipped(skipped: Mapping[str, Any]) -> str:
    first = skipped.get("first") or []
    more = "; ..." if skipped["count"] > len(first[:_SKIPPED_SHOWN]) else ""
    shown = "; ".join(map(str, first[:_SKIPPED_SHOWN]))
    return f"{skipped['count']:,} entries of the data, by --skip-missing: {shown}{more}"


def describe_p90(values: Mapping[str, float]) -> str:
    """The 90th percentile of the relative error of features, in brackets; empty if it is not known."""
    return f" (p90 {values['relative_error_p90']:.2g})" if "relative_error_p90" in values else ""


def describe_sums(values: Mapping[str, float]) -> str:
    """What the rows of features tell together: "-" for what older caches lack."""
    about, cosine = (f"{values[name]:.{digits}}" if name in values else "-" for name, digits in _TOGETHER.items())
    return f"about the mean {about}, cosine {cosine}"


def _first(views: Sequence[Mapping[str, float]] | None) -> Mapping[str, float]:
    return views[0] if views else {}


def _describe_worst(views: Sequence[Mapping[str, float]], multi_label: bool) -> str:
    """The view with the lowest fidelity."""
    means = [main_measure(values) for values in views]
    worst = means.index(max(means))
    return describe_fidelity(views[worst], worst, multi_label=multi_label)


def main_measure(values: Mapping[str, float]) -> float:
    """The measure that views are compared by: the mean KL in nats at T = 1, or for features the mean relative error."""
    return values["kl_mean_t1" if "kl_mean_t1" in values else "relative_error_mean"]


def describe_fidelity(values: Mapping[str, float], view: int = 0, *, multi_label: bool = False) -> str:
    """The fidelity of a codec in one view, as one line; several labels per image have no likeliest class."""
    if "top1_agreement" not in values:
        mean, worst = values["relative_error_mean"], values["relative_error_max"]
        together = f"{describe_sums(values)}, " if view == 0 else ""
        rows = f"{values['rows']:.0f} rows of view {view}"
        return f"relative error {mean:.2g}{describe_p90(values)}, at most {worst:.2g}, {together}of {rows}"
    kl = ", ".join(f"{values[f'kl_mean_t{t}']:.2g} (p99 {values[f'kl_p99_t{t}']:.2g}) at T={t}" for t in TEMPERATURES)
    rows = f"{values['rows']:.0f} rows of view {view}"
    if multi_label:
        return f"KL in nats, summed over the labels, {kl} of {rows}"
    return f"KL in nats {kl}; top-1 kept {values['top1_agreement']:.2%} of {rows}"
