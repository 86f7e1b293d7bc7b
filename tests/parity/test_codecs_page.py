"""Decodes topk, lowrank, sparse and dense payloads with plain numpy, written from cache/CODECS.md alone, and compares.

Promised: the same log-probabilities to 1e-4 nats. Not promised: equal last bits, as the two add in different orders.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from kdkit.cache.codecs import create_codec, create_feature_codec

Row = Any  # numpy array


GOLDEN = Path(__file__).parents[2] / "cache" / "golden"


def lse(values: Row) -> float:
    top = values.max()
    return float(top + np.log(np.exp(values - top).sum()))


class Fields:
    """Reads fields of a row from its first bit on."""

    def __init__(self, row: Row) -> None:
        self.bits = "".join(map(str, np.unpackbits(row)))
        self.at = 0

    def take(self, width: int) -> int:
        self.at += width
        return int(self.bits[self.at - width : self.at], 2)


def read_entries(fields: Fields, C: int, K: int, V: int) -> tuple[list[int], Row]:
    w = max(1, (C - 1).bit_length())
    s = 16 / 2**V
    rest = -s * fields.take(V)
    ids = [fields.take(w) for _ in range(K)]
    values = [-s * fields.take(V) for _ in range(K)]
    values[0] += s / 16
    g = np.array([*values, rest] if K < C else values)
    return ids, g - lse(g)


def decode_topk(row: Row, C: int, K: int) -> Row:
    ids, g = read_entries(Fields(row), C, K, V=8)
    result = np.full(C, g[-1] - math.log(C - K) if K < C else 0.0)
    result[ids] = g[:K]
    return result


def decode_lowrank(row: Row, C: int, K: int, arrays: dict[str, Row]) -> Row:
    fields = Fields(row)
    ids, g = read_entries(fields, C, K, V=7)
    e = fields.take(5)
    bits = [int(b) for b in arrays["bits"]]
    codes = np.array([fields.take(b) for b in bits], dtype=np.float64)
    z = np.zeros(C)
    if e > 0:
        middle = (2.0 ** np.array(bits) - 1) / 2
        coefficients = 2 ** ((e - 8) / 4) * arrays["step"].astype(np.float64) * (codes - middle)
        z = arrays["mean"] + coefficients @ arrays["basis"].astype(np.float64)
    others = np.setdiff1d(np.arange(C), ids)
    result = np.zeros(C)
    result[others] = z[others] - lse(z[others]) + g[-1]
    result[ids] = g[:K]
    assert set(fields.bits[fields.at :]) <= {"0"}
    return result


def decode_sparse(row: Row, n: int, signed: bool) -> Row:
    head = 4 if n < 65_536 else 6
    e, K, rest = int(row[:2].view("<u2")[0]), int.from_bytes(bytes(row[2:head]), "little"), row[head:]
    s, g = np.float64(np.float32(2.0 ** ((e - 2048) / 16))), int(signed)
    if K == 0:
        return np.full(n, rest[:4].copy().view("<f4")[0], dtype=np.float64)
    low_bits = next((b for b in range(12) if 4 * len(rest) * (2 ** (b + 2) + 1) >= n * (b + g + 5)), 12)
    stream, fields, result = np.unpackbits(rest), Fields(rest[::-1].copy()), np.zeros(n)
    at, place = 0, -1

    def zeros() -> int:
        nonlocal at
        begun = at
        while stream[at] == 0:
            at += 1
        at += 1
        return at - 1 - begun

    for _ in range(K):
        run, level = zeros(), zeros() + 1
        place += 1 + (run << low_bits) + (fields.take(low_bits) if low_bits else 0)
        result[place] = (1 + 1 / 32 if level == 1 else level) * s * (-1 if signed and fields.take(1) else 1)
    assert at <= 8 * len(rest) - 8 * math.ceil(fields.at / 8)
    return result


def cosines(side: int) -> Row:
    u, x = np.arange(side)[:, None], np.arange(side)
    table = math.sqrt(2 / side) * np.cos(math.pi * (x + 0.5) * u / side)
    table[0] = math.sqrt(1 / side)
    return table


def decode_dense(row: Row, shape: tuple[int, ...], arrays: dict[str, Row]) -> Row:
    e, mean, basis = int(row[:2].view("<u2")[0]), *(arrays[name].astype(np.float64) for name in ("mean", "basis"))
    if e == 0:
        return np.full(shape, row[2:6].copy().view("<f4")[0], dtype=np.float64)
    s, c, k = np.float64(np.float32(2.0 ** ((e - 2048) / 16))), np.zeros(math.prod(shape)), arrays["low_bits"].tolist()
    with_low = [j for j in range(len(k)) if 0 < k[j] < 255]
    fields = Fields(row[2:])
    low = dict.fromkeys(range(len(k)), 0) | {j: fields.take(k[j]) for j in with_low}
    unary, at = np.unpackbits(row[2:]), 8 * math.ceil(fields.at / 8)
    for j in with_low + [j for j in range(len(k)) if k[j] == 0]:
        high = 0
        while unary[at] == 0:
            high, at = high + 1, at + 1
        at, code = at + 1, (high << k[j]) + low[j]
        c[j] = s * (code // 2 if code % 2 == 0 else -(code + 1) // 2)
    if len(shape) == 1:
        return mean + c @ basis
    if len(shape) == 2:
        return mean + arrays["positions"].astype(np.float64).T @ c.reshape(shape) @ basis
    channels, height, width = shape
    grid = np.einsum("cuv,cd,ux,vy->dyx", c.reshape(channels, width, height), basis, cosines(width), cosines(height))
    return mean[:, None, None] + grid


def sample(rows: int, classes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 20, generator=generator)
    return features @ torch.randn(20, classes, generator=torch.Generator().manual_seed(0))


def rows_to_compare(classes: int) -> torch.Tensor:
    flat, sure = torch.zeros(1, classes), torch.zeros(1, classes)
    sure[0, -1] = 1e4
    return torch.cat([sample(12, classes, seed=1), sample(4, classes, seed=2) * 5, flat, sure])


@pytest.mark.parametrize(("classes", "k"), [(2, 1), (5, 5), (1000, 10), (70_000, 3)])
def test_a_topk_row_decodes_as_its_page_describes(classes: int, k: int) -> None:
    codec, rows = create_codec("topk", classes, k=k), rows_to_compare(classes)
    payload = codec.encode(rows)
    for row, decoded in zip(payload.numpy(), codec.decode(payload).numpy(), strict=True):
        np.testing.assert_allclose(decode_topk(row, classes, k), decoded, atol=1e-4)


@pytest.mark.parametrize(
    ("classes", "row_bytes"), [(2, 5), (10, 8), (1000, 96), pytest.param(70_000, 24, marks=pytest.mark.slow)]
)
def test_a_lowrank_row_decodes_as_its_page_describes(classes: int, row_bytes: int) -> None:
    codec = create_codec("lowrank", classes, row_bytes=row_bytes).fit(sample(60, classes, seed=3))
    payload = codec.encode(rows_to_compare(classes))
    entries, arrays = codec.to_dict()["entries"], dict(codec.arrays)
    for row, decoded in zip(payload.numpy(), codec.decode(payload).numpy(), strict=True):
        np.testing.assert_allclose(decode_lowrank(row, classes, entries, arrays), decoded, atol=1e-4)


def test_an_int8_row_decodes_as_its_page_describes() -> None:
    codec = create_codec("int8", 100)
    payload = codec.encode(rows_to_compare(100))
    for row, decoded in zip(payload.numpy(), codec.decode(payload).numpy(), strict=True):
        u = row[4:] / 255
        v = -row[:4].view("<f4")[0] * (0.4 * u + 0.6 * u**2)
        np.testing.assert_allclose(v - lse(v), decoded, atol=1e-4)


SPARSE = [(7, 16, False), (48, 20, True), (1280, 256, False), (1280, 1000, True), (70_000, 400, False)]


@pytest.mark.parametrize(("n", "row_bytes", "signed"), SPARSE)
def test_a_sparse_row_decodes_as_its_page_describes(n: int, row_bytes: int, signed: bool) -> None:
    rows = torch.randn(6, n, generator=torch.Generator().manual_seed(0)).pow(3) * torch.logspace(-4, 4, 6)[:, None]
    codec = create_feature_codec("sparse", (n,), row_bytes=row_bytes, has_signs=signed)
    payload = codec.encode(torch.cat([rows if signed else rows.relu(), torch.full((1, n), 0.5)]))
    for row, decoded in zip(payload.numpy(), codec.decode(payload).numpy(), strict=True):
        np.testing.assert_allclose(decode_sparse(row, n, signed), decoded, rtol=1e-6)


def test_the_golden_rows_of_sparse_decode_without_kdkit_as_the_page_describes() -> None:
    expected = json.loads((GOLDEN / "v1-sparse.json").read_text(encoding="utf-8"))
    with h5py.File(GOLDEN / "v1-sparse.h5") as file:
        streams = json.loads(file.attrs["kdkit"])["streams"]
        for name, described in streams.items():
            for view, rows in enumerate(expected[name]):
                for row, wanted in zip(file[f"views/{view:04d}/{name}"][()], rows, strict=True):
                    decoded = decode_sparse(row, np.size(wanted), described["codec"]["has_signs"])
                    np.testing.assert_allclose(decoded, np.ravel(wanted), rtol=1e-6)


@pytest.mark.parametrize("shape", [(30,), (7, 12), (6, 5, 3)])
def test_a_dense_row_decodes_as_its_page_describes(shape: tuple[int, ...]) -> None:
    n = math.prod(shape)
    rows = sample(40, n, seed=3).reshape(40, *shape) + 3
    codec = create_feature_codec("dense", shape, row_bytes=16 + n // 2).fit(rows[:30])
    payload = codec.encode(torch.cat([rows[30:], rows[30:33] * 40, torch.full((1, *shape), 0.5)]))
    for row, decoded in zip(payload.numpy(), codec.decode(payload).numpy(), strict=True):
        wanted = decode_dense(row, shape, dict(codec.arrays))
        np.testing.assert_allclose(wanted, decoded, atol=1e-5 * np.abs(wanted).max())


def test_the_golden_rows_of_dense_decode_without_kdkit_as_the_page_describes() -> None:
    expected = json.loads((GOLDEN / "v1-dense.json").read_text(encoding="utf-8"))
    with h5py.File(GOLDEN / "v1-dense.h5") as file:
        streams = json.loads(file.attrs["kdkit"])["streams"]
        for name, described in streams.items():
            arrays = {key: array[()] for key, array in file[f"codecs/{name}"].items()}
            for view, rows in enumerate(expected[name]):
                for row, wanted in zip(file[f"views/{view:04d}/{name}"][()], rows, strict=True):
                    decoded = decode_dense(row, tuple(described["codec"]["shape"]), arrays)
                    np.testing.assert_allclose(decoded, wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["topk", "lowrank"])
def test_the_golden_rows_decode_without_kdkit_as_the_page_describes(name: str) -> None:
    expected = json.loads((GOLDEN / f"v1-{name}.json").read_text(encoding="utf-8"))["log_probabilities"]
    with h5py.File(GOLDEN / f"v1-{name}.h5") as file:
        options = json.loads(file.attrs["kdkit"])["streams"]["logits"]["codec"]
        arrays = {key: array[()] for key, array in file["codecs/logits"].items()} if name == "lowrank" else {}
        for view, rows in enumerate(expected):
            for row, wanted in zip(file[f"views/{view:04d}/logits"][()], rows, strict=True):
                if name == "topk":
                    decoded = decode_topk(row, options["num_classes"], options["k"])
                else:
                    decoded = decode_lowrank(row, options["num_classes"], options["entries"], arrays)
                np.testing.assert_allclose(decoded, np.array(wanted), atol=1e-4)
