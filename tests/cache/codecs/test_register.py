"""A codec of a test's own: registered, built with, opened and trained from like kdkit's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from support import digits_dataset, loader_for, tiny_model
from torch import Tensor

from kdkit import LogitDistillationTask, build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache import Codec, create_codec, register_codec
from kdkit.cache.codecs import registry
from kdkit.errors import CacheVersionError, ConfigError


@dataclass(frozen=True)
class Top1Codec(Codec):
    """The likeliest class alone, one byte; it decodes to all but a ten-thousandth of the mass on that class."""

    name: ClassVar[str] = "top1"

    @property
    def row_bytes(self) -> int:
        return 1

    def encode(self, values: Tensor) -> Tensor:
        return values.argmax(dim=1, keepdim=True).to(torch.uint8)

    def decode(self, payload: Tensor) -> Tensor:
        rest = torch.full((len(payload), self.num_classes), 1e-4 / (self.num_classes - 1), device=payload.device)
        return rest.scatter(1, payload.long(), 1 - 1e-4).log()


@pytest.fixture
def registered() -> Iterator[None]:
    register_codec("top1", Top1Codec)
    yield
    del registry._CODECS["top1"]


@pytest.mark.usefixtures("registered")
def test_a_registered_codec_builds_opens_and_trains(tmp_path: Path) -> None:
    dataset, teacher = digits_dataset(60), create_teacher(tiny_model(seed=1))
    build_cache(teacher, dataset, tmp_path / "t.h5", BuildConfig(codec="top1", num_workers=0))
    cache = open_cache(tmp_path / "t.h5", dataset)
    assert isinstance(cache.codecs["logits"], Top1Codec)
    student = tiny_model(seed=2)
    task = LogitDistillationTask(student, teacher=None)
    batch = next(iter(loader_for(dataset, student)))
    live = teacher(batch.to("cpu")).logits
    assert live is not None
    # the student's normalisation is the teacher's here, so the live teacher sees the very same input
    assert torch.equal(cache.read_encoded(cache.rows_of(batch.row), batch.view)[:, 0].long(), live.argmax(dim=1))
    before = next(student.parameters()).detach().clone()
    task(batch.input, batch.target, teacher_output=cache(batch))["loss"].backward()
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    assert not torch.equal(before, next(student.parameters()))
    assert np.isfinite(cache.fidelity()["logits"][0]["kl_mean_t1"])


def test_a_cache_in_an_unregistered_codec_raises_an_error_with_advice(tmp_path: Path) -> None:
    register_codec("top1", Top1Codec)
    build_cache(
        create_teacher(tiny_model()), digits_dataset(8), tmp_path / "t.h5", BuildConfig(codec="top1", num_workers=0)
    )
    del registry._CODECS["top1"]
    with pytest.raises(CacheVersionError, match=r"'top1', this kdkit knows float32.*register_codec your own"):
        open_cache(tmp_path / "t.h5")


def test_a_name_that_is_taken_or_another_than_the_class_s_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'top2'.* whose name is 'top1'"):
        register_codec("top2", Top1Codec)
    taken = type("Taken", (Top1Codec,), {"name": "float16"})
    with pytest.raises(ConfigError, match="'float16' is taken by Float16Codec"):
        register_codec("float16", taken)
    with pytest.raises(ConfigError, match="takes a subclass of Codec or FeatureCodec, got <class 'dict'>"):
        register_codec("dict", dict)  # type: ignore[arg-type]
    assert create_codec("float16", 10).name == "float16"
