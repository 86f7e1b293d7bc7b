"""How an import runs: in several processes, resumed, and its classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_caches import Keys, write_ml_dr
from support import cache_contents

from kdkit.cache import open_cache
from kdkit.cache.codecs import create_codec
from kdkit.errors import CacheMismatchError, DatasetError
from kdkit.importers import import_mldr
from kdkit.importers._classes import choose_classes
from kdkit.importers._foreign import torchvision_order

COUNT = 2100  # three shards of a view
KEYS = [f"{'ab'[number % 2]}/{number:05d}.png" for number in range(COUNT)]
NAMES = ["a", "b"]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ml_dr(tmp_path_factory.mktemp("foreign") / "files", COUNT)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdkit.importers._write._SHARD_ROWS", 1000)


def test_every_row_is_that_of_its_file(foreign: Path, tmp_path: Path) -> None:
    report = import_mldr(foreign, Keys(KEYS), tmp_path / "teacher.h5")
    assert (report.num_rows, report.num_views, report.images_read) == (COUNT, 2, COUNT)
    cache, order = open_cache(tmp_path / "teacher.h5"), torchvision_order(KEYS)
    decoded = cache.codecs["logits"].decode(cache.read_encoded(np.arange(COUNT), 1)).exp()
    for index in (0, 999, 1000, 1001, 2099):
        _, views = torch.load(foreign / f"{index}.pth.tar", weights_only=False)
        probs, ids = views[1]["prob"]
        assert (decoded[order[index], ids] - torch.tensor(probs)).abs().max() < 0.04
    assert cache.keys() == KEYS
    cache.verify()


def test_several_processes_write_the_same_cache_as_one(foreign: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        import_mldr(foreign, Keys(KEYS), tmp_path / f"{workers}.h5", num_workers=workers)
    assert cache_contents(tmp_path / "0.h5") == cache_contents(tmp_path / "2.h5")


@pytest.mark.slow
def test_a_stopped_import_resumes_and_equals_an_undisturbed_one(foreign: Path, tmp_path: Path) -> None:
    import_mldr(foreign, Keys(KEYS), tmp_path / "whole.h5")
    broken = shutil.copytree(foreign, tmp_path / "files")
    bad = torchvision_order(KEYS).index(1501)  # in the second range of rows, and not among those that are sampled
    (broken / f"{bad}.pth.tar").write_bytes(b"PK cut")
    with pytest.raises(DatasetError, match=rf"^'{bad}\.pth\.tar' in"):
        import_mldr(broken, Keys(KEYS), tmp_path / "teacher.h5", num_workers=2)
    shutil.copy(foreign / f"{bad}.pth.tar", broken)
    report = import_mldr(broken, Keys(KEYS), tmp_path / "teacher.h5", num_workers=2)
    assert report.images_read == COUNT - 1000
    assert cache_contents(tmp_path / "teacher.h5") == cache_contents(tmp_path / "whole.h5")
    assert import_mldr(broken, Keys(KEYS), tmp_path / "teacher.h5").images_read == 0


def test_another_import_at_the_same_path_is_refused(foreign: Path, tmp_path: Path) -> None:
    small = write_ml_dr(tmp_path / "small", 2)
    import_mldr(small, Keys(["a/0.png", "a/1.png"]), tmp_path / "teacher.h5")
    with pytest.raises(CacheMismatchError, match=r"b/0\.png"):
        import_mldr(small, Keys(["a/0.png", "b/0.png"]), tmp_path / "teacher.h5")
    with pytest.raises(CacheMismatchError, match="codec"):
        import_mldr(small, Keys(["a/0.png", "a/1.png"]), tmp_path / "teacher.h5", codec=create_codec("float16", 10))


def test_wnids_that_are_a_part_of_imagenet_take_their_classes() -> None:
    assert choose_classes(["n01440764", "n01484850", "n15075141"], 1000, sorts_classes=True) == [0, 2, 999]
    assert choose_classes(["n01440764", "n9"], 1000, sorts_classes=True) is None
    assert choose_classes(["a", "b"], 2, sorts_classes=True) is None
    assert choose_classes(None, 1000, sorts_classes=True) is None


def test_classes_that_torchvision_orders_otherwise_are_put_in_the_datas_order() -> None:
    names = ["c1", "c2", "c10"]  # as kdkit lists them; torchvision has c1, c10, c2
    assert choose_classes(names, 3, sorts_classes=True) == [0, 2, 1]
    assert choose_classes(names, 3, sorts_classes=False) is None


def test_a_part_of_imagenet_has_its_own_classes_alone_renormalised(tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "files", 2, num_classes=1000, num_views=1)
    probs = ([0.5, 0.2, 0.1], [2, 7, 999])
    for index in range(2):
        torch.save((index, [{"params": [(0, 0, 8, 8), False], "prob": probs}]), folder / f"{index}.pth.tar")
    names = ["n01440764", "n01484850", "n15075141"]
    source = Keys([f"{name}/0.png" for name in names[:2]], names)
    import_mldr(folder, source, tmp_path / "teacher.h5", codec="float32")
    cache = open_cache(tmp_path / "teacher.h5")
    assert cache.num_classes == 3
    assert cache.names_classes
    rest = 0.2 / 997
    expected = torch.tensor([rest, 0.5, 0.1]) / (rest + 0.6)
    assert torch.allclose(cache.codecs["logits"].decode(cache.read_encoded([0, 1], 0)).exp(), expected, atol=1e-6)


def test_labels_of_other_classes_than_the_folders_are_told_apart(tmp_path: Path) -> None:
    folder = write_ml_dr(tmp_path / "files", 2)
    import_mldr(folder, Keys(["a/0.png", "b/0.png"], NAMES), tmp_path / "teacher.h5")
    assert not open_cache(tmp_path / "teacher.h5").names_classes
