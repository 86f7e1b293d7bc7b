"""Students and teachers that return something else than logits [B, C], or refuse their images or their optimiser."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support import digits_dataset, loader_for, tiny_model
from torch import Tensor, nn

from kdkit import ClassificationTask, LogitDistillationTask, create_teacher
from kdkit.errors import ConfigError, ShapeError
from kdkit.training.config import TrainConfig
from kdkit.training.evaluate import evaluate
from kdkit.training.preflight import preflight
from kdkit.training.train import train
from kdkit.types import Batch

Named = namedtuple("Named", ["logits", "features"])


@dataclass
class Record:
    """As Hugging Face's models return it."""

    loss: Tensor | None
    logits: Tensor


@dataclass
class Odd:
    """Without logits."""

    scores: Tensor


class Wrapped(nn.Module):
    """A real model whose logits are put into another form."""

    num_classes = 10

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.form = tiny_model(seed=1), form
        self.pretrained_cfg = self.model.pretrained_cfg

    def forward(self, images: Tensor) -> Any:
        return self.form(self.model(images))


WITH_LOGITS: dict[str, Callable[[Tensor], Any]] = {
    "a tensor": lambda logits: logits,
    "a dict": lambda logits: {"logits": logits, "features": logits * 2},
    "a dataclass": lambda logits: Record(None, logits),
    "a named tuple": lambda logits: Named(logits, logits * 2),
}
WITHOUT: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a tuple": (lambda logits: (logits, logits), r"returns a tuple of 2 \(\[8, 10\], \[8, 10\]\), expected logits"),
    "a list of maps": (lambda logits: [logits[:, :, None]] * 6, r"returns a list of 6 \(\[8, 10, 1\], .*, \.\.\.\)"),
    "a dict": (lambda logits: {"out": logits, "aux": logits}, "returns a dict of 'out', 'aux'"),
    "a dataclass": (lambda logits: Odd(logits), "returns a Odd of scores"),
    "a map": (lambda logits: logits[:, :, None, None], r"returns a tensor \[8, 10, 1, 1\]"),
    "nothing": (lambda logits: None, "returns a NoneType"),
    "an empty record": (lambda logits: Record(None, None), "returns a Record of loss, logits"),  # type: ignore[arg-type]
}
CONFIG = TrainConfig(epochs=1, opt="sgd", lr=0.01)


@pytest.mark.parametrize("form", WITH_LOGITS)
def test_logits_of_a_record_train_validate_and_teach_as_a_tensor_does(form: str) -> None:
    def train_with(make: Callable[[Tensor], Any]) -> list[float]:
        student, teacher = Wrapped(make), create_teacher(Wrapped(make))
        loader = loader_for(digits_dataset(16), student, batch_size=8)
        task = LogitDistillationTask(student, teacher)
        report = train(task, loader, CONFIG, validation=loader)
        return [report.epochs[0][name] for name in ("loss", "kd_loss", "val_loss")]

    assert train_with(WITH_LOGITS[form]) == train_with(WITH_LOGITS["a tensor"])


@pytest.mark.parametrize("form", WITHOUT)
def test_a_student_or_teacher_without_logits_is_one_line_that_says_what_arrived(form: str) -> None:
    make, text = WITHOUT[form]
    student = Wrapped(make)
    loader = loader_for(digits_dataset(16), student, batch_size=8)
    task = ClassificationTask(student)
    with pytest.raises(ConfigError, match=f"the student {text}"):
        preflight(task, loader, None, CONFIG)
    with pytest.raises(ConfigError, match=f"the student {text}"):
        train(task, loader, CONFIG)
    with pytest.raises(ConfigError, match=f"the student {text}"):
        evaluate(task, loader)
    with pytest.raises(ConfigError, match=f"the teacher 'test_resnet' {text}"):
        create_teacher(student)(Batch(torch.zeros(8, 3, 32, 32), torch.zeros(8)))


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 33, 33), torch.zeros(2, 1, 32, 32)], ids=["33 px", "grey"])
def test_images_that_a_model_refuses_are_one_line(images: Tensor) -> None:
    teacher = create_teacher(tiny_model("test_vit"))
    with pytest.raises(ShapeError, match=r"the teacher 'test_vit' does not take images \[2, [13], 3[23], 3[23]\]"):
        teacher(Batch(images, torch.zeros(2)))


def test_a_second_order_optimiser_trains_and_leaves_no_graph_behind() -> None:
    student = tiny_model("test_vit")
    before = [parameter.detach().clone() for parameter in student.parameters()]
    loader = loader_for(digits_dataset(16), student, batch_size=8)
    train(ClassificationTask(student), loader, TrainConfig(epochs=1, opt="adahessian", lr=0.1, accumulate=2))
    assert any(not torch.equal(now, then) for now, then in zip(student.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("options", [{"compile": True}, {"amp": "float16"}])
def test_a_second_order_optimiser_is_refused_where_gradients_cannot_be_differentiated(options: dict[str, Any]) -> None:
    student = tiny_model("test_vit")
    loader = loader_for(digits_dataset(16), student, batch_size=8)
    with pytest.raises(ConfigError, match="the optimiser 'adahessian' differentiates the gradients"):
        train(ClassificationTask(student), loader, TrainConfig(epochs=1, opt="adahessian", **options))


@pytest.mark.parametrize("count", [1, 9])
def test_a_batch_of_one_with_batch_normalisation_is_one_line_also_as_the_rest_of_an_epoch(count: int) -> None:
    student = tiny_model()
    loader = loader_for(digits_dataset(count), student, batch_size=8)
    with pytest.raises(
        ConfigError, match=r"normalises over the batch, .* batch size of 2 or more per rank, and no rest"
    ):
        train(ClassificationTask(student), loader, CONFIG)
