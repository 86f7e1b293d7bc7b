"""A loss is differentiated twice as differences of its gradients are, or says in one line that it cannot be.

Every loss without parameters, on index labels and on soft ones where it takes labels, and those with parameters whose
gradient is computed with the value.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support import digits_dataset, loader_for, tiny_model
from torch import Tensor

from kdkit import LogitDistillationTask, losses
from kdkit.errors import ConfigError
from kdkit.training.config import TrainConfig
from kdkit.training.train import train

Loss = Callable[[Tensor], Tensor]

ONCE = {"crd", "dist", "dkd on soft labels", "js", "mlkd", "nkd on soft labels", "reverse_kl"}
ONCE |= {"pkt", "rkd_angle", "rkd_distance"}


def against(loss: Callable[..., Tensor], *rest: Tensor) -> Loss:
    return lambda student: loss(student, *rest)


def cases() -> dict[str, tuple[Loss, Tensor]]:
    """Name -> a loss of the student's side, and a point in float64."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64)
    maps = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    labels = {"": torch.tensor([0, 3, 5, 1]), " on soft labels": torch.rand(4, 6).softmax(dim=1).double()}
    found: dict[str, tuple[Loss, Tensor]] = {}
    for name in losses.available():
        spec = losses.loss_spec(name)
        if isinstance(spec.loss, type) or spec.taps == "several":
            continue
        loss = losses.create(name)
        if spec.needs_target:
            for suffix, target in labels.items():
                found[name + suffix] = against(loss, teacher, target), student
        elif spec.is_feature:
            found[name] = against(loss, maps[1]), maps[0]
        else:
            found[name] = against(loss, teacher), student
    memory = losses.CRD(6, 6, 9, width=5, negatives=4).double().eval()
    index = memory.draw(torch.arange(4))
    found["crd"] = against(memory, teacher, index[:, 0], index), student
    return found


CASES = cases()


def gradient(loss: Loss, at: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """The point, and the gradient there of the loss of a bent point: a loss alone may have no second derivative."""
    leaf = at.detach().clone().requires_grad_()
    return leaf, torch.autograd.grad(loss(torch.tanh(leaf)), leaf, create_graph=create_graph)[0]


@pytest.mark.parametrize("case", CASES)
def test_a_second_derivative_is_right_or_refused(case: str) -> None:
    loss, at = CASES[case]
    if case in ONCE:
        with pytest.raises(ConfigError, match=r"cannot be differentiated once more, .* take another optimiser"):
            gradient(loss, at, create_graph=True)
        return
    way = torch.randn(at.shape, generator=torch.Generator().manual_seed(1), dtype=at.dtype)
    leaf, slope = gradient(loss, at, create_graph=True)
    (second,) = torch.autograd.grad((slope * way).sum(), leaf)
    step = 1e-6
    expected = (gradient(loss, at + step * way)[1] - gradient(loss, at - step * way)[1]) / (2 * step)
    assert float(expected.abs().max()) > 1e-6
    torch.testing.assert_close(second, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()) + 1e-10)


def test_a_training_with_a_second_order_optimiser_stops_at_such_a_loss() -> None:
    student = tiny_model()
    config = TrainConfig(epochs=1, opt="adahessian", lr=0.1)
    for loss in ("kl", "js"):
        task = LogitDistillationTask(student, tiny_model(seed=1), distill_loss=loss)
        loader = loader_for(digits_dataset(8), student, batch_size=8)
        if loss == "kl":
            train(task, loader, config)
            continue
        with pytest.raises(ConfigError, match="second-order optimisers"):
            train(task, loader, config)
