"""Versions and devices of this installation, for bug reports and before a long run."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import version

import h5py
import torch

from kdkit._version import __version__

_REQUIRED = ("torch", "torchvision", "timm", "pillow", "h5py", "einops", "numpy", "safetensors")
_OPTIONAL = {
    "sklearn": "kdkit demo",
    "matplotlib": "the pictures of kdkit demo and cache info",
    "tensorboard": "TensorBoard logs",
}


def doctor() -> dict[str, str]:
    """Returns name -> finding: versions, CPU cores, CUDA devices, and optional packages that are missing."""
    findings = {"kdkit": __version__, "python": platform.python_version(), "system": platform.platform()}
    findings |= {name: version(name) for name in _REQUIRED}
    findings["hdf5"] = h5py.version.hdf5_version
    findings["cpu cores"] = str(os.cpu_count())
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    findings["cuda devices"] = ", ".join(cuda) or "none"
    for package, use in _OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            findings[package] = f"missing; needed for {use}"
    return findings
