"""A folder of weights, as accelerate and transformers save it: one file, or shards with an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kdkit.errors import CheckpointError
from kdkit.runtime.reading import read_json
from kdkit.teachers.model_folder import HUB_WEIGHTS
from kdkit.teachers.weights_file import load_weights_file

_INDEX = ".index.json"
_MAX_INDEX_BYTES = 16 << 20
_MAX_SHARDS = 1024
_TO_CONVERT = {
    ".metadata": "a sharded checkpoint of torch.distributed: python -m torch.distributed.checkpoint.format_utils "
    "dcp_to_torch {} weights.pth writes one file of it",
    "zero_to_fp32.py": "a checkpoint of DeepSpeed: python {}/zero_to_fp32.py {} weights writes the weights of it",
}
"""File of a folder -> what the folder is, and the command that makes weights of it."""


def load_weights(path: Path) -> Any:
    """Returns the contents of a weights file, or of a folder of weights or the index of its shards, on the CPU.

    Raises:
        CheckpointError: there are no weights, they cannot be read, or shards are missing.
    """
    if path.name.endswith(_INDEX):
        return _load_shards(path)
    if not path.is_dir():
        return load_weights_file(path)
    if indices := sorted(path.glob(f"*{_INDEX}")):
        return _load_shards(indices[0])
    for name in HUB_WEIGHTS:
        if (path / name).is_file():
            return load_weights_file(path / name)
    for name, text in _TO_CONVERT.items():
        if (path / name).exists():
            raise CheckpointError(f"{str(path)!r} is {text.replace('{}', str(path))}")
    raise CheckpointError(
        f"{str(path)!r} is a folder without weights: expected {', '.join(HUB_WEIGHTS)}, or shards with an {_INDEX}"
    )


def _load_shards(index: Path) -> dict[str, Tensor]:
    """The weights that an index of shards lists, all of them."""
    found = read_json(index, limit=_MAX_INDEX_BYTES, error=CheckpointError)
    places = found.get("weight_map") if isinstance(found, Mapping) else None
    if not isinstance(places, Mapping) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{str(index)!r} is no index of shards: expected a weight_map of names and files")
    shards = sorted(set(places.values()))
    if len(shards) > _MAX_SHARDS or any(Path(shard).name != shard for shard in shards):
        raise CheckpointError(f"{str(index)!r} must name at most {_MAX_SHARDS:,} files of its own folder")
    state: dict[str, Tensor] = {}
    for shard in shards:
        content = load_weights_file(index.with_name(shard))
        state |= content if isinstance(content, dict) else {}
    if missing := [name for name in places if name not in state]:
        raise CheckpointError(f"{str(index)!r} lists {missing[0]!r}, which is not in {places[missing[0]]!r}")
    return {name: state[name] for name in places}
