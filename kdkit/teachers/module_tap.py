"""Taps by module path, of any nn.Module: what a module returns, or what it is given, read by hooks of one forward pass.

The tap 'layer4.1.conv2' is the output of the module that `model.get_submodule("layer4.1.conv2")` returns;
'layer4.1.act2.input' is the input of 'layer4.1.act2', e.g. a map before its last ReLU. Of a module that runs several
times the last run counts. A tensor is taken as the module has it, class token and all; a map [B, H, W, D] of a square
image becomes [B, D, H, W].

Dimensions: B batch, D width, H W height and width, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from timm.utils import unwrap_model
from torch import Tensor, nn

from kdkit.errors import ConfigError, KdkitError, first_line
from kdkit.teachers.model_config import model_config, only_input_size

_INPUT = ".input"
_SIDE = 224


def find_module(model: nn.Module, tap: str) -> tuple[nn.Module, bool] | None:
    """Returns the module that a tap names by its path, and whether its input is meant; None if there is none."""
    plain: nn.Module = unwrap_model(model)
    for path, is_input in ((tap, False), (tap.removesuffix(_INPUT), tap.endswith(_INPUT))):
        try:
            if path:
                return plain.get_submodule(path), is_input
        except AttributeError:  # no such attribute, or one that is no module
            continue
    return None


def read_modules(
    model: nn.Module, taps: Sequence[str], run: Callable[[], Any], images: Tensor
) -> tuple[Any, dict[str, Tensor]]:
    """Returns what `run` returns, and the features at `taps`, which it passes on the way.

    Args:
        model: the model that `run` runs on `images`.
        taps: paths of its modules that `find_module` finds.
        run: one forward pass.
        images: [B, 3, H, W].

    Raises:
        ConfigError: the forward pass does not run such a module, or it has no tensor of a feature's shape.
    """
    found: dict[str, Any] = {}
    handles = [_hook(model, tap, found) for tap in taps]
    try:
        output = run()
    finally:
        for handle in handles:
            handle.remove()
    return output, {tap: _as_feature(tap, found, images) for tap in taps}


def module_width(model: nn.Module, tap: str) -> int:
    """Returns the width D of a tap by path, from a forward pass over one black image.

    Raises:
        ConfigError: the model does not take an image of its configured size, or the tap is no feature.
    """
    plain: nn.Module = unwrap_model(model)
    height, width = only_input_size(plain) or tuple(model_config(plain).get("input_size", (3, _SIDE, _SIDE))[1:])
    weight = next(plain.parameters(), torch.empty(0))
    image = torch.zeros(1, 3, height, width, device=weight.device, dtype=weight.dtype)
    try:
        with evaluating(plain):
            feature = read_modules(plain, [tap], lambda: plain(image), image)[1][tap]
    except KdkitError:
        raise
    except Exception as error:  # the model may be anyone's
        raise ConfigError(
            f"the width of the tap {tap!r} is not known, because the model fails on an image of {height} x {width} "
            f"({first_line(error)}): state its size, model.pretrained_cfg = {{'input_size': (3, H, W)}}"
        ) from error
    return feature.shape[2 if feature.ndim == 3 else 1]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context the model is in evaluation mode, without gradients; then each module is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _hook(model: nn.Module, tap: str, found: dict[str, Any]) -> Any:
    named = find_module(model, tap)
    assert named is not None  # check_taps found it
    module, is_input = named

    def keep(value: Any) -> None:
        # A copy, because the activation that follows may change it in place.
        found[tap] = value.clone() if isinstance(value, Tensor) else value

    if is_input:
        return module.register_forward_pre_hook(lambda module, given: keep(given[0] if given else None))
    return module.register_forward_hook(lambda module, given, output: keep(output))


def _as_feature(tap: str, found: dict[str, Any], images: Tensor) -> Tensor:
    if tap not in found:
        raise ConfigError(f"the tap {tap!r} is a module that the forward pass does not run: take another tap")
    feature = found[tap]
    if not isinstance(feature, Tensor):
        raise ConfigError(f"the tap {tap!r} is {type(feature).__name__}, expected a tensor: take another module")
    if feature.ndim not in (2, 3, 4) or len(feature) != len(images) or not feature.is_floating_point():
        raise ConfigError(
            f"the tap {tap!r} is {feature.dtype} {list(feature.shape)} for {len(images)} images, expected floating "
            "point [B, D], [B, N, D] or [B, D, H, W]: take another module"
        )
    is_square = images.shape[2] == images.shape[3]
    if feature.ndim == 4 and is_square and feature.shape[1] == feature.shape[2] != feature.shape[3]:
        return rearrange(feature, "b h w d -> b d h w")
    return feature
