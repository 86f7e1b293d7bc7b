"""Writes the golden files of format version 1: `python cache/golden/make.py`, once and never again.

A later version must read these files as they are. The JSON beside each holds its keys and what plain NumPy computes for
its rows, as numbers; tests/faults/test_versions.py reads both.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdkit.cache import create_codec
from kdkit.cache.format import DIGEST_NAME, KEYS_NAME, CacheMetadata, hashed_rows
from kdkit.cache.keys import key_digests, keys_sha256, pack_keys
from kdkit.cache.pack import pack
from kdkit.cache.parts import Parts

ROWS, VIEWS, CLASSES = 5, 2, 4
KEYS = ["a.png", "b/c.png", "größe 1.png", "d", "雪.png"]


def logits(view: int) -> np.ndarray[Any, Any]:
    """Rows that anyone can compute again, float32 [R, C]; one is flat and one very sure."""
    values = np.array([[(7 * row + 3 * c + 5 * view) % 11 - 5 for c in range(CLASSES)] for row in range(ROWS)])
    values[1] = 2
    values[2] = [60, 0, 0, -20]
    return (values / 2).astype("<f4")


def make(folder: Path, name: str) -> None:
    """The cache of one codec and what it must decode to."""
    codec = create_codec(name, CLASSES)
    metadata = CacheMetadata(
        num_rows=ROWS,
        num_views=VIEWS,
        shard_rows=1000,
        streams={"logits": {"codec": codec.to_dict(), "row_bytes": codec.row_bytes}},
        teacher={"name": "golden", "dtype": "torch.float32", "weights_sha256": "0" * 64, "versions": {"kdkit": "0"}},
        recipe={"size": 8, "num_views": VIEWS, "seed": 0},
        dataset={"keys_sha256": keys_sha256(KEYS), "class_names": ["null", "eins", "deux", "三"]},
        fidelity={},
    )
    path = folder / f"v1-{name}.h5"
    with tempfile.TemporaryDirectory() as place:
        parts = Parts.create(
            Path(place) / "parts", metadata, {DIGEST_NAME: key_digests(KEYS), KEYS_NAME: pack_keys(KEYS)}
        )
        for shard in metadata.shards():
            encoded = codec.encode(torch.from_numpy(logits(shard.view))).numpy()
            parts.seal(shard, {"logits": encoded}, np.asarray(hashed_rows(0, ROWS), dtype="<u4") + 10 * shard.view)
        path.unlink(missing_ok=True)
        pack(parts, path)
    expected = [(z - np.log(np.exp(z).sum(1, keepdims=True))).tolist() for z in map(logits, range(VIEWS))]
    document = {"keys": KEYS, "codec": name, "log_probabilities": expected}
    path.with_suffix(".json").write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    for codec_name in ("float32", "float16", "int8"):
        make(Path(__file__).parent, codec_name)
