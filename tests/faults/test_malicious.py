"""Faults 26, 27 and 28: files made to harm, a plugin that waits to be loaded, a pickle.

Python's audit hook sees no open() of the HDF5 library. So the bait is a named pipe: whoever opens it waits for ever,
and the test's time limit ends it. Where strace works, it lists every file that was really opened.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import malice
import pytest
import torch
from support import tiny_model

from kdkit import create_teacher, open_cache
from kdkit.errors import CacheCorruptError, CacheError, CheckpointError

OPEN_ALL = """
import json, os, resource, sys, time
from kdkit import open_cache
root, opened, results = sys.argv[1], [], {}
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (512 << 20),) * 2)  # nothing large is made for a file of kilobytes
for path in sys.stdin.read().splitlines():
    opened.clear()
    begun = time.monotonic()
    os.path.exists(path + ".begin")  # a mark in the trace
    try:
        cache = open_cache(path)
        cache.keys()
        cache.verify()
        results[path] = ["OPENED", "", []]
    except Exception as error:
        below = [name for name in opened if name.startswith(root)]
        results[path] = [type(error).__mro__[0].__name__, str(error), below]
    assert time.monotonic() - begun < 10, path
print(json.dumps(results))
"""


def _strace(log: Path) -> list[str]:
    """The command that lists opened files, or nothing where the system has none or forbids it."""
    if shutil.which("strace") is None or subprocess.run(["strace", "-o", os.devnull, "true"]).returncode:
        return []
    return ["strace", "-f", "-y", "-o", str(log), "-e", "trace=open,openat,openat2,creat"]


def _open_all(paths: list[Path], root: Path) -> tuple[dict[str, tuple[str, str, list[str]]], set[str] | None]:
    """The result of opening each path, and the files below the root that were opened; None without a trace."""
    trace = _strace(root / "trace")
    done = subprocess.run(
        [*trace, sys.executable, "-c", OPEN_ALL, str(root)],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-4000:])
    if not trace:
        return json.loads(done.stdout), None
    lines = [line for line in (root / "trace").read_text().splitlines() if "ENOENT" not in line]
    return json.loads(done.stdout), {
        match for line in lines for match in re.findall(rf'"({re.escape(str(root))}[^"]*)"', line)
    }


@pytest.fixture
def bait(tmp_path: Path) -> Path:
    """A file that must not be opened; opening it hangs."""
    os.mkfifo(tmp_path / "bait.h5")
    return tmp_path / "bait.h5"


@pytest.mark.slow
def test_fault_26_every_malicious_packed_file_is_refused_and_no_other_file_is_opened(
    tmp_path: Path, bait: Path
) -> None:
    made = malice.make_packed(tmp_path, bait)
    results, traced = _open_all([tmp_path / "good.h5", *made.values()], tmp_path)
    assert results.pop(str(tmp_path / "good.h5"))[0] == "OPENED"
    for name, path in made.items():
        kind, message, opened = results[str(path)]
        assert kind == "CacheCorruptError", (name, kind, message)
        assert path.name in message, (name, message)
        assert "\n" not in message
        assert len(message) < 700
        assert set(opened) == {str(path)}, (name, opened)
    if traced is not None:
        assert traced == {str(tmp_path / "good.h5"), *map(str, made.values())}


@pytest.mark.slow
def test_fault_26_every_malicious_parts_folder_is_refused_and_no_other_file_is_opened(
    tmp_path: Path, bait: Path
) -> None:
    made = malice.make_parts(tmp_path, bait)
    results, traced = _open_all(list(made.values()), tmp_path)
    for name, folder in made.items():
        kind, message, opened = results[str(folder)]
        assert kind in ("CacheCorruptError", "CacheIncompleteError", "CacheNotFoundError"), (name, kind, message)
        assert folder.name in message, (name, message)
        assert all(Path(path).parent == folder for path in opened), (name, opened)
    if traced is not None:
        assert {Path(path).parent for path in traced} <= set(made.values())


CONTROL = """
import sys, h5py
h5py.File(sys.argv[1])[sys.argv[2]][()]
"""


@pytest.mark.parametrize("change", ["external storage", "external link to the rows", "virtual dataset"])
def test_fault_26_the_bait_does_catch_a_reader_that_follows(tmp_path: Path, bait: Path, change: str) -> None:
    made = malice.make_packed(tmp_path, bait, change)
    reader = subprocess.Popen([sys.executable, "-c", CONTROL, str(made[change]), malice.ROWS])
    try:
        deadline = time.monotonic() + 60
        while not _is_being_read(bait):
            assert reader.poll() is None, "the file was read, or refused, without a look at the bait"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        reader.kill()
        reader.wait()


def _is_being_read(pipe: Path) -> bool:
    """Whether a process has opened it for reading: only then it can be opened for writing without waiting."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    return True


