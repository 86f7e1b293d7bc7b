"""A module that always has its true device and dtype, whatever converts it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdkit.errors import ConfigError, first_line


class PlacedModule(nn.Module):
    """A module with a `device` and a `dtype` that follow every conversion of itself or of a parent.

    Args:
        device: a torch.device, a name such as "meta", or the index of an accelerator; the CPU by default.
        dtype: a floating dtype; torch's default dtype by default.

    Raises:
        ConfigError: this machine has no such device, or the dtype is not a floating dtype.
    """

    def __init__(self, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        # An empty buffer takes part in every conversion. It is not persistent, because it is not state.
        self.register_buffer("_anchor", _empty("cpu" if device is None else device, dtype), persistent=False)

    _anchor: Tensor

    @property
    def device(self) -> torch.device:
        """The device of the module, whatever moved it there; setting it moves the module."""
        return self._anchor.device

    @device.setter
    def device(self, device: torch.device | str | int) -> None:
        self.to(device=_empty(device, self.dtype).device)

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the module, whatever converted it; setting it converts the module."""
        return self._anchor.dtype

    @dtype.setter
    def dtype(self, dtype: torch.dtype) -> None:
        self.to(dtype=_empty("cpu", dtype).dtype)


def _empty(device: torch.device | str | int, dtype: torch.dtype | None) -> Tensor:
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):  # type: ignore[redundant-expr]
        raise ConfigError(f"dtype is a floating dtype such as torch.float32, got {dtype!r}")
    try:
        return torch.empty(0, device=device, dtype=dtype)
    except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: torch was built without CUDA
        reason = first_line(error)
        raise ConfigError(f"the device {device!r} cannot be used here ({reason}): try 'cpu'") from error
