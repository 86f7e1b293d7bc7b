"""From names in a configuration to teachers and datasets."""

from __future__ import annotations

from pathlib import Path

import torch

from kdkit.config import ReplayRecipe, TeacherConfig
from kdkit.data import FolderSource, ReplayedDataset
from kdkit.errors import ConfigError
from kdkit.teachers import Teacher, create_teacher, load_card

_CARD_SUFFIXES = (".yaml", ".yml")


def resolve_device(name: str) -> torch.device:
    """The device called `name`.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"the device {name!r} cannot be used here ({str(error).splitlines()[0]}): try cpu") from error
    return device


def resolve_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """The teacher that the configuration names: by timm name, or by the path of a card."""
    model, checkpoint = config.model, config.checkpoint
    if model.endswith(_CARD_SUFFIXES):
        card = load_card(model)
        model = card.timm_name
        checkpoint = checkpoint or (None if card.checkpoint is None else str(card.checkpoint))
    return create_teacher(model, checkpoint=checkpoint, input_size=config.input_size, device=device)


def resolve_dataset(folder: str | Path, recipe: ReplayRecipe) -> ReplayedDataset:
    """The images of a folder of class folders, seen through `recipe`."""
    return ReplayedDataset(FolderSource(folder), recipe)
