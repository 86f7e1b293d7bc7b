"""The augmentation of ml-dr: from its configuration to recorded steps, and from its parameters to records.

Parameters are those of torchvision's transforms in ml-dr's own order, whatever the order in the configuration. Of a
view that is mixed, each entry is a pair: of the image itself, and of its partner. Dimensions: V views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Self

from kdkit.data.views.operations import OPERATIONS
from kdkit.data.views.record import MAX_ERASED, NO_PARTNER, RecordedSteps, pack_operations, pack_rectangle
from kdkit.errors import DatasetError

Array = np.ndarray[Any, Any]
_ORDER = (
    *("uint8", "resize", "center_crop", "random_crop", "random_resized_crop", "random_horizontal_flip"),
    *("rand_augment", "to_tensor", "random_erase", "normalize", "mixup", "cutmix"),
)
_WITHOUT_PARAMETERS = ("uint8", "center_crop", "to_tensor", "normalize")
_MIXING = ("mixup", "cutmix")
_NUMBERS = {name: number for number, name in enumerate(OPERATIONS)}


@dataclass(frozen=True)
class Augmentation:
    """Which transforms a cache of ml-dr was made with."""

    transforms: tuple[str, ...]
    """Those that are enabled, in ml-dr's order."""
    compressed: bool
    """Whether parameters are lists rather than dicts."""
    size: int
    """Side of the views, pixels."""
    steps: RecordedSteps
    """What the records hold."""

    @classmethod
    def from_config(cls, config: Any, compressed: bool) -> Self:
        """The augmentation that config["reinforce"]["image_augmentation"] describes.

        Raises:
            DatasetError: it holds a transform or an option that cannot be replayed.
        """
        if not isinstance(config, dict) or not all(isinstance(options, dict) for options in config.values()):
            raise DatasetError("image_augmentation of ml-dr's configuration is not a dict of transforms")
        enabled = {name: options for name, options in config.items() if options.get("enable", True)}
        for name in enabled:
            if name not in _ORDER:
                raise DatasetError(f"ml-dr's transform {str(name)[:40]!r} is not known: known are {', '.join(_ORDER)}")
        size, geometry = _geometry(enabled)
        steps = RecordedSteps(
            **geometry,
            ops=int(enabled["rand_augment"].get("num_ops", 2)) if "rand_augment" in enabled else 0,
            erasing="random_erase" in enabled,
            mixing=any(name in enabled for name in _MIXING),
        )
        if steps.erasing and size > MAX_ERASED:
            raise DatasetError(f"views of {size} pixels with erasing are too large: up to {MAX_ERASED}")
        return cls(tuple(name for name in _ORDER if name in enabled), bool(compressed), size, steps)

    def records(self, params: Sequence[Any]) -> Array:
        """Records [V] of the parameters of V views; a partner is named by its index in ml-dr's order.

        Raises:
            TypeError, ValueError, KeyError, IndexError, OverflowError: they are not those of these transforms.
        """
        views = [self._by_name(view) for view in params]
        records = np.zeros(len(views), self.steps.dtype)
        self._fill(records["own"], [{name: pair[0] for name, pair in view.items()} for view in views])
        if self.steps.mixing:
            self._fill_mixing(records, views)
        return records

    def is_mixed(self, records: Array) -> Array:
        """Which of the records [V] are mixed with a partner, bool [V]."""
        mixed: Array = records["row"] != NO_PARTNER
        return mixed

    def _by_name(self, params: Any) -> dict[str, Any]:
        """Transform -> (own, partner's) parameters; mixup and cutmix -> (parameters,); id2 -> (partner,)."""
        recorded = [name for name in self.transforms if name not in _WITHOUT_PARAMETERS]
        if isinstance(params, Mapping):
            view = {name: (params[name],) if name in _MIXING else params[name] for name in recorded}
            return {**view, "id2": (params.get("id2"),)}
        partner = None
        if self.steps.mixing:
            partner, *params = params
        if len(params) != len(recorded):
            raise ValueError(f"{len(params)} parameters for the transforms {', '.join(recorded)}")
        view = {"id2": (partner,)}
        for name, value in zip(recorded, params, strict=True):
            view[name] = (value,) if partner is None or name in _MIXING else value
        return view

    def _fill(self, side: Array, views: Sequence[Mapping[str, Any]]) -> None:
        """One side of V records."""
        if self.steps.crop == "crop":
            boxes = [view.get("random_resized_crop") for view in views]
            if "random_crop" in self.transforms:
                boxes = [(*view["random_crop"], self.size, self.size) for view in views]
            side["crop"] = _within(boxes, 4, (1 << 16) - 1)
            if not side["crop"][:, 2:].all():
                raise ValueError("a crop of height or width 0")
        if "random_horizontal_flip" in self.transforms:
            side["flip"] = _within([[view["random_horizontal_flip"]] for view in views], 1, 1)[:, 0]
        if self.steps.ops:
            skipped = [("Identity", 0.0)] * self.steps.ops
            operations = [view["rand_augment"] or skipped for view in views]
            numbers = [[_NUMBERS.get(name, name) for name, _ in pairs] for pairs in operations]
            side["ops"] = pack_operations(_within(numbers, self.steps.ops, len(OPERATIONS) - 1))
            side["magnitudes"] = [[magnitude for _, magnitude in pairs] for pairs in operations]
            if not np.isfinite(side["magnitudes"]).all():
                raise ValueError("a magnitude that is not finite")
        if self.steps.erasing:
            rectangles = [view["random_erase"] or (0, 0, 0, 0) for view in views]
            shown = [(0, 0, 0, 0) if rectangle[0] == -1 else rectangle for rectangle in rectangles]
            side["erasing"] = pack_rectangle(_within(shown, 4, MAX_ERASED))

    def _fill_mixing(self, records: Array, views: Sequence[Mapping[str, Any]]) -> None:
        """The partner's side, and how the two are mixed."""
        nothing = (None,)
        mixups = [view.get("mixup", nothing)[0] for view in views]
        cutmixes = [view.get("cutmix", nothing)[0] for view in views]
        mixed = [place for place in range(len(views)) if mixups[place] is not None or cutmixes[place] is not None]
        partners = [
            {name: pair[1] for name, pair in views[place].items() if name not in (*_MIXING, "id2")} for place in mixed
        ]
        records["row"], records["share"] = NO_PARTNER, [1.0 if share is None else share for share in mixups]
        boxes = [(0, 0, 0, 0) if cutmix is None else _box(cutmix) for cutmix in cutmixes]
        records["box"] = _within(boxes, 4, self.size)
        if mixed:
            side = np.zeros(len(mixed), records.dtype["partner"])
            self._fill(side, partners)
            records["partner"][mixed] = side
            indices = [[views[place]["id2"][0]] for place in mixed]
            records["row"][mixed] = _within(indices, 1, NO_PARTNER - 1)[:, 0]


