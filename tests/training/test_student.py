"""A trained student leaves kdkit: timm loads what was exported, and evaluation finds the same figures for it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support import CLASSES, digits, tiny_model
from torch import nn
from torch.nn import functional as F

from kdkit import Batch, create_teacher
from kdkit.cli import main
from kdkit.config import StudentConfig, TeacherConfig
from kdkit.errors import CheckpointError, ClassMismatchError, ConfigError, OutputExistsError, UnknownNameError
from kdkit.evaluation.config import EvaluateConfig
from kdkit.evaluation.student import evaluate_student
from kdkit.resolve import resolve_teacher
from kdkit.student import Student, load_student
from kdkit.training.config import ExportConfig
from kdkit.training.export import export_student

SIZE = 32
MODELS = ("test_resnet", "test_vit")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 digits as a folder of class folders."""
    folder = tmp_path_factory.mktemp("digits")
    source = digits(60)
    for index in range(60):
        image, target = source[index]
        place = folder / CLASSES[target] / f"{index:02d}.png"
        place.parent.mkdir(exist_ok=True)
        image.resize((SIZE, SIZE)).save(place)
    return folder


def run_folder(folder: Path, name: str, *, ema: nn.Module | None = None) -> nn.Module:
    """A folder as `kdkit distill` leaves it; returns the student in it."""
    arguments = {"num_classes": 10, **({"img_size": SIZE} if "vit" in name else {})}
    torch.manual_seed(3)
    model = timm.create_model(name, **arguments).eval()
    folder.mkdir()
    Student(name, arguments, SIZE, 1.0, "bilinear", tuple(CLASSES)).write(folder)
    states = {"state_dict": model.state_dict()} | ({} if ema is None else {"state_dict_ema": ema.state_dict()})
    torch.save({"epoch": 0, "version": 2, **states}, folder / "last.pth.tar")
    return model


@pytest.mark.parametrize("name", MODELS)
def test_timm_loads_an_exported_student_with_equal_outputs(name: str, tmp_path: Path) -> None:
    model = run_folder(tmp_path / "run", name)
    report = export_student(ExportConfig(student=str(tmp_path / "run"), output=str(tmp_path / "out")))
    loaded = timm.create_model(f"local-dir:{report.folder}", pretrained=True).eval()
    pictures = torch.randn(4, 3, SIZE, SIZE)
    assert torch.equal(loaded(pictures), model(pictures))
    data = timm.data.resolve_model_data_config(loaded)
    assert data["input_size"] == (3, SIZE, SIZE)
    assert tuple(data["mean"]) == model.pretrained_cfg["mean"]
    assert tuple(data["std"]) == model.pretrained_cfg["std"]
    assert (data["crop_pct"], data["interpolation"]) == (1.0, "bilinear")
    assert loaded.pretrained_cfg["label_names"] == CLASSES
    assert json.loads((report.folder / "config.json").read_text())["architecture"] == name


def test_an_export_can_be_read_by_whoever_reads_its_folder(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", "test_resnet")
    previous = os.umask(0o027)
    try:
        report = export_student(ExportConfig(student=str(tmp_path / "run"), output=str(tmp_path / "out")))
    finally:
        os.umask(previous)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in report.files} == dict.fromkeys(
        (path.name for path in report.files), oct(0o640)
    )


