"""Taps: features beside the logits, for convolutional, plain and hierarchical models alike."""

from __future__ import annotations

import pytest
import timm
import torch
from support import tiny_model

from kdkit import create_teacher
from kdkit.errors import ConfigError, UnknownNameError
from kdkit.teachers import Teacher
from kdkit.teachers.tap import available_taps, tap_width
from kdkit.types import Batch, Normalization, TeacherOutput

FAMILIES = ["test_resnet", "test_efficientnet", "test_convnext", "test_mambaout", "test_vit", "test_vit_relpos"]


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def run_teacher(teacher: Teacher, size: int = 64) -> TeacherOutput:
    return teacher(Batch(images(size), torch.zeros(2, dtype=torch.int64)))


def width_of(feature: torch.Tensor) -> int:
    return feature.shape[2 if feature.ndim == 3 else 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tap_of_a_family_has_its_width_and_leaves_the_logits_alone(name: str) -> None:
    model = tiny_model(name)
    taps = available_taps(model)
    size = 160 if name == "test_vit_relpos" else 64
    outputs = run_teacher(create_teacher(model, taps=taps), size)
    assert outputs.logits is not None
    assert torch.equal(outputs.logits, model(images(size)))
    assert tuple(outputs.features) == taps
    for tap, feature in outputs.features.items():
        assert width_of(feature) == tap_width(model, tap), tap
        assert feature.ndim == {"p": 2, "c": 2, "r": 3, "t": 3, "b": 3, "s": 4}[tap[0]], tap


def test_features_are_those_that_timms_own_calls_give() -> None:
    for name, inner in (("test_resnet", "stages.3"), ("test_vit", "blocks.3")):
        model = tiny_model(name)
        outputs = run_teacher(create_teacher(model, taps=["tokens", inner, "pooled"]))
        final = model.forward_features(images())
        torch.testing.assert_close(outputs.features["pooled"], model.forward_head(final, pre_logits=True))
        tokens = final[:, 1:] if name == "test_vit" else final.flatten(2).transpose(1, 2)
        torch.testing.assert_close(outputs.features["tokens"], tokens)
        feature = model.forward_intermediates(images(), indices=[3], intermediates_only=True)[0]
        expected = feature.flatten(2).transpose(1, 2) if name == "test_vit" else feature
        torch.testing.assert_close(outputs.features[inner], expected)


def test_channels_last_maps_and_distilled_transformers_give_patch_tokens() -> None:
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=10, img_size=64, window_size=2, depths=(1,) * 4
    )
    outputs = run_teacher(create_teacher(swin, taps=["tokens", "stages.1"]))
    assert outputs.features["tokens"].shape == (2, 4, 768)
    assert outputs.features["stages.1"].shape == (2, 192, 8, 8)
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=10, img_size=64, depth=2)
    assert run_teacher(create_teacher(distilled, taps=["tokens"])).features["tokens"].shape == (2, 16, 192)


def test_the_logits_come_from_the_same_single_forward_pass() -> None:
    model = tiny_model("test_vit")
    passes = []
    model.patch_embed.register_forward_hook(lambda *args: passes.append(1))
    run_teacher(create_teacher(model, taps=["pooled", "tokens", "blocks.0"]))
    assert len(passes) == 1


@pytest.mark.parametrize(("name", "prefix"), [("test_vit", ["class_token"]), ("test_vit2", ["registers"])])
def test_prefix_tokens_are_apart_from_the_patch_tokens_and_together_they_are_all_tokens(
    name: str, prefix: list[str]
) -> None:
    model = tiny_model(name)
    found = run_teacher(create_teacher(model, taps=[*prefix, "tokens"])).features
    whole = torch.cat([found[tap].reshape(2, -1, 64) for tap in (*prefix, "tokens")], dim=1)
    assert set(available_taps(model)) & {"class_token", "registers"} == set(prefix)
    expected = model.forward_features(images()).shape[1:]
    assert whole.shape[1:] == expected
    if name == "test_vit":
        assert torch.equal(found["class_token"], run_teacher(create_teacher(model, taps=["pooled"])).features["pooled"])


def test_taps_order_is_the_callers_and_survives_for_input() -> None:
    teacher = create_teacher(tiny_model(), taps=["stages.3", "pooled", "stages.1"]).for_input(Normalization())
    assert teacher.taps == tuple(run_teacher(teacher).features) == ("stages.3", "pooled", "stages.1")
    assert teacher.with_taps([]).taps == ()
    assert teacher.with_taps([]).input_normalization == Normalization()


def test_taps_are_no_part_of_the_fingerprint() -> None:
    teacher = create_teacher(tiny_model())
    assert teacher.fingerprint() == teacher.with_taps(["pooled"]).fingerprint()


def test_features_carry_no_gradient() -> None:
    outputs = run_teacher(create_teacher(tiny_model(), taps=["pooled"]))
    assert not any(feature.requires_grad for feature in outputs.features.values())


def test_a_tap_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UnknownNameError, match=r"no tap 'blocks\.1'.*stages\.0, stages\.1"):
        create_teacher(tiny_model("test_resnet"), taps=["blocks.1"])
    with pytest.raises(UnknownNameError, match="none, since it is not a timm model"):
        create_teacher(torch.nn.Linear(2, 3), taps=["pooled"])
    with pytest.raises(ConfigError, match=r"\['pooled'\]"):
        create_teacher(tiny_model(), taps="pooled")
    with pytest.raises(ConfigError, match="differ"):
        create_teacher(tiny_model(), taps=["pooled", "pooled"])


def test_every_tap_can_name_a_stream_of_a_cache() -> None:
    from kdkit.cache.format.streams import check_stream_name

    for name in FAMILIES:
        for tap in available_taps(tiny_model(name)):
            check_stream_name(tap, "a tap")
