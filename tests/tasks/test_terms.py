"""Several losses at once, the values logged about them, and the kinds of teachers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import tiny_model
from torch import Tensor

from kdkit import ClassificationTask, FeatureDistillationTask, LogitDistillationTask, TeacherOutput, losses
from kdkit.errors import ConfigError, MissingTeacherError, UnknownNameError
from kdkit.tasks import LossTerm, gradient_norms
from kdkit.tasks.observation import observe
from kdkit.tasks.term import as_terms


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(6, 10, generator=torch.Generator().manual_seed(seed))


def test_several_losses_add_up_and_each_is_there_raw_and_weighted() -> None:
    student, (images, target) = tiny_model("test_efficientnet").eval(), batch()
    task = LogitDistillationTask(
        student,
        distill_loss=[LossTerm("kl", 0.5, {"temperature": 4.0}), "dist", LossTerm("kl", 2.0, key="kl_cold")],
        task_loss_weight=0.3,
        distill_loss_weight=3.0,
    )
    result = task(images, target, TeacherOutput(logits(1)))
    raw = {
        "kl": losses.kl(student(images), logits(1), temperature=4.0),
        "dist": losses.dist(student(images), logits(1)),
        "kl_cold": losses.kl(student(images), logits(1)),
    }
    weights = {"kl": 0.5, "dist": 1.0, "kl_cold": 2.0}
    for key, value in raw.items():
        torch.testing.assert_close(result[key], value)
        torch.testing.assert_close(result[f"weighted_{key}"], 3.0 * weights[key] * value)
    torch.testing.assert_close(result["kd_loss"], sum(weights[key] * value for key, value in raw.items()))
    torch.testing.assert_close(result["loss"], result["weighted_task_loss"] + result["weighted_kd_loss"])
    torch.testing.assert_close(result["weighted_task_loss"], 0.3 * F.cross_entropy(student(images), target))


def test_a_mapping_gives_weights_and_the_temperature_goes_to_each_loss_that_takes_one() -> None:
    terms = as_terms({"kl": 1.0, "bce": 2.0}, temperature=3.0)
    assert [(term.name, term.weight, dict(term.options)) for term in terms] == [
        ("kl", 1.0, {"temperature": 3.0}),
        ("bce", 2.0, {}),
    ]
    [dkd, kl] = as_terms({"dkd": {"weight": 2, "beta": 0.5}, "kl": 1.0}, temperature=3.0)
    assert dkd == LossTerm("dkd", 2.0, {"beta": 0.5, "temperature": 3.0})
    assert kl == LossTerm("kl", 1.0, {"temperature": 3.0})
    [dkd, kl] = as_terms({"dkd": 1.0, "kl": {"temperature": 1.0}})
    assert (dict(dkd.options), dict(kl.options)) == ({}, {"temperature": 1.0})


def test_an_option_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="temperature is given twice, for all losses and in the options of 'kl'"):
        as_terms({"dkd": 1.0, "kl": {"temperature": 1.0}}, temperature=3.0)
    with pytest.raises(ConfigError, match="standardize is given twice"):
        LogitDistillationTask(
            tiny_model(), distill_loss=LossTerm("kl", options={"standardize": True}), standardize=True
        )
    with pytest.raises(ConfigError, match="'hint_mse': student_width follows from the taps"):
        FeatureDistillationTask(
            tiny_model(), tiny_model(seed=1), distill_loss=LossTerm("hint_mse", options={"student_width": 3})
        )


@pytest.mark.parametrize("wrong", [None, float("nan"), float("inf"), "1", True])
def test_a_weight_that_is_no_finite_number_is_refused_in_the_constructor(wrong: Any) -> None:
    for name in ("task_loss_weight", "distill_loss_weight"):
        with pytest.raises(ConfigError, match=f"{name} must be a finite number, got"):
            LogitDistillationTask(tiny_model(), **{name: wrong})
    with pytest.raises(ConfigError, match="weight of term 'kl' must be a finite number, got"):
        LogitDistillationTask(tiny_model(), distill_loss={"kl": wrong})


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), "4"])
def test_a_temperature_that_cannot_work_is_refused_in_the_constructor(wrong: Any) -> None:
    for options in ({"temperature": wrong}, {"distill_loss": {"kl": {"temperature": wrong}}}):
        with pytest.raises(ConfigError, match="loss 'kl': temperature must be a finite number"):
            LogitDistillationTask(tiny_model(), **options)


def test_standardised_logits_go_through_every_named_loss() -> None:
    student, (images, target) = tiny_model("test_efficientnet").eval(), batch()
    task = LogitDistillationTask(student, distill_loss={"kl": 1.0, "soft_ce": 1.0}, standardize=True, temperature=2.0)
    result = task(images, target, TeacherOutput(logits(1)))
    pair = losses.standardize(student(images)), losses.standardize(logits(1))
    torch.testing.assert_close(result["kl"], losses.kl(*pair, temperature=2.0))
    torch.testing.assert_close(result["soft_ce"], losses.soft_ce(*pair, temperature=2.0))


def test_what_cannot_be_a_distillation_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="two terms have the key 'kl'"):
        as_terms(["kl", "kl"])
    with pytest.raises(ConfigError, match="at least one"):
        as_terms({})
    with pytest.raises(ConfigError, match="cannot have the key 'loss'"):
        LossTerm("kl", key="loss")
    with pytest.raises(ConfigError, match="none of the losses bce, hard takes temperature"):
        as_terms(["bce", "hard"], temperature=2.0)
    with pytest.raises(UnknownNameError, match="kl"):
        as_terms("kll", temperature=2.0)
    with pytest.raises(ConfigError, match="FeatureDistillationTask"):
        LogitDistillationTask(tiny_model(), distill_loss=["kl", "hint_mse"])
    with pytest.raises(ConfigError, match="int"):
        as_terms([3])  # type: ignore[list-item]


def test_what_is_observed_is_what_a_plain_count_finds() -> None:
    student, teacher, target = logits(1), logits(2), torch.tensor([0, 1, 2, 3, -1, 5])
    seen = observe(student, teacher, target)
    choices = [(int(s.argmax()), int(t.argmax())) for s, t in zip(student, teacher, strict=True)]
    assert float(seen["agreement_top1"]) == pytest.approx(100 * sum(s == t for s, t in choices) / 6)
    right = sum(t == int(label) for (_, t), label in zip(choices, target, strict=True) if label >= 0)
    assert float(seen["teacher_top1"]) == pytest.approx(100 * right / 5)
    p = teacher.double().softmax(1)
    assert float(seen["teacher_entropy"]) == pytest.approx(float(-(p * p.log()).sum(1).mean()))
    soft = F.one_hot(target.clamp_min(0), 10) * 0.7 + 0.03
    share = sum(float(soft[i, t]) for i, (_, t) in enumerate(choices)) / 6
    assert float(observe(student, teacher, soft)["teacher_top1"]) == pytest.approx(100 * share)
    assert "teacher_top1" not in observe(student, teacher, None)


def test_a_sparse_teacher_is_observed_as_its_dense_twin() -> None:
    sparse = losses.SparseLogits.from_logits(logits(2), 3)
    for target in (torch.arange(6), None):
        mine, dense = observe(logits(1), sparse, target), observe(logits(1), sparse.to_dense(), target)
        assert list(mine) == list(dense)
        for name, value in mine.items():
            torch.testing.assert_close(value, dense[name])
    outputs = TeacherOutput(None, {}, sparse)
    result = LogitDistillationTask(tiny_model())(*batch(), outputs)
    torch.testing.assert_close(result["teacher_entropy"], observe(logits(1), sparse, None)["teacher_entropy"])


def test_gradient_norms_are_those_of_each_term_alone_and_change_nothing() -> None:
    task = LogitDistillationTask(
        tiny_model("test_efficientnet").eval(), tiny_model(seed=1), distill_loss={"kl": 1.0, "bce": 3.0}
    )
    images, target = batch()
    result = task(images, target)
    norms = gradient_norms(task, result)
    head = list(task.trainable_module.get_classifier().parameters())
    assert all(parameter.grad is None for parameter in task.trainable_module.parameters())
    for key in ("task_loss", "kd_loss", "kl", "bce"):
        fresh = task(images, target)[f"weighted_{key}"]
        squared = sum(g.square().sum() for g in torch.autograd.grad(fresh, head))
        torch.testing.assert_close(norms[f"gradient_{key}"], squared.sqrt())
    torch.testing.assert_close(norms["gradient_ratio"], norms["gradient_kd_loss"] / norms["gradient_task_loss"])
    result["loss"].backward()  # the graph is still there
    assert all(parameter.grad is not None for parameter in task.trainable_module.parameters())


def test_gradient_norms_need_the_result_of_a_distillation() -> None:
    task = ClassificationTask(tiny_model())
    with pytest.raises(ConfigError, match="weighted"):
        gradient_norms(task, task(*batch()))


def test_the_students_own_moving_average_can_be_its_teacher() -> None:
    task = LogitDistillationTask(tiny_model("test_efficientnet"), "ema", temperature=2.0)
    images, target = batch()
    with pytest.raises(MissingTeacherError, match="setup_ema"):
        task(images, target)
    task.setup_ema(decay=0.5)
    task.train()
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1)
    for _ in range(3):
        ema = task.get_eval_model(ema=True)
        before = {name: value.clone() for name, value in ema.state_dict().items()}
        result = task(images, target)
        assert all(torch.equal(value, before[name]) for name, value in ema.state_dict().items())
        ema.eval()
        logits = ema(images)
        torch.testing.assert_close(result["kd_loss"], losses.kl(result["output"], logits, temperature=2.0))
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        task.update_ema()
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert list(task.get_checkpoint_state(ema=True)) == ["state_dict_ema"]


def test_a_mapping_names_taps_and_a_loss_for_each_key() -> None:
    given = {"first": {"loss": "hint_mse", "weight": 2.0, "teacher_taps": "0:pooled"}, "kl": {"temperature": 2.0}}
    assert as_terms(given) == (
        LossTerm("hint_mse", 2.0, teacher_taps="0:pooled", key="first"),
        LossTerm("kl", 1.0, {"temperature": 2.0}),
    )
    [term] = as_terms({"vitkd": {"student_taps": [0, "blocks.1"]}})  # a file's 0 is a number
    assert term.student_taps == ("0", "blocks.1")
    with pytest.raises(ConfigError, match=r"term 'kl': a tap is a name, or a list of names, got 1\.5"):
        as_terms({"kl": {"teacher_taps": 1.5}})
