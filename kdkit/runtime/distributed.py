"""Ranks: the few collective operations that kdkit needs on torch.distributed; each is trivial in a run of one process.

Every function with `all`, `on_rank_zero` or `broadcast` in its name is a collective call: all ranks make it, in the
same order.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdkit.errors import KdkitError, OtherRankError, first_line
from kdkit.runtime.hardware import use_device

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

Result = TypeVar("Result")

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "processgroup", "timed out", "heartbeat")


@contextmanager
def process_group(device: str, *, timeout: timedelta = timedelta(minutes=30)) -> Iterator[None]:
    """The process group of the ranks that torchrun started; nothing where this process is alone.

    It is destroyed at exit, but not after an error: that would wait for operations in which the other ranks are, so
    that the error would be shown late or never. This process ends with its error, which ends those of the others.

    Args:
        device: device of the run, e.g. cuda or auto; its type decides between nccl and gloo.
        timeout: after which a rank that waits for another gives up.

    Raises:
        ConfigError: the device cannot be used here.
        OtherRankError: another rank died or no longer responds.
    """
    if dist.is_initialized() or not all(name in os.environ for name in _ENVIRONMENT):
        yield
        return
    is_cuda = use_device(device).type == "cuda"
    store, number, count = _rendezvous(timeout, next(_groups))
    backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, KdkitError) or not any(word in str(error).lower() for word in _LOST):
            raise
        reason = first_line(error).split(". ")[0]
        raise OtherRankError(
            f"rank {rank()} lost another one ({reason}): see its message above, and start the run again, which then "
            "resumes"
        ) from error
    dist.destroy_process_group()


_groups = itertools.count()
"""Number of the next process group that this process joins."""


def _rendezvous(timeout: timedelta, group: int) -> tuple[Store, int, int]:
    """The store with the addresses of the ranks, this process's rank, and the number of ranks.

    torchrun keeps its store when it restarts processes, and with it the addresses of the processes that died: a rank
    that reads an address before the new process has written its own would wait for a dead one. A prefix for each start
    prevents that. Agents on several nodes count restarts differently, so only the processes of one node use it. The
    same holds for the groups of a process, of which a sweep has one for each run.
    """
    from torch._C._distributed_c10d import PrefixStore  # only where torch was built with it
    from torch.distributed.rendezvous import rendezvous

    store, number, count = next(rendezvous("env://", timeout=timeout))
    store = PrefixStore(f"group {group}", store)
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = PrefixStore(f"start {os.environ.get(_RESTARTS, '0')}", store)
    return store, number, count


def is_restarted() -> bool:
    """Whether torchrun has restarted this process after a failure."""
    return os.environ.get(_RESTARTS, "0") not in ("", "0")


def rank() -> int:
    """This process's rank in its process group, from 0; without a group 0."""
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if _is_initialized() else 1


def run_on_all_ranks(function: Callable[[], Result]) -> Result:
    """Calls `function`, which makes no collective call, on every rank, and waits for all.

    Returns:
        This rank's result. If it fails on one rank, every rank fails.

    Raises:
        OtherRankError: on ranks where it did not fail, with the first message of the ranks where it did.
    """
    if world_size() == 1:
        return function()
    result: Any = None
    error: BaseException | None = None
    try:
        result = function()
    except BaseException as caught:
        error = caught
    messages: list[str | None] = []
    with _raised_after(error):
        messages = all_gather(None if error is None else _message(error))
    for number, message in enumerate(messages):
        if message is not None:
            raise OtherRankError(f"rank {number} failed: {message}")
    return cast(Result, result)


def on_rank_zero(function: Callable[[], Result]) -> Result:
    """Calls `function` on rank 0 and returns its result on every rank; if it fails, every rank fails.

    Raises:
        OtherRankError: on ranks other than 0, with rank 0's message.
    """
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None, None]  # result and error message
    error: BaseException | None = None
    if rank() == 0:
        try:
            outcome[0] = function()
        except BaseException as caught:
            error, outcome[1] = caught, _message(caught)
    with _raised_after(error):
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise OtherRankError(f"rank 0 failed: {outcome[1]}")
    return cast(Result, outcome[0])


def all_gather(value: Result) -> list[Result]:
    """Every rank's value, a picklable object, in the order of ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return cast(list[Result], values)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def all_gather_rows(rows: Tensor) -> Tensor:
    """Every rank's rows [B, ...], in the order of ranks, on every rank; without gradient. B may differ.

    The host waits for the numbers of rows.
    """
    if world_size() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    numbers = [int(number) for number in counts]
    padded = rows.new_zeros((max(numbers), *rows.shape[1:]))
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in numbers]
    dist.all_gather(found, padded)
    return torch.cat([of_rank[:number] for of_rank, number in zip(found, numbers, strict=True)])


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the ranks, of its shape and on its device."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def broadcast_buffers(module: nn.Module) -> None:
    """Gives every rank rank 0's buffers, such as the running statistics of batch norms."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


@contextmanager
def _raised_after(error: BaseException | None) -> Iterator[None]:
    """Raises this rank's own error, if it has one, after the other ranks were informed, or were found to be gone."""
    try:
        yield
    except RuntimeError:
        if error is None:
            raise
    if error is not None:
        raise error


def _message(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()
