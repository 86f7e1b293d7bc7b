"""Configuration of `kdkit compare`, `kdkit cache show` and `kdkit report`."""

from __future__ import annotations

from dataclasses import dataclass

from kdkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Runs to compare, and how they are printed."""

    runs: tuple[str, ...]
    """Folders that kdkit distill or timm's train.py left, or folders of such folders."""

    json: bool = False
    """Print JSON, with every figure at full precision."""

    csv: bool = False
    """Print CSV, with every figure at full precision."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("no run is given: kdkit compare runs/*")
        if self.json and self.csv:
            raise ConfigError("the table is printed either as JSON or as CSV, got both: leave one out")
