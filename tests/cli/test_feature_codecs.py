"""Coded features and logits on the command line: every command that takes a cache, on caches in these codecs."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grown import rows_by_key
from safetensors.torch import save_file
from support import cache_contents, tiny_model, write_digits

from kdkit.cache import open_cache
from kdkit.cli import main

STREAMS = ("logits", "pooled", "stages.2")
Rows = dict[tuple[str, int, str], bytes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 digits, a part of them, the rest (one of each class), and a teacher."""
    made = tmp_path_factory.mktemp("coded")
    for place in sorted(write_digits(made / "all", 40).glob("*/*.png")):
        part = made / ("rest" if 20 <= int(place.stem) < 30 else "some") / place.parent.name
        part.mkdir(parents=True, exist_ok=True)
        shutil.copy(place, part)
    save_file(tiny_model(seed=1).state_dict(), made / "teacher.safetensors")
    return made


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in the folder; returns what it printed, or for `fails=True` its error."""
    monkeypatch.chdir(folder)

    def run(line: str, *, fails: bool = False) -> str:
        assert main(shlex.split(line)) == int(fails), line
        printed = capsys.readouterr()
        return printed.err if fails else printed.out

    return run


TEACHER = "--teacher test_resnet --teacher.checkpoint teacher.safetensors"
LOADING = "--workers 0 --batch-size 16"
BUILD = f"{TEACHER} --size 32 {LOADING} --streams logits,pooled,stages.2 --codec float32"
CODED = "--build.feature_codec compact --build.feature_bytes 90"


def of(rows: Rows, *wanted: Any) -> Rows:
    """The rows whose key, view or stream is among those wanted."""
    return {name: row for name, row in rows.items() if set(name) & set(wanted)}


@pytest.mark.slow
def test_views_and_images_added_to_coded_features_are_coded_as_the_first_ones(folder: Path, run: Any) -> None:
    run(f"cache build some {BUILD} {CODED} --views 1 -o t.h5")
    run(f"cache build some {BUILD} {CODED} --views 2 -o two.h5")
    run(f"cache extend t.h5 some --views 2 {LOADING} {TEACHER}")
    assert cache_contents(folder / "t.h5") == cache_contents(folder / "two.h5")
    first, kept = open_cache(folder / "t.h5"), rows_by_key(folder / "t.h5")
    printed = run(f"cache extend t.h5 all {LOADING} {TEACHER}")
    grown, rows = open_cache(folder / "t.h5"), rows_by_key(folder / "t.h5")
    assert grown.codecs == first.codecs
    assert {name: rows[name] for name in kept} == kept
    run(f"cache build all {BUILD} --views 2 --build.feature_codec float16 -o exact.h5")
    exact = open_cache(folder / "exact.h5")
    places = {key: place for place, key in enumerate(exact.keys())}
    for stream in STREAMS[1:]:
        told = grown.metadata.fidelity[stream]
        assert f"about the mean {told['relative_error_about_mean']:.2g}, cosine {told['cosine_mean']:.4f}" in printed
        for key in {key for key, _, _ in set(rows) - set(kept)}:
            values = exact.codecs[stream].decode(exact.read_encoded([places[key]], 1, stream))
            codec = grown.codecs[stream]
            once = codec.decode(codec.encode(values))
            decoded = codec.decode(grown.read_encoded([grown.keys().index(key)], 1, stream))
            lost, of_once = (float((found - values).norm() / values.norm()) for found in (decoded, once))
            assert lost == pytest.approx(of_once, rel=0.1, abs=5e-3)  # not coded twice


@pytest.mark.slow
def test_coded_features_are_recoded_merged_pruned_packed_shown_and_verified(folder: Path, run: Any) -> None:
    run(f"cache build some {BUILD} --views 2 -o f.h5")
    run(f"cache build all {BUILD} {CODED} --views 2 --no-pack -o c.h5")
    run("cache pack c.h5.parts")
    run(f"cache verify c.h5 all {TEACHER}")
    info = json.loads(run("cache info c.h5 --json"))
    run("cache recode f.h5 -o r.h5 --feature-bytes 90")
    run("cache recode f.h5 -o s.h5 --feature-codec sparse --feature-bytes 90")
    for name in ("r", "s"):
        told = json.loads(run(f"cache info {name}.h5 --json"))["streams"]
        for stream in STREAMS[1:]:
            first, second = told[stream]["fidelity"]
            assert told[stream]["row_bytes"] == info["streams"][stream]["row_bytes"] == 90
            assert {"relative_error_about_mean", "cosine_mean"} <= set(first)
            assert not {"relative_error_about_mean", "cosine_mean"} & set(second)
    run(f"cache build rest {BUILD} --build.feature_codec dense --views 2 -o d.h5")
    assert not open_cache(folder / "s.h5").codecs["pooled"].has_signs  # but dense features may decode below 0
    for first, second in (("s", "d"), ("d", "s")):
        run(f"cache merge {first}.h5 {second}.h5 -o m{first}.h5")
        assert "about the mean -" not in run(f"cache info m{first}.h5")
    assert "in the codec sparse, which has lost too much" in run(
        "cache recode s.h5 -o t2.h5 --feature-codec sparse --feature-bytes 60", fails=True
    )
    assert "has lost too much" in run("cache recode r.h5 -o t2.h5 --feature-codec float16", fails=True)
    assert "at least 16 bytes" in run("cache recode f.h5 -o t2.h5 --feature-bytes 15", fails=True)
    run("cache prune c.h5 some")
    run("cache export c.h5 --stream pooled --view 1 -o pooled.npz")
    cache = open_cache(folder / "c.h5")
    exported = np.load(folder / "pooled.npz")
    decoded = cache.codecs["pooled"].decode(cache.read_encoded(range(30), 1, "pooled"))
    np.testing.assert_array_equal(exported["pooled"], decoded)
    assert list(exported["keys"]) == cache.keys()
    assert "about the mean -" not in run("cache info c.h5")
    run("cache show c.h5 some -o shown.png")


def test_logits_by_the_head_follow_a_class_map_and_need_one_linear_layer(folder: Path, run: Any) -> None:
    (folder / "map.json").write_text(json.dumps([3, 1, 4, 0, 5, 9, 2, 6, 8, 7]))
    mapped = f"{TEACHER} --size 32 {LOADING} --views 1 --teacher.class_map map.json"
    run(f"cache build some {mapped} --codec head --bytes 64 -o h.h5")
    run(f"cache build some {mapped} --codec float32 -o e.h5")
    told = json.loads(run("cache info h.h5 --json"))["streams"]["logits"]["fidelity"][0]
    assert told["kl_mean_t1"] < 1e-3
    exact, coded = open_cache(folder / "e.h5"), open_cache(folder / "h.h5")
    decoded = [cache.codecs["logits"].decode(cache.read_encoded(range(30), 0)) for cache in (exact, coded)]
    assert (decoded[0].softmax(1) - decoded[1].softmax(1)).abs().max() < 0.02
    run(f"cache extend h.h5 all {LOADING} {TEACHER} --teacher.class_map map.json")
    assert open_cache(folder / "h.h5").codecs == coded.codecs
    second = "--teacher.ensemble '[{model: test_resnet, checkpoint: teacher.safetensors}]'"
    message = run(f"cache build some {mapped} {second} --codec head -o both.h5", fails=True)
    assert "head needs a teacher that ends in a linear layer" in message
