"""The terms of a distillation loss: losses with their weights, options and taps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from torch import Tensor

from kdkit import losses
from kdkit.errors import ConfigError
from kdkit.types import TeacherOutput

DistillLoss = Callable[..., Tensor]
Samples = Mapping[str, Tensor | None]
"""What is known of the samples of a batch: their `target`, and their `row` in the dataset."""

RESULT_KEYS = ("loss", "output", "task_loss", "kd_loss", "teacher_top1", "agreement_top1", "teacher_entropy")
"""Keys of a task's result that are not those of its terms."""
_LOSS = "loss"


@dataclass(frozen=True)
class LossTerm:
    """One term of a distillation loss: kd_loss is the weighted sum of all of them."""

    name: str
    """A loss of kdkit.losses, or a name for `loss`; also the term's key in a task's result."""

    weight: float = 1.0
    """The factor of the term in kd_loss."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the loss, as kdkit.losses.create takes them, e.g. {"temperature": 4.0}."""

    student_taps: str | Sequence[str] = ()
    """Taps of the student, for a loss on features; see kdkit.teachers.tap. The task's taps by default."""

    teacher_taps: str | Sequence[str] = ()
    """Taps of the teacher, for a loss on features; the task's taps by default."""

    loss: DistillLoss | None = None
    """A function instead of a named loss: of logits, or of features if taps are given."""

    key: str | None = None
    """The term's key in a task's result; needed if two terms share a name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        for name in ("student_taps", "teacher_taps"):
            taps = getattr(self, name)
            object.__setattr__(self, name, (taps,) if isinstance(taps, str) else tuple(taps))
        object.__setattr__(self, "weight", check_weight(f"the weight of term {self.name!r}", self.weight))
        if self.loss is not None and self.options:
            raise ConfigError(f"term {self.name!r}: bind options into your own function instead")
        if not self.result_key.isidentifier() or self.result_key in RESULT_KEYS:
            raise ConfigError(
                f"a term cannot have the key {self.result_key!r}: expected letters, digits and '_', and none of "
                f"{', '.join(RESULT_KEYS)}"
            )

    @property
    def result_key(self) -> str:
        """The term's key in a task's result."""
        return self.name if self.key is None else self.key

    @property
    def is_feature(self) -> bool:
        """Whether the term compares features rather than logits."""
        return bool(self.student_taps or self.teacher_taps) if self.loss is not None else self._spec.is_feature

    @property
    def takes_several(self) -> bool:
        """Whether the loss takes lists of features, several taps of each side."""
        return self.loss is None and self._spec.taps == "several"

    @property
    def projects(self) -> bool:
        """Whether the loss trains a projection, and needs the widths of its features for it."""
        return self.loss is None and self._spec.projects

    @property
    def needs_head(self) -> bool:
        """Whether the loss needs the weight of the teacher's classifier."""
        return self.loss is None and self._spec.needs_head

    @property
    def has_exits(self) -> bool:
        """Whether the loss makes logits of the student's features, and takes no tap of the teacher."""
        return self.loss is None and self._spec.has_exits

    @property
    def compares_logits(self) -> bool:
        """Whether the term needs the teacher's logits."""
        return not self.is_feature or self.has_exits

    @property
    def needs_rows(self) -> bool:
        """Whether the loss keeps something of every sample of the dataset."""
        return self.loss is None and self._spec.needs_rows

    @property
    def multi_label(self) -> bool:
        """Whether the loss compares multi-label logits."""
        return self.loss is None and self._spec.multi_label

    @property
    def aligns(self) -> losses.Aligns:
        """How pairs of features are brought to one form."""
        return "unlike" if self.loss is not None else self._spec.aligns

    @property
    def _spec(self) -> losses.LossSpec:
        return losses.loss_spec(self.name)


DistillLosses = str | DistillLoss | LossTerm | Mapping[str, float | Mapping[str, Any]] | Sequence[str | LossTerm]
"""The distillation loss of a task: one, or several with weights."""


