"""Faults 36, 37, 38, 42 and 43: locks, leftovers, and readers at the moment at which shards become one file."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import Synthetic

from kdkit import CacheWriter, open_cache
from kdkit.cache import lazy_arrays
from kdkit.cache.opening import verify_arrays
from kdkit.cache.places import pack_cache
from kdkit.cache.shards.folder import ShardFolder
from kdkit.cache.shards.lock import writer_lock
from kdkit.cache.summary import num_bytes
from kdkit.cli import main
from kdkit.errors import CacheCorruptError, CacheDiskFullError, CacheError, CacheLockedError, CacheMismatchError
from kdkit.runtime import distributed, files
from kdkit.training.run import SkipRecord

CACHE = Synthetic(num_rows=1100, num_views=2)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def in_child(work: Callable[[], object]) -> int:
    """Runs the work in a forked process that may kill itself; returns the signal that ended it, or 0."""
    process = os.fork()
    if process == 0:
        work()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(process, 0)[1])


def die_at(name: str, number: int = 1) -> Callable[..., Any]:
    """A stand-in for os.`name` that kills the process at its `number`th call."""
    real, left = getattr(os, name), [number]

    def call(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    return call


# Fault 36: the lock file


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [(errno.ENOSPC, CacheDiskFullError, "no room for .*lock'"), (errno.EIO, CacheError, "lock' cannot be written: ")],
)
@pytest.mark.parametrize("call", ["write", "ftruncate"])
def test_fault_36_a_full_disk_or_an_error_at_the_lock_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, kind: type[CacheError], message: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(kind, match=message), writer_lock(tmp_path):
        pytest.fail("it holds the lock")
    monkeypatch.undo()
    with writer_lock(tmp_path):
        """It can be taken again at once."""


def test_fault_36_an_error_of_the_lock_does_not_hide_the_error_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def work() -> None:
        with writer_lock(tmp_path):
            monkeypatch.setattr(os, "ftruncate", fail)
            raise CacheMismatchError("the true error")

    with pytest.raises(CacheMismatchError, match="the true error"):
        work()


# Fault 37: the lock and forked workers

HOLD = """
import multiprocessing, os, sys, time
from pathlib import Path
from kdkit.cache.shards.lock import writer_lock
with writer_lock(Path(sys.argv[1])):
    workers = [multiprocessing.get_context(sys.argv[2]).Process(target=time.sleep, args=(120,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    print(*(worker.pid for worker in workers), flush=True)
    time.sleep(120)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_fault_37_workers_that_outlive_a_killed_writer_hold_no_lock(tmp_path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    script = tmp_path / "hold.py"
    script.write_text("if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in HOLD.splitlines()))
    folder = tmp_path / "t.h5.parts"
    folder.mkdir()
    owner = subprocess.Popen([sys.executable, str(script), str(folder), method], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout as output:
        workers = [int(number) for number in output.readline().split()]
    with pytest.raises(CacheLockedError, match=f"process {owner.pid} "), writer_lock(folder):
        pytest.fail("two hold the lock")
    owner.kill()
    owner.wait()
    try:
        for worker in workers:
            os.kill(worker, 0)  # it is alive
        with writer_lock(folder):
            """It is taken over at once."""
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)


ORPHAN = """
import multiprocessing, os, signal, time
from kdkit.data.worker import leave_signals_to_parent
def work(parent):
    while os.getppid() == parent:
        time.sleep(0.01)
    leave_signals_to_parent(0)  # torch calls it before its watchdog looks who the parent is
    time.sleep(300)
worker = multiprocessing.get_context("fork").Process(target=work, args=(os.getpid(),))
worker.start()
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_fault_37_a_worker_that_starts_while_its_parent_is_killed_ends() -> None:
    owner = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout as output:
        worker, begun = int(output.readline()), time.monotonic()
        owner.wait()
        output.read()  # until the worker, which holds the pipe as well, has ended
    assert time.monotonic() - begun < 200, f"worker {worker} slept on until its end"


def test_fault_37_a_forked_process_that_ends_in_order_leaves_the_lock_to_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "t.h5.parts"
    folder.mkdir()
    (folder / "index.h5").touch()

    def leave(writer: Any) -> None:
        writer.__exit__(None, None, None)

    held = writer_lock(folder)
    held.__enter__()
    assert in_child(lambda: leave(held)) == 0
    assert json.loads((folder / "lock").read_text())["process"] == os.getpid()
    with pytest.raises(CacheLockedError), writer_lock(folder):
        pytest.fail("two hold the lock")
    held.__exit__(None, None, None)
    assert (folder / "lock").stat().st_size == 0


# Fault 38: cache pack, killed and repeated


CALLS_OF_A_PACK = {
    "pwrite": (1, 2, 3, 7, 16), "fsync": (1, 2, 3), "replace": (1,), "unlink": (1, 2, 6, 11), "rmdir": (1,),
}  # fmt: skip
"""The first and last of each kind, and some between them."""


@pytest.mark.parametrize(
    ("call", "number", "named_folder"),
    [
        *((call, number, False) for call, numbers in CALLS_OF_A_PACK.items() for number in numbers),
        ("pwrite", 3, True),
        ("unlink", 1, True),
    ],
)
def test_fault_38_pack_killed_at_any_call_and_repeated_ends_equal_and_leaves_nothing(
    tmp_path: Path, call: str, number: int, named_folder: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    CACHE.build(tmp_path / "t.h5", packed=False)
    named = tmp_path / ("t.h5.parts" if named_folder else "t.h5")

    def killed() -> None:
        setattr(os, call, die_at(call, number))
        pack_cache(named)

    assert in_child(killed) == signal.SIGKILL
    assert main(["cache", "pack", str(named)]) == 0
    assert tree(tmp_path) == ["t.h5"]
    CACHE.assert_exact(tmp_path / "t.h5")
    content = (tmp_path / "t.h5").read_bytes()
    assert main(["cache", "pack", str(named)]) == 0  # and says so again
    assert (tmp_path / "t.h5").read_bytes() == content
    assert capsys.readouterr().out.count(f"t.h5: {len(content):,} bytes") == 2


def test_fault_38_a_pack_does_not_take_a_damaged_file_for_a_finished_one(tmp_path: Path) -> None:
    CACHE.build(tmp_path / "t.h5", packed=False)
    shutil.copytree(tmp_path / "t.h5.parts", tmp_path / "kept")
    pack_cache(tmp_path / "t.h5")
    os.truncate(tmp_path / "t.h5", 5000)
    shutil.copytree(tmp_path / "kept", tmp_path / "t.h5.parts")
    with pytest.raises(CacheCorruptError, match=r"t\.h5'"):
        pack_cache(tmp_path / "t.h5")
    assert tree(tmp_path / "t.h5.parts") == tree(tmp_path / "kept")


# Fault 42: what killed and refused commands leave


def test_fault_42_a_kill_while_a_folder_is_probed_leaves_nothing(tmp_path: Path) -> None:
    def killed() -> None:
        os.close = die_at("close")
        os.unlink = die_at("unlink")
        files.check_writable(tmp_path)

    assert in_child(killed) == signal.SIGKILL
    assert tree(tmp_path) == []


def test_fault_42_a_file_system_without_unnamed_files_is_probed_with_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    files.check_writable(tmp_path)
    assert tree(tmp_path) == []


def test_fault_42_an_extension_that_is_refused_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has extended the cache between the look at it and the lock."""
    path = CACHE.build(tmp_path / "t.h5")
    bigger = CACHE.replace(num_views=3).build(tmp_path / "bigger.h5")

    def other(folder: Path) -> None:
        shutil.copy(bigger, path)
        real(folder)

    real = files.make_folder
    monkeypatch.setattr(files, "make_folder", other)
    with pytest.raises(CacheLockedError, match="was just extended by another process"):
        CacheWriter.extend(path, 4)
    assert tree(tmp_path) == ["bigger.h5", "t.h5"]


def test_fault_42_a_cut_last_line_of_skipped_is_removed_and_its_sample_recorded_again(tmp_path: Path) -> None:
    whole = json.dumps({"key": "a", "reason": "x"}) + "\n"
    for cut in ('{"key": "b", "rea', '{"key": "b", "reason": "é'.encode()[:-1].decode("latin-1"), ""):
        (tmp_path / "skipped.jsonl").write_text(whole + "[1]\nno JSON\n" + cut, encoding="latin-1")
        record = SkipRecord(tmp_path)
        for key in ("b", "a", "b"):
            record(key, "y")
        lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
        assert lines == [whole.strip(), "[1]", "no JSON", json.dumps({"key": "b", "reason": "y"})]


# Fault 43: a reader at the moment of packing


@pytest.mark.parametrize("named_folder", [False, True])
def test_fault_43_a_reader_that_opens_while_the_shards_become_one_file_opens_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_folder: bool
) -> None:
    """The cache is packed after the folder was found, and after each shard was opened."""
    for after in range(5):
        folder = tmp_path / str(after)
        folder.mkdir()
        CACHE.build(folder / "t.h5", packed=False)
        left = [after]

        def pack_first(*arguments: Any, real: Any, left: list[int] = left, folder: Path = folder) -> Any:
            left[0] -= 1
            if left[0] == -1:
                pack_cache(folder / "t.h5")
            return real(*arguments)

        for name in ("missing", "open_shard"):
            real = getattr(ShardFolder, name)
            stand_in = lambda *arguments, real=real: pack_first(*arguments, real=real)  # noqa: E731
            monkeypatch.setattr(ShardFolder, name, stand_in)
        cache = open_cache(folder / ("t.h5.parts" if named_folder else "t.h5"))
        monkeypatch.undo()
        pack_cache(folder / "t.h5")
        assert cache.path == folder / "t.h5"
        assert cache.keys() == CACHE.keys
        rows = np.arange(1100)
        assert np.array_equal(cache.read_encoded(rows, 1).numpy(), CACHE.rows(1))
        cache.verify()


def test_fault_43_what_is_read_later_is_read_from_the_file_that_the_shards_became(tmp_path: Path) -> None:
    """A function that has the path of the folder finds it gone."""
    CACHE.build(tmp_path / "t.h5", packed=False)
    shards = tmp_path / "t.h5.parts"
    metadata = open_cache(shards).metadata
    reads: list[Callable[[], Any]] = [
        lambda: lazy_arrays.stored_keys(shards, 1100),
        lambda: lazy_arrays.stored_digests(shards, 1100).tolist(),
        lambda: lazy_arrays.stored_absent(shards, metadata),
        lambda: lazy_arrays.stored_content(shards, metadata).tolist(),
        lambda: lazy_arrays.stored_index_arrays(shards, "codecs/"),
        lambda: lazy_arrays.stored_pixels(shards, metadata, 1),
        lambda: lazy_arrays.stored_fidelity(shards, metadata),
        lambda: verify_arrays(shards, metadata),
    ]
    before = [read() for read in reads]
    pack_cache(tmp_path / "t.h5")
    assert not shards.exists()
    assert [read() for read in reads] == before
    assert lazy_arrays.rows_sha256(shards, metadata) == lazy_arrays.rows_sha256(tmp_path / "t.h5", metadata)
    assert num_bytes(shards) == (tmp_path / "t.h5").stat().st_size


@pytest.mark.slow
def test_fault_43_readers_open_without_an_error_while_a_cache_is_packed_again_and_again(tmp_path: Path) -> None:
    CACHE.build(tmp_path / "t.h5", packed=False)
    shutil.copytree(tmp_path / "t.h5.parts", tmp_path / "kept")
    done, errors = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                cache = open_cache(tmp_path / "t.h5")
                assert np.array_equal(cache.read_encoded(np.array([5, 1050]), 1).numpy(), CACHE.rows(1)[[5, 1050]])
            except Exception as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        pack_cache(tmp_path / "t.h5")
        shutil.copytree(tmp_path / "kept", tmp_path / "t.h5.parts")
        (tmp_path / "t.h5").unlink()
    done.set()
    reader.join()
    assert not errors


def test_a_writer_joins_the_extension_of_an_unpacked_cache(tmp_path: Path) -> None:
    wanted = CACHE.replace(num_views=3)
    CACHE.build(tmp_path / "t.h5", packed=False)
    with CacheWriter.extend(tmp_path / "t.h5", 3) as writer:
        other = CacheWriter.join(tmp_path / "t.h5")
        assert other.metadata.num_views == 3
        assert other.missing() == writer.missing()
        for shard in other.missing():
            wanted.seal(other, shard)
        assert writer.missing() == []
        writer.finish()
    wanted.assert_exact(tmp_path / "t.h5")
    assert "extension.json" not in {path.name for path in (tmp_path / "t.h5.parts").iterdir()}
    assert CacheWriter.join(tmp_path / "t.h5").missing() == []


def test_fault_42_what_several_ranks_skip_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "skipped.jsonl").write_text('{"key": "cut by a k')
    ranks = []
    for number in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        ranks.append((number, SkipRecord(tmp_path)))
    for epoch in range(3):
        for (number, record), keys in zip(ranks, ("abc", "bcd") if epoch % 2 else ("cde", "abc"), strict=True):
            monkeypatch.setattr(distributed, "rank", lambda number=number: number)
            for key in keys:
                record(key, "unreadable")
    found = [json.loads(line)["key"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted(found) == list("abcde")
