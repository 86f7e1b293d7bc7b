"""CacheSpec: what no cache can hold is refused when the spec is made, and what it holds is plain JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdkit import CacheSpec, CacheWriter, open_cache
from kdkit.cache import create_codec
from kdkit.cache.codecs import create_feature_codec
from kdkit.errors import CacheMismatchError, ConfigError, DatasetError

ROWS, CLASSES = 20, 10
SPEC = CacheSpec(
    keys=[f"key-{row}" for row in range(ROWS)],
    num_views=2,
    codecs={"logits": create_codec("float32", CLASSES)},
    shard_rows=1000,
)


def build(path: Path, spec: CacheSpec) -> Path:
    """A cache of ones."""
    with CacheWriter.create(path, spec) as writer:
        for shard in writer.missing():
            writer.write(shard, {"logits": np.ones((shard.num_rows, CLASSES), np.float32)})
        return writer.finish()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"keys": "key"}, ConfigError, "keys must be a sequence of sample keys, got the single text 'key'"),
        ({"keys": ["a", "b", "a"]}, DatasetError, r"1 sample keys occur twice \('a'\)"),
        ({"num_views": 0}, ConfigError, "num_views must be at least 1, got 0"),
        ({"shard_rows": 0}, ConfigError, "shard_rows must be at least 1 row, got 0"),
        ({"codecs": {}}, ConfigError, "codecs must name at least one stream"),
        ({"codecs": {"logits": "float16"}}, ConfigError, r"codecs\['logits'\] must be a Codec, got 'float16'"),
        ({"codecs": {"pooled": create_codec("int8", 4)}}, ConfigError, r"codecs\['pooled'\] must be a FeatureCodec"),
        ({"keys": (f"key-{row}" for row in range(3))}, ConfigError, "keys must be a sequence of sample keys, such as"),
        ({"keys": {"a": 0}}, ConfigError, "keys must be a sequence of sample keys, such as a list, got {'a': 0}"),
        ({"keys": None}, ConfigError, "keys must be a sequence of sample keys, such as a list, got None"),
        ({"keys": ["a", 1]}, ConfigError, r"keys\[1\] must be a text, got 1"),
        ({"keys": np.arange(3)}, ConfigError, r"keys\[0\] must be a text, got 0"),
        ({"keys": ["a", "\ud800"]}, ConfigError, r"keys\[1\] must be a text that UTF-8 can hold"),
        ({"num_views": "1"}, ConfigError, "num_views must be a whole number, got '1'"),
        ({"num_views": 1.0}, ConfigError, r"num_views must be a whole number, got 1\.0"),
        ({"num_views": True}, ConfigError, "num_views must be a whole number, got True"),
        ({"shard_rows": 1.5}, ConfigError, r"shard_rows must be a whole number, got 1\.5"),
        ({"codecs": [create_codec("float16", 4)]}, ConfigError, "codecs must name at least one stream, .* got "),
        ({"codecs": {1: create_feature_codec("int8", (4,))}}, ConfigError, "the names of streams as keys, got 1"),
        ({"teacher": {"x": object()}}, ConfigError, "teacher must hold plain JSON values only: got <object"),
        ({"teacher": {"x": float("nan")}}, ConfigError, "teacher must hold plain JSON values only"),
        ({"teacher": {"x": float("inf")}}, ConfigError, "teacher must hold plain JSON values only"),
        ({"teacher": {1: "a", "1": "b"}}, ConfigError, "teacher must hold plain JSON values only.*a name occurs twice"),
        ({"teacher": {(1, 2): "a"}}, ConfigError, "teacher must hold plain JSON values only"),
        ({"teacher": {"x": "\ud800"}}, ConfigError, "teacher must hold plain JSON values only"),
        ({"teacher": "resnet"}, ConfigError, "teacher must be a mapping of names to plain values, got 'resnet'"),
        ({"recipe": None}, ConfigError, "recipe must be a mapping of names to plain values, got None"),
        ({"recipe": {"size": object()}}, ConfigError, "recipe must hold plain JSON values only"),
        ({"fidelity": None}, ConfigError, "fidelity must be a mapping"),
        ({"versions": {"torch": object()}}, ConfigError, "versions must hold plain JSON values only"),
        ({"has_pixels": "no"}, ConfigError, "has_pixels must be True or False, got 'no'"),
        ({"class_names": "abcdefghij"}, ConfigError, "class_names must be a sequence of names, got the single text"),
        ({"class_names": list(range(10))}, ConfigError, r"class_names\[0\] must be a text, got 0"),
        ({"class_names": list("abcdefghia")}, ConfigError, "class_names must have each name once, got 'a' more"),
        ({"class_names": ["a", "b"]}, ConfigError, "one name for each of the 10 classes of the logits' codec, got 2"),
    ],
)
def test_a_spec_that_no_cache_can_have_is_refused_when_it_is_made(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as refused:
        dataclasses.replace(SPEC, **changes)
    assert "\n" not in str(refused.value)


def test_class_names_of_the_images_alone_are_kept_where_the_spec_states_so(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, class_names=("a", "b"), names_classes=False)
    cache = open_cache(build(tmp_path / "t.h5", spec))
    assert cache.class_names == ["a", "b"]
    assert not cache.names_classes


def test_values_of_numpy_count_as_pythons(tmp_path: Path) -> None:
    spec = dataclasses.replace(
        SPEC, keys=np.array(SPEC.keys), num_views=np.int64(2), shard_rows=np.int32(1000), has_pixels=np.bool_(False)
    )
    assert spec.metadata == SPEC.metadata
    assert open_cache(build(tmp_path / "t.h5", spec)).keys() == SPEC.keys


@pytest.mark.parametrize("finished", [True, False])
def test_an_equal_spec_resumes_whatever_its_teachers_fingerprint_holds(tmp_path: Path, finished: bool) -> None:
    teacher = {"name": "t", "mean": (0.5, 0.25), "taps": {1: "a", 2: ("b",)}, "scale": np.float32(0.5), "none": None}
    spec = dataclasses.replace(SPEC, teacher=teacher)
    if finished:
        build(tmp_path / "t.h5", spec)
    else:
        CacheWriter.create(tmp_path / "t.h5", spec).close()
    CacheWriter.create(tmp_path / "t.h5", dataclasses.replace(SPEC, teacher=dict(teacher))).close()
    assert spec.teacher == {
        "name": "t",
        "mean": [0.5, 0.25],
        "taps": {"1": "a", "2": ["b"]},
        "scale": 0.5,
        "none": None,
    }
    with pytest.raises(CacheMismatchError, match=r"teacher\.mean = \[0\.5, 0\.25\], this run has \[0\.5, 0\.5\]"):
        CacheWriter.create(tmp_path / "t.h5", dataclasses.replace(SPEC, teacher={**teacher, "mean": (0.5, 0.5)}))
