"""Fault 29: files of a newer format version, and of every older one."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import malice
import numpy as np
import pytest
from synthetic import Synthetic

from kdkit import open_cache
from kdkit.errors import CacheVersionError

GOLDEN = Path(__file__).parents[2] / "cache" / "golden"
LEAST = {"float32": -np.inf, "float16": -np.inf, "int8": -10.0}  # int8 spends no level on what is as good as 0
TOLERANCE = {"float32": 1e-6, "float16": 2e-2, "int8": 6e-2}  # of a log-probability; rows reach down to -40


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
def test_fault_29_the_golden_files_of_version_1_are_read(codec: str) -> None:
    expected = json.loads((GOLDEN / f"v1-{codec}.json").read_text(encoding="utf-8"))
    cache = open_cache(GOLDEN / f"v1-{codec}.h5")
    cache.verify()
    assert cache.keys() == expected["keys"]
    assert cache.codecs["logits"].name == expected["codec"] == codec
    assert (cache.num_rows, cache.num_views, cache.num_classes) == (5, 2, 4)
    assert cache.metadata.dataset["class_names"] == ["null", "eins", "deux", "三"]
    for view in range(2):
        decoded = cache.codecs["logits"].decode(cache.read_encoded(np.array([4, 0, 1, 2, 3]), view)).numpy()
        wanted = np.array(expected["log_probabilities"][view])[[4, 0, 1, 2, 3]]
        held = wanted > LEAST[codec]
        np.testing.assert_allclose(decoded[held], wanted[held], rtol=0, atol=TOLERANCE[codec])
        np.testing.assert_allclose(np.exp(decoded), np.exp(wanted), rtol=0, atol=1e-3)
        assert cache.pixel_crc32(view) == {row: row + 10 * view for row in range(5)}


@pytest.mark.parametrize("codec", ["topk", "lowrank"])
def test_fault_29_the_golden_files_of_the_small_codecs_decode_as_when_they_were_made(codec: str) -> None:
    expected = json.loads((GOLDEN / f"v1-{codec}.json").read_text(encoding="utf-8"))
    cache = open_cache(GOLDEN / f"v1-{codec}.h5")
    cache.verify()
    assert cache.keys() == expected["keys"]
    assert cache.codecs["logits"].name == expected["codec"] == codec
    assert (cache.num_rows, cache.num_views, cache.num_classes) == (5, 2, 24)
    for view, wanted in enumerate(expected["log_probabilities"]):
        decoded = cache.codecs["logits"].decode(cache.read_encoded(np.arange(5), view)).numpy()
        np.testing.assert_allclose(decoded, np.array(wanted), rtol=0, atol=1e-4)


@pytest.mark.parametrize("file", ["v1-features", "v1-features32"])
def test_fault_29_the_golden_files_of_features_are_read(file: str) -> None:
    expected = json.loads((GOLDEN / f"{file}.json").read_text(encoding="utf-8"))
    cache = open_cache(GOLDEN / f"{file}.h5")
    cache.verify()
    assert cache.keys() == expected.pop("keys")
    assert set(cache.streams) == set(expected) == {"pooled", "tokens", "stages.2"}
    for name, views in expected.items():
        for view, wanted in enumerate(views):
            decoded = cache.codecs[name].decode(cache.read_encoded(np.arange(5), view, name)).numpy()
            allowed = {"float32": 0.0, "float16": 2**-9, "int8": 7 / 510}  # of numbers from -3 to 4.5
            tolerance = allowed[cache.codecs[name].name]
            np.testing.assert_allclose(decoded, np.array(wanted), rtol=0, atol=tolerance)
            assert (decoded[1] == -0.5).all()


def test_fault_29_the_golden_file_of_sparse_features_decodes_as_when_it_was_made() -> None:
    expected = json.loads((GOLDEN / "v1-sparse.json").read_text(encoding="utf-8"))
    cache = open_cache(GOLDEN / "v1-sparse.h5")
    cache.verify()
    assert cache.keys() == expected.pop("keys")
    assert set(cache.streams) == set(expected) == {"pooled", "stages.2"}
    for name, views in expected.items():
        for view, wanted in enumerate(views):
            decoded = cache.codecs[name].decode(cache.read_encoded(np.arange(5), view, name)).numpy()
            np.testing.assert_allclose(decoded, np.array(wanted), rtol=1e-6)
            assert (decoded[1:3] == np.array([0.75, 0]).reshape(2, *[1] * (decoded.ndim - 1))).all()


def test_fault_29_the_golden_file_with_fidelity_by_view_is_read() -> None:
    expected = json.loads((GOLDEN / "v1-fidelity.json").read_text(encoding="utf-8"))
    cache = open_cache(GOLDEN / "v1-fidelity.h5")
    cache.verify()
    assert cache.keys() == expected["keys"]
    for view, told in enumerate(cache.fidelity()["logits"]):
        measures = np.array(expected["logits"][view])  # of rows 0, 2 and 4
        assert [told["rows"], told["kl_mean_t1"], told["kl_mean_t2"], told["kl_mean_t4"], told["top1_agreement"]] == [
            3,
            *measures.mean(0),
        ]
    for view, told in enumerate(cache.fidelity()["tokens"]):
        measures = np.array(expected["tokens"][view])
        assert told == {
            "rows": 3,
            "relative_error_mean": measures.mean(),
            "relative_error_max": measures.max(),
            "relative_error_p90": pytest.approx(np.quantile(measures, 0.9)),
        }


@pytest.mark.parametrize("packed", [True, False])
def test_fault_29_a_newer_version_is_named_with_what_to_do(tmp_path: Path, packed: bool) -> None:
    path = Synthetic(num_rows=20).build(tmp_path / "t.h5", packed=packed)
    with h5py.File(path if packed else path / "index.h5", "r+") as file:
        document = {"format": "kdkit teacher cache", "version": 2, "rows_are_called_otherwise": 20}
        malice.set_document(file, "kdkit", json.dumps(document))
        del file["rows"]  # nothing else of a newer version need be as it is in this one
    with pytest.raises(CacheVersionError, match=r"has format version 2, this kdkit reads up to version 1: upgrade"):
        open_cache(path)


def test_fault_29_a_codec_of_a_newer_kdkit_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = Synthetic(num_rows=20).build(tmp_path / "t.h5")
    with h5py.File(path, "r+") as file:
        stream = {"codec": {"name": "telepathy", "num_classes": 6}, "row_bytes": 24}
        malice.metadata(streams={"logits": stream})(file, path)
    with pytest.raises(CacheVersionError, match=r"'telepathy', this kdkit knows float32, .*upgrade"):
        open_cache(path)


def test_fault_29_the_golden_file_with_content_records_and_absent_samples_is_read() -> None:
    expected = json.loads((GOLDEN / "v1-content.json").read_text(encoding="utf-8"))
    cache = open_cache(GOLDEN / "v1-content.h5")
    cache.verify()
    assert cache.keys() == expected["keys"]
    assert cache.absent_keys == expected["absent"]
    records = cache.content()
    assert records[:, :8].copy().view("<u8").ravel().tolist() == expected["size"]
    assert records[:, 8:12].copy().view("<u4").ravel().tolist() == expected["crc32"]
    assert [digest.tobytes().hex() for digest in records[:, 12:]] == expected["digest"]


@pytest.mark.parametrize("codec", ["sigmoid_float32", "sigmoid_float16", "sigmoid_int8"])
def test_fault_29_the_golden_files_of_multi_label_logits_are_read(codec: str) -> None:
    expected = json.loads((GOLDEN / f"v1-{codec}.json").read_text(encoding="utf-8"))
    cache = open_cache(GOLDEN / f"v1-{codec}.h5")
    cache.verify()
    assert cache.is_multi_label
    for view, wanted in enumerate(expected["logits"]):
        decoded = cache.codecs["logits"].decode(cache.read_encoded(np.arange(5), view)).numpy()
        kept = np.clip(wanted, -20, 20) if codec == "sigmoid_int8" else np.array(wanted)
        np.testing.assert_allclose(decoded, kept, rtol=0, atol={"sigmoid_int8": 0.08}.get(codec, 0))
