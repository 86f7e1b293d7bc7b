"""A cache from build to reading: exact rows, resume, refusals. Files are read back with plain h5py."""

from __future__ import annotations

import copy
import dataclasses
import json
import multiprocessing
import pickle
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
from support import RECIPE, digits, digits_dataset, loader_for, tiny_model

from kdkit import LogitDistillationTask, build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.cache.format.constants import hashed_rows
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.data.sources.selection import SelectedSource
from kdkit.errors import (
    CacheCorruptError,
    CacheError,
    CacheMismatchError,
    CacheNotFoundError,
    ClassMismatchError,
    ConfigError,
    NonFiniteOutputError,
)
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher
from kdkit.types import Batch

EXACT = BuildConfig(codec="float32", num_workers=0, batch_size=64, shard_rows=1000)


def teacher(seed: int = 0) -> Teacher:
    return create_teacher(tiny_model(seed=seed))


def plain_logits(dataset: ReplayedDataset, view: int, rows: Sequence[int] | None = None) -> np.ndarray:
    """The teacher's logits of one view, of all rows or of these, without any of kdkit's build or cache."""
    model = tiny_model().eval()
    images = torch.stack([dataset[row, view].image for row in (range(len(dataset)) if rows is None else rows)])
    with torch.no_grad():
        return model((images.float() / 255 - 0.5) / 0.5).numpy()


@pytest.mark.parametrize("pack", [True, False])
def test_rows_are_the_teachers_logits_as_plain_h5py_reads_them(tmp_path: Path, pack: bool) -> None:
    dataset = digits_dataset(150)
    path = tmp_path / "t.h5"
    report = build_cache(teacher(), dataset, path, dataclasses.replace(EXACT, pack=pack))
    assert report.images_built == 300
    file_path = path if pack else tmp_path / "t.h5.parts" / "v0001-r0000000000.h5"
    with h5py.File(file_path) as file:
        stored = file["views/0001/logits"][()]
        assert stored.dtype == np.uint8
        assert stored.shape == (150, 40)
        assert file["views/0001/logits"].compression is None
        assert file["views/0001/logits_crc32"][0] == zlib.crc32(stored.tobytes())
        assert file["views/0001/pixel_crc32"].shape == (150,)
    np.testing.assert_allclose(stored.view("<f4"), plain_logits(dataset, 1), rtol=1e-4, atol=1e-5)
    rows = np.array([149, 0, 7, 7, 148])
    assert np.array_equal(open_cache(path).read_encoded(rows, 1).numpy(), stored[rows])


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
def test_a_cache_has_the_outputs_of_the_live_teacher(tmp_path: Path, codec: str) -> None:
    dataset = digits_dataset(120)
    build_cache(teacher(), dataset, tmp_path / "t.h5", dataclasses.replace(EXACT, codec=codec))
    cache = open_cache(tmp_path / "t.h5", dataset)
    row = torch.tensor([5, 119, 5, 0])
    logits = cache(Batch(torch.empty(4, 0), torch.zeros(4), row, 0)).logits
    expected = torch.from_numpy(plain_logits(dataset, 0)[row.numpy()]).log_softmax(1)
    tolerance = {"float32": 1e-5, "float16": 5e-3, "int8": 5e-2}[codec]
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(4))


@pytest.mark.parametrize("pack", [True, False])
def test_rows_of_several_views_are_read_as_each_view_is(tmp_path: Path, pack: bool) -> None:
    dataset = digits_dataset(1100, ViewRecipe(size=8, num_views=3, hflip=0.0))
    built = build_cache(teacher(), dataset, tmp_path / "t.h5", dataclasses.replace(EXACT, batch_size=550, pack=pack))
    cache = open_cache(built.path, dataset)
    draw = np.random.default_rng(0)
    rows, views = draw.integers(0, 1100, 300), draw.integers(0, 3, 300)
    expected = torch.stack([cache.read_encoded(rows[i : i + 1], int(views[i]))[0] for i in range(300)])
    assert torch.equal(cache.read_encoded(rows, views), expected)
    assert torch.equal(cache.read_encoded(torch.from_numpy(rows), torch.from_numpy(views)), expected)
    assert torch.equal(cache.read_encoded(rows, np.full(300, 2)), cache.read_encoded(rows, 2))
    batch = Batch(torch.empty(300, 0), torch.zeros(300), torch.from_numpy(rows), torch.from_numpy(views))
    logits = cache(batch).logits
    assert logits is not None
    assert torch.equal(logits, cache.codecs["logits"].decode(expected))
    assert len(cache.read_encoded(rows[:0], views[:0])) == 0
    for bad in (-1, 3):
        with pytest.raises(CacheError, match=f"has views 0 to 2, got view {bad}"):
            cache.read_encoded(rows[:2], np.array([0, bad]))


