"""Losses by name."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from kdkit import losses
from kdkit.errors import ConfigError, UnknownNameError

TABLES = """kl soft_ce reverse_kl js logit_mse mlkd bce hard deit_soft dkd nkd dist ttm wttm ofa sigmoid_kl
            hint_mse hint_cosine attention similarity pkt rkd_distance rkd_angle vitkd review mgd srrl crd ofa_exits"""


def test_every_loss_of_both_tables_is_there_by_name_and_as_a_function():
    assert losses.available() == sorted(TABLES.split())
    for name in losses.available():
        assert callable(getattr(losses, name))


def test_a_name_and_its_options_give_the_function_with_them_bound():
    student, teacher = torch.randn(2, 3, 5)
    assert torch.equal(
        losses.create("kl", temperature=4.0)(student, teacher), losses.kl(student, teacher, temperature=4.0)
    )


def test_the_losses_that_need_labels_say_so():
    assert [name for name in losses.available() if losses.needs_target(name)] == ["dkd", "nkd", "ofa", "ofa_exits"]
    assert losses.needs_target(losses.create("dkd", standardize=True))
    assert losses.needs_target(losses.multi_teacher(losses.create("nkd")))
    assert not losses.needs_target(losses.create("kl", standardize=True))
    assert not losses.needs_target(losses.create("hint_mse", student_width=2, teacher_width=3))


def test_what_a_loss_declares_is_what_its_definition_takes():
    for name in losses.available():
        spec = losses.loss_spec(name)
        call = spec.loss.forward if isinstance(spec.loss, type) else spec.loss
        parameters = list(inspect.signature(call).parameters)
        assert spec.needs_target == ("target" in parameters), name
        assert (spec.taps == "several") == ("student_features" in parameters), name
        if isinstance(spec.loss, type):
            takes, widths = inspect.signature(spec.loss).parameters, "s" if spec.taps == "several" else ""
            assert spec.projects == (f"teacher_width{widths}" in takes), name
            assert spec.needs_head == ("head_weight" in takes), name
            assert spec.has_exits == ("num_classes" in takes), name
            assert spec.needs_rows == ("num_rows" in takes) == ("row" in parameters), name


def test_a_name_is_declared_once():
    with pytest.raises(ConfigError, match="two losses are called 'kl'"):
        losses.logit_loss()(losses.kl)


def test_what_has_parameters_comes_as_a_module():
    assert isinstance(losses.create("vitkd", student_widths=[2, 2], teacher_widths=[3, 3]), nn.Module)
    assert isinstance(losses.create("review", student_widths=[2, 4], teacher_widths=[3, 5]), nn.Module)
    projected = losses.create("hint_mse", student_width=2, teacher_width=3)
    assert sorted(name for name, _ in projected.named_parameters()) == [
        "projection.linear.bias",
        "projection.linear.weight",
    ]
    assert not isinstance(losses.create("hint_mse"), nn.Module)


def test_errors_for_unknown_names_and_options_list_the_known_ones():
    with pytest.raises(
        UnknownNameError, match=r"no loss is called 'rkd_angel'; known: attention, .*did you mean 'rkd_angle'"
    ):
        losses.create("rkd_angel")
    with pytest.raises(UnknownNameError, match="no loss is called 'nst'"):
        losses.is_feature_loss("nst")
    with pytest.raises(
        ConfigError, match="loss 'dkd' has no option 'tau'; it takes alpha, beta, temperature, soft_labels"
    ):
        losses.create("dkd", tau=1.0)
    with pytest.raises(
        ConfigError, match="loss 'attention' has no option 'eps'; it takes student_width, teacher_width"
    ):
        losses.create("attention", eps=1.0)
    with pytest.raises(
        ConfigError, match="loss 'vitkd' has no option 'widths'; it takes student_widths, teacher_widths, alpha"
    ):
        losses.create("vitkd", widths=3)
    with pytest.raises(ConfigError, match="loss 'vitkd' needs the option 'teacher_widths', got student_widths"):
        losses.create("vitkd", student_widths=[3, 3])
    with pytest.raises(ConfigError, match="loss 'hint_mse' needs the option 'teacher_width', got student_width"):
        losses.create("hint_mse", student_width=3)


def test_every_loss_has_a_page_and_cites_its_source():
    pages = Path(__file__).parents[2] / "docs" / "losses"
    index = (pages / "index.md").read_text()
    for name in losses.available():
        assert f"[{name}]({name}.md)" in index
        page = (pages / f"{name}.md").read_text()
        assert page.startswith(f"# {name}: ")
        assert "## Source" in page
        for part in ("Args:", "Returns:", "Source:"):
            assert part in getattr(losses, name).__doc__, (name, part)


def test_every_option_of_a_loss_is_on_its_page():
    pages = Path(__file__).parents[2] / "docs" / "losses"
    for name in losses.available():
        page = (pages / f"{name}.md").read_text()
        for option in inspect.signature(getattr(losses, name)).parameters.values():
            assert option.kind is not option.KEYWORD_ONLY or f"`{option.name}`" in page, (name, option.name)


SIDES = {"student_width": 3, "teacher_width": 4}
STAGES = {"student_widths": [3, 3, 3], "teacher_widths": [4, 4, 4]}


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("mgd", {**SIDES, "alpha": "x"}, "loss 'mgd': alpha must be a number, got 'x'"),
        ("vitkd", {**STAGES, "beta": True}, "loss 'vitkd': beta must be a number, got True"),
        ("crd", {**SIDES, "num_rows": 5, "negatives": "many"}, "loss 'crd': negatives must be a number, got 'many'"),
        ("srrl", {**SIDES, "head_weight": torch.zeros(2, 4), "relu": 0}, "relu must be true or false, got 0"),
        ("review", {**STAGES, "mid_width": -1}, r"loss 'review' cannot work with these options \("),
        ("hint_mse", {"student_width": "a", "teacher_width": 3}, r"loss 'hint_mse' cannot work with these options \("),
    ],
)
def test_an_option_that_a_module_cannot_work_with_is_named(name, options, problem):
    with pytest.raises(ConfigError, match=problem):
        losses.create(name, **options)
