"""TeacherEnsemble: several teachers whose probabilities are averaged.

Dimensions: B batch, C classes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from typing_extensions import Self

from kdkit.errors import ClassMismatchError, ConfigError
from kdkit.losses import mean_teacher
from kdkit.teachers.teacher import Teacher
from kdkit.types import Batch, Normalization


class TeacherEnsemble(Teacher):
    """Teachers whose probabilities are averaged: the log of the mean, log sum_i w_i softmax(z_i), serves as logits.

    Each member resizes and normalises its own input and has its own class map; all run on the same images. An ensemble
    has no features, because features of several models cannot be averaged.

    Args:
        members: at least one Teacher; all have the same C classes, in one order.
        weights: one number >= 0 per member, scaled to sum 1; equal when None.
        name: the ensemble's name in errors and fingerprints.

    Raises:
        ClassMismatchError: the members differ in the number or the names of their classes.
        ConfigError: there is no member, or the weights do not fit.
    """

    def __init__(
        self, members: Sequence[Teacher], weights: Sequence[float] | None = None, *, name: str | None = None
    ) -> None:
        given: Sequence[object] = members
        if strangers := [type(member).__name__ for member in given if not isinstance(member, Teacher)]:
            raise ConfigError(f"the members of an ensemble are Teachers, got {strangers[0]}: pass it to create_teacher")
        arriving = members[0].input_normalization if members else Normalization()
        names = _class_names(members)
        alike = [member.with_taps(()).for_input(arriving) for member in members]
        if names is not None:
            alike = [member.for_classes(names) for member in alike]
        mean = _MeanOfTeachers(alike, weights)
        name = name or f"ensemble of {', '.join(member.name for member in members)}"
        super().__init__(mean, normalization=arriving, name=name, class_names=names)
        self.weights = mean.weights

    @property
    def members(self) -> tuple[Teacher, ...]:
        """The teachers that are averaged."""
        mean = self.model
        assert isinstance(mean, _MeanOfTeachers)
        return tuple(mean.members)

    def for_input(self, normalization: Normalization) -> TeacherEnsemble:
        """Returns an ensemble of the same members whose images arrive in `normalization`, the student's."""
        return TeacherEnsemble(
            [member.for_input(normalization) for member in self.members], self.weights, name=self.name
        )

    def for_classes(self, names: Sequence[str]) -> TeacherEnsemble:
        """Returns an ensemble whose members' classes are in the order of `names`, as far as they name them.

        Raises:
            ClassMismatchError: a member has other classes; names the first difference.
        """
        members = [member.for_classes(names) for member in self.members]
        return TeacherEnsemble(members, self.weights, name=self.name)

    def with_taps(self, taps: Sequence[str]) -> TeacherEnsemble:
        """Returns the ensemble itself, which has no taps.

        Raises:
            ConfigError: a tap is named.
        """
        if taps:
            raise ConfigError(
                f"{self._subject} has no features, got the taps {', '.join(taps)}: take one of its members"
            )
        return self

    def compile(self, **options: Any) -> Self:  # type: ignore[override]  # torch's own returns nothing
        """Compiles each member; `options` are those of torch.compile."""
        for member in self.members:
            member.compile(**options)
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Returns the members' fingerprints and weights, as plain JSON values."""
        members = [member.fingerprint() for member in self.members]
        dtypes = {str(member["dtype"]) for member in members}
        return {
            "name": self.name,
            "weights_sha256": _sha256_of([[member["weights_sha256"] for member in members], self.weights]),
            "structure_sha256": _sha256_of([member["structure_sha256"] for member in members]),
            "members": members,
            "member_weights": list(self.weights),
            "num_classes": self.num_classes,
            "dtype": dtypes.pop() if len(dtypes) == 1 else "mixed",
            "versions": {"timm": timm.__version__, "torch": str(torch.__version__)},
        }


def _class_names(members: Sequence[Teacher]) -> tuple[str, ...] | None:
    """The names of the classes, which are one order for all members; None if no member knows them."""
    named = [member for member in members if member.class_names is not None]
    return next((member.class_names for member in sorted(named, key=lambda member: member.has_literal_map)), None)


def _sha256_of(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


class _MeanOfTeachers(nn.Module):
    """Images [B, 3, H, W] -> the log of the members' mean probabilities [B, C]."""

    def __init__(self, members: Sequence[Teacher], weights: Sequence[float] | None) -> None:
        super().__init__()
        if not members:
            raise ConfigError("an ensemble needs at least one teacher, got none")
        counts = [member.num_classes for member in members]
        if len(set(counts)) > 1:
            shown = ", ".join(f"{member.name!r} {member.num_classes}" for member in members)
            raise ClassMismatchError(f"the members of an ensemble must have one number of classes, got {shown}")
        shares = [1.0] * len(members) if weights is None else [float(weight) for weight in weights]
        if len(shares) != len(members) or min(shares) < 0 or not 0 < sum(shares) < math.inf:
            raise ConfigError(f"weights must hold one number >= 0 for each of {len(members)} teachers, got {shares}")
        self.members: Sequence[Teacher] = nn.ModuleList(members)  # type: ignore[assignment]
        self.weights = tuple(share / sum(shares) for share in shares)
        self.num_classes = members[0].num_classes

    def forward(self, images: Tensor) -> Tensor:
        batch = Batch(images, images.new_zeros(0))
        logits = [member(batch).logits for member, share in zip(self.members, self.weights, strict=True) if share > 0]
        return mean_teacher(logits, [share for share in self.weights if share > 0])
