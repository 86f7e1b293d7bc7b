"""Two ranks, or one, on one GPU: a DistributedDataParallel step of a task, run by torchrun from _gpu_sections.py.

torchrun ... _gpu_ddp.py DEVICE BACKEND COMPILE
"""

from __future__ import annotations

import contextlib
import sys

import timm
import torch
import torch.distributed as dist

import kdkit
from kdkit.runtime import distributed

DEVICE, BACKEND, IS_COMPILED = sys.argv[1], sys.argv[2], sys.argv[3] == "compile"


def main() -> None:
    """Three steps, of which the first accumulates; then what kdkit's collective calls return."""
    if DEVICE == "cuda":
        torch.cuda.set_device(0)  # gloo lets several ranks share a GPU, NCCL does not
    dist.init_process_group(f"cpu:gloo,cuda:{BACKEND}" if DEVICE == "cuda" else "gloo")
    place = torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device("cpu")
    student, teacher = (timm.create_model("test_resnet", num_classes=10) for _ in range(2))
    task = kdkit.LogitDistillationTask(student, teacher).to(place)
    if IS_COMPILED:
        task.compile()
    task.prepare_distributed(device_ids=[0] if DEVICE == "cuda" else None)
    for number in range(3):
        images, target = torch.randn(8, 3, 64, 64, device=place), torch.randint(0, 10, (8,), device=place)
        with task.no_sync() if number == 0 else contextlib.nullcontext(), torch.autocast(DEVICE, torch.bfloat16):
            result = task(images, target)
        result["loss"].backward()
    mean = distributed.all_reduce_mean(torch.ones(3, device=place)).tolist()
    print("ranks", distributed.all_gather(distributed.rank()), "mean", mean)
    distributed.broadcast_buffers(task.get_trainable_module())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
