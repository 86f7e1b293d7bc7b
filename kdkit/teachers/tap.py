"""Taps: named features of a timm model, read in the forward pass that makes its logits, without any edit of the model.

- 'pooled' [B, D]: the input of the classifier, timm's pre-logits.
- 'tokens' [B, N, D]: the output of `forward_features`. Of a transformer, the patch tokens after the last norm, without
  class or register tokens; of a model with maps, its final map with the positions in rows, N = H * W.
- 'class_token' [B, D] and 'registers' [B, N, D]: prefix tokens of a transformer after the last norm, if it has them.
- 'blocks.i' [B, N, D]: the patch tokens after block i of a plain transformer.
- 'stages.i' [B, D, H, W]: the map after stage i of any other model. i is timm's own number, that of `features_only`'s
  out_indices, so a stem counts where timm counts it.
- The path of a module, such as 'layer4.1.conv2' or, for its input, 'layer4.1.act2.input': see module_tap. These are
  taps of any nn.Module; one of the names above comes before a path that is spelt like it.

Dimensions: B batch, C classes, D width, H W height and width, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdkit.errors import ConfigError, UnknownNameError, nearest
from kdkit.teachers.model_config import find_classifiers
from kdkit.teachers.module_tap import evaluating, find_module, module_width, read_modules

POOLED, TOKENS, CLASS_TOKEN, REGISTERS = "pooled", "tokens", "class_token", "registers"
_ALWAYS = (POOLED, TOKENS)  # taps of every model that follows timm's interface
_given_pooled: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Classifier -> whether its input is the pre-logits, once that is known."""
_SAME_VALUES = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous", "clone", "detach"}
_AFTER_THE_LAST = (POOLED, TOKENS, CLASS_TOKEN, REGISTERS)


def available_taps(model: nn.Module) -> tuple[str, ...]:
    """Returns the named taps of `model`, those not by path; none where it does not follow timm's interface."""
    plain: Any = unwrap_model(model)
    if not _is_timm_like(plain):
        return ()
    info = list(getattr(plain, "feature_info", None) or ()) if hasattr(plain, "forward_intermediates") else []
    kind = "blocks" if len(info) > 1 and len({entry["reduction"] for entry in info}) == 1 else "stages"
    prefix = [CLASS_TOKEN] if _has_token(plain, "cls") else []
    prefix += [REGISTERS] if _has_token(plain, "reg") else []
    return (POOLED, TOKENS, *prefix, *(f"{kind}.{index}" for index in range(len(info))))


def _is_timm_like(plain: Any) -> bool:
    return hasattr(plain, "forward_features") and hasattr(plain, "forward_head")


def has_tap(model: nn.Module, tap: str) -> bool:
    """Whether `model` has a tap of that name, or a module of that path."""
    return tap in available_taps(model) or find_module(model, tap) is not None


def check_taps(model: nn.Module, taps: Sequence[str], subject: str) -> tuple[str, ...]:
    """Returns `taps` as a tuple.

    Args:
        model: the model that must have the taps.
        taps: names.
        subject: the model's name in errors.

    Raises:
        UnknownNameError: the model has no such tap, and no module of that path; the error names its taps.
        ConfigError: a tap is named twice, or one text was given instead of a list.
    """
    if isinstance(taps, str):
        raise ConfigError(f"taps is a list of names, got the text {taps!r}: write [{taps!r}]")
    known = available_taps(model)
    for tap in taps:
        if not has_tap(model, tap):
            has = f"it has {', '.join(known)}" if known else "it has none, since it is not a timm model"
            paths = [path for path, _ in unwrap_model(model).named_modules() if path]
            suggested = nearest(tap, [*known, *paths])
            raise UnknownNameError(f"{subject} has no tap {tap!r}{suggested}; {has}, and no module of that path")
    if len(set(taps)) != len(taps):
        raise ConfigError(f"taps must differ from each other, got {list(taps)}")
    return tuple(taps)


def tap_width(model: nn.Module, tap: str) -> int:
    """Returns the width D of a tap, which is known without a forward pass unless the tap is a module's path."""
    plain: Any = unwrap_model(model)
    if tap not in available_taps(plain):
        return module_width(plain, tap)
    if tap == POOLED:
        return int(getattr(plain, "head_hidden_size", None) or plain.num_features)
    if tap in _AFTER_THE_LAST:
        return int(plain.num_features)
    return int(plain.feature_info[_index(tap)]["num_chs"])


def forward_with_taps(model: nn.Module, images: Tensor, taps: Sequence[str]) -> tuple[Any, dict[str, Tensor]]:
    """Returns the model's own output and the features at `taps`, from one forward pass.

    Args:
        model: a timm model; any module where all taps are paths of modules.
        images: [B, 3, H, W] as the model takes them.
        taps: names that `check_taps` accepted.
    """
    if not taps:
        return model(images), {}
    known = _ALWAYS if set(taps) <= set(_ALWAYS) and _is_timm_like(unwrap_model(model)) else available_taps(model)
    named = [tap for tap in taps if tap in known]
    if len(named) < len(taps):
        paths = [tap for tap in taps if tap not in named]
        (output, found), read = read_modules(model, paths, lambda: forward_with_taps(model, images, named), images)
        return output, {tap: (found | read)[tap] for tap in taps}
    plain: Any = unwrap_model(model)
    final, found = _forward_features(plain, images, [tap for tap in taps if tap not in _AFTER_THE_LAST])
    output, pooled = _run_head(plain, final, POOLED in taps)
    if POOLED in taps:
        found[POOLED] = pooled
    if TOKENS in taps:
        found[TOKENS] = _as_tokens(plain, final)
    if CLASS_TOKEN in taps:
        found[CLASS_TOKEN] = final[:, 0]
    if REGISTERS in taps:
        found[REGISTERS] = final[:, int(_has_token(plain, "cls")) : plain.num_prefix_tokens]
    return output, {tap: found[tap] for tap in taps}


