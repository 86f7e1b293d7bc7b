"""Whether cached rows still are a teacher's outputs, as far as its precision lets one tell.

A teacher in half precision, in another batch or on another device, rounds differently, and a codec keeps what it keeps.
So rows are judged together: by the mean divergence of the cache from the teacher's current outputs, beyond what the
codec loses in any case, and by the share of rows that lie far off. One row's bad luck is no other teacher; another
teacher is far off everywhere. Dimensions: B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.cache.codecs import Codec, RowCodec
from kdkit.cache.encoding import encode_in_parts
from kdkit.cache.fidelity import kl_divergence, sigmoid_divergence
from kdkit.types import to_double

_ROUNDING = {"float64": 2.0**-24, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Dtype -> relative error of one rounding. A dtype that is not named counts as bfloat16."""
_TF32 = 2.0**-11  # float32 off the CPU: convolutions and products there may keep 10 bits
_ROUNDINGS = 8
"""Mean error of a log-probability, in roundings of the row's largest logit, that is allowed. Measured between float32
and half precision: 4.4 (tf_efficientnet_lite0 on photographs, bfloat16), 3.5 (the same, float16), 1.7 (test_vit)."""
_FEATURE_ROUNDINGS = 32
"""The same of a feature, in roundings of the row's mean size; 14 and 13 measured for pooled features of the former."""
_LEAST = 1e-3  # the same in nats, or of features as a share of their mean size: what two CPUs differ by in float32
_FAR, _SHARE_FAR = 4, 0.05  # a row is far off beyond so many times what is allowed; so many rows may be
_CODEC_SLACK, _EXACT = 0.05, 1e-6  # of the divergence of a row encoded again, and nats


@dataclass(frozen=True)
class Compared:
    """The comparison of rows of one stream, cached, with the teacher's current outputs; each field [B]."""

    difference: Tensor
    """Mean absolute difference of the row, encoded again, from the cached one: of log-probabilities in nats, of
    features as a share of their mean size, or by how much farther the cached one is from the current output."""
    allowed: Tensor
    """Its expected size, from the teacher's precision."""
    divergence: Tensor | None
    """KL(current output || cache) in nats; None for features."""
    lost: Tensor | None
    """KL(current output || its own row, encoded again) in nats: what the codec loses in any case."""

    @classmethod
    def join(cls, parts: Sequence[Compared]) -> Compared:
        """All rows of all parts, in their order."""
        logits = [(p.divergence, p.lost) for p in parts if p.divergence is not None and p.lost is not None]
        return cls(
            torch.cat([part.difference for part in parts]),
            torch.cat([part.allowed for part in parts]),
            torch.cat([divergence for divergence, _ in logits]) if logits else None,
            torch.cat([lost for _, lost in logits]) if logits else None,
        )

    @property
    def is_far(self) -> Tensor:
        """Which rows lie far off, bool [B]."""
        far = self.difference > _FAR * self.allowed
        if self.divergence is None or self.lost is None:
            return far
        return far & (self.divergence > _lossy(self.lost) + _as_divergence(_FAR * self.allowed))

    @property
    def agrees(self) -> bool:
        """Whether the rows, taken together, are the teacher's."""
        if self.is_far.float().mean() > _SHARE_FAR:
            return False
        if self.divergence is None or self.lost is None:
            return bool(self.difference.mean() <= self.allowed.mean())
        close = self.difference.mean() <= _LEAST
        return bool(close or self.divergence.mean() <= (_lossy(self.lost) + _as_divergence(self.allowed)).mean())

    @property
    def worst(self) -> int:
        """The row that is farthest off, measured by what is allowed."""
        return int((self.difference / self.allowed).argmax())


def compare(codec: RowCodec, values: Tensor, encoded: Tensor, rounding: float) -> Compared:
    """Compares the teacher's current outputs with cached rows.

    Args:
        codec: fitted.
        values: [B, ...], the current outputs.
        encoded: uint8 [B, row_bytes], the cached rows.
        rounding: the relative error of one rounding, of `rounding_of`.
    """
    now, then = codec.decode(encode_in_parts(codec, values)), codec.decode(encoded.to(values.device))
    difference = (now - then).flatten(1).abs().mean(dim=1)
    size = values.flatten(1).float().abs()
    if not isinstance(codec, Codec):
        # Another rounding may change a row's step, and so all its numbers; both rows are then as near to the output.
        of_now, of_then = ((found - values.float()).flatten(1).abs().mean(dim=1) for found in (now, then))
        difference = difference.minimum((of_then - of_now).clamp_min(0))
        difference /= now.flatten(1).abs().mean(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        return Compared(difference, torch.full_like(difference, max(_FEATURE_ROUNDINGS * rounding, _LEAST)), None, None)
    allowed = (_ROUNDINGS * rounding * size.amax(dim=1)).clamp_min(_LEAST)
    between = sigmoid_divergence if codec.multi_label else kl_divergence
    return Compared(difference, allowed, between(values, then), between(values, now))


def rounding_of(teacher: Mapping[str, Any], devices: Iterable[str]) -> float:
    """The relative error of one rounding of a teacher.

    Args:
        teacher: its fingerprint; of an ensemble the coarsest member counts.
        devices: the kinds of device that its outputs come from: "cpu", "cuda" and the like.
    """
    if members := teacher.get("members"):
        return max(rounding_of(member, devices) for member in members)
    dtype = str(teacher.get("autocast") or teacher["dtype"])
    rounding = _ROUNDING["float32"] if dtype == "none" else _ROUNDING.get(dtype, _ROUNDING["bfloat16"])
    return rounding if all(device.startswith("cpu") for device in devices) else max(rounding, _TF32)


def _lossy(lost: Tensor) -> Tensor:
    """The divergence of a row that the codec keeps as well as it can; lowrank's search may end a little beside that."""
    return lost * (1 + _CODEC_SLACK) + _EXACT


def _as_divergence(difference: Tensor) -> Tensor:
    """The divergence that log-probabilities have if they are off by independent errors of this size."""
    return to_double(difference).square() / 2
