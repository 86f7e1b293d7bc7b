"""Replayed views: the same pixels wherever and whenever they are drawn."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import RECIPE, digits, digits_dataset
from torchvision.transforms import Resize

from kdkit.data import ArraySource, EpochSampler, FolderSource, RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.data.prefetch import prefetch_to_device
from kdkit.data.views.planes import to_planes
from kdkit.data.views.seed import preserve_rng_state, view_seed
from kdkit.errors import ConfigError, DatasetError
from kdkit.recipe import ViewRecipe
from kdkit.types import Batch, Normalization

TRANSFORMS = {
    "crop and flip": ViewRecipe(size=24, num_views=3),
    "random augment": RECIPE,
    "auto augment": ViewRecipe(size=24, auto_augment="original-mstd0.5", interpolation="random", num_views=2),
    "augmix": ViewRecipe(size=24, auto_augment="augmix-m5-w4-d2", num_views=2),
    "colour jitter": ViewRecipe(size=24, color_jitter=0.4, num_views=2),
}


def all_views(dataset: ReplayedDataset, **options: object) -> dict[tuple[int, int], bytes]:
    """(row, view) -> pixels, through a loader."""
    views: dict[tuple[int, int], bytes] = {}
    for epoch in range(dataset.recipe.num_views):
        sampler = EpochSampler(
            range(len(dataset)),
            int(options.get("batch_size", 8)),
            num_views=dataset.recipe.num_views,
            shuffle=bool(options.get("shuffle", False)),
        )
        sampler.set_epoch(epoch)
        extra = {"multiprocessing_context": options["context"]} if "context" in options else {}
        loader = ReplayLoader(dataset, sampler, Normalization(), num_workers=int(options.get("workers", 0)), **extra)
        for batch in loader.pixel_batches():
            for row, view, image in zip(batch.row.tolist(), batch.view.tolist(), batch.images, strict=True):
                views[row, view] = image.numpy().tobytes()
    return views


@pytest.mark.parametrize("name", TRANSFORMS)
def test_views_are_identical_for_workers_order_and_batch_size(name: str) -> None:
    dataset = digits_dataset(40, TRANSFORMS[name])
    expected = all_views(dataset)
    assert len(expected) == 40 * dataset.recipe.num_views
    assert len(set(expected.values())) > 0.9 * len(expected)
    assert all_views(dataset, workers=2, shuffle=True, batch_size=7) == expected


@pytest.mark.slow
def test_views_are_identical_in_workers_that_are_not_forked() -> None:
    dataset = digits_dataset(24)
    assert all_views(dataset, workers=2, context="forkserver") == all_views(dataset)


def test_global_random_states_are_what_they_were() -> None:
    dataset = digits_dataset(8)
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        dataset[3, 1]
        all_views(dataset)
        assert random.getstate() == states[0]
        assert np.random.get_state()[1].tolist() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])


def test_states_are_put_back_after_an_error() -> None:
    before = random.getstate()
    with pytest.raises(KeyError), preserve_rng_state():
        {}[random.seed(5)]
    assert random.getstate() == before


def test_a_view_depends_on_key_view_and_seed_and_not_on_the_row() -> None:
    source, image = digits(2), np.zeros((1, 8, 8), np.uint8)
    moved = ArraySource(source.images[::-1].copy(), source.targets[::-1].copy(), keys=source.keys[::-1])
    there, here = ReplayedDataset(source, RECIPE), ReplayedDataset(moved, RECIPE)
    assert torch.equal(there[0, 1].image, here[1, 1].image)
    seeds = {view_seed(seed, key, view) for seed in (0, 1, -1) for key in ("a", "b", "a\0") for view in (0, 1)}
    assert len(seeds) == 18
    assert all(0 <= seed < 1 << 64 for seed in seeds)
    assert len(ArraySource(image, [0])) == 1


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_view_has_the_pixels_of_timms_transform_after_seeding_all_generators(name: str) -> None:
    from timm.data.transforms_factory import create_transform

    dataset = digits_dataset(20, TRANSFORMS[name])
    recipe = dataset.recipe
    options = {"scale": recipe.scale, "ratio": recipe.ratio, "hflip": recipe.hflip, "color_jitter": recipe.color_jitter}
    options |= {"auto_augment": recipe.auto_augment, "interpolation": recipe.interpolation, "use_prefetcher": True}
    timms = create_transform(recipe.size, is_training=True, **options)
    with preserve_rng_state():
        for row, view in itertools.product(range(20), range(2)):
            seed = view_seed(recipe.seed, dataset.keys[row], view)
            random.seed(seed)
            np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
            torch.manual_seed(seed)
            assert np.array_equal(timms(dataset.source[row][0]), dataset[row, view].image.numpy())


def test_a_step_that_draws_from_numpy_though_none_of_timms_does_is_replayed_too() -> None:
    def shifted(pixels: torch.Tensor) -> torch.Tensor:
        return pixels + int(np.random.randint(256))

    def with_a_step() -> ReplayedDataset:
        dataset = digits_dataset(8, TRANSFORMS["crop and flip"])
        dataset._student.transforms.append(shifted)
        return dataset

    plain, dataset = digits_dataset(8, TRANSFORMS["crop and flip"]), with_a_step()
    first = [sample.image for sample in dataset.__getitems__([(row, 0) for row in range(8)])]
    again = [with_a_step()[row, 0].image for row in reversed(range(8))][::-1]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    shifts = {int((first[row] - plain[row, 0].image)[0, 0, 0]) for row in range(8)}
    assert len(shifts) > 4  # drawn for each view


def test_the_evaluation_view_is_timms() -> None:
    from PIL import Image
    from timm.data.transforms_factory import create_transform

    source = digits(3)
    dataset = ReplayedDataset(source, ViewRecipe.evaluation(32, crop_pct=0.9))
    plain = create_transform(32, is_training=False, interpolation="bicubic", crop_pct=0.9, normalize=False)
    expected = plain(Image.fromarray(source.images[2]).convert("RGB"))
    assert torch.equal(dataset[2, 0].image, expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (300, 257)])
def test_planes_are_the_pixels_that_torchvision_gives_in_the_order_of_a_batch(mode: str, size: tuple[int, int]) -> None:
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    planes = to_planes(image)
    assert torch.equal(planes, pil_to_tensor(image))
    planes.fill_(0)  # memory of its own
    assert torch.equal(to_planes(image), pil_to_tensor(image))


def test_every_kind_of_view_is_contiguous_so_that_collating_copies_it_whole() -> None:
    kinds: dict[str, dict[str, Any]] = {
        "drawn": {"recipe": ViewRecipe(size=24)},
        "evaluation": {"recipe": ViewRecipe.evaluation(24)},
        "erased": {"recipe": ViewRecipe(size=24, erasing=1.0)},
        "mixed": {"recipe": ViewRecipe(size=24, mixup_alpha=1.0), "num_classes": 10},
        "custom": {"recipe": ViewRecipe(size=24), "transform": Resize((24, 24))},
    }
    strewn = [
        kind for kind, given in kinds.items() if not ReplayedDataset(digits(4), **given)[1, 0].image.is_contiguous()
    ]
    assert strewn == []


def test_samples_say_what_they_are() -> None:
    sample = digits_dataset(5)[4, 1]
    assert (sample.row, sample.view, sample.target) == (4, 1, 4)
    assert sample.image.dtype == torch.uint8
    assert sample.image.shape == (3, 32, 32)


def test_an_unreadable_image_is_one_line_also_from_a_worker(tmp_path: Path) -> None:
    for name in ("a/0.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"no image")
    dataset = ReplayedDataset(FolderSource(tmp_path), RECIPE)
    loader = ReplayLoader(dataset, EpochSampler(range(2), 2), Normalization(), num_workers=1)
    with pytest.raises(DatasetError) as caught:
        list(loader)
    assert "is unreadable" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auto_augment": "foo"}, "auto_augment='foo'"),
        ({"auto_augment": "rand-m9", "color_jitter": 0.4}, "color_jitter"),
        ({"augment": False, "interpolation": "random"}, "interpolation"),
    ],
)
def test_recipes_that_timm_cannot_draw_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        digits_dataset(4, ViewRecipe(**fields))  # type: ignore[arg-type]


def test_a_view_beyond_the_recipe_is_refused() -> None:
    with pytest.raises(DatasetError, match="views 0 to 1"):
        digits_dataset(5)[0, 2]


@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_beyond_the_dataset_is_refused(row: int) -> None:
    with pytest.raises(DatasetError, match=f"row {row} is out of range.* rows 0 to 4"):
        digits_dataset(5)[row, 0]


def test_numpys_integers_index_as_pythons_do() -> None:
    dataset = digits_dataset(5)
    assert torch.equal(dataset[np.int64(3), np.int64(1)].image, dataset[3, 1].image)  # type: ignore[index]


@pytest.mark.parametrize("keys", [[1, 2], ["a", 0]])
def test_keys_that_are_no_strings_are_refused(keys: list[str]) -> None:
    with pytest.raises(DatasetError, match="keys must be a list of texts"):
        ReplayedDataset(ArraySource(np.zeros((2, 8, 8), np.uint8), [0, 1], keys=keys), RECIPE)


def test_an_index_without_a_view_raises_an_error_with_advice() -> None:
    dataset = digits_dataset(3)
    with pytest.raises(DatasetError, match=r"index 0 names no view: dataset\[row, view\], .* EpochSampler"):
        dataset[0]  # type: ignore[index]  # what one tries first
    assert dataset[0, 0].row == 0


def test_empty_and_ambiguous_datasets_are_refused() -> None:
    empty = ArraySource(np.zeros((0, 8, 8), np.uint8), [])
    with pytest.raises(DatasetError, match="no samples"):
        ReplayedDataset(empty, RECIPE)
    twice = ArraySource(np.zeros((2, 8, 8), np.uint8), [0, 1], keys=["a", "a"])
    with pytest.raises(DatasetError, match="'a'"):
        ReplayedDataset(twice, RECIPE)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_an_epoch_with_the_stated_padding(world_size: int, drop_last: bool) -> None:
    ranks = [
        EpochSampler(range(50), 8, num_views=4, seed=3, rank=rank, world_size=world_size, drop_last=drop_last)
        for rank in range(world_size)
    ]
    for sampler in ranks:
        sampler.set_epoch(6)
    batches = [list(sampler) for sampler in ranks]
    assert len({len(sampler) for sampler in ranks}) == 1
    assert all(len(mine) == len(sampler) for mine, sampler in zip(batches, ranks, strict=True))
    pairs = [pair for mine in batches for batch in mine for pair in batch]
    assert {view for _, view in pairs} == {6 % 4}
    rows = [row for row, _ in pairs]
    if drop_last:
        assert all(len(batch) == 8 for mine in batches for batch in mine)
        assert len(set(rows)) > 50 - 8 * world_size
    else:
        assert set(rows) == set(range(50))
        assert len(rows) == -(-50 // world_size) * world_size


def test_each_epoch_has_an_order_of_its_own_that_the_seed_repeats() -> None:
    def order(epoch: int, seed: int = 0) -> list[int]:
        sampler = EpochSampler(range(30), 30, seed=seed)
        sampler.set_epoch(epoch)
        return [row for row, _ in next(iter(sampler))]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=1)
    assert order(0) != list(range(30))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_epoch_continues_with_exactly_the_remaining_batches(num_workers: int) -> None:
    dataset = digits_dataset(30)
    sampler = EpochSampler(range(30), 4, num_views=2, seed=5, rank=1, world_size=2)
    loader = ReplayLoader(dataset, sampler, Normalization(), num_workers=num_workers)
    loader.set_epoch(3)
    whole = list(loader)
    loader.set_epoch(3, start_batch=2)
    rest = list(loader)
    assert len(whole) == len(loader) == 4
    assert [batch.row.tolist() for batch in rest] == [batch.row.tolist() for batch in whole[2:]]
    assert all(torch.equal(left.input, right.input) for left, right in zip(rest, whole[2:], strict=True))
    loader.set_epoch(3, start_batch=4)
    assert list(loader) == []
    with pytest.raises(ConfigError, match="epoch of 4 batches"):
        loader.set_epoch(3, start_batch=5)
    loader.set_epoch(4)
    assert len(list(loader)) == 4


def test_ranges_are_cut_into_batches_that_never_straddle_two() -> None:
    batches = list(RangeSampler([(0, 0, 5), (1, 10, 14)], 3))
    assert batches == [
        [(0, 0), (1, 0), (2, 0)],
        [(3, 0), (4, 0)],
        [(10, 1), (11, 1), (12, 1)],
        [(13, 1)],
    ]
    assert len(RangeSampler([(0, 0, 5), (1, 10, 14)], 3)) == 4


def test_batches_are_normalised_as_torchvision_does() -> None:
    from torchvision.transforms.functional import normalize

    dataset = digits_dataset(6)
    loader = ReplayLoader(dataset, EpochSampler(range(6), 6, num_views=2, shuffle=False), Normalization())
    (batch,) = loader
    expected = torch.stack([dataset[row, 0].image for row in range(6)]).float() / 255
    torch.testing.assert_close(batch.input, normalize(expected, list(Normalization().mean), list(Normalization().std)))
    mean, std = (torch.tensor(of).mul(255).view(3, 1, 1) for of in (Normalization().mean, Normalization().std))
    assert torch.equal(batch.input, (expected * 255).round().sub(mean).div(std))  # to the bit, as whole batches were
    assert batch.input.data_ptr() % 64 == 0
    assert isinstance(batch.view, torch.Tensor)
    assert batch.view.tolist() == [0] * 6
    assert batch.row is not None
    assert batch.row.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("num_views", 0),
        ("scale", (0.5, 0.1)),
        ("ratio", (0.0, 1.0)),
        ("hflip", 1.5),
        ("crop_pct", 0.0),
        ("interpolation", "bicubik"),
    ],
)
def test_a_recipe_refuses_what_cannot_work(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        ViewRecipe(**{field: value})  # type: ignore[arg-type]


def test_a_recipe_round_trips_through_its_dict_form() -> None:
    assert ViewRecipe.from_dict(RECIPE.to_dict()) == RECIPE
    with pytest.raises(ConfigError, match="did you mean 'hflip'"):
        ViewRecipe.from_dict({"hfilp": 0.5})


class Recorded:
    """Stands in for CUDA's streams and events, and records which waits for which."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    device = torch.device("cuda")

    def wait_stream(self, other: Recorded) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def record_event(self) -> str:
        self.log.append(f"{self.name} records")
        return f"event {self.log.count(f'{self.name} records')}"


