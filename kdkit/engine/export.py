"""Exporting a cache for tools that do not know it: decoded log-probabilities as npz or safetensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kdkit.cache import durable, open_cache
from kdkit.cache.reader import LOGITS
from kdkit.errors import ConfigError, OutputExistsError

_CHUNK = 4096
FORMATS = (".npz", ".safetensors")


def export_cache(path: str | Path, output: str | Path, *, view: int = 0, overwrite: bool = False) -> Path:
    """Writes one view: 'log_probabilities' float16 [R, C], and for npz 'keys' [R] as well.

    Args:
        path: the cache.
        output: a file that ends in .npz or .safetensors.
        view: which view.
        overwrite: whether a file at `output` is replaced.

    Raises:
        ConfigError: `output` ends in neither.
        OutputExistsError: there is a file at `output`.
    """
    output = Path(output)
    if output.suffix not in FORMATS:
        raise ConfigError(f"cannot export to {str(output)!r}: expected a name that ends in {' or '.join(FORMATS)}")
    if output.exists() and not overwrite:
        raise OutputExistsError(f"{str(output)!r} exists: pass --overwrite true to replace it")
    cache = open_cache(path)
    codec = cache.codecs[LOGITS]
    rows = torch.empty(cache.num_rows, cache.num_classes, dtype=torch.float16)
    for first in range(0, cache.num_rows, _CHUNK):
        wanted = np.arange(first, min(first + _CHUNK, cache.num_rows))
        rows[wanted[0] : wanted[-1] + 1] = codec.decode(cache.read(wanted, view)).half()
    with durable.replacing(output) as temporary:
        if output.suffix == ".npz":
            with open(temporary, "xb") as file:
                np.savez(file, log_probabilities=rows.numpy(), keys=np.array(cache.keys()))
        else:
            save_file({"log_probabilities": rows}, temporary, {"teacher": cache.metadata.teacher["name"]})
    return output
