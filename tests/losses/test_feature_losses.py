"""Identities of the feature and relation losses, their projections, and the inputs that public code fails on."""

import math

import pytest
import torch

from kdkit import losses
from kdkit.errors import ConfigError, ShapeError

PLAIN = ["hint_mse", "hint_cosine", "attention", "similarity", "pkt", "rkd_distance", "rkd_angle"]
RELATIONS = ["similarity", "pkt", "rkd_distance", "rkd_angle"]


def make(*shape, dtype=torch.float64, seed=0):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slope(loss, student, teacher):
    leaf = student.clone().requires_grad_()
    loss(leaf, teacher).backward()
    return leaf.grad


@pytest.mark.parametrize("name", PLAIN)
def test_a_feature_loss_is_0_and_flat_where_the_features_agree(name):
    feature, _ = make(4, 3, 5, 5)
    loss = losses.create(name)
    torch.testing.assert_close(loss(feature, feature).item(), 0.0, atol=1e-14, rtol=0)
    assert loss(feature, feature.roll(1, 0)) > 0
    assert slope(loss, feature, feature).abs().max() < 1e-12


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_result_is_a_scalar_of_shape_nothing_and_leaves_the_teacher_alone(name, dtype):
    student, teacher = make(4, 3, 5, 5, dtype=dtype)
    student.requires_grad_()
    teacher.requires_grad_()
    result = losses.create(name)(student, teacher)
    result.backward()
    assert result.shape == ()
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", RELATIONS)
def test_a_relation_of_one_sample_is_0_with_a_zero_gradient(name):
    student, teacher = make(1, 6)
    assert losses.create(name)(student, teacher) == 0
    assert slope(losses.create(name), student, teacher).abs().max() == 0


@pytest.mark.parametrize("name", RELATIONS)
def test_equal_and_zero_samples_give_finite_gradients(name):
    student, teacher = make(5, 6, dtype=torch.float32)
    student[1] = student[0]
    student[2] = 0
    assert slope(losses.create(name), student, teacher).isfinite().all()
    assert slope(losses.create(name), torch.ones_like(student), teacher).isfinite().all()


@pytest.mark.parametrize("name", ["similarity", "pkt", "rkd_distance", "rkd_angle"])
def test_relations_are_free_of_rotation_and_of_scale(name):
    student, teacher = make(5, 4)
    rotation = torch.linalg.qr(make(4, 4)[0]).Q
    loss = losses.create(name)
    torch.testing.assert_close(loss(3 * student @ rotation, teacher), loss(student, teacher))


def plain_rkd(name, student, teacher):
    """The published code's expression, in float64: every difference of two samples, every triple."""
    sides = []
    for rows in (student.double(), teacher.double()):
        apart = rows[None] - rows[:, None]
        length = apart.norm(dim=2)
        unit = apart / torch.where(length > 0, length, 1.0)[..., None]
        sides.append(length / length[length > 0].mean() if name == "rkd_distance" else unit @ unit.mT)
    return torch.nn.functional.smooth_l1_loss(*sides)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_a_relation_in_many_blocks_keeps_close_pairs_far_from_the_origin(name, offset):
    """70 samples make more than one block; half of them are 1e-3 from another one, the last is equal to the first."""
    student, teacher = make(70, 24, dtype=torch.float32)
    student[35:] = student[:35] + 1e-3 * student[35:]
    student[-1] = student[0]
    leaf, plain = (student + offset).requires_grad_(), (student + offset).double().requires_grad_()
    got, expected = losses.create(name)(leaf, teacher), plain_rkd(name, plain, teacher)
    got.backward()
    different = [i for i in range(70) if i not in (0, 69)]  # the norm of 0 has no gradient there
    expected.backward()
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)
    scale = plain.grad[different].abs().max()
    assert (leaf.grad.double() - plain.grad)[different].abs().max() < 1e-5 * scale


def test_pkt_of_opposite_vectors_is_finite():
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = (2 / 3 * math.log(2 / 3) + 1 / 3 * math.log((1 / 3) / 1e-7)) / 2
    assert losses.pkt(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert slope(losses.pkt, student, teacher).isfinite().all()


def test_a_zero_map_has_a_zero_attention_map():
    student, teacher = make(2, 3, 4, 4)
    assert slope(losses.attention, torch.zeros_like(student), teacher).isfinite().all()
    unit_maps = losses.attention(torch.zeros_like(student), teacher)
    torch.testing.assert_close(unit_maps.item(), 1 / 16)


@pytest.mark.parametrize("name", PLAIN)
def test_memory_layout_makes_no_difference(name):
    student, teacher = make(4, 3, 5, 5)
    last = student.to(memory_format=torch.channels_last), teacher.to(memory_format=torch.channels_last)
    loss = losses.create(name)
    torch.testing.assert_close(loss(*last), loss(student, teacher))
    torch.testing.assert_close(slope(loss, *last), slope(loss, student, teacher))


@pytest.mark.parametrize("name", PLAIN)
def test_autocast_does_not_lower_the_precision(name):
    student, teacher = make(4, 3, 5, 5, dtype=torch.float32)
    expected = losses.create(name)(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(losses.create(name)(student, teacher), expected)


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_pass_gradcheck_in_float64(name):
    student, teacher = make(3, 2, 3, 3)
    assert torch.autograd.gradcheck(lambda f: losses.create(name)(f, teacher), student.requires_grad_())


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (4, 6, 3, 3)])
def test_a_projection_is_a_linear_map_of_the_width(shape):
    student = make(*shape)[0]
    projection = losses.Projection(6, 2).double()
    dim = 2 if len(shape) == 3 else 1
    weight, bias = projection.linear.weight, projection.linear.bias
    expected = (torch.movedim(student, dim, -1) @ weight.T + bias).movedim(-1, dim)
    torch.testing.assert_close(projection(student), expected)


