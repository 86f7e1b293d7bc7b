"""Exporting a cache for tools that do not know the format: decoded rows as npz or safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kdkit.cache import CachedTeacher, open_cache
from kdkit.cache.format.constants import LOGITS
from kdkit.errors import ConfigError, OutputExistsError
from kdkit.runtime import files

_CHUNK = 1024
FORMATS = (".npz", ".safetensors")


def export_cache(
    path: str | Path, output: str | Path, *, view: int = 0, stream: str = LOGITS, overwrite: bool = False
) -> Path:
    """Writes one stream of one view, and for npz 'keys' [R] as well.

    Logits are written as 'log_probabilities' float16 [R, C], multi-label ones as 'logits' float16 [R, C], features
    under their stream's name as float32 [R, ...].

    Args:
        path: the cache.
        output: a file that ends in .npz or .safetensors.
        view: number of the view.
        stream: "logits", or the features of this name.
        overwrite: whether a file at `output` is replaced.

    Raises:
        ConfigError: `output` ends in neither.
        CacheStreamError: the cache holds no such stream.
        OutputExistsError: there is a file at `output`.
        WriteError, DiskFullError: `output` cannot be written, or the disk is full.
    """
    output = Path(output)
    if output.suffix not in FORMATS:
        raise ConfigError(f"cannot export to {str(output)!r}: expected a name that ends in {' or '.join(FORMATS)}")
    if output.exists() and not overwrite:
        raise OutputExistsError(f"{str(output)!r} exists: pass --overwrite to replace it")
    cache = open_cache(path, streams=[stream])
    name = "log_probabilities" if stream == LOGITS and not cache.is_multi_label else stream
    rows = _decode(cache, view, stream)
    with files.atomic_write(output) as temporary:
        if output.suffix == ".npz":
            with open(temporary, "xb") as file:
                arrays: dict[str, Any] = {name: rows.numpy(), "keys": np.array(cache.keys())}
                np.savez(file, **arrays)
        else:
            try:
                save_file({name: rows}, temporary, {"teacher": cache.metadata.teacher["name"]})
            except SafetensorError as error:  # safetensors wraps every file-system error in it
                raise OSError(str(error)) from error
    return output


def _decode(cache: CachedTeacher, view: int, stream: str) -> Tensor:
    """All rows of a stream of a view."""
    codec, dtype = cache.codecs[stream], torch.float16 if stream == LOGITS else torch.float32
    chunks = [np.arange(first, min(first + _CHUNK, cache.num_rows)) for first in range(0, cache.num_rows, _CHUNK)]
    shape = codec.decode(cache.read_encoded(np.arange(0), view, stream)).shape[1:]
    rows = torch.empty(cache.num_rows, *shape, dtype=dtype)
    for wanted in chunks:
        rows[wanted[0] : wanted[-1] + 1] = codec.decode(cache.read_encoded(wanted, view, stream))
    return rows
