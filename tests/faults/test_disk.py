"""Faults 5, 6 and 21: a full disk in each phase, a file system that refuses, and places that cannot be written."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import Pixels, digits_dataset, tiny_model
from synthetic import Synthetic

from kdkit import CacheWriter, ClassificationTask, build_cache, extend_cache, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache.export import export_cache
from kdkit.cache.format.metadata import Shard
from kdkit.cache.shards.folder import shard_folder
from kdkit.cli import main
from kdkit.errors import CacheDiskFullError, CacheError, DiskFullError, OutputError, WriteError
from kdkit.recipe import ViewRecipe
from kdkit.runtime import files
from kdkit.runtime.output import prepare_output
from kdkit.teachers import Teacher
from kdkit.training.checkpoint import BEST, LAST, PREVIOUS, Checkpoints
from kdkit.training.checkpoint_file import load_checkpoint
from kdkit.training.logger import RunLogger
from kdkit.training.state import Position, RunState

CACHE = Synthetic(num_rows=1100, num_views=2)
EXACT = BuildConfig(codec="float32", num_workers=0)
CALLS = ("open", "posix_fallocate", "pwrite", "fsync", "replace", "mkdir")


class Failing:
    """Lets the n-th call of one of the system's calls below `root` fail, and counts all of them."""

    def __init__(self, patch: pytest.MonkeyPatch, call: str, number: int, code: int) -> None:
        self.seen = 0
        real: Callable[..., Any] = getattr(os, call)

        def stand_in(*arguments: Any, **options: Any) -> Any:
            writes = call != "open" or bool(arguments[1] & os.O_CREAT)
            self.seen += writes
            if writes and self.seen == number:
                raise OSError(code, os.strerror(code))
            return real(*arguments, **options)

        patch.setattr(os, call, stand_in)


def _files(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.is_file())


def _assert_only_committed(root: Path) -> None:
    """No temporary file is left, a packed file is exact, and each shard that an entry names is what was sealed."""
    assert [path.name for path in _files(root) if path.name.endswith(".tmp")] == []
    if (root / "t.h5").is_file():
        CACHE.assert_exact(root / "t.h5")
    elif (shard_folder(root / "t.h5") / "index.h5").is_file():
        writer = CacheWriter.join(root / "t.h5")
        for entry in shard_folder(root / "t.h5").glob("*.json"):
            view, start = int(entry.stem[1:5]), int(entry.stem[7:])
            writer.read(Shard(view, start, min(start + 1000, CACHE.num_rows)))


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_fault_05_a_full_disk_at_any_call_is_reported_leaves_no_temporary_file_and_the_build_resumes(
    tmp_path: Path, call: str
) -> None:
    failed = 0
    while True:
        root = tmp_path / str(failed)
        root.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, call, failed + 1, errno.ENOSPC)
            try:
                CACHE.build(root / "t.h5")
            except CacheDiskFullError as error:
                message = str(error)
            else:
                break
        assert "no room for" in message
        assert "free space" in message
        assert failing.seen == failed + 1
        _assert_only_committed(root)
        CACHE.build(root / "t.h5")
        CACHE.assert_exact(root / "t.h5")
        failed += 1
        shutil.rmtree(root)
    assert failed >= {"mkdir": 1, "replace": 10}.get(call, 10)


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EFBIG])
def test_fault_05_a_quota_and_a_file_size_limit_count_as_a_full_disk(tmp_path: Path, code: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, "pwrite", 3, code)
        with pytest.raises(CacheDiskFullError):
            CACHE.build(tmp_path / "t.h5")
    _assert_only_committed(tmp_path)


COMMAND = """
import resource, sys
sys.path[:0] = {path!r}
from pathlib import Path
import kdkit.cli.cache_build
from kdkit.cli import main
from synthetic import Synthetic
def run(arguments):  # the writing alone, under the command line's own handling of errors
    limit, target = arguments
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    Synthetic(num_rows=1100, num_views=2).build(Path(target))
kdkit.cli.cache_build.run = run
for phase in sys.argv[1:]:
    print(main(["cache", "build", *phase.split("=", 1)]))
"""


