"""Turn the names in a configuration into devices, teachers and datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch

from kdkit.config import EMA, SingleTeacherConfig, StudentConfig, TeacherConfig
from kdkit.config.normalization import format_normalization, parse_normalization
from kdkit.errors import CheckpointError, ConfigError, KdkitError, first_line
from kdkit.runtime.hardware import use_device
from kdkit.runtime.reading import read_json
from kdkit.student import is_student_folder, load_student
from kdkit.teachers import Teacher, TeacherCard, TeacherEnsemble, create_teacher, load_card
from kdkit.teachers.card import find_card
from kdkit.teachers.class_map import ClassMap
from kdkit.teachers.fingerprint import UNKNOWN
from kdkit.teachers.hub import without_network
from kdkit.teachers.matching import match_classes
from kdkit.types import Normalization

_CARD_SUFFIXES = (".yaml", ".yml")
_MAX_CLASS_MAP_BYTES = 16 << 20  # a million classes
_NAMED = 3  # classes of a mapped teacher


def resolve_device(name: str) -> torch.device:
    """The device called `name`, made the current one; resolves "auto", and "cuda" to this rank's GPU.

    Raises:
        ConfigError: there is no such device here, or several local ranks would share it.
    """
    return use_device(name)


def resolve_teacher(
    config: TeacherConfig,
    device: torch.device,
    class_names: Sequence[str] | None = None,
    *,
    needs_logits: bool = True,
    card: TeacherCard | None = None,
) -> Teacher:
    """The teacher that the configuration names, or the ensemble if it names several.

    Args:
        config: the teacher's name and options.
        device: where it runs.
        class_names: of the data [C]; the classes of a teacher that knows their names are brought into this order,
            unless the configuration has a class map, which is taken as it is; of an ImageNet family, as far as it goes.
        needs_logits: whether the teacher's logits are used; a teacher of features alone may have other classes.
        card: the card that describes the teacher's weights and input; by default the configuration does.

    Raises:
        ConfigError: the teacher is the moving average of a student, and there is no student here.
        ClassMismatchError: a teacher that knows the names of its classes has other ones than the data.
    """
    members = (config, *config.ensemble)
    if any(member.model == EMA for member in members):
        raise ConfigError(
            "the teacher 'ema' is a student's moving average: only kdkit distill takes it, and not in an ensemble"
        )
    resolved = [_resolve_member(member, device, card if member is config else None) for member in members]
    for teacher in resolved:
        if device.type == "cuda":  # as its kernels take convolutions; nothing else changes, the fingerprint neither
            teacher.model.to(memory_format=torch.channels_last)
    if class_names is not None:
        resolved = [
            match_classes(teacher, class_names, needs_logits=needs_logits and member.weight > 0)
            for member, teacher in zip(members, resolved, strict=True)
        ]
    return TeacherEnsemble(resolved, [member.weight for member in members]) if config.ensemble else resolved[0]


def as_made(config: TeacherConfig, made_with: Mapping[str, Any]) -> TeacherConfig:
    """The configuration, in the precision of the cache's teacher if none is given.

    Args:
        config: the teacher that is to be the cache's.
        made_with: the fingerprint of the cache's teacher.
    """
    if not config.takes_any_precision:
        return config
    members = made_with.get("members") or [made_with]
    (first, *others), autocasts = (config, *config.ensemble), [member.get("autocast") for member in members]
    if len(autocasts) != 1 + len(others):  # another teacher, as the comparison will say
        return config
    ensemble = tuple(replace(member, autocast=autocast) for member, autocast in zip(others, autocasts[1:], strict=True))
    return replace(first, autocast=autocasts[0], ensemble=ensemble)


def describe_teacher(teacher: Teacher) -> str:
    """The teacher's name, and where its classes are mapped to those of the data, the first of them."""
    members = teacher.members if isinstance(teacher, TeacherEnsemble) else (teacher,)
    if all(member.class_map is None for member in members):
        return teacher.name
    names = teacher.class_names or ()
    shown = [*names[:_NAMED], "..."] if len(names) > _NAMED else names
    return f"{teacher.name}, its classes mapped to the data's{': ' if names else ''}{', '.join(shown)}"


def load_teacher_of_cache(made_with: Mapping[str, Any], device: torch.device) -> Teacher:
    """Loads the teacher that a cache was made with, if the cache's record is enough: a timm model with timm's weights.

    The weights must be on this machine, because a file does not decide what is downloaded.

    Args:
        made_with: the teacher's fingerprint.
        device: where the teacher is put.

    Raises:
        ConfigError: the record is not enough, or timm's weights are not here, or not those of the record.
    """
    config = _teacher_of_cache(made_with)
    try:
        with without_network():
            teacher = resolve_teacher(config, device)
    except CheckpointError as error:
        raise ConfigError(
            f"the cache names its teacher {config.model!r}, whose weights are not on this machine: give --teacher "
            f"{config.model} to download timm's, or the run, export or weights file that it was"
        ) from error
    except KdkitError as error:
        raise ConfigError(
            f"the cache names its teacher {config.model!r}, which cannot be loaded: give --teacher NAME "
            f"({first_line(error)})"
        ) from error
    if made_with.get("weights_sha256") not in (UNKNOWN, teacher.fingerprint()["weights_sha256"]):
        raise ConfigError(
            f"the cache names its teacher {config.model!r}, and timm's weights are not those that it had: give "
            "--teacher, the run, export or weights file that it was"
        )
    return teacher


