"""Encode a teacher's outputs as the rows of a shard. Dimensions: B batch, R rows of a shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from kdkit.cache.codecs import RowCodec
from kdkit.cache.fidelity import FeatureSums, measure_rows
from kdkit.cache.format.constants import BLOCK_ROWS
from kdkit.cache.format.keys import list_keys
from kdkit.cache.types import Array
from kdkit.errors import NonFiniteOutputError
from kdkit.runtime.memory import run_in_parts


def as_tensor(values: Tensor | Array) -> Tensor:
    """The values as a tensor; read-only arrays are copied, because torch needs writable memory."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.require(values, requirements=["C", "W"]))


def check_encodable(
    values: Tensor, codec: RowCodec, stream: str, *, teacher: str, view: int, keys: Callable[[], Sequence[str]]
) -> None:
    """Check that the codec can represent all values of a stream.

    Args:
        values: outputs of one stream, [B, ...].
        codec: the stream's codec.
        stream: the stream's name, for the error.
        teacher: the teacher's name, for the error.
        view: number of the view, for the error.
        keys: gives the B samples' keys; called only for the error.

    Raises:
        NonFiniteOutputError: some values are NaN, infinite, or beyond the codec's range; names samples.
    """
    held = codec.is_encodable(values).cpu()
    if held.all():
        return
    bad = [key for key, fine in zip(keys(), held.tolist(), strict=True) if not fine]
    raise NonFiniteOutputError(
        f"the teacher {teacher!r} has NaN, infinity or values that codec {codec.name!r} cannot hold in {stream} of "
        f"{list_keys(bad)} in view {view}: check these samples, or use codec float32"
    )


def encode_in_parts(codec: RowCodec, values: Tensor) -> Tensor:
    """The encoded rows of outputs [B, ...], uint8 [B, row_bytes]; in parts where memory is too little.

    Raises:
        DeviceMemoryError: there is too little memory for a single row.
    """
    return run_in_parts(codec.encode, values, f"encoding with {codec.name!r}")


def measure_in_parts(codec: RowCodec, values: Tensor, encoded: Tensor, sums: FeatureSums | None = None) -> Array:
    """The measures of `measure_rows`, float32 [B, M]; in parts where memory is too little.

    Raises:
        DeviceMemoryError: there is too little memory for a single row.
    """

    def measure(places: Tensor) -> Tensor:
        return torch.from_numpy(measure_rows(codec, values[places], encoded[places], sums))

    places = torch.arange(len(values), device=values.device)
    return run_in_parts(measure, places, f"measuring {codec.name!r}").numpy()


@torch.no_grad()
def encode_rows(codec: RowCodec, values: Tensor, measured: range | None) -> tuple[Array, Array | None]:
    """Encodes the rows of a shard, a block at a time, which bounds the memory.

    Args:
        codec: fitted.
        values: outputs, [R, ...].
        measured: indices of rows used for the fidelity measurement; None measures none.

    Returns:
        Encoded rows, uint8 [R, row_bytes], and their measures, float32 [len(measured), M], or None.
    """
    encoded = torch.empty((len(values), codec.row_bytes), dtype=torch.uint8)
    for start in range(0, len(values), BLOCK_ROWS):
        encoded[start : start + BLOCK_ROWS] = encode_in_parts(codec, values[start : start + BLOCK_ROWS]).cpu()
    if measured is None:
        return encoded.numpy(), None
    places = np.asarray(measured, dtype=np.int64)
    return encoded.numpy(), measure_rows(codec, values[places].cpu(), encoded[places])