@pytest.mark.slow
def test_fault_05_a_file_size_limit_in_each_phase_ends_the_command_with_1_and_no_signal(tmp_path: Path) -> None:
    whole = CACHE.build(tmp_path / "whole.h5").stat().st_size
    phases = {"index": (1000, 0), "shard": (24_000, 0), "pack": (whole - 1, 4)}
    for phase in phases:
        (tmp_path / phase).mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-c", COMMAND.format(path=[str(Path(__file__).parents[1]), *sys.path])),
            *(f"{limit}={tmp_path / phase / 't.h5'}" for phase, (limit, _) in phases.items()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "1\n1\n1\n"), done
    assert [line[:28] for line in done.stderr.splitlines()] == ["kdkit: error: no room for '/"] * 3
    for phase, (_, sealed) in phases.items():
        root = tmp_path / phase
        _assert_only_committed(root)
        assert len(list(root.rglob("*.json"))) == sealed
        CACHE.build(root / "t.h5")
        CACHE.assert_exact(root / "t.h5")


NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
Test = Callable[..., None]


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def mounts(test: Test) -> Test:
    """Runs a test where a file system can be mounted: here, or else in a child process in a user namespace."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        if _succeeds("unshare", "--mount", "true"):
            test(**arguments)
            return
        if not _succeeds(*NAMESPACE, "true"):
            pytest.skip("needs the right to mount a tmpfs, or user namespaces; other tests of this fault need neither")
        name = os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)")
        command = [*NAMESPACE, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
        child = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        assert child.returncode == 0, child.stdout
        assert "1 passed" in child.stdout

    return run


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """An empty file system of `size` bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@mounts
def test_fault_05_a_really_full_disk_is_met_in_each_phase_and_survived(tmp_path: Path) -> None:
    sealed = set()
    for size in range(8 << 10, 264 << 10, 16 << 10):
        with small_disk(tmp_path / f"disk-{size}", size) as root:
            try:
                CACHE.build(root / "t.h5")
                sealed.add("all")
            except CacheDiskFullError:
                sealed.add(len(list(root.rglob("*.json"))))
            _assert_only_committed(root)
    assert {0, 4, "all"} <= sealed  # the index or first shard, the pack, and nothing
    assert len(sealed) > 3


def _assert_reads_work_and_writes_are_refused(root: Path) -> None:
    open_cache(root / "t.h5", digits_dataset(8)).verify()
    with pytest.raises(CacheError, match="no cache can be written"):
        build_cache(Teacher(Pixels()), digits_dataset(8), root / "u.h5", EXACT)
    with pytest.raises(OutputError, match="cannot be written"):
        prepare_output(root / "run", (), overwrite=False)


@mounts
def test_fault_21_a_cache_is_read_from_a_read_only_disk_and_none_is_begun_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 << 20) as root:
        build_cache(Teacher(Pixels()), digits_dataset(8), root / "t.h5", EXACT)
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        _assert_reads_work_and_writes_are_refused(root)


