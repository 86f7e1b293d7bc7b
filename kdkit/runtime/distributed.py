"""The few things that several processes must agree on; each does nothing special in a run of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdkit.errors import KdkitError
from kdkit.runtime.hardware import choose_device

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

Result = TypeVar("Result")

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "processgroup", "timed out", "heartbeat")


class OtherRankError(KdkitError, RuntimeError):
    """Another rank failed; its message is repeated."""


@contextmanager
def joined(device: str, *, timeout: timedelta = timedelta(minutes=30)) -> Iterator[None]:
    """Joins the processes that torchrun started, and leaves them at the end; nothing where there is only this one.

    Args:
        device: of the run, e.g. cuda or auto; its kind decides on nccl or gloo.
        timeout: after which a rank that waits for another gives up.

    Raises:
        OtherRankError: another rank died or stopped answering.
    """
    if dist.is_initialized() or not all(name in os.environ for name in _ENVIRONMENT):
        yield
        return
    device = choose_device(device)
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.set_device(local_device(device))
    store, number, count = _meeting_place(timeout)
    backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, KdkitError) or not any(word in str(error).lower() for word in _LOST):
            raise
        reason = str(error).splitlines()[0].split(". ")[0]
        raise OtherRankError(
            f"rank {rank()} lost another one ({reason}): see its message above, and start the run again, which then "
            "goes on"
        ) from error
    finally:
        dist.destroy_process_group()


def _meeting_place(timeout: timedelta) -> tuple[Store, int, int]:
    """Where the ranks find each other's addresses, this one's number, and how many there are.

    torchrun keeps its store when it starts processes again, and with it the addresses of those that died: a rank that
    looks before another has come would wait for a dead one. Its agents on several nodes count starts differently, so
    that only the processes of one node can tell their start from the one before.
    """
    from torch._C._distributed_c10d import PrefixStore  # only where torch was built with it
    from torch.distributed.rendezvous import rendezvous

    store, number, count = next(rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = PrefixStore(f"start {os.environ.get(_RESTARTS, '0')}", store)
    return store, number, count


def local_device(name: str) -> str:
    """The device of this process: `name`, and for cuda without an index, the one of its local rank."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name


def restarted() -> bool:
    """Whether torchrun has started this process again after a failure."""
    return os.environ.get(_RESTARTS, "0") not in ("", "0")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _distributed() else 0


def world_size() -> int:
    """How many processes take part."""
    return dist.get_world_size() if _distributed() else 1


def run_on_all_ranks(function: Callable[[], None]) -> None:
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
    messages: list[str | None] = []
    with _raising(error):
        messages = gather(None if error is None else _said(error))
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
            error, message[1] = caught, _said(caught)
    with _raising(error):
        dist.broadcast_object_list(message, src=0)
    if message[1] is not None:
        raise OtherRankError(f"rank 0 failed: {message[1]}")
    return cast(Result, message[0])


def gather(value: Result) -> list[Result]:
    """Every rank's value, in the order of ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return cast(list[Result], values)


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the ranks; on its device."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def share_buffers(module: nn.Module) -> None:
    """Gives every rank rank 0's buffers, such as the running statistics of batch norms."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


@contextmanager
def _raising(error: BaseException | None) -> Iterator[None]:
    """Tells the others; then raises this rank's own error, if it has one, also where the others are gone."""
    try:
        yield
    except RuntimeError:
        if error is None:
            raise
    if error is not None:
        raise error


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
