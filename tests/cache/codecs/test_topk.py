from __future__ import annotations

import pytest
import torch
from codec_samples import awkward, even_spread_cost, is_likeliest, kl, teacher_like

from kdkit.cache.codecs import create_codec
from kdkit.errors import ConfigError


def test_ten_of_a_thousand_classes_take_at_most_28_bytes() -> None:
    assert create_codec("topk", 1000, k=10).row_bytes == 24


def test_kept_classes_come_back_within_half_a_step_and_the_rest_is_even() -> None:
    rows = teacher_like(64, 1000)
    codec = create_codec("topk", 1000, k=10)
    decoded, log_p = codec.decode(codec.encode(rows)), rows.log_softmax(dim=1)
    values, ids = log_p.topk(11, dim=1)
    torch.testing.assert_close(decoded.gather(1, ids[:, :10]), values[:, :10], atol=1 / 16, rtol=0)
    rest = decoded.scatter(1, ids[:, :10], torch.inf)
    others = rest[rest < torch.inf].view(64, 990)
    assert torch.equal(others.amin(dim=1), others.amax(dim=1))


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000, 70_000])
@pytest.mark.parametrize("k", [1, 2, 10])
def test_divergence_stays_under_the_bound_of_the_page(classes: int, k: int) -> None:
    k = min(k, classes)
    codec, rows = create_codec("topk", classes, k=k), torch.cat([awkward(classes), teacher_like(20, classes)])
    decoded = codec.decode(codec.encode(rows))
    bound = 0.0022 + 3e-7 * (k + 1) + (even_spread_cost(rows, k) if k < classes else 0)
    assert (kl(rows, decoded) <= bound).all()
    assert is_likeliest(rows, decoded).all()


def test_all_classes_kept_leave_no_rest() -> None:
    rows = teacher_like(20, 5)
    codec = create_codec("topk", 5, k=5)
    assert kl(rows, codec.decode(codec.encode(rows))).max() < 0.0022


@pytest.mark.parametrize("classes", [65_535, 65_536, 65_537, 200_000])
def test_class_ids_beyond_16_bits_are_kept(classes: int) -> None:
    rows = torch.zeros(3, classes)
    rows[torch.arange(3), torch.tensor([0, classes // 2, classes - 1])] = 20.0
    codec = create_codec("topk", classes, k=3)
    assert codec.decode(codec.encode(rows)).argmax(dim=1).tolist() == [0, classes // 2, classes - 1]


@pytest.mark.parametrize("k", [0, -1, 11])
def test_a_count_outside_the_classes_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match="1 to num_classes=10"):
        create_codec("topk", 10, k=k)
