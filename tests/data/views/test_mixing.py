"""Mixing: the same pairs, shares and boxes in any batch, on any rank; compared with plain loops over pixels."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from mixed_ranks import BATCH_SIZES, COUNTS, MIXED
from processes import run_ranks
from support import CLASSES, RECIPE, CountingDigits, digits, digits_dataset, tiny_model

from kdkit import LogitDistillationTask, build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig
from kdkit.data import ArraySource, EpochSampler, RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.data.views.mixing import NOT_MIXED, Mix, Pairing, draw_mix
from kdkit.errors import DatasetError
from kdkit.recipe import ViewRecipe
from kdkit.training.config import TrainConfig
from kdkit.training.train import train
from kdkit.types import Batch, Normalization, TeacherOutput

BOTH = MIXED
MIXUP = dataclasses.replace(RECIPE, mixup_alpha=1.0)
CUTMIX = dataclasses.replace(RECIPE, cutmix_alpha=1.0)


@pytest.mark.parametrize("count", [1, 2, 30, 31])
def test_partners_are_an_involution_that_leaves_at_most_one_alone(count: int) -> None:
    pairing = Pairing([f"{i}" for i in range(count)], seed=3)
    views = [pairing.partners(view) for view in range(4)]
    for partners in views:
        assert torch.equal(partners[partners], torch.arange(count))
        assert int((partners == torch.arange(count)).sum()) == count % 2
    assert count < 30 or len({tuple(partners.tolist()) for partners in views}) == 4


def test_partners_follow_the_keys_and_not_the_order() -> None:
    keys = [f"class/{i}.png" for i in range(101)]
    moved = keys[::-1]
    there, here = Pairing(keys, 1).partners(2), Pairing(moved, 1).partners(2)
    assert {keys[i]: keys[j] for i, j in enumerate(there)} == {moved[i]: moved[j] for i, j in enumerate(here)}


def test_partners_are_any_two_samples_alike() -> None:
    partners = torch.stack([Pairing([f"{i}" for i in range(10)], seed).partners(0) for seed in range(3000)])
    counts = torch.stack([(partners[:, 0] == other).sum() for other in range(1, 10)])
    assert float((counts - 3000 / 9).square().sum() / (3000 / 9)) < 26.1  # chi squared, 8 degrees, 0.1 %


def test_mixup_blends_as_a_plain_loop_does() -> None:
    plain, mixed = digits_dataset(31, RECIPE), digits_dataset(31, MIXUP)
    partners = mixed.partners(1)
    assert partners is not None
    for row in range(31):
        sample, other = mixed[row, 1], int(partners[row])
        own, theirs = plain[row, 1].image.double(), plain[other, 1].image.double()
        expected = torch.floor(own * sample.share + theirs * (1 - sample.share) + 0.5)
        assert torch.equal(sample.image, expected.to(torch.uint8))
        assert sample.share == (1.0 if other == row else mixed[other, 1].share)
        assert sample.partner_target == plain[other, 1].target


def test_cutmix_swaps_a_box_whose_area_is_the_share() -> None:
    plain, mixed = digits_dataset(30, RECIPE), digits_dataset(30, CUTMIX)
    partners = mixed.partners(0)
    assert partners is not None
    for row in range(30):
        sample, other = mixed[row, 0], int(partners[row])
        own, theirs = plain[row, 0].image, plain[other, 0].image
        box = draw_mix(CUTMIX, mixed.keys[row], mixed.keys[other], 0).box
        assert box is not None
        taken = torch.zeros(32, 32, dtype=torch.bool)
        half = int(32 * box[2])
        for y in range(int(box[0] * 32) - half // 2, int(box[0] * 32) + (half + 1) // 2):
            for x in range(int(box[1] * 32) - half // 2, int(box[1] * 32) + (half + 1) // 2):
                if 0 <= y < 32 and 0 <= x < 32:
                    taken[y, x] = True
        assert torch.equal(sample.image, torch.where(taken, theirs, own))
        assert sample.share == pytest.approx(1 - taken.sum().item() / 1024)
        assert torch.equal(mixed[other, 0].image, torch.where(taken, own, theirs))


def test_mixup_cutmix_and_neither_are_drawn_with_the_probabilities_of_the_recipe() -> None:
    recipe = dataclasses.replace(BOTH, mix_prob=0.8, switch_prob=0.25)
    mixes = [draw_mix(recipe, "a", f"{i}", 0) for i in range(4000)]
    assert sum(mix is NOT_MIXED for mix in mixes) / 4000 == pytest.approx(0.2, abs=0.03)
    assert sum(mix.box is not None for mix in mixes) / 4000 == pytest.approx(0.2, abs=0.03)
    kept = [mix.share for mix in mixes if mix.box is None and mix is not NOT_MIXED]
    assert np.mean(kept) == pytest.approx(0.5, abs=0.03)
    assert np.var(kept) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.1)  # of Beta(a, a)
    assert draw_mix(recipe, "a", "b", 0) == draw_mix(recipe, "b", "a", 0)


def test_a_share_of_zero_is_the_partners_view() -> None:
    own, other = torch.full((3, 4, 4), 7, dtype=torch.uint8), torch.full((3, 4, 4), 250, dtype=torch.uint8)
    assert torch.equal(Mix(0.0).pixels(own, other), other)
    assert torch.equal(Mix(0.5).pixels(own, other), torch.full((3, 4, 4), 129, dtype=torch.uint8))


def test_labels_are_mixed_by_the_same_share() -> None:
    dataset = digits_dataset(31, BOTH)
    loader = ReplayLoader(dataset, EpochSampler(range(31), 8, num_views=2), Normalization())
    for batch in loader:
        assert batch.row is not None
        for row, soft in zip(batch.row.tolist(), batch.target, strict=True):
            sample = dataset[row, 0]
            assert sample.partner_target is not None
            expected = torch.zeros(10)
            expected[sample.target] += sample.share
            expected[sample.partner_target] += 1 - sample.share
            torch.testing.assert_close(soft, expected)


def test_a_sample_without_a_label_has_no_share_in_a_mixed_label() -> None:
    plain = digits(2)
    source = ArraySource(plain.images, [3, -1], class_names=CLASSES)
    dataset = ReplayedDataset(source, MIXUP)
    (batch,) = ReplayLoader(dataset, EpochSampler(range(2), 2, shuffle=False), Normalization())
    assert batch.target[:, 3].tolist() == pytest.approx([dataset[0, 0].share, 1 - dataset[1, 0].share])
    assert batch.target.count_nonzero() == 2


def test_mixing_needs_the_number_of_classes() -> None:
    plain = digits(4)
    with pytest.raises(DatasetError, match="num_classes"):
        ReplayedDataset(ArraySource(plain.images, plain.targets), MIXUP)
    dataset = ReplayedDataset(ArraySource(plain.images, plain.targets), MIXUP, num_classes=12)
    (batch,) = ReplayLoader(dataset, EpochSampler(range(4), 4), Normalization())
    assert batch.target.shape == (4, 12)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 8, 30])
@pytest.mark.parametrize("count", [60, 61])
def test_teacher_and_student_see_the_same_mixed_pixels_and_each_image_is_decoded_once(
    tmp_path: Path, count: int, batch_size: int, world_size: int
) -> None:
    expected = digits_dataset(count, BOTH)
    source = CountingDigits(count)
    dataset = ReplayedDataset(source, BOTH)
    shown: Counter[int] = Counter()
    for rank in range(world_size):
        sampler = EpochSampler(range(count), batch_size, num_views=2, seed=1, rank=rank, world_size=world_size)
        loader = ReplayLoader(dataset, sampler, Normalization())
        loader.set_epoch(1)
        for pixels in loader.pixel_batches():
            batch = loader.to_batch(pixels)
            assert batch.row is not None
            shown.update(batch.row.tolist())
            alone = torch.stack([expected[row, 1].image for row in batch.row.tolist()])  # as a build's batch of one
            assert torch.equal(pixels.images, alone)
            mean, std = (torch.tensor(values).mul(255).view(1, 3, 1, 1) for values in vars(Normalization()).values())
            assert torch.equal(batch.input, alone.float().sub(mean).div(std))
    assert set(shown) == set(range(count))
    doubled = Counter(shown.values())[2]
    assert doubled <= 2 * world_size - 1 if world_size > 1 else doubled == 0
    assert all(source.decoded[row] <= shown[row] for row in range(count))
    assert sum(source.decoded.values()) <= count + doubled


@pytest.mark.slow
def test_two_real_ranks_train_on_the_same_tensors_that_the_teacher_ran_on(tmp_path: Path) -> None:
    run_ranks("mixed_ranks.py", str(tmp_path / "seen.pt"), ranks=2)
    seen = torch.load(tmp_path / "seen.pt", weights_only=True)
    assert set(seen) == {f"{count} {size}" for count in COUNTS for size in BATCH_SIZES}
    for name, epoch in seen.items():
        count = int(name.split()[0])
        rows = [row for shown in epoch["shown"] for row in shown]
        assert epoch["differ"] == [[], []]
        assert set(rows) == set(range(count))
        assert len(rows) == 4 * -(-count // 4)  # whole pairs for each of two ranks
        for shown, decoded in zip(epoch["shown"], epoch["decoded"], strict=True):
            assert decoded == dict.fromkeys(shown, 1) if count == 60 else max(decoded.values()) <= 2
        decodes = sum(sum(decoded.values()) for decoded in epoch["decoded"])
        assert decodes <= len(rows)  # each once, but for the padding


def test_an_odd_batch_size_decodes_a_straddling_pair_twice_and_shows_the_same() -> None:
    source = CountingDigits(60)
    dataset, expected = ReplayedDataset(source, BOTH), digits_dataset(60, BOTH)
    loader = ReplayLoader(dataset, EpochSampler(range(60), 7, num_views=2), Normalization())
    for pixels in loader.pixel_batches():
        for row, image in zip(pixels.row.tolist(), pixels.images, strict=True):
            assert torch.equal(image, expected[row, 0].image)
    assert sum(source.decoded.values()) <= 60 + 2 * 8


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("count", "world_size"), [(50, 1), (51, 1), (50, 3), (51, 3), (53, 2), (3, 4)])
def test_ranks_share_whole_pairs_with_the_stated_padding(count: int, world_size: int, drop_last: bool) -> None:
    dataset = digits_dataset(count, BOTH)
    partners = dataset.partners(1)
    assert partners is not None
    rows: list[int] = []
    lengths = set()
    for rank in range(world_size):
        sampler = EpochSampler(
            range(count), 4, num_views=2, seed=3, rank=rank, world_size=world_size, drop_last=drop_last
        )
        ReplayLoader(dataset, sampler, Normalization())
        sampler.set_epoch(5)
        batches = list(sampler)
        lengths.add(tuple(len(batch) for batch in batches))
        assert len(batches) == len(sampler)
        assert sum(map(len, batches)) == sampler.num_images
        for batch in batches:
            shown = [row for row, _ in batch]
            lone = [row for row in shown if int(partners[row]) not in shown]
            assert not lone
            rows += shown
    assert len(lengths) == 1
    if not drop_last:
        assert set(rows) == set(range(count))
        pairs = -(-count // 2)
        assert len(rows) == (count if world_size == 1 else 2 * world_size * -(-pairs // world_size))


def test_mixed_views_are_identical_for_workers_order_ranges_and_batch_size() -> None:
    dataset = digits_dataset(41, BOTH)
    expected = {(row, view): dataset[row, view].image for row in range(41) for view in range(2)}
    for sampler in (
        EpochSampler(range(41), 6, num_views=2, shuffle=False),
        EpochSampler(range(5, 29), 5, num_views=2),
        RangeSampler([(0, 0, 20), (0, 20, 41)], 16),
    ):
        for num_workers in (0, 1):
            loader = ReplayLoader(dataset, sampler, Normalization(), num_workers=num_workers)
            for pixels in loader.pixel_batches():
                for row, view, image in zip(pixels.row.tolist(), pixels.view.tolist(), pixels.images, strict=True):
                    assert torch.equal(image, expected[row, view])


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_cache_of_mixed_views_has_the_outputs_of_the_live_teacher(tmp_path: Path, world_size: int) -> None:
    dataset, teacher = digits_dataset(41, BOTH), create_teacher(tiny_model(seed=1))
    build_cache(teacher, dataset, tmp_path / "t.h5", BuildConfig(codec="float32", num_workers=0, batch_size=16))
    cache = open_cache(tmp_path / "t.h5", dataset)
    for rank in range(world_size):
        sampler = EpochSampler(range(41), 8, num_views=2, rank=rank, world_size=world_size)
        loader = ReplayLoader(dataset, sampler, teacher.input_normalization)
        for epoch in range(2):
            loader.set_epoch(epoch)
            for batch in loader:
                cached, live = cache(batch).logits, teacher(batch).logits
                assert cached is not None
                assert live is not None
                torch.testing.assert_close(cached.log_softmax(1), live.log_softmax(1), rtol=0, atol=1e-5)


def test_a_student_trains_on_mixed_views_and_soft_labels() -> None:
    dataset = digits_dataset(64, BOTH)
    task = LogitDistillationTask(tiny_model("test_efficientnet"), None)
    sources: list[tuple[int, ...]] = []

    def uniform(batch: Batch) -> TeacherOutput:
        sources.append(tuple(batch.target.shape))
        return TeacherOutput(torch.zeros(len(batch.input), 10))

    sampler = EpochSampler(range(64), 16, num_views=2)
    loader = ReplayLoader(dataset, sampler, Normalization.of(task.trainable_module))
    train(task, loader, TrainConfig(epochs=1, batch_size=16), teacher_source=uniform)
    assert sources == [(16, 10)] * 4


def test_recipes_that_mix_nothing_leave_labels_as_they_are() -> None:
    recipe = dataclasses.replace(BOTH, mix_prob=0.0)
    (batch,) = ReplayLoader(digits_dataset(4, recipe), EpochSampler(range(4), 4, shuffle=False), Normalization())
    assert batch.target.tolist() == [0, 1, 2, 3]
    assert digits_dataset(4, recipe).partners(0) is None
    assert ViewRecipe.preset("deit").mixes
    assert not ViewRecipe.preset("rrc").mixes
