"""The hardware that `auto` stands for: a device, and worker processes for loading images."""

from __future__ import annotations

import os
from typing import Literal

from kdkit.errors import ConfigError

AUTO: Literal["auto"] = "auto"
"""As a device or a number of workers: chosen from the hardware of this machine."""
MAX_WORKERS = 16
"""Maximum number of worker processes per rank: more rarely load faster, and each takes memory."""


def choose_device(name: str = AUTO) -> str:
    """The device called `name`; for auto, CUDA where it is available, else MPS, else the CPU."""
    if name != AUTO:
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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
    return max(1, min(cpus // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))), MAX_WORKERS))
