"""Teacher: a frozen timm model that normalises for itself and says what it thinks of a batch.

Dimensions: B batch, C classes, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import unwrap_model
from torch import Tensor, nn
from typing_extensions import Self

from kdkit.errors import ClassMismatchError, ConfigError
from kdkit.signals import Batch, Normalization, TeacherOutput
from kdkit.teachers.fingerprint import fingerprint
from kdkit.teachers.tap import check_taps, forward_with_taps


class Teacher(nn.Module):
    """A frozen model, asked for its logits, and for features where taps are named, without gradient.

    Teachers made from one model share it (`for_input` and `with_taps` make such): converting one converts all.

    The model is kept out of this module's registered children: it follows `.to()` and the like, but no state dict,
    optimizer, DistributedDataParallel or `train()` call of a parent ever reaches it. Autocast of the surrounding
    training step does not reach it either, so that a live teacher says what a cached one said.

    Args:
        model: maps images [B, 3, H, W] in its own normalisation to logits [B, K]. It is frozen here: eval mode,
            no parameter requires grad.
        class_map: for each of the C classes asked for, the index of the model's class [C]; None keeps all K.
        input_size: (height, width) in pixels that the model is given; images of another size are resized, antialiased
            bicubic, on their device. By default the model's own size where it accepts no other, else none.
        normalization: what the model expects; by default what its pretrained_cfg says.
        input_normalization: that of the images that arrive; the model's own by default.
        name: how errors and fingerprints call it.
        taps: names of the features that each answer holds beside the logits, e.g. ["pooled"]; see kdkit.teachers.tap.
            They change no logit, so they are no part of the fingerprint.

    Raises:
        UnknownNameError: the model has no such tap.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        class_map: Sequence[int] | None = None,
        input_size: tuple[int, int] | None = None,
        normalization: Normalization | None = None,
        input_normalization: Normalization | None = None,
        name: str | None = None,
        taps: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._frozen = (_freeze(model),)  # a tuple hides the model from nn.Module's registry
        config = model_config(model)
        self.name = name or str(config.get("architecture") or type(unwrap_model(model)).__name__)
        self.input_size = input_size or _only_input_size(model, config)
        self.normalization = normalization or Normalization.of(model)
        self.input_normalization = input_normalization or self.normalization
        self.class_map = None if class_map is None else tuple(class_map)
        self.taps = check_taps(model, taps, f"the teacher {self.name!r}")
        self._register_constants()

    @property
    def model(self) -> nn.Module:
        """The frozen model."""
        return self._frozen[0]

    @property
    def num_classes(self) -> int | None:
        """Width C of the logits, after the class map; None where the model does not tell."""
        if self.class_map is not None:
            return len(self.class_map)
        return getattr(unwrap_model(self.model), "num_classes", None)

    @property
    def head_weight(self) -> Tensor | None:
        """Weight [C, D] of the model's last linear layer, after the class map; None where it has no such layer."""
        classifier = getattr(unwrap_model(self.model), "get_classifier", lambda: None)()
        if not isinstance(classifier, nn.Linear):
            return None
        weight = classifier.weight.detach()
        return weight if self._class_index is None else weight[self._class_index]

    def for_input(self, normalization: Normalization) -> Teacher:
        """The same frozen model behind a Teacher whose images arrive in `normalization`, the student's."""
        return self._with(input_normalization=normalization)

    def with_taps(self, taps: Sequence[str]) -> Teacher:
        """The same frozen model behind a Teacher whose answers hold the features at `taps`."""
        return self._with(taps=taps)

    def _with(self, **changes: Any) -> Teacher:
        settings = {
            "class_map": self.class_map,
            "input_size": self.input_size,
            "normalization": self.normalization,
            "input_normalization": self.input_normalization,
            "name": self.name,
            "taps": self.taps,
        }
        return Teacher(self.model, **{**settings, **changes})

    @torch.no_grad()
    def forward(self, batch: Batch) -> TeacherOutput:
        """What the model says about `batch.input` [B, 3, H, W]: logits [B, C] and features, in the model's dtype."""
        if self.model.training:  # someone reached the model by another name
            self.model.eval()
        images = batch.input if batch.teacher_input is None else batch.teacher_input
        with torch.autocast(images.device.type, enabled=False):
            logits, features = forward_with_taps(self.model, self._prepare(images), self.taps)
        if not isinstance(logits, Tensor):
            raise ConfigError(f"the teacher {self.name!r} answers with {type(logits).__name__}, expected logits [B, C]")
        return TeacherOutput(logits if self._class_index is None else logits[:, self._class_index], features)

    def fingerprint(self) -> dict[str, Any]:
        """What makes this teacher this teacher, as plain JSON values; see kdkit.teachers.fingerprint."""
        return fingerprint(self)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever `mode` says."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Stays frozen, whatever `requires_grad` says."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.model._apply(fn)
        self._register_constants()  # from their exact values, which a conversion to half precision would round
        return self

    def _register_constants(self) -> None:
        """Buffers for the one multiply-add from the arriving normalisation to the model's, and for the class map."""
        reference = next(self.model.parameters(), torch.empty(0))
        own, arriving = self.normalization, self.input_normalization
        mean, std, input_mean, input_std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
            for values in (own.mean, own.std, arriving.mean, arriving.std)
        )
        same = own == arriving
        dtype = torch.promote_types(reference.dtype, torch.float32)
        scale = None if same else (input_std / std).to(reference.device, dtype)
        shift = None if same else ((input_mean - mean) / std).to(reference.device, dtype)
        index = None if self.class_map is None else _class_index(self.class_map, self.model, self.name)
        self.register_buffer("_scale", scale, persistent=False)
        self.register_buffer("_shift", shift, persistent=False)
        self.register_buffer("_class_index", None if index is None else index.to(reference.device), persistent=False)

    _scale: Tensor | None
    _shift: Tensor | None
    _class_index: Tensor | None

    def _prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] as they arrive -> at the model's size, dtype and normalisation."""
        parameter = next(self.model.parameters(), images)
        images = images.to(torch.promote_types(images.dtype, torch.float32))  # rounded to the model's dtype at the end
        if self.input_size is not None and tuple(images.shape[-2:]) != tuple(self.input_size):
            images = F.interpolate(images, self.input_size, mode="bicubic", antialias=True, align_corners=False)
        if self._scale is not None and self._shift is not None:
            images = torch.addcmul(self._shift.to(images.dtype), images, self._scale.to(images.dtype))
        return images.to(parameter.dtype)


