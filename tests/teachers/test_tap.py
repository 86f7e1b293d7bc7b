"""Taps: features beside the logits, for convolutional, plain and hierarchical models alike."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from support import tiny_model
from torch import nn
from torch.nn import functional

from kdkit import create_teacher
from kdkit.errors import ConfigError, UnknownNameError
from kdkit.teachers import Teacher
from kdkit.teachers.model_config import find_classifiers
from kdkit.teachers.tap import available_taps, forward_with_taps, tap_width
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
    outputs = run_teacher(create_teacher(swin(), taps=["tokens", "stages.1"]))
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


def swin() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=10, img_size=64, window_size=2, depths=(1,) * 4
    )


class Odd(nn.Module):
    """A model of no library, with modules whose outputs are no features."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.idle = nn.Conv2d(3, 4, 3), nn.Identity()
        self.pair, self.head = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.pair(self.body(images).flatten(2).mT)[0].mean(1))
        return logits


def after(model: nn.Module, images: torch.Tensor, tap: str) -> torch.Tensor:
    """What follows from the tap's feature in the model's own code, or timm's name for the same feature."""
    return run_teacher(create_teacher(model, taps=[tap])).features[tap]


@pytest.mark.parametrize(
    ("make", "tap", "expected"),
    [
        # A map before its last ReLU, which works in place; a map after it; a map with the width last.
        (tiny_model, "layer4.0.act2.input", lambda model, f: (f.relu(), after(model, images(), "stages.4"))),
        (tiny_model, "layer3", lambda model, f: (f, after(model, images(), "stages.3"))),
        (swin, "layers.1", lambda model, f: (f, after(model, images(), "stages.1"))),
        # Tokens as the module has them; the input of a classifier of torchvision's; a model of no library.
        (lambda: tiny_model("test_vit"), "norm", lambda model, f: (f[:, 1:], after(model, images(), "tokens"))),
        (torchvision.models.mnasnet0_5, "classifier.input", lambda model, f: (model.classifier(f), model(images()))),
        (Odd, "head.input", lambda model, f: (model.head(f), model(images()))),
    ],
)
def test_any_module_is_a_tap_by_its_path(make: Any, tap: str, expected: Any) -> None:
    model = make().eval()
    outputs = run_teacher(create_teacher(model, taps=[tap]))
    feature = outputs.features[tap]
    torch.testing.assert_close(*expected(model, feature))
    torch.testing.assert_close(outputs.logits, model(images()), rtol=1e-5, atol=1e-6)  # LSTMs differ by a rounding
    model.train()
    modes = [module.training for module in model.modules()]
    assert width_of(feature) == tap_width(model, tap)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("make", "tap", "problem"),
    [
        (Odd, "idle", "the forward pass does not run"),
        (Odd, "pair", "is tuple, expected a tensor"),
        (swin, "layers.1.blocks.0.attn", r"is torch.float32 \[32, 4, 192\] for 2 images, expected"),
    ],
)
def test_a_module_that_has_no_feature_is_refused(make: Any, tap: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"the tap {tap!r}.*{problem}"):
        run_teacher(create_teacher(make(), taps=[tap]))


def test_the_width_of_a_module_of_a_model_of_one_size_is_known_only_with_that_size() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5), nn.Linear(5, 10))
    with pytest.raises(ConfigError, match=r"the width of the tap '1' is not known.*pretrained_cfg = \{'input_size'"):
        tap_width(model, "1")
    model.pretrained_cfg = {"input_size": (3, 8, 8)}
    assert tap_width(model, "1") == 5


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
    with pytest.raises(UnknownNameError, match=r"no tap 'layer9'; did you mean 'layer4'.* no module of that path"):
        create_teacher(tiny_model("test_resnet"), taps=["layer9"])
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


TRAINED = [
    "resnet18",
    "vit_tiny_patch16_224",
    "mobilenetv4_conv_small",
    "convnext_atto",
    "efficientvit_b0",
    "mixer_s32_224",
]


@pytest.mark.parametrize("name", TRAINED)
def test_in_training_the_head_runs_once_and_pooled_is_what_its_classifier_is_given(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, drop_rate=0.5).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    logits, found = forward_with_taps(model, images(224), ["pooled"])
    assert {int(norm.num_batches_tracked) for norm in norms} <= {1}
    (classifier,) = find_classifiers(model)
    torch.testing.assert_close(classifier(found["pooled"]), logits)
    assert found["pooled"].shape == (2, tap_width(model, "pooled"))


NORMED = [
    *("efficientvit_m0", "levit_128s", "shvit_s1", "caformer_s18", "mobilenetv4_conv_small", "ghostnet_050"),
    "vit_tiny_patch16_224",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMED)
