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
_HEAVY, _MOST_HEAVY = 96, 2048  # classes of a row whose curvature is summed exactly: C / 10 between these bounds
_JITTER = 1e-6  # of the mean curvature, so that rounding never makes a curvature singular
_NEWTON_STEPS = 2
_STRIDES = (1.0, 2.0, 0.5, 0.25, 0.0625, 0.0)  # by how much of one of them a row may move; the first unless
_NOISE = 1e-5  # another is better by more nats than float32's rounding, which differs between batches and devices
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
        rows = _GPU_BYTES // (4 * (3 * heavy * rank + 12 * num_classes + 2 * rank * rank))
    return 1 << min(rows.bit_length() - 1, most)


def _num_heavy(num_classes: int) -> int:
    return min(num_classes, max(_HEAVY, min(num_classes // 10, _MOST_HEAVY)))


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
    def _masses(self) -> tuple[Tensor, Tensor]:
        """The sums of both, [B, 1] each."""
        sharp, soft = self._shares
        return sharp.sum(dim=1, keepdim=True), soft.sum(dim=1, keepdim=True)

    @cached_property
    def _weight(self) -> Tensor:
        sharp, soft = self._shares
        return sharp + soft

    @property
    def _prior(self) -> Tensor:
        return _RIDGE / self.deviation.square()

    def gradient(self, coefficients: Tensor) -> Tensor:
        """The gradient with respect to the coefficients, [B, D]."""
        return self._gradient_at(coefficients, torch.addmm(self.mean, coefficients, self.basis))

    def _gradient_at(self, coefficients: Tensor, logits: Tensor) -> Tensor:
        (sharp, soft), (sharp_mass, soft_mass) = self._shares, self._masses
        root, _ = _roots(logits.scatter(1, self.kept, -torch.inf))
        of_root, of_square = soft_mass / root.sum(dim=1, keepdim=True), sharp_mass / _squares(root)
        excess = root.mul_(root * of_square + 2 * of_root).sub_(sharp + 2 * soft)
        return excess @ self.basis.T + self._prior * coefficients

    @cached_property
    def curvature(self) -> Curvature:
        """The weighted covariance of the basis: about the second derivative at the teacher's distribution.

        The light classes enter with one weight, which the orthonormal basis turns into a multiple of the identity:
        several times quicker than the sum over all classes. It lies between their mean, which is right for them
        together, and that of the heaviest, with which no step of Newton's goes too far.
        """
        weight = self._weight
        heavy, classes = weight.topk(_num_heavy(weight.shape[1]), dim=1)
        num_light = weight.shape[1] - heavy.shape[1]
        mean = weight.scatter(1, classes, 0.0).sum(dim=1, keepdim=True) / max(1, num_light)
        light = (mean * heavy[:, -1:]).sqrt() * float(num_light > 0)
        exact = (heavy - light).clamp_min(0)
        rows = F.embedding(classes, self.basis.T.contiguous()).sub_((weight @ self.basis.T)[:, None, :])
        rows *= exact.sqrt()[:, :, None]
        trace = (exact * self.basis.square().sum(dim=0)[classes]).sum(dim=1)  # at least: the mean is left in
        return curvature_of(rows, light + self._prior + _JITTER * trace[:, None] / rows.shape[2])

    def minimise(self) -> Tensor:
        """The best real coefficients [B, D]."""
        residual = self.target - self.mean
        weight = self._weight
        level = (weight * residual).sum(dim=1, keepdim=True)
        descent = (weight * (residual - level)) @ self.basis.T  # of the quadratic form whose solution starts the search
        best, logits = torch.zeros_like(descent), self.mean.expand_as(residual)
        for number in range(1 + _NEWTON_STEPS):
            step = self.curvature.solve(-self._gradient_at(best, logits) if number else descent)
            along = step @ self.basis
            share = self._stride(best, step, logits, along)
            best, logits = best + share * step, logits + share * along
        return best.nan_to_num(0.0, 0.0, 0.0)  # a row that cannot be fitted: the encoder stores it flat

    def _stride(self, coefficients: Tensor, step: Tensor, logits: Tensor, along: Tensor) -> Tensor:
        """The share of `step`, of those in _STRIDES, that makes the objective least, [B, 1]; 1 where none is finite."""
        (sharp, soft), (sharp_mass, soft_mass) = self._shares, self._masses
        logits = logits.scatter(1, self.kept, -torch.inf)
        slope = self._prior * coefficients * step
        slope = slope.sum(dim=1, keepdim=True) - ((sharp + 2 * soft) * along).sum(dim=1, keepdim=True)
        bend = (self._prior * step.square()).sum(dim=1, keepdim=True) / 2
        least, best = torch.full_like(bend, torch.inf), torch.ones_like(bend)
        for share in _STRIDES:
            root, greatest = _roots(torch.add(logits, along, alpha=share))
            value = sharp_mass * (_squares(root).log() + greatest) + share * slope + share**2 * bend
            value += soft_mass * (4 * root.sum(dim=1, keepdim=True).log() + 2 * greatest)
            is_less = value < least - _NOISE
            best, least = torch.where(is_less, share, best), torch.where(is_less, value, least)
        return best

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


def _roots(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Exp(logits / 2) with the greatest of a row scaled to 1, and the greatest logit: [B, C] -> [B, C] and [B, 1].

    One exponential serves two temperatures: these are unnormalised probabilities at T = 2, their squares at T = 1.
    """
    greatest = logits.amax(dim=1, keepdim=True)
    return (logits - greatest).mul_(0.5).exp_(), greatest


def _squares(root: Tensor) -> Tensor:
    """The sum of the squares of a row, [B, 1]."""
    return root.square().sum(dim=1, keepdim=True)
