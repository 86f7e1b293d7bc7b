"""Every loss against an independent numpy implementation in float64: values, and gradients for the student.

Compared: random, confident, huge (logit gaps of 1e4), flat, tied, offset (by 100) and bfloat16 inputs; relative error
at most 1e-6 in float64 and 1e-4 in float32, a gradient's error taken relative to its largest entry. The reference
starts from the very numbers that kdkit gets, rounded already. Not promised: relative accuracy of a divergence near 0 in
float32, where the rounding of the log-probabilities themselves is larger; and under bfloat16 the last rounding of the
gradient to it.
"""

import numpy as np
import pytest
import reference_losses as reference
import torch

from kdkit import losses

B, C = 6, 11
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 1e-4}
GRADIENT_TOLERANCE = TOLERANCE | {torch.bfloat16: 2.0**-8}


def relative_error(got, expected):
    scale = np.abs(expected).max()
    return np.abs(got - expected).max() / (scale if scale > 0 else 1.0)


def make_logits(kind):
    rng = np.random.default_rng(7)
    student, teacher = rng.normal(size=(2, B, C)) * 2
    if kind in ("confident", "huge"):
        gap = 30.0 if kind == "confident" else 1e4
        teacher[np.arange(B), np.arange(B)] += gap
        student[np.arange(B), np.arange(B) // 2] += gap
    if kind == "flat":
        student, teacher = 0.3 * student, np.full((B, C), 2.5)
    if kind == "tied":
        student, teacher = np.round(student), np.round(teacher)
    if kind == "offset":
        student, teacher = student + 100, teacher - 100
    labels = rng.integers(0, C, size=B)
    labels[:3] = [0, 1, 2]  # where the teacher is confident
    mixed = np.zeros((B, C))
    mixed[np.arange(B), labels] += 0.7
    mixed[np.arange(B), labels[::-1]] += 0.3
    return student, teacher, labels, 0.9 * mixed + 0.1 / C


LOGIT_CASES = {
    "kl": {"temperature": 1.0},
    "kl at T=4": {"temperature": 4.0},
    "soft_ce": {"temperature": 2.0},
    "deit_soft": {"temperature": 3.0},
    "reverse_kl": {"temperature": 2.0},
    "js": {},
    "js at T=4": {"beta": 0.1, "temperature": 4.0},
    "logit_mse": {},
    "mlkd": {"beta": 2.0, "gamma": 3.0},
    "bce": {},
    "hard": {},
    "dkd": {},
    "dkd as on ImageNet": {"beta": 0.5, "temperature": 1.0},
    "dkd on soft labels": {},
    "nkd": {},
    "nkd at T=2": {"temperature": 2.0, "gamma": 1.2},
    "nkd on soft labels": {"temperature": 2.0},
    "dist": {},
    "dist by the paper": {"eps": 0.0},
    "dist at T=4": {"temperature": 4.0, "beta": 2.0, "gamma": 0.5, "eps": 0.0},
    "ttm": {},
    "wttm": {"power": 0.2},
    "ofa": {"eps": 1.5, "temperature": 2.0},
    "ofa below 1": {"eps": 0.6},
    "ofa on soft labels": {"eps": 1.3},
}
PRECISIONS = [torch.float64, torch.float32, torch.bfloat16]
KINDS = [(kind, torch.float64) for kind in ("random", "confident", "huge", "flat", "tied", "offset")]
KINDS += [("random", torch.float32), ("huge", torch.float32), ("random", torch.bfloat16), ("confident", torch.bfloat16)]
ON_SOFT_LABELS = KINDS[1:2] + KINDS[6:7]  # a plain implementation takes long for each class of each sample
CASES = [
    (case, *kind) for case in LOGIT_CASES for kind in (ON_SOFT_LABELS if case.endswith("on soft labels") else KINDS)
]


def check(loss, ref_loss, student, teacher, dtype):
    leaf = torch.tensor(student, dtype=dtype, requires_grad=True)
    fixed = torch.tensor(teacher, dtype=dtype)
    exact_student, exact_teacher = leaf.detach().double().numpy(), fixed.double().numpy()
    got = loss(leaf, fixed)
    got.backward()
    expected = ref_loss(exact_student, exact_teacher)
    slopes = reference.gradient(lambda z: ref_loss(z, exact_teacher), exact_student)
    assert got.shape == ()
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert np.isfinite(expected)
    assert relative_error(got.item(), expected) <= TOLERANCE[dtype]
    assert relative_error(leaf.grad.double().numpy(), slopes) <= GRADIENT_TOLERANCE[dtype]


@pytest.mark.parametrize(("case", "kind", "dtype"), CASES, ids=str)
def test_a_logit_loss_equals_the_papers_formula(case, kind, dtype):
    name, options = case.split()[0], LOGIT_CASES[case]
    student, teacher, labels, mixed = make_logits(kind)
    loss, ref_loss = getattr(losses, name), getattr(reference, name)
    if not losses.needs_target(name):
        check(lambda s, t: loss(s, t, **options), lambda s, t: ref_loss(s, t, **options), student, teacher, dtype)
        return
    target = mixed if case.endswith("on soft labels") else labels
    tensor = torch.tensor(target)
    check(
        lambda s, t: loss(s, t, tensor.to(s.dtype) if target is mixed else tensor, **options),
        lambda s, t: ref_loss(
            s, t, torch.tensor(target).to(dtype).double().numpy() if target is mixed else target, **options
        ),
        student,
        teacher,
        dtype,
    )


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("case", ["kl", "dist", "dkd", "soft_ce"])
def test_a_standardised_loss_equals_the_formula_on_z_scores(case, dtype):
    student, teacher, labels, _ = make_logits("random")
    loss = losses.create(case, standardize=True, temperature=2.0)
    rest = (torch.tensor(labels),) if losses.needs_target(case) else ()
    ref_rest = (labels,) if rest else ()

    def ref_loss(s, t):
        s, t = reference.standardize(s), reference.standardize(t)
        return getattr(reference, case)(s, t, *ref_rest, temperature=2.0)

    check(lambda s, t: loss(s, t, *rest), ref_loss, student, teacher, dtype)


def make_features(kind, shape_s, shape_t):
    rng = np.random.default_rng(11)
    student, teacher = rng.normal(size=shape_s), rng.normal(size=shape_t)
    if kind == "large":
        student, teacher = 1e3 * student, 1e3 * teacher
    if kind == "flat":
        student, teacher = 1 + 0.1 * student, np.ones(shape_t) + 0.01 * teacher
    if kind == "tied":  # two samples that the student cannot tell apart
        student[1] = student[0]
    return student, teacher


FEATURE_SHAPES = {
    "hint_mse": [((4, 7), (4, 7)), ((4, 3, 5, 2), (4, 3, 5, 2))],
    "hint_cosine": [((4, 7), (4, 7)), ((4, 5, 3), (4, 5, 3)), ((4, 3, 5, 2), (4, 3, 5, 2))],
    "attention": [((4, 3, 3, 2), (4, 5, 3, 2)), ((4, 5, 3), (4, 5, 6))],
    "similarity": [((5, 7), (5, 4)), ((5, 2, 3, 2), (5, 3, 2, 2))],
    "pkt": [((5, 7), (5, 4))],
    "rkd_distance": [((5, 7), (5, 4))],
    "rkd_angle": [((5, 7), (5, 4))],
}


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", ["random", "large", "flat", "tied"])
@pytest.mark.parametrize("name", FEATURE_SHAPES)
def test_a_feature_loss_equals_the_papers_formula(name, kind, dtype):
    for shapes in FEATURE_SHAPES[name]:
        check(getattr(losses, name), getattr(reference, name), *make_features(kind, *shapes), dtype)


def numpy_parameters(module, prefix=""):
    state = module.state_dict()
    return {k.removeprefix(prefix): v.double().numpy() for k, v in state.items() if k.startswith(prefix)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_review_context_loss_equals_the_papers_formula(dtype):
    rng = np.random.default_rng(3)
    for shape in [(2, 3, 8, 8), (2, 3, 5, 5), (2, 3, 2, 2), (2, 3, 1, 1)]:
        student, teacher = rng.normal(size=(2, *shape))
        check(lambda s, t: losses.review([s], [t]), lambda s, t: reference.review([s], [t]), student, teacher, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_review_with_its_fusion_equals_a_plain_one(dtype):
    torch.manual_seed(0)
    module = losses.ReviewKD([3, 4, 5], [4, 3, 6], mid_width=3).to(dtype)
    rng = np.random.default_rng(5)
    shallow, middle, deep = (rng.normal(size=s) for s in [(3, 3, 4, 4), (3, 4, 3, 3), (3, 5, 1, 1)])
    teacher = [rng.normal(size=s) for s in [(3, 4, 5, 5), (3, 3, 3, 3), (3, 6, 1, 1)]]
    stages = [numpy_parameters(module, f"fusions.{i}.") for i in range(3)]
    sizes = [f.shape[2:] for f in teacher]

    def loss(s, t):
        others = [torch.tensor(f, dtype=dtype) for f in (middle, deep)]
        return module([s, *others], [t, *(torch.tensor(f, dtype=dtype) for f in teacher[1:])])

    def ref_loss(s, t):
        return reference.review(reference.review_fuse([s, middle, deep], sizes, stages), [t, *teacher[1:]])

    check(loss, ref_loss, shallow, teacher[0], dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_vitkd_equals_a_plain_one(dtype):
    torch.manual_seed(0)
    module = losses.ViTKD([3] * 3, [4] * 3).to(dtype)
    rng = np.random.default_rng(6)
    low_s, low_t = rng.normal(size=(2, 2, 9, 3)), rng.normal(size=(2, 2, 9, 4))  # 2 layers, B = 2
    high_s, high_t = rng.normal(size=(2, 9, 3)), rng.normal(size=(2, 9, 4))
    mask = np.array([[1, 0, 1, 1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 1, 1, 0, 1, 0]])
    parameters = numpy_parameters(module)

    def loss(s, t):
        low = [[torch.tensor(f, dtype=dtype) for f in side] for side in (low_s, low_t)]
        return module([*low[0], s], [*low[1], t], torch.tensor(mask))

    check(loss, lambda s, t: reference.vitkd(low_s, low_t, s, t, mask, parameters), high_s, high_t, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mask", ["channels", "positions"])
def test_mgd_equals_a_plain_one(mask, dtype):
    torch.manual_seed(0)
    module = losses.MGD(3, 4, mask=mask, mask_ratio=0.4).to(dtype)
    rng = np.random.default_rng(8)
    student, teacher = rng.normal(size=(2, 3, 4, 3)), rng.normal(size=(2, 4, 4, 3))
    drawn = module.draw_mask(torch.tensor(teacher, dtype=dtype))
    assert 0 < drawn.mean() < 1
    parameters = numpy_parameters(module)
    check(
        lambda s, t: module(s, t, drawn),
        lambda s, t: reference.mgd(s, t, drawn.double().numpy(), parameters),
        student,
        teacher,
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_srrl_equals_a_plain_one(dtype):
    torch.manual_seed(0)
    head = torch.randn(5, 4, dtype=dtype)
    module = losses.SRRL(3, 4, head).to(dtype)
    rng = np.random.default_rng(9)
    student, teacher = rng.normal(size=(3, 3, 4, 2)), rng.normal(size=(3, 4))
    parameters, weight = numpy_parameters(module), head.double().numpy()
    check(module, lambda s, t: reference.srrl(s, t, weight, parameters), student, teacher, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_crd_equals_a_plain_one(dtype):
    torch.manual_seed(0)
    module = losses.CRD(3, 4, 9, width=5, negatives=6).to(dtype).eval()
    module.num_batches += 1
    module.log_z.copy_(torch.tensor([3.0, 1.0]))
    rng, row = np.random.default_rng(10), torch.tensor([2, 8, 0])
    index = module.draw(row)
    parameters = numpy_parameters(module)
    memories = parameters["student_memory"], parameters["teacher_memory"]
    check(
        lambda s, t: module(s, t, row, index),
        lambda s, t: reference.crd(s, t, *memories, index.numpy(), [3.0, 1.0], parameters),
        rng.normal(size=(3, 3)),
        rng.normal(size=(3, 4)),
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ofa_exits_equal_plain_ones(dtype):
    torch.manual_seed(0)
    options = {"eps": 1.5, "temperature": 2.0}
    module = losses.OFAExits([3, 5, 2], 4, **options).to(dtype)
    rng, labels = np.random.default_rng(12), np.array([1, 3, 0])
    first, tokens, pooled = (rng.normal(size=shape) for shape in [(3, 3, 4, 2), (3, 6, 5), (3, 2)])
    parameters = numpy_parameters(module)
    rest = [torch.tensor(feature, dtype=dtype) for feature in (tokens, pooled)]
    exact = [feature.double().numpy() for feature in rest]
    check(
        lambda s, t: module([s, *rest], t, torch.tensor(labels)),
        lambda s, t: reference.ofa_exits([s, *exact], t, labels, parameters, **options),
        first,
        rng.normal(size=(3, 4)),
        dtype,
    )
