"""A loss on features as a module: the taps it compares, brought to one shape, and what it learns.

Dimensions: B batch, D width, H W height and width, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from kdkit.errors import ConfigError, ShapeError
from kdkit.tasks.term import LossTerm, bound_loss

Widths = Callable[[str], int]

_PROJECTED = ("hint_mse", "hint_cosine")


class Comparison(nn.Module):
    """One term on features.

    Tokens [B, N, D] and maps [B, D, H, W] are compared as maps, tokens in a square grid; so are tokens of two grids.
    What the losses then do with maps of two sizes is theirs to say.

    Args:
        term: with its taps named.
        student_width: tap of the student -> its width D.
        teacher_width: tap of the teacher -> its width D.
    """

    def __init__(self, term: LossTerm, student_width: Widths, teacher_width: Widths) -> None:
        super().__init__()
        self.term = term
        self.loss = bound_loss(term, **_width_options(term, student_width, teacher_width))

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """The loss [] of features by tap, unweighted."""
        pairs = [
            self._align(student[mine], teacher[theirs])
            for mine, theirs in zip(self.term.student_taps, self.term.teacher_taps, strict=True)
        ]
        with torch.autocast(pairs[0][0].device.type, enabled=False):
            if self.term.name in ("vitkd", "review"):
                return self.loss([mine for mine, _ in pairs], [theirs for _, theirs in pairs])
            return self.loss(*pairs[0])

    def _align(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        if self.term.name == "vitkd":
            return _as_tokens(mine, theirs), _as_tokens(theirs, theirs)
        one_kind = mine.ndim == theirs.ndim and (mine.ndim != 3 or mine.shape[1] == theirs.shape[1])
        if (one_kind and self.term.name != "review") or 2 in (mine.ndim, theirs.ndim):
            return mine, theirs
        return _as_map(mine), _as_map(theirs)


def _width_options(term: LossTerm, student_width: Widths, teacher_width: Widths) -> dict[str, Any]:
    """The options in which a loss is told the widths of its taps."""
    if not len(term.student_taps) == len(term.teacher_taps) >= 1:
        raise ConfigError(
            f"term {term.name!r} compares pairs of taps, got {list(term.student_taps)} of the student and "
            f"{list(term.teacher_taps)} of the teacher"
        )
    several = term.loss is None and term.name in ("vitkd", "review")
    if len(term.student_taps) > 1 and not several:
        raise ConfigError(f"term {term.name!r} compares one pair of taps, got {len(term.student_taps)}: one term each")
    if term.loss is not None or (term.name not in _PROJECTED and not several):
        return {}
    mine = [student_width(tap) for tap in term.student_taps]
    theirs = [teacher_width(tap) for tap in term.teacher_taps]
    if term.name == "review":
        return {"student_widths": mine, "teacher_widths": theirs}
    if len(set(mine)) > 1 or len(set(theirs)) > 1:
        raise ConfigError(f"vitkd compares blocks of one width, got {mine} of the student and {theirs} of the teacher")
    layers = {"low_layers": len(mine) - 1} if term.name == "vitkd" else {}
    return {"student_width": mine[0], "teacher_width": theirs[0], **layers}


def _as_map(feature: Tensor) -> Tensor:
    """Tokens [B, N, D] as a square map [B, D, H, W]; a map unchanged."""
    if feature.ndim == 4:
        return feature
    side = math.isqrt(feature.shape[1])
    if side * side != feature.shape[1]:
        raise ShapeError(f"tokens are compared with a map as a square grid, got {list(feature.shape)}: use other taps")
    return rearrange(feature, "b (h w) d -> b d h w", h=side)


def _as_tokens(feature: Tensor, like: Tensor) -> Tensor:
    """[B, N, D] on the grid of `like`, interpolated bilinearly where it has another."""
    if feature.ndim == 3 and like.ndim == 3 and feature.shape[1] == like.shape[1]:
        return feature
    grid, size = _as_map(feature), list(_as_map(like).shape[2:])
    if list(grid.shape[2:]) != size:
        grid = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    return rearrange(grid, "b d h w -> b (h w) d")
