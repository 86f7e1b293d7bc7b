"""Run by run_ranks: every row of the table of tasks, on this rank's half of a batch and in one process.

A loss that is a mean over samples has, on two halves, the gradients of the whole batch. Others have not, whatever
averages them: a loss that compares the samples of a batch with each other sees only those of its rank, as a batch norm
does, and one that draws draws again. Of those the reference is what one process gets that takes the halves one by one.
Rank 0 saves how far the ranks are from both references, row by row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from task_rows import IDLE_HEADS, ROWS, Row, batch, make
from torch import Tensor, nn

from kdkit.tasks import DistillationTask
from kdkit.types import Batch, TeacherOutput

Gradients = dict[str, Tensor]
Part = tuple[Tensor, Tensor]
Output = Callable[[Tensor], TeacherOutput | None]


def step(task: DistillationTask, part: Part, output_of: Output, share: float = 1.0) -> None:
    torch.manual_seed(17)
    (share * task(*part, output_of(part[0]))["loss"]).backward()


def gradients(task: DistillationTask, parts: Iterable[Part], share: float, output_of: Output) -> Gradients:
    """What one process gets that takes parts of a batch one by one, each counting by its share."""
    task.trainable_module.zero_grad()
    for part in parts:
        step(task, part, output_of, share)
    return taken(task.trainable_module)


def taken(module: nn.Module) -> Gradients:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def distance(found: Gradients, expected: Gradients) -> float:
    """Of two gradients, as a share of the length of the second; infinite where they are those of other parameters."""
    moved = {name for name, gradient in found.items() if gradient.any()}
    if moved != {name for name, gradient in expected.items() if gradient.any()}:
        return torch.inf
    length = sum(float(gradient.square().sum()) for gradient in expected.values())
    apart = sum(float((found[name] - expected[name]).square().sum()) for name in moved)
    return (apart / length) ** 0.5


def fix_batch_norms(task: DistillationTask) -> None:
    """Takes their running statistics: those of half a batch are not those of the whole."""
    for module in task.trainable_module.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def compare(row: Row) -> dict[str, float]:
    task = make(*row)
    live, given = lambda images: None, lambda images: task.teacher(Batch(images, torch.zeros(0)))
    whole, (rank, count) = batch(), (dist.get_rank(), dist.get_world_size())
    halves = [(whole[0][i::count], whole[1][i::count]) for i in range(count)]
    by_halves = gradients(task, halves, 1 / count, live)
    fix_batch_norms(task)
    at_once = gradients(task, [whole], 1.0, live)
    task.prepare_distributed().trainable_module.zero_grad()
    distances = {}
    step(task, halves[rank], given)
    distances["from the whole batch"] = distance(taken(task.trainable_module.module), at_once)
    task.train()
    task.trainable_module.zero_grad()
    step(task, halves[rank], live)  # a parameter that DDP still waits for shows at the second step
    distances["from halves"] = distance(taken(task.trainable_module.module), by_halves)
    return distances


def main(output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    compared = [compare(row) for row in [*ROWS, *IDLE_HEADS]]
    if dist.get_rank() == 0:
        torch.save(compared, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