def test_pooled_is_timms_pre_logits_in_training_too_whatever_stands_before_the_classifier(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, drop_rate=0.0).train()
    plain = copy.deepcopy(model)
    logits, found = forward_with_taps(model, images(224), ["pooled"])
    final = plain.forward_features(images(224))
    torch.testing.assert_close(found["pooled"], plain.forward_head(final, pre_logits=True))
    assert isinstance(logits, tuple) or logits.shape == (2, 10)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.slow
def test_a_model_whose_features_are_several_has_a_pooled_tap_in_training() -> None:
    model = timm.create_model("coat_tiny", num_classes=10).train()
    logits, found = forward_with_taps(model, images(224), ["pooled"])
    assert (logits.shape, found["pooled"].shape) == ((2, 10), (2, tap_width(model, "pooled")))


@pytest.mark.slow
def test_dropout_between_pooled_and_the_classifier_is_not_in_the_tap() -> None:
    torch.manual_seed(0)
    model = timm.create_model("mvitv2_tiny", num_classes=10, drop_rate=0.5).train()
    assert not (forward_with_taps(model, images(224), ["pooled"])[1]["pooled"] == 0).any()


class Normalising(nn.Module):
    """A model with timm's interface, whose head takes a step on the way to the classifier that is no module."""

    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.body, self.head, self.step, self.num_features = nn.Conv2d(3, 4, 3), nn.Linear(4, 10), step, 4

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)  # type: ignore[no-any-return]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.head(self.step(x))


@pytest.mark.parametrize(
    ("step", "runs"),
    [
        (lambda x: x, 1),
        (lambda x: x.reshape(2, 4, 1).flatten(1), 1),
        (lambda x: functional.dropout(x, 0.0, training=True), 1),
        (functional.normalize, 2),
        (lambda x: x * 2, 2),
        (lambda x: functional.dropout(x, 0.5, training=False), 2),
    ],
)
def test_pooled_is_before_any_step_that_changes_it_on_the_way_to_the_classifier(
    step: Callable[[torch.Tensor], torch.Tensor], runs: int
) -> None:
    model = Normalising(step).train()
    forward_with_taps(model, images(), ["pooled"])  # the first finds out
    counted: list[bool] = []
    head = model.forward_head
    model.forward_head = lambda x, pre_logits=False: (counted.append(pre_logits), head(x, pre_logits))[1]  # type: ignore
    logits, found = forward_with_taps(model, images(), ["pooled"])
    torch.testing.assert_close(found["pooled"], model.body(images()).mean((2, 3)))
    assert len(counted) == runs
    assert logits.shape == (2, 10)


def test_finding_out_how_pooled_is_read_leaves_nothing_in_the_cache_of_autocast() -> None:
    seen: list[bool] = []
    model = Normalising(lambda x: (seen.append(torch.is_autocast_cache_enabled()), x)[1]).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = forward_with_taps(model, images(), ["pooled"])
        logits.float().sum().backward()
    assert seen == [False, True]
    assert model.head.weight.grad is not None


class TwoNorms(Normalising):
    """The pre-logits and the classifier's input come from two modules of one kind."""

    def __init__(self) -> None:
        super().__init__(lambda x: x)
        self.norms = nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(4)])
        nn.init.constant_(self.norms[1].weight, 3.0)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = x.mean((2, 3))
        return self.norms[0](x) if pre_logits else self.head(self.norms[1](x))  # type: ignore[no-any-return]


def test_steps_of_one_name_with_other_parameters_are_other_steps() -> None:
    model = TwoNorms().train()
    pooled = forward_with_taps(model, images(), ["pooled"])[1]["pooled"]
    torch.testing.assert_close(pooled, model.norms[0](model.body(images()).mean((2, 3))))


def test_pooled_is_read_again_where_a_hook_does_not_run() -> None:
    model = Normalising(lambda x: x).train()
    forward_with_taps(model, images(), ["pooled"])
    model.head.forward, model.head.__class__ = model.head.forward, _Hookless
    pooled = forward_with_taps(model, images(), ["pooled"])[1]["pooled"]
    torch.testing.assert_close(pooled, model.body(images()).mean((2, 3)))


class _Hookless(nn.Linear):
    """Runs no hooks, as what torch.compile has made of a module."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)


def test_pooled_has_its_shape_on_a_device_without_autocast() -> None:
    model = Normalising(lambda x: x).train().to("meta")
    assert forward_with_taps(model, images().to("meta"), ["pooled"])[1]["pooled"].shape == (2, 4)