def test_fault_26_a_pipe_or_folder_in_place_of_a_cache_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "folder.h5").mkdir()
    for name in ("pipe.h5", "folder.h5"):
        with pytest.raises(CacheError, match=name):
            open_cache(tmp_path / name)


PLUGIN = r"""
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void loaded(void) { fclose(fopen(getenv("KDKIT_TEST_MARK"), "w")); }
static size_t filter(unsigned a, size_t b, const unsigned *c, size_t n, size_t *size, void **buffer) { return n; }
typedef struct { int version, id; unsigned e, d; const char *name; void *can, *set; void *filter; } Class;
static Class class = {1, 4242, 1, 1, "plugin", 0, 0, (void *)filter};
int H5PLget_plugin_type(void) { return 0; }
const void *H5PLget_plugin_info(void) { return &class; }
"""

READERS = {
    "h5py": "import sys, h5py; h5py.File(sys.argv[1])['views/0000/logits'][()]",
    "library": "import sys; from kdkit import open_cache\n"
    "try: open_cache(sys.argv[1]).verify()\nexcept OSError: pass\nelse: raise SystemExit('opened')",
    "command": "import sys; from kdkit.cli import main\n"
    "raise SystemExit(main(['cache', 'verify', '--cache', sys.argv[1]]) - 1)",
    "h5py under the command": "import sys; from kdkit.cli import main; main(['--version']); import h5py\n"
    "try: h5py.File(sys.argv[1])['views/0000/logits'][()]\nexcept OSError: pass\nelse: raise SystemExit('read')",
}


@pytest.mark.slow
def test_fault_27_a_plugin_in_the_plugin_path_is_never_loaded(tmp_path: Path, bait: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler to make a plugin; test_fault_26 shows without one that filters are refused")
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugin.c").write_text(PLUGIN)
    library = tmp_path / "plugins" / "libplugin.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(library), str(tmp_path / "plugin.c")], check=True)
    path = malice.make_packed(tmp_path, bait, "unknown filter")["unknown filter"]
    loaded = {}
    for name, code in READERS.items():
        mark = tmp_path / f"loaded by {name}"
        environment = {**os.environ, "HDF5_PLUGIN_PATH": str(tmp_path / "plugins"), "KDKIT_TEST_MARK": str(mark)}
        environment.pop("HDF5_PLUGIN_PRELOAD", None)  # a command run in this process by an earlier test has set it
        done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (name, done.stderr)
        loaded[name] = mark.exists()
    assert loaded.pop("h5py")  # so the plugin is one, and would be found
    assert not any(loaded.values()), loaded


class _Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [False, True])
def test_fault_28_a_pickle_where_a_checkpoint_or_a_cache_is_expected_is_refused_unrun(
    tmp_path: Path, zipped: bool
) -> None:
    mark, path = tmp_path / "harmed", tmp_path / "t.h5"
    if zipped:
        torch.save({"state_dict": _Harm(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(_Harm(mark), protocol=2))
    with pytest.raises(CacheCorruptError, match=r"t\.h5' is not an HDF5 file"):
        open_cache(path)
    for name in ("weights.pth", "weights.safetensors"):
        shutil.copy(path, tmp_path / name)
        with pytest.raises(CheckpointError, match="weights"):
            create_teacher(tiny_model(), checkpoint=tmp_path / name)
    assert not mark.exists()
    pickle.loads(pickle.dumps(_Harm(mark)))
    assert mark.exists()  # so it would have harmed


def test_fault_26_the_opener_leaves_no_descriptor_behind_when_it_refuses(tmp_path: Path, bait: Path) -> None:
    names = ("chunked rows", "soft link to the rows", "oversized attribute", "view missing")
    made = malice.make_packed(tmp_path, bait, *names)
    with pytest.raises(CacheError):
        open_cache(made["chunked rows"])
    descriptors = Path("/proc/self/fd")
    before = sum(1 for _ in descriptors.iterdir()) if descriptors.is_dir() else 0
    for name in names:
        with pytest.raises(CacheError):
            open_cache(made[name])
    if before:
        assert sum(1 for _ in descriptors.iterdir()) <= before
    with h5py.File(made["chunked rows"], "r+"):
        """Nobody holds it open."""
