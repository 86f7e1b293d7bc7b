"""A loss on features as a module: the taps that it compares, brought to one form, and its trainable parameters.

Dimensions: B batch, D width, H W height and width, N tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from kdkit.errors import ConfigError, ShapeError
from kdkit.tasks.term import LossTerm, bound_loss

Widths = Callable[[str], int]
_NUMBER = re.compile(r"^\d+:")


class Comparison(nn.Module):
    """One term on features.

    Features of unlike form, such as tokens [B, N, D] and a map [B, D, H, W], or tokens of two grids, are compared as
    maps, the tokens in a square grid. A loss may declare another alignment. Maps of two sizes are left to the loss.

    Args:
        term: with its taps named.
        student_width: tap of the student -> its width D.
        teacher_width: tap of the teacher -> its width D.
        head_weight: returns the weight [C, D] of the teacher's classifier.
        num_rows: samples of the dataset; None if that is not known.

    Raises:
        ConfigError: the taps do not pair, or are several for a loss that compares one pair.
    """

    def __init__(
        self,
        term: LossTerm,
        student_width: Widths,
        teacher_width: Widths,
        head_weight: Callable[[], Tensor],
        num_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.term = term
        self.takes_several, self.aligns = term.takes_several, term.aligns
        _check_taps(term)
        given = _width_options(term, student_width, teacher_width)
        given |= {"head_weight": head_weight()} if term.needs_head else {}
        given |= {"num_rows": _count(term, num_rows)} if term.needs_rows else {}
        self.needs: tuple[str, ...] = ("row",) if term.needs_rows else ()
        self.loss = bound_loss(term, **given)

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], samples: Mapping[str, Tensor]
    ) -> Tensor:
        """The unweighted loss [] of features by tap; `samples` has what the loss `needs`."""
        pairs = [
            self._align(student[student_tap], teacher[teacher_tap])
            for student_tap, teacher_tap in zip(self.term.student_taps, self.term.teacher_taps, strict=True)
        ]
        with torch.autocast(pairs[0][0].device.type, enabled=False):
            sides = tuple(map(list, zip(*pairs, strict=True))) if self.takes_several else pairs[0]
            return self.loss(*sides, *(samples[name] for name in self.needs))

    def _align(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if self.aligns == "tokens":
            return _as_tokens(student, teacher), _as_tokens(teacher, teacher)
        is_alike = student.ndim == teacher.ndim and (student.ndim != 3 or student.shape[1] == teacher.shape[1])
        if 2 in (student.ndim, teacher.ndim) or (is_alike and self.aligns == "unlike"):
            return student, teacher
        return _as_map(student), _as_map(teacher)


def _check_taps(term: LossTerm) -> None:
    count = len(term.student_taps)
    if not count == len(term.teacher_taps) >= 1:
        raise ConfigError(
            f"term {term.name!r} compares pairs of taps, got {list(term.student_taps)} of the student and "
            f"{list(term.teacher_taps)} of the teacher"
        )
    if count > 1 and not term.takes_several:
        raise ConfigError(f"term {term.name!r} compares one pair of taps, got {count}: make one term of each pair")


def _count(term: LossTerm, num_rows: int | None) -> int:
    if num_rows is None:
        raise ConfigError(f"the loss {term.name!r} remembers every sample of the dataset: pass num_rows=len(dataset)")
    return num_rows


def _width_options(term: LossTerm, student_width: Widths, teacher_width: Widths) -> dict[str, Any]:
    """The options that tell a loss the widths of its features, if it declares that it needs them."""
    if not term.projects:
        return {}
    widths = [student_width(tap) for tap in term.student_taps], [teacher_width(tap) for tap in term.teacher_taps]
    if term.takes_several:
        return {"student_widths": widths[0], "teacher_widths": widths[1]}
    return {"student_width": widths[0][0], "teacher_width": widths[1][0]}


def _as_map(feature: Tensor) -> Tensor:
    """Tokens [B, N, D] as a square map [B, D, H, W]; a map unchanged."""
    if feature.ndim == 4:
        return feature
    side = math.isqrt(feature.shape[1])
    if side * side != feature.shape[1]:
        raise ShapeError(f"tokens are compared with a map as a square grid, got {list(feature.shape)}: use other taps")
    return rearrange(feature, "b (h w) d -> b d h w", h=side)


def _as_tokens(feature: Tensor, like: Tensor) -> Tensor:
    """[B, N, D] on the grid of `like`, interpolated bilinearly if it has another."""
    if feature.ndim == 3 and like.ndim == 3 and feature.shape[1] == like.shape[1]:
        return feature
    grid, size = _as_map(feature), list(_as_map(like).shape[2:])
    if list(grid.shape[2:]) != size:
        grid = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    return rearrange(grid, "b d h w -> b (h w) d")


def with_taps(term: LossTerm, student_taps: str | Sequence[str], teacher_taps: str | Sequence[str]) -> LossTerm:
    """The term with its taps named; if it names the taps of one side only, the other side has the same.

    The number before a tap of one of several teachers, as in '1:pooled', is no part of the student's tap.
    """
    if not term.is_feature:
        return term
    if term.has_exits:
        if term.teacher_taps:
            raise ConfigError(f"term {term.name!r} takes the teacher's logits: leave out its teacher_taps")
        return replace(term, student_taps=term.student_taps or student_taps)
    if not (term.student_taps or term.teacher_taps):
        return replace(term, student_taps=student_taps, teacher_taps=teacher_taps)
    return replace(
        term,
        student_taps=term.student_taps or tuple(_NUMBER.sub("", tap) for tap in term.teacher_taps),
        teacher_taps=term.teacher_taps or term.student_taps,
    )
