"""Non-finite losses: finding the first NaN or infinity, and the error that names its step and terms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from kdkit.errors import NonFiniteLossError
from kdkit.training.meter import Record


def first_non_finite(records: Sequence[Record]) -> int | None:
    """Index of the first record whose loss is NaN or infinite."""
    return next((index for index, record in enumerate(records) if not math.isfinite(record["loss"])), None)


def non_finite_loss(record: Record, checkpoint: Path | None) -> NonFiniteLossError:
    """The error for the step with this record; `checkpoint` is the newest one whose weights had a finite loss."""
    terms = ", ".join(f"{name} {value:g}" for name, value in record.items() if name not in ("epoch", "step"))
    good = f"; {str(checkpoint)!r} is from before" if checkpoint is not None and checkpoint.exists() else ""
    return NonFiniteLossError(
        f"the loss is not finite at step {record['step']:g}, in epoch {record['epoch'] + 1:g} ({terms}): lower the "
        f"learning rate, or clip the gradients{good}"
    )
