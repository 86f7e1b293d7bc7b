"""A sparse top-k teacher gives what its dense form gives, without a [B, C] teacher tensor."""

import pytest
import torch
import torch.nn.functional as F

from kdkit import losses
from kdkit.errors import ClassMismatchError, ConfigError, ShapeError
from kdkit.losses import SparseLogits

LOSSES = ["kl", "soft_ce", "dkd"]


def make(k, batch=7, classes=12, dtype=torch.float64, gap=0.0):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, batch, classes, generator=generator, dtype=dtype) * 2
    teacher[:, 0] += gap
    target = torch.arange(batch) % classes  # some kept by the top-k, some not
    return student, SparseLogits.from_logits(teacher, k), target


def value_and_slope(name, student, teacher, target, **options):
    leaf = student.clone().requires_grad_()
    loss = losses.create(name, **options)
    value = loss(leaf, teacher, target) if losses.needs_target(name) else loss(leaf, teacher)
    value.backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize("gap", [0.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("k", [1, 3, 11, 12])
@pytest.mark.parametrize("name", LOSSES)
def test_a_sparse_teacher_gives_the_dense_result(name, k, temperature, gap):
    student, sparse, target = make(k, gap=gap)
    got = value_and_slope(name, student, sparse, target, temperature=temperature)
    expected = value_and_slope(name, student, sparse.to_dense(), target, temperature=temperature)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_the_result_is_dense_in_float32_too(name):
    student, sparse, target = make(4, classes=3000, batch=16, dtype=torch.float32)
    got = value_and_slope(name, student, sparse, target)
    expected = value_and_slope(name, student, sparse.to_dense(), target)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-4, atol=1e-6 * float(expected[1].abs().max()))


def test_the_dense_form_keeps_the_top_k_and_spreads_the_rest_evenly():
    logits = torch.tensor([[3.0, 0.0, 2.0, 1.0, -1.0]], dtype=torch.float64)
    p = F.softmax(logits, 1)
    rest = (p[0, 1] + p[0, 3] + p[0, 4]) / 3
    expected = torch.stack([p[0, 0], rest, p[0, 2], rest, rest])[None]
    torch.testing.assert_close(SparseLogits.from_logits(logits, 2).to_dense().exp(), expected)


def test_with_every_class_kept_the_dense_form_is_the_teacher():
    logits = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(SparseLogits.from_logits(logits, 6).to_dense(), F.log_softmax(logits, 1))


def test_the_rest_is_what_the_top_k_leave_when_it_is_not_given():
    student, known, target = make(3)
    unknown = SparseLogits(known.ids, known.log_probs, known.num_classes)
    for name in LOSSES:
        got = value_and_slope(name, student, unknown, target)
        torch.testing.assert_close(got, value_and_slope(name, student, known, target))


@pytest.mark.parametrize("log_rest", [None, torch.full((7,), -torch.inf)])
@pytest.mark.parametrize("name", LOSSES)
def test_top_k_that_hold_all_the_mass_stay_finite(name, log_rest):
    student, sparse, target = make(2, dtype=torch.float32)
    certain = SparseLogits(sparse.ids, torch.tensor([[0.0, -90.0]]).expand(7, 2), 12, log_rest)
    value, slope = value_and_slope(name, student, certain, target)
    assert value.isfinite()
    assert slope.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_reaches_a_sparse_teacher(name):
    student, sparse, target = make(3)
    log_probs = sparse.log_probs.clone().requires_grad_()
    value_and_slope(name, student, SparseLogits(sparse.ids, log_probs, 12), target)
    assert log_probs.grad is None


def peak_bytes(step):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    live = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(("name", "most"), [("kl", 3), ("soft_ce", 3), ("dkd", 5)])
def test_the_peak_memory_at_21841_classes_is_the_students_alone(name, most):
    """`most` counts float32 [B, C] tensors alive at once: the student's log-probabilities and gradients."""
    student, sparse, target = make(16, batch=8, classes=21841, dtype=torch.float32)
    student.requires_grad_()
    loss = losses.create(name, temperature=1.0)
    rest = (sparse, target) if name == "dkd" else (sparse,)
    one = student.numel() * 4
    assert peak_bytes(lambda: loss(student, *rest).backward()) < (most + 0.1) * one


def test_what_does_not_fit_a_sparse_teacher_is_named():
    student, sparse, target = make(3)
    with pytest.raises(ClassMismatchError, match=r"\[7, 11\] and \[7, 12\]"):
        losses.kl(student[:, :11], sparse)
    with pytest.raises(ShapeError, match=r"\[6, 12\] and \[7, 12\]"):
        losses.soft_ce(student[:6], sparse)
    with pytest.raises(ShapeError, match=r"ids and log_probs must have one shape \[B, k\], got \[7, 3\] and \[7, 2\]"):
        losses.kl(student, SparseLogits(sparse.ids, sparse.log_probs[:, :2], 12))
    with pytest.raises(ShapeError, match=r"must be a tensor \[B, C\] here, got SparseLogits; .*to_dense"):
        losses.dist(student, sparse)
    with pytest.raises(ShapeError, match=r"must be tensors \[B, C\], got SparseLogits; pass its .to_dense"):
        losses.multi_teacher(losses.kl)(student, [sparse, sparse])
    with pytest.raises(ShapeError, match=r"sparse teacher takes index labels"):
        losses.dkd(student, sparse, F.one_hot(target, 12).double())
    with pytest.raises(ConfigError, match=r"k must be in 1..12 for logits \[7, 12\], got 13"):
        SparseLogits.from_logits(student, 13)
    with pytest.raises(ConfigError, match="temperature must be a finite number above 0, got -1"):
        losses.kl(student, sparse, temperature=-1)
