"""Run by torchrun: one step on this rank's half of a batch; rank 0 saves what the test looks at."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from support import tiny_model
from torch.nn.parallel import DistributedDataParallel

from kdkit import LogitDistillationTask


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
    in_buckets = {id(parameter) for parameter in task.trainable_module.parameters()}
    if rank == 0:
        torch.save(
            {
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
