"""From names in a configuration to teachers and datasets."""

from __future__ import annotations

from pathlib import Path

import timm
import torch

from kdkit.config import ReplayRecipe, TeacherConfig
from kdkit.data import ReplayedDataset, create_source
from kdkit.engine import ranks
from kdkit.errors import ConfigError
from kdkit.signals import Normalization
from kdkit.teachers import Teacher, TeacherCard, create_teacher, load_card

_CARD_SUFFIXES = (".yaml", ".yml")


def resolve_device(name: str) -> torch.device:
    """The device called `name`; for cuda without an index, in a run of several ranks, that of this rank.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        device = torch.device(ranks.local_device(name))
        torch.empty(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"the device {name!r} cannot be used here ({str(error).splitlines()[0]}): try cpu") from error
    return device


def resolve_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """The teacher that the configuration names: by timm name, or by the path of a card, fed as the card says."""
    if not config.model.endswith(_CARD_SUFFIXES):
        return create_teacher(config.model, checkpoint=config.checkpoint, input_size=config.input_size, device=device)
    return resolve_card(load_card(config.model), device, checkpoint=config.checkpoint, input_size=config.input_size)


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
    teacher = create_teacher(
        _weights_name(card), checkpoint=checkpoint or card.checkpoint, num_classes=card.num_classes, device=device
    )
    _, height, width = card.input_size
    return Teacher(
        teacher.model,
        input_size=(height, width) if input_size is None else (input_size, input_size),
        normalization=Normalization(tuple(card.mean), tuple(card.std)),
        name=card.name,
    )


def _weights_name(card: TeacherCard) -> str:
    """What timm is asked for: the card's model, or the hub repository that the card names for its weights."""
    hub_id = card.weights.hub_id
    known = getattr(timm.get_pretrained_cfg(card.timm_name, allow_unregistered=True), "hf_hub_id", None)
    return card.timm_name if hub_id is None or hub_id == known or card.checkpoint else f"hf-hub:{hub_id}"


def resolve_dataset(name: str | Path, recipe: ReplayRecipe) -> ReplayedDataset:
    """The images of a folder, an archive or a named dataset (see kdkit.data.create_source), seen through `recipe`."""
    return ReplayedDataset(create_source(name), recipe)
