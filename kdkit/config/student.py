"""Which student, with which weights: shared by evaluation and export."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Which student, with which weights."""

    student: str
    """Folder that `kdkit distill` or `kdkit export` left, or a timm name."""

    checkpoint: str | None = None
    """Weights file; by default the folder's best, else its last, or timm's pretrained weights."""

    ema: bool = False
    """Whether the checkpoint's EMA weights are taken; an error where it has none."""