def test_a_run_and_its_export_are_teachers_of_the_size_that_they_were_trained_at(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", "test_resnet")
    export_student(ExportConfig(student=str(tmp_path / "run"), output=str(tmp_path / "out")))
    pictures = torch.randint(0, 256, (3, 3, 2 * SIZE, 2 * SIZE), dtype=torch.uint8)
    batch = Batch(pictures / 255, torch.full((3,), -1), torch.arange(3), 0)
    for place in ("run", "out"):
        teacher = resolve_teacher(TeacherConfig(str(tmp_path / place)), torch.device("cpu"), tuple(CLASSES))
        assert teacher.input_size == (SIZE, SIZE)
        other = resolve_teacher(
            TeacherConfig(str(tmp_path / place), input_size=48), torch.device("cpu"), tuple(CLASSES)
        )
        assert other.input_size == (48, 48)
        smaller = F.interpolate(batch.input, size=SIZE, mode="bicubic", antialias=True)
        found, same = (teacher(dataclasses.replace(batch, input=pixels)).logits for pixels in (batch.input, smaller))
        assert torch.allclose(found, same, atol=1e-4)


def test_a_build_shows_the_size_that_the_teacher_takes(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "run", "test_resnet")
    build = ["cache", "build", str(images), "--teacher", str(tmp_path / "run"), "--views", "2", "--workers", "0"]
    for size, expected in ((48, "2 per image, 48 pixels, resized to 32 x 32\n"), (SIZE, "2 per image, 32 pixels\n")):
        assert main([*build, "--size", str(size), "-o", str(tmp_path / f"{size}.h5")]) == 0
        assert expected in capsys.readouterr().err


def test_python_is_told_how_a_run_and_an_export_are_named(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", "test_resnet")
    export_student(ExportConfig(student=str(tmp_path / "run"), output=str(tmp_path / "out")))
    with pytest.raises(UnknownNameError, match=r"is a run: kdkit export .*run -o DIR, and 'local-dir:DIR' is it"):
        create_teacher(str(tmp_path / "run"))
    with pytest.raises(UnknownNameError, match=r"holds a model: 'local-dir:.*out' is it"):
        create_teacher(str(tmp_path / "out"))
    assert create_teacher(f"local-dir:{tmp_path / 'out'}").num_classes == 10


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.onnx: the exporter that needs no onnxscript
def test_onnxruntime_gives_the_students_logits_for_any_batch_size(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model = run_folder(tmp_path / "run", name)
    report = export_student(ExportConfig(student=str(tmp_path / "run"), output=str(tmp_path / "out"), onnx=True))
    session = onnxruntime.InferenceSession(report.files[-1], providers=["CPUExecutionProvider"])
    for count in (1, 5):
        pictures = torch.randn(count, 3, SIZE, SIZE)
        (logits,) = session.run(["logits"], {"images": pictures.numpy()})
        assert np.allclose(logits, model(pictures).detach().numpy(), atol=1e-4)


def test_evaluation_finds_what_a_plain_loop_finds_in_run_and_export(images: Path, tmp_path: Path) -> None:
    model = run_folder(tmp_path / "run", "test_resnet")
    export_student(ExportConfig(student=str(tmp_path / "run"), output=str(tmp_path / "out")))
    reports = [
        evaluate_student(EvaluateConfig(student=str(tmp_path / place), data=str(images), batch_size=16, num_workers=0))
        for place in ("run", "out")
    ]
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    files = sorted(images.glob("*/*.png"))
    pixels = [torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files]
    pictures = torch.stack([(p.permute(2, 0, 1) / 255 - mean) / std for p in pixels])
    target = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    with torch.no_grad():
        logits = model(pictures)
    assert [report.weights for report in reports] == [f"'{tmp_path}/run/last.pth.tar', after 1 epoch", None]
    for report in reports:
        assert report.num_images == len(files)
        assert report.loss == pytest.approx(float(F.cross_entropy(logits, target)), rel=1e-5)
        assert report.top1 == pytest.approx(float((logits.argmax(1) == target).float().mean()) * 100)
        found = (logits.topk(5).indices == target[:, None]).any(dim=1)
        assert report.top5 == pytest.approx(float(found.float().mean()) * 100)


def test_ema_weights_are_loaded_on_request_and_refused_where_there_are_none(tmp_path: Path) -> None:
    average = tiny_model(seed=5)
    model = run_folder(tmp_path / "with", "test_resnet", ema=average)
    run_folder(tmp_path / "without", "test_resnet")

    def loaded(place: str, *, ema: bool) -> nn.Module:
        model, student = load_student(StudentConfig(student=str(tmp_path / place), ema=ema))
        assert student.weights is not None
        assert student.weights.endswith(f"last.pth.tar', after 1 epoch{', moving average' if ema else ''}")
        return model

    pictures = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(loaded("with", ema=False)(pictures), model(pictures))
    assert torch.equal(loaded("with", ema=True)(pictures), average.eval()(pictures))
    with pytest.raises(CheckpointError, match="holds no EMA"):
        loaded("without", ema=True)


def test_a_timm_name_with_weights_is_a_student_too(images: Path, tmp_path: Path) -> None:
    model = run_folder(tmp_path / "run", "test_resnet")
    config = StudentConfig(student="test_resnet", checkpoint=str(tmp_path / "run" / "last.pth.tar"))
    loaded, described = load_student(config)
    pictures = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(loaded(pictures), model(pictures))
    assert described.recipe.size == model.pretrained_cfg["input_size"][-1]


def test_what_does_not_fit_is_refused_with_what_to_do(images: Path, tmp_path: Path) -> None:
    run_folder(tmp_path / "run", "test_resnet")
    export = ExportConfig(student=str(tmp_path / "run"), output=str(tmp_path / "out"))
    export_student(export)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        export_student(export)
    export_student(ExportConfig(student=export.student, output=export.output, overwrite=True))
    with pytest.raises(CheckpointError, match="holds no student"):
        load_student(StudentConfig(student=str(images)))
    with pytest.raises(ConfigError, match="leave out checkpoint"):
        load_student(StudentConfig(student=export.output, checkpoint="x.pth"))
    with pytest.raises(UnknownNameError, match="'test_resnet'"):
        load_student(StudentConfig(student="test_resnett"))
    (tmp_path / "run" / "last.pth.tar").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load_student(StudentConfig(student=str(tmp_path / "run")))


def test_a_folder_with_other_classes_is_refused(images: Path, tmp_path: Path) -> None:
    run_folder(tmp_path / "run", "test_resnet")
    output = tmp_path / "figures.json"
    output.write_text("kept")
    config = {"student": str(tmp_path / "run"), "data": str(images), "num_workers": 0}
    with pytest.raises(OutputExistsError, match="--overwrite"):
        evaluate_student(EvaluateConfig(**config, output=str(output)))
    assert output.read_text() == "kept"
    (images / "9").rename(images / "nine")
    try:
        with pytest.raises(ClassMismatchError, match="has no class 'nine', which the data has"):
            evaluate_student(EvaluateConfig(**config))
        (images / "nine").rename(tmp_path / "nine")
        with pytest.raises(
            ClassMismatchError, match="has the class '9', which the data does not have: the data has 9 of its 10"
        ):
            evaluate_student(EvaluateConfig(**config))
        (tmp_path / "nine").rename(images / "nine")
    finally:
        (images / "nine").rename(images / "9")
