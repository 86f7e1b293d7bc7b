"""Configuration of a trained student, shared by evaluation and export."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """A trained student."""

    student: str
    """Folder that `kdkit distill` or `kdkit export` wrote, or the name of a model of timm or torchvision."""

    arch: str | None = None
    """Function that makes the student, package.module:function, if its run names one: code runs only if you name it."""

    checkpoint: str | None = None
    """Weights file; by default the folder's best checkpoint, else its last, or timm's pretrained weights."""

    ema: bool = False
    """Use the EMA weights of the checkpoint."""
