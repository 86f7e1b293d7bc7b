"""Run by run_ranks: torch.compile(task) after prepare_distributed, and task.compile() before it, against eager.

Inductor, which takes long, compiles tasks in tests/tasks.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from support import tiny_model

from kdkit import LogitDistillationTask


def main(output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    target = torch.arange(4)
    losses = []
    for way in ("eager", "compile the task after", "compile inside before"):
        task = LogitDistillationTask(tiny_model("test_efficientnet"), tiny_model("test_resnet", seed=1))
        if way == "compile inside before":
            task.compile(backend="aot_eager")
        task.prepare_distributed()
        step = torch.compile(task, backend="aot_eager") if way == "compile the task after" else task
        result = step(images, target)
        result["loss"].backward()
        losses.append(float(result["loss"].detach()))
    if dist.get_rank() == 0:
        torch.save(losses, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
