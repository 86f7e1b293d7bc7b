"""The client of the Hugging Face hub, which timm loads weights with: made quiet, or kept on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from kdkit.runtime import distributed

_logger = logging.getLogger(__name__)


def tell_loading(name: str) -> None:
    """Logs once, by rank 0, whose weights come from a network: without one, the clients retry for about a minute."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and distributed.rank() == 0:
        _logger.info("loading the weights of %s from the hub", name)


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Within the context, the hub's client does not log each attempt to reach it: its error tells all."""
    log = logging.getLogger("huggingface_hub")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def without_network() -> Iterator[None]:
    """Within the context, the hub's client takes files from its cache on this machine alone, as with HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