def test_equal_widths_need_no_projection():
    feature = make(4, 6)[0]
    projection = losses.Projection(6, 6)
    assert list(projection.parameters()) == []
    assert projection(feature) is feature


def test_a_projected_loss_trains_its_projection_and_takes_bfloat16_features():
    student, teacher = make(4, 6, 3, 3, dtype=torch.bfloat16)
    loss = losses.create("hint_mse", student_width=6, teacher_width=2)
    loss(student.requires_grad_(), teacher[:, :2]).backward()
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["hint_mse", "hint_cosine"])
def test_a_hint_interpolates_the_students_map_to_the_teachers_size(name):
    student, teacher = make(2, 3, 4, 4)[0], make(2, 3, 8, 8)[1]
    resized = torch.nn.functional.interpolate(student, size=(8, 8), mode="bilinear")
    loss = losses.create(name)
    torch.testing.assert_close(loss(student, teacher), loss(resized, teacher))


def test_attention_pools_the_larger_map():
    small, large = make(2, 3, 4, 4)[0], make(2, 5, 8, 8)[1]
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    torch.testing.assert_close(losses.attention(small, large), losses.attention(small, pooled))
    torch.testing.assert_close(losses.attention(large, small), losses.attention(pooled, small))


def test_features_that_do_not_fit_are_named_with_both_shapes():
    student, teacher = make(4, 6)
    with pytest.raises(
        ShapeError, match=r"differ in width D: \[4, 6\] and \[4, 5\]; .*student_width=6, teacher_width=5"
    ):
        losses.hint_mse(student, teacher[:, :5])
    with pytest.raises(ShapeError, match=r"one batch size B, got \[4, 6\] and \[3, 6\]"):
        losses.pkt(student, teacher[:3])
    with pytest.raises(ShapeError, match=r"must both be .*, got \[4, 6\] and \[4, 2, 3\]"):
        losses.rkd_angle(student, teacher.reshape(4, 2, 3))
    with pytest.raises(ShapeError, match=r"attention needs positions.* \[4, 6\] and \[4, 6\]"):
        losses.attention(student, teacher)
    with pytest.raises(ShapeError, match=r"differ in tokens N: \[4, 3, 2\] and \[4, 2, 3\]"):
        losses.attention(student.reshape(4, 3, 2), teacher.reshape(4, 2, 3))
    with pytest.raises(ShapeError, match=r"must not be empty, got \[0, 6\] and \[0, 6\]"):
        losses.similarity(student[:0], teacher[:0])
    with pytest.raises(ShapeError, match=r"floating point, got torch.float64 and torch.int64 in \[4, 6\] and \[4, 6\]"):
        losses.hint_cosine(student, teacher.long())
    with pytest.raises(ShapeError, match=r"student_feature must have width 5, got \[4, 6\]"):
        losses.Projection(5, 3)(student)


@pytest.mark.parametrize("name", ["hint_mse", "crd", "mgd", "srrl", "ofa_exits"])
def test_a_loss_with_parameters_names_the_width_that_it_was_made_for(name):
    maps, pooled = make(4, 5, 3, 3), make(4, 5)
    target = torch.tensor([0, 1, 2, 3])
    widths = {"student_width": 6, "teacher_width": 5}
    student, rest, options = {
        "hint_mse": (pooled[0], [pooled[1]], widths),
        "crd": (pooled[0], [pooled[1], target], {**widths, "num_rows": 4, "negatives": 2}),
        "mgd": (maps[0], [maps[1]], widths),
        "srrl": (maps[0], [pooled[1]], {**widths, "head_weight": torch.randn(3, 5, dtype=torch.float64)}),
        "ofa_exits": ([maps[0]], [pooled[1], target], {"student_widths": [6], "num_classes": 5}),
    }[name]
    loss = losses.create(name, **options).double()
    with pytest.raises(ShapeError, match=r"student_feature must have width 6, got \[4, 5"):
        loss(student, *rest)
    if name == "crd":
        with pytest.raises(ShapeError, match=r"teacher_feature must have width 5, got \[4, 4\]"):
            loss(make(4, 6)[0], pooled[1][:, :4], target)


def test_wrong_options_of_exits_are_refused_when_the_loss_is_made():
    for option, value in {"eps": 0, "temperature": -1.0, "soft_labels": "x"}.items():
        with pytest.raises(ConfigError, match=f"{option} must be .*, got {value!r}"):
            losses.create("ofa_exits", student_widths=[3], num_classes=4, **{option: value})


