"""The record of a view: its crop, flip, operations, erasing and mixing in a fixed number of bytes.

A recipe names the steps that are recorded, such as "crop+ops2+erasing+mixing". A record is little-endian and has
these parts in this order, without padding, each where the recipe names it:

    own        crop           4 uint16           top, left, height, width in pixels of the image
            or fractions      4 float32          the same as fractions of the image's height and width
            or center         nothing            the centre, of the view's size
               flip           1 uint8            1: flipped; always there
               opsN           ceil(N / 2) uint8  numbers of the N operations, 4 bits each, the first in the lower ones
                              N float32          their magnitudes
               erasing        3 x 2 uint8        top, left, height, width in pixels of the view: 12 bits each of one
                                                 48-bit number, top lowest; height 0: nothing is erased
    partner    the same of the view that it is mixed with; only where the recipe names mixing
    row        1 uint32       cache row of the partner, 2^32 - 1: none; only where the recipe names mixing
    share      1 float32      mixup: share of its own pixels, 1: no mixup; only where the recipe names mixing
    box        4 uint16       cutmix: top, left, bottom, right of the part that is the partner's, in pixels of the view,
                              all 0: no cutmix; only where the recipe names mixing

Dimensions: ... any, such as R rows or [R, V] rows and views.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from typing_extensions import Self

from kdkit.errors import ConfigError

Array = np.ndarray[Any, Any]
NO_PARTNER = (1 << 32) - 1
MAX_ERASED = (1 << 12) - 1
"""Greatest side of a view of which a part can be erased, pixels."""
_STEP = re.compile(r"(resize|pad|ops)([1-9][0-9]{0,4})|crop|fractions|center|erasing|mixing")
_CROPS = ("crop", "fractions", "center")
_MAX_OPS = 8


@dataclass(frozen=True)
class RecordedSteps:
    """Which steps of a view are recorded, and the fixed ones before them; `str` and `parse` are inverse."""

    resize: int = 0
    """Side that the image's shorter side is resized to before the crop, pixels; 0: it is not."""
    pad: int = 0
    """Black pixels added on each side before the crop."""
    crop: str = "crop"
    """How the crop is recorded: crop (in pixels), fractions (of height and width), or not at all: center."""
    ops: int = 0
    """How many operations of torchvision's RandAugment there are."""
    erasing: bool = False
    """Whether an erased rectangle is recorded."""
    mixing: bool = False
    """Whether a partner, mixup and cutmix are recorded."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The steps that a recipe names, e.g. "crop+ops2+erasing".

        Raises:
            ConfigError: the text names another step, one twice, or not exactly one kind of crop.
        """
        found: dict[str, Any] = {}
        for word in text.split("+"):
            matched = _STEP.fullmatch(word)
            name = word if matched is None or matched[1] is None else matched[1]
            if matched is None or name in found:
                raise ConfigError(
                    f"recorded steps are named once each, as in 'crop+ops2+erasing+mixing', got {text[:80]!r}"
                )
            found[name] = True if matched[2] is None else int(matched[2])
        crops = [kind for kind in _CROPS if found.pop(kind, False)]
        if len(crops) != 1 or found.get("ops", 0) > _MAX_OPS:
            raise ConfigError(
                f"recorded steps name one of {', '.join(_CROPS)} and up to ops{_MAX_OPS}, got {text[:80]!r}"
            )
        return cls(crop=crops[0], **found)

    def __str__(self) -> str:
        before, after = ("resize", "pad"), ("ops",)
        numbers = {name: f"{name}{getattr(self, name)}" for name in (*before, *after) if getattr(self, name)}
        flags = [name for name in ("erasing", "mixing") if getattr(self, name)]
        words = [numbers.get(name, "") for name in before] + [self.crop, numbers.get("ops", ""), *flags]
        return "+".join(word for word in words if word)

    @property
    def is_scalable(self) -> bool:
        """Whether a view can be rendered at any size: operations, erasing and mixing are recorded in its pixels."""
        return not (self.ops or self.erasing or self.mixing)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The record as a packed numpy dtype; its `itemsize` is the number of bytes."""
        crops: dict[str, list[Any]] = {"crop": [("crop", "<u2", 4)], "fractions": [("crop", "<f4", 4)], "center": []}
        side = [*crops[self.crop], ("flip", "u1")]
        if self.ops:
            side += [("ops", "u1", (self.ops + 1) // 2), ("magnitudes", "<f4", (self.ops,))]
        if self.erasing:
            side.append(("erasing", "<u2", 3))
        if not self.mixing:
            return np.dtype([("own", side)])
        mixing = [("row", "<u4"), ("share", "<f4"), ("box", "<u2", 4)]
        return np.dtype([("own", side), ("partner", side), *mixing])


def pack_operations(numbers: Array) -> Array:
    """Operation numbers [..., N], each below 16, as uint8 [..., ceil(N / 2)], the first of a pair in the lower bits."""
    padded = np.zeros((*numbers.shape[:-1], (numbers.shape[-1] + 1) // 2 * 2), dtype=np.uint8)
    padded[..., : numbers.shape[-1]] = numbers
    packed: Array = padded[..., 0::2] | padded[..., 1::2] << 4
    return packed


def unpack_operations(packed: Array, count: int) -> list[int]:
    """The first `count` operation numbers of one record, uint8 [ceil(count / 2)]."""
    return [int(packed[place // 2]) >> 4 * (place % 2) & 15 for place in range(count)]


def pack_rectangle(sides: Array) -> Array:
    """Top, left, height, width [..., 4], each at most 4095, as uint16 [..., 3]: 12 bits each of a 48-bit number."""
    words = sides.astype(np.uint64)
    number = (
        words[..., 0] | words[..., 1] << np.uint64(12) | words[..., 2] << np.uint64(24) | words[..., 3] << np.uint64(36)
    )
    parts = [number >> np.uint64(shift) & np.uint64(0xFFFF) for shift in (0, 16, 32)]
    return np.stack(parts, axis=-1).astype("<u2")


def unpack_rectangle(packed: Array) -> tuple[int, int, int, int]:
    """Top, left, height and width of one record, uint16 [3]."""
    number = int(packed[0]) | int(packed[1]) << 16 | int(packed[2]) << 32
    return number & 0xFFF, number >> 12 & 0xFFF, number >> 24 & 0xFFF, number >> 36 & 0xFFF
