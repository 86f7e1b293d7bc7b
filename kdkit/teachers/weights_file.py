"""Reads a weights file by what its bytes are, whatever it is called, and runs no code of it."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from kdkit.errors import CheckpointError, first_line
from kdkit.runtime.reading import open_regular

_HEAD_BYTES = 512
_EXPECTED = "expected safetensors, or a file that torch.load(weights_only=True) accepts"
_UNREADABLE = (
    pickle.UnpicklingError,
    SafetensorError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_OF_THE_SYSTEM = {"builtins", "__builtin__", "os", "posix", "nt", "sys", "subprocess", "shutil", "importlib", "runpy"}
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_ADVICE = re.compile(
    r"^.*WeightsUnpickler error: |\s*(In PyTorch 2|Re-running|Please |\(Could this|Check the).*", re.DOTALL
)
"""What surrounds the reason in torch's errors: the advice to load the file so that its code runs."""


def load_weights_file(path: Path) -> Any:
    """Returns the contents of a safetensors or torch file, on the CPU: tensors and plain values.

    Raises:
        CheckpointError: there is no such file, or it is something else, which the error names.
    """
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {str(path)!r}: expected a .safetensors or torch weights file")
    try:
        with open_regular(path, error=CheckpointError) as file:
            head, num_bytes = file.read(_HEAD_BYTES), path.stat().st_size
        if (found := _stranger(head, num_bytes, path)) is not None:
            raise CheckpointError(f"{str(path)!r} {found}")
        if _is_safetensors(head, num_bytes, path):
            return load_file(path)
        if not head.startswith((b"PK", b"\x80")):  # a zip archive or, from an old torch, a pickle
            raise CheckpointError(f"{str(path)!r} is no weights file, it begins with {head[:12]!r}: {_EXPECTED}")
        return _torch_load(path)
    except CheckpointError:
        raise
    except MemoryError as error:
        raise CheckpointError(f"{str(path)!r} is larger than the memory: {first_line(error)}") from error
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{str(path)!r} is not a weights file kdkit will read ({_reason(error)}): {_EXPECTED}"
        ) from error


def _stranger(head: bytes, num_bytes: int, path: Path) -> str | None:
    """What a file that holds no weights is, and what to do; None if it may hold weights."""
    start = head.lstrip().lower()
    for is_it, text in _STRANGERS:
        if is_it(start):
            return text
    if not head.startswith(b"PK"):
        return None
    if not zipfile.is_zipfile(path):
        return f"is cut off after {num_bytes:,} bytes: the download or the copy did not end, fetch it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        return f"is an archive of NumPy arrays: {_EXPECTED}"
    is_of_torch = any(name.endswith("data.pkl") for name in names)
    return None if is_of_torch else f"is an archive that torch.save did not write: unpack it first; {_EXPECTED}"


def _begins(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda start: start.startswith(marks)


_STRANGERS: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (lambda start: not start, "is empty: the download or the copy did not begin, fetch it again"),
    (_begins(b"\x89hdf"), "is an HDF5 file: a cache is given with --cache, and weights are safetensors or torch files"),
    (lambda start: start[257:262] == b"ustar", f"is a tar archive: unpack it first; {_EXPECTED}"),
    (_begins(b"\x1f\x8b", b"\xfd7zxz", b"bzh", b"7z\xbc\xaf"), f"is compressed: unpack it first; {_EXPECTED}"),
)
"""How a file begins, in lower case and without leading blanks -> what it is, and what to do."""


def _is_safetensors(head: bytes, num_bytes: int, path: Path) -> bool:
    """Whether a file is safetensors: its header has a length, or its name says so and torch did not write it."""
    length = int.from_bytes(head[:8], "little")
    is_named = path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80"))
    return is_named or (head[8:9] == b"{" and length <= num_bytes - 8)


def _torch_load(path: Path) -> Any:
    try:
        # The `args` of timm's training checkpoints; an open file, because torch judges a path by its suffix.
        with torch.serialization.safe_globals([argparse.Namespace]), open_regular(path) as file, catch_warnings():
            filterwarnings("ignore", "Detected pickle protocol")  # what it does not read is an error
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        if found is None:
            raise
        raise CheckpointError(_refused(path, found[1])) from error


def _reason(error: BaseException) -> str:
    """What torch or safetensors found, without torch's advice to load the file in a way that runs its code."""
    return first_line(ValueError(_ADVICE.sub("", str(error)).strip() or type(error).__name__))


def _refused(path: Path, name: str) -> str:
    """The message about a file that needs the Python object `name`, such as numpy._core.multiarray.scalar."""
    text = f"{str(path)!r} is not a weights file kdkit will read, because it could run code"
    if name.partition(".")[0] in _OF_THE_SYSTEM:
        return f"{text}: it calls {name}; do not load it with anything else either"
    kind = "values of NumPy" if name.startswith("numpy") else "a pickled Python object, such as a whole module"
    code = (
        f"import torch; x = torch.load({str(path)!r}, weights_only=False); "
        "x = x.get('state_dict', x.get('model', x)) if isinstance(x, dict) else x; "
        "torch.save(getattr(x, 'state_dict', lambda: x)(), 'weights.pth')"
    )
    return f'{text}: it holds {kind} ({name}). If you trust it, save its weights alone: python -c "{code}"'
