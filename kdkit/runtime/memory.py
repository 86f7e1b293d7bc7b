"""Out of memory: how each backend reports it, and work that is split until it fits."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from kdkit.errors import DeviceMemoryError, first_line

_FORMS = (
    "out of memory",  # CUDA, HIP, MPS and cuDNN, also where an older torch raises a plain RuntimeError
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # cuBLAS makes its workspace when it is first used
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "can't allocate memory",  # torch's allocator on the CPU
    "not enough memory: you tried to allocate",
    "DefaultCPUAllocator",
)

_logger = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was too little, on any device, also in a library that torch calls."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(form in str(error) for form in _FORMS)


def release_memory(device: torch.device) -> None:
    """Returns the memory that torch holds in reserve to the device, for whoever needs it in another shape."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def run_in_parts(call: Callable[[Tensor], Tensor], rows: Tensor, what: str) -> Tensor:
    """Returns `call(rows)`; where memory is too little, of halves, their halves and so on, joined.

    Args:
        call: gives for each row a result that depends on that row alone: [R, ...] -> [R, ...].
        rows: [R, ...].
        what: the work, for messages, e.g. "encoding the stream 'logits'".

    Raises:
        DeviceMemoryError: there is too little memory for a single row.
    """
    try:
        return call(rows)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(rows) <= 1:
            raise DeviceMemoryError(
                f"{what} has not enough memory on {rows.device} even for one row ({first_line(error)}): lower the "
                "batch size, or free memory"
            ) from error
        num_rows, device = len(rows), rows.device
    # Out of the handler: the error's references to tensors are gone.
    release_memory(device)
    half = -(-num_rows // 2)
    _logger.warning("%s: not enough memory for %d rows at once, trying %d", what, num_rows, half)
    return torch.cat([run_in_parts(call, rows[:half], what), run_in_parts(call, rows[half:], what)])