def make_vit(batch=2, tokens=9, width=4, layers=2):
    return list(torch.randn(layers + 1, batch, tokens, width, generator=torch.Generator().manual_seed(1)))


def test_vitkd_trains_all_its_parameters_and_masks_the_requested_share():
    torch.manual_seed(0)
    module = losses.create("vitkd", student_widths=[4] * 3, teacher_widths=[5] * 3, mask_ratio=0.4)
    student = [f.requires_grad_() for f in make_vit()]
    module(student, make_vit(width=5)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    assert all(f.grad.abs().sum() > 0 for f in student)
    mask = module.draw_mask(student[0])
    assert mask.sum(1).tolist() == [4.0, 4.0]  # int(9 * 0.6) = 5 stay
    assert not torch.equal(module.draw_mask(student[0]), mask)


def test_vitkd_hides_the_students_masked_tokens_from_the_generation():
    module = losses.ViTKD([4] * 3, [4] * 3)
    student, teacher = make_vit(), make_vit(width=4)
    mask = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 0, 1]] * 2)
    changed = [*student[:-1], torch.where(mask[..., None] > 0, 100.0, student[-1])]
    torch.testing.assert_close(module(changed, teacher, mask), module(student, teacher, mask))


def test_vitkd_names_what_does_not_fit():
    module = losses.ViTKD([4] * 3, [4] * 3)
    with pytest.raises(
        ShapeError, match="needs 2 low features and a high one of each side, got 2 of the student and 3"
    ):
        module(make_vit()[1:], make_vit())
    with pytest.raises(ShapeError, match=r"square grid of tokens without the class token, got \[2, 10, 4\]"):
        module(make_vit(tokens=10), make_vit(tokens=10))
    with pytest.raises(ShapeError, match=r"low tokens must have one shape, got \[2, 2, 9, 4\] and \[2, 2, 9, 5\]"):
        module(make_vit(), make_vit(width=5))
    with pytest.raises(ConfigError, match=r"mask_ratio must be in \(0, 1\], got 0"):
        losses.ViTKD([4] * 3, [4] * 3, mask_ratio=0)
    with pytest.raises(ConfigError, match=r"one or more first blocks and the last one, got the widths \[4\] .*\[5\]"):
        losses.ViTKD([4], [5])
    with pytest.raises(ConfigError, match=r"blocks of one width from the teacher, got .* and \[4, 5\] of the teacher"):
        losses.ViTKD([4, 4], [4, 5])


def make_stages(widths, batch=2):
    generator = torch.Generator().manual_seed(2)
    sizes = [(6, 6), (3, 3), ()]
    return [torch.randn(batch, w, *size, generator=generator) for w, size in zip(widths, sizes, strict=True)]


def test_review_trains_all_its_parameters_and_takes_pooled_features():
    torch.manual_seed(0)
    module = losses.create("review", student_widths=[3, 4, 5], teacher_widths=[4, 5, 6])
    student, teacher = [f.requires_grad_() for f in make_stages([3, 4, 5])], make_stages([4, 5, 6])
    result = module(student, teacher)
    result.backward()
    assert result.shape == ()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert all(f.grad.abs().sum() > 0 for f in student)
    assert [list(f.shape) for f in module.fuse(student, teacher)] == [[2, 4, 6, 6], [2, 5, 3, 3], [2, 6, 1, 1]]


def test_review_of_one_sample_trains():
    module = losses.ReviewKD([3, 4, 5], [4, 5, 6])
    result = module(make_stages([3, 4, 5], batch=1), make_stages([4, 5, 6], batch=1))
    assert result.isfinite()


def test_modules_compute_in_float32_under_autocast():
    torch.manual_seed(0)
    review = losses.ReviewKD([3, 4, 5], [4, 5, 6]).eval()
    vitkd = losses.ViTKD([4] * 3, [5] * 3)
    mask = torch.ones(2, 9)
    review_args, vitkd_args = (make_stages([3, 4, 5]), make_stages([4, 5, 6])), (make_vit(), make_vit(width=5), mask)
    expected = review(*review_args), vitkd(*vitkd_args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(review(*review_args), expected[0])
        assert torch.equal(vitkd(*vitkd_args), expected[1])


def test_review_names_what_does_not_fit():
    module = losses.ReviewKD([3, 4, 5], [4, 5, 6])
    with pytest.raises(ShapeError, match="built for 3 stages, got 2 student_features and 3 teacher_features"):
        module(make_stages([3, 4, 5])[1:], make_stages([4, 5, 6]))
    with pytest.raises(ShapeError, match=r"differ in size: \[2, 3, 4, 4\] and \[2, 3, 2, 2\]"):
        losses.review([make(3, 4, 4)[:, :, :4]], [make(3, 2, 2)])
    with pytest.raises(ShapeError, match=r"features \[B, D, H, W\] or \[B, D\], got \[2, 3, 4\]"):
        losses.review([make(3, 4)], [make(3, 4)])
    with pytest.raises(ConfigError, match="must list the same stages, got 1 and 2"):
        losses.ReviewKD([3], [4, 5])
