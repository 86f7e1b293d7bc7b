"""What a timm model says about itself."""

from __future__ import annotations

from typing import Any

from timm.utils import unwrap_model
from torch import nn


def model_config(model: nn.Module) -> dict[str, Any]:
    """timm's pretrained_cfg of a model, or an empty dict."""
    config = getattr(unwrap_model(model), "pretrained_cfg", None)
    return dict(config) if config else {}


def only_input_size(model: nn.Module) -> tuple[int, int] | None:
    """(H, W) in pixels of a model that accepts no other size, such as a ViT with a fixed position embedding."""
    config = model_config(model)
    patches: Any = getattr(unwrap_model(model), "patch_embed", None)
    if getattr(patches, "img_size", None) is not None:
        return tuple(patches.img_size) if getattr(patches, "strict_img_size", True) else None
    if config.get("fixed_input_size") and "input_size" in config:
        _, height, width = config["input_size"]
        return height, width
    return None
