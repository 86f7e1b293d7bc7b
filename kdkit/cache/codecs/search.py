"""The search for the codes of a row whose decoded distribution diverges least from the teacher's.

Plain projection onto the components treats all classes alike; the divergence hardly sees most of them. Here each row
is fitted with its own weights, by Newton's method on the divergence itself, and then rounded one coefficient at a
time, each compensating for the rounding of the previous ones.

Dimensions: B batch, C classes, M heavy classes, D components, K classes kept one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.cache.codecs.curvature import Curvature, blocks, curvature_of

_SOFT_SHARE = 0.3  # of the objective that is the divergence at T = 2: it costs T = 1 nothing and helps soft targets
_RIDGE = 5e-5  # weight of the prior that coefficients spread as the sample's did, against a total class weight of 1
_HEAVY, _MOST_HEAVY = 192, 2048  # classes of a row whose curvature is summed exactly: C / 6 between these bounds
_JITTER = 1e-6  # of the mean curvature, so that rounding never makes a curvature singular
_NEWTON_STEPS = 2  # more of them bring the objective down and the divergence after rounding up
_SWEEPS = 2
_CPU_BYTES = 192 << 20  # of the largest temporary, of which about three exist at a time
_GPU_BYTES = 1 << 30  # of all temporaries together
_CPU_CHUNK, _GPU_CHUNK = 6, 8  # at most 2**6 rows on a CPU, whose caches hold no more, and 2**8 elsewhere


def chunk_rows(num_classes: int, rank: int, device: torch.device) -> int:
    """Rows B to search at a time: a power of two, so few that temporaries stay within the bound in bytes."""
    heavy, most = _num_heavy(num_classes), _CPU_CHUNK if device.type == "cpu" else _GPU_CHUNK
    if device.type == "cpu":
        rows = _CPU_BYTES // (4 * max(heavy * rank, num_classes, 1))
    else:
        rows = _GPU_BYTES // (4 * (3 * heavy * rank + 8 * num_classes + 2 * rank * rank))
    return 1 << min(rows.bit_length() - 1, most)


def _num_heavy(num_classes: int) -> int:
    return min(num_classes, max(_HEAVY, min(num_classes // 6, _MOST_HEAVY)))


class Levels(NamedTuple):
    """The values that coefficients may have: (code - half) * step, for codes 0 to 2 * half."""

    step: Tensor  # [B, D] nats
    half: Tensor  # [D]
    max_codes: Sequence[int]  # 2 half, on the host, so that no step of the search waits for a device

    def nearest(self, coefficients: Tensor) -> Tensor:
        """[B, D] nats -> codes [B, D], float."""
        return (coefficients / self.step + self.half).round().clamp_min(0).minimum(2 * self.half)

    def values(self, codes: Tensor) -> Tensor:
        """Codes [B, D] -> nats."""
        return (codes - self.half) * self.step


class _Block(NamedTuple):
    """Coefficients that are rounded together, all in units of a level, those of a batch side by side."""

    here: slice
    max_codes: Sequence[int]
    by_level: Tensor  # [W, B] by how much a level of each moves its own gradient
    coupling: Tensor  # [W, W, B]; [i, j] is by how many levels a level of i moves what j should be

    @classmethod
    def of(cls, curvature: Tensor, levels: Levels, here: slice) -> _Block:
        """The block `here`, with this curvature [B, W, W]."""
        step = levels.step[:, here].T.contiguous()
        curvature = curvature.permute(1, 2, 0)  # symmetric
        by_level = curvature.diagonal().T * step
        coupling = (curvature * (step[:, None] / by_level)).contiguous()
        return cls(here, levels.max_codes[here], by_level, coupling)

    def moves(self, codes: Tensor, gradient: Tensor) -> Tensor:
        """By how many levels each coefficient with these codes and gradients [B, W] moves, one after the other."""
        before = codes.T.contiguous()
        wanted = before - gradient.T / self.by_level  # where each would be best, not rounded
        moves = []
        for code, own, others, max_code in zip(before, wanted, self.coupling, self.max_codes, strict=True):
            move = own.round().clamp_(0, max_code).sub_(code)
            wanted.addcmul_(others, move, value=-1)
            moves.append(move)
        return torch.stack(moves, dim=1)


@dataclass(frozen=True)
class TailObjective:
    """The divergence over the classes that are not kept one by one, as a function of the coefficients [B, D].

    (1 - s) KL(p || q) + 4 s KL(p_2 || q_2) + the prior, where p_2 and q_2 are the distributions at T = 2 and s is
    _SOFT_SHARE: the 4 = T^2 brings both terms to the same scale.
    """

    target: Tensor  # [B, C] log-probabilities of the teacher, up to a constant per row
    kept: Tensor  # int64 [B, K] classes left out
    mean: Tensor  # [C] nats
    basis: Tensor  # [D, C], orthonormal rows
    deviation: Tensor  # [D] nats, the spread of each coefficient in the sample

    @cached_property
    def _shares(self) -> tuple[Tensor, Tensor]:
        """The weight of each class at T = 1 and at T = 2, [B, C] each; their sum over a row is 1."""
        sharp = F.softmax(self.target, dim=1).scatter(1, self.kept, 0.0) * (1 - _SOFT_SHARE)
        soft = F.softmax(self.target / 2, dim=1).scatter(1, self.kept, 0.0) * _SOFT_SHARE
        total = (sharp + soft).sum(dim=1, keepdim=True).clamp_min(1e-30)
        return sharp / total, soft / total

    @cached_property
    def _weight(self) -> Tensor:
        sharp, soft = self._shares
        return sharp + soft

    @property
    def _prior(self) -> Tensor:
        return _RIDGE / self.deviation.square()

    def gradient(self, coefficients: Tensor) -> Tensor:
        """The gradient with respect to the coefficients, [B, D]."""
        sharp, soft = self._shares
        logits = torch.addmm(self.mean, coefficients, self.basis).scatter_(1, self.kept, -torch.inf)
        excess = F.softmax(logits, dim=1) * sharp.sum(dim=1, keepdim=True) - sharp
        excess += 2 * (F.softmax(logits / 2, dim=1) * soft.sum(dim=1, keepdim=True) - soft)
        return excess @ self.basis.T + self._prior * coefficients

    @cached_property
    def curvature(self) -> Curvature:
        """The weighted covariance of the basis: about the second derivative at the teacher's distribution.

        The light classes enter with the weight of the lightest heavy one, which the orthonormal basis turns into a
        multiple of the identity: never too little, so that Newton's steps do not overshoot, and several times quicker
        than the sum over all classes.
        """
        weight = self._weight
        exact = _num_heavy(weight.shape[1])
        heavy, classes = weight.topk(exact, dim=1)
        floor = heavy[:, -1:] * float(weight.shape[1] > exact)
        rows = F.embedding(classes, self.basis.T.contiguous()).sub_((weight @ self.basis.T)[:, None, :])
        rows *= (heavy - floor).sqrt()[:, :, None]
        trace = ((heavy - floor) * self.basis.square().sum(dim=0)[classes]).sum(
            dim=1
        )  # an upper bound, as the mean is left in
        return curvature_of(rows, floor + self._prior + _JITTER * trace[:, None] / rows.shape[2])

    def minimise(self) -> Tensor:
        """The best real coefficients [B, D]."""
        residual = self.target - self.mean
        weight = self._weight
        level = (weight * residual).sum(dim=1, keepdim=True)
        descent = (weight * (residual - level)) @ self.basis.T  # of the quadratic form whose solution starts the search
        best, before = self.curvature.solve(descent), None
        for _ in range(_NEWTON_STEPS):
            step = -self.curvature.solve(self.gradient(best))
            move = step if before is None else _accelerated(step, best - before[0], step - before[1])
            best, before = best + move, (best, step)
        return best.nan_to_num(0.0, 0.0, 0.0)  # a row that cannot be fitted: the encoder stores it flat

    def round(self, coefficients: Tensor, levels: Levels) -> Tensor:
        """Codes int64 [B, D] near `coefficients` that make the objective small, by coordinate descent."""
        codes = levels.nearest(coefficients)
        within = [_Block.of(self.curvature.block(here), levels, here) for here in blocks(len(levels.half))]
        for _ in range(_SWEEPS):
            codes = self._sweep(codes, levels, within)
        return codes.to(torch.int64)

    def _sweep(self, codes: Tensor, levels: Levels, within: Sequence[_Block]) -> Tensor:
        """Each coefficient in turn to the level that is best given all the others.

        A block of coefficients is worked on by itself, all in units of a level, and the others follow at its end: the
        arithmetic is the same, the memory that each coefficient touches an eighth.
        """
        gradient, rounded, carried = self.gradient(levels.values(codes)), [], None
        for block in within:
            here = block.here
            before, pull = codes[:, here], gradient[:, here]
            if carried is not None:
                pull = pull + self.curvature.felt(carried, here)
            moved = block.moves(before, pull)
            rounded.append(before + moved)
            carried = self.curvature.carry(carried, moved * levels.step[:, here], here)
        return torch.cat(rounded, dim=1)


def _accelerated(step: Tensor, moved: Tensor, changed: Tensor) -> Tensor:
    """Anderson's mixing (1965; depth 1): how far to go where the step of each row is known at two places, [B, D].

    Args:
        step: Newton's step here.
        moved: how far the last move went.
        changed: how much the step changed with it.
    """
    share = (changed * step).sum(dim=1, keepdim=True) / changed.square().sum(dim=1, keepdim=True).clamp_min(1e-30)
    return step - share.clamp_(-1, 1) * (moved + changed)