@pytest.mark.parametrize("loss", ["kl", "soft_ce", "dkd"])
def test_a_sparse_topk_cache_teaches_as_the_dense_one_does(tmp_path: Path, loss: str) -> None:
    dataset = digits_dataset(40)
    config = dataclasses.replace(EXACT, codec="topk", codec_options={"k": 3})
    build_cache(teacher(), dataset, tmp_path / "t.h5", config)
    batch = next(iter(loader_for(dataset, tiny_model("test_efficientnet"))))
    results = []
    for sparse in (False, True):
        output = open_cache(tmp_path / "t.h5", dataset, sparse=sparse)(batch)
        assert (output.logits is None) == sparse
        task = LogitDistillationTask(tiny_model("test_efficientnet"), distill_loss=loss, temperature=2.0)
        result = task(batch.input, batch.target, output)
        result["loss"].backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in task.trainable_module.parameters()])
        results.append((result["kd_loss"].detach(), gradient))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-5)


def test_only_topk_has_sparse_outputs(tmp_path: Path) -> None:
    build_cache(teacher(), digits_dataset(8), tmp_path / "t.h5", EXACT)
    with pytest.raises(ConfigError, match="'float32': only topk"):
        open_cache(tmp_path / "t.h5", sparse=True)


@pytest.mark.slow
def test_many_shards_read_as_one(tmp_path: Path) -> None:
    recipe = ViewRecipe(size=16, num_views=2, hflip=0.0)
    source = digits(1700)
    dataset = ReplayedDataset(ArraySource(source.images, source.targets), recipe)
    reports = [
        build_cache(teacher(), dataset, tmp_path / name, dataclasses.replace(EXACT, pack=pack, shard_rows=shard_rows))
        for name, pack, shard_rows in (("a.h5", True, 1000), ("b.h5", False, 1000), ("c.h5", True, 5000))
    ]
    caches = [open_cache(report.path) for report in reports]
    rows = np.random.default_rng(0).integers(0, 1700, 500)
    for view in (0, 1):
        first, *others = (cache.read_encoded(rows, view) for cache in caches)
        assert all(torch.equal(first, other) for other in others)
    assert len(list((tmp_path / "b.h5.parts").glob("v*.h5"))) == 4
    assert not (tmp_path / "a.h5.parts").exists()
    for cache in caches:
        cache.verify()


