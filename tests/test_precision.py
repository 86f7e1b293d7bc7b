"""The precision of a teacher: bfloat16 autocast on CUDA, where a check finds the outputs as good."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support import CountingDigits, digits_dataset, tiny_model

from kdkit import TeacherEnsemble, build_cache, create_teacher, precision
from kdkit.building.config import BuildConfig
from kdkit.config import SingleTeacherConfig, TeacherConfig
from kdkit.data import ReplayedDataset
from kdkit.precision import PrecisionCheck, check_precision, choose_autocast, with_autocast
from kdkit.resolve import as_made

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
STREAMS = ("logits", "pooled")


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA, whose check runs on the CPU."""
    monkeypatch.setattr(
        precision, "check_precision", lambda *arguments: check_precision(*arguments[:-1], torch.device("cpu"))
    )


@pytest.mark.usefixtures("on_cuda")
def test_a_teacher_gets_autocast_on_cuda_where_its_outputs_stay_as_good_and_the_fingerprint_says_so() -> None:
    found, text = choose_autocast(create_teacher(tiny_model()), digits_dataset(100), STREAMS, CUDA)
    assert found.autocast == torch.bfloat16
    assert found.fingerprint()["autocast"] == "bfloat16"
    assert text.startswith("autocast bfloat16, off by logits ")
    assert "nats, pooled " in text
    assert text.endswith("of their size from float32 on 50 images")


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    ("make", "is_exact", "device", "expected"),
    [
        (lambda: create_teacher(tiny_model()), False, CPU, "^float32$"),
        (lambda: create_teacher(tiny_model()), True, CUDA, "^float32$"),
        (lambda: create_teacher(tiny_model(), autocast=torch.float16), False, CUDA, "^float16$"),
        (lambda: create_teacher(tiny_model(), dtype=torch.bfloat16), False, CUDA, "^bfloat16$"),
    ],
)
def test_a_teacher_keeps_its_precision_where_that_is_given_exact_or_needed(
    make: Any, is_exact: bool, device: torch.device, expected: str
) -> None:
    teacher = make()
    found, text = choose_autocast(teacher, digits_dataset(32), STREAMS, device, is_exact=is_exact)
    assert found is teacher
    assert re.search(expected, text)


@pytest.mark.usefixtures("on_cuda")
def test_a_teacher_whose_outputs_change_too_much_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = create_teacher(tiny_model())
    check = check_precision(teacher, with_autocast(teacher, torch.bfloat16), digits_dataset(32), STREAMS, CPU)
    assert check is not None
    for stream, bound in (("logits", "_MOST_KL"), ("pooled", "_MOST_ERROR")):
        with monkeypatch.context() as patch:
            patch.setattr(precision, bound, 0.99 * check.differences[stream])
            found, text = choose_autocast(teacher, digits_dataset(32), STREAMS, CUDA)
        assert found is teacher
        assert re.match(r"float32, because autocast bfloat16 is off by logits [\d.e-]+ nats, pooled", text)
    assert not PrecisionCheck({"logits": float("nan")}, 1).passes


@pytest.mark.usefixtures("on_cuda")
def test_all_members_of_an_ensemble_get_it() -> None:
    ensemble = TeacherEnsemble([create_teacher(tiny_model(seed=seed)) for seed in (0, 1)], [1, 2])
    found, _ = choose_autocast(ensemble, digits_dataset(8), ["logits"], CUDA)
    assert isinstance(found, TeacherEnsemble)
    assert [member.autocast for member in found.members] == 2 * [torch.bfloat16]
    assert found.weights == ensemble.weights
    assert [member["autocast"] for member in found.fingerprint()["members"]] == 2 * ["bfloat16"]


@pytest.mark.usefixtures("on_cuda")
def test_images_that_cannot_be_read_take_no_part_in_the_check() -> None:
    dataset = ReplayedDataset(CountingDigits(8, unreadable=(0, 3)), digits_dataset(8).recipe)
    assert choose_autocast(create_teacher(tiny_model()), dataset, STREAMS, CUDA)[1].endswith("on 6 images")
    dataset = ReplayedDataset(CountingDigits(8, unreadable=tuple(range(8))), digits_dataset(8).recipe)
    assert "no image could be read" in choose_autocast(create_teacher(tiny_model()), dataset, STREAMS, CUDA)[1]


def test_a_teacher_named_for_a_cache_takes_the_precision_that_made_it() -> None:
    half = create_teacher(tiny_model(), autocast=torch.bfloat16)
    plain, other = TeacherConfig("a"), TeacherConfig("a", dtype="float32")
    assert as_made(plain, half.fingerprint()).autocast == "bfloat16"
    assert as_made(other, half.fingerprint()) == other
    assert as_made(plain, create_teacher(tiny_model()).fingerprint()) == plain
    both = TeacherConfig("a", ensemble=(SingleTeacherConfig("b"),))
    made_with = TeacherEnsemble([half, half]).fingerprint()
    assert [one.autocast for one in (as_made(both, made_with), *as_made(both, made_with).ensemble)] == 2 * ["bfloat16"]
    assert as_made(plain, made_with) == plain


def test_a_build_compiles_its_teacher_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    for count, is_compiled in ((0, False), (1, True)):
        config = BuildConfig(codec="float32", num_workers=0, compile=is_compiled)
        build_cache(create_teacher(tiny_model()), digits_dataset(4), tmp_path / f"{count}.h5", config)
        assert len(compiled) == count


def test_an_ensemble_under_autocast_keeps_its_weights_its_taps_and_its_name() -> None:
    members = [create_teacher(tiny_model(seed=seed)) for seed in (0, 1)]
    whole = TeacherEnsemble(members, [3, 1], name="two", taps=["0:pooled", "1:stages.3"])
    half = with_autocast(whole, torch.bfloat16)
    assert isinstance(half, TeacherEnsemble)
    assert (half.taps, half.weights, half.name) == (whole.taps, whole.weights, whole.name)
    assert all(member.autocast == torch.bfloat16 for member in half.members)
