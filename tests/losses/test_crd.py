"""CRD's memory, against a plain one in NumPy, and the gradients of its embeddings. Its value is in tests/parity."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from kdkit import losses
from kdkit.errors import ConfigError, ShapeError

ROWS, NEGATIVES = 7, 5


def make() -> losses.CRD:
    torch.manual_seed(0)
    return losses.CRD(3, 4, ROWS, width=6, negatives=NEGATIVES, momentum=0.3).double()


def batch(*rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(rows))
    student, teacher = (torch.randn(len(rows), width, generator=generator).double() for width in (3, 4))
    return student, teacher, torch.tensor(rows)


def embedded(module: losses.CRD, side: str, feature: Tensor) -> np.ndarray:
    made = getattr(module, f"{side}_embedding")(feature).detach().numpy()
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_each_step_moves_the_memory_of_its_samples_and_the_first_one_sets_the_normalising_constants() -> None:
    module = make()
    memories = {side: getattr(module, f"{side}_memory").numpy().copy() for side in ("student", "teacher")}
    constants: list[Tensor] = []
    for rows in ((3, 0, 5), (5, 5, 1), (6,)):
        student, teacher, row = batch(*rows)
        index = module.draw(row)
        assert index.shape == (len(rows), 1 + NEGATIVES)
        assert torch.equal(index[:, 0], row)
        sides = {"student": embedded(module, "student", student), "teacher": embedded(module, "teacher", teacher)}
        if not constants:
            others = {"student": memories["teacher"], "teacher": memories["student"]}
            scores = [np.einsum("be,bke->bk", sides[side], others[side][index.numpy()]) / 0.07 for side in sides]
            expected = [np.log(ROWS * np.exp(of_side).mean()) for of_side in scores]
        module(student, teacher, row, index)
        constants.append(module.log_z.clone())
        for side, made in sides.items():
            new = memories[side].copy()
            for number in set(rows):
                mean = made[[n == number for n in rows]].mean(axis=0)  # of a sample that occurs twice
                mixed = 0.3 * memories[side][number] + 0.7 * mean
                new[number] = mixed / np.linalg.norm(mixed)
            memories[side] = new
            np.testing.assert_allclose(getattr(module, f"{side}_memory").numpy(), new, rtol=1e-6)
    np.testing.assert_allclose(constants[0].numpy(), expected, rtol=1e-6)
    assert all(torch.equal(later, constants[0]) for later in constants)


def test_both_embeddings_learn_and_an_evaluation_remembers_nothing() -> None:
    module = make().eval()
    module.num_batches += 1  # the constants of a first batch follow from its own embeddings
    student, teacher, row = batch(1, 4)
    index, before = module.draw(row), {name: value.clone() for name, value in module.named_buffers()}
    parameters = {name: value.detach().requires_grad_() for name, value in module.named_parameters()}
    assert len(parameters) == 4

    def loss(*values: Tensor) -> Tensor:
        found = functional_call(module, dict(zip(parameters, values, strict=True)), (student, teacher, row, index))
        assert isinstance(found, Tensor)
        return found

    assert torch.autograd.gradcheck(loss, tuple(parameters.values()))
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())


def test_the_parts_of_a_large_batch_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    values, arguments = [], batch(1, 4, 2)
    index = make().draw(arguments[2])
    for elements in (2**24, 1):
        monkeypatch.setattr(sys.modules[losses.CRD.__module__], "_ELEMENTS", elements)
        values.append(make()(*arguments, index))
    assert torch.equal(*values)


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_sample_that_is_not_finite_changes_the_loss_of_its_batch_and_nothing_else(
    side: str, wrong: float, is_first: bool
) -> None:
    module, plain = make(), make()
    good = batch(1, 4, 2)
    if not is_first:
        for each in (module, plain):
            torch.manual_seed(1)
            each(*good)
    before = {name: value.clone() for name, value in module.named_buffers()}
    rows = (3, 0, 5, 5)
    student, teacher, row = batch(*rows)
    index = module.draw(row)
    plain(student[1:], teacher[1:], row[1:], index[1:])
    (student if side == "student" else teacher)[0, 1] = wrong
    assert not module(student, teacher, row, index).isfinite()
    memory, other = (f"{name}_memory" for name in ((side, "teacher") if side == "student" else (side, "student")))
    after = dict(module.named_buffers())
    assert all(value.isfinite().all() for value in after.values())
    assert torch.equal(after[memory][3], before[memory][3])
    assert not torch.equal(after[other][3], before[other][3])  # that side is finite
    for name in (memory, other):
        torch.testing.assert_close(after[name][[0, 5]], getattr(plain, name)[[0, 5]])
    assert torch.equal(after["log_z"], before["log_z"])
    assert int(after["num_batches"]) == int(before["num_batches"]) + (not is_first)
    assert module(*good).isfinite()  # the next batch


def test_arguments_that_do_not_fit_are_refused() -> None:
    student, teacher, row = batch(1, 4)
    with pytest.raises(ShapeError, match=r"features \[B, D\], got \[2, 3, 1, 1\]: take taps such as 'pooled'"):
        make()(student[:, :, None, None], teacher, row)
    with pytest.raises(ShapeError, match=r"row \[B\], got torch.int64 \[1\] for features"):
        make()(student, teacher, row[:1])
    for wrong, described in (
        (None, "NoneType"),
        ([1, 4], "list"),
        (row.bool(), "torch.bool"),
        (row[:, None], r"\[2, 1\]"),
    ):
        with pytest.raises(ShapeError, match=rf"row \[B\], got .*{described}.* for features"):
            make()(student, teacher, wrong)
    with pytest.raises(ShapeError, match=r"not empty, got torch.float64 \[0, 3\]"):
        make()(student[:0], teacher[:0], row[:0])
    with pytest.raises(ConfigError, match="remembers 7 samples, got the rows 1 to 7"):
        make()(student, teacher, torch.tensor([7, 1]))
    for option, value in {"negatives": 0, "width": 2.5, "momentum": 1.0, "temperature": 0.0}.items():
        with pytest.raises(ConfigError, match=f"{option} must be"):
            losses.create("crd", student_width=3, teacher_width=4, num_rows=7, **{option: value})
