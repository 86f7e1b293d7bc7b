"""What the file system refuses to remove is a typed error of one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Pixels, digits

from kdkit import build_cache, extend_cache
from kdkit.building.config import BuildConfig
from kdkit.data import ReplayedDataset
from kdkit.errors import OutputError, WriteError
from kdkit.recipe import ViewRecipe
from kdkit.runtime import files
from kdkit.runtime.lock import one_writer
from kdkit.teachers import Teacher


def refuse(*given: object, **options: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("remove", [files.remove_file, lambda path: files.remove_folder(path.parent)])
def test_a_file_that_cannot_be_removed_is_named(
    remove: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.touch()
    with monkeypatch.context() as failing:
        failing.setattr(os, "unlink", refuse)
        with pytest.raises(WriteError, match=r"file' could not be removed: Input/output error; remove it by hand$"):
            remove(path)
    remove(path)
    assert not path.exists()


def test_an_output_folder_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(OutputError, match=r"gone' cannot be opened: No such file or directory$"), one_writer(gone):
        pass


def test_what_an_extension_cannot_tidy_away_is_one_line_and_the_repeat_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = [ReplayedDataset(digits(8), ViewRecipe(size=8, num_views=views, hflip=0.0)) for views in (1, 2)]
    path = tmp_path / "t.h5"
    build_cache(Teacher(Pixels()), datasets[0], path, BuildConfig(num_workers=0))
    (tmp_path / "t.h5.more").touch()  # of a stopped addition of images
    with monkeypatch.context() as failing:
        failing.setattr(os, "unlink", lambda place: refuse() if str(place).endswith(".more") else os.remove(place))  # noqa: PTH107
        with pytest.raises(WriteError, match=r"t\.h5\.more' could not be removed"):
            extend_cache(Teacher(Pixels()), datasets[1], path, num_workers=0)
    extend_cache(Teacher(Pixels()), datasets[1], path, num_workers=0)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["t.h5"]
