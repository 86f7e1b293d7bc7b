"""A loss that is NaN or infinite: found, and said so that one knows at which step and by which term."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from kdkit.errors import KdkitError
from kdkit.training.meter import Record


class NonFiniteLossError(KdkitError, ArithmeticError):
    """The loss became NaN or infinite; names step and terms."""

    @classmethod
    def at(cls, record: Record, kept: Path | None) -> NonFiniteLossError:
        """The error of the step with this record; `kept` is the checkpoint from before it, where there is one."""
        terms = ", ".join(f"{name} {value:g}" for name, value in record.items() if name not in ("epoch", "step"))
        older = f"; {str(kept)!r} is from before" if kept is not None and kept.exists() else ""
        return cls(
            f"the loss is not finite at step {record['step']:g}, in epoch {record['epoch']:g} ({terms}): lower the "
            f"learning rate, or clip the gradients{older}"
        )


def first_bad(records: Sequence[Record]) -> int | None:
    """Index of the first record whose loss is NaN or infinite."""
    return next((index for index, record in enumerate(records) if not math.isfinite(record["loss"])), None)
