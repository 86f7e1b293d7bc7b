"""From names in a configuration to teachers and datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch

from kdkit.cache import CachedTeacher, open_cache
from kdkit.config import EMA, SingleTeacherConfig, TeacherConfig
from kdkit.data import ReplayedDataset, create_source
from kdkit.data.views.recorded import RecordStore
from kdkit.errors import ConfigError
from kdkit.evaluation.config import TeachersCheckConfig
from kdkit.recipe import ViewRecipe
from kdkit.runtime import distributed
from kdkit.teachers import Teacher, TeacherCard, TeacherEnsemble, create_teacher, load_card
from kdkit.teachers.card import find_card
from kdkit.teachers.class_map import ClassMap
from kdkit.types import Normalization

_CARD_SUFFIXES = (".yaml", ".yml")


def resolve_device(name: str) -> torch.device:
    """The device called `name`; for cuda without an index, in a run of several ranks, that of this rank.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        device = torch.device(distributed.local_device(name))
        torch.empty(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"the device {name!r} cannot be used here ({str(error).splitlines()[0]}): try cpu") from error
    return device


def resolve_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """The teacher that the configuration names, or the ensemble where it names others too.

    Raises:
        ConfigError: it is the moving average of a student, which there is none of here.
    """
    members = (config, *config.ensemble)
    if any(member.model == EMA for member in members):
        raise ConfigError("the teacher 'ema' is a student's moving average: it teaches in kdkit distill, and alone")
    resolved = [_resolve_member(member, device) for member in members]
    return TeacherEnsemble(resolved, [member.weight for member in members]) if config.ensemble else resolved[0]


def resolve_card(
    card: TeacherCard, device: torch.device, *, checkpoint: str | None = None, input_size: int | None = None
) -> Teacher:
    """The teacher that a card describes, fed as the card says.

    Args:
        card: whom.
        device: where it runs.
        checkpoint: weights file in place of the card's.
        input_size: side in pixels in place of the card's.
    """
    return _resolve_card(card, input_size, {"checkpoint": checkpoint, "device": device}, {})


def card_of(config: TeachersCheckConfig) -> TeacherCard | None:
    """The card that a check names, or that of its teacher; None where that has none."""
    if config.card is not None:
        return load_card(config.card)
    assert config.teacher is not None
    if config.teacher.ensemble:
        return None
    if config.teacher.model.endswith(_CARD_SUFFIXES):
        return load_card(config.teacher.model)
    return find_card(config.teacher.model)


def _resolve_member(config: SingleTeacherConfig, device: torch.device) -> Teacher:
    """One teacher: by timm name, or by the path of a card, fed as the card says."""
    options: dict[str, Any] = {
        "class_map": _read_class_map(config.class_map),
        "missing": config.missing,
        "autocast": _dtype(config.autocast),
    }
    loading: dict[str, Any] = {"checkpoint": config.checkpoint, "device": device, "dtype": _dtype(config.dtype)}
    if config.model.endswith(_CARD_SUFFIXES):
        return _resolve_card(load_card(config.model), config.input_size, loading, options)
    return create_teacher(config.model, input_size=config.input_size, **loading, **options)


def _resolve_card(
    card: TeacherCard, input_size: int | None, loading: dict[str, Any], options: dict[str, Any]
) -> Teacher:
    """`loading` goes to create_teacher, `options` to the Teacher that is fed as the card says."""
    loading = {**loading, "checkpoint": loading["checkpoint"] or card.checkpoint}
    teacher = create_teacher(_weights_name(card), num_classes=card.num_classes, **loading)
    _, height, width = card.input_size
    return Teacher(
        teacher.model,
        input_size=(height, width) if input_size is None else (input_size, input_size),
        normalization=Normalization(tuple(card.mean), tuple(card.std)),
        name=card.name,
        **options,
    )


def _dtype(name: str | None) -> torch.dtype | None:
    found: torch.dtype | None = None if name is None else getattr(torch, name)
    return found


def _read_class_map(name: str | None) -> ClassMap | None:
    """An ImageNet family's name as it is; of a JSON file the list in it."""
    if name is None or not name.endswith(".json"):
        return name
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the class map {name!r} cannot be read ({error}): expected a JSON file with a list"
        ) from error
    if not isinstance(found, list) or {*map(type, found)} not in ({int}, {str}):
        raise ConfigError(f"the class map {name!r} must be a list of whole numbers or one of synsets")
    return found


def _weights_name(card: TeacherCard) -> str:
    """What timm is asked for: the card's model, or the hub repository that the card names for its weights."""
    hub_id = card.weights.hub_id
    known = getattr(timm.get_pretrained_cfg(card.timm_name, allow_unregistered=True), "hf_hub_id", None)
    return card.timm_name if hub_id is None or hub_id == known or card.checkpoint else f"hf-hub:{hub_id}"


def open_dataset(
    data: Any,
    *,
    cache: str | Path | CachedTeacher | None = None,
    recipe: ViewRecipe | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ReplayedDataset:
    """The images that `data` means, in the views of a cache or a recipe.

    Args:
        data: a name or path, as the command line takes it, a source, a datasets.Dataset or another map-style dataset:
            see `kdkit.data.create_source`.
        cache: a teacher cache, or its path. It gives the recipe, and is compared with the dataset: samples, class
            names and the pixels of some views. An opened cache is matched by that, and then serves this dataset.
        recipe: what the views look like; the cache's by default, else `ViewRecipe()`.
        image_column: column of the images or their paths, where `data` has columns.
        label_column: column of the labels, where `data` has columns.

    Raises:
        DatasetError: `data` cannot be read.
        CacheMismatchError: the cache was made from other data, or with another recipe.
        ConfigError: an option does not fit the kind of data, or the recipe needs a transform that it cannot hold.
    """
    if isinstance(cache, (str, Path)):
        cache = open_cache(cache)
    if recipe is None:
        recipe = ViewRecipe() if cache is None else ViewRecipe.from_dict(cache.metadata.recipe)
    source = create_source(data, image_column=image_column, label_column=label_column)
    dataset = ReplayedDataset(source, recipe, records=cache)
    if cache is not None:
        cache.match(dataset)
    return dataset


def resolve_dataset(name: str | Path, recipe: ViewRecipe, records: RecordStore | None = None) -> ReplayedDataset:
    """The images that `name` means (see kdkit.data.create_source), seen through `recipe`.

    Args:
        name: the data.
        recipe: what the views look like.
        records: the open cache, whose recorded views are replayed where the recipe says so.
    """
    return ReplayedDataset(create_source(name), recipe, records=records)
