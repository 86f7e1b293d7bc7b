"""The codec head: features are found again from logits, and the head decodes them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from codec_samples import kl
from support import digits_dataset, tiny_model

from kdkit import build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.building.recode import recode_cache
from kdkit.cache.codecs import HeadCodec, create_codec, create_feature_codec
from kdkit.errors import ConfigError, NonFiniteOutputError

CLASSES, FEATURES = 300, 64


def layer(classes: int = CLASSES) -> torch.nn.Linear:
    torch.manual_seed(0)
    made = torch.nn.Linear(FEATURES, classes).requires_grad_(False)
    made.weight.mul_(8)
    return made


def after_relu(rows: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, FEATURES, generator=draw) - 1).relu()


@pytest.mark.parametrize(("classes", "chosen"), [(CLASSES, "sparse"), (10, "dense")])
def test_logits_decode_as_the_head_computes_them_from_few_bytes_of_features(classes: int, chosen: str) -> None:
    head = layer(classes)
    sample, logits = head(after_relu(400, 1)), head(after_relu(60, 2))
    codec = create_codec("head", classes, row_bytes=64).fit(sample, head.weight)
    payload = codec.encode(logits + 5)  # an offset of all classes is no difference
    decoded = codec.decode(payload)
    assert payload.shape == (60, 64)
    assert ("low_bits" in codec.arrays) == (chosen == "dense")
    assert kl(logits, decoded).mean() < 0.01
    assert (decoded.argmax(1) == logits.argmax(1)).float().mean() > 0.95
    plain = create_feature_codec(chosen, (FEATURES,), row_bytes=64)
    plain = plain.with_arrays({name: codec.arrays[name] for name in codec.arrays if name not in ("weight", "offset")})
    product = (
        plain.decode(payload).double().numpy() @ codec.arrays["weight"].astype(np.float64).T + codec.arrays["offset"]
    )
    wanted = product - np.log(np.exp(product).sum(1, keepdims=True))
    np.testing.assert_allclose(decoded, wanted, atol=1e-4)
    assert torch.equal(codec.encode(logits[7:8]), codec.encode(logits)[7:8])
    again = create_codec(**codec.to_dict()).with_arrays(dict(codec.arrays))
    assert again == codec == pickle.loads(pickle.dumps(codec))


def test_what_is_no_product_of_the_head_is_refused_in_a_line() -> None:
    head, codec = layer(), HeadCodec(CLASSES)
    logits = head(after_relu(100, 1))
    with pytest.raises(ConfigError, match="needs a teacher that ends in a linear layer"):
        codec.fit(logits)
    with pytest.raises(ConfigError, match=r"last layer leaves out \d+% of the squared logits, expected at most 1%"):
        codec.fit(logits.abs(), head.weight)
    with pytest.raises(ConfigError, match=r"a finite weight \[300, features\], got \[10, 64\]"):
        codec.fit(logits, head.weight[:10])
    with pytest.raises(NonFiniteOutputError, match="the sample holds no rows"):
        codec.fit(logits[:0], head.weight)
    with pytest.raises(ConfigError, match="not fitted yet"):
        codec.encode(logits)
    with pytest.raises(ConfigError, match="at least 20, got 19"):
        HeadCodec(CLASSES, 19)
    arrays = dict(codec.fit(logits, head.weight).arrays)
    for name, wrong in (
        ("weight", arrays["weight"][:10]),
        ("offset", arrays["offset"] * np.nan),
        ("more", arrays["offset"]),
    ):
        with pytest.raises(ConfigError):
            codec.with_arrays({**arrays, name: wrong})


def test_a_cache_of_a_real_teacher_holds_its_head_and_cannot_be_made_without_it(tmp_path: Path) -> None:
    teacher, dataset = create_teacher(tiny_model()), digits_dataset(40)
    config = BuildConfig(num_workers=0, batch_size=20, codec="float32")
    build_cache(teacher, dataset, tmp_path / "exact.h5", config)
    config = BuildConfig(num_workers=0, batch_size=20, codec="head", row_bytes=64)
    for _ in range(2):  # the second build finds the first
        build_cache(teacher, dataset, tmp_path / "head.h5", config)
    exact, cache = open_cache(tmp_path / "exact.h5"), open_cache(tmp_path / "head.h5")
    logits = exact.codecs["logits"].decode(exact.read_encoded(range(40), 1, "logits"))
    decoded = cache.codecs["logits"].decode(cache.read_encoded(range(40), 1, "logits"))
    divergence = kl(logits, decoded)[:: cache.metadata.fidelity["logits"]["each"]]
    told = cache.fidelity()["logits"][1]["kl_mean_t1"]
    assert float(divergence.mean()) == pytest.approx(told, rel=0.1, abs=1e-6)
    assert told < 1e-3
    assert torch.equal(F.log_softmax(decoded, 1), decoded) or decoded.exp().sum(1).allclose(torch.ones(40))
    with pytest.raises(ConfigError, match="needs a teacher that ends in a linear layer, and a build"):
        recode_cache(tmp_path / "exact.h5", tmp_path / "r.h5", codec="head")
