"""Caches that grow and shrink by images: the old rows keep their bytes, and the answers are those of a fresh build."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grown import CONFIGS, PLAIN, build, extend, rows_by_key, seen
from support import CLASSES, RECIPE, Pixels, Watched, cache_contents, digits, tiny_model

from kdkit import ViewRecipe, build_cache, create_teacher, extend_cache, open_cache
from kdkit.building.arrange import arrange
from kdkit.building.config import BuildConfig
from kdkit.building.merge import merge_caches, prune_cache
from kdkit.building.recode import recode_cache
from kdkit.cache import CacheSpec, CacheWriter, create_codec
from kdkit.cache.codecs.record import RecordCodec
from kdkit.cache.fidelity import measure_rows
from kdkit.cache.format.constants import RECORDS, hashed_rows
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.data.sources.selection import SelectedSource
from kdkit.errors import CacheError, CacheMismatchError, ConfigError, KdkitError
from kdkit.teachers import Teacher


def check_whole(path: Path, rows: Any, codec: str = "") -> None:
    """Every checksum, and every pixel hash against the pixels themselves."""
    views, dataset = 2, seen(rows, codec=codec)
    cache = open_cache(path, dataset)
    cache.verify()
    keys = cache.keys()
    assert sorted(keys) == sorted(dataset.keys)
    for view in range(views):
        hashes = cache.pixel_crc32(view)
        assert sorted(hashes) == hashed_rows(0, cache.num_rows)


@pytest.mark.parametrize("codec", CONFIGS)
def test_an_extended_cache_keeps_its_rows_and_runs_the_teacher_on_the_new_images_alone(
    tmp_path: Path, codec: str
) -> None:
    path = build(tmp_path / "t.h5", range(90), CONFIGS[codec])
    before = rows_by_key(path)
    images: list[int] = []
    teacher = Watched(lambda number, logits: images.append(len(logits)))
    assert extend(path, range(130), teacher, codec=codec) == 80
    assert sum(images) <= 80 + 40  # and a probe of the new ones in one view
    after = rows_by_key(path)
    assert {key: after[key] for key in before} == before
    check_whole(path, range(130), codec)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["t.h5"]
    if codec != "lowrank":
        assert after == rows_by_key(build(tmp_path / "fresh.h5", range(130), CONFIGS[codec]))
    cache = open_cache(path)
    assert {**cache.fidelity()["logits"][0], "each": cache.metadata.fidelity["logits"]["each"]} == dict(
        cache.metadata.fidelity["logits"]
    )


def test_data_of_the_new_images_alone_and_in_any_order_will_do(tmp_path: Path) -> None:
    path = build(tmp_path / "t.h5", range(20))
    assert extend(path, [25, 21, 3]) == 4
    assert rows_by_key(path) == rows_by_key(build(tmp_path / "fresh.h5", [*range(20), 25, 21]))
    assert extend(path, [*range(20), 25, 21]) == 0


def test_views_and_images_are_added_together(tmp_path: Path) -> None:
    path = build(tmp_path / "t.h5", range(20))
    assert extend(path, range(30), views=3) == 30
    assert rows_by_key(path) == rows_by_key(build(tmp_path / "fresh.h5", range(30), views=3))
    assert extend(path, range(29, -1, -1), views=4) == 30  # after which the cache has an order of its own
    assert rows_by_key(path) == rows_by_key(build(tmp_path / "four.h5", range(30), views=4))


@pytest.mark.parametrize("codec", CONFIGS)
def test_pruned_and_extended_back_a_cache_answers_as_a_fresh_build(tmp_path: Path, codec: str) -> None:
    path = build(tmp_path / "t.h5", range(100), CONFIGS[codec])
    before = rows_by_key(path)
    kept = [row for row in range(100) if row % 3]
    report = prune_cache(path, seen(kept, codec=codec))
    assert (report.num_rows, report.images_built) == (66, 0)
    check_whole(path, kept, codec)
    names = {digits(400).keys[row] for row in kept}
    assert rows_by_key(path) == {key: row for key, row in before.items() if key[0] in names}
    assert prune_cache(path, seen(kept, codec=codec)).num_rows == 66
    assert extend(path, range(100), codec=codec) == 68
    assert rows_by_key(path) == before
    check_whole(path, range(100), codec)


def test_an_open_cache_keeps_its_rows_and_is_not_opened_anew_with_others(tmp_path: Path) -> None:
    path, dataset = build(tmp_path / "t.h5", range(20)), seen(range(20))
    cache = open_cache(path, dataset)
    before, rows = cache.read_encoded(np.arange(20), 0), cache.rows_of(torch.arange(20))
    copied = pickle.dumps(cache)
    assert np.array_equal(pickle.loads(copied).rows_of(torch.arange(20)), rows)
    prune_cache(path, seen(range(0, 20, 2)))
    assert torch.equal(cache.read_encoded(np.arange(20), 0), before)
    with pytest.raises(CacheMismatchError, match=r"had 20 images when it was opened, and has other ones now \(10\)"):
        pickle.loads(copied)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [range(1500, 3000), [*range(5), *range(1025, 3000, 7)], [2999]])
def test_a_pruned_cache_of_more_than_a_block_has_every_hash_that_the_format_stores(tmp_path: Path, kept: Any) -> None:
    """Rows that were not hashed come to stand where hashes are stored; their pixels are drawn again."""
    images = np.random.default_rng(0).integers(0, 255, (3000, 8, 8), dtype=np.uint8)
    source = ArraySource(images, np.zeros(3000, int), keys=[f"k{n}" for n in range(3000)], class_names=CLASSES)
    recipe = ViewRecipe(size=8, num_views=2)
    config = BuildConfig(codec="float16", num_workers=0, batch_size=1000)
    build_cache(Teacher(Pixels()), ReplayedDataset(source, recipe), tmp_path / "t.h5", config)
    before = rows_by_key(tmp_path / "t.h5")
    part = ReplayedDataset(SelectedSource(source, list(kept)), recipe)
    prune_cache(tmp_path / "t.h5", part)
    cache = open_cache(tmp_path / "t.h5", part)
    cache.verify()
    after = rows_by_key(tmp_path / "t.h5")
    assert after == {key: before[key] for key in after}
    keys = cache.keys()
    fresh = ReplayedDataset(SelectedSource(source, [int(key[1:]) for key in keys]), recipe)
    build_cache(Teacher(Pixels()), fresh, tmp_path / "fresh.h5", config)
    for view in range(2):
        assert cache.pixel_crc32(view) == open_cache(tmp_path / "fresh.h5").pixel_crc32(view)


@pytest.mark.parametrize("codec", ["float32", "int8", "sigmoid_int8"])
def test_merged_caches_hold_the_rows_of_both(tmp_path: Path, codec: str) -> None:
    parts = [build(tmp_path / f"{n}.h5", rows, CONFIGS[codec]) for n, rows in enumerate([range(40), range(60, 110)])]
    report = merge_caches(parts, tmp_path / "c.h5")
    assert (report.num_rows, report.images_built) == (90, 0)
    assert rows_by_key(tmp_path / "c.h5") == rows_by_key(parts[0]) | rows_by_key(parts[1])
    check_whole(tmp_path / "c.h5", [*range(40), *range(60, 110)], codec)


def test_merged_caches_of_other_fits_are_encoded_again_and_measured(tmp_path: Path) -> None:
    config = CONFIGS["lowrank"]
    parts = [build(tmp_path / f"{n}.h5", rows, config) for n, rows in enumerate([range(40), range(60, 140)])]
    merge_caches(parts, tmp_path / "c.h5")
    merged, first, second = (open_cache(path) for path in (tmp_path / "c.h5", *parts))
    rows = rows_by_key(tmp_path / "c.h5")
    assert rows_by_key(parts[0]).items() <= rows.items()
    places = {key: row for row, key in enumerate(merged.keys())}
    codec, each = merged.codecs["logits"], merged.metadata.fidelity["logits"]["each"]
    expected, own = [], (first.keys(), second.keys())
    for place in range(0, 120, int(each)):
        key = merged.keys()[place]
        if key in own[0]:
            expected.append(first_measure(parts[0], own[0].index(key)))
        else:
            row = own[1].index(key)
            values = second.codecs["logits"].decode(second.read_encoded(np.array([row]), 0))
            encoded = merged.read_encoded(np.array([places[key]]), 0)
            assert torch.equal(encoded, codec.encode(values))
            expected.append(float(measure_rows(codec, values, encoded)[0, 0]))
    assert merged.metadata.fidelity["logits"]["kl_mean_t1"] == pytest.approx(np.mean(expected), rel=1e-5)


def first_measure(path: Path, row: int) -> float:
    """KL at temperature 1 of a measured row in view 0, as plain h5py reads it."""
    import h5py

    each = int(open_cache(path).metadata.fidelity["logits"]["each"])
    with h5py.File(path, "r", locking=False) as file:
        return float(file["views/0000/logits_fidelity"][row // each, 0])


def test_a_recoded_cache_is_what_the_codec_makes_of_the_rows_and_is_measured(tmp_path: Path) -> None:
    path = build(tmp_path / "t.h5", range(200), CONFIGS["float32"])
    recode_cache(path, tmp_path / "r.h5", codec="lowrank", row_bytes=12)
    old, new = open_cache(path), open_cache(tmp_path / "r.h5", seen(range(200)))
    new.verify()
    codec, rows = new.codecs["logits"], np.arange(200)
    assert (codec.name, codec.row_bytes, new.keys()) == ("lowrank", 12, old.keys())
    for view in range(2):
        values = old.codecs["logits"].decode(old.read_encoded(rows, view))
        assert torch.equal(new.read_encoded(rows, view), codec.encode(values))
        measured = rows[:: int(new.metadata.fidelity["logits"]["each"])]
        decoded = codec.decode(new.read_encoded(measured, view)).double().log_softmax(1)
        teacher = values[measured].double().log_softmax(1)
        kl = (teacher.exp() * (teacher - decoded)).sum(1).mean()
        assert new.fidelity()["logits"][view]["kl_mean_t1"] == pytest.approx(float(kl), rel=1e-4, abs=1e-9)
        assert new.pixel_crc32(view) == old.pixel_crc32(view)


@pytest.mark.parametrize("codec", [None, "sigmoid_int8"])
def test_several_labels_are_recoded_and_keep_their_meaning(tmp_path: Path, codec: str | None) -> None:
    config = dataclasses.replace(CONFIGS["sigmoid_int8"], codec="sigmoid_float32")
    path = build(tmp_path / "t.h5", range(40), config, views=3)
    recode_cache(path, tmp_path / "r.h5", codec=codec, num_views=2)
    fresh = dataclasses.replace(config, codec=codec or config.codec)
    assert rows_by_key(tmp_path / "r.h5") == rows_by_key(build(tmp_path / "fresh.h5", range(40), fresh))
    assert open_cache(tmp_path / "r.h5", seen(range(40), codec="sigmoid")).is_multi_label


def test_fewer_views_keep_their_bytes_and_equal_a_build_of_as_many(tmp_path: Path) -> None:
    path = build(tmp_path / "t.h5", range(60), views=3)
    recode_cache(path, tmp_path / "r.h5", num_views=2)
    assert cache_contents(tmp_path / "r.h5") == cache_contents(build(tmp_path / "two.h5", range(60)))


def test_features_are_copied_or_recoded_by_themselves(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIGS["float32"], streams=("logits", "pooled"))
    teacher = create_teacher(tiny_model())
    dataset = ReplayedDataset(digits(30), RECIPE)
    build_cache(teacher, dataset, tmp_path / "t.h5", config)
    recode_cache(tmp_path / "t.h5", tmp_path / "r.h5", codec="float16")
    recode_cache(tmp_path / "t.h5", tmp_path / "f.h5", feature_codec="int8")
    old, logits, features = (open_cache(tmp_path / f"{name}.h5") for name in "trf")
    rows = np.arange(30)
    assert torch.equal(old.read_encoded(rows, 1, "pooled"), logits.read_encoded(rows, 1, "pooled"))
    assert torch.equal(old.read_encoded(rows, 1), features.read_encoded(rows, 1))
    build_cache(teacher, dataset, tmp_path / "i.h5", dataclasses.replace(config, feature_codec="int8"))
    fresh = (
        open_cache(tmp_path / "i.h5")
        .codecs["pooled"]
        .decode(open_cache(tmp_path / "i.h5").read_encoded(rows, 1, "pooled"))
    )
    found = features.codecs["pooled"].decode(features.read_encoded(rows, 1, "pooled"))
    torch.testing.assert_close(found, fresh, rtol=0, atol=float(fresh.abs().max()) / 100)


def test_parameters_of_recorded_views_go_with_their_rows(tmp_path: Path) -> None:
    records = np.random.default_rng(0).integers(0, 256, (2, 30, 6), dtype=np.uint8)
    for name, rows in (("a", range(20)), ("b", range(20, 30))):
        codecs = {"logits": create_codec("float32", 10), RECORDS: RecordCodec((6,))}
        spec = CacheSpec(keys=[f"k{row}" for row in rows], num_views=2, codecs=codecs)
        with CacheWriter.create(tmp_path / f"{name}.h5", spec) as writer:
            for shard in writer.missing():
                own = torch.from_numpy(records[shard.view, list(rows)])
                writer.write(shard, {"logits": torch.randn(len(rows), 10), RECORDS: own})
            writer.finish()
    merge_caches([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "c.h5")
    recode_cache(tmp_path / "c.h5", tmp_path / "r.h5", codec="float16")
    for name in "cr":
        cache = open_cache(tmp_path / f"{name}.h5")
        places = [int(key[1:]) for key in cache.keys()]  # noqa: SIM118 -- of a cache, not of a dict
        for view in range(2):
            assert np.array_equal(cache.read_records(np.arange(30), view).numpy(), records[view][places])


def refuse(call: Any, error: type[KdkitError], reason: str) -> None:
    with pytest.raises(error, match=reason) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_what_does_not_fit_is_refused_in_one_line_and_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    path = build(tmp_path / "t.h5", range(20))
    other = build(tmp_path / "o.h5", range(30, 40), recipe=dataclasses.replace(PLAIN, seed=5))
    lossy = build(tmp_path / "l.h5", range(50, 90), CONFIGS["lowrank"])
    before = path.read_bytes()
    merge, out = merge_caches, tmp_path / "out.h5"
    refuse(lambda: merge([path, other], out), CacheMismatchError, r"recipe\.seed = 0, '.*o\.h5' has 5: only caches")
    refuse(lambda: merge([path, path], out), CacheMismatchError, r"20 images are in .* and in .*\('digit-0'")
    refuse(lambda: merge([path], out), ConfigError, "at least two caches, got 1")
    refuse(lambda: merge([path, lossy], path), ConfigError, "is one of the caches to merge")
    refuse(lambda: prune_cache(path, seen(range(100, 105))), CacheMismatchError, "none of the 20 images")
    refuse(lambda: recode_cache(lossy, out, codec="topk"), ConfigError, "in the codec lowrank, which has lost too much")
    refuse(lambda: recode_cache(path, out), ConfigError, "nothing would change")
    refuse(lambda: recode_cache(path, out, num_views=3), ConfigError, "has 2 views, expected 1 to as many, got 3")
    refuse(lambda: recode_cache(path, path, num_views=1), ConfigError, "is the cache itself")
    teacher = create_teacher(tiny_model())
    refuse(lambda: extend(path, range(22), teacher), CacheMismatchError, r"teacher\.\w+ = ")
    few = seen([25], class_names=CLASSES[:6])
    add_few = lambda: extend_cache(Teacher(Pixels()), few, path, num_workers=0)  # noqa: E731
    refuse(add_few, CacheMismatchError, "has 6 of them: give the images of all classes, the old ones and the new ones")
    changed = digits(400)
    changed.images = changed.images ^ 0x10
    more = ReplayedDataset(SelectedSource(changed, list(range(22))), PLAIN)
    refuse(
        lambda: extend_cache(Teacher(Pixels()), more, path, num_workers=0), CacheMismatchError, "another image under"
    )
    assert path.read_bytes() == before
    assert sorted(place.name for place in tmp_path.iterdir()) == ["l.h5", "o.h5", "t.h5"]


def test_a_cache_in_a_folder_and_one_that_is_being_extended_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "t.h5"
    build_cache(Teacher(Pixels()), seen(range(20)), folder, dataclasses.replace(CONFIGS["int8"], pack=False))
    refuse(lambda: extend(folder, range(25)), CacheError, "is a folder of shards: pack it first, `kdkit cache pack")
    refuse(lambda: prune_cache(folder, seen(range(5))), CacheError, "pack it first")
    path = build(tmp_path / "p.h5", range(20))

    def stop(number: int, logits: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend(path, range(20), Watched(stop), views=3)
    refuse(lambda: extend(path, range(25)), CacheError, "extension of the cache .* was stopped: finish it with")


def test_mixed_views_allow_no_other_images(tmp_path: Path) -> None:
    mixed = ViewRecipe.preset("funmatch", size=8, num_views=2)
    path = build(tmp_path / "t.h5", range(20), recipe=mixed)
    for call in (
        lambda: extend(path, range(25), recipe=mixed),
        lambda: prune_cache(path, seen(range(10), mixed)),
        lambda: merge_caches([path, path], tmp_path / "c.h5"),
    ):
        refuse(call, CacheMismatchError, "its views mix each image with another")


def test_an_extension_by_other_images_than_the_stopped_one_names_what_to_delete(tmp_path: Path) -> None:
    path = build(tmp_path / "t.h5", range(20))

    def stop(number: int, logits: torch.Tensor) -> None:
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend(path, range(25), Watched(stop))
    refuse(
        lambda: extend(path, range(26)), CacheMismatchError, r"t\.h5\.more\.parts' holds other images .* or delete it"
    )
    assert extend(path, range(25)) == 10


@pytest.mark.parametrize("spacing", [1, 7, 40])
def test_evenly_measured_rows_stay_where_they_are(spacing: int) -> None:
    """Recoding must not move rows: records of mixed views name their partners by them."""
    order, each = arrange(np.ones(100, bool), np.arange(100) % spacing == 0)
    assert (order.tolist(), each) == (list(range(100)), spacing)


@pytest.mark.parametrize("seed", range(20))
def test_rows_stand_where_their_hashes_and_measures_are_stored(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.choice([1, 7, 900, 1500, 5000]))
    hashed, measured = rng.random(count) < rng.choice([0.3, 1]), rng.random(count) < rng.choice([0, 0.01, 1])
    order, each = arrange(hashed, measured, may_hash=True)
    assert sorted(order.tolist()) == list(range(count))
    assert each is None or measured[order[::each]].all()
    if measured.any():
        assert each is not None
        assert each <= max(1, 2 * count / measured.sum())
    at = hashed_rows(0, count)
    wrong = int((~hashed[order[at]]).sum())
    assert wrong <= max(0, len(at) - int(hashed.sum())) + (0 if each is None else -(-count // each))
