"""Run by run_ranks: a step on this rank's half of a batch, and a run that stops; rank 0 saves what the test checks."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from support import digits_dataset, tiny_model
from timm.utils import unwrap_model
from torch.nn.parallel import DistributedDataParallel

from kdkit import ClassificationTask, FeatureDistillationTask, LogitDistillationTask
from kdkit.data import EpochSampler, ReplayLoader
from kdkit.runtime import distributed
from kdkit.runtime.progress import Display
from kdkit.tasks import LossTerm
from kdkit.training.checkpoint import Checkpoints
from kdkit.training.checkpoint_file import load_checkpoint
from kdkit.training.config import TrainConfig
from kdkit.training.train import train
from kdkit.types import Normalization


class SignalRankOne(Display):
    """Sends this process SIGTERM in its second step, if it is rank 1."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, count: int) -> None:
        self.steps += 1
        if self.steps == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def stopped(folder: Path) -> dict[str, Any]:
    """A run of 40 steps, one rank of which gets a signal; its teacher is its average, with batch norms."""
    task = LogitDistillationTask(tiny_model("test_efficientnet"), "ema")
    dataset = digits_dataset(320)
    sampler = EpochSampler(range(320), 4, num_views=1, shuffle=False, rank=dist.get_rank(), world_size=2)
    loader = ReplayLoader(dataset, sampler, Normalization.of(tiny_model("test_efficientnet")))
    config = TrainConfig(epochs=1, lr=1e-3, ema_decay=0.5, log_every=50)
    code = None
    try:
        train(task, loader, config, checkpoints=Checkpoints(folder), display=SignalRankOne())
    except SystemExit as left:
        code = left.code
    buffers = {name: value.clone() for name, value in task.get_trainable_module(ema=True).named_buffers()}
    ends = distributed.all_gather((code, buffers))
    return {
        "exit_codes": [code for code, _ in ends],
        "steps": load_checkpoint(folder / "last.pth.tar")["kdkit"]["position"]["batch"],
        "teachers_differ": [name for name, value in ends[0][1].items() if not torch.equal(value, ends[1][1][name])],
    }


def frozen() -> dict[str, Any]:
    """A run whose head learns alone in the first of two epochs: what moved until its end, and how ranks differ."""
    task = ClassificationTask(tiny_model())
    sampler = EpochSampler(range(32), 8, num_views=1, rank=dist.get_rank(), world_size=2)
    loader = ReplayLoader(digits_dataset(32), sampler, Normalization.of(tiny_model()))
    states = [weights_of(task)]

    class Watch(Display):
        def write(self, text: str) -> None:
            states.append(weights_of(task))

    train(task, loader, TrainConfig(epochs=2, frozen_epochs=1, lr=1e-3), display=Watch())
    mine, other = distributed.all_gather(states[-1])
    return {
        "moved": [{name for name in a if not torch.equal(a[name], b[name])} for a, b in itertools.pairwise(states)],
        "ranks_differ": [name for name in mine if not torch.equal(mine[name], other[name])],
    }


def remembered() -> dict[str, Any]:
    """A step of `crd` on this rank's share of a batch, 3 or 2 samples, and three more on equal shares: the memories."""
    torch.manual_seed(dist.get_rank())  # each rank has another memory at first
    term = LossTerm("crd", options={"negatives": 4, "width": 6})
    task = FeatureDistillationTask(
        tiny_model("test_vit"), tiny_model("test_vit", seed=1), distill_loss=term, num_rows=9
    ).double()
    start = distributed.on_rank_zero(lambda: memory_of(task))
    task.prepare_distributed()
    images, rows = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3)).double(), torch.arange(5)
    share = slice(dist.get_rank(), None, 2)
    task(images[share], torch.zeros(len(rows[share]), dtype=torch.int64), row=rows[share])
    after_one = memory_of(task)
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        task(images[share][:2], torch.zeros(2, dtype=torch.int64), row=rows[share][:2])["loss"].backward()
        optimizer.step()
    mine, other = distributed.all_gather(memory_of(task))
    return {
        "start": start,
        "after_one": after_one,
        "ranks_differ": [name for name in mine if not torch.equal(mine[name], other[name])],
    }


def memory_of(task: FeatureDistillationTask) -> dict[str, torch.Tensor]:
    """The state of the loss, with its memory."""
    return {name: value.clone() for name, value in task.get_task_state()["comparisons"].items()}


def weights_of(task: ClassificationTask) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in unwrap_model(task.get_eval_model()).named_parameters()}


def main(output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    teacher = tiny_model("test_resnet", seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    # Batch norm in eval mode: statistics of half a batch are not those of the whole, whoever averages gradients.
    task = LogitDistillationTask(tiny_model("test_efficientnet").eval(), teacher, temperature=2.0)
    assert task.prepare_distributed() is task
    task.trainable_module.eval()
    generator = torch.Generator().manual_seed(11)
    images = torch.randn(8, 3, 32, 32, generator=generator)
    target = torch.randint(10, (8,), generator=generator)
    with task.no_sync():
        task(images[rank::world_size], target[rank::world_size])["loss"].backward()
    unsynced = {name: p.grad.clone() for name, p in task.trainable_module.module.named_parameters()}
    task.trainable_module.zero_grad()
    result = task(images[rank::world_size], target[rank::world_size])
    result["loss"].backward()
    task.train()
    stop, moves, memories = stopped(Path(output).parent), frozen(), remembered()
    in_buckets = {id(parameter) for parameter in task.trainable_module.parameters()}
    if rank == 0:
        torch.save(
            {
                "stop": stop,
                "frozen": moves,
                "remembered": memories,
                "gradients": {name: p.grad for name, p in task.trainable_module.module.named_parameters()},
                "unsynced": unsynced,
                "wrapped": isinstance(task.trainable_module, DistributedDataParallel),
                "teacher_in_buckets": any(id(p) in in_buckets for p in teacher.parameters()),
                "teacher_requires_grad": any(p.requires_grad for p in teacher.parameters()),
                "teacher_training": teacher.training,
                "teacher_changed": any(not torch.equal(v, before[n]) for n, v in teacher.state_dict().items()),
                "state_keys": list(task.state_dict()),
                "checkpoint_keys": list(task.get_checkpoint_state()["state_dict"]),
            },
            output,
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
