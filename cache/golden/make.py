"""Writes the golden files of format version 1: `python cache/golden/make.py`; a file that is there is left alone.

A later version must read these files as they are. The JSON next to each holds its keys and, as numbers, what its rows
must decode to: for float32, float16 and int8 what plain NumPy computes from the logits; for topk, lowrank, sparse and
dense, which lose more, what the codec decoded when the file was made. tests/faults/test_versions.py reads all of them,
and tests/parity/test_codecs_page.py those four from their page alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdkit import CacheSpec, CacheWriter
from kdkit.cache import Codec, create_codec
from kdkit.cache.codecs import FeatureCodec, RowCodec, create_feature_codec
from kdkit.cache.format.constants import fidelity_columns, fidelity_fields, hashed_rows
from kdkit.cache.format.content import content_fields, content_record

Array = np.ndarray[Any, Any]
ROWS, VIEWS, CLASSES, MANY_CLASSES = 5, 2, 4, 24
KEYS = ["a.png", "b/c.png", "größe 1.png", "d", "雪.png"]
FEATURES = {
    "pooled": create_feature_codec("float16", (6,)),
    "tokens": create_feature_codec("int8", (2, 3)),
    "stages.2": create_feature_codec("int8", (2, 2, 2)),
}
NAMES = ["null", "eins", "deux", "三"]


def few(view: int) -> Array:
    """Rows that anyone can compute again, float32 [R, 4]; one is flat and one very sure."""
    values = np.array([[(7 * row + 3 * c + 5 * view) % 11 - 5 for c in range(CLASSES)] for row in range(ROWS)])
    values[1] = 2
    values[2] = [60, 0, 0, -20]
    return (values / 2).astype("<f4")


def many(view: int, rows: int = ROWS) -> Array:
    """Rows near a space of three dimensions, float32 [rows, 24]; the second is flat and the third very sure."""
    row, column = np.arange(rows)[:, None] + 10 * view, np.arange(MANY_CLASSES)[None]
    values = sum(4 / k * np.sin(1.7 * k * row + 0.3) * np.cos(0.9 * k * column + 0.1 * k) for k in (1, 2, 3))
    values[1] = 0.5
    values[2, 7] += 40
    return values.astype("<f4")


def plain(logits: Callable[[int], Array]) -> list[Any]:
    """Log-probabilities by NumPy, view by view."""
    return [(z - np.log(np.exp(z).sum(1, keepdims=True))).tolist() for z in map(logits, range(VIEWS))]


def decoded(codec: Codec, logits: Callable[[int], Array]) -> list[Any]:
    """Log-probabilities by the codec, view by view."""
    rows = (codec.decode(codec.encode(torch.from_numpy(logits(view)))) for view in range(VIEWS))
    return [np.round(view.numpy().astype("f8"), 6).tolist() for view in rows]


def feature(name: str, view: int) -> Array:
    """Rows of features that anyone can compute again, float32 [R, *FEATURES[name].shape]; the second is even."""
    shape = FEATURES[name].shape
    places = np.arange(ROWS * FEATURES[name].numel).reshape(ROWS, *shape) + 100 * view
    values = 3 * np.sin(0.7 * places) + 0.01 * places
    values[1] = -0.5
    return values.astype("<f4")


def write(
    path: Path,
    codecs: Mapping[str, RowCodec],
    outputs: Callable[[str, int], Array],
    names: list[str] | None,
    measured: bool = False,
    **more: Any,
) -> None:
    """The cache of these streams; `outputs` gives a stream's rows of a view; `measured`: each second row, by view.

    `more`: further fields of the spec.
    """
    fidelity = {stream: {**dict.fromkeys(fidelity_fields(stream), 0.0), "each": 2} for stream in codecs}
    spec = CacheSpec(
        keys=KEYS,
        num_views=VIEWS,
        codecs=codecs,
        teacher={"name": "golden", "dtype": "torch.float32", "weights_sha256": "0" * 64, "versions": {"kdkit": "0"}},
        recipe={"size": 8, "seed": 0},
        class_names=names,
        shard_rows=1000,
        fidelity=fidelity if measured else {},
        has_pixels=True,
        **more,
    )
    with CacheWriter.create(path, spec) as writer:
        for shard in writer.missing():
            encoded = {s: codec.encode(torch.from_numpy(outputs(s, shard.view))).numpy() for s, codec in codecs.items()}
            pixels = np.asarray(hashed_rows(0, ROWS), dtype="<u4") + 10 * shard.view
            kept = {stream: measures(stream, shard.view) for stream in codecs}
            writer.seal(shard, encoded, pixels, kept if measured else {})
        writer.finish()


def measures(stream: str, view: int) -> Array:
    """Numbers that anyone can compute again, float32 [rows, measures]: of each second row."""
    places = np.arange(-(-ROWS // 2))[:, None] + np.arange(fidelity_columns(stream)) / 8
    return (places + 10 * view).astype("<f4")


def make_logits(path: Path, codec: Codec, logits: Callable[[int], Array], expected: list[Any]) -> None:
    """The cache of one codec and what it must decode to."""
    write(path, {"logits": codec}, lambda _, view: logits(view), NAMES if codec.num_classes == CLASSES else None)
    _describe(path, {"codec": codec.name, "log_probabilities": expected})


def make_features(path: Path, codecs: Mapping[str, FeatureCodec] = FEATURES) -> None:
    """A cache of features alone, and what they were."""
    write(path, codecs, feature, None)
    _describe(path, {name: [feature(name, view).tolist() for view in range(VIEWS)] for name in FEATURES})


def make_sparse(path: Path) -> None:
    """A cache of features in the codec sparse, with and without signs, and what they decode to."""
    codecs = {
        "pooled": create_feature_codec("sparse", (48,), row_bytes=20),
        "stages.2": create_feature_codec("sparse", (3, 4, 4), row_bytes=24, has_signs=True),
    }

    def rows(name: str, view: int) -> Array:
        places = np.arange(ROWS * 48).reshape(ROWS, *codecs[name].shape) + 100 * view
        values = (places * 7919 % 101 - 60).clip(0) * (1 - 2 * (places % 3 == 0) * (name != "pooled")) / 8.0
        values[1] = 0.75
        values[2] = 0
        return values.astype("<f4")

    write(path, codecs, rows, None)
    found = {
        name: [codec.decode(codec.encode(torch.from_numpy(rows(name, view)))).tolist() for view in range(VIEWS)]
        for name, codec in codecs.items()
    }
    _describe(path, found)


def make_dense(path: Path) -> None:
    """A cache of features in the codec dense, whose fit is made up, and what they decode to, to three digits."""
    axes = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype="<f2") / 2
    codecs: dict[str, FeatureCodec] = {}
    for name, shape, more in [
        ("pooled", (4,), {}),
        ("tokens", (4, 4), {"positions": axes}),
        ("stages.2", (4, 2, 4), {}),
    ]:
        mean = np.arange(math.prod(shape[: 2 if more else 1]), dtype="<f4").reshape(shape[: 2 if more else 1]) / 8
        place = np.arange(math.prod(shape))
        low_bits = np.where(place % 5 == 4, 255, place % 4).astype(np.uint8)
        arrays = {"mean": mean, "basis": axes, "low_bits": low_bits, **more}
        codecs[name] = create_feature_codec("dense", shape, row_bytes=16 + len(place) // 4).with_arrays(arrays)

    def rows(name: str, view: int) -> Array:
        shape = codecs[name].shape
        places = np.arange(ROWS * math.prod(shape)).reshape(ROWS, *shape) + 100 * view
        values = (places * 7919 % 101 - 50) / 8.3
        values[1] = 0.75
        values[2] = 0
        return values.astype("<f4")

    write(path, codecs, rows, None)
    found = {
        name: [
            np.round(codec.decode(codec.encode(torch.from_numpy(rows(name, view)))).double().numpy(), 3).tolist()
            for view in range(VIEWS)
        ]
        for name, codec in codecs.items()
    }
    _describe(path, found)


def make_fidelity(path: Path) -> None:
    """A cache whose views were measured, and the measures."""
    codecs = {"logits": create_codec("float16", CLASSES), "tokens": FEATURES["tokens"]}
    write(path, codecs, lambda stream, view: few(view) if stream == "logits" else feature(stream, view), NAMES, True)
    _describe(path, {stream: [measures(stream, view).tolist() for view in range(VIEWS)] for stream in codecs})


def make_content(path: Path) -> None:
    """A cache that records the content of its samples, and that some had no rows; and both as JSON."""
    contents, absent = [f"file {key}".encode() for key in KEYS], ["broken.jpg", "c/leer ü.png"]
    records = np.frombuffer(b"".join(map(content_record, contents)), dtype=np.uint8).reshape(ROWS, -1)
    codecs = {"logits": create_codec("float16", CLASSES)}
    write(path, codecs, lambda _, view: few(view), NAMES, content=records, absent_keys=absent)
    fields = content_fields(records)
    _describe(
        path,
        {
            "absent": absent,
            "size": fields["size"].tolist(),
            "crc32": fields["crc32"].tolist(),
            "digest": [digest.tobytes().hex() for digest in fields["digest"]],
        },
    )


def _describe(path: Path, expected: dict[str, Any]) -> None:
    text = json.dumps({"keys": KEYS, **expected}, ensure_ascii=False, indent=1)
    path.with_suffix(".json").write_text(text + "\n")


def main(folder: Path = Path(__file__).parent) -> None:
    """Makes the files that `folder` lacks."""
    exact = [(create_codec(name, CLASSES), few) for name in ("float32", "float16", "int8")]
    lossy = [
        (create_codec("topk", MANY_CLASSES, k=5), many),
        (create_codec("lowrank", MANY_CLASSES, row_bytes=12).fit(torch.from_numpy(many(0, rows=64))), many),
    ]
    sigmoid = [create_codec(f"sigmoid_{name}", CLASSES) for name in ("float32", "float16", "int8")]
    for codec in sigmoid:
        if not (path := folder / f"v1-{codec.name}.h5").exists():
            write(path, {"logits": codec}, lambda _, view: few(view), NAMES)
            _describe(path, {"codec": codec.name, "logits": [few(view).tolist() for view in range(VIEWS)]})
    for codec, logits in [*exact, *lossy]:
        path = folder / f"v1-{codec.name}.h5"
        if not path.exists():
            make_logits(path, codec, logits, plain(logits) if logits is few else decoded(codec, logits))
    if not (path := folder / "v1-features.h5").exists():
        make_features(path)
    if not (path := folder / "v1-features32.h5").exists():
        make_features(path, {name: create_feature_codec("float32", codec.shape) for name, codec in FEATURES.items()})
    if not (path := folder / "v1-sparse.h5").exists():
        make_sparse(path)
    if not (path := folder / "v1-dense.h5").exists():
        make_dense(path)
    if not (path := folder / "v1-fidelity.h5").exists():
        make_fidelity(path)
    if not (path := folder / "v1-content.h5").exists():
        make_content(path)


if __name__ == "__main__":
    main()
