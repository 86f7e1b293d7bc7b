"""The encoder's thread: beside the teacher, bounded, and as careful as if it were none."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
import torch
from support import Pixels, Watched, cache_contents, digits, tiny_model

from kdkit import build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache.codecs import Float32Codec
from kdkit.data import ReplayedDataset
from kdkit.errors import CacheError, NonFiniteOutputError
from kdkit.recipe import ViewRecipe
from kdkit.runtime.background import Background
from kdkit.teachers import Teacher

CONFIG = BuildConfig(codec="float32", num_workers=0, batch_size=8)
LIMIT = 20.0  # seconds that one side waits for the other before the test fails


def dataset(rows: int = 64) -> ReplayedDataset:
    return ReplayedDataset(digits(rows), ViewRecipe(size=8, num_views=2, hflip=0.0))


PROBED = 8  # batches that the probe for fidelity runs first, of 64 rows


def test_a_batch_is_encoded_while_the_teacher_is_at_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding, at_the_next = threading.Event(), threading.Event()
    encode, met = Float32Codec.encode, []

    def watched_encode(self: Float32Codec, logits: torch.Tensor) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread() and not met:
            encoding.set()
            met.append(at_the_next.wait(LIMIT))
        return encode(self, logits)

    def before(number: int, logits: torch.Tensor) -> None:
        if number == PROBED + 1:
            met.append(encoding.wait(LIMIT))
            at_the_next.set()

    monkeypatch.setattr(Float32Codec, "encode", watched_encode)
    build_cache(Watched(before), dataset(), tmp_path / "t.h5", CONFIG)
    assert met == [True, True]  # each waited for the other: one thread could not have gone on


def test_the_teacher_is_never_more_than_three_batches_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, encoded, ahead = Float32Codec.encode, [0], []

    def slow_encode(self: Float32Codec, logits: torch.Tensor) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            threading.Event().wait(0.01)
            encoded[0] += 1
        return encode(self, logits)

    monkeypatch.setattr(Float32Codec, "encode", slow_encode)
    teacher = Watched(lambda number, logits: ahead.append(number + 1 - PROBED - encoded[0]))
    build_cache(teacher, dataset(), tmp_path / "t.h5", CONFIG)
    assert 1 < max(ahead) <= 3


@pytest.mark.parametrize("batch", [0, 3, 6, 7])
def test_an_output_that_cannot_be_encoded_is_named_whatever_follows_it_and_nothing_of_its_shard_is_sealed(
    tmp_path: Path, batch: int
) -> None:
    def poison(number: int, logits: torch.Tensor) -> None:
        if number == PROBED + batch:
            logits[5, 3] = float("nan")

    with pytest.raises(NonFiniteOutputError, match=rf"of 'digit-{8 * batch + 5}' in view 0"):
        build_cache(Watched(poison), dataset(), tmp_path / "t.h5", dataclasses.replace(CONFIG, pack=False))
    assert not list((tmp_path / "t.h5.parts").glob("v*"))
    build_cache(Teacher(Pixels()), dataset(), tmp_path / "t.h5", CONFIG)
    build_cache(Teacher(Pixels()), dataset(), tmp_path / "plain.h5", CONFIG)
    assert cache_contents(tmp_path / "t.h5") == cache_contents(tmp_path / "plain.h5")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit(143)])
def test_an_interrupted_build_leaves_no_thread_and_resumes_later(
    tmp_path: Path, stop: type[BaseException] | BaseException
) -> None:
    def interrupt(number: int, logits: torch.Tensor) -> None:
        if number == PROBED + 11:
            raise stop

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        build_cache(Watched(interrupt), dataset(), tmp_path / "t.h5", CONFIG)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kdkit")]
    report = build_cache(Teacher(Pixels()), dataset(), tmp_path / "t.h5", CONFIG)
    assert report.images_built in (64, 128)  # view 0 was whole, and may have been sealed by then
    build_cache(Teacher(Pixels()), dataset(), tmp_path / "plain.h5", CONFIG)
    assert cache_contents(tmp_path / "t.h5") == cache_contents(tmp_path / "plain.h5")


def test_nothing_runs_after_a_call_that_failed() -> None:
    ran: list[int] = []

    def fail() -> None:
        raise CacheError("no")

    def run_all() -> None:
        with Background("kdkit-test", max_pending=10) as thread:
            thread.submit(fail)
            for number in range(9):
                thread.submit(lambda number=number: ran.append(number))  # type: ignore[misc]

    with pytest.raises(CacheError):
        run_all()
    assert ran == []


@pytest.mark.gpu
def test_a_build_on_a_gpu_encodes_on_a_side_stream_and_holds_the_teachers_outputs(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = dataclasses.replace(CONFIG, streams=("logits", "pooled"))
    contents = []
    for device in ("cpu", "cuda"):
        build_cache(create_teacher(tiny_model()), dataset(), tmp_path / f"{device}.h5", config, device=device)
        cache = open_cache(tmp_path / f"{device}.h5")
        every = torch.arange(64)
        contents.append({name: cache.codecs[name].decode(cache.read_encoded(every, 1, name)) for name in cache.streams})
    for name, rows in contents[0].items():
        torch.testing.assert_close(contents[1][name], rows, rtol=1e-2, atol=1e-2)