@contextlib.contextmanager
def permissions_hold() -> Iterator[None]:
    """Permission bits bind root as well: this thread gives up CAP_DAC_OVERRIDE. Nothing changes for other users."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # _LINUX_CAPABILITY_VERSION_3
    assert libc.capget(header, before) == 0
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~(1 << 1)  # the effective capabilities 0 to 31; CAP_DAC_OVERRIDE is 1
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def test_fault_21_a_cache_is_read_from_a_folder_without_write_permission_and_none_is_begun_there(
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    build_cache(Teacher(Pixels()), digits_dataset(8), root / "t.h5", EXACT)
    (root / "t.h5").chmod(0o444)
    root.chmod(0o555)
    try:
        with permissions_hold():
            with pytest.raises(PermissionError):
                (root / "probe").touch()
            _assert_reads_work_and_writes_are_refused(root)
    finally:
        root.chmod(0o755)


@pytest.mark.parametrize(
    "call",
    [pytest.param("fsync", marks=pytest.mark.slow), "replace", pytest.param("pwrite", marks=pytest.mark.slow), "mkdir"],
)
def test_fault_06_an_error_of_the_file_system_at_a_call_commits_nothing_more_and_is_clear(
    tmp_path: Path, call: str
) -> None:
    failed = 0
    while True:
        root = tmp_path / str(failed)
        root.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            Failing(patch, call, failed + 1, errno.EIO)
            try:
                CACHE.build(root / "t.h5")
            except CacheError as error:
                message = str(error)
            else:
                break
        assert "t.h5" in message
        assert os.strerror(errno.EIO) in message
        assert "\n" not in message
        _assert_only_committed(root)
        CACHE.build(root / "t.h5")
        CACHE.assert_exact(root / "t.h5")
        failed += {"pwrite": 4, "fsync": 2}.get(call, 1)  # benchmarks/kills.py lets each call fail
        shutil.rmtree(root)
    assert failed >= {"mkdir": 1}.get(call, 10)


def test_fault_06_a_file_system_that_becomes_read_only_while_a_shard_is_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CACHE.start(tmp_path / "t.h5")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for call in ("pwrite", "unlink"):
        monkeypatch.setattr(os, call, refuse)
    with pytest.raises(CacheError, match=r"v0000-r0000000000\.h5' could not be written: Read-only file system"):
        CACHE.seal(writer, Shard(0, 0, 1000))
    monkeypatch.undo()
    writer.close()
    CACHE.build(tmp_path / "t.h5")
    CACHE.assert_exact(tmp_path / "t.h5")


@pytest.mark.parametrize("name", ["rows.npz", "rows.safetensors"])
def test_fault_05_an_export_that_does_not_fit_is_reported_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    CACHE.build(tmp_path / "t.h5")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(WriteError, match=rf"(no room for )?'.*/{name}'( could not be written)?"):
            export_cache(tmp_path / "t.h5", tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_fault_06_a_shard_whose_fsync_or_rename_failed_is_not_committed(tmp_path: Path, call: str) -> None:
    writer = CACHE.start(tmp_path / "t.h5")
    shard = writer.missing()[0]
    calls = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, call, calls + 1, errno.EIO)
            try:
                CACHE.seal(writer, shard)
            except CacheError:
                assert shard not in writer.sealed()
            else:
                break
        assert failing.seen >= calls + 1
        calls += 1
    assert calls == {"fsync": 6, "replace": 2}[call]
    assert writer.sealed() == [shard]


@pytest.mark.slow
@pytest.mark.parametrize("pack", [True, False])
def test_fault_06_an_extension_whose_folder_cannot_be_fsynced_keeps_the_old_views(tmp_path: Path, pack: bool) -> None:
    config = BuildConfig(codec="float32", num_workers=0, batch_size=10, pack=pack)
    datasets = [digits_dataset(20, ViewRecipe(size=8, num_views=views)) for views in (1, 2)]
    build_cache(Teacher(Pixels()), datasets[0], tmp_path / "old" / "t.h5", config)
    failed = 0
    while True:
        shutil.copytree(tmp_path / "old", root := tmp_path / str(failed))
        with pytest.MonkeyPatch.context() as patch:
            Failing(patch, "fsync", failed + 1, errno.EIO)
            try:
                extend_cache(Teacher(Pixels()), datasets[1], root / "t.h5", num_workers=0)
            except CacheError:
                failed += 1
            else:
                break
        open_cache(root / "t.h5", datasets[0]).verify()
        extend_cache(Teacher(Pixels()), datasets[1], root / "t.h5", num_workers=0)
        open_cache(root / "t.h5", datasets[1]).verify()
    assert failed > 5


class Saving:
    """A run that has come so far, and its checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = Checkpoints(folder, resume=True)
        task = ClassificationTask(tiny_model("test_vit"))
        optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
        self.state = RunState(task, optimizer, None, torch.amp.GradScaler(enabled=False), torch.device("cpu"))

    def save(self, update: int) -> None:
        self.state.position = Position(0, update, update)
        self.checkpoints.save(self.state, is_best=True)


