"""A GPU that computes nothing: torch's fake tensors with the device cuda, on a machine without one.

Shapes, dtypes and devices are those of a real run, so that a tensor on the wrong device fails, and so does whatever
would let the host wait for the GPU. Values do not exist. Streams and events are recorded by name. What is not covered:
kernels that a GPU lacks, memory, speed, and orders in time that streams do not show.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)


@dataclass
class FakeGPU:
    """The record of what a run requested from the GPU."""

    streams: list[FakeStream] = field(default_factory=list)
    """Every stream that was made, in order."""
    log: list[str] = field(default_factory=list)
    """What streams waited for, recorded and kept, in order."""


@dataclass(eq=False)
class FakeStream:
    """A stream by its name."""

    gpu: FakeGPU
    name: str
    priority: int = 0
    device: torch.device = CUDA

    def wait_stream(self, other: FakeStream) -> None:
        self.gpu.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: str) -> None:
        self.gpu.log.append(f"{self.name} waits for {event}")

    def record_event(self) -> str:
        self.gpu.log.append(f"{self.name} records")
        return f"{self.name}'s event"

    def synchronize(self) -> None:
        self.gpu.log.append(f"the host waits for {self.name}")


@contextlib.contextmanager
def fake_gpu(patch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    """Within the context, tensors are fake, and those on cuda are as on a GPU."""
    gpu = FakeGPU()
    main = FakeStream(gpu, "main")

    def make_stream(device: object = None, priority: int = 0) -> FakeStream:
        gpu.streams.append(FakeStream(gpu, f"stream {len(gpu.streams)}", priority))
        return gpu.streams[-1]

    patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    patch.setattr(torch.cuda, "current_stream", lambda device=None: main)
    patch.setattr(torch.cuda, "Stream", make_stream)
    patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    patch.setattr(Tensor, "record_stream", lambda self, stream: gpu.log.append(f"memory kept for {stream.name}"))
    patch.setattr(Tensor, "pin_memory", lambda self, device=None: self)
    patch.setattr(Tensor, "backward", lambda self: backward(self))
    patch.setattr(Tensor, "numpy", _to_numpy)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield gpu


class WaitingError(RuntimeError):
    """The host would wait for the GPU."""


class NoWaiting(TorchDispatchMode):
    """Within it, what would let the host wait for the GPU raises: a copy to the host, or one without `non_blocking`.

    Fake tensors refuse by themselves what reads a value or has a shape that depends on one: item, nonzero, masks.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            between = {_device(source), _device(found)}
            if between == {"cpu", "cuda"} and not (kwargs or {}).get("non_blocking") and True not in args[2:]:
                raise WaitingError(f"{func} from {_device(source)} to {_device(found)}, {list(found.shape)}")
        return found


class NoDouble(TorchDispatchMode):
    """Within it, a tensor in float64 on a kind of device raises, as MPS does.

    Args:
        kind: the kind of device.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.dtype == torch.float64 and found.device.type == self._kind:
            raise TypeError(f"{func}: {self._kind} has no float64")
        return found


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at the same time, of those that are made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self.factored: list[torch.Size] = []
        """Shapes of the matrices that were factored, one per chunk of an encode."""
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.linalg_cholesky_ex.default:
            self.factored.append(args[0].shape)
        for tensor in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def _to_numpy(tensor: Tensor, plain: Any = Tensor.numpy) -> Any:
    """Of a tensor that is not fake, such as the rows of a batch; a fake one has no values."""
    if isinstance(tensor, FakeTensor):
        raise WaitingError("a tensor is read as an array")
    with unset_fake_temporarily():
        return plain(tensor)


def backward(loss: Tensor) -> None:
    """The backward pass of fake tensors, node by node: torch's own engine wants a real GPU."""
    assert loss.grad_fn is not None
    order: list[Any] = []
    _visit(loss.grad_fn, set(), order)
    waiting: dict[Any, list[Any]] = {loss.grad_fn: [torch.ones_like(loss)]}
    for node in reversed(order):
        gradients = waiting.pop(node, None)
        if gradients is None:
            continue
        if hasattr(node, "variable"):
            leaf, (gradient,) = node.variable, gradients
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
            continue
        with torch.no_grad():
            found = node.apply(*gradients) if hasattr(node, "apply") else node(*gradients)
        found = found if isinstance(found, Sequence) else (found,)
        for gradient, (following, place) in zip(found, node.next_functions, strict=False):
            if following is None or gradient is None:
                continue
            expected = following._input_metadata[place]
            assert gradient.device == expected.device, f"{node.name()}: {gradient.device}, {expected.device} expected"
            gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
            sums = waiting.setdefault(following, [None] * len(following._input_metadata))
            sums[place] = gradient if sums[place] is None else sums[place] + gradient


def _visit(node: Any, seen: set[Any], order: list[Any]) -> None:
    """The nodes of a graph, each after all that it leads to."""
    stack = [(node, False)]
    while stack:
        here, is_done = stack.pop()
        if is_done:
            order.append(here)
        elif here not in seen:
            seen.add(here)
            stack.append((here, True))
            stack += [(following, False) for following, _ in here.next_functions if following is not None]


def _device(value: Any) -> str:
    return value.device.type if isinstance(value, (Tensor, FakeTensor)) else "none"
