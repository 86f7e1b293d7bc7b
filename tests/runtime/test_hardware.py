"""The device of a run: found, checked by use, made the current one, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from fake_cuda import NoDouble, fake_gpu
from support import digits_dataset, tiny_model

from kdkit import build_cache, create_teacher
from kdkit.building.agreement import compare
from kdkit.building.config import BuildConfig
from kdkit.building.estimate import estimate_cache
from kdkit.building.extend import extend_cache
from kdkit.building.teacher import device_of, placed, run_teacher
from kdkit.building.verify import verify_cache
from kdkit.cache.codecs import create_codec
from kdkit.cache.fidelity import measure_rows
from kdkit.cli import main
from kdkit.errors import ConfigError
from kdkit.recipe import ViewRecipe
from kdkit.resolve import resolve_device
from kdkit.runtime import distributed
from kdkit.runtime.hardware import choose_workers, describe_device, use_device
from kdkit.types import SparseLogits, TeacherOutput

GPUS = 4


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with four GPUs, as far as their numbers go: the devices that became the current one."""
    current: list[torch.device] = []
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: GPUS)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(
        torch, "empty", lambda size, device: empty(size, device="cpu" if device.type == "cuda" else device)
    )
    return current


def set_ranks(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    for name, value in {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, "RANK": rank, "WORLD_SIZE": count}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")


@pytest.mark.parametrize(("name", "rank", "number"), [("auto", 0, 0), ("cuda", 3, 3), ("auto", 2, 2), ("cuda:1", 0, 1)])
def test_a_gpu_is_that_of_its_local_rank_or_its_number_and_becomes_the_current_one(
    name: str, rank: int, number: int, gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_ranks(monkeypatch, rank, 1 if ":" in name else GPUS)
    assert use_device(name) == resolve_device(name) == torch.device("cuda", number)
    assert gpus == 2 * [torch.device("cuda", number)]
    assert describe_device(torch.device("cuda", number)) == f"cuda:{number} (NVIDIA H200)"


@pytest.mark.parametrize(
    ("name", "ranks", "message"),
    [
        ("cuda:1", 2, r"the device 'cuda:1' is one GPU, and 2 local ranks need one each: give cuda"),
        ("cuda:4", 1, r"the device 'cuda:4' cannot be used here \(there is no GPU 4, this process sees 4, counted"),
        ("cuda", 6, r"the device 'cuda' cannot be used here \(there is no GPU 5, this process sees 4"),
        ("cuda:x", 1, r"the device 'cuda:x' cannot be used here \(Invalid device string"),
        ("gpu", 1, r"the device 'gpu' cannot be used here"),
        ("meta", 1, r"the device 'meta' cannot be used here"),
        ("mps", 1, r"the device 'mps' cannot be used here \(this torch finds no GPU of Apple\): try cpu"),
    ],
)
@pytest.mark.usefixtures("gpus")
def test_another_device_is_refused_in_one_line_alone_and_among_ranks(
    name: str, ranks: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_ranks(monkeypatch, ranks - 1, ranks)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for use in (lambda: resolve_device(name), lambda: distributed.process_group(name).__enter__()):
        with pytest.raises(ConfigError, match=message) as refusal:
            use()
        assert "\n" not in str(refusal.value)


def test_cuda_without_a_driver_is_one_line_under_torchrun_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    set_ranks(monkeypatch, 0, 2)
    assert main(["distill", "data", "--student", "resnet18", "-o", "run", "--device", "cuda"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kdkit: error: the device 'cuda' cannot be used here (")


def test_workers_are_shared_among_local_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(24)))
    assert choose_workers() == 16
    set_ranks(monkeypatch, 0, 4)
    assert choose_workers() == 6
    assert choose_workers(0) == 0


def test_every_function_of_a_cache_leaves_the_teacher_where_it_is_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, config = create_teacher(tiny_model()), BuildConfig(codec="float32", num_workers=0)
    moves: list[object] = []
    monkeypatch.setattr(type(teacher), "to", lambda self, *where: moves.append(where) or self)
    build_cache(teacher, digits_dataset(8), path := tmp_path / "t.h5", config)
    more = digits_dataset(8, ViewRecipe.from_dict({**digits_dataset(8).recipe.to_dict(), "num_views": 3}))
    extend_cache(teacher, more, path, num_workers=0)
    verify_cache(path, teacher, more, num_rows=2)
    estimate_cache(teacher, digits_dataset(8), config)
    assert moves == []
    assert placed(teacher, None) == (teacher, device_of(teacher))
    assert placed(teacher, "meta")[1] == torch.device("meta")
    assert moves == [(torch.device("meta"),)]


def test_mps_which_has_no_float64_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, mps = create_codec("float16", 10), torch.device("mps")
    with fake_gpu(monkeypatch), NoDouble("mps"):
        values = torch.randn(4, 10, device=mps)
        monkeypatch.setattr("kdkit.cache.fidelity.torch.Tensor.numpy", lambda self: self)
        measure_rows(codec, values, codec.encode(values))
        compare(codec, values, codec.encode(values), 2.0**-8).is_far  # noqa: B018
        SparseLogits.from_logits(values, 3).soften(2.0)
        SparseLogits(torch.zeros(4, 1, device=mps).long(), torch.randn(4, 1, device=mps), 10).soften(2.0)
        teacher, loader = mock.Mock(return_value=TeacherOutput(values)), mock.Mock()
        outputs = run_teacher(teacher, loader, mock.Mock(), ["logits"])
        assert outputs["logits"].device.type == "cpu"  # where the codecs find float64 and all of linear algebra
