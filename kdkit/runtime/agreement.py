"""Whether all ranks of a run have the same settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kdkit.errors import ConfigError
from kdkit.runtime import distributed
from kdkit.runtime.compare import differences


def check_same_settings(settings: Callable[[], Mapping[str, Any]]) -> None:
    """Compares the settings of all ranks; a collective call.

    Args:
        settings: returns this rank's settings as plain values; not called where this process is alone.

    Raises:
        ConfigError: on every rank; names the first rank that differs from rank 0, the field, and both values.
    """
    if distributed.world_size() == 1:
        return
    first, *others = distributed.all_gather(dict(settings()))
    for number, other in enumerate(others, start=1):
        for field, there, here in differences("", first, other):
            raise ConfigError(
                f"rank {number} has other settings than rank 0: {field.lstrip('.')} is {here!r}, and {there!r} on "
                "rank 0: start every rank with the same command and the same files"
            )
