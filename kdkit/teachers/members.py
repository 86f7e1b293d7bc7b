"""The members of an ensemble as one model: the mean of their probabilities, and the features of each.

A tap of a member is named with its number, from 0: '1:pooled'. Without a number it is that of the only member that has
such a tap.

Dimensions: B batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from kdkit.errors import ClassMismatchError, ConfigError, UnknownNameError
from kdkit.losses import mean_teacher
from kdkit.teachers.split import Outputs
from kdkit.teachers.tap import has_tap
from kdkit.teachers.teacher import Teacher
from kdkit.types import Batch


class Place(NamedTuple):
    """A tap of one of the members."""

    number: int
    """The member's number, from 0."""
    tap: str
    """The tap's name in it."""


class Members(nn.Module):
    """Images [B, 3, H, W] -> the log of the members' mean probabilities [B, C].

    Args:
        members: Teachers, each with its taps.
        shares: the members' weights, as `shares_of` returns them.
        places: name of a tap -> the member that has it.
    """

    def __init__(self, members: Sequence[Teacher], shares: Sequence[float], places: dict[str, Place]) -> None:
        super().__init__()
        averaged = [member for member, share in zip(members, shares, strict=True) if share > 0]
        if len({member.num_classes for member in averaged}) > 1:
            shown = ", ".join(f"{member.name!r} {member.num_classes}" for member in averaged)
            raise ClassMismatchError(f"the members of an ensemble must have one number of classes, got {shown}")
        self.members: Sequence[Teacher] = nn.ModuleList(members)  # type: ignore[assignment]
        self.weights, self.places = tuple(shares), places
        self.num_classes = averaged[0].num_classes if averaged else 0

    def forward(self, images: Tensor) -> Tensor:
        """Returns [B, C]; [B, 0] if no member has logits."""
        return self.run(images)[0]

    def run(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what `forward` does, and the features by tap; a member that gives nothing does not run."""
        batch, logits, features = Batch(images, images.new_zeros(0)), [], []
        for member, share in zip(self.members, self.weights, strict=True):
            output = member(batch) if share > 0 or member.taps else None
            features.append({} if output is None else output.features)
            if output is not None and share > 0:
                logits.append(output.logits)
        shares = [share for share in self.weights if share > 0]
        mean = mean_teacher(logits, shares) if logits else images.new_zeros(len(images), 0)
        return mean, {name: features[place.number][place.tap] for name, place in self.places.items()}


def run_members(model: Members, images: Tensor, taps: Sequence[str]) -> Outputs:
    """`forward_with_taps` for `Members`, which know their taps."""
    return model.run(images)


def shares_of(members: Sequence[Teacher], weights: Sequence[float] | None) -> tuple[float, ...]:
    """Returns the weights of the members, scaled to sum 1; 0 for a member without logits, which gives features alone.

    Raises:
        ConfigError: there is no member, or the weights do not fit.
    """
    if not members:
        raise ConfigError("an ensemble needs at least one teacher, got none")
    given = [1.0] * len(members) if weights is None else [float(weight) for weight in weights]
    of_logits = any(member.num_classes != 0 for member in members)
    if len(given) != len(members) or min(given) < 0 or not sum(given) < math.inf or (of_logits and sum(given) == 0):
        raise ConfigError(f"weights must hold one number >= 0 for each of {len(members)} teachers, got {given}")
    shares = [weight * (member.num_classes != 0) for weight, member in zip(given, members, strict=True)]
    return tuple(share / (sum(shares) or 1.0) for share in shares)


def place_taps(members: Sequence[Teacher], taps: Sequence[str], subject: str) -> dict[str, Place]:
    """Returns the member that has each tap.

    Args:
        members: the teachers.
        taps: names as in the module's docstring.
        subject: the ensemble's name in errors.

    Raises:
        ConfigError: several members have the tap, or a name is given twice, or one text instead of a list.
        UnknownNameError: no member has the tap, or there is no member of that number.
    """
    if isinstance(taps, str):
        raise ConfigError(f"taps is a list of names, got the text {taps!r}: write [{taps!r}]")
    places = {tap: _place(members, tap, subject) for tap in taps}
    if len(places) < len(taps):
        raise ConfigError(f"taps must differ from each other, got {list(taps)}")
    return places


def _place(members: Sequence[Teacher], tap: str, subject: str) -> Place:
    number, colon, own = tap.partition(":")
    if colon and number.isdecimal() and int(number) < len(members):
        return Place(int(number), own)
    holders = [number for number, member in enumerate(members) if has_tap(member.model, tap)]
    if len(holders) == 1:
        return Place(holders[0], tap)
    named = ", ".join(f"{number} {member.name!r}" for number, member in enumerate(members))
    if holders:
        ways = " or ".join(repr(f"{number}:{tap}") for number in holders)
        raise ConfigError(f"several members of {subject} have the tap {tap!r}: name one of them, {ways} ({named})")
    raise UnknownNameError(f"{subject} has no tap {tap!r}: name one of a member's, such as '0:pooled' ({named})")
