"""A cache that grows or shrinks by images is always the old one or the new one, wherever the process dies.

`tests/faults/inject.py` kills the processes of these changes.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from crash import Disk, Recorder, write_tree
from grown import build, extend, rows_by_key, seen

from kdkit import open_cache
from kdkit.building.merge import prune_cache

OLD, NEW = 30, 60


@pytest.mark.slow
@pytest.mark.parametrize("change", ["extend", "prune"])
def test_a_crash_or_power_loss_at_any_call_leaves_the_old_cache_or_the_new_one(tmp_path: Path, change: str) -> None:
    before, after = (OLD, NEW) if change == "extend" else (NEW, OLD)
    root = tmp_path / "run"
    root.mkdir()
    recorder = Recorder(root)
    with recorder.recording():
        build(root / "t.h5", range(before))
        begun, old = len(recorder.events), rows_by_key(root / "t.h5")
        run(root / "t.h5", change, after)
    recorder.assert_complete()
    new = rows_by_key(root / "t.h5")
    disk, found = Disk(), set()
    for number, event in enumerate(recorder.events):
        disk.apply(event)
        if number < begun:
            continue
        for tree in (disk.tree(), disk.tree_after_power_loss(random.Random(number))):
            write_tree(tree, tmp_path / "lost")
            path = tmp_path / "lost" / "t.h5"
            open_cache(path).verify()
            rows = rows_by_key(path)
            assert rows in (old, new)
            found.add(len(rows))
            if number % 11 == 0:
                run(path, change, after)
                assert rows_by_key(path) == new
                left = [place.name for place in path.parent.iterdir() if not place.name.startswith(".")]
                assert left == ["t.h5"]
            shutil.rmtree(tmp_path / "lost")
    assert found == {len(old), len(new)}


def run(path: Path, change: str, rows: int) -> None:
    """Extends or prunes the cache to so many images."""
    if change == "extend":
        extend(path, range(rows))
    else:
        prune_cache(path, seen(range(rows)))
