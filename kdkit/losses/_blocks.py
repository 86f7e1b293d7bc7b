"""Blocks of a matrix that fit a CPU's cache, so that many passes over a block cost little.

Dimensions: B batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ELEMENTS = 2**17  # half a dozen tensors of this many float32 stay within 4 MiB


def blocks(matrix: Tensor, dim: int) -> list[slice]:
    """Returns slices of `matrix` [B, C] along `dim` that cover it; a single one where a CPU cache plays no role.

    An accelerator gains nothing from them, and the compiler fuses the passes itself.
    """
    length, across = matrix.shape[dim], matrix.shape[1 - dim]
    if matrix.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(0, length)]
    step = max(1, _ELEMENTS // across)
    return [slice(start, start + step) for start in range(0, length, step)]
