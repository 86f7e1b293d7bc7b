"""TeacherEnsemble: several teachers whose probabilities are averaged.

Dimensions: C classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import timm
import torch
from typing_extensions import Self

from kdkit.errors import ConfigError
from kdkit.teachers.members import Members, place_taps, run_members, shares_of
from kdkit.teachers.teacher import Teacher
from kdkit.types import Normalization


class TeacherEnsemble(Teacher):
    """Teachers whose probabilities are averaged: the log of the mean, log sum_i w_i softmax(z_i), serves as logits.

    Each member resizes and normalises its own input and has its own class map; all run on the same images. Features are
    not averaged: each member's stay apart, under the tap's name with the member's number, '0:pooled' and '1:pooled'.

    Args:
        members: at least one Teacher; all whose probabilities are averaged have the same C classes, in one order.
        weights: one number >= 0 per member, scaled to sum 1; equal when None. A member of weight 0, or without a head,
            gives only features, and may have other classes.
        name: the ensemble's name in errors and fingerprints.
        taps: taps of the members, as in kdkit.teachers.members.

    Raises:
        ClassMismatchError: the members differ in the number or the names of their classes.
        ConfigError: there is no member, or the weights do not fit, or several members have a tap that names none.
        UnknownNameError: no member has such a tap.
    """

    def __init__(
        self,
        members: Sequence[Teacher],
        weights: Sequence[float] | None = None,
        *,
        name: str | None = None,
        taps: Sequence[str] = (),
    ) -> None:
        given: Sequence[object] = members
        if strangers := [type(member).__name__ for member in given if not isinstance(member, Teacher)]:
            raise ConfigError(f"the members of an ensemble are Teachers, got {strangers[0]}: pass it to create_teacher")
        shares = shares_of(members, weights)
        arriving = members[0].input_normalization
        name = name or f"ensemble of {', '.join(member.name for member in members)}"
        places = place_taps(members, taps, f"the teacher {name!r}")
        names = _class_names([member for member, share in zip(members, shares, strict=True) if share > 0])
        alike = [member.for_input(arriving) for member in members]
        for number, share in enumerate(shares):
            alike[number] = alike[number].with_taps([place.tap for place in places.values() if place.number == number])
            if names is not None and share > 0:
                alike[number] = alike[number].for_classes(names)
        super().__init__(Members(alike, shares, places), normalization=arriving, name=name, class_names=names)
        self.weights, self.taps = shares, tuple(places)
        self._given_weights = weights  # of members without logits too
        self._forward_fn = run_members

    @property
    def members(self) -> tuple[Teacher, ...]:
        """The teachers that are averaged."""
        return tuple(self._together.members)

    @property
    def _together(self) -> Members:
        assert isinstance(self.model, Members)
        return self.model

    def _of(self, members: Sequence[Teacher], taps: Sequence[str] | None = None) -> TeacherEnsemble:
        """An ensemble of these members, with this one's weights, name and, unless others are given, taps."""
        taps = self.taps if taps is None else taps
        return TeacherEnsemble(members, self._given_weights, name=self.name, taps=taps)

    def for_input(self, normalization: Normalization) -> TeacherEnsemble:
        """Returns an ensemble of the same members whose images arrive in `normalization`, the student's."""
        return self._of([member.for_input(normalization) for member in self.members])

    def for_classes(self, names: Sequence[str]) -> TeacherEnsemble:
        """Returns an ensemble whose members' classes are in the order of `names`, as far as they name them.

        Raises:
            ClassMismatchError: a member has other classes; names the first difference.
        """
        pairs = zip(self.members, self.weights, strict=True)
        return self._of([member.for_classes(names) if share > 0 else member for member, share in pairs])

    def with_taps(self, taps: Sequence[str]) -> TeacherEnsemble:
        """Returns an ensemble of the same members with the features at `taps`, e.g. ['0:pooled', '1:tokens']."""
        return self._of(self.members, taps)

    def tap_width(self, tap: str) -> int:
        """Returns the width D of the feature at a tap."""
        place = place_taps(self.members, [tap], self._subject)[tap]
        return self.members[place.number].tap_width(place.tap)

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
