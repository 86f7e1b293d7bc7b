"""For any logits: a normalised log-distribution, the top-1 kept, a divergence under the bound of cache/CODECS.md."""

from __future__ import annotations

import functools

import torch
from codec_samples import even_spread_cost, is_likeliest, kl, teacher_like
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from kdkit.cache.codecs import Codec, create_codec

CLASSES = (2, 3, 17, 120)
K = 2


@functools.cache
def fitted(name: str, classes: int) -> Codec:
    options = {"topk": {"k": min(K, classes)}, "lowrank": {"row_bytes": 16, "entries": min(K, classes - 1)}}
    return create_codec(name, classes, **options.get(name, {})).fit(teacher_like(40, classes))


@st.composite
def any_logits(draw: st.DrawFn) -> Tensor:
    """[1 to 4, C] in three moods: anything finite, a few distinct values, or a teacher's with one class raised."""
    classes, scale = draw(st.sampled_from(CLASSES)), draw(st.sampled_from([0.1, 5.0, 100.0, 1e4]))
    levels = draw(st.sampled_from([None, 1, 2, 5]))
    shape = (draw(st.integers(1, 4)), classes)
    unit = st.floats(-1, 1, width=32) if levels is None else st.integers(-levels, levels).map(lambda i: i / levels)
    rows = torch.from_numpy(draw(npst.arrays("float32", shape, elements=unit))) * scale
    rows[:, draw(st.integers(0, classes - 1))] += draw(st.sampled_from([0.0, 3.0, 1e4]))
    return rows


def bound(name: str, rows: Tensor) -> Tensor | float:
    classes = rows.shape[1]
    if name in ("topk", "lowrank"):
        kept = min(K, classes if name == "topk" else classes - 1)
        rounding = {"topk": 0.0022, "lowrank": 0.0085}[name] + 3e-7 * (kept + 1)
        return rounding + 1e-6 + (even_spread_cost(rows, kept) if kept < classes else 0)
    return {"float32": 1e-5, "float16": 1e-4, "int8": 0.005 + 2e-13 * classes}[name]


def check(name: str, rows: Tensor) -> None:
    codec = fitted(name, rows.shape[1])
    decoded = codec.decode(codec.encode(rows))
    assert decoded.isfinite().all()
    torch.testing.assert_close(decoded.double().exp().sum(dim=1), torch.ones(len(rows)).double(), atol=1e-5, rtol=0)
    assert (kl(rows, decoded) <= bound(name, rows)).all()
    if name in ("float32", "topk", "lowrank"):
        assert is_likeliest(rows, decoded).all()


@settings(max_examples=150, deadline=None)
@given(any_logits())
def test_topk_holds_its_promises_for_any_logits(rows: Tensor) -> None:
    check("topk", rows)


@settings(max_examples=80, deadline=None)
@given(any_logits())
def test_lowrank_holds_its_promises_for_any_logits(rows: Tensor) -> None:
    check("lowrank", rows)


@settings(max_examples=80, deadline=None)
@given(any_logits(), st.sampled_from(["float32", "float16", "int8"]))
def test_dense_codecs_hold_their_promises_for_any_logits(rows: Tensor, name: str) -> None:
    check(name, rows)
