"""Rice codes with a number of low bits that is fixed per coefficient.

A coefficient c has the level n = sign(c) floor(|c| / step + rounding) and the code 2 n for n >= 0, -2 n - 1 for n < 0.
A Rice code is the low bits of a code, as they are, and what is left of it in unary. A rounding below 1/2 takes sizes to
the level below where the next one is hardly nearer, because lower levels cost fewer bits.

Dimensions: B batch, R rows of a sample, J coefficients.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_LOW_BITS = 12
DROPPED = 255  # instead of a number of low bits: the coefficient is not stored and decodes to 0
_FITTED_ROUNDING = 0.42  # of all coefficients of a sample, whose low bits are not known yet
_WORTH = 0.14  # squared steps of error that a bit saves, at least, where a coefficient is kept
_LAPLACE = math.log(2)  # a code of mean m is shortest at about log2(m ln 2) low bits
_SEARCH_STEPS = 12


def roundings(low_bits: np.ndarray[Any, Any], saved: float) -> np.ndarray[Any, Any]:
    """The rounding of each coefficient, float32 [J], at which levels are lower where that costs less than it saves.

    Args:
        low_bits: of each coefficient, [J]; with k of them, one level less takes 2 / 2^k bits less on average.
        saved: squared steps of error that saving one bit is worth.
    """
    found: np.ndarray[Any, Any] = 0.5 - np.float32(saved) * np.exp2(-low_bits.astype(np.float32))
    return found


def codes_of(sizes: Tensor, negative: Tensor, rounding: Tensor | float) -> Tensor:
    """Sizes of coefficients in steps, and 1 for those below 0, else 0 -> codes, all float."""
    return (sizes + rounding).floor_().mul_(2).sub_(negative).clamp_min_(0)


def levels_in(codes: Tensor, spare: Tensor) -> Tensor:
    """Codes -> levels with their signs, integers; in place, and with the memory `spare` of the same shape."""
    sign = torch.bitwise_and(codes, 1, out=spare).neg_()
    return codes.bitwise_right_shift_(1).bitwise_xor_(sign)


def fit_low_bits(coefficients: Tensor, budget: int) -> np.ndarray[Any, Any]:
    """Low bits of each coefficient, or DROPPED, uint8 [J], at which a row of the sample takes `budget` bits on average.

    Args:
        coefficients: of a sample, [R, J].
        budget: bits of a row.
    """
    largest = math.log2(max(float(coefficients.abs().max()), 1e-37))
    low, high = largest - 30, largest + 2
    found = np.full(coefficients.shape[1], DROPPED, dtype=np.uint8)
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        bits, low_bits = _low_bits_at(coefficients, 2**middle)
        if bits <= budget:
            high, found = middle, low_bits
        else:
            low = middle
    return found


def _low_bits_at(coefficients: Tensor, step: float) -> tuple[float, np.ndarray[Any, Any]]:
    """Bits of a row on average, and the low bits of each coefficient that is worth its bits at this step."""
    scaled = coefficients / step
    sizes = scaled.abs()
    codes = codes_of(sizes, (scaled < 0).float(), _FITTED_ROUNDING)
    levels = (sizes + _FITTED_ROUNDING).floor_()
    saved = (sizes.square() - (sizes - levels).square_()).mean(dim=0)  # squared steps
    near = (codes.mean(dim=0) * _LAPLACE).clamp_min(1).log2().floor()
    tried = torch.stack([near - 1, near, near + 1]).clamp_(0, MAX_LOW_BITS)
    cost = torch.stack([bits + 1 + (codes * torch.exp2(-bits)).floor_().mean(dim=0) for bits in tried])
    least, place = cost.min(dim=0)
    kept = saved > _WORTH * least
    low_bits = tried.gather(0, place[None])[0]
    return float(least[kept].sum()), torch.where(kept, low_bits, DROPPED).to(torch.uint8).numpy()
