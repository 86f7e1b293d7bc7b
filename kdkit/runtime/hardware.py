"""The hardware of a run: its device, what `auto` stands for, and worker processes for loading images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from kdkit.errors import ConfigError, first_line

if TYPE_CHECKING:
    import torch  # loaded where it is used, because configurations are read without it

AUTO: Literal["auto"] = "auto"
"""As a device or a number of workers: chosen from the hardware of this machine."""
MAX_WORKERS = 16
"""Maximum number of worker processes per rank: more rarely load faster, and each takes memory."""
_LOCAL_RANK, _LOCAL_WORLD_SIZE = "LOCAL_RANK", "LOCAL_WORLD_SIZE"  # what torchrun sets


def is_first_process() -> bool:
    """Whether this is rank 0 of the processes that torchrun started, also before and after their process group."""
    return os.environ.get("RANK", "0") == "0"


def choose_device(name: str = AUTO) -> str:
    """The device called `name`; for auto, CUDA where it is available, else MPS, else the CPU."""
    if name != AUTO:
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def use_device(name: str = AUTO) -> torch.device:
    """Returns the device of this process and makes it the current one; cuda is the GPU of its local rank.

    Args:
        name: auto, cpu, mps, cuda, or one GPU, e.g. cuda:1.

    Raises:
        ConfigError: there is no such device here, it cannot be used, or several local ranks would share one GPU.
    """
    import torch

    chosen, ranks = choose_device(name), int(os.environ.get(_LOCAL_WORLD_SIZE, "1"))
    kind, _, index = chosen.partition(":")
    if kind == "cuda" and index and ranks > 1:
        raise ConfigError(
            f"the device {name!r} is one GPU, and {ranks} local ranks need one each: give cuda, of which each rank "
            "takes the GPU of its number"
        )
    try:
        if kind == "mps" and not torch.backends.mps.is_available():  # torch's own error names every backend
            raise RuntimeError("this torch finds no GPU of Apple")
        if kind != "cuda":
            device = torch.device(chosen)
        else:
            torch.cuda.init()  # before GPUs are counted: it says why there are none
            number = torch.device(chosen).index if index else int(os.environ.get(_LOCAL_RANK, "0"))
            if number >= (count := torch.cuda.device_count()):
                raise RuntimeError(f"there is no GPU {number}, this process sees {count}, counted from 0")
            device = torch.device("cuda", number)
            torch.cuda.set_device(device)  # libraries and other threads put their memory on the current GPU
        torch.empty(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"the device {name!r} cannot be used here ({first_line(error)}): try cpu") from error
    return device


def describe_device(device: torch.device) -> str:
    """The device, of a GPU with its model, e.g. "cuda:0 (NVIDIA H200)"."""
    if device.type != "cuda":
        return str(device)
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


@contextmanager
def fast_kernels(device: torch.device) -> Iterator[None]:
    """Within the context, CUDA takes the convolutions that it measures as fastest, and TF32 for float32 products.

    For a student. A build leaves both as torch has them: its rows must be the same when it is resumed or extended, and
    its codecs need whole products.
    """
    if device.type != "cuda":
        yield
        return
    import torch

    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.set_float32_matmul_precision(before[1])


@contextmanager
def whole_products(device: torch.device) -> Iterator[None]:
    """Within the context, float32 products on CUDA keep all bits, which TF32 would round to ten."""
    import torch

    before = torch.get_float32_matmul_precision()
    if device.type != "cuda" or before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose_workers(number: int | Literal["auto"] = AUTO) -> int:
    """`number` of workers; for auto, this rank's share of the CPUs that the process may use, from 1 to MAX_WORKERS.

    Raises:
        ConfigError: it is neither auto nor a number of 0 or more.
    """
    if isinstance(number, int) and number >= 0:
        return number
    if number != AUTO:
        raise ConfigError(f"num_workers must be auto, or 0 or more, got {number!r}")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus // max(1, int(os.environ.get(_LOCAL_WORLD_SIZE, "1"))), MAX_WORKERS))
