"""Several views per decode: a group of epochs shows what as many plain epochs show, and decodes each image once."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from support import RECIPE, CountingDigits, tiny_model

import kdkit
from kdkit.data import EpochSampler, RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.data.sampler import Index
from kdkit.recipe import ViewRecipe
from kdkit.types import Normalization

PLAIN = dataclasses.replace(RECIPE, num_views=8, size=16)
MIXED = dataclasses.replace(PLAIN, mixup_alpha=0.8, cutmix_alpha=1.0, views_per_partner=4)


def samplers(count: int, batch_size: int, world_size: int = 1, **options: int | bool) -> list[EpochSampler]:
    """One for each rank."""
    return [
        EpochSampler(range(count), batch_size, seed=3, rank=rank, world_size=world_size, **options)  # type: ignore[arg-type]
        for rank in range(world_size)
    ]


def shown(ranks: list[EpochSampler], epochs: Iterable[int]) -> Counter[Index]:
    """How often all ranks together show each (row, view)."""
    pairs: Counter[Index] = Counter()
    for epoch in epochs:
        for sampler in ranks:
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            assert sum(map(len, batches)) == sampler.num_images
            pairs.update(pair for batch in batches for pair in batch)
    return pairs


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_views", [1, 4, 6, 10])
@pytest.mark.parametrize("views", [2, 3, 4, 8])
def test_the_epochs_of_a_group_show_the_pairs_of_as_many_plain_epochs(
    views: int, num_views: int, world_size: int
) -> None:
    for count in (1, 7, 50, 53):
        together = samplers(count, 8, world_size, num_views=num_views, views_per_decode=views)
        plain = samplers(count, 8, world_size, num_views=num_views)
        for group in range(3):
            epochs = range(group * views, group * views + views)
            found, expected = shown(together, epochs), shown(plain, epochs)
            assert set(found) == set(expected)
            if count % world_size == 0:  # nothing is padded
                assert found == expected
                assert [sum(shown(together, [epoch]).values()) for epoch in epochs] == [count] * views


def test_a_group_depends_on_neither_batch_size_nor_position_and_groups_differ_in_order() -> None:
    (sampler,), (other,) = (samplers(50, size, num_views=8, views_per_decode=4) for size in (8, 10))
    orders = []
    for epoch in range(8):
        sampler.set_epoch(epoch)
        other.set_epoch(epoch)
        orders.append([pair for batch in sampler for pair in batch])
        assert orders[-1] == [pair for batch in other for pair in batch]
    rows = [[row for row, _ in order[:48:4]] for order in orders]
    assert len({row for piece in rows[:4] for row in piece}) == 48
    assert rows[:4] != rows[4:]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_pass_that_begins_at_any_batch_shows_the_rest_of_the_epoch(drop_last: bool, world_size: int) -> None:
    for sampler in samplers(54, 8, world_size, num_views=8, views_per_decode=4, drop_last=drop_last):
        for epoch in range(5):
            sampler.set_epoch(epoch)
            whole = list(sampler)
            for start in range(len(whole) + 1):
                sampler.set_epoch(epoch, start)
                assert list(sampler) == whole[start:]


def test_dropped_batches_are_full_and_no_pair_is_shown_twice() -> None:
    (sampler,) = samplers(54, 8, num_views=8, views_per_decode=4, drop_last=True)
    pairs = shown([sampler], range(8))
    assert set(pairs.values()) == {1}
    assert sum(pairs.values()) == 8 * 48


def test_the_last_group_is_as_short_as_the_epochs_left() -> None:
    together = samplers(12, 4, num_views=6, views_per_decode=4, num_epochs=6)
    assert shown(together, [4, 5]) == shown(samplers(12, 4, num_views=6), [4, 5])
    assert shown(together, range(6)) == Counter({(row, view): 1 for row in range(12) for view in range(6)})


@pytest.mark.parametrize("recipe", [PLAIN, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_each_image_is_decoded_once_for_its_views_and_they_are_the_same_views(
    recipe: ViewRecipe, num_workers: int
) -> None:
    source = CountingDigits(48)
    dataset, expected = ReplayedDataset(source, recipe), ReplayedDataset(CountingDigits(48), recipe)
    loader = kdkit.create_loader(
        dataset, tiny_model(), batch_size=16, views_per_decode=4, num_workers=num_workers, shuffle=True
    )
    pairs: Counter[Index] = Counter()
    for _ in range(4):
        for pixels in loader.pixel_batches():
            batch = list(zip(pixels.row.tolist(), pixels.view.tolist(), strict=True))
            pairs.update(batch)
            assert set(Counter(row for row, _ in batch).values()) == {4}
            for (row, view), image in zip(batch, pixels.images, strict=True):
                assert torch.equal(image, expected[row, view].image)
    assert pairs == Counter({(row, view): 1 for row in range(48) for view in range(4)})
    if num_workers == 0:
        assert source.decoded == Counter(dict.fromkeys(range(48), 1))


@pytest.mark.parametrize("count", [47, 48])
def test_two_ranks_decode_pairs_once_but_for_remainders(count: int) -> None:
    decodes, pairs = 0, set()
    for sampler in samplers(count, 16, 2, num_views=8, views_per_decode=4):
        source = CountingDigits(count)
        loader = ReplayLoader(ReplayedDataset(source, MIXED), sampler, Normalization())
        for _ in range(4):
            for pixels in loader.pixel_batches():
                pairs |= set(zip(pixels.row.tolist(), pixels.view.tolist(), strict=True))
        decodes += source.decoded.total()
    assert pairs == {(row, view) for row in range(count) for view in range(4)}
    assert decodes <= 48 + 2 * 4 * 2 * 4  # and views of the last rows of each rank, less than 4 pairs, plainly


def test_partners_change_with_the_group_of_views_alone_and_mixing_with_each_view() -> None:
    dataset = ReplayedDataset(CountingDigits(41), MIXED)
    partners = [dataset.partners(view) for view in range(8)]
    assert all(found is not None for found in partners)
    for view in range(8):
        same = [other for other in range(8) if torch.equal(partners[view], partners[other])]  # type: ignore[arg-type]
        assert same == list(range(view // 4 * 4, view // 4 * 4 + 4))
    assert len({dataset[3, view].share for view in range(4)}) == 4
    before = dataclasses.replace(MIXED, views_per_partner=1)
    assert torch.equal(ReplayedDataset(CountingDigits(41), before).partners(0), partners[0])  # type: ignore[arg-type]
    assert ViewRecipe.from_dict({**before.to_dict(), "views_per_partner": 1}) == before


def test_an_unreadable_image_is_skipped_in_all_its_views_and_named_once_a_batch() -> None:
    dataset = ReplayedDataset(CountingDigits(16, unreadable=(5,)), PLAIN).skipping_unreadable()
    loader = kdkit.create_loader(dataset, tiny_model(), batch_size=8, views_per_decode=4, num_workers=0)
    skipped: list[str] = []
    loader.on_skip = lambda key, reason: skipped.append(key)
    batches = [pixels for _ in range(4) for pixels in loader.pixel_batches()]
    pairs = [pair for each in batches for pair in torch.stack([each.row, each.view], dim=1).tolist()]
    assert sorted(map(tuple, pairs)) == [(row, view) for row in range(16) for view in range(4) if row != 5]
    assert skipped == ["digit-5"]


def test_ranges_of_several_views_are_blocks_of_rows_with_their_views_together() -> None:
    sampler = RangeSampler([((1, 2, 5), 10, 17)], 4)
    batches = list(sampler)
    assert [[row for row, _ in batch[::3]] for batch in batches] == [[10, 11], [12, 13], [14, 15], [16]]
    assert all([view for _, view in batch] == [1, 2, 5] * (len(batch) // 3) for batch in batches)
    assert (len(sampler), sampler.num_images) == (4, 21)
