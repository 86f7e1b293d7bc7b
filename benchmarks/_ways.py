"""Storage formats for rows of bytes, and how a batch is gathered from them, each as its users write it.

A way is made from rows uint8 [R, bytes] in a folder, and then gathers rows int64 [B] in any order, repeats allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

Rows = np.ndarray
MEMMAP = "rows.npy"


@dataclass(frozen=True)
class Way:
    """One storage format.

    Attributes:
        gather: rows int64 [B] -> uint8 [B, bytes], an array or, as losses take it, a tensor.
        num_bytes: what the file system gave away for it; 0 in memory.
        num_rows: R.
        close: lets go of the file that stays open.
    """

    gather: Callable[[Rows], Rows | torch.Tensor]
    num_bytes: int
    num_rows: int
    close: Callable[[], None] = lambda: None


def disk_bytes(path: Path) -> int:
    """Bytes that the files at `path` take on the disk, including partially used blocks."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)


def numpy_in_memory(rows: Rows, folder: Path) -> Way:
    return Way(lambda chosen: rows[chosen], 0, len(rows))


def numpy_memmap(rows: Rows, folder: Path) -> Way:
    path = folder / MEMMAP
    if not path.exists():
        np.save(path, rows)
    mapped = np.load(path, mmap_mode="r")
    return Way(lambda chosen: mapped[chosen], disk_bytes(path), len(rows))


def h5py_contiguous(rows: Rows, folder: Path) -> Way:
    return _h5py(rows, folder / "contiguous.h5")


def h5py_chunked(rows: Rows, folder: Path) -> Way:
    """In chunks of the size that h5py chooses."""
    return _h5py(rows, folder / "chunked.h5", chunks=True)


def _h5py(rows: Rows, path: Path, **options: bool) -> Way:
    with h5py.File(path, "w") as file:
        file.create_dataset("rows", data=rows, **options)
    opened = h5py.File(path, "r")
    dataset = opened["rows"]

    def gather(chosen: Rows) -> Rows:
        unique, back = np.unique(chosen, return_inverse=True)  # h5py needs increasing rows without repeats
        return dataset[unique][back]

    return Way(gather, disk_bytes(path), len(rows), opened.close)


def pt_files(rows: Rows, folder: Path) -> Way:
    """One .pt file per image, in folders of 1,000, as torch.save leaves it."""
    for row, values in enumerate(rows):
        path = folder / "pt" / f"{row // 1000:04d}" / f"{row:08d}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.from_numpy(values.copy()), path)

    def gather(chosen: Rows) -> Rows:
        files = (folder / "pt" / f"{row // 1000:04d}" / f"{row:08d}.pt" for row in chosen)
        return torch.stack([torch.load(file, weights_only=True) for file in files]).numpy()

    return Way(gather, disk_bytes(folder / "pt"), len(rows))


def seek_and_read(rows: Rows, folder: Path) -> Way:
    """Records of one size in a file, found by key through a dictionary, as in TinyViT.

    After microsoft/Cream, TinyViT/data/augmentation/manager.py, read a row at a time in __getitem__.
    """
    keys = [f"n{row % 1000:08d}/image_{row:08d}" for row in range(len(rows))]
    path = folder / "rank0-values.bin"
    path.write_bytes(rows.tobytes())
    place = {key: row for row, key in enumerate(keys)}
    size = rows.shape[1]
    file = open(path, "rb")  # noqa: SIM115  # stays open, as in TinyViT

    def read(key: str) -> bytes:
        file.seek(place[key] * size)
        return file.read(size)

    def gather(chosen: Rows) -> Rows:
        return np.stack([np.frombuffer(read(keys[row]), dtype=np.uint8) for row in chosen])

    return Way(gather, disk_bytes(path), len(rows), file.close)
