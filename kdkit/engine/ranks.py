"""The few things that several processes must agree on; each does nothing special in a run of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

from kdkit.errors import KdkitError

Result = TypeVar("Result")


class OtherRankError(KdkitError, RuntimeError):
    """Another rank failed; its message is repeated."""


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _distributed() else 0


def world_size() -> int:
    """How many processes take part."""
    return dist.get_world_size() if _distributed() else 1


def together(function: Callable[[], None]) -> None:
    """Calls `function` on every rank and waits for all; if it fails on one, every rank fails.

    Raises:
        OtherRankError: on ranks where it did not fail, with the first message of those where it did.
    """
    if world_size() == 1:
        return function()
    error: BaseException | None = None
    try:
        function()
    except BaseException as caught:
        error = caught
    messages: list[str | None] = [None] * world_size()
    dist.all_gather_object(messages, None if error is None else f"{error}")
    if error is not None:
        raise error
    for number, message in enumerate(messages):
        if message is not None:
            raise OtherRankError(f"rank {number} failed: {message}")
    return None


def on_rank_zero(function: Callable[[], Result]) -> Result:
    """Calls `function` on rank 0 and returns its result on every rank; if it fails, every rank fails.

    Raises:
        OtherRankError: on ranks other than 0, with rank 0's message.
    """
    if world_size() == 1:
        return function()
    message: list[Any] = [None, None]
    error: BaseException | None = None
    if rank() == 0:
        try:
            message[0] = function()
        except BaseException as caught:
            error, message[1] = caught, f"{caught}"
    dist.broadcast_object_list(message, src=0)
    if error is not None:
        raise error
    if message[1] is not None:
        raise OtherRankError(f"rank 0 failed: {message[1]}")
    return cast(Result, message[0])


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