def _geometry(enabled: Mapping[str, Mapping[str, Any]]) -> tuple[int, dict[str, Any]]:
    """Size of the views, and the recorded steps up to the crop."""
    crops = [name for name in ("center_crop", "random_crop", "random_resized_crop") if name in enabled]
    if len(crops) != 1 or ("resize" in enabled and crops == ["random_resized_crop"]):
        raise DatasetError(f"ml-dr's crops {crops} with{'' if 'resize' in enabled else 'out'} resize are not replayed")
    options = enabled[crops[0]]
    unknown = sorted({*options, *enabled.get("resize", ())} - {"enable", "size", "padding", "scale", "ratio", "p"})
    if unknown:
        raise DatasetError(f"ml-dr's option {unknown[0]!r} of {crops[0]} or resize is not replayed")
    resize = _shorter_side(enabled["resize"]["size"]) if "resize" in enabled else 0
    kind = "center" if crops == ["center_crop"] else "crop"
    return _side(options["size"]), {"resize": resize, "pad": int(options.get("padding") or 0), "crop": kind}


def _shorter_side(size: Any) -> int:
    """Of a resize that keeps the ratio of the sides, as a number or a list of one."""
    if not isinstance(size, int) and len(size) != 1:
        raise DatasetError(f"ml-dr's resize to {list(size)} is not replayed: expected only the shorter side")
    return _side(size)


def _side(size: Any) -> int:
    """The side of a square."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise DatasetError(f"ml-dr's size {size} is not square")
    return int(sides.pop())


def _box(cutmix: Any) -> tuple[int, ...]:
    """Top, left, bottom, right of [lambda, top, left, bottom, right], or of (lambda, (top, left, bottom, right))."""
    _, *box = cutmix
    return tuple(box[0]) if len(box) == 1 else tuple(box)


def _within(rows: Sequence[Any], length: int, greatest: int) -> Array:
    """Whole numbers [V, length] from 0 to `greatest`."""
    numbers = np.array(rows)
    if numbers.shape != (len(rows), length) or numbers.dtype.kind not in "biu":
        raise ValueError(f"parameters are not {length} whole numbers a view")
    if numbers.min() < 0 or numbers.max() > greatest:
        raise ValueError(f"a parameter is {numbers.min()} or {numbers.max()}, expected 0 to {greatest}")
    return numbers