def saved_updates(folder: Path) -> list[int]:
    """Updates of the checkpoints before the newest and of the newest."""
    return [load_checkpoint(folder / name)["kdkit"]["position"]["update"] for name in (PREVIOUS, LAST)]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_fault_06_a_checkpoint_that_fails_at_any_call_leaves_one_to_resume_from(tmp_path: Path, call: str) -> None:
    saving, failed = Saving(tmp_path), 0
    saving.save(1)
    saving.save(2)
    while True:
        with pytest.MonkeyPatch.context() as patch:
            Failing(patch, call, failed + 1, errno.EIO)
            try:
                saving.save(3 + failed)
            except WriteError:
                failed += 1
            else:
                break
        assert Saving(tmp_path).checkpoints.restore(saving.state)
        assert saving.state.position.update in (
            2,
            1 + failed,
            2 + failed,
        )  # the one before, or the one that was written
        assert saved_updates(tmp_path)[0] >= 1
    assert failed == {"fsync": 6, "replace": 3}[call]
    assert saved_updates(tmp_path)[1] == 3 + failed
    (tmp_path / LAST).unlink()
    prepare_output(tmp_path, [LAST, PREVIOUS, BEST], overwrite=False, checkpoints=(LAST, PREVIOUS))
    assert Saving(tmp_path).checkpoints.restore(saving.state)


def test_fault_45_a_checkpoint_on_a_full_disk_is_told_as_such_and_the_last_good_one_stays(tmp_path: Path) -> None:
    saving = Saving(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_below(limit: int, update: int) -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(DiskFullError) as raised:
                saving.save(update)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not isinstance(raised.value, CacheError)
        return str(raised.value)

    full = f"the disk is full: no room for a checkpoint in '{tmp_path}'; "
    assert save_below(4096, 1) == f"{full}there is none yet: free space and resume"
    saving.save(1)
    saving.save(2)
    size = (tmp_path / LAST).stat().st_size
    for limit in (0, 1, 4096, size // 2, size - 100, size - 1):
        assert save_below(limit, 3) == f"{full}the last good checkpoint, last.pth.tar, stays: free space and resume"
        assert saved_updates(tmp_path) == [1, 2]
        assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, BEST, PREVIOUS]
    saving.save(3)
    assert saved_updates(tmp_path) == [2, 3]


@mounts
def test_fault_45_a_checkpoint_on_a_really_full_disk_leaves_the_last_good_one(tmp_path: Path) -> None:
    saving = Saving(tmp_path)
    with small_disk(tmp_path / "disk", 5 << 20) as root:
        saving.checkpoints = Checkpoints(root, resume=True)

        def fill() -> None:
            for update in range(1, 10):
                saving.save(update)
                (root / f"other-{update}").write_bytes(bytes(1 << 20))

        with pytest.raises(DiskFullError, match=r"the disk is full.*last good checkpoint, last.pth.tar, stays"):
            fill()
        assert saving.checkpoints.restore(saving.state)


def test_checkpoints_of_the_same_weights_count_as_one(tmp_path: Path) -> None:
    saving = Saving(tmp_path)
    for update in (4, 5, 5, 5):  # the last update of an epoch, its end, and a signal
        saving.save(update)
    assert saved_updates(tmp_path) == [4, 5]


RECORDS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "steps": ("metrics.jsonl", lambda folder: RunLogger(folder).log_steps([{"step": 1, "loss": 2.0}])),
    "an epoch": ("metrics.jsonl", lambda folder: RunLogger(folder).log_epoch({"epoch": 1})),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that has no room")
@pytest.mark.parametrize("name", RECORDS)
def test_fault_05_a_full_disk_while_a_run_records_is_one_typed_line(tmp_path: Path, name: str) -> None:
    file, write = RECORDS[name]
    (tmp_path / file).symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=f"no room for .*{file}"):
        write(tmp_path)


@pytest.mark.parametrize("limit", [1000, 500_000])
def test_fault_05_an_export_for_which_there_is_no_room_is_one_line_and_leaves_nothing(
    tmp_path: Path, limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "weights.pth")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        command = ["export", "test_resnet", "--checkpoint", str(tmp_path / "weights.pth"), "-o", str(tmp_path / "out")]
        assert main(command) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match("kdkit: error: no room for '.*out/model.safetensors': .*; free space and run again", line)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_removed_while_it_is_written_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="its folder was removed, or moved, in the meantime"):
        files.write_text(tmp_path / "gone" / "it", "")
