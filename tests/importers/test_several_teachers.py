"""Several teachers on recorded views: a second cache on an imported one's views, mixes, and a part of the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign_caches import CLASSES, TRAIN, import_sample, photographs
from support import loader_for, tiny_model

from kdkit import build_cache, create_teacher, open_cache, open_dataset
from kdkit.building.config import BuildConfig
from kdkit.building.like import open_like
from kdkit.data import ReplayedDataset
from kdkit.data.sources.selection import SelectedSource
from kdkit.errors import CacheMismatchError
from kdkit.teachers import Teacher

EXACT = BuildConfig(codec="float32", num_workers=0)
MIXED = "ml-dr/randaug_mixing"
BACKWARDS = [5, 4, 3, 2, 1, 0]


def imported(folder: Path) -> Path:
    import_sample(MIXED, folder / "a.h5")
    return folder / "a.h5"


def teacher() -> Teacher:
    return create_teacher(tiny_model(num_classes=CLASSES))


def unlabelled(cache: Path | list[Path]) -> ReplayedDataset:
    """The photographs; the class folders are not the labels' classes."""
    return open_dataset(TRAIN, cache=cache, labels="none")


@pytest.mark.parametrize(
    "opened",
    [
        lambda path: open_like(TRAIN, path, labels="none"),
        lambda path: unlabelled(path).selecting(BACKWARDS),
    ],
    ids=["like", "backwards"],
)
def test_a_cache_on_recorded_views_holds_their_records_and_is_used_alone(
    opened: Callable[[Path], ReplayedDataset], tmp_path: Path
) -> None:
    first = unlabelled(imported(tmp_path))
    assert build_cache(teacher(), opened(tmp_path / "a.h5"), tmp_path / "b.h5", EXACT).images_built == 36
    assert build_cache(teacher(), opened(tmp_path / "a.h5"), tmp_path / "b.h5", EXACT).images_built == 0
    second = unlabelled(tmp_path / "b.h5")
    for row in range(6):
        for view in (1, 4):
            assert torch.equal(second[row, view].image, first[row, view].image)
    batch = next(iter(loader_for(second, tiny_model(), batch_size=6)))
    cached = open_cache(tmp_path / "b.h5", second)(batch).logits
    assert cached is not None
    live = teacher()(batch).logits
    assert live is not None
    torch.testing.assert_close(cached, live.log_softmax(dim=1), rtol=0, atol=1e-5)


def test_an_import_is_mixed_with_another_cache_of_its_views_and_with_a_live_teacher(tmp_path: Path) -> None:
    path = imported(tmp_path)
    build_cache(teacher(), open_like(TRAIN, path, labels="none"), tmp_path / "b.h5", EXACT)
    dataset = unlabelled([path, tmp_path / "b.h5"])
    batch = next(iter(loader_for(dataset, tiny_model(), batch_size=6)))
    outputs = [open_cache(one, dataset)(batch).logits for one in (path, tmp_path / "b.h5")]
    expected = torch.stack([logits.double().exp() for logits in outputs if logits is not None]).mean(dim=0).log()
    for mix in (open_cache([path, tmp_path / "b.h5"], dataset), open_cache([path], dataset, live=teacher())):
        logits = mix(batch).logits
        assert logits is not None
        torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-4)


def test_caches_of_other_records_are_not_mixed(tmp_path: Path) -> None:
    for name in ("hard", "marginal_renorm_fp16"):
        import_sample(f"fkd/{name}", tmp_path / f"{name}.h5")
    with pytest.raises(
        CacheMismatchError, match=r"fp16\.h5' has recorded another view 0 of 'n01/chelsea_A\.JPEG' than"
    ):
        unlabelled([tmp_path / "hard.h5", tmp_path / "marginal_renorm_fp16.h5"])
    path = imported(tmp_path)
    build_cache(teacher(), unlabelled(path).selecting(BACKWARDS), tmp_path / "b.h5", EXACT)
    with pytest.raises(CacheMismatchError, match="by its own order of rows, and these differ"):
        unlabelled([path, tmp_path / "b.h5"])


def test_a_part_of_the_folders_learns_from_labels_of_other_classes_unless_views_are_mixed(tmp_path: Path) -> None:
    few = SelectedSource(photographs(), [0, 1, 2])
    few.class_names = ["n01", "n02"]
    import_sample("ml-dr/randaug", tmp_path / "plain.h5")
    import_sample(MIXED, tmp_path / "mixed.h5")
    assert len(open_dataset(few, cache=tmp_path / "plain.h5")) == 3
    with pytest.raises(CacheMismatchError, match=r"3 of its 6 images are not in the dataset .* open all of them"):
        open_dataset(few, cache=tmp_path / "mixed.h5")
