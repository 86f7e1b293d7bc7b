"""One writer a cache, and a writer thread that hides no failure."""

from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
from support import Pixels, digits_dataset, tiny_model

from kdkit import build_cache, create_teacher
from kdkit.building.config import BuildConfig
from kdkit.cache.format.metadata import Shard
from kdkit.cache.shards.lock import writer_lock
from kdkit.cache.shards.writer import ShardWriter
from kdkit.errors import CacheDiskFullError, CacheError, CacheLockedError
from kdkit.teachers import Teacher


def _hold(folder: Path, ready: object) -> None:
    with writer_lock(folder):
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


@pytest.mark.slow
def test_fault_11_a_second_writer_is_refused_and_a_dead_ones_lock_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = tmp_path / "t.h5.parts"
    parts.mkdir()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    owner = context.Process(target=_hold, args=(parts, ready))
    owner.start()
    assert ready.wait(60)
    teacher, dataset = create_teacher(tiny_model()), digits_dataset(8)
    config = BuildConfig(num_workers=0)
    with pytest.raises(CacheLockedError, match=rf"process {owner.pid} on host '.+'"):
        build_cache(teacher, dataset, tmp_path / "t.h5", config)
    assert owner.pid is not None
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    with caplog.at_level(logging.WARNING):
        build_cache(teacher, dataset, tmp_path / "t.h5", config)
    assert f"process {owner.pid}" in caplog.text
    assert (tmp_path / "t.h5").is_file()


def test_a_lock_that_was_let_go_gives_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "index.h5").touch()
    for _ in range(2):
        with writer_lock(tmp_path):
            assert (tmp_path / "lock").stat().st_size > 0
    assert not caplog.records


def test_a_lock_that_is_a_link_is_refused_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with (
        pytest.raises(CacheError, match=r"lock' cannot be locked: .*; expected a file of this folder"),
        writer_lock(tmp_path),
    ):
        pass
    assert (tmp_path / "other").read_text() == "precious"


def test_a_folder_that_its_writer_has_just_packed_and_removed_is_finished(tmp_path: Path) -> None:
    with pytest.raises(CacheLockedError, match="just finished"), writer_lock(tmp_path / "gone.parts"):
        pass


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "lock")
    with (
        pytest.raises(CacheError, match=r"lock' cannot be locked: (it is a pipe|Is a directory); expected a file"),
        writer_lock(tmp_path),
    ):
        pass


def test_a_file_system_that_cannot_lock_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(CacheError, match="No locks available; use a file system that can"), writer_lock(tmp_path):
        pass


def test_a_lock_that_its_holder_removed_while_another_came_for_it_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def late(file: TextIO, operation: int) -> None:
        (tmp_path / "lock").unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(CacheLockedError, match="just finished by another process: run again"), writer_lock(tmp_path):
        pass


def test_a_build_that_another_process_finished_while_this_one_came_for_the_lock_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, dataset, config = Teacher(Pixels()), digits_dataset(8), BuildConfig(num_workers=0)
    build_cache(teacher, dataset, tmp_path / "theirs.h5", config)
    before = (tmp_path / "theirs.h5").read_bytes()

    @contextmanager
    def slow_lock(folder: Path) -> Iterator[None]:
        with writer_lock(folder):
            (tmp_path / "theirs.h5").replace(tmp_path / "t.h5")
            yield

    monkeypatch.setattr("kdkit.cache.writer.writer_lock", slow_lock)
    assert build_cache(teacher, dataset, tmp_path / "t.h5", config).images_built == 0
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]
    assert (tmp_path / "t.h5").read_bytes() == before


def _seal_on_a_full_disk(shard: Shard, payloads: object, pixel_crc32: object, fidelity: object) -> None:
    """There is room for the first shard alone."""
    if shard.start:
        raise CacheDiskFullError("no room")


def _write(starts: Iterable[int], then: Callable[[], object] = lambda: None) -> None:
    with ShardWriter(_seal_on_a_full_disk) as writer:
        for start in starts:
            writer.submit(Shard(0, start, start + 1000), {}, np.zeros(0), {})
        then()


def test_a_failure_to_seal_is_raised_by_the_next_submit_or_at_the_end() -> None:
    for starts in ([1000], range(0, 10_000, 1000)):
        with pytest.raises(CacheDiskFullError):
            _write(starts)


def test_an_error_in_the_block_is_not_replaced_by_one_of_the_writer() -> None:
    with pytest.raises(ZeroDivisionError):
        _write([1000], then=lambda: 1 / 0)
