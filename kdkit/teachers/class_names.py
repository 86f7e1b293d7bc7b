"""The names of a model's classes, if they are known, and their order compared with that of the data.

Dimensions: C classes of the data, K classes of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.utils import unwrap_model
from torch import nn

from kdkit.errors import ClassMismatchError
from kdkit.teachers.class_map import MISSING, composed, map_names
from kdkit.teachers.model_config import model_config

_SHOWN = 5


def label_names(model: nn.Module) -> tuple[str, ...] | None:
    """Returns the names of a model's classes [K], as the config.json of an export has them; None if it has none.

    They may be a list, or a mapping from the index of a class to its name, as timm takes both.

    Raises:
        ClassMismatchError: they are not names, or not one for each class of the model.
    """
    names = listed_names(model_config(model).get("label_names"))
    return None if names is None else check_names(names, model, "the model", "label_names")


def listed_names(found: Any) -> tuple[str, ...] | None:
    """Returns the names of classes [K] that a description holds, as a list or by index, composed; None stays None.

    Raises:
        ClassMismatchError: they are not names.
    """
    if found is None:
        return None
    names = [found[key] for key in sorted(found, key=_index)] if isinstance(found, Mapping) else found
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ClassMismatchError(
            f"the label_names in the model's configuration are {str(found)[:60]!r}: expected a list of names"
        )
    return composed(names)


def check_names(
    names: Sequence[str] | None, model: nn.Module, subject: str, option: str = "class_names"
) -> tuple[str, ...] | None:
    """Returns the names [K] in Unicode's composed form; None stays None.

    Raises:
        ClassMismatchError: there is not one name for each class of the model, if their number is known.
    """
    num_classes = getattr(unwrap_model(model), "num_classes", None)
    if names is not None and num_classes is not None and len(names) != num_classes:
        raise ClassMismatchError(
            f"{subject} has {num_classes} classes, {option} names {len(names)}: give one name for each class, in the "
            "model's order"
        )
    return None if names is None else composed(names)


def pick_names(names: tuple[str, ...] | None, class_map: tuple[int, ...] | None) -> tuple[str, ...] | None:
    """Returns the names of the C mapped classes, from those of the model's K; None if they are not all known."""
    if names is None or class_map is None:
        return names
    return None if MISSING in class_map else tuple(names[index] for index in class_map)


def match_names(
    wanted: Sequence[str], names: tuple[str, ...], class_map: tuple[int, ...] | None, subject: str
) -> tuple[int, ...] | None:
    """Returns the class map that brings a model's classes into the order of the data; None if nothing changes.

    Args:
        wanted: names of the data's classes [C].
        names: names of the model's classes, after the class map.
        class_map: the model's class map so far; one of the user's may have other names than the data.
        subject: the model's name in errors.

    Raises:
        ClassMismatchError: the data has other classes; names the first difference.
    """
    wanted = composed(wanted)
    if names == wanted:
        return None
    if class_map is None:
        return reorder_names(wanted, names, subject)
    if set(names) == set(wanted):
        return tuple(class_map[place] for place in reorder_names(wanted, names, subject))
    _check_aligned(wanted, names, subject)
    return None


def reorder_names(
    wanted: Sequence[str], names: Sequence[str], subject: str, *, takes_map: bool = True
) -> tuple[int, ...]:
    """Returns for each class of the data [C] its index among the names of the model's classes, which are the same set.

    Args:
        wanted: names of the data's classes [C].
        names: names of the model's classes.
        subject: the model's name in errors.
        takes_map: whether the user may give a class map instead.

    Raises:
        ClassMismatchError: they are another set, or two classes have one name; names the first difference.
    """
    wanted, names = composed(wanted), composed(names)
    known, expected = set(names), set(wanted)
    if len(expected) < len(wanted) and len(names) < len(wanted):
        twice = next(name for name in wanted if wanted.count(name) > 1)
        raise ClassMismatchError(f"the data has two classes {twice!r}, {subject} one: give each class one name")
    if len(expected) == 1 < len(known):
        raise ClassMismatchError(describe_count_mismatch(subject, len(names), wanted))
    if (extra := next((name for name in wanted if name not in known), None)) is not None:
        raise ClassMismatchError(
            f"{subject} has no class {extra!r}, which the data has; its first is {names[0]!r}: "
            f"name the classes of the data as the model's{', or give a class_map' if takes_map else ''}"
        )
    if (absent := next((name for name in names if name not in expected), None)) is not None:
        raise ClassMismatchError(
            f"{subject} has the class {absent!r}, which the data does not have: the data has {len(expected):,} of its "
            f"{len(names):,} classes; give the others too"
            + (", or pick these with a class_map, a JSON list of the data's class names" if takes_map else "")
        )
    return map_names(wanted, names, subject)


def _check_aligned(wanted: Sequence[str], names: Sequence[str], subject: str) -> None:
    """Checks a class map of the user to classes that are called otherwise: a name that both have is one class.

    Args:
        wanted: names of the data's classes [C].
        names: names of the model's classes that the map gives them.
        subject: the model's name in errors.

    Raises:
        ClassMismatchError: a name stands for different classes.
    """
    if found := first_crossed(wanted, names):
        number, own, given = found
        raise ClassMismatchError(
            f"the class_map of {subject} gives class {number} of the data, {own!r}, the teacher's class {given!r}, "
            f"and another class its {own!r}: put the map into the data's order of classes"
        )


def first_crossed(wanted: Sequence[str], names: Sequence[str]) -> tuple[int, str, str] | None:
    """Returns the first class of the data whose name stands at another place: its number, its name and the one given.

    Args:
        wanted: names of the data's classes [C].
        names: names of the model's classes that a map gives them [C].
    """
    wanted, names = composed(wanted), composed(names)
    known, pairs = set(names), enumerate(zip(wanted, names, strict=False))
    return next(((number, own, given) for number, (own, given) in pairs if own != given and own in known), None)


def describe_count_mismatch(subject: str, num_classes: int, names: Sequence[str]) -> str:
    """Returns what to do about a model that has another number of classes than the data, whose classes are `names`."""
    found = f"{subject} has {num_classes:,} classes, the data has {len(names):,}"
    if num_classes == 0:
        return f"{subject} has no head, and so no logits: take a teacher with a head, or a loss on features"
    if len(names) == 1:
        return (
            f"{found}, {names[0]!r}: a single class teaches nothing; if its folder only holds the images, give that "
            "folder as the data"
        )
    if len(names) < num_classes:
        return (
            f"{found}, {names[0]!r} to {names[-1]!r}: add the class folders that are missing, or pick the teacher's "
            "classes with a class_map"
        )
    return (
        f"{found}, {names[0]!r} to {names[-1]!r}: take a teacher trained on those classes, or leave out the images of "
        "the others"
    )


def _index(key: Any) -> int:
    """The index of a class, which JSON has as a text."""
    try:
        return int(key)
    except (TypeError, ValueError) as error:
        raise ClassMismatchError(
            f"the label_names in the model's configuration have the key {key!r}: expected the index of a class"
        ) from error
