"""Mixup and CutMix that do not depend on the batch: a seeded involution over the sample keys pairs the samples.

In each view, sample a has one partner b, whose partner is a; with an odd count, one sample is unpaired. Whether,
how, and by how much the two are mixed in a view is drawn from the seed of the pair, so it is the same in any batch, on
any rank, and in build and training. A recipe may let a group of views share the partner, which is then decoded once.

Dimensions: N samples of a dataset, H W height and width.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from kdkit.data.views.seed import view_seed
from kdkit.recipe import ViewRecipe

Words = np.ndarray[Any, np.dtype[np.uint64]]
_GROUPS_KEPT = 16  # so that batches of several views do not pair the samples again; 8 bytes per sample each
_SHARES = 1 << 16  # shares are whole multiples of 1 / _SHARES, so that blending is exact integer arithmetic


class Pairing:
    """Pairs the samples of each group of views: an involution that depends only on the keys, the seed and the group.

    Args:
        keys: keys of all samples; their order does not matter.
        seed: seed of the recipe.
        views_per_partner: number n of consecutive views that are a group, which has one partner.
    """

    def __init__(self, keys: Sequence[str], seed: int, views_per_partner: int = 1) -> None:
        self.seed = seed
        self.views_per_partner = views_per_partner
        self._keys = keys
        self._partners = lru_cache(maxsize=_GROUPS_KEPT)(self._pair)

    @classmethod
    def of(cls, keys: Sequence[str], recipe: ViewRecipe) -> Self | None:
        """The pairing of a recipe; None if it mixes nothing."""
        return cls(keys, recipe.seed, recipe.views_per_partner) if recipe.mixes else None

    def partners(self, view: int) -> Tensor:
        """The row of each sample's partner in `view`, int64 [N]; itself if unpaired."""
        return self._partners(view // self.views_per_partner)

    def __getstate__(self) -> dict[str, Any]:
        return {"seed": self.seed, "keys": self._keys, "views_per_partner": self.views_per_partner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["keys"], state["seed"], state["views_per_partner"])  # type: ignore[misc]

    @cached_property
    def _words(self) -> Words:
        return _key_words(self._keys)

    def _pair(self, group: int) -> Tensor:
        """Sorts the samples by a hash of key and group; two neighbours are a pair."""
        shuffled = _scramble(self._words ^ np.uint64(view_seed(self.seed, "pairing", group)))
        order = torch.from_numpy(np.argsort(shuffled, kind="stable"))
        even = len(order) // 2 * 2
        partners = torch.arange(len(order))
        partners[order[0:even:2]] = order[1:even:2]
        partners[order[1:even:2]] = order[0:even:2]
        return partners


@dataclass(frozen=True)
class Mix:
    """How two views are mixed."""

    share: float
    """Share of its label, and in mixup of its pixels, that a sample keeps; 1 if it is not mixed."""
    box: tuple[float, float, float] | None = None
    """CutMix: centre (row, column) and side of the swapped square, as fractions of the view's side."""

    def pixels(self, own: Tensor, other: Tensor) -> Tensor:
        """The mixed view, from the two views uint8 [3, H, W]; neither is changed."""
        if self.box is not None:
            top, bottom, left, right = _box_at(self.box, own.shape[-2], own.shape[-1])
            mixed = own.clone()
            mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
            return mixed
        if self.share == 1:
            return own
        weight = round(self.share * _SHARES)
        blended = own.int().mul_(weight).add_(other.int().mul_(_SHARES - weight)).add_(_SHARES // 2)
        return blended.bitwise_right_shift_(16).to(torch.uint8)


NOT_MIXED = Mix(1.0)


def draw_mix(recipe: ViewRecipe, key: str, other: str, view: int) -> Mix:
    """Draws how the samples `key` and `other` are mixed in `view`; the result is the same for both."""
    draw = random.Random(view_seed(recipe.seed, "\0".join(["mix", *sorted((key, other))]), view))
    mixed, switched = draw.random() < recipe.mix_prob, draw.random() < recipe.switch_prob
    if not mixed:
        return NOT_MIXED
    if recipe.cutmix_alpha > 0 and (switched or recipe.mixup_alpha == 0):
        kept = draw.betavariate(recipe.cutmix_alpha, recipe.cutmix_alpha)
        box = (draw.random(), draw.random(), math.sqrt(1 - kept))
        top, bottom, left, right = _box_at(box, recipe.size, recipe.size)
        return Mix(1 - (bottom - top) * (right - left) / recipe.size**2, box)
    return Mix(round(draw.betavariate(recipe.mixup_alpha, recipe.mixup_alpha) * _SHARES) / _SHARES)


def _box_at(box: tuple[float, float, float], height: int, width: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) in pixels of a box in fractions, clipped to the image as in the paper and in timm."""
    row, column, side = box
    tall, wide = int(height * side), int(width * side)
    y, x = int(row * height), int(column * width)
    top, left = max(0, y - tall // 2), max(0, x - wide // 2)
    return top, min(height, y + (tall + 1) // 2), left, min(width, x + (wide + 1) // 2)


def _key_words(keys: Sequence[str]) -> Words:
    """A 64-bit hash of each key [N]."""
    digests = (hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _scramble(words: Words) -> Words:
    """A bijection of 64-bit words in which every bit depends on every other (the finaliser of SplitMix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
