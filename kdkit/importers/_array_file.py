"""Named arrays of a .npy, .npz or .safetensors file, mapped if they are not compressed; nothing is unpickled."""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np

from kdkit.errors import DatasetError, first_line
from kdkit.runtime.documents import parse_json
from kdkit.runtime.reading import open_regular, shown_path

Array = np.ndarray[Any, Any]
ONLY = ""
"""Name of the only array of a .npy file."""
_MAX_HEADER_BYTES = 100_000_000  # as the safetensors library
_MAX_UNPACKED_BYTES = 1 << 30
_MAX_SIDES = 8
_DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, MemoryError, RuntimeError),
    *(EOFError, SyntaxError, zipfile.BadZipFile, zlib.error),
)
_SAFETENSORS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "|u1"}
_SAFETENSORS |= {"I8": "|i1", "BOOL": "|b1"}


def open_arrays(path: str | Path) -> dict[str, Array]:
    """Name -> array of a file of arrays; of a .safetensors file "keys" and "class_names" are JSON lists of texts in its
    metadata.

    Raises:
        DatasetError: there is no such file, it is damaged, or holds Python objects.
    """
    path = Path(path)
    readers = {".npy": _open_npy, ".npz": _open_npz, ".safetensors": _open_safetensors}
    if path.suffix not in readers:
        raise DatasetError(f"{str(path)!r} is not a file of arrays: expected {', '.join(readers)}")
    try:
        with open_regular(path, error=DatasetError) as file:
            return readers[path.suffix](file, shown_path(path))
    except _DAMAGED as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"the arrays of {str(path)!r} cannot be read: {first_line(error)[:200]}") from error


def _open_npy(file: BinaryIO, origin: str) -> dict[str, Array]:
    return {ONLY: _mapped_npy(file, 0, origin)}


def _open_npz(file: BinaryIO, origin: str) -> dict[str, Array]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type == zipfile.ZIP_STORED:
                arrays[name] = _map_member(file, member, origin)
                continue
            if member.file_size > _MAX_UNPACKED_BYTES:
                raise DatasetError(
                    f"{origin}: {name[:80]!r} unpacks to {member.file_size:,} bytes, expected at most "
                    f"{_MAX_UNPACKED_BYTES:,}: save it with numpy.savez, which does not compress and is mapped"
                )
            with archive.open(member) as stream:
                arrays[name] = np.lib.format.read_array(io.BytesIO(stream.read(member.file_size)), allow_pickle=False)
    return arrays


def _map_member(file: BinaryIO, member: zipfile.ZipInfo, origin: str) -> Array:
    """An uncompressed member, mapped: its local header is 30 bytes, its name and its extra field."""
    file.seek(member.header_offset + 26)
    lengths = [int.from_bytes(file.read(2), "little") for _ in range(2)]
    return _mapped_npy(file, member.header_offset + 30 + sum(lengths), origin)


def _mapped_npy(file: BinaryIO, start: int, origin: str) -> Array:
    """An array in numpy's format that begins at `start`, mapped."""
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    return _mapped(file, file.tell(), dtype, shape, origin, "F" if is_fortran else "C")


def _open_safetensors(file: BinaryIO, origin: str) -> dict[str, Array]:
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise DatasetError(f"{origin} claims a header of {length:,} bytes, expected at most {_MAX_HEADER_BYTES:,}")
    header = parse_json(file.read(length), f"{origin}: its header", error=DatasetError)
    if not isinstance(header, dict):
        raise DatasetError(f"{origin}: its header is a {type(header).__name__}, expected an object of tensors")
    described = header.pop("__metadata__", {})
    arrays = {name: _tensor(file, 8 + length, tensor, f"{origin}: {name[:80]!r}") for name, tensor in header.items()}
    for name in ("keys", "class_names"):
        if isinstance(described, dict) and described.get(name) is not None:
            arrays[name] = _texts(described[name], f"{origin}: its {name}")
    return arrays


def _texts(described: Any, origin: str) -> Array:
    """A list of texts in JSON, as an array."""
    texts = parse_json(described, origin, error=DatasetError) if isinstance(described, str) else described
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DatasetError(f"{origin} are not a list of texts")
    if len(texts) * max(map(len, texts), default=0) > _MAX_UNPACKED_BYTES:
        raise DatasetError(f"{origin} have up to {max(map(len, texts)):,} characters, too many for an array")
    return np.array(texts, dtype=str)


def _tensor(file: BinaryIO, start: int, described: Any, origin: str) -> Array:
    """One tensor of a safetensors file, whose tensors begin at `start`."""
    fields = described if isinstance(described, dict) else {}
    dtype, shape, offsets = (fields.get(name) for name in ("dtype", "shape", "data_offsets"))
    if dtype not in _SAFETENSORS or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise DatasetError(
            f"{origin} is described as {described!r:.120}, expected a dtype of {', '.join(_SAFETENSORS)}, a shape and "
            "two data_offsets"
        )
    kind = np.dtype(_SAFETENSORS[dtype])
    if offsets[1] - offsets[0] != math.prod(shape) * kind.itemsize:
        raise DatasetError(f"{origin} has data_offsets {offsets}, which do not fit {dtype} {shape}")
    return _mapped(file, start + offsets[0], kind, tuple(shape), origin)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    is_short = isinstance(value, list) and len(value) <= _MAX_SIDES
    return is_short and all(type(side) is int and side >= 0 for side in value)


def _mapped(
    file: BinaryIO, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], origin: str, order: Any = "C"
) -> Array:
    if dtype.hasobject:
        raise DatasetError(f"{origin} holds Python objects, which are not read: expected plain numbers")
    num_bytes, size = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size
    if min(shape, default=0) < 0 or offset + num_bytes > size:
        raise DatasetError(f"{origin} is cut short: an array of {num_bytes:,} bytes ends beyond its {size:,}")
    return np.memmap(file, dtype, "r", offset, shape, order) if num_bytes else np.empty(shape, dtype)
