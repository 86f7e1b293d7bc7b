"""Run by torchrun: gradients of several tasks on this rank's half of a batch; rank 0 saves what came of them."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from task_rows import CNN, DISTRIBUTED, VIT, batch, make


def main(output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    saved = []
    for kind, loss, task_loss_weight in DISTRIBUTED:
        task = make(kind, loss, VIT, CNN, task_loss_weight=task_loss_weight).prepare_distributed()
        images, target = batch()
        for _ in range(2):  # a parameter that DDP still waits for shows at the second step
            task.trainable_module.zero_grad()
            task(images[rank::world_size], target[rank::world_size])["loss"].backward()
        parts = task.trainable_module.module
        saved.append({name: p.grad for name, p in parts.named_parameters() if p.grad is not None})
    if rank == 0:
        torch.save(saved, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