def _teacher_of_cache(made_with: Mapping[str, Any]) -> TeacherConfig:
    """The configuration of that teacher."""
    name = str(made_with.get("name"))
    if "members" in made_with or made_with.get("class_map_sha256") or not _is_on_hub(name, made_with):
        raise ConfigError(
            f"the teacher {name!r} cannot be loaded again from only the cache's record: give --teacher, the run, "
            "export or weights file that it was"
        )
    size, dtype = made_with.get("input_size"), made_with.get("dtype")
    return TeacherConfig(
        name,
        normalization=format_normalization(made_with["mean"], made_with["std"]) if "std" in made_with else None,
        input_size=None if size is None else int(size[-1]),
        dtype=None if dtype in ("float32", "none") else dtype,
        autocast=made_with.get("autocast"),
    )


def _is_on_hub(name: str, made_with: Mapping[str, Any]) -> bool:
    """Whether timm takes the weights of the model of that name from the hub, with as many classes."""
    try:
        found = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
        count = made_with.get("num_classes")
        return found is not None and found.hf_hub_id is not None and count in (None, found.num_classes)
    except (RuntimeError, AttributeError):  # an unknown tag; a model without weights
        return False


def card_of(config: TeacherConfig, name: str | None = None) -> TeacherCard | None:
    """The card called `name`, else the card of the configured teacher; None if there is none, e.g. for an ensemble."""
    if name is not None:
        return load_card(name)
    if config.ensemble:
        return None
    return load_card(config.model) if config.model.endswith(_CARD_SUFFIXES) else find_card(config.model)


def _resolve_member(config: SingleTeacherConfig, device: torch.device, card: TeacherCard | None) -> Teacher:
    """One teacher: by timm name, by the path of a card, from a weights file, or from a folder that kdkit wrote."""
    options: dict[str, Any] = {
        "normalization": config.normalization and Normalization(*parse_normalization(config.normalization)),
        "class_map": _read_class_map(config.class_map),
        "missing_classes": config.missing_classes,
        "autocast": _dtype(config.autocast),
    }
    loading: dict[str, Any] = {"checkpoint": config.checkpoint, "device": device, "dtype": _dtype(config.dtype)}
    if card is not None or config.model.endswith(_CARD_SUFFIXES):
        return _resolve_card(card or load_card(config.model), config.input_size, loading, options)
    if config.arch is not None and not is_student_folder(config.model):
        if not Path(config.model).exists():
            raise ConfigError(f"with --arch, the teacher is a weights file, and there is no file {config.model!r}")
        loading["checkpoint"] = config.model
        return create_teacher(config.arch, input_size=config.input_size, **loading, **options)
    if is_student_folder(config.model):
        return _resolve_folder(config, loading, options)
    if Path(config.model).is_file():
        raise ConfigError(f"the teacher {config.model!r} is a weights file: give its architecture as well, --arch NAME")
    return create_teacher(config.model, input_size=config.input_size, **loading, **options)


def _resolve_folder(config: SingleTeacherConfig, loading: dict[str, Any], options: dict[str, Any]) -> Teacher:
    """The teacher in a folder that `kdkit distill` or `kdkit export` wrote: its classes, its size of images."""
    model, student = load_student(
        StudentConfig(student=config.model, arch=config.arch, checkpoint=loading.pop("checkpoint"))
    )
    size = student.input_size if config.input_size is None else config.input_size
    return create_teacher(model, input_size=size, class_names=student.class_names, **loading, **options)


def _resolve_card(
    card: TeacherCard, input_size: int | None, loading: dict[str, Any], options: dict[str, Any]
) -> Teacher:
    """`loading` goes to create_teacher, `options` to the Teacher, whose input is that of the card."""
    loading = {**loading, "checkpoint": loading["checkpoint"] or card.checkpoint}
    teacher = create_teacher(_weights_name(card), num_classes=card.num_classes, **loading)
    _, height, width = card.input_size
    options["normalization"] = options["normalization"] or Normalization(tuple(card.mean), tuple(card.std))
    return Teacher(
        teacher.model,
        input_size=(height, width) if input_size is None else (input_size, input_size),
        name=card.name,
        class_names=teacher.class_names,
        **options,
    )


def _dtype(name: str | None) -> torch.dtype | None:
    found: torch.dtype | None = None if name is None else getattr(torch, name)
    return found


def _read_class_map(name: str | None) -> ClassMap | None:
    """The list in a JSON file; the name of an ImageNet family as it is."""
    if name is None or not name.endswith(".json"):
        if name is not None and Path(name).is_file():
            raise ConfigError(f"the class map {name!r} is a file, expected a .json file or a family")
        return name
    found = read_json(name, limit=_MAX_CLASS_MAP_BYTES)
    if not isinstance(found, list) or {*map(type, found)} not in ({int}, {str}):
        raise ConfigError(f"the class map {name!r} must be a list of whole numbers or one of class names")
    return found


def _weights_name(card: TeacherCard) -> str:
    """timm's name for the card's weights: its model, or the hub repository that the card names."""
    hub_id = card.weights.hub_id
    known = getattr(timm.get_pretrained_cfg(card.timm_name, allow_unregistered=True), "hf_hub_id", None)
    return card.timm_name if hub_id is None or hub_id == known or card.checkpoint else f"hf-hub:{hub_id}"
