"""Named arrays of a .npy, .npz or .safetensors file, mapped if they are not compressed; nothing is unpickled."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from kdkit.errors import DatasetError

Array = np.ndarray[Any, Any]
ONLY = ""
"""Name of the only array of a .npy file."""
_MAX_HEADER_BYTES = 16 << 20
_SAFETENSORS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "|u1"}
_SAFETENSORS |= {"I8": "|i1", "BOOL": "|b1"}


def open_arrays(path: str | Path) -> dict[str, Array]:
    """Name -> array of a file of arrays; of a .safetensors file "keys" is the JSON list of texts in its metadata.

    Raises:
        DatasetError: there is no such file, it is damaged, or holds Python objects.
    """
    path = Path(path)
    readers = {".npy": _open_npy, ".npz": _open_npz, ".safetensors": _open_safetensors}
    if path.suffix not in readers:
        raise DatasetError(f"{str(path)!r} is not a file of arrays: expected {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, MemoryError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"the arrays of {str(path)!r} cannot be read: {error}") from error


def _open_npy(path: Path) -> dict[str, Array]:
    return {ONLY: np.load(path, mmap_mode="r", allow_pickle=False)}


def _open_npz(path: Path) -> dict[str, Array]:
    arrays = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type == zipfile.ZIP_STORED:
                arrays[name] = _map_member(path, file, member)
            else:
                with archive.open(member) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def _map_member(path: Path, file: IO[bytes], member: zipfile.ZipInfo) -> Array:
    """An uncompressed member, mapped: its local header is 30 bytes, its name and its extra field."""
    file.seek(member.header_offset + 26)
    lengths = [int.from_bytes(file.read(2), "little") for _ in range(2)]
    file.seek(member.header_offset + 30 + sum(lengths))
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    return _mapped(path, file.tell(), dtype, shape, "F" if is_fortran else "C")


def _open_safetensors(path: Path) -> dict[str, Array]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise DatasetError(f"{str(path)!r} claims a header of {length:,} bytes, expected {_MAX_HEADER_BYTES:,}")
        header: Mapping[str, Any] = json.loads(file.read(length))
    arrays = {
        name: _mapped(
            path,
            8 + length + int(tensor["data_offsets"][0]),
            np.dtype(_SAFETENSORS[tensor["dtype"]]),
            tuple(tensor["shape"]),
        )
        for name, tensor in header.items()
        if name != "__metadata__"
    }
    keys = header.get("__metadata__", {}).get("keys")
    return arrays if keys is None else {**arrays, "keys": np.array(json.loads(keys), dtype=str)}


def _mapped(path: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any = "C") -> Array:
    if dtype.hasobject:
        raise DatasetError(f"{str(path)!r} holds Python objects, which are not read: expected plain numbers")
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, order)
