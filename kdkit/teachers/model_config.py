"""Facts that a timm model, or timm's wrapper of a teacher, states about itself."""

from __future__ import annotations

from typing import Any

import torch
from timm.task import DistillationTeacher
from timm.utils import unwrap_model
from torch import Tensor, nn

from kdkit.types import Normalization


def model_config(model: nn.Module) -> dict[str, Any]:
    """Returns timm's pretrained_cfg of a model, or an empty dict."""
    config = getattr(unwrap_model(model), "pretrained_cfg", None)
    return dict(config) if config else {}


def state_config(model: nn.Module, **entries: Any) -> None:
    """Sets entries of a model's pretrained_cfg, which describe its weights."""
    setattr(unwrap_model(model), "pretrained_cfg", {**model_config(model), **entries})  # noqa: B010 -- not a tensor


def only_input_size(model: nn.Module) -> tuple[int, int] | None:
    """Returns (H, W) in pixels of a model that accepts no other size, such as a ViT with a fixed position embedding."""
    config = model_config(model)
    patches: Any = getattr(unwrap_model(model), "patch_embed", None)
    if getattr(patches, "img_size", None) is not None:
        return tuple(patches.img_size) if getattr(patches, "strict_img_size", True) else None
    if config.get("fixed_input_size") and "input_size" in config:
        _, height, width = config["input_size"]
        return height, width
    return None


def find_classifiers(model: nn.Module) -> list[nn.Module]:
    """Returns the classifiers of a model: one, two of a distilled transformer, none if it does not name them."""
    names, modules = model_config(model).get("classifier") or (), dict(model.named_modules())
    found = [modules[name] for name in ((names,) if isinstance(names, str) else names) if name in modules]
    given: Any = getattr(model, "get_classifier", lambda: ())() if not found else ()
    return found or [head for head in (given if isinstance(given, (tuple, list)) else (given,)) if head is not None]


def unwrap_timm_teacher(model: nn.Module) -> tuple[nn.Module, Normalization | None]:
    """Returns the model inside a timm.task.DistillationTeacher with the wrapper's normalisation; others as they are."""
    if not isinstance(model, DistillationTeacher):
        return model, None
    inner: nn.Module = model.model
    configured = Normalization.of(inner)
    mean, std = (_exact(buffer, values) for buffer, values in _buffers(model, configured))
    return inner, Normalization(mean, std)


def _buffers(teacher: DistillationTeacher, configured: Normalization) -> list[tuple[Tensor, tuple[float, ...]]]:
    return [(teacher.mean_kd, configured.mean), (teacher.std_kd, configured.std)]


def _exact(buffer: Tensor, configured: tuple[float, ...]) -> tuple[float, ...]:
    """The numbers that a buffer [1, 3, 1, 1] was made from, where they are those of the configuration; else its own."""
    rounded = torch.tensor(configured, dtype=buffer.dtype)
    found = buffer.detach().flatten().cpu()
    return configured if torch.equal(found, rounded) else tuple(found.tolist())
