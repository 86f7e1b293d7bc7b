"""Identities of the logit losses, and the inputs that public code fails on."""

import functools
import re

import pytest
import torch
import torch.nn.functional as F

from kdkit import losses
from kdkit.errors import ClassMismatchError, ConfigError, ShapeError

LOGIT = [name for name in losses.available() if not losses.is_feature_loss(name)]
DIVERGENCES = ["kl", "reverse_kl", "js", "logit_mse", "mlkd", "deit_soft", "dkd"]


def make(batch=6, classes=9, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, classes, generator=generator, dtype=dtype) * 2
    return student, teacher, torch.randint(0, classes, (batch,), generator=generator)


def call(name, student, teacher, target, **options):
    loss = losses.create(name, **options)
    return loss(student, teacher, target) if losses.needs_target(name) else loss(student, teacher)


def slope(name, student, teacher, target, **options):
    leaf = student.clone().requires_grad_()
    call(name, leaf, teacher, target, **options).backward()
    return leaf.grad


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_soft_ce_less_the_teachers_entropy_and_has_its_gradient(temperature):
    student, teacher, target = make()
    p = F.softmax(teacher / temperature, 1)
    entropy = -(p * p.log()).sum(1).mean()
    kl = losses.kl(student, teacher, temperature=temperature)
    soft_ce = losses.soft_ce(student, teacher, temperature=temperature)
    torch.testing.assert_close(kl, soft_ce - temperature**2 * entropy)
    options = {"temperature": temperature}
    torch.testing.assert_close(
        slope("kl", student, teacher, target, **options), slope("soft_ce", student, teacher, target, **options)
    )


def test_tckd_and_nckd_weighted_by_what_the_target_leaves_make_up_kl():
    student, teacher, target = make()
    for s, t, y in zip(student, teacher, target, strict=True):
        row = (s[None], t[None], y[None])
        tckd = losses.dkd(*row, alpha=1.0, beta=0.0, temperature=1.0)
        nckd = losses.dkd(*row, alpha=0.0, beta=1.0, temperature=1.0)
        left = 1 - F.softmax(t, 0)[y]
        torch.testing.assert_close(tckd + left * nckd, losses.kl(s[None], t[None]))


@pytest.mark.parametrize("power", [0.1, 0.5])
def test_ttm_is_a_divergence_from_softmax_of_scaled_logits(power):
    student, teacher, _ = make()
    w = F.softmax(power * teacher, 1)
    expected = losses.soft_ce(student, power * teacher) + (w * w.log()).sum(1).mean()
    torch.testing.assert_close(losses.ttm(student, teacher, power=power), expected)


def test_ttm_is_kd_plus_a_renyi_entropy_of_the_student():
    """Zheng and Yang 2024, section "Transformed Teacher Matching", with T = 1 / power."""
    student, teacher, _ = make()
    T = 4.0
    p = F.softmax(teacher / T, 1)
    shannon = -(p * p.log()).sum(1).mean()
    renyi = (F.softmax(student, 1) ** (1 / T)).sum(1).log().mean() / (1 - 1 / T)
    kd = losses.kl(student, teacher, temperature=T) / T**2
    expected = T * kd - (T - 1) * renyi + (T - 1) * shannon
    torch.testing.assert_close(losses.ttm(student, teacher, power=1 / T), expected)


def test_wttm_weighs_each_sample_of_ttm_by_its_power_sum():
    student, teacher, _ = make()
    terms = [
        losses.ttm(s[None], t[None], power=0.2) * (F.softmax(t, 0) ** 0.2).sum()
        for s, t in zip(student, teacher, strict=True)
    ]
    torch.testing.assert_close(losses.wttm(student, teacher, power=0.2), torch.stack(terms).mean())


def test_ofa_with_eps_1_is_soft_ce_whatever_the_label():
    student, teacher, target = make()
    torch.testing.assert_close(losses.ofa(student, teacher, target, eps=1.0), losses.soft_ce(student, teacher))


def test_nkd_of_its_target_alone_is_the_teacher_weighted_cross_entropy():
    student, teacher, target = make()
    p_target = F.softmax(teacher, 1).gather(1, target[:, None]).squeeze(1)
    expected = (p_target * F.cross_entropy(student, target, reduction="none")).mean()
    torch.testing.assert_close(losses.nkd(student, teacher, target, gamma=0.0), expected)


