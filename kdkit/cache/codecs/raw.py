"""Numbers as their little-endian bytes, and back. Dimensions: B batch, N numbers of a row."""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(values: Tensor) -> Tensor:
    """[B, N] of any dtype -> its bytes, uint8 [B, N * itemsize]."""
    return values.detach().contiguous().view(torch.uint8)


def from_bytes(payload: Tensor, dtype: torch.dtype) -> Tensor:
    """Uint8 [B, N * itemsize] -> [B, N] of `dtype`."""
    payload = payload.contiguous()
    misaligned = payload.storage_offset() % dtype.itemsize or payload.stride(0) % dtype.itemsize
    if misaligned:  # a slice of one row, or of none, counts as contiguous wherever it starts
        payload = payload.clone(memory_format=torch.contiguous_format)
    return payload.flatten().view(dtype).view(len(payload), payload.shape[1] // dtype.itemsize)