def model_config(model: nn.Module) -> dict[str, Any]:
    """timm's pretrained_cfg of a model, or an empty dict."""
    config = getattr(unwrap_model(model), "pretrained_cfg", None)
    return dict(config) if config else {}


def _freeze(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _only_input_size(model: nn.Module, config: dict[str, Any]) -> tuple[int, int] | None:
    """(H, W) of a model that accepts no other size, such as a ViT with a fixed position embedding."""
    patches: Any = getattr(unwrap_model(model), "patch_embed", None)
    if getattr(patches, "img_size", None) is not None:
        return tuple(patches.img_size) if getattr(patches, "strict_img_size", True) else None
    if config.get("fixed_input_size") and "input_size" in config:
        _, height, width = config["input_size"]
        return height, width
    return None


def _class_index(class_map: Sequence[int], model: nn.Module, name: str) -> Tensor:
    index = torch.as_tensor(class_map)
    if index.is_floating_point():
        raise ConfigError(f"class_map must hold whole class indices, got {index.dtype}")
    index = index.long()
    width = getattr(unwrap_model(model), "num_classes", None)
    if index.ndim != 1 or index.numel() < 2:
        raise ConfigError(f"class_map must be a list of at least 2 class indices, got shape {list(index.shape)}")
    least, greatest = int(index.min()), int(index.max())
    if least < 0 or (width is not None and greatest >= width):
        known = "" if width is None else f" to {width - 1}"
        raise ClassMismatchError(
            f"class_map points at class {least if least < 0 else greatest}, the teacher {name!r} has classes 0{known}"
        )
    return index