def as_terms(
    distill_loss: DistillLosses, *, temperature: float | None = None, standardize: bool = False
) -> tuple[LossTerm, ...]:
    """Returns the terms of a distillation loss.

    Args:
        distill_loss: a name, a function, a term, a sequence of names and terms, or {name: weight}. Instead of a weight
            a mapping may hold options of the loss, with "weight" among them unless it is 1, and with "student_taps" and
            "teacher_taps"; with "loss", the name is the term's key, so that one loss can compare several teachers.
        temperature: bound into every named logit loss that takes a temperature.
        standardize: whether the logits of every named logit loss are standardised first.

    Raises:
        ConfigError: two terms have one key, no loss takes temperature or standardize, or a term's own options already
            hold it.
        UnknownNameError: no loss has this name.
    """
    if isinstance(distill_loss, Mapping):
        terms = [_weighted(name, given) for name, given in distill_loss.items()]
    elif isinstance(distill_loss, str | LossTerm) or callable(distill_loss):
        terms = [_term(distill_loss)]
    else:
        terms = [_term(item) for item in distill_loss]
    if not terms:
        raise ConfigError("a distillation needs at least one loss, got none")
    keys = [term.result_key for term in terms]
    if repeated := [key for i, key in enumerate(keys) if key in keys[:i]]:
        raise ConfigError(f"two terms have the key {repeated[0]!r}: give one of them key=...")
    terms = _with_option(terms, "temperature", temperature)
    return tuple(_with_option(terms, "standardize", standardize or None))


def bound_loss(term: LossTerm, **extra: Any) -> DistillLoss:
    """Returns the term's loss as a function, its options and `extra` bound.

    Raises:
        ConfigError: an option is unknown, given twice, or cannot work.
    """
    if term.loss is not None:
        return term.loss
    if twice := sorted({*term.options} & {*extra}):
        raise ConfigError(
            f"term {term.name!r}: {twice[0]} follows from the taps, the teacher and the data: leave it out of the "
            "term's options"
        )
    return losses.create(term.name, **term.options, **extra)


def check_output(terms: Sequence[LossTerm], teacher_output: object) -> None:
    """Raises ConfigError if it is no TeacherOutput, or a term needs the logits and a cache kept only their softmax."""
    if not isinstance(teacher_output, TeacherOutput):
        raise ConfigError(f"teacher_output is a TeacherOutput, got {type(teacher_output).__name__}: wrap logits in one")
    if teacher_output.is_normalized and (needy := [term.name for term in terms if term.multi_label]):
        raise ConfigError(
            f"the loss {needy[0]!r} needs multi-label logits, this cache holds normalised log-probabilities: build one "
            "with --codec sigmoid_float16 (or sigmoid_float32, sigmoid_int8)"
        )


def check_weight(name: str, value: object) -> float:
    """Returns a weight as it is, called `name` in errors.

    Raises:
        ConfigError: it is not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _weighted(name: str, given: float | Mapping[str, Any]) -> LossTerm:
    """`given` is the term's weight, or its options and perhaps its weight, taps and loss."""
    options = dict(given) if isinstance(given, Mapping) else {"weight": given}
    student_taps, teacher_taps = (_tap_names(name, options.pop(key, ())) for key in ("student_taps", "teacher_taps"))
    loss, weight = options.pop(_LOSS, None), options.pop("weight", 1.0)
    if loss is None:
        return LossTerm(name, weight, options, student_taps, teacher_taps)
    return LossTerm(str(loss), weight, options, student_taps, teacher_taps, key=name)


def _tap_names(term: str, given: object) -> tuple[str, ...]:
    """The taps of a term in a configuration, in which a module called 0 is a number."""
    names = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    if wrong := [name for name in names if isinstance(name, bool) or not isinstance(name, (str, int))]:
        raise ConfigError(f"term {term!r}: a tap is a name, or a list of names, got {wrong[0]!r}")
    return tuple(map(str, names))


def _term(item: str | DistillLoss | LossTerm) -> LossTerm:
    if isinstance(item, LossTerm):
        return item
    if isinstance(item, str):
        return LossTerm(item)
    if not callable(item):
        raise ConfigError(f"a distillation loss is a name, a function or a LossTerm, got {type(item).__name__}")
    return LossTerm("distill", loss=item)


def _with_option(terms: list[LossTerm], option: str, value: Any) -> list[LossTerm]:
    """Adds the option to each named logit loss that takes it; to an only loss in any case, which may refuse it."""
    if value is None:
        return terms
    named = [term for term in terms if term.loss is None and not term.is_feature]
    if not named:
        raise ConfigError(f"{option} is for a loss on logits given by name; bind it into your own function instead")
    takers = named if len(named) == 1 else [t for t in named if option in losses.loss_spec(t.name).options]
    if not takers:
        raise ConfigError(f"none of the losses {', '.join(term.name for term in named)} takes {option}")
    if twice := [term.name for term in takers if option in term.options]:
        raise ConfigError(f"{option} is given twice, for all losses and in the options of {twice[0]!r}: leave one out")
    return [replace(term, options={**term.options, option: value}) if term in takers else term for term in terms]
