"""FeatureDistillationTask and TokenDistillationTask: taps, projections as task state, timm's protocol."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm.task
import torch
from support import digits_dataset, loader_for, tiny_model
from task_rows import distilled_student
from timm.optim import create_optimizer_v2
from timm.task._helpers import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import Tensor, nn

import kdkit
from kdkit import FeatureDistillationTask, LogitDistillationTask, TeacherOutput, TokenDistillationTask
from kdkit.building.config import BuildConfig
from kdkit.errors import CheckpointError, ClassMismatchError, ConfigError, MissingTeacherError, UnknownNameError
from kdkit.tasks import LossTerm

STUDENT, TEACHER = "test_efficientnet", "test_resnet"  # pooled widths 256 and 96


def batch(count: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 32, 32, generator=generator).to(dtype), torch.randint(
        10, (count,), generator=generator
    )


def make(seed: int = 0, **options: object) -> FeatureDistillationTask:
    torch.manual_seed(seed)
    return FeatureDistillationTask(tiny_model(STUDENT, seed=seed), tiny_model(TEACHER, seed=5), **options)  # type: ignore[arg-type]


def test_pooled_hints_and_their_weights_equal_timms_task_step_by_step() -> None:
    theirs = timm.task.FeatureDistillationTask(
        tiny_model(STUDENT), tiny_model(TEACHER, seed=5), nn.CrossEntropyLoss(), distill_loss_weight=5.0, verbose=False
    ).double()
    ours = make(distill_loss_weight=5.0).double()
    projection = ours.trainable_module.comparisons["hint_mse"].loss.projection.linear
    projection.load_state_dict(theirs.trainable_module.projection.state_dict())
    optimizers = [torch.optim.SGD(task.trainable_module.parameters(), lr=0.05) for task in (ours, theirs)]
    for _ in range(4):
        results = [task(*batch(dtype=torch.float64)) for task in (ours, theirs)]
        for name in ("loss", "task_loss", "kd_loss"):
            torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-5, atol=1e-5)
        for result, optimizer in zip(results, optimizers, strict=True):
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()


@pytest.mark.parametrize(("kind", "temperature"), [("soft", 3.0), ("hard", None)])
def test_token_distillation_equals_timms_task_step_by_step(kind: str, temperature: float | None) -> None:
    theirs = timm.task.TokenDistillationTask(
        distilled_student(),
        tiny_model(TEACHER, seed=5),
        nn.CrossEntropyLoss(),
        distill_type=kind,
        distill_loss_weight=2.0,
        temperature=temperature or 1.0,
        verbose=False,
    ).double()
    ours = TokenDistillationTask(
        distilled_student(),
        tiny_model(TEACHER, seed=5),
        distill_loss=kind,
        temperature=temperature,
        distill_loss_weight=2.0,
    ).double()
    optimizers = [torch.optim.SGD(task.trainable_module.parameters(), lr=0.05) for task in (ours, theirs)]
    for _ in range(3):
        results = [task.train()(*batch(dtype=torch.float64)) for task in (ours, theirs)]
        torch.testing.assert_close(results[0]["output"], results[1]["output"], rtol=1e-5, atol=1e-5)
        for mine, name in (("loss", "loss"), ("task_loss", "task_loss"), ("kd_loss", "distill_loss")):
            torch.testing.assert_close(results[0][mine], results[1][name], rtol=1e-5, atol=1e-5)
        for result, optimizer in zip(results, optimizers, strict=True):
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()


def test_a_student_with_one_head_is_no_token_student() -> None:
    with pytest.raises(ConfigError, match="one head"):
        TokenDistillationTask(tiny_model(), tiny_model())


def test_a_two_headed_student_in_eval_mode_returns_one_output() -> None:
    task = TokenDistillationTask(distilled_student(), tiny_model(TEACHER)).eval()
    images, target = batch()
    torch.testing.assert_close(task(images, target)["output"], task.get_eval_model()(images))


def test_the_teachers_taps_and_the_students_are_those_that_the_terms_name() -> None:
    task = make(
        distill_loss=[
            LossTerm("hint_cosine", student_taps="stages.4", teacher_taps="stages.3"),
            LossTerm("similarity", 100.0),
            LossTerm("mine", loss=lambda s, t: (s.mean() - t.mean()).square(), student_taps="tokens"),
            "kl",
        ]
    )
    assert task.taps == task.teacher.taps == ("stages.3", "pooled", "tokens")
    assert task.trainable_module.taps == ("stages.4", "pooled", "tokens")
    result = task(*batch())
    parts = result["hint_cosine"] + 100 * result["similarity"] + result["mine"] + result["kl"]
    torch.testing.assert_close(result["kd_loss"], parts)


@pytest.mark.parametrize(("of_teacher", "of_student"), [("1:stages.3", "stages.3"), ("layer4.0.act2.input", None)])
def test_a_term_that_names_the_tap_of_one_of_several_teachers_takes_the_students_of_that_name(
    of_teacher: str, of_student: str | None
) -> None:
    ensemble = kdkit.TeacherEnsemble([kdkit.create_teacher(tiny_model(TEACHER, seed=seed)) for seed in (1, 2)])
    given = of_teacher if of_student else f"0:{of_teacher}"
    loss = {"first": {"loss": "hint_mse", "teacher_taps": given}, "kl": 1.0}
    task = FeatureDistillationTask(tiny_model(TEACHER), ensemble, distill_loss=loss)
    assert task.taps == (given,)
    assert task.trainable_module.taps == (of_student or of_teacher,)
    assert task(*batch())["first"] > 0


def test_the_checkpoints_model_is_the_plain_student_and_projections_are_task_state(tmp_path: Path) -> None:
    task, fresh = make(), make(seed=1)
    for each in (task, fresh):
        each.setup_ema(decay=0.5)
    optimizer = create_optimizer_v2(task.get_trainable_module(), "adamw", lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        task(*batch())["loss"].backward()
        optimizer.step()
        task.update_ema()
    saver = CheckpointSaver(task.get_trainable_module(), optimizer, task=task, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(3, metric=1.0)
    content = torch.load(tmp_path / "last.pth.tar", weights_only=True)
    assert list(content["state_dict"]) == list(tiny_model(STUDENT).state_dict())
    assert [name for state in content["task_state"].values() for name in state] == [
        "hint_mse.loss.projection.linear.weight",
        "hint_mse.loss.projection.linear.bias",
    ]
    other = create_optimizer_v2(fresh.get_trainable_module(), "adamw", lr=1e-2)
    assert resume_task_checkpoint(fresh, str(tmp_path / "last.pth.tar"), other, log_info=False) == 4
    load_task_ema_checkpoint(fresh, str(tmp_path / "last.pth.tar"))
    for ema in (False, True):
        saved, loaded = (each.get_trainable_module(ema=ema).state_dict() for each in (task, fresh))
        assert all(torch.equal(value, loaded[name]) for name, value in saved.items())
    assert torch.equal(task.eval()(*batch())["loss"], fresh.eval()(*batch())["loss"])


def test_task_state_of_other_losses_is_refused() -> None:
    task, state = make(), make(distill_loss="similarity").get_checkpoint_state()
    with pytest.raises(CheckpointError, match="holds nothing"):
        task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
    task.load_checkpoint_state(state["state_dict"], state.get("task_state"), strict=False)
    with pytest.raises(CheckpointError, match="learn nothing"):
        make(distill_loss="similarity").load_task_state(task.get_task_state())
    with pytest.raises(CheckpointError, match="does not fit"):
        make(student_taps="stages.4", teacher_taps="stages.3").load_task_state(task.get_task_state())


def test_optimizers_see_the_students_layers_and_its_parameters_without_decay() -> None:
    ours, theirs = (
        make(),
        timm.task.FeatureDistillationTask(
            tiny_model(STUDENT), tiny_model(TEACHER), nn.CrossEntropyLoss(), verbose=False
        ),
    )
    groups = []
    for task in (ours, theirs):
        optimizer = create_optimizer_v2(
            task.get_trainable_module(), "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7
        )
        groups.append(sorted((g["weight_decay"], g["lr_scale"], len(g["params"])) for g in optimizer.param_groups))
    assert groups[0] == groups[1]
    vit = FeatureDistillationTask(tiny_model("test_vit"), tiny_model(TEACHER))
    assert "student.pos_embed" in vit.trainable_module.no_weight_decay()


def test_clip_parameters_leave_out_the_students_head_and_keep_the_projection() -> None:
    task = make()
    left_out = {id(p) for p in task.get_clip_parameters()} - {
        id(p) for p in task.get_clip_parameters(exclude_head=True)
    }
    assert left_out == {id(p) for p in task.get_eval_model().get_classifier().parameters()}


def test_a_missing_stream_is_named_with_the_command_that_adds_it() -> None:
    task = FeatureDistillationTask(tiny_model(STUDENT), teacher_widths={"pooled": 96})
    with pytest.raises(MissingTeacherError, match=r"no 'pooled', only \['logits'\].*--streams logits,pooled"):
        task(*batch(), TeacherOutput(torch.zeros(6, 10)))
    with pytest.raises(MissingTeacherError, match="teacher_output=cache"):
        task(*batch())


def test_without_a_live_teacher_widths_are_given() -> None:
    with pytest.raises(ConfigError, match=r"teacher_widths=\{'pooled': D\}"):
        FeatureDistillationTask(tiny_model(STUDENT))
    live, images = make(), batch()[0]
    cached = FeatureDistillationTask(tiny_model(STUDENT), teacher_widths={"pooled": 96})
    cached.load_task_state(live.get_task_state())
    outputs = live.teacher(kdkit.types.Batch(images, torch.zeros(0)))
    for task in (live, cached):
        task.eval()
    torch.testing.assert_close(cached(*batch(), outputs)["loss"], live(*batch())["loss"])


def test_taps_that_are_not_there_and_tasks_without_features_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"the student has no tap 'stages\.9'"):
        make(student_taps="stages.9")
    with pytest.raises(UnknownNameError, match=r"the teacher 'test_resnet' has no tap 'blocks\.1'"):
        make(teacher_taps="blocks.1")
    with pytest.raises(ConfigError, match="LogitDistillationTask"):
        make(distill_loss="kl")
    with pytest.raises(ConfigError, match="one pair of taps"):
        make(student_taps=["pooled", "tokens"])
    with pytest.raises(ConfigError, match="pairs of taps"):
        make(distill_loss="review", student_taps=["stages.3", "stages.4"], teacher_taps="stages.4")


def test_without_labels_and_logits_the_head_is_left_alone() -> None:
    task = make(task_loss_weight=0.0)
    result = task(batch()[0], None)
    result["loss"].backward()
    head = {id(parameter) for parameter in task.get_eval_model().get_classifier().parameters()}
    for parameter in task.trainable_module.parameters():
        assert (parameter.grad is None) == (id(parameter) in head)


def test_losses_on_features_are_float32_under_autocast() -> None:
    task = make(distill_loss=["hint_mse", "similarity", "kl"])
    with torch.autocast("cpu", torch.bfloat16):
        result = task(*batch())
    assert {value.dtype for name, value in result.items() if name != "output"} == {torch.float32}
    assert result["output"].dtype == torch.bfloat16


def test_the_moving_average_teaches_features_too() -> None:
    task = FeatureDistillationTask(tiny_model(STUDENT), "ema", distill_loss=["hint_mse", "kl"])
    task.setup_ema()
    result = task(*batch())
    assert result["hint_mse"].requires_grad
    assert task.get_task_state() == {}


def test_a_copy_of_a_task_is_a_task_of_its_own() -> None:
    for task in (make(), LogitDistillationTask(tiny_model(STUDENT), "ema")):
        task.setup_ema()
        twin = copy.deepcopy(task).eval()
        torch.testing.assert_close(twin(*batch())["loss"], task.eval()(*batch())["loss"])
        assert twin.teacher.model is not task.teacher.model


def test_a_teacher_without_a_head_serves_terms_on_features_live_and_cached(tmp_path: Path) -> None:
    headless = tiny_model("test_vit", seed=5, num_classes=0)
    live = FeatureDistillationTask(tiny_model("test_resnet"), headless).eval()
    result = live(*batch())
    assert result["kd_loss"].requires_grad
    assert not {"teacher_top1", "agreement_top1", "teacher_entropy"} & set(result)
    teacher = kdkit.create_teacher(headless, taps=["pooled"])
    assert teacher.num_classes == 0
    assert teacher(kdkit.types.Batch(*batch())).logits is None
    dataset = digits_dataset(6)
    kdkit.build_cache(
        teacher, dataset, tmp_path / "c.h5", BuildConfig(streams=("pooled",), feature_codec="float32", num_workers=0)
    )
    cache = kdkit.open_cache(tmp_path / "c.h5", dataset)
    cached = FeatureDistillationTask(tiny_model("test_resnet"), teacher_widths=cache.feature_widths)
    cached.load_task_state(live.get_task_state())
    images = next(iter(loader_for(dataset, cached.get_eval_model())))
    cached.eval()
    expected = live(images.input, images.target)
    torch.testing.assert_close(
        cached(images.input, images.target, cache(images))["loss"], expected["loss"], rtol=1e-6, atol=1e-6
    )


def test_class_counts_are_compared_only_where_a_term_compares_logits() -> None:
    teacher = tiny_model(TEACHER, seed=5, num_classes=12)
    result = FeatureDistillationTask(tiny_model(STUDENT), teacher)(*batch())
    assert "agreement_top1" not in result
    for classes, problem in ((12, "12 classes, the student 10"), (0, "has no head, and so no logits")):
        with pytest.raises(ClassMismatchError, match=problem):
            FeatureDistillationTask(
                tiny_model(STUDENT), tiny_model(TEACHER, num_classes=classes), distill_loss=["hint_mse", "kl"]
            )


def test_exits_need_the_teachers_logits_and_labels_and_no_tap_of_it() -> None:
    exits = LossTerm("ofa_exits", options={"eps": 1.5}, student_taps=["stages.1", "stages.3"])
    task = FeatureDistillationTask(tiny_model(STUDENT), distill_loss=["ofa", exits])
    images, target = batch()
    assert task(images, target, TeacherOutput(torch.randn(6, 10)))["ofa_exits"].requires_grad
    assert [layer.in_features for layer in task.trainable_module.comparisons["ofa_exits"].loss.exits] == [24, 48]
    with pytest.raises(MissingTeacherError, match="holds no logits"):
        task(images, target, TeacherOutput(None, {"pooled": torch.randn(6, 96)}))
    with pytest.raises(ConfigError, match="needs the target of each sample"):
        FeatureDistillationTask(tiny_model(STUDENT), distill_loss=[exits], task_loss_weight=0.0)(
            images, None, TeacherOutput(torch.randn(6, 10))
        )
    with pytest.raises(ConfigError, match="takes the teacher's logits: leave out its teacher_taps"):
        make(distill_loss=LossTerm("ofa_exits", student_taps="stages.1", teacher_taps="stages.1"))
    with pytest.raises(ClassMismatchError, match="12 classes, the student 10"):
        FeatureDistillationTask(tiny_model(STUDENT), tiny_model(TEACHER, num_classes=12), distill_loss=exits)
