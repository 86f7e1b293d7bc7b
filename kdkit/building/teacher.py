"""Running the teacher on a batch of a build."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from kdkit.cache import encoding
from kdkit.cache.codecs import RowCodec
from kdkit.cache.format.constants import LOGITS
from kdkit.data import PixelBatch, ReplayedDataset, ReplayLoader
from kdkit.errors import ConfigError, MissingTeacherError
from kdkit.teachers import Teacher, TeacherEnsemble
from kdkit.teachers.class_indices import check_indices_of_teacher, check_names_of_teacher
from kdkit.teachers.matching import match_classes
from kdkit.types import Batch, TeacherOutput

_logger = logging.getLogger(__name__)


def run_teacher(
    teacher: Teacher, loader: ReplayLoader, pixels: PixelBatch, streams: Collection[str]
) -> dict[str, Tensor]:
    """Runs the teacher on a batch of `loader`.

    Returns:
        Stream -> output, [B, ...]; on a GPU perhaps not computed yet; of MPS on the CPU, because MPS lacks float64 and
        some of what the codecs compute.

    Raises:
        MissingTeacherError: the teacher has no output of that name.
    """
    output = teacher(loader.to_batch(pixels))
    outputs = {stream: select_stream(output, stream, teacher.name) for stream in streams}
    return {stream: values.cpu() if values.device.type == "mps" else values for stream, values in outputs.items()}


def for_dataset(teacher: Teacher, dataset: ReplayedDataset, streams: Collection[str]) -> Teacher:
    """Returns the teacher with its classes in the dataset's order, by name, and says so where that changes them.

    It is `teacher` itself if one of the two does not name its classes.

    Raises:
        ClassMismatchError: the two name different classes, and a stream is of logits; names the first difference. One
            of the two has class indices alone, whose order cannot be told.
    """
    names = dataset.class_names
    if names is None:
        if LOGITS in streams and not dataset.is_unlabelled and not dataset.is_multi_label:
            check_indices_of_teacher(teacher)
        return teacher
    found = match_classes(teacher, names, needs_logits=LOGITS in streams)
    if LOGITS in streams:
        check_names_of_teacher(teacher, names)
    if found.class_map != teacher.class_map:
        _logger.warning("the classes of the teacher %r are brought into the order of the data, by name", teacher.name)
    return found


def with_streams(teacher: Teacher, streams: Iterable[str]) -> Teacher:
    """Returns a teacher whose outputs hold these streams: `teacher` itself if its outputs do.

    Raises:
        UnknownNameError: its model has no such tap.
        ConfigError: it is an ensemble.
    """
    taps = [stream for stream in streams if stream != LOGITS]
    if taps and isinstance(teacher, TeacherEnsemble):
        raise ConfigError(
            f"a cache has the features of one teacher, got the streams {', '.join(taps)} of {teacher.name!r}: build a "
            "cache of each member, and train with both, --cache A B"
        )
    return teacher if set(taps) <= set(teacher.taps) else teacher.with_taps(taps)


def placed(teacher: Teacher, device: torch.device | str | None) -> tuple[Teacher, torch.device]:
    """Returns the teacher on `device`, or where it is for None, and the device that it is on."""
    if device is not None:
        teacher = teacher.to(torch.device(device))
    return teacher, device_of(teacher) if device is None else torch.device(device)


def device_of(teacher: Teacher) -> torch.device:
    """The device that the teacher's weights are on; the CPU for a teacher without any."""
    model = teacher.model
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def count_classes(teacher: Teacher, dataset: ReplayedDataset) -> int:
    """The width of the teacher's logits, from a pass over one black image where its model does not report it."""
    if teacher.num_classes is not None:
        return teacher.num_classes
    side = dataset.recipe.teacher_size or dataset.recipe.size
    image = torch.zeros(1, 3, side, side, device=device_of(teacher))
    with torch.no_grad():
        output = teacher(Batch(input=image, target=torch.zeros(1, dtype=torch.int64), row=None, view=None))
    return select_stream(output, LOGITS, teacher.name).shape[1]


def check_encodable(
    values: Tensor, codec: RowCodec, stream: str, teacher: str, keys: Sequence[str], pixels: PixelBatch
) -> None:
    """Checks a batch of one stream, [B, ...], before it is encoded; `keys` are those of all the dataset's samples.

    Raises:
        NonFiniteOutputError: some values are NaN, infinite, or beyond what the codec can hold; names samples.
    """
    encoding.check_encodable(
        values,
        codec,
        stream,
        teacher=teacher,
        view=int(pixels.view[0]),
        keys=lambda: [keys[row] for row in pixels.row.tolist()],
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
            f"the teacher {teacher!r} has no output {stream!r}, only {others}: create it with taps=({stream!r},)"
        )
    return values
