"""Teacher and create_teacher."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from support import tiny_model

from kdkit import Teacher, create_teacher
from kdkit.errors import CheckpointError, ClassMismatchError, ConfigError, UnknownNameError
from kdkit.teachers.structure import structure_sha256
from kdkit.types import Batch, Normalization


def run_teacher(teacher: Teacher, images: torch.Tensor) -> torch.Tensor:
    logits = teacher(Batch(images, torch.zeros(len(images), dtype=torch.int64))).logits
    assert logits is not None
    return logits


def pixels(size: int = 32) -> torch.Tensor:
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def normalised(images: torch.Tensor, normalization: Normalization) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalization.mean, normalization.std))
    return (images - mean) / std


def test_outputs_are_those_of_the_models_own_pipeline_whatever_the_students_normalisation() -> None:
    model = tiny_model("test_resnet")
    expected = model.eval()(normalised(pixels(), Normalization((0.5,) * 3, (0.5,) * 3)))
    for normalization in (
        Normalization(),
        Normalization((0.5,) * 3, (0.5,) * 3),
        Normalization((0.0,) * 3, (1.0,) * 3),
    ):
        teacher = create_teacher(model).for_input(normalization)
        logits = run_teacher(teacher, normalised(pixels(), normalization))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_outputs_carry_no_gradient_and_the_input_gets_none() -> None:
    images = pixels().requires_grad_()
    logits = run_teacher(create_teacher(tiny_model()), images)
    assert not logits.requires_grad


def test_a_model_that_was_put_back_into_training_mode_still_runs_in_eval_mode() -> None:
    teacher = create_teacher(tiny_model())
    expected = run_teacher(teacher, pixels())
    teacher.model.train()
    assert torch.equal(run_teacher(teacher, pixels()), expected)


def test_images_of_another_size_are_resized_for_a_vit_and_left_alone_for_a_convnet() -> None:
    vit = create_teacher(timm.create_model("vit_tiny_patch16_224", num_classes=10))
    assert vit.input_size == (224, 224)
    assert run_teacher(vit, pixels(32)[:1]).shape == (1, 10)
    convnet = create_teacher(tiny_model("test_resnet"))
    assert convnet.input_size is None
    resized = torch.nn.functional.interpolate(pixels(), (48, 48), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        run_teacher(create_teacher(tiny_model("test_resnet"), input_size=48), pixels()), run_teacher(convnet, resized)
    )


def test_a_vit_that_was_made_for_another_size_is_given_that_size() -> None:
    made = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64)
    assert create_teacher(made).input_size == (64, 64)
    assert run_teacher(create_teacher(made), pixels(32)).shape == (4, 10)
    dynamic = tiny_model("test_vit")  # timm makes it with dynamic_img_size
    assert create_teacher(dynamic).input_size is None
    assert run_teacher(create_teacher(dynamic), pixels(32)).shape == (4, 10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_teacher_rounds_its_pixels_once(dtype: torch.dtype) -> None:
    teacher = create_teacher(tiny_model(), input_size=48).for_input(Normalization()).to(dtype)
    prepared = teacher._prepare(normalised(pixels(), Normalization()))
    own = create_teacher(tiny_model(), input_size=48)
    expected = own._prepare(normalised(pixels(), own.normalization)).to(dtype)
    assert prepared.dtype == dtype
    assert (prepared - expected).abs().max() <= 2 * torch.finfo(dtype).eps


def test_a_class_map_picks_and_orders_classes() -> None:
    plain = run_teacher(create_teacher(tiny_model()), pixels())
    teacher = create_teacher(tiny_model(), class_map=[7, 2, 2], num_classes=3)
    assert torch.equal(run_teacher(teacher, pixels()), plain[:, [7, 2, 2]])


def test_a_class_map_of_fractions_is_refused() -> None:
    with pytest.raises(ConfigError, match="whole class indices"):
        create_teacher(tiny_model(), class_map=[0.9, 1.7])  # type: ignore[list-item]


@pytest.mark.parametrize("class_map", [[0, 10], [-1, 2]])
def test_a_class_map_beyond_the_model_is_refused(class_map: list[int]) -> None:
    with pytest.raises(ClassMismatchError, match="classes 0 to 9"):
        create_teacher(tiny_model(), class_map=class_map)


@pytest.mark.parametrize("input_size", [0, -3, (3, 32, 32)])
def test_a_size_that_is_none_is_refused(input_size: int) -> None:
    with pytest.raises(ConfigError, match=r"\(height, width\) in pixels"):
        create_teacher(tiny_model(), input_size=input_size)


def test_an_unknown_rule_about_missing_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="missing_classes must be one of error, min_logit, got 'lest'"):
        create_teacher(tiny_model(), class_map=[0, 1], missing_classes="lest")  # type: ignore[arg-type]


def test_num_classes_is_a_check_and_never_a_new_head() -> None:
    with pytest.raises(ClassMismatchError, match="10 classes, expected 12"):
        create_teacher(tiny_model(), num_classes=12)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'resnet50'"):
        create_teacher("resnet5O")


def test_an_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"resnet34\.a1_in1k"):
        create_teacher("resnet34.a9_in1k")


def test_what_is_neither_name_nor_module_is_refused() -> None:
    with pytest.raises(ConfigError, match="got int"):
        create_teacher(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "timm checkpoint"])
def test_a_checkpoint_gives_weights_and_head_width(tmp_path: Path, kind: str) -> None:
    model = tiny_model(num_classes=7, seed=4)
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict() if kind == "state dict" else {"state_dict": model.state_dict(), "epoch": 3}, path)
    teacher = create_teacher("test_resnet", checkpoint=path)
    assert teacher.num_classes == 7
    own = Normalization.of(model)
    assert torch.equal(run_teacher(teacher, normalised(pixels(), own)), model.eval()(normalised(pixels(), own)))


class _Malice:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return Path.touch, (Path("executed"),)


def test_a_pickle_is_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.pth").write_bytes(pickle.dumps({"state_dict": _Malice()}, protocol=2))
    torch.save({"state_dict": _Malice()}, "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(CheckpointError, match="weights file"):
            create_teacher("test_resnet", checkpoint=name)
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"state_dict": [torch.zeros(2)]}, {1: torch.zeros(1)}])
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        create_teacher("test_resnet", checkpoint=tmp_path / "odd.pth")


def test_missing_and_unfitting_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        create_teacher("test_resnet", checkpoint=tmp_path / "nothing.pth")
    save_file(tiny_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match="does not fit test_resnet"):
        create_teacher("test_resnet", checkpoint=tmp_path / "vit.safetensors")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError):
        create_teacher("test_resnet", checkpoint=tmp_path / "text.pth")


def test_the_fingerprint_changes_with_each_setting_that_changes_an_output() -> None:
    def prints(**options: object) -> dict[str, object]:
        return create_teacher(tiny_model(), **options).fingerprint()  # type: ignore[arg-type]

    base = prints()
    assert base == prints()
    other = tiny_model()
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    changed = {
        "weights": create_teacher(other).fingerprint(),
        "buffers": create_teacher(_with_changed_buffer()).fingerprint(),
        "class map": prints(class_map=list(range(9, -1, -1))),
        "input size": prints(input_size=64),
        "dtype": prints(dtype=torch.float64),
    }
    for what, fingerprint in changed.items():
        assert fingerprint != base, what


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_the_fingerprint_tells_models_of_equal_weights_apart(name: str) -> None:
    base = create_teacher(tiny_model(name)).fingerprint()["structure_sha256"]
    options: list[dict[str, object]] = [{"global_pool": "max"}, {"act_layer": "relu6"}]
    if name == "test_vit":
        options[0] = {"global_pool": "avg", "fc_norm": False}
        options.append({"num_heads": 1})
    for changed in options:
        torch.manual_seed(0)
        other = create_teacher(timm.create_model(name, num_classes=10, **changed)).fingerprint()
        assert other["structure_sha256"] != base, changed
    buffered = tiny_model(name)
    buffered.register_buffer("scale", torch.ones(2), persistent=False)
    first = create_teacher(buffered).fingerprint()["structure_sha256"]
    buffered.scale.mul_(2)
    assert len({base, first, create_teacher(buffered).fingerprint()["structure_sha256"]}) == 3


def test_the_fingerprint_does_not_depend_on_how_the_teacher_is_used() -> None:
    teacher = create_teacher(tiny_model("test_vit"))
    base = teacher.fingerprint()
    run_teacher(teacher, pixels())
    assert teacher.fingerprint() == base
    assert teacher.for_input(Normalization()).with_taps(["pooled"]).compile().fingerprint() == base
    assert copy.deepcopy(teacher).fingerprint() == base
    assert (
        create_teacher(torch.compile(tiny_model("test_vit"))).fingerprint()["structure_sha256"]
        == (base["structure_sha256"])
    )
    assert create_teacher(tiny_model("test_vit")).double().fingerprint()["structure_sha256"] == base["structure_sha256"]
    teacher.to("meta")
    assert structure_sha256(teacher.model) == base["structure_sha256"]


def test_a_teacher_survives_deepcopy_and_its_copy_is_frozen_too() -> None:
    teacher = create_teacher(tiny_model())
    twin = copy.deepcopy(teacher)
    assert twin.model is not teacher.model
    assert torch.equal(run_teacher(twin, pixels()), run_teacher(teacher, pixels()))
    assert not any(parameter.requires_grad for parameter in twin.model.parameters())


def _with_changed_buffer() -> torch.nn.Module:
    model = tiny_model()
    with torch.no_grad():
        next(buffer for buffer in model.buffers() if buffer.is_floating_point()).add_(0.5)
    return model