def test_dist_is_0_for_equal_probabilities_and_free_of_each_rows_offset():
    student, teacher, _ = make()
    offset = torch.arange(6.0, dtype=torch.float64)[:, None]
    torch.testing.assert_close(losses.dist(teacher + offset, teacher, eps=0.0), torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(losses.dist(student + offset, teacher), losses.dist(student, teacher))


def test_js_lies_between_kl_and_reverse_kl_and_a_beta_that_is_no_share_is_refused():
    student, teacher, _ = make()
    for beta, end in ((1e-6, losses.kl), (1 - 1e-6, losses.reverse_kl)):
        got = losses.js(student, teacher, beta=beta) / min(beta, 1 - beta)
        torch.testing.assert_close(got, end(student, teacher), rtol=1e-4, atol=0)
    for beta in (0.0, 1.0, "0.5"):
        with pytest.raises(ConfigError, match="beta must be between 0 and 1, got"):
            losses.create("js", beta=beta)


def test_logit_mse_is_the_limit_of_kl_and_the_same_for_logits_and_log_probabilities():
    student, teacher, _ = make()
    mse = losses.logit_mse(student, teacher)
    torch.testing.assert_close(losses.kl(student, teacher, temperature=1e4), mse / 2, rtol=1e-3, atol=0)
    torch.testing.assert_close(losses.logit_mse(student, F.log_softmax(teacher, 1)), mse)


def test_mlkd_with_the_first_level_alone_is_kl_and_its_temperatures_are_a_list_of_numbers():
    student, teacher, _ = make()
    expected = sum(losses.kl(student, teacher, temperature=t) for t in (1.0, 3.0))
    got = losses.mlkd(student, teacher, temperatures=[1.0, 3.0], beta=0.0, gamma=0.0)
    torch.testing.assert_close(got, expected)
    for wrong in (4.0, "4", [], [4.0, -1.0]):
        with pytest.raises(ConfigError, match="temperatures"):
            losses.create("mlkd", temperatures=wrong)


@pytest.mark.parametrize("name", [*DIVERGENCES, "dist"])
def test_a_divergence_is_never_negative_and_0_where_student_and_teacher_agree(name):
    options = {"eps": 0.0} if name == "dist" else {}
    for seed in range(5):
        student, teacher, target = make(seed=seed)
        assert call(name, student, teacher, target, **options) > 0
        same = call(name, teacher, teacher, target, **options)
        torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-12, rtol=0)
        grad = slope(name, teacher, teacher, target, **options)
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", LOGIT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_result_is_a_scalar_of_shape_nothing_in_at_least_float32(name, dtype):
    student, teacher, target = make(dtype=dtype)
    result = call(name, student, teacher, target)
    assert result.shape == ()
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("name", LOGIT)
def test_no_gradient_reaches_the_teacher(name):
    student, teacher, target = make()
    student.requires_grad_()
    teacher.requires_grad_()
    call(name, student, teacher, target).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", LOGIT)
@pytest.mark.parametrize("gap", [1e2, 1e4])
def test_a_confident_row_gives_no_inf_and_no_nan(name, gap, soft):
    student, teacher, target = make(dtype=torch.float32)
    for peak_s, peak_t in ((0, 0), (0, 1)):
        s, t = student.clone(), teacher.clone()
        s[:, peak_s] += gap
        t[:, peak_t] += gap
        labels = F.one_hot(target, 9).float() * 0.9 + 0.1 / 9 if soft else target
        assert call(name, s, t, labels).isfinite()
        assert slope(name, s, t, labels).isfinite().all()


@pytest.mark.parametrize("name", LOGIT)
def test_one_sample_is_enough(name):
    student, teacher, target = make(batch=1)
    assert call(name, student, teacher, target).isfinite()
    assert slope(name, student, teacher, target).isfinite().all()


@pytest.mark.parametrize("scale", [3.0, 20.0])  # below and above where float32 is precise enough by itself
def test_dist_of_a_batch_in_many_blocks_is_in_float32_what_it_is_in_float64(scale):
    generator = torch.Generator().manual_seed(5)
    pair = [scale * torch.randn(300, 1000, generator=generator) for _ in range(2)]
    exact = [logits.double() for logits in pair]
    torch.testing.assert_close(losses.dist(*pair).double(), losses.dist(*exact), rtol=1e-5, atol=0)
    slopes = [slope("dist", *logits, None).double() for logits in (pair, exact)]
    assert (slopes[0] - slopes[1]).abs().max() < 1e-4 * slopes[1].abs().max()


