"""Fault 46: out of memory outside the teacher's forward pass: smaller parts where possible, else one line.

Each error is one that torch raises, with torch's text; only its cause is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import cache_contents, digits_dataset, loader_for, tiny_model, write_digits
from torch import Tensor, nn

from kdkit import ClassificationTask, LogitDistillationTask, build_cache, create_teacher
from kdkit.building.config import BuildConfig
from kdkit.building.estimate import estimate_cache
from kdkit.cache.codecs import Float32Codec, LowRankCodec, RowCodec
from kdkit.cli import main
from kdkit.errors import DeviceMemoryError, TeacherMemoryError
from kdkit.runtime.memory import is_out_of_memory, run_in_parts
from kdkit.training.config import TrainConfig
from kdkit.training.evaluate import evaluate
from kdkit.training.preflight import preflight
from kdkit.training.train import train

FORMS: dict[str, Callable[[], Exception]] = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ..."),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuBLAS first": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(h)`"),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "MPS": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 8.2 GB). Tried to allocate 1 GB"),
    "CPU": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you ..."),
    "NumPy": lambda: MemoryError("Unable to allocate 2.00 GiB for an array with shape (1, 2)"),
}
each_form = pytest.mark.parametrize("form", FORMS)
each_type = pytest.mark.parametrize(
    "form", ["CUDA", "cuBLAS", "NumPy"]
)  # of error; their words are compared in the first test


@each_form
def test_fault_46_every_backends_words_for_it_are_known(form: str) -> None:
    assert is_out_of_memory(FORMS[form]())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


class Roomy:
    """A codec's `encode` that fails for more than so many rows, and notes how many it took."""

    def __init__(self, codec: type[RowCodec], form: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[int] = []
        encode = codec.encode

        def limited(codec: Any, values: Tensor) -> Tensor:
            if len(values) > room:
                raise FORMS[form]()
            self.taken.append(len(values))
            return encode(codec, values)

        monkeypatch.setattr(codec, "encode", limited)


@each_type
@pytest.mark.parametrize("codec", [Float32Codec, LowRankCodec])
def test_fault_46_encoding_continues_in_parts_and_the_cache_has_the_same_bytes(
    codec: Any, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"row_bytes": 6} if codec is LowRankCodec else {}
    config = BuildConfig(codec=codec.name, codec_options=options, num_workers=0, batch_size=16)
    teacher, dataset = create_teacher(tiny_model(seed=1)), digits_dataset(48)
    build_cache(teacher, dataset, tmp_path / "plain.h5", config)
    with monkeypatch.context() as patch:
        roomy = Roomy(codec, form, 5, patch)
        build_cache(teacher, dataset, tmp_path / "parts.h5", config)
        assert max(roomy.taken) <= 5
    plain, parts = cache_contents(tmp_path / "plain.h5"), cache_contents(tmp_path / "parts.h5")
    views = [name for name in plain if name.startswith("views/")]
    assert views
    assert all(plain[name] == parts[name] for name in views)


def test_fault_46_an_estimate_continues_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    Roomy(Float32Codec, "CUDA", 5, monkeypatch)
    config = BuildConfig(codec="float32", num_workers=0, batch_size=16)
    assert estimate_cache(create_teacher(tiny_model(seed=1)), digits_dataset(48), config).images == 96


def test_fault_46_no_room_for_one_row_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(rows: Tensor) -> Tensor:
        raise FORMS["cuBLAS"]()

    with pytest.raises(DeviceMemoryError, match=r"encoding has not enough memory on cpu even for one row \(CUDA error"):
        run_in_parts(never, torch.zeros(5, 2), "encoding")


class Failing(nn.Module):
    """A student that runs out of memory in its forward or its backward pass, after `left` passes without."""

    num_classes = 10

    def __init__(self, form: str, *, backward: bool = False) -> None:
        super().__init__()
        self.model, self.form, self.is_backward, self.left = tiny_model(seed=1), form, backward, 0
        self.pretrained_cfg = self.model.pretrained_cfg

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        output: Tensor = self.model(images)
        if self.left >= 0:
            return output
        if not self.is_backward:
            raise FORMS[self.form]()
        output.register_hook(self.fail)
        return output

    def fail(self, gradient: Tensor) -> Tensor:
        raise FORMS[self.form]()


EXPECTED = (
    r"^the student 'test_resnet' has not enough memory on cpu for a batch of 8 images of 32 x 32 pixels in "
    r"(float32 .*--batch-size .*--train.amp bfloat16|autocast to bfloat16 .*--batch-size [^,]*)$"
)


@each_type
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("amp", [None, "bfloat16"])
def test_fault_46_a_step_names_batch_size_and_precision(form: str, backward: bool, amp: Any) -> None:
    config = TrainConfig(epochs=1, amp=amp)
    student = Failing(form, backward=backward)
    task, loader = ClassificationTask(student), loader_for(digits_dataset(16), student, batch_size=8)
    with pytest.raises(DeviceMemoryError, match=EXPECTED):
        preflight(task, loader, None, config)
    student.left = 1
    with pytest.raises(DeviceMemoryError, match=EXPECTED):
        train(task, loader, config)


@each_form
def test_fault_46_a_validation_names_it_too(form: str) -> None:
    student = Failing(form)
    with pytest.raises(DeviceMemoryError, match="the student has not enough memory on cpu for a batch of 8"):
        evaluate(ClassificationTask(student), loader_for(digits_dataset(16), student, batch_size=8))


@each_type
def test_fault_46_a_live_teacher_halves_its_batch_for_every_form_of_it(form: str) -> None:
    class Small(Failing):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 3:
                raise FORMS[form]()
            return self.model(images)  # type: ignore[no-any-return]

    student = tiny_model()
    task = LogitDistillationTask(student, create_teacher(Small(form)))
    train(task, loader_for(digits_dataset(16), student, batch_size=8), TrainConfig(epochs=1))
    task = LogitDistillationTask(student, create_teacher(Failing(form)))
    with pytest.raises(TeacherMemoryError, match="not enough memory on cpu for one image"):
        train(task, loader_for(digits_dataset(16), student, batch_size=8), TrainConfig(epochs=1))


@each_form
def test_fault_46_the_optimisers_state_is_named(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object, **__: object) -> None:
        raise FORMS[form]()

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    student = tiny_model()
    with pytest.raises(DeviceMemoryError, match="the optimiser 'adamw' has not enough memory for its state"):
        train(ClassificationTask(student), loader_for(digits_dataset(16), student), TrainConfig(epochs=1))


@each_form
def test_fault_46_anywhere_else_the_command_ends_in_one_line(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FORMS[form]()

    monkeypatch.setattr("kdkit.dataset.open_dataset", fail)
    data = write_digits(tmp_path / "train", 10)
    assert main(["cache", "build", str(data), "--teacher", "resnet18", "-o", str(tmp_path / "t.h5")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kdkit: error: not enough memory (")