def _run_head(plain: Any, final: Tensor, wants_pooled: bool) -> tuple[Any, Any]:
    """The head's output, and timm's pre-logits if wanted.

    In training the head runs once, because its dropout is drawn anew in each run and its norms count each run: the
    pre-logits are read where the classifier is given them. Where it is given something else, and in a graph of
    torch.compile, which takes no hook, the head runs twice, so that the feature has a dropout of its own.
    """
    if wants_pooled and plain.training and not torch.compiler.is_compiling():
        classifiers = find_classifiers(plain)
        if len(classifiers) == 1 and _is_given_pooled(plain, classifiers[0], final):
            output, pooled = _read_input(plain, classifiers[0], final)
            return output, plain.forward_head(final, pre_logits=True) if pooled is None else pooled
    return plain.forward_head(final), plain.forward_head(final, pre_logits=True) if wants_pooled else None


def _is_given_pooled(plain: Any, classifier: nn.Module, final: Any) -> bool:
    """Whether the classifier's input is the pre-logits: the head runs the same steps on the way to both."""
    if classifier not in _given_pooled:
        _given_pooled[classifier] = isinstance(final, Tensor) and _has_same_steps(plain, classifier, final[:2].detach())
    return _given_pooled[classifier]


def _has_same_steps(plain: Any, classifier: nn.Module, final: Tensor) -> bool:
    until: list[Any] = []
    with evaluating(plain), _without_cast_cache(final.device.type):
        with _Steps() as steps:
            handle = classifier.register_forward_pre_hook(lambda *_: until.extend(steps.found))
            try:
                given = _read_input(plain, classifier, final)[1]
            finally:
                handle.remove()
        with _Steps() as steps:
            pooled = plain.forward_head(final, pre_logits=True)
    return given is not None and given.shape == pooled.shape and until == steps.found


class _Steps(TorchFunctionMode):
    """Notes the functions of torch that run within the context, but for those that leave the values as they are.

    Attributes:
        found: the name of each function, and the identities of the parameters that it takes, in order. Dropout counts
            in evaluation, too, unless its probability is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[int]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result, name = func(*args, **kwargs), func.__name__
        drops_none = "dropout" in name and kwargs.get("p", args[1] if len(args) > 1 else None) == 0
        if isinstance(result, Tensor) and name not in _SAME_VALUES and not drops_none:
            taken = [id(value) for value in (*args, *kwargs.values()) if isinstance(value, nn.Parameter)]
            self.found.append((name, taken))
        return result


@contextmanager
def _without_cast_cache(device: str) -> Iterator[None]:
    """Autocast as it is, but for its cache, in which some versions of torch keep casts made without gradients."""
    if not torch.amp.is_autocast_available(device):
        yield
        return
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    with torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False):
        yield


def _read_input(plain: Any, classifier: nn.Module, final: Tensor) -> tuple[Any, Any]:
    """The head's output, and the input of the classifier, [B, D]; None if the head does not run it."""
    given: list[Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        output = plain.forward_head(final)
    finally:
        handle.remove()
    return output, given[-1].flatten(1) if given else None


def _forward_features(plain: Any, images: Tensor, inner: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The input of the head, and the taps of blocks or stages, the only reason to call `forward_intermediates`."""
    if not inner:
        return plain.forward_features(images), {}
    order = sorted(inner, key=_index)  # timm returns them in the order of the model
    final, maps = plain.forward_intermediates(images, indices=[_index(tap) for tap in order], output_fmt="NCHW")
    found: Mapping[str, Tensor] = dict(zip(order, maps, strict=True))
    return final, {
        tap: rearrange(feature, "b d h w -> b (h w) d") if tap.startswith("blocks") else feature
        for tap, feature in found.items()
    }


def _as_tokens(plain: Any, final: Tensor) -> Tensor:
    """The output of `forward_features` as patch tokens [B, N, D]."""
    if final.ndim == 4:
        is_last = getattr(plain, "output_fmt", "NCHW") == "NHWC"
        return rearrange(final, "b h w d -> b (h w) d" if is_last else "b d h w -> b (h w) d")
    prefix = getattr(plain, "num_prefix_tokens", int(_has_token(plain, "cls")))
    return final[:, prefix:]


def _has_token(plain: Any, kind: str) -> bool:
    """Whether a model has a "cls" token or "reg" tokens; timm puts the class token first, then the registers."""
    return getattr(plain, f"{kind}_token", None) is not None


def _index(tap: str) -> int:
    return int(tap.partition(".")[2])