def test_equal_builds_differ_in_their_build_record_alone(tmp_path: Path) -> None:
    contents = []
    for name in ("a.h5", "b.h5"):
        build_cache(teacher(), digits_dataset(60), tmp_path / name, EXACT)
        with h5py.File(tmp_path / name, "r+") as file:
            assert json.loads(file.attrs["build"])["images"] == 120
            del file.attrs["build"]
            contents.append({"attributes": dict(file.attrs)})
            file.visititems(
                lambda path, item: (
                    contents[-1].update({path: item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
                )
            )
    assert contents[0] == contents[1]


@pytest.mark.parametrize("samples", [1, 999, 1000, 1001])
def test_row_counts_around_a_block_are_exact(tmp_path: Path, samples: int) -> None:
    source = digits(min(samples, 1001))
    dataset = ReplayedDataset(source, ViewRecipe(size=8, hflip=0.0))
    build_cache(teacher(), dataset, tmp_path / "t.h5", EXACT)
    cache = open_cache(tmp_path / "t.h5", dataset)
    assert cache.num_rows == samples
    last = cache.read_encoded(np.array([samples - 1]), 0).numpy().view("<f4")
    np.testing.assert_allclose(last[0], plain_logits(dataset, 0, [samples - 1])[0], rtol=1e-4, atol=1e-5)
    assert cache.read_encoded(np.array([], dtype=np.int64), 0).shape == (0, 40)


def test_a_finished_cache_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    build_cache(teacher(), digits_dataset(30), path, EXACT)
    before = path.stat()
    assert build_cache(teacher(), digits_dataset(30), path, EXACT).images_built == 0
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_fault_15_a_reordered_dataset_still_finds_its_rows(tmp_path: Path) -> None:
    source = digits(80)
    dataset = ReplayedDataset(source, RECIPE)
    build_cache(teacher(), dataset, tmp_path / "t.h5", EXACT)
    order = np.random.default_rng(1).permutation(80)
    shuffled = ReplayedDataset(
        ArraySource(
            source.images[order],
            source.targets[order],
            keys=[source.keys[i] for i in order],
            class_names=source.class_names,
        ),
        RECIPE,
    )
    cache = open_cache(tmp_path / "t.h5", shuffled)
    logits = cache(Batch(torch.empty(80, 0), torch.zeros(80), torch.arange(80), 1)).logits
    expected = torch.from_numpy(plain_logits(dataset, 1)[order]).log_softmax(1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_fault_15_added_and_renamed_samples_are_named_and_a_part_is_read(tmp_path: Path) -> None:
    build_cache(teacher(), digits_dataset(30), tmp_path / "t.h5", EXACT)
    command = r"1 of 31 samples are not in it \('digit-30'\): add them with `kdkit cache extend .*t\.h5 DATA`"
    with pytest.raises(CacheMismatchError, match=command):
        open_cache(tmp_path / "t.h5", digits_dataset(31))
    renamed = digits(30)
    renamed.keys = ["other" if key == "digit-3" else key for key in renamed.keys]
    with pytest.raises(CacheMismatchError, match="'other'"):
        open_cache(tmp_path / "t.h5", ReplayedDataset(renamed, RECIPE))
    part = ReplayedDataset(SelectedSource(digits(30), [29, 3, 11]), RECIPE)
    logits = open_cache(tmp_path / "t.h5", part)(Batch(torch.empty(3, 0), torch.zeros(3), torch.arange(3), 1)).logits
    expected = torch.from_numpy(plain_logits(digits_dataset(30), 1)[[29, 3, 11]]).log_softmax(1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_fault_14_another_teacher_under_the_same_name_is_refused_on_resume(tmp_path: Path) -> None:
    build_cache(teacher(), digits_dataset(8), tmp_path / "t.h5", dataclasses.replace(EXACT, pack=False))
    with pytest.raises(CacheMismatchError, match=r"teacher\.weights_sha256"):
        build_cache(teacher(seed=1), digits_dataset(8), tmp_path / "t.h5", EXACT)
    pooled = timm.create_model("test_resnet", num_classes=10, global_pool="max")
    pooled.load_state_dict(teacher().model.state_dict())
    with pytest.raises(CacheMismatchError, match=r"teacher\.structure_sha256 = '.*', this run has '"):
        build_cache(create_teacher(pooled), digits_dataset(8), tmp_path / "t.h5", EXACT)
    with pytest.raises(CacheMismatchError, match=r"streams\.logits\.codec\.name = 'float32', this run has 'int8'"):
        build_cache(teacher(), digits_dataset(8), tmp_path / "t.h5", dataclasses.replace(EXACT, codec="int8"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"class_map": list(range(9, -1, -1))}, "teacher.class_map_sha256"),
        ({"input_size": 48}, "teacher.input_size"),
        ({"dtype": torch.float64}, "teacher.dtype"),
    ],
)
def test_fault_14_a_teacher_with_other_settings_is_refused_on_resume(
    tmp_path: Path, change: dict[str, object], field: str
) -> None:
    build_cache(teacher(), digits_dataset(8), tmp_path / "t.h5", EXACT)
    other = create_teacher(tiny_model(), **change)  # type: ignore[arg-type]
    with pytest.raises(CacheMismatchError, match=rf"{field} = .*, this run has "):
        build_cache(other, digits_dataset(8), tmp_path / "t.h5", EXACT)


def test_a_build_does_not_go_on_with_other_pixels(tmp_path: Path) -> None:
    build_cache(teacher(), digits_dataset(20), tmp_path / "t.h5", dataclasses.replace(EXACT, pack=False))
    (tmp_path / "t.h5.parts" / "v0001-r0000000000.json").unlink()
    changed = digits(20)
    changed.images = changed.images ^ 0x10
    for allowed, refusal in (((), "its content differs"), (("dataset.content",), "shows other pixels")):
        with pytest.raises(CacheMismatchError, match=refusal):
            build_cache(teacher(), ReplayedDataset(changed, RECIPE), tmp_path / "t.h5", EXACT, allow_mismatch=allowed)
    build_cache(teacher(), digits_dataset(20), tmp_path / "t.h5", EXACT)


def test_samples_that_changed_are_named_on_resume_too(tmp_path: Path) -> None:
    build_cache(teacher(), digits_dataset(30), tmp_path / "t.h5", EXACT)
    with pytest.raises(CacheMismatchError, match="'digit-30'"):
        build_cache(teacher(), digits_dataset(31), tmp_path / "t.h5", EXACT)


def test_an_output_that_is_a_folder_is_refused_before_the_teacher_runs(tmp_path: Path) -> None:
    (tmp_path / "t.h5").mkdir()
    with pytest.raises(CacheError, match="is a folder; name a file"):
        build_cache(teacher(), digits_dataset(8), tmp_path / "t.h5", EXACT)


def test_pixels_are_compared_in_every_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_cache(teacher(), digits_dataset(20), tmp_path / "t.h5", EXACT)
    dataset = digits_dataset(20)
    plain = type(dataset).__getitem__
    monkeypatch.setattr(
        type(dataset),
        "__getitem__",
        lambda self, index: plain(self, index)._replace(image=plain(self, index).image ^ (index[1] == 1)),
    )
    with pytest.raises(CacheMismatchError, match=r"\(view 1\)"):
        open_cache(tmp_path / "t.h5", dataset)


def test_changed_pixels_under_the_same_key_are_refused(tmp_path: Path) -> None:
    build_cache(teacher(), digits_dataset(20), tmp_path / "t.h5", EXACT)
    changed = digits(20)
    changed.images = changed.images.copy()
    changed.images[13] ^= 0x10
    with pytest.raises(CacheMismatchError, match=r"another image under the name 'digit-13'"):
        open_cache(tmp_path / "t.h5", ReplayedDataset(changed, RECIPE))
    with pytest.raises(CacheMismatchError, match=r"'digit-13'.*torchvision"):
        open_cache(tmp_path / "t.h5", ReplayedDataset(changed, RECIPE), allow_mismatch={"dataset.content"})


def test_fault_16_class_names_and_counts_are_compared(tmp_path: Path) -> None:
    build_cache(teacher(), digits_dataset(8), tmp_path / "t.h5", EXACT)
    reordered = digits(8)
    reordered.class_names = list(reversed(reordered.class_names or ()))
    with pytest.raises(CacheMismatchError, match=r"dataset\.class_names"):
        open_cache(tmp_path / "t.h5", ReplayedDataset(reordered, RECIPE))
    with pytest.raises(ClassMismatchError, match=r"12 classes, the data has 10, '0' to '9': add the class folders"):
        build_cache(create_teacher(tiny_model(num_classes=12)), digits_dataset(8), tmp_path / "u.h5", EXACT)


def test_the_pixel_hash_covers_the_first_rows_and_every_64th() -> None:
    assert hashed_rows(0, 3) == [0, 1, 2]
    assert hashed_rows(1020, 1100) == [1020, 1021, 1022, 1023, 1024, 1088]


def test_an_unmatched_cache_does_not_guess_rows(tmp_path: Path) -> None:
    build_cache(teacher(), digits_dataset(8), tmp_path / "t.h5", EXACT)
    with pytest.raises(CacheMismatchError, match="open_cache"):
        open_cache(tmp_path / "t.h5")(Batch(torch.empty(1, 0), torch.zeros(1), torch.tensor([0]), 0))


@pytest.mark.parametrize("pack", [True, False])
def test_rows_views_and_streams_that_are_not_there_are_refused(tmp_path: Path, pack: bool) -> None:
    build_cache(teacher(), digits_dataset(8), tmp_path / "t.h5", dataclasses.replace(EXACT, pack=pack))
    cache = open_cache(tmp_path / "t.h5")
    for rows, view, stream, message in (
        ([8], 0, "logits", "rows 0 to 7, got row 8"),
        ([3, 5_000, -9], 0, "logits", "rows 0 to 7, got row 5000"),
        ([-1], 0, "logits", "rows 0 to 7, got row -1"),
        ([0], 2, "logits", "views 0 to 1"),
        ([0], 0, "pooled", "streams logits"),
    ):
        with pytest.raises(CacheError, match=message):
            cache.read_encoded(np.array(rows), view, stream)


def test_a_flipped_bit_names_its_rows_and_nothing_wrong_is_returned(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    build_cache(teacher(), digits_dataset(50), path, EXACT)
    with h5py.File(path) as file:
        offset = file["views/0001/logits"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + 40 * 31] ^= 4
    path.write_bytes(content)
    cache = open_cache(path)
    assert cache.read_encoded(np.array([31]), 0).shape == (1, 40)
    with pytest.raises(CacheCorruptError, match=r"t\.h5: view 1, rows 0 to 49 of 'logits'"):
        cache.read_encoded(np.array([2]), 1)
    with pytest.raises(CacheCorruptError):
        cache.verify()
    assert open_cache(path, verify=False).read_encoded(np.array([2]), 1).shape == (1, 40)


def test_a_cut_file_is_refused_at_open(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    build_cache(teacher(), digits_dataset(50), path, EXACT)
    content = path.read_bytes()
    for size in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CacheCorruptError, match=r"t\.h5"):
            open_cache(path)


def test_a_path_that_is_no_cache_is_reported_as_none(tmp_path: Path) -> None:
    with pytest.raises(CacheNotFoundError, match="kdkit cache build") as caught:
        open_cache(tmp_path / "t.h5")
    assert isinstance(caught.value, FileNotFoundError)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(CacheCorruptError, match="no kdkit cache"):
        open_cache(tmp_path / "other.h5")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CacheNotFoundError):
        open_cache(tmp_path / "folder")


class _Poisoned(torch.nn.Module):
    """A teacher whose logits of dark images are NaN."""

    num_classes = 10

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = images.mean((2, 3)).repeat(1, 4)[:, :10]
        logits[images.mean((1, 2, 3)) < -1.0, 3] = self.value
        return logits


@pytest.mark.parametrize(("value", "codec"), [(float("nan"), "float32"), (float("inf"), "int8"), (1e5, "float16")])
def test_fault_17_outputs_that_cannot_be_encoded_stop_the_build(tmp_path: Path, value: float, codec: str) -> None:
    with pytest.raises(NonFiniteOutputError, match="'digit-"):
        build_cache(
            Teacher(_Poisoned(value)), digits_dataset(64), tmp_path / "t.h5", dataclasses.replace(EXACT, codec=codec)
        )
    assert not (tmp_path / "t.h5").exists()


def test_fault_21_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="no cache can be written"):
        build_cache(teacher(), digits_dataset(8), tmp_path / "file" / "t.h5", EXACT)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_cache_goes_to_other_processes(tmp_path: Path, method: str) -> None:
    build_cache(teacher(), digits_dataset(8), tmp_path / "t.h5", EXACT)
    cache = open_cache(tmp_path / "t.h5", digits_dataset(8))
    assert len(pickle.dumps(cache)) < 4000  # a few fields, and no array
    twin = pickle.loads(pickle.dumps(cache))
    batch = Batch(torch.empty(2, 0), torch.zeros(2), torch.tensor([3, 1]), 1)
    assert torch.equal(twin(batch).logits, cache(batch).logits)
    assert torch.equal(copy.deepcopy(cache)(batch).logits, cache(batch).logits)
    if method == "fork" and sys.version_info >= (3, 12):
        pytest.skip("Python 3.12 and later warn of any fork of a process with threads")
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_read_elsewhere, args=(pickle.dumps(cache), queue))
    process.start()
    assert queue.get(timeout=120) == cache.read_encoded(np.array([3, 1]), 1).numpy().tobytes()
    process.join()


def _read_elsewhere(pickled: bytes, queue: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    queue.put(pickle.loads(pickled).read_encoded(np.array([3, 1]), 1).numpy().tobytes())
