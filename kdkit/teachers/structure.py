"""The structure of a model: properties that its weights do not determine, such as pooling, strides, activations."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_OF_THE_RUN = {"training", "fused_attn", "grad_checkpointing"}  # they change speed and memory, but no output
_WEIGHTS_SHOWN = (nn.ParameterList, nn.ParameterDict)  # their text shows device and dtype, where others show settings


def structure_sha256(model: nn.Module) -> str:
    """Returns the SHA-256 of the tree of modules.

    It covers names, classes, the printed arguments and plain settings of each module, and the bytes of buffers that the
    state dict leaves out. Device, address and compilation have no part in it.
    """
    model = unwrap_model(model)
    digest = hashlib.sha256()
    for line in _lines(model):
        digest.update(line.encode("utf-8", "surrogateescape") + b"\0")
    saved = set(model.state_dict())
    for name, buffer in sorted(model.named_buffers()):
        if name not in saved:
            digest.update(f"{name}|{buffer.dtype}|{list(buffer.shape)}|".encode())
            digest.update(tensor_bytes(buffer))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Returns a tensor's bytes, row by row."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _lines(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        printed = "" if isinstance(module, _WEIGHTS_SHOWN) else _ADDRESS.sub("", module.extra_repr())
        yield f"{name}: {type(module).__name__}({printed}) {_settings(module)}"


def _settings(module: nn.Module) -> dict[str, Any]:
    """Plain public attributes, such as a count of heads, which many modules do not print."""
    found = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    kept = {name: _plain(value) for name, value in sorted(found.items()) if name not in _OF_THE_RUN}
    return {name: value for name, value in kept.items() if value is not None}


def _plain(value: Any) -> str | None:
    """Text of a value that is equal in every process; None if there is no such text."""
    if isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        parts = [_plain(part) for part in value]
        return None if None in parts else repr(parts)
    return value.__qualname__ if isinstance(value, FunctionType) else None
