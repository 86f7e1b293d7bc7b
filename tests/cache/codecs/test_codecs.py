from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from codec_samples import awkward, is_likeliest, kl, teacher_like

from kdkit.cache.codecs import Codec, LowRankCodec, available_codecs, create_codec, default_codec
from kdkit.errors import ConfigError, ShapeError, UnknownNameError

NAMES = ["float32", "float16", "int8", "topk", "lowrank"]


def fitted(name: str, classes: int, **options: object) -> Codec:
    if name == "lowrank":
        options.setdefault("row_bytes", 24)
    if name == "topk":
        options.setdefault("k", min(10, classes))
    return create_codec(name, classes, **options).fit(teacher_like(200 if classes < 30_000 else 8, classes))


def test_every_codec_is_registered() -> None:
    assert sorted(name for name in available_codecs() if not create_codec(name, 20).multi_label) == sorted(
        [*NAMES, "head"]
    )


@pytest.mark.parametrize("classes", [2, 3, 10, 1000, 32768, 70_000])
@pytest.mark.parametrize("name", NAMES)
def test_awkward_rows_decode_to_finite_normalised_log_probabilities(name: str, classes: int) -> None:
    codec = fitted(name, classes)
    rows = awkward(classes)
    payload = codec.encode(rows)
    decoded = codec.decode(payload)
    assert payload.dtype == torch.uint8
    assert payload.shape == (len(rows), codec.row_bytes)
    assert decoded.dtype == torch.float32
    assert decoded.isfinite().all()
    torch.testing.assert_close(decoded.double().exp().sum(dim=1), torch.ones(len(rows)).double(), atol=1e-4, rtol=0)
    if name in ("float32", "topk", "lowrank"):
        assert is_likeliest(rows, decoded).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_codec_is_rebuilt_from_its_metadata_and_arrays(name: str) -> None:
    codec, rows = fitted(name, 100), teacher_like(20, 100, seed=5)
    again = create_codec(**json.loads(json.dumps(codec.to_dict()))).with_arrays(codec.arrays)
    assert again == codec
    assert hash(again) == hash(codec)
    assert torch.equal(again.encode(rows), codec.encode(rows))
    assert torch.equal(again.decode(codec.encode(rows)), codec.decode(codec.encode(rows)))


@pytest.mark.parametrize("name", NAMES)
def test_a_used_codec_survives_pickling(name: str) -> None:
    codec, rows = fitted(name, 100), teacher_like(20, 100, seed=5)
    payload = codec.encode(rows)
    again = pickle.loads(pickle.dumps(codec))
    assert again == codec
    assert torch.equal(again.decode(payload), codec.decode(payload))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_the_same_bytes_alone_and_in_any_batch(name: str) -> None:
    codec, rows = fitted(name, 300), torch.cat([teacher_like(150, 300, seed=7), awkward(300)])
    together = codec.encode(rows)
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert torch.equal(codec.encode(rows[shuffled]), together[shuffled])
    for i in range(0, len(rows), 20):
        assert torch.equal(codec.encode(rows[i : i + 1])[0], together[i])


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_stays_empty(name: str) -> None:
    codec = fitted(name, 50)
    payload = codec.encode(torch.zeros(0, 50))
    assert payload.shape == (0, codec.row_bytes)
    assert codec.decode(payload).shape == (0, 50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_any_float_type_encodes_without_a_gradient(name: str, dtype: torch.dtype) -> None:
    codec = fitted(name, 50)
    rows = teacher_like(4, 50).to(dtype).requires_grad_()
    decoded = codec.decode(codec.encode(rows))
    assert not decoded.requires_grad
    assert torch.equal(codec.encode(rows), codec.encode(rows.detach().float()))


@pytest.mark.parametrize("name", NAMES)
def test_a_slice_of_a_wider_payload_decodes_alike(name: str) -> None:
    codec = fitted(name, 50)
    payload = codec.encode(teacher_like(6, 50))
    wide = torch.cat([torch.zeros(6, 3, dtype=torch.uint8), payload], dim=1)
    torch.testing.assert_close(codec.decode(wide[:, 3:]), codec.decode(payload))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_and_types_are_refused(name: str) -> None:
    codec = fitted(name, 50)
    with pytest.raises(ShapeError, match=r"float logits \[B, 50\]"):
        codec.encode(torch.zeros(3, 51))
    with pytest.raises(ShapeError, match="int64"):
        codec.encode(torch.zeros(3, 50, dtype=torch.int64))
    with pytest.raises(ShapeError, match=f"{codec.row_bytes}"):
        codec.decode(torch.zeros(3, codec.row_bytes + 1, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="float32"):
        codec.decode(torch.zeros(3, codec.row_bytes))


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_payload_decodes_without_an_error(name: str) -> None:
    codec = fitted(name, 50)
    noise = torch.randint(256, (64, codec.row_bytes), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    assert codec.decode(noise).shape == (64, 50)


def test_float32_gives_the_teacher_back() -> None:
    rows = teacher_like(8, 1000)
    codec = create_codec("float32", 1000)
    torch.testing.assert_close(codec.decode(codec.encode(rows)), rows.log_softmax(dim=1))


@pytest.mark.parametrize(("name", "bound"), [("float32", 1e-5), ("float16", 1e-4), ("int8", 5e-3)])
def test_dense_codecs_stay_under_their_stated_divergence(name: str, bound: float) -> None:
    for classes in (2, 10, 1000, 32768):
        codec, rows = create_codec(name, classes), awkward(classes)
        assert kl(rows, codec.decode(codec.encode(rows))).max() <= bound


def test_int8_stays_below_a_ten_thousandth_of_a_nat_on_teacher_like_logits() -> None:
    rows = teacher_like(500, 1000)
    codec = create_codec("int8", 1000)
    assert kl(rows, codec.decode(codec.encode(rows))).mean() <= 1e-4


def test_the_default_is_lowrank_only_where_it_is_smaller_than_float16() -> None:
    assert default_codec(1000) == LowRankCodec(1000)
    assert default_codec(49).name == "lowrank"
    assert default_codec(48).name == "float16"
    assert default_codec(2).name == "float16"


def test_codecs_that_learn_nothing_refuse_arrays() -> None:
    with pytest.raises(ConfigError, match="has no fit"):
        create_codec("int8", 10).with_arrays({"mean": np.zeros(10, np.float32)})


def test_unknown_names_and_options_are_refused_with_what_is_known() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lowrank'"):
        create_codec("lowrnk", 10)
    with pytest.raises(ConfigError, match="it takes entries, max_rank, row_bytes"):
        create_codec("lowrank", 1000, rank=3)
    with pytest.raises(ConfigError, match="at least 2 classes"):
        create_codec("topk", 1)


@pytest.mark.parametrize("name", ["float16", "int8", "topk", "lowrank"])
def test_one_row_of_nan_leaves_its_neighbours_alone(name: str) -> None:
    codec, rows = fitted(name, 50), teacher_like(5, 50, seed=3)
    spoilt = rows.clone()
    spoilt[2] = torch.nan
    others = [0, 1, 3, 4]
    assert torch.equal(codec.encode(spoilt)[others], codec.encode(rows)[others])
