"""Configuration that several commands share: frozen dataclasses of plain, serialisable values.

Configuration of a single command lives next to that command: kdkit/building/config.py, kdkit/training/config.py and so
on. Each field states its meaning and unit; each default is stated here and nowhere else.
"""

from kdkit.config.shared import (
    ColumnsConfig,
    Data,
    DeviceConfig,
    LoadingConfig,
    MismatchConfig,
    OverwriteConfig,
    name_data,
)
from kdkit.config.student import StudentConfig
from kdkit.config.teacher import EMA, SingleTeacherConfig, TeacherConfig

__all__ = [
    "EMA",
    "ColumnsConfig",
    "Data",
    "DeviceConfig",
    "LoadingConfig",
    "MismatchConfig",
    "OverwriteConfig",
    "SingleTeacherConfig",
    "StudentConfig",
    "TeacherConfig",
    "name_data",
]
