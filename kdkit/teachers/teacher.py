"""Teacher: a frozen model that normalises its own input.

Dimensions: B batch, C classes, H W height and width, K classes of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from typing_extensions import Self

from kdkit.runtime.model_errors import logits_of
from kdkit.teachers.class_map import MISSING, ClassMap, MissingClasses, class_index, pick_classes, resolve_class_map
from kdkit.teachers.class_names import check_names, match_names, pick_names
from kdkit.teachers.fingerprint import fingerprint
from kdkit.teachers.imagenet import names_like
from kdkit.teachers.model_config import model_config, only_input_size, unwrap_timm_teacher
from kdkit.teachers.preparation import Preparation, Resize
from kdkit.teachers.split import Outputs, Splitter
from kdkit.teachers.tap import check_taps, forward_with_taps, tap_width
from kdkit.types import Batch, Normalization, TeacherOutput


class Teacher(nn.Module):
    """A frozen model that returns logits, and features if taps are named, without gradient.

    Teachers made from one model share it (`for_input` and `with_taps` make such teachers): converting one converts all.

    The model is kept out of this module's registered children: it follows `.to()` and the like, but no state dict,
    optimizer, DistributedDataParallel or `train()` call of a parent ever reaches it. Autocast of the surrounding
    training step does not reach it either, so that a live teacher has the outputs of a cached one.

    Args:
        model: maps images [B, 3, H, W] in its own normalisation to logits [B, K]; one without a head (num_classes=0)
            has only features. It is frozen here: eval mode, no parameter requires grad. A
            timm.task.DistillationTeacher is unwrapped, and keeps its normalisation.
        class_map: for each of the data's C classes, the index or the name of the model's class [C], which is taken as
            it is; or an ImageNet family such as "imagenet-1k", by synset; None keeps all K.
        class_names: names of the model's K classes, for a class_map of names; those of ImageNet models are known. They
            change no logit, so they are not part of the fingerprint.
        missing_classes: for a class in class_map that the model does not have: "error", or "min_logit" to give it the
            row's smallest logit.
        input_size: (height, width) in pixels of the model's input; images of another size are resized, antialiased,
            on their device. By default the model's own size where it accepts no other, else none.
        normalization: normalisation of the model's input; by default that of its pretrained_cfg.
        input_normalization: normalisation of the images that arrive; the model's own by default.
        name: the teacher's name in errors and fingerprints.
        taps: names of the features to return with the logits, e.g. ["pooled"]; see kdkit.teachers.tap. They change no
            logit, so they are not part of the fingerprint.
        resize: interpolation to `input_size`; "error" refuses images of another size.
        autocast: floating dtype of autocast around the model, whose weights stay as they are; None for no autocast.

    Raises:
        UnknownNameError: the model has no such tap.
        ClassMismatchError: the class map names classes that the model does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        class_map: ClassMap | None = None,
        class_names: Sequence[str] | None = None,
        missing_classes: MissingClasses = "error",
        input_size: tuple[int, int] | None = None,
        normalization: Normalization | None = None,
        input_normalization: Normalization | None = None,
        name: str | None = None,
        taps: Sequence[str] = (),
        resize: Resize = "bicubic",
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        model, own_normalization = unwrap_timm_teacher(model)
        self._frozen = (model.eval().requires_grad_(False),)  # a tuple hides the model from nn.Module's registry
        config = model_config(model)
        self.name = name or str(config.get("architecture") or type(unwrap_model(model)).__name__)
        self.input_size = input_size or only_input_size(model)
        self.normalization = normalization or own_normalization or Normalization.of(model)
        self.input_normalization = input_normalization or self.normalization
        self._model_class_names = check_names(class_names, model, self._subject)
        self.class_map = resolve_class_map(class_map, model, self._subject, class_names, missing_classes)
        self.has_literal_map = class_map is not None and not isinstance(class_map, str)
        self.taps = check_taps(model, taps, self._subject)
        self.resize = resize
        self.autocast = autocast
        self._forward_fn: Callable[..., Outputs] = forward_with_taps
        self._compile_options: dict[str, Any] | None = None
        self._split = Splitter(self._subject)
        self._prepare = Preparation(
            model, self.normalization, self.input_normalization, self.input_size, resize, self._subject
        )
        self._register_class_index()

    @property
    def _subject(self) -> str:
        return f"the teacher {self.name!r}"

    @property
    def model(self) -> nn.Module:
        """The frozen model."""
        return self._frozen[0]

    @property
    def num_classes(self) -> int | None:
        """Width C of the logits, after the class map; 0 without a head, None if the model does not report it."""
        if self.class_map is not None:
            return len(self.class_map)
        return getattr(unwrap_model(self.model), "num_classes", None)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the C classes, after the class map, if those of the model's classes were given; else None."""
        return pick_names(self._model_class_names, self.class_map)

    @property
    def head_weight(self) -> Tensor | None:
        """Weight [C, D] of the model's last linear layer, after the class map; None if it lacks one, or a class."""
        classifier = getattr(unwrap_model(self.model), "get_classifier", lambda: None)()
        if not isinstance(classifier, nn.Linear) or MISSING in (self.class_map or ()):
            return None
        return self.map_classes(classifier.weight.detach().T).T

    def for_input(self, normalization: Normalization) -> Teacher:
        """Returns a Teacher of the same frozen model whose images arrive in `normalization`, the student's."""
        return self._with(input_normalization=normalization)

    def with_taps(self, taps: Sequence[str]) -> Teacher:
        """Returns a Teacher of the same frozen model that returns the features at `taps`."""
        return self._with(taps=taps)

    def tap_width(self, tap: str) -> int:
        """Returns the width D of the feature at a tap."""
        return tap_width(self.model, tap)

    def names_like(self, names: Sequence[str]) -> tuple[str, ...] | None:
        """Returns the class names: those given, else those of the model's ImageNet family if `names` belong to it."""
        width = getattr(unwrap_model(self.model), "num_classes", None)
        return pick_names(self._model_class_names or names_like(names, width), self.class_map)

    def for_classes(self, names: Sequence[str]) -> Teacher:
        """Returns a Teacher of the same model whose classes are those of the data, by name; itself without names.

        Raises:
            ClassMismatchError: the data has other classes; names the first difference.
        """
        known = None if self.has_literal_map else self.names_like(names)
        if known is None or (index := match_names(names, known, self.class_map, self._subject)) is None:
            return self
        return self._with(class_map=index, class_names=self._model_class_names if self.class_map else known)

    def _with(self, **changes: Any) -> Teacher:
        settings = {
            "class_map": self.class_map,
            "class_names": self._model_class_names,
            "missing_classes": "min_logit" if MISSING in (self.class_map or ()) else "error",
            "input_size": self.input_size,
            "normalization": self.normalization,
            "input_normalization": self.input_normalization,
            "name": self.name,
            "taps": self.taps,
            "resize": self.resize,
            "autocast": self.autocast,
        }
        twin = Teacher(self.model, **{**settings, **changes})
        twin.has_literal_map = self.has_literal_map
        return twin if self._compile_options is None else twin.compile(**self._compile_options)

    def compile(self, **options: Any) -> Self:  # type: ignore[override]  # torch's own returns nothing
        """Compiles the forward pass; `options` are those of torch.compile."""
        self._compile_options = options
        self._forward_fn = torch.compile(forward_with_taps, **options)
        return self

    @torch.no_grad()
    def forward(self, batch: Batch) -> TeacherOutput:
        """Returns logits [B, C] and features for `batch.input` [B, 3, H, W], in the model's dtype."""
        if self.model.training:  # other code has a reference to the model
            self.model.eval()
        images = batch.input if batch.teacher_input is None else batch.teacher_input
        logits, features = self._split(self._forward, images)
        return TeacherOutput(None if self.num_classes == 0 else self.map_classes(logits), features)

    def map_classes(self, logits: Tensor) -> Tensor:
        """Logits [B, K] of the model's classes -> [B, C] of the data's."""
        if self._class_index is None or self.class_map is None:
            return logits
        return pick_classes(logits, self._class_index) if MISSING in self.class_map else logits[:, self._class_index]

    def _forward(self, images: Tensor) -> Outputs:
        """Logits and features of images [B, 3, H, W] as they arrive."""
        device = images.device.type
        with torch.autocast(device, enabled=False):
            images = self._prepare(images)
        with torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None):
            output, features = self._forward_fn(self.model, images, self.taps)
        return (output if self.num_classes == 0 else logits_of(output, self._subject)), features

    def fingerprint(self) -> dict[str, Any]:
        """Returns what identifies this teacher, as plain JSON values; see kdkit.teachers.fingerprint."""
        return fingerprint(
            self.model,
            name=self.name,
            normalization=self.normalization,
            input_size=self.input_size,
            num_classes=self.num_classes,
            class_map=self.class_map,
            autocast=self.autocast,
            resize=self.resize,
        )

    def __repr__(self) -> str:
        """One line: the model, its classes, input, features, precision and device."""
        parameter = next(self.model.parameters(), None)
        facts = [
            repr(self.name),
            f"{sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M parameters",
            f"num_classes={self.num_classes}",
            *([] if self.input_size is None else [f"input_size={'x'.join(map(str, self.input_size))}"]),
            *([] if not self.taps else [f"taps={list(self.taps)}"]),
            *([] if self.autocast is None else [f"autocast={str(self.autocast).removeprefix('torch.')}"]),
            *([] if parameter is None else [f"{str(parameter.dtype).removeprefix('torch.')} on {parameter.device}"]),
        ]
        return f"{type(self).__name__}({', '.join(facts)})"

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever `mode` is."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Stays frozen, whatever `requires_grad` is."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.model._apply(fn)
        self._prepare._refresh_constants()
        self._register_class_index()
        return self

    def _register_class_index(self) -> None:
        reference = next(self.model.parameters(), torch.empty(0))
        index = None if self.class_map is None else class_index(self.class_map, self.model, self._subject, "min_logit")
        self.register_buffer("_class_index", None if index is None else index.to(reference.device), persistent=False)

    _class_index: Tensor | None
