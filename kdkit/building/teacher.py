"""Asking the teacher about a batch of a build, and refusing an answer that no cache can keep."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor

from kdkit.cache.codecs import RowCodec
from kdkit.cache.format.constants import LOGITS
from kdkit.data import PixelBatch, ReplayLoader
from kdkit.errors import MissingTeacherError, NonFiniteOutputError
from kdkit.teachers import Teacher
from kdkit.types import TeacherOutput

_NAMED_KEYS = 3


def run_teacher(
    teacher: Teacher, loader: ReplayLoader, pixels: PixelBatch, streams: Collection[str]
) -> dict[str, Tensor]:
    """Stream -> what the teacher says about a batch of `loader`, [B, ...]; on a GPU perhaps not computed yet.

    Raises:
        MissingTeacherError: it says nothing of that name.
    """
    said = teacher(loader.to_batch(pixels))
    return {stream: select_stream(said, stream, teacher.name) for stream in streams}


def with_streams(teacher: Teacher, streams: Iterable[str]) -> Teacher:
    """A teacher whose answers hold these streams: itself where they do.

    Raises:
        UnknownNameError: its model has no such tap.
    """
    taps = [stream for stream in streams if stream != LOGITS]
    return teacher if set(taps) <= set(teacher.taps) else teacher.with_taps(taps)


def check_encodable(
    values: Tensor, codec: RowCodec, stream: str, teacher: str, keys: Sequence[str], pixels: PixelBatch
) -> None:
    """Looks at a batch of one stream, [B, ...], before it is encoded.

    Raises:
        NonFiniteOutputError: some are NaN, infinite, or beyond what the codec can hold; names samples.
    """
    held = codec.is_encodable(values).cpu()
    if held.all():
        return
    bad = [keys[int(row)] for row in pixels.row[~held]]
    more = f" and {len(bad) - _NAMED_KEYS} more" if len(bad) > _NAMED_KEYS else ""
    raise NonFiniteOutputError(
        f"the teacher {teacher!r} said NaN, infinity or what codec {codec.name!r} cannot hold as {stream} of "
        f"{', '.join(map(repr, bad[:_NAMED_KEYS]))}{more} in view {pixels.view}: look at them, or try float32"
    )


def select_stream(output: TeacherOutput, stream: str, teacher: str) -> Tensor:
    """The tensor of one stream.

    Raises:
        MissingTeacherError: the output holds no such stream.
    """
    values = output.logits if stream == LOGITS else output.features.get(stream)
    if values is None:
        others = ", ".join([LOGITS] * (output.logits is not None) + list(output.features)) or "nothing"
        raise MissingTeacherError(
            f"the teacher {teacher!r} says no {stream!r}; it says {others}: create it with taps=({stream!r},)"
        )
    return values
