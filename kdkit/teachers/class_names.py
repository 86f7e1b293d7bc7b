"""The names of a model's classes, if they are known, and their order compared with that of the data.

Dimensions: C classes of the data, K classes of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.utils import unwrap_model
from torch import nn

from kdkit.errors import ClassMismatchError
from kdkit.teachers.class_map import map_names
from kdkit.teachers.model_config import model_config


def label_names(model: nn.Module) -> tuple[str, ...] | None:
    """Returns the names of a model's classes [K], as the config.json of an export has them; None if it has none."""
    names = model_config(model).get("label_names")
    if not isinstance(names, (list, tuple)) or len(names) != getattr(unwrap_model(model), "num_classes", None):
        return None
    return tuple(str(name) for name in names)


def reorder_names(wanted: Sequence[str], names: Sequence[str], subject: str) -> tuple[int, ...]:
    """Returns for each class of the data [C] its index among the names of the model's classes, which are the same set.

    Raises:
        ClassMismatchError: they are another set, or two classes have one name; names the first difference.
    """
    known, expected = set(names), set(wanted)
    hint = "name the classes of the data as the teacher's, or give a class_map"
    if (extra := next((name for name in wanted if name not in known), None)) is not None:
        raise ClassMismatchError(
            f"{subject} has no class {extra!r}, which the data has; its first is {names[0]!r}: {hint}"
        )
    if (absent := next((name for name in names if name not in expected), None)) is not None:
        raise ClassMismatchError(f"{subject} has the class {absent!r}, which the data does not have: {hint}")
    return map_names(wanted, names, subject)
