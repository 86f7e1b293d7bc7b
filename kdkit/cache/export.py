"""Exporting a cache for tools that do not know the format: decoded rows as npz or safetensors."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from kdkit.cache import CachedTeacher, open_cache
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.types import Array
from kdkit.errors import ConfigError, OutputExistsError
from kdkit.runtime import files

_CHUNK = 1024
_MAX_KEYS_BYTES = 1 << 30
_MAX_HEADER_BYTES = 100_000_000  # that the safetensors library reads
_ALIGNMENT = 8
_DTYPES = {"<f2": "F16", "<f4": "F32"}  # numpy's names -> those of safetensors
FORMATS = (".npz", ".safetensors")


def export_cache(
    path: str | Path, output: str | Path, *, view: int = 0, stream: str = LOGITS, overwrite: bool = False
) -> Path:
    """Writes one stream of one view, its keys [R], and with logits the names of the classes [C] if they are known.

    'keys' and 'class_names' are arrays of an npz, JSON lists in the metadata of safetensors.

    Logits are written as 'log_probabilities' float16 [R, C], multi-label ones as 'logits' float16 [R, C], features
    under their stream's name as float32 [R, ...].

    Args:
        path: the cache.
        output: a file that ends in .npz or .safetensors.
        view: number of the view.
        stream: "logits", or the features of this name.
        overwrite: whether a file at `output` is replaced.

    Raises:
        ConfigError: `output` ends in neither, or a key is too long for an array of keys.
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
    files.remove_leftovers(output.parent, output.name)
    with files.atomic_write(output) as temporary, open(temporary, "xb") as file:
        if output.suffix == ".npz":
            _write_npz(file, cache, _Rows(cache, view, stream))
        else:
            _write_safetensors(file, cache, _Rows(cache, view, stream))
    return output


class _Rows:
    """The decoded rows of a stream of a view, chunk by chunk; all of them never stand in memory.

    Attributes:
        name: the name that they are exported under.
        class_names: of their columns [C]; empty if not known.
        shape, dtype: of all rows.
    """

    def __init__(self, cache: CachedTeacher, view: int, stream: str) -> None:
        self._cache, self._view, self._stream = cache, view, stream
        is_logits = stream == LOGITS
        self.class_names = list(cache.class_names or ()) if is_logits and cache.names_classes else []
        self.name = "log_probabilities" if is_logits and not cache.is_multi_label else stream
        self._dtype = torch.float16 if is_logits else torch.float32
        first = self._decode(0, 0)
        self.shape, self.dtype = (cache.num_rows, *first.shape[1:]), first.dtype

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the rows, in order."""
        for first in range(0, self._cache.num_rows, _CHUNK):
            yield self._decode(first, min(first + _CHUNK, self._cache.num_rows)).tobytes()

    def _decode(self, start: int, stop: int) -> Array:
        encoded = self._cache.read_encoded(np.arange(start, stop), self._view, self._stream)
        rows: Array = self._cache.codecs[self._stream].decode(encoded).to(self._dtype).numpy()
        return rows


def _write_npz(file: IO[bytes], cache: CachedTeacher, rows: _Rows) -> None:
    """The archive that np.savez would write: members NAME.npy, stored."""
    keys, names = cache.keys(), rows.class_names
    width = max(map(len, keys), default=1)
    texts = np.dtype(f"<U{max(1, width)}")
    if len(keys) * texts.itemsize > _MAX_KEYS_BYTES:
        raise ConfigError(
            f"the {len(keys)} keys would take {len(keys) * texts.itemsize:,} bytes as an array, as the longest has "
            f"{width:,} characters; expected at most {_MAX_KEYS_BYTES:,}: export to .safetensors"
        )
    pieces = (np.array(keys[first : first + _CHUNK], texts).tobytes() for first in range(0, len(keys), _CHUNK))
    members: list[tuple[str, np.dtype[Any], tuple[int, ...], Iterable[bytes]]] = [
        (rows.name, rows.dtype, rows.shape, rows.chunks()),
        ("keys", texts, (len(keys),), pieces),
    ]
    if names:
        columns = np.array(names)
        members.append(("class_names", columns.dtype, columns.shape, [columns.tobytes()]))
    with zipfile.ZipFile(file, "w") as archive:
        for name, dtype, shape, content in members:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                member.writelines(content)


def _write_safetensors(file: IO[bytes], cache: CachedTeacher, rows: _Rows) -> None:
    """The format of safetensors: the length of the header, the header as JSON, the bytes of the only tensor."""
    num_bytes = math.prod(rows.shape) * rows.dtype.itemsize
    tensor = {"dtype": _DTYPES[rows.dtype.str], "shape": rows.shape, "data_offsets": [0, num_bytes]}
    texts = {"keys": cache.keys(), **({"class_names": rows.class_names} if rows.class_names else {})}
    described = {"teacher": cache.metadata.teacher["name"]}
    described |= {name: json.dumps(listed, ensure_ascii=False) for name, listed in texts.items()}
    header = json.dumps({"__metadata__": described, rows.name: tensor}, ensure_ascii=False).encode()
    if len(header) > _MAX_HEADER_BYTES:
        raise ConfigError(
            f"the {len(cache.keys())} keys would take {len(header):,} bytes in the header of a .safetensors file, "
            f"expected at most {_MAX_HEADER_BYTES:,}: export to .npz"
        )
    header += b" " * (-len(header) % _ALIGNMENT)
    file.write(len(header).to_bytes(8, "little") + header)
    file.writelines(rows.chunks())
