"""Fields that several commands have in common, each declared once."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from typing import Any, Literal

from kdkit.bounds import check_fields
from kdkit.runtime.hardware import AUTO, choose_workers

Data = tuple[str, ...] | str
"""Images by name: one folder, archive, table or dataset, or several, whose images are taken together."""


def name_data(data: Data) -> str:
    """The names as a shell takes them."""
    return shlex.join([data] if isinstance(data, str) else data)


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where models run."""

    device: str = AUTO
    """Device that models run on: auto (CUDA, else MPS, else the CPU), cpu, mps, cuda or cuda:1."""


@dataclass(frozen=True, kw_only=True)
class LoadingConfig:
    """How images are loaded."""

    batch_size: int = 256
    """Images per batch, on each process."""

    num_workers: int | Literal["auto"] = AUTO
    """Worker processes that load and augment images: auto (from the CPUs available), or a number; 0 loads in the main
    process."""

    def __post_init__(self) -> None:
        check_fields(self)
        choose_workers(self.num_workers)

    @property
    def workers(self) -> int:
        """The number of worker processes, `auto` resolved."""
        return choose_workers(self.num_workers)


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """How the data is read, if its content does not decide."""

    image_column: str | None = None
    """Column of the images or their paths, if the data has columns; image, or the only candidate, by default."""

    label_column: str | None = None
    """Column of the labels, if the data has columns, or field of the .json files of WebDataset shards; label by
    default. For several labels per image of a table: columns of 0 and 1 as sea,city, or a column of names with its
    separator as tags[|]."""

    labels: Literal["folder", "tar", "none"] | None = None
    """Where labels come from: folder (the top folder, whatever its name), tar (the name of the tar) or none; by default
    the data's content decides, or the data is refused. It holds for each of several DATA."""

    skip_missing: bool = False
    """Leave out empty class folders, dangling links and other entries without a readable image, and list them in a
    warning, instead of refusing the data."""

    @property
    def data_flags(self) -> str:
        """These options as a shell takes them, each after a space; for the next command that a command names."""
        given = {name: value for name, value in self.columns.items() if value not in (None, False)}
        words = [
            [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])] for name, value in given.items()
        ]
        return "".join(f" {shlex.join(flag)}" for flag in words)

    @property
    def columns(self) -> dict[str, Any]:
        """These options, as `kdkit.open_dataset` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(ColumnsConfig)}


@dataclass(frozen=True, kw_only=True)
class MismatchConfig:
    """Differences that are accepted."""

    allow_mismatch: tuple[str, ...] = ()
    """Fields, named as in the error, that may differ from the cache, e.g. recipe.seed. Use only if you know that the
    difference is harmless."""


@dataclass(frozen=True, kw_only=True)
class OverwriteConfig:
    """What happens to output that exists."""

    overwrite: bool = False
    """Replace an existing output of kdkit; a folder that holds anything else is refused."""
