"""Faults 10 and 25: a reader beside a writer, and readers in other processes."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from support import digits_dataset
from synthetic import Synthetic, read_in_process

from kdkit import CacheWriter, open_cache
from kdkit.errors import CacheError, CacheIncompleteError, CacheNotFoundError


def test_fault_10_a_reader_sees_only_committed_shards_while_a_writer_runs(tmp_path: Path) -> None:
    cache = Synthetic(num_rows=7300, num_views=2)
    path = tmp_path / "t.h5"
    committed: set[object] = set()
    failed: list[BaseException] = []

    def write() -> None:
        try:
            parts = cache.start(path)
            for shard in parts.missing():
                cache.seal(parts, shard)
                committed.add(shard)
                looked.acquire(timeout=60)  # so that the reader sees it while the writer goes on
            parts.finish()
        except BaseException as error:
            failed.append(error)

    looked = threading.Semaphore(0)
    writer = threading.Thread(target=write)
    seen = [0]
    writer.start()
    while writer.is_alive():
        seen.append(_look(cache, path, set(committed)))
        looked.release()
    writer.join()
    assert not failed
    cache.assert_exact(path)
    during = [number for number in seen if number >= 0]
    assert during == sorted(during)  # what was seen once stays
    assert len(set(during)) > 3, "the reader never ran beside the writer"


def _look(cache: Synthetic, path: Path, committed: set[object]) -> int:
    """All that is visible must be exact. The number of sealed shards, or -1 where they are being packed away."""
    try:
        cache.assert_exact(path)
    except (CacheIncompleteError, CacheNotFoundError):
        pass
    else:
        return -1
    try:
        parts = CacheWriter.join(path)
        sealed = parts.sealed()
        for shard in sealed:
            rows = parts.read(shard)["logits"]
            assert np.array_equal(rows, cache.rows(shard.view, shard.start, shard.stop))
    except CacheNotFoundError:
        return 0 if not committed else -1
    except CacheError:
        assert path.is_file(), "a sealed shard could not be read although nobody removes it"
        return -1
    if not path.is_file():
        assert committed <= set(sealed)
    return -1 if path.is_file() else len(sealed)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_fault_25_workers_of_every_start_method_get_identical_pixels_and_values(tmp_path: Path, method: str) -> None:
    made = Synthetic(num_rows=1500)
    caches = [open_cache(made.build(tmp_path / f"{packed}.h5", packed=packed)) for packed in (True, False)]
    dataset, rows = digits_dataset(20), np.array([1499, 3, 3, 1000, 0])
    for cache in caches:
        cache.read_encoded(rows[:2], 1)  # some blocks are verified before the others go
    expected = ([made.rows(1)[rows].tobytes()] * 2, dataset[3, 1].image.numpy().tobytes())
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = range(1 if method == "spawn" else 2)  # each process of spawn loads torch again
    with warnings.catch_warnings():
        if method == "fork" and sys.version_info >= (3, 12):
            warnings.simplefilter("ignore", DeprecationWarning)  # of any fork of a process with threads
        processes = [
            context.Process(target=read_in_process, args=(pickle.dumps((caches, dataset, rows)), queue))
            for _ in workers
        ]
        for process in processes:
            process.start()
    assert [queue.get(timeout=120) for _ in workers] == [expected for _ in workers]
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_fault_25_a_cache_that_was_open_before_a_fork_reads_on_in_both_processes(tmp_path: Path) -> None:
    made = Synthetic(num_rows=1500)
    cache = open_cache(made.build(tmp_path / "t.h5"))
    rows = np.arange(1499, -1, -7)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = context.Process(target=lambda: queue.put(cache.read_encoded(rows, 1).numpy().tobytes()))
        child.start()
    assert queue.get(timeout=60) == made.rows(1)[rows].tobytes() == cache.read_encoded(rows, 1).numpy().tobytes()
    child.join()
    assert child.exitcode == 0


def test_fault_25_threads_read_one_cache_at_the_same_time(tmp_path: Path) -> None:
    made = Synthetic(num_rows=5300)
    cache = open_cache(made.build(tmp_path / "t.h5", packed=False))
    wrong: list[int] = []

    def read(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(50):
            rows = draw.integers(0, 5300, 64)
            if not np.array_equal(cache.read_encoded(rows, seed % 2).numpy(), made.rows(seed % 2)[rows]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