def test_the_next_batch_is_on_its_way_before_the_current_one_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    ahead: Any = Recorded(log, "ahead")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Recorded(log, "step"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: log.append(f"kept for {stream.name}"))

    def to_batch(number: int) -> Batch:
        log.append(f"copy {number}")
        return Batch(torch.tensor([float(number)]), torch.tensor([number]))

    for batch in prefetch_to_device(iter([1, 2]), to_batch, ahead):
        log.append(f"use {int(batch.target)}")
    assert log == [
        "ahead waits for step",
        *("copy 1", "ahead records"),
        *("copy 2", "ahead records"),
        *("step waits for event 1", "kept for step", "kept for step", "use 1"),
        *("step waits for event 2", "kept for step", "kept for step", "use 2"),
    ]
    assert list(prefetch_to_device(iter([]), to_batch, ahead)) == []


@pytest.mark.parametrize("recipe", [RECIPE, ViewRecipe(size=16, mixup_alpha=1.0, teacher_size=24)])
def test_a_batch_from_a_worker_is_the_batch_with_no_file_but_for_its_pixels(recipe: ViewRecipe) -> None:
    dataset = digits_dataset(6, recipe).with_teacher_view()
    loader = ReplayLoader(dataset, EpochSampler(range(6), 6, num_views=recipe.num_views), Normalization())
    (batch,) = loader.pixel_batches()
    sent = vars(pickle.loads(pickle.dumps(batch)))  # a tensor that a worker pickles becomes a file
    assert list(sent) == [field.name for field in dataclasses.fields(batch)]
    for name, value in vars(batch).items():
        assert torch.equal(sent[name], value) if isinstance(value, torch.Tensor) else sent[name] == value
        assert not isinstance(value, torch.Tensor) or sent[name].dtype == value.dtype
    files = [name for name, value in batch.__getstate__().items() if isinstance(value, torch.Tensor)]
    assert files == (["images"] if recipe is RECIPE else ["images", "teacher_images"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_copied_ahead_to_a_gpu_are_those_of_the_cpu() -> None:
    recipe = ViewRecipe(size=64, mixup_alpha=1.0, teacher_size=96, num_views=2)
    dataset = digits_dataset(200, recipe).with_teacher_view()
    plain = ReplayLoader(dataset, EpochSampler(range(200), 16, num_views=2), Normalization())
    sampler = EpochSampler(range(200), 16, num_views=2)
    ahead = ReplayLoader(dataset, sampler, Normalization(), device="cuda", num_workers=2)
    matrix = torch.randn(2048, 2048, device="cuda")
    for _ in range(2):
        for batch, expected in zip(ahead, plain, strict=True):
            for _ in range(20):
                matrix = (matrix @ matrix).clamp(-1, 1)  # keeps the step's stream busy while the next batch is copied
            assert batch.teacher_input is not None
            assert expected.teacher_input is not None
            torch.testing.assert_close(batch.input.cpu(), expected.input)
            torch.testing.assert_close(batch.teacher_input.cpu(), expected.teacher_input)
            torch.testing.assert_close(batch.target.cpu(), expected.target)