def test_dist_of_one_sample_keeps_the_class_term_constant():
    student, teacher, _ = make(batch=1)
    torch.testing.assert_close(losses.dist(student, teacher, beta=0.0, gamma=3.0).item(), 3.0)
    assert slope("dist", student, teacher, None, beta=0.0).abs().max() == 0


def test_a_constant_row_has_correlation_0_in_dist():
    student, teacher, _ = make(dtype=torch.float32)
    teacher = torch.full_like(teacher, 0.1)
    assert losses.dist(student, teacher) == 2.0
    assert slope("dist", student, teacher, None).abs().max() == 0


@pytest.mark.parametrize("name", LOGIT)
def test_two_classes_are_enough(name):
    student, teacher, target = make(classes=2)
    assert call(name, student, teacher, target).isfinite()
    assert slope(name, student, teacher, target).isfinite().all()


@pytest.mark.parametrize("soft", [False, True])
def test_nckd_of_two_classes_is_0(soft):
    student, teacher, target = make(classes=2)
    labels = F.one_hot(target, 2).double() * 0.8 + 0.1 if soft else target
    torch.testing.assert_close(losses.dkd(student, teacher, labels, alpha=0.0).item(), 0.0, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", LOGIT)
def test_memory_layout_makes_no_difference(name):
    student, teacher, target = make()
    spread = torch.stack([student, teacher], dim=-1)
    assert not spread[..., 0].is_contiguous()
    args = spread[..., 0], teacher.T.contiguous().T, target
    torch.testing.assert_close(call(name, *args), call(name, student, teacher, target))
    torch.testing.assert_close(slope(name, *args), slope(name, student, teacher, target))


@pytest.mark.parametrize("name", LOGIT)
def test_autocast_does_not_lower_the_precision(name):
    student, teacher, target = make(dtype=torch.float32)
    expected = call(name, student, teacher, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(name, student, teacher, target), expected)


@pytest.mark.parametrize("name", ["dkd", "nkd", "ofa"])
def test_one_hot_soft_labels_mean_what_their_index_means(name):
    student, teacher, target = make()
    one_hot = F.one_hot(target, 9).double()
    for policy in ("expected", "argmax"):
        got = call(name, student, teacher, one_hot, soft_labels=policy)
        torch.testing.assert_close(got, call(name, student, teacher, target))
        grad = slope(name, student, teacher, one_hot, soft_labels=policy)
        torch.testing.assert_close(grad, slope(name, student, teacher, target))


@pytest.mark.parametrize("name", ["dkd", "nkd", "ofa"])
def test_a_mixed_label_is_the_mean_over_its_two_classes(name):
    student, teacher, target = make()
    other = target.flip(0)
    mixed = 0.6 * F.one_hot(target, 9).double() + 0.4 * F.one_hot(other, 9).double()
    expected = 0.6 * call(name, student, teacher, target) + 0.4 * call(name, student, teacher, other)
    torch.testing.assert_close(call(name, student, teacher, mixed), expected)
    first = call(name, student, teacher, mixed, soft_labels="argmax")
    torch.testing.assert_close(first, call(name, student, teacher, target))


@pytest.mark.parametrize("name", ["dkd", "nkd", "ofa"])
def test_soft_labels_are_refused_on_request_and_never_guessed(name):
    student, teacher, target = make()
    with pytest.raises(ShapeError, match=r"soft_labels='error', got target \[6, 9\] for logits \[6, 9\]"):
        call(name, student, teacher, F.one_hot(target, 9).double(), soft_labels="error")
    with pytest.raises(ConfigError, match="soft_labels must be 'error', 'argmax' or 'expected', got 'top1'"):
        call(name, student, teacher, target, soft_labels="top1")


@pytest.mark.parametrize("name", ["dkd", "nkd", "ofa"])
def test_missing_labels_are_named(name):
    student, teacher, _ = make()
    with pytest.raises(
        ConfigError, match=rf"^{name} needs labels: pass target \[B\] or \[B, C\] beside logits \[6, 9\]$"
    ):
        losses.create(name)(student, teacher)


@pytest.mark.parametrize("name", ["dkd", "nkd", "ofa"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("form", ["index", "expected", "argmax", "sparse"])
def test_samples_without_a_label_take_no_part_and_no_label_at_all_is_0(name, temperature, form):
    """Of a soft label with a missing part, the known part is the weight: by hand, one row at a time."""
    if form == "sparse" and name != "dkd":
        pytest.skip("only dkd takes a sparse teacher")
    options = {"temperature": temperature, **({"soft_labels": form} if form in ("expected", "argmax") else {})}
    student, teacher, index = make()
    shares = torch.tensor([1.0, 0.0, 0.4, 1.0, 0.0, 1.0]).double()
    if form in ("expected", "argmax"):
        rows = 0.75 * F.one_hot(index, 9) + 0.25 * F.one_hot((index + 1) % 9, 9)
        target, empty = rows * shares[:, None], torch.zeros(6, 9).double()
    else:
        shares = (shares > 0).double()
        target, empty = torch.where(shares > 0, index, -1), torch.full((6,), -1)
    whole = losses.SparseLogits.from_logits(teacher, 3) if form == "sparse" else teacher
    parts = [losses.SparseLogits.from_logits(row[None], 3) if form == "sparse" else row[None] for row in teacher]
    given = rows if form in ("expected", "argmax") else index

    def by_hand(logits):
        each = [call(name, logits[i : i + 1], parts[i], given[i : i + 1], **options) for i in range(6)]
        return (shares * torch.stack(each)).sum() / shares.sum()

    leaf = student.clone().requires_grad_()
    by_hand(leaf).backward()
    torch.testing.assert_close(call(name, student, whole, target, **options), by_hand(student))
    torch.testing.assert_close(slope(name, student, whole, target, **options), leaf.grad)
    assert float(call(name, student, whole, empty, **options)) == 0
    assert not slope(name, student, whole, empty, **options).any()


@pytest.mark.parametrize("name", ["dkd", "nkd", "ofa"])
@pytest.mark.parametrize("label", [-100, -2, 9])
def test_a_label_out_of_range_is_named_with_both_shapes(name, label):
    student, teacher, target = make()
    target[2] = label
    with pytest.raises(
        ShapeError,
        match=rf"^target holds label {label}, outside 0..8 \(-1 for no label\), in target \[6\] for logits \[6, 9\]$",
    ):
        call(name, student, teacher, target)


@pytest.mark.parametrize("name", ["dkd", "nkd", "ofa"])
@pytest.mark.parametrize("shape", [(5,), (6, 8), (6, 10), (5, 9), (6, 1), (6, 9, 1), ()])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_a_target_of_another_shape_is_named_with_both_shapes(name, shape, dtype):
    student, teacher, _ = make()
    message = f"target must be [B] or [B, C] for logits [6, 9], got {list(shape)}"
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        call(name, student, teacher, torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("name", ["dkd", "nkd", "ofa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.bool])
def test_index_labels_that_are_no_integers_are_named_with_their_dtype(name, dtype):
    student, teacher, target = make()
    message = f"target [B] must hold integer labels, got {dtype} in target [6] for logits [6, 9]"
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        call(name, student, teacher, target.to(dtype))


@pytest.mark.parametrize("name", ["dkd", "nkd", "ofa"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_index_labels_of_any_integer_dtype_serve(name, dtype):
    student, teacher, target = make()
    assert torch.equal(call(name, student, teacher, target.to(dtype)), call(name, student, teacher, target))


@pytest.mark.parametrize("name", LOGIT)
def test_logits_that_do_not_pair_are_named_with_both_shapes(name):
    student, teacher, target = make()
    with pytest.raises(ClassMismatchError, match=r"^student_logits and teacher_logits .*: \[6, 9\] and \[6, 7\]"):
        call(name, student, teacher[:, :7], target)
    with pytest.raises(ShapeError, match=r"^student_logits and teacher_logits .* \[6, 9\] and \[4, 9\]$"):
        call(name, student, teacher[:4], target)
    with pytest.raises(ShapeError, match=r"\[9\] and \[9\]$"):
        call(name, student[0], teacher[0], target)
    with pytest.raises(ShapeError, match=r"^student_logits and teacher_logits must not be empty, got \[0, 9\]"):
        call(name, student[:0], teacher[:0], target)
    with pytest.raises(ShapeError, match=r"must be floating point, got torch.float64 and torch.int64$"):
        call(name, student, teacher.long(), target)


@pytest.mark.parametrize("name", LOGIT)
def test_an_impossible_option_is_named(name):
    student, teacher, target = make()
    labels = [target] if losses.needs_target(name) else []
    for option in ("temperature", "power"):
        if option not in losses.loss_spec(name).options:
            with pytest.raises(ConfigError, match="has no option"):
                losses.create(name, **{option: 1.0})
            continue
        for wrong in (0.0, -1.0, float("nan"), float("inf"), None, "4"):
            with pytest.raises(ConfigError, match=f"{option} must be a finite number"):
                losses.create(name, **{option: wrong})
            with pytest.raises(ConfigError, match=f"^{option} must be a finite number above 0, got"):
                getattr(losses, name)(student, teacher, *labels, **{option: wrong})


def test_an_option_that_no_arithmetic_takes_is_refused_with_the_losss_name():
    with pytest.raises(ConfigError, match=r"loss 'dkd' cannot work with these options .*expected numbers"):
        losses.create("dkd", alpha="1")
    with pytest.raises(ConfigError, match="loss 'dkd': beta must be a finite number, got inf"):
        losses.create("dkd", beta=float("inf"))
    with pytest.raises(ConfigError, match="soft_labels must be"):
        losses.create("ofa", soft_labels="mean")


@pytest.mark.parametrize("name", LOGIT)
def test_standardising_composes_with_every_loss(name):
    student, teacher, target = make()
    by_hand = call(name, losses.standardize(student), losses.standardize(teacher), target)
    torch.testing.assert_close(call(name, student, teacher, target, standardize=True), by_hand)


def test_a_standardised_loss_is_free_of_scale_and_offset():
    student, teacher, _ = make()
    loss = losses.create("kl", standardize=True, temperature=2.0)
    torch.testing.assert_close(loss(3 * student + 5, teacher), loss(student, teacher), rtol=1e-6, atol=0)


def test_standardising_a_constant_row_gives_0_and_a_finite_gradient():
    z = torch.full((2, 5), 3.25, requires_grad=True)
    losses.standardize(z).pow(2).sum().backward()
    assert losses.standardize(z).abs().max() == 0
    assert z.grad.isfinite().all()
    with pytest.raises(ShapeError, match=r"standardize needs at least 2 classes, got logits of shape \[2, 1\]"):
        losses.standardize(z[:, :1])


def test_several_teachers_average_in_probability():
    student, first, target = make()
    second = make(seed=1)[1]
    mean = (0.75 * first.softmax(1) + 0.25 * second.softmax(1)).log()
    torch.testing.assert_close(losses.mean_teacher([first, second], [3, 1]), mean)
    loss = losses.multi_teacher(losses.create("dkd"), weights=[3, 1])
    torch.testing.assert_close(loss(student, [first, second], target), losses.dkd(student, mean, target))
    torch.testing.assert_close(losses.mean_teacher([first, second], [1, 0]), F.log_softmax(first, 1))


def test_several_teachers_may_add_their_losses():
    student, first, _ = make()
    second = make(seed=1)[1]
    loss = losses.multi_teacher(losses.kl, combine="losses", weights=[2.0, 0.5])
    expected = 2 * losses.kl(student, first) + 0.5 * losses.kl(student, second)
    torch.testing.assert_close(loss(student, [first, second]), expected)
    equal = losses.multi_teacher(losses.kl, combine="losses")(student, [first, first])
    torch.testing.assert_close(equal, 2 * losses.kl(student, first))


def test_teachers_that_do_not_fit_are_named():
    student, first, _ = make()
    loss = losses.multi_teacher(losses.kl, weights=[1.0])
    with pytest.raises(ConfigError, match=r"one number >= 0 for each of 2 teachers, got \[1.0\]"):
        loss(student, [first, first])
    with pytest.raises(ShapeError, match=r"one shape \[B, C\], got \[6, 9\] and \[6, 8\]"):
        loss(student, [first, first[:, :8]])
    with pytest.raises(ShapeError, match="non-empty sequence"):
        loss(student, first)
    with pytest.raises(ConfigError, match="combine must be 'probabilities' or 'losses', got 'mean'"):
        losses.multi_teacher(losses.kl, combine="mean")
    with pytest.raises(ConfigError, match=r"must not all be 0"):
        losses.mean_teacher([first], [0.0])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", [*LOGIT, "standardize"])
def test_gradients_pass_gradcheck_in_float64(name, soft):
    student, teacher, target = make(batch=3, classes=5)
    labels = F.one_hot(target, 5).double() * 0.7 + 0.3 / 5 if soft else target
    if name == "standardize":
        function = losses.standardize
    elif soft and not losses.needs_target(name):
        pytest.skip("takes no labels")
    else:
        function = functools.partial(lambda z: call(name, z, teacher, labels))
    assert torch.autograd.gradcheck(function, student.requires_grad_())
