"""Asking the teacher about a batch of a build, and refusing an answer that no cache can keep."""

from __future__ import annotations

from torch import Tensor

from kdkit.cache.codecs import Codec
from kdkit.data import PixelBatch, ReplayLoader
from kdkit.errors import MissingTeacherError, NonFiniteOutputError
from kdkit.teachers import Teacher

_NAMED_KEYS = 3


def ask(teacher: Teacher, codec: Codec, loader: ReplayLoader, pixels: PixelBatch) -> Tensor:
    """The teacher's logits [B, C] about a batch of `loader`.

    Raises:
        NonFiniteOutputError: some are NaN, infinite, or beyond what the codec can hold; names samples.
    """
    logits: Tensor | None = teacher(loader.to_batch(pixels)).logits
    if logits is None:
        raise MissingTeacherError(f"the teacher {teacher.name!r} said no logits")
    held = codec.can_hold(logits).cpu()
    if not held.all():
        bad = [loader.dataset.keys[int(row)] for row in pixels.row[~held]]
        more = f" and {len(bad) - _NAMED_KEYS} more" if len(bad) > _NAMED_KEYS else ""
        raise NonFiniteOutputError(
            f"the teacher {teacher.name!r} said NaN, infinity or what codec {codec.name!r} cannot hold about "
            f"{', '.join(map(repr, bad[:_NAMED_KEYS]))}{more} in view {pixels.view}: look at them, or try float32"
        )
    return logits
