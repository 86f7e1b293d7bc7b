"""The public door to a cache: specs, writers, shards sealed by several processes, and caches without pixels."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import h5py
import malice
import numpy as np
import pytest
import torch
from support import RECIPE, digits_dataset

from kdkit import CacheSpec, CacheWriter, open_cache
from kdkit.cache import CachedTeacher, create_codec
from kdkit.cache.codecs import create_feature_codec
from kdkit.cache.format.metadata import Shard
from kdkit.errors import (
    CacheCorruptError,
    CacheError,
    CacheIncompleteError,
    CacheLockedError,
    CacheMismatchError,
    CacheNotFoundError,
    ConfigError,
    NonFiniteOutputError,
    ShapeError,
)
from kdkit.recipe import ViewRecipe

ROWS, CLASSES = 2300, 10
LOGITS = np.random.default_rng(0).normal(size=(ROWS, CLASSES)).astype(np.float32)
SPEC = CacheSpec(
    keys=[f"key-{row}" for row in range(ROWS)],
    num_views=2,
    codecs={"logits": create_codec("float32", CLASSES)},
    shard_rows=1000,
)


def outputs(shard: Shard) -> dict[str, np.ndarray]:
    return {"logits": LOGITS[shard.start : shard.stop] + shard.view}


def build(path: Path, spec: CacheSpec = SPEC, *, pack: bool = True) -> Path:
    with CacheWriter.create(path, spec) as writer:
        for shard in writer.missing():
            writer.write(shard, outputs(shard))
        return writer.finish(pack=pack)


def assert_exact(cache: CachedTeacher, num_views: int = 2) -> None:
    cache.verify()
    assert (cache.num_rows, cache.num_views, cache.num_classes) == (ROWS, num_views, CLASSES)
    for view in range(num_views):
        stored = cache.read_encoded(np.arange(ROWS), view).numpy().view("<f4")
        assert np.array_equal(stored, LOGITS + np.float32(view))


@pytest.mark.parametrize("pack", [True, False])
def test_an_array_with_keys_views_and_codecs_is_enough(tmp_path: Path, pack: bool) -> None:
    path = build(tmp_path / "t.h5", pack=pack)
    assert path == (tmp_path / "t.h5" if pack else tmp_path / "t.h5.parts")
    cache = open_cache(tmp_path / "t.h5")
    assert_exact(cache)
    assert cache.keys() == SPEC.keys
    assert cache.recipe == ViewRecipe(num_views=2)
    assert cache.summary()["teacher"] == "unknown, unknown, weights unknown"


def test_a_stopped_writer_resumes_with_the_shards_that_are_sealed(tmp_path: Path) -> None:
    with CacheWriter.create(tmp_path / "t.h5", SPEC) as writer:
        first, second = writer.missing()[:2]
        writer.write(first, outputs(first))
        writer.write(second, outputs(second))
    with CacheWriter.create(tmp_path / "t.h5", SPEC) as writer:
        assert writer.sealed() == [first, second]
        assert len(writer.missing()) == 4
        assert np.array_equal(writer.read(first)["logits"].view("<f4"), LOGITS[:1000])
        with pytest.raises(CacheIncompleteError, match="cannot be finished: 4 shards are missing"):
            writer.finish()
    build(tmp_path / "t.h5")
    assert_exact(open_cache(tmp_path / "t.h5"))
    finished = CacheWriter.create(tmp_path / "t.h5", SPEC)
    assert finished.missing() == []
    assert finished.finish() == tmp_path / "t.h5"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_views": 3}, r"recipe\.num_views = 2, this run has 3"),
        ({"teacher": {"name": "other"}}, r"teacher\.name = 'unknown', this run has 'other'"),
        ({"recipe": ViewRecipe(size=32)}, r"recipe\.size = 224, this run has 32"),
        ({"codecs": {"logits": create_codec("float16", CLASSES)}}, r"streams\.logits\.codec\.name = 'float32'"),
        ({"keys": [f"key-{row}" for row in range(1, ROWS + 1)]}, f"'key-{ROWS}'"),
        ({"class_names": list("abcdefghij")}, r"dataset\.class_names = None"),
        ({"has_pixels": True}, r"dataset\.has_pixels = False"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_spec_at_the_same_path_is_refused_by_the_field(
    tmp_path: Path, changes: dict[str, Any], field: str, finished: bool
) -> None:
    build(tmp_path / "t.h5") if finished else CacheWriter.create(tmp_path / "t.h5", SPEC).close()
    with pytest.raises(CacheMismatchError, match=field):
        CacheWriter.create(tmp_path / "t.h5", dataclasses.replace(SPEC, **changes))
    CacheWriter.create(tmp_path / "t.h5", SPEC).close()  # which the refusal left unlocked


def test_a_codec_fitted_to_other_rows_is_refused_at_the_same_path(tmp_path: Path) -> None:
    plain = create_codec("lowrank", CLASSES, row_bytes=12)
    one, two = (plain.fit(torch.from_numpy(LOGITS[start : start + 200])) for start in (0, 200))
    CacheWriter.create(tmp_path / "t.h5", dataclasses.replace(SPEC, codecs={"logits": one})).close()
    with pytest.raises(CacheMismatchError, match="another array 'codecs/logits/"):
        CacheWriter.create(tmp_path / "t.h5", dataclasses.replace(SPEC, codecs={"logits": two}))
    with pytest.raises(ConfigError, match="'lowrank' of stream 'logits' was not fitted"):
        CacheWriter.create(tmp_path / "other.h5", dataclasses.replace(SPEC, codecs={"logits": plain}))


def test_writers_that_join_seal_shards_and_leave_finishing_to_the_one_that_created(tmp_path: Path) -> None:
    with pytest.raises(CacheNotFoundError):
        CacheWriter.join(tmp_path / "t.h5")
    with CacheWriter.create(tmp_path / "t.h5", SPEC) as writer:
        with pytest.raises(CacheLockedError):
            CacheWriter.create(tmp_path / "t.h5", SPEC)
        joined = [CacheWriter.join(tmp_path / "t.h5"), pickle.loads(pickle.dumps(writer))]
        for number, shard in enumerate(writer.missing()):
            joined[number % 2].write(shard, outputs(shard))
        for one in joined:
            assert one.missing() == []
            with pytest.raises(CacheError, match="is finished by the process that created it"):
                one.finish()
        writer.finish()
    assert_exact(open_cache(tmp_path / "t.h5"))
    assert CacheWriter.join(tmp_path / "t.h5").missing() == []


@pytest.mark.parametrize("pack", [True, False])
def test_an_extension_has_the_further_views_alone_to_write(tmp_path: Path, pack: bool) -> None:
    path = build(tmp_path / "t.h5", pack=pack)
    with CacheWriter.extend(path, 4) as writer:
        assert {shard.view for shard in writer.missing()} == {2, 3}
        joined = pickle.loads(pickle.dumps(writer))
        for shard in writer.missing():
            joined.write(shard, outputs(shard))
        assert_exact(open_cache(path))  # until the end it has the old views
        assert writer.finish(pack=pack) == path
    assert_exact(open_cache(path), num_views=4)
    assert CacheWriter.extend(path, 4).missing() == []
    with pytest.raises(CacheMismatchError, match="num_views = 4, this run has 3: extend it to more"):
        CacheWriter.extend(path, 3)


def test_the_outputs_of_a_shard_are_checked_before_it_is_sealed(tmp_path: Path) -> None:
    with CacheWriter.create(tmp_path / "t.h5", SPEC) as writer:
        shard = writer.missing()[1]
        with pytest.raises(ShapeError, match=r"got outputs of \['pooled'\], expected \['logits'\]"):
            writer.write(shard, {"pooled": LOGITS})
        with pytest.raises(ShapeError, match=r"got logits \[2300, 10\], expected 1000 rows"):
            writer.write(shard, {"logits": LOGITS})
        odd = outputs(shard)["logits"]
        odd[[3, 5], 0] = np.nan, np.inf
        with pytest.raises(NonFiniteOutputError, match="'key-1003', 'key-1005' in view 0"):
            writer.write(shard, {"logits": odd})
        rows = {"logits": np.zeros((1000, 40), np.uint8)}
        with pytest.raises(CacheError, match="got some pixel hashes, the spec of the cache expects none"):
            writer.seal(shard, rows, np.zeros(16, np.uint32))
        with pytest.raises(CacheError, match="no such shard to seal"):
            writer.seal(Shard(0, 500, 1500), rows)
        with pytest.raises(CacheError, match="no such shard to seal"):
            writer.seal(Shard(2, 0, 1000), rows)
        assert writer.sealed() == []


def test_write_measures_fidelity_where_the_spec_has_it(tmp_path: Path) -> None:
    codec = create_feature_codec("int8", (CLASSES,))
    summary = {"rows": 0.0, "relative_error_mean": 0.0, "relative_error_max": 0.0, "each": 7}
    spec = dataclasses.replace(SPEC, codecs={"pooled": codec}, fidelity={"pooled": summary})
    with CacheWriter.create(tmp_path / "t.h5", spec) as writer:
        for shard in writer.missing():
            writer.write(shard, {"pooled": torch.from_numpy(outputs(shard)["logits"])})
        writer.finish()
    for view, kept in enumerate(open_cache(tmp_path / "t.h5").fidelity()["pooled"]):
        rows = torch.from_numpy(LOGITS[::7] + np.float32(view))
        error = (codec.decode(codec.encode(rows)) - rows).norm(dim=1) / rows.norm(dim=1)
        assert kept["rows"] == len(rows)
        assert kept["relative_error_mean"] == pytest.approx(float(error.mean()), rel=1e-5)


def test_a_cache_without_pixels_states_so_and_compares_all_else(tmp_path: Path) -> None:
    dataset = digits_dataset(60)
    spec = CacheSpec(
        keys=dataset.keys,
        num_views=2,
        codecs={"logits": create_codec("float32", CLASSES)},
        recipe=RECIPE,
        class_names=dataset.class_names,
    )
    build(tmp_path / "t.h5", spec)
    with h5py.File(tmp_path / "t.h5") as file:
        assert '"has_pixels":false' in str(file.attrs["kdkit"])
        assert not file["views/0000/pixel_crc32"][:].any()  # of format 1's shape, so that every reader opens it
        assert file["views/0000/pixel_crc32"].shape == (60,)
    cache = open_cache(tmp_path / "t.h5", dataset)
    assert cache.pixel_crc32(0) == {}
    assert cache.summary()["pixels"] == "not known: opening compares keys and recipe, but no pixels"
    with pytest.raises(CacheMismatchError, match=r"recipe\.size"):
        open_cache(tmp_path / "t.h5", digits_dataset(60, dataclasses.replace(RECIPE, size=48)))
    with pytest.raises(CacheMismatchError, match="'digit-60'"):
        open_cache(tmp_path / "t.h5", digits_dataset(61))
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        malice.metadata(dataset={**spec.metadata.dataset, "has_pixels": 0})(file, tmp_path / "t.h5")
    with pytest.raises(CacheCorruptError, match="has_pixels is 0, expected true or false"):
        open_cache(tmp_path / "t.h5")


@pytest.mark.parametrize("num_views", ["3", 3.0, None, True])
def test_an_extension_to_no_whole_number_of_views_is_refused(tmp_path: Path, num_views: Any) -> None:
    with pytest.raises(ConfigError, match="num_views must be a whole number"):
        CacheWriter.extend(build(tmp_path / "t.h5"), num_views)


@pytest.mark.parametrize("record", [{"x": object()}, {"x": float("nan")}, None, "seconds"])
def test_a_record_that_is_not_json_is_refused_and_the_cache_can_be_finished(tmp_path: Path, record: Any) -> None:
    with CacheWriter.create(tmp_path / "t.h5", SPEC) as writer:
        for shard in writer.missing():
            writer.write(shard, outputs(shard))
        with pytest.raises(ConfigError, match="record must "):
            writer.finish(record=record)
        assert writer.finish(record={"seconds": np.float64(2.5), "of": (1, 2)}) == tmp_path / "t.h5"
    assert_exact(open_cache(tmp_path / "t.h5"))


def test_a_spec_beyond_what_a_cache_holds_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no cache can hold this: .*num_views is 10001"):
        CacheWriter.create(tmp_path / "t.h5", dataclasses.replace(SPEC, num_views=10_001))
    assert list(tmp_path.glob("t.h5.parts/*.h5")) == []


def test_the_repr_of_writer_cache_and_codec_tells_what_they_hold(tmp_path: Path) -> None:
    content = "2,300 rows x 2 views; logits in float32, 40 bytes per row; teacher 'unknown'"
    with CacheWriter.create(tmp_path / "t.h5", SPEC) as writer:
        assert repr(writer) == f"CacheWriter({str(tmp_path / 't.h5')!r}: {content}; 6 of 6 shards missing)"
    build(tmp_path / "t.h5")
    assert repr(open_cache(tmp_path / "t.h5")) == f"CachedTeacher({str(tmp_path / 't.h5')!r}: {content})"
    assert repr(SPEC.codecs["logits"]) == "Float32Codec(num_classes=10)"
