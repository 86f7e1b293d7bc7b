"""What a cache holds and what it was made with, as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdkit.cache.codecs import Codec, FeatureCodec, RowCodec
from kdkit.cache.fidelity import TEMPERATURES
from kdkit.cache.format import LOGITS
from kdkit.cache.metadata import CacheMetadata


def num_bytes(path: Path) -> int:
    """Bytes on disk of a packed file or a parts folder."""
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def summarise(path: Path, metadata: CacheMetadata, codecs: Mapping[str, RowCodec]) -> dict[str, str]:
    """Label -> text, in reading order."""
    teacher, names = metadata.teacher, metadata.dataset["class_names"]
    logits = codecs.get(LOGITS)
    num_classes = logits.num_classes if isinstance(logits, Codec) else len(names or ())
    return {
        "path": str(path),
        "rows": f"{metadata.num_rows:,} samples x {metadata.num_views} views",
        "bytes": f"{num_bytes(path):,}",
        **{f"  {name}": _describe_codec(codec) for name, codec in codecs.items()},
        "classes": f"{num_classes or 'not known'}" + ("" if names is None else f" ({names[0]!r} ... {names[-1]!r})"),
        "teacher": f"{teacher['name']}, {teacher['dtype']}, weights {teacher['weights_sha256'][:16]}",
        "recipe": ", ".join(f"{name} {value}" for name, value in metadata.recipe.items() if value is not None),
        **{f"{name} kept": describe_fidelity(values) for name, values in metadata.fidelity.items()},
        "dataset": f"keys {metadata.dataset['keys_sha256'][:16]}",
        "versions": ", ".join(f"{name} {value}" for name, value in teacher["versions"].items()),
    }


def _describe_codec(codec: RowCodec) -> str:
    shape = f"{' x '.join(map(str, codec.shape))} numbers, " if isinstance(codec, FeatureCodec) else ""
    return f"{codec.name}, {shape}{codec.row_bytes} bytes a row"


def describe_fidelity(values: Mapping[str, float]) -> str:
    """What a codec keeps of a teacher, in a line."""
    if "top1_agreement" not in values:
        mean, worst = values["relative_error_mean"], values["relative_error_max"]
        return f"relative error {mean:.2g}, at most {worst:.2g}, of {values['rows']:.0f} rows"
    kl = ", ".join(f"{values[f'kl_mean_t{t}']:.2g} (p99 {values[f'kl_p99_t{t}']:.2g}) at T={t}" for t in TEMPERATURES)
    return f"KL in nats {kl}; top-1 kept {values['top1_agreement']:.2%} of {values['rows']:.0f} rows of view 0"
