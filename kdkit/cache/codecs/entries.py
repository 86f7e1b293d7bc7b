"""The most probable classes of a row, stored individually, and the total mass of the rest.

The k classes and the rest are k + 1 groups of a distribution. Each group's log-probability is kept as a number of
steps below 0. The first group is the likeliest class; it decodes 1/16 of a step above its code's value, and no
other group has a smaller code, so that the top-1 survives ties of the rounding.

Dimensions: B batch, C classes, K entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.cache.codecs.bits import index_width

DEPTH = 16.0  # nats below log 1 that the codes cover; e**-16 = 1e-7 is negligible for training
LEAD = 1 / 16  # of a step: how far the first entry decodes above its code's value


@dataclass(frozen=True)
class Entries:
    """K classes of each row of a batch, and the codes of K + 1 log-probabilities; integers."""

    rest_code: Tensor  # [B, 1]
    ids: Tensor  # int64 [B, K], the likeliest class first
    codes: Tensor  # [B, K]

    def as_fields(self) -> Tensor:
        """[B, 1 + 2 K], the order in which a row holds them."""
        return torch.cat([self.rest_code, self.ids, self.codes], dim=1)


@dataclass(frozen=True)
class EntryFormat:
    """K entries of C classes, and how a code becomes a log-probability."""

    num_classes: int
    count: int  # K
    value_bits: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of the 1 + 2 K fields."""
        value = (self.value_bits,)
        return value + (index_width(self.num_classes),) * self.count + value * self.count

    @property
    def step(self) -> float:
        """Nats per code."""
        return DEPTH / float(2**self.value_bits)

    @property
    def others(self) -> int:
        """Number of classes in the rest."""
        return self.num_classes - self.count

    def from_fields(self, fields: Tensor) -> Entries:
        """[B, 1 + 2 K] -> entries; an id beyond the classes, which only a damaged row has, becomes the last class."""
        rest_code, ids, codes = torch.split(fields, [1, self.count, self.count], dim=1)
        return Entries(rest_code, ids.to(torch.int64).clamp_max_(self.num_classes - 1), codes)

    def quantise(self, log_p: Tensor) -> Entries:
        """The K likeliest classes of log_p [B, C], with their codes."""
        values, ids = log_p.topk(self.count, dim=1)
        codes, first = self._code(values), self._code(values[:, :1] - LEAD * self.step)
        rest = log_p.scatter(1, ids, -torch.inf).logsumexp(dim=1, keepdim=True)
        rest_code = self._code(rest)
        first = first - self._behind(first, rest_code)
        return Entries(rest_code, ids, torch.cat([first, codes[:, 1:].maximum(first)], dim=1))

    def _code(self, log_p: Tensor) -> Tensor:
        return (log_p.clamp(-DEPTH, 0) / -self.step).round().clamp_max(2**self.value_bits - 1).to(torch.int64)

    def _behind(self, first: Tensor, rest_code: Tensor) -> Tensor:
        """1 if the first entry would decode below a uniform rest: one step up puts it ahead."""
        if self.others == 0:
            return torch.zeros_like(first)
        even = -self.step * rest_code - math.log(self.others)
        return (-self.step * (first - LEAD / 2) < even).to(first.dtype)

    def log_probabilities(self, entries: Entries) -> tuple[Tensor, Tensor]:
        """Normalised log-probabilities of the K classes [B, K] and of the rest as a whole [B, 1], float32."""
        values = -self.step * torch.cat([entries.codes, entries.rest_code], dim=1).float()
        values[:, 0] += LEAD * self.step
        groups = values if self.others else values[:, : self.count]
        values = values - groups.logsumexp(dim=1, keepdim=True)
        return values[:, : self.count], values[:, self.count :]

    def joined(self, entries: Entries, others: Tensor) -> Tensor:
        """Log-probabilities [B, C]: of the entries, and of `others` [B, C], shares of the rest, which it changes."""
        kept, rest = self.log_probabilities(entries)
        return others.add_(rest).scatter_(1, entries.ids, kept)

    def flat(self, entries: Entries) -> Tensor:
        """Log-probabilities [B, C] of a row whose rest is spread evenly, float32."""
        kept, rest = self.log_probabilities(entries)
        return (rest - math.log(self.others)).repeat(1, self.num_classes).scatter_(1, entries.ids, kept)
