"""The live teacher of a run: where it is, and the precision that it runs in."""

from __future__ import annotations

from kdkit.cache import CacheMixture, CacheReader, ClassSelection
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.parts import LiveTeacher
from kdkit.data import ReplayedDataset
from kdkit.precision import choose_autocast
from kdkit.tasks import DistillationTask, TrainingTask
from kdkit.teachers import Teacher
from kdkit.training.config import DistillConfig


def live_teacher_of(task: TrainingTask) -> Teacher | None:
    """The task's own teacher; None for labels alone, for a cache, and for an EMA teacher."""
    return task.teacher if isinstance(task, DistillationTask) and not task.is_ema_teacher else None


def live_part_of(cache: CacheReader | None) -> LiveTeacher | None:
    """The live teacher of a mix; None without one."""
    mix = _mix_of(cache)
    return None if mix is None else mix.live


def live_name_of(task: TrainingTask, cache: CacheReader | None) -> str | None:
    """Name of the teacher that runs in every step, alone or as a part of a mix; None without one, or of weight 0."""
    mix = _mix_of(cache)
    teacher = live_teacher_of(task) if mix is None else mix.live if mix.weights[-1] > 0 else None
    return None if teacher is None else teacher.name


def _mix_of(cache: CacheReader | None) -> CacheMixture | None:
    whole = cache.cache if isinstance(cache, ClassSelection) else cache
    return whole if isinstance(whole, CacheMixture) else None


def settle_precision(
    config: DistillConfig, task: TrainingTask, cache: CacheReader | None, dataset: ReplayedDataset
) -> str:
    """Gives the live teacher of a run, in its place, the precision that a build would run it in. Collective.

    Args:
        config: the run; a precision that it gives is kept.
        task: its task, on the device of the run.
        cache: its cache, which may be a mix with a live teacher.
        dataset: its training images.

    Returns:
        The precision, for the header; "" without a live teacher.
    """
    given, mix = config.teacher, _mix_of(cache)
    teacher = live_teacher_of(task) if mix is None else mix.live
    if given is None or config.is_ema_teacher or not isinstance(teacher, Teacher):
        return ""
    if not given.takes_any_precision:
        return given.autocast or given.dtype or "float32"
    taps = task.taps if isinstance(task, DistillationTask) and mix is None else ()
    streams = [*([LOGITS] if config.compares_logits or mix is not None else []), *taps]
    found, text = choose_autocast(teacher, dataset, streams, task.device)
    if mix is not None:
        mix.live = found
    elif isinstance(task, DistillationTask):
        task.teacher = found
    return text
