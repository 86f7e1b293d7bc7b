"""Codecs whose rows are codes: whatever the bytes of a row are, and whatever is encoded, numbers are finite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kdkit.cache.codecs import DenseFeature, RowCodec, create_codec, create_feature_codec, dense_feature, sparse

CLASSES, ROW_BYTES = 30, 40
SHAPES = [(1,), (24,), (1, 24), (5, 12), (24, 1, 1), (6, 4, 3)]


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(60, *shape, generator=torch.Generator().manual_seed(seed))


def head(features: int) -> RowCodec:
    """Of more features than classes they are in dense, of fewer in sparse."""
    weight, after_relu = drawn((features,))[:CLASSES], drawn((features,), 1).relu()
    return create_codec("head", CLASSES, row_bytes=ROW_BYTES).fit(after_relu @ weight.T, weight)


CODED: dict[str, Callable[[], RowCodec]] = {
    **{f"sparse {shape}": lambda s=shape: create_feature_codec("sparse", s, row_bytes=ROW_BYTES) for shape in SHAPES},
    "sparse, signed": lambda: create_feature_codec("sparse", (24,), row_bytes=ROW_BYTES, has_signs=True),
    **{f"dense {shape}": lambda s=shape: DenseFeature(s, ROW_BYTES).fit(drawn(s)) for shape in SHAPES},
    "head in sparse": lambda: head(8),
    "head in dense": lambda: head(50),
}
FLAT = {2: "of dense", 4: "of sparse"}
"""Where the float32 number of a row of equal numbers begins, whose other bytes are 0."""


@pytest.mark.parametrize("name", CODED)
def test_any_bytes_decode_to_finite_numbers(name: str) -> None:
    codec = CODED[name]()
    noise = torch.randint(0, 256, (200, ROW_BYTES), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    noise[150:, :2] = noise[150:, :2].clamp(1, 8)  # a step of its own, as most codes mean the coarsest
    noise[0], noise[1] = 0, 255
    for row, (place, value) in enumerate((p, v) for p in FLAT for v in (np.nan, np.inf, -np.inf, 3e38)):
        noise[2 + row] = 0
        noise[2 + row, place : place + 4] = torch.from_numpy(np.array([value], "<f4").view(np.uint8))
    assert codec.decode(noise).isfinite().all()


@pytest.mark.parametrize("name", ["sparse", "dense", "compact"])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_of_any_precision_and_size_stay_near_in_few_bytes_and_close_in_many(
    shape: tuple[int, ...], name: str
) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        for kind, rows in {
            "both signs": drawn(shape),
            "after a ReLU": drawn(shape).relu(),
            "zeros": torch.zeros(60, *shape),
            "equal": torch.full((60, *shape), -0.3),
            "one number of one row": torch.zeros(60, *shape).index_fill(0, torch.tensor([3]), 6e4),
        }.items():
            values = rows.to(dtype)
            errors = []
            for row_bytes in (16, 4 * rows[0].numel() + 40):
                made = create_feature_codec(name, shape, row_bytes=row_bytes).suited_to(values)
                assert made.is_encodable(values).all()
                codec = made.fit(values)
                found = codec.decode(codec.encode(values))
                lost = (found.double() - values.double()).flatten(1).norm(dim=1)
                errors.append(lost / values.double().flatten(1).norm(dim=1).clamp_min(1e-300))
            assert errors[0].max() <= 1 + 1e-6, (kind, dtype)
            assert errors[1].max() < 0.02, (kind, dtype)


@pytest.mark.parametrize(("name", "module"), [("sparse", sparse), ("dense", dense_feature)])
def test_rows_of_far_more_bytes_than_numbers_are_encoded_few_at_a_time(
    name: str, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, bits = drawn((8,)), []
    with_ones = module.bytes_with_ones  # type: ignore[attr-defined]

    def watched(places: Tensor, num_bytes: int) -> Tensor:
        bits.append(8 * len(places) * num_bytes)
        return with_ones(places, num_bytes)

    monkeypatch.setattr(module, "bytes_with_ones", watched)
    codec = create_feature_codec(name, (8,), row_bytes=1 << 18).suited_to(rows).fit(rows)
    assert codec.decode(codec.encode(rows)).allclose(rows, atol=1e-2)
    assert max(bits) <= 8 << 20


def test_a_basis_is_fitted_to_all_columns_of_a_map() -> None:
    """Each twelfth position of 1,536 maps of 16 x 16, as many as a fit takes, is in four columns alone."""
    draw = torch.Generator().manual_seed(0)
    mixed = torch.einsum(
        "cd,rdhw->rchw", torch.randn(8, 2, generator=draw), torch.randn(2048, 2, 16, 16, generator=draw)
    )
    mixed[..., ::4] = 0  # which says nothing of the channels
    codec = DenseFeature((8, 16, 16), 400).fit(mixed)
    lost = (codec.decode(codec.encode(mixed[:64])) - mixed[:64]).square().sum()
    assert lost < 0.02 * mixed[:64].square().sum()
