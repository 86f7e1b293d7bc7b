"""kdkit cache verify names why outputs are not their images': every cause on digits, and no alarm on right caches.

The teacher is a linear model of the digits, fitted here; outputs are written through CacheWriter, as anyone may, so
that nobody hashed the pixels which it saw.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from support import digits, tiny_model, write_digits
from torch import Tensor, nn
from torchvision.transforms import functional

from kdkit import CacheSpec, CacheWriter, build_cache, open_dataset, verify_cache
from kdkit.building.cause import fit_temperature, is_softmax_of_probabilities, match_columns, undo_softmax
from kdkit.building.config import BuildConfig
from kdkit.building.diagnosis import choose_places
from kdkit.building.other_views import NORMALIZATIONS, as_model_sees
from kdkit.cache import create_codec
from kdkit.cli import main
from kdkit.data import ArraySource, ReplayedDataset
from kdkit.errors import CacheMismatchError, ClassMismatchError
from kdkit.importers import import_arrays
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher
from kdkit.types import Normalization

COUNT, CLASSES, SIZE = 400, 10, 16
PLAIN = Normalization((0.5,) * 3, (0.5,) * 3)
RANDOM = ViewRecipe(size=SIZE, scale=(0.6, 1.0), num_views=2, seed=7)
EVALUATION = ViewRecipe.evaluation(SIZE)


@cache
def source(order: str = "mixed") -> ArraySource:
    """Digits, with labels in random order, or sorted by them as class folders are."""
    plain = digits(COUNT)
    if order == "mixed":
        return plain
    rows = np.argsort(np.asarray(plain.targets), kind="stable").tolist()
    keys = [f"{plain.targets[row]}/{place}.png" for place, row in enumerate(rows)]
    return ArraySource(
        plain.images[rows], [int(plain.targets[row]) for row in rows], keys=keys, class_names=plain.class_names
    )


@cache
def linear() -> nn.Module:
    """A linear model of the digits in evaluation views, right for nearly all of them."""
    views = ReplayedDataset(source(), RANDOM)
    pairs = [(row, view) for row in range(COUNT) for view in range(RANDOM.num_views)]
    inputs = torch.stack([views[pair].image for pair in pairs]).float() / 127.5 - 1
    labels = torch.tensor([int(views.source.targets[row]) for row, _ in pairs])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES))
    model.num_classes = CLASSES  # type: ignore[assignment]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def teacher() -> Teacher:
    return Teacher(linear(), normalization=PLAIN, name="linear")


@cache
def outputs(
    recipe: ViewRecipe, order: str = "mixed", normalization: Normalization = PLAIN, flip: bool = False
) -> Tensor:
    """Logits [V, N, C] of the plain model, without any of kdkit's loaders."""
    views, model = ReplayedDataset(source(order), recipe), linear()
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (normalization.mean, normalization.std))
    found = []
    for view in range(recipe.num_views):
        images = torch.stack([(views[row, view].image / 255 - mean) / std for row in range(COUNT)])
        found.append(model(images.flip(-1) if flip else images).detach())
    return torch.stack(found)


def write(path: Path, data: ReplayedDataset, logits: Tensor, codec: str = "float16") -> Path:
    options = {"k": 4} if codec == "topk" else {}
    made = create_codec(codec, CLASSES, **options)
    spec = CacheSpec(
        keys=data.keys,
        num_views=data.recipe.num_views,
        codecs={"logits": made.fit(logits.flatten(0, 1)) if made.needs_fit else made},
        recipe=data.recipe,
        class_names=data.class_names,
        shard_rows=COUNT,
    )
    with CacheWriter.create(path, spec) as writer:
        for shard in writer.missing():
            writer.write(shard, {"logits": logits[shard.view, shard.start : shard.stop]})
        return writer.finish()


def shuffled(logits: Tensor) -> Tensor:
    return logits[:, torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))]


def half_shuffled(logits: Tensor) -> Tensor:
    order = torch.arange(COUNT)
    order[::2] = order[::2].roll(100)
    return logits[:, order]


PERMUTED = [3, 0, 1, 2, 4, 5, 9, 7, 8, 6]
CAUSES: dict[str, tuple[Callable[[ViewRecipe], Tensor], str]] = {
    "shifted": (lambda recipe: outputs(recipe).roll(1, dims=1), r"rows are shifted by \+1"),
    "shuffled": (lambda recipe: shuffled(outputs(recipe)), "rows are in another order"),
    "sorted": (lambda recipe: outputs(recipe)[:, np.argsort(digits(COUNT).keys)], "that of the sorted keys"),
    "flipped": (lambda recipe: outputs(recipe, flip=True), "all views were flipped"),
    "classes": (lambda recipe: outputs(recipe)[..., PERMUTED], r"class_map \[1, 2, 3, 0, 4, 5, 9, 7, 8, 6\]"),
    "crop": (lambda recipe: outputs(other_crop(recipe)), "another crop: (crop_pct 1|seed 0)"),
    "normalization": (
        lambda recipe: outputs(recipe, normalization=Normalization()),
        "another normalisation: ImageNet's mean and std",
    ),
    "softmax": (lambda recipe: outputs(recipe).softmax(-1), "softmax was applied twice"),
    "temperature": (lambda recipe: outputs(recipe) / 4, "temperature 4"),
    "sharpened": (lambda recipe: outputs(recipe) * 2, r"temperature 0\.5"),
    "one-hot": (lambda recipe: 60.0 * nn.functional.one_hot(outputs(recipe).argmax(-1), CLASSES), "are one-hot"),
    "views": (lambda recipe: outputs(recipe).flip(0), r"the outputs of view v are in view \(v \+ 1\) mod 2"),
    "half shuffled": (lambda recipe: half_shuffled(outputs(recipe)), "rows are in another order"),
    "one view": (lambda recipe: outputs(recipe)[:1].expand(2, -1, -1), "the outputs of view 0 are in all views"),
}


def other_crop(recipe: ViewRecipe) -> ViewRecipe:
    return replace(recipe, seed=0) if recipe.augment else replace(recipe, crop_pct=1.0)


@pytest.mark.parametrize("name", list(CAUSES))
def test_a_cause_is_named_by_comparing_with_the_teacher(name: str, tmp_path: Path) -> None:
    place = list(CAUSES).index(name)  # causes take turns with recipes and codecs
    recipe, codec = (EVALUATION, RANDOM)[place % 2], ("float16", "float16", "topk", "topk")[place % 4]
    make, message = CAUSES[name]
    data = ReplayedDataset(source(), recipe)
    path = write(tmp_path / "t.h5", data, make(recipe), codec)
    with pytest.raises(CacheMismatchError, match=f"likely .*{message}") as error:
        verify_cache(path, teacher(), data, seed=0)
    assert "\n" not in str(error.value)


def recorded(path: Path, boxes: np.ndarray, seen: np.ndarray) -> tuple[Path, ArraySource]:
    """An import with the crops `boxes`, whose outputs are those of the crops `seen`; (top, left, height, width)."""
    images, shown = source(), []
    for row, (top, left, height, width) in enumerate(seen.tolist()):
        crop = functional.resized_crop(images[row][0], top, left, height, width, [SIZE, SIZE])
        shown.append(functional.pil_to_tensor(crop).float() / 127.5 - 1)
    logits = linear()(torch.stack(shown)).detach()[:, None].numpy()
    np.savez(path / "x.npz", logits=logits, keys=images.keys, boxes=boxes[:, None], flips=np.zeros((COUNT, 1), bool))
    import_arrays(path / "x.npz", images, path / "t.h5", recipe=ViewRecipe(size=SIZE))
    return path / "t.h5", images


def test_boxes_whose_numbers_are_in_another_order_are_named(tmp_path: Path) -> None:
    boxes = np.random.default_rng(0).integers((0, 1, 5, 4), (3, 3, 7, 6), (COUNT, 4))
    path, images = recorded(tmp_path, boxes[:, [1, 0, 3, 2]], boxes)
    data = open_dataset(images, cache=path)
    with pytest.raises(CacheMismatchError, match=r"another crop: boxes that are \(left, top, width, height\)"):
        verify_cache(path, teacher(), data, seed=0)


def test_right_recorded_views_match_the_teacher(tmp_path: Path) -> None:
    boxes = np.random.default_rng(0).integers((0, 1, 5, 4), (3, 3, 7, 6), (COUNT, 4))
    path, images = recorded(tmp_path, boxes, boxes)
    assert verify_cache(path, teacher(), open_dataset(images, cache=path), seed=0).unexplained == 0


BY_LABELS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "shifted": (lambda logits: logits.roll(1, dims=1), r"rows are shifted by \+1"),
    "shifted back": (lambda logits: logits.roll(-2, dims=1), "rows are shifted by -2"),
    "shifted far": (lambda logits: logits.roll(20, dims=1), r"rows are shifted by \+20"),
    "shuffled": (shuffled, "rows are in another order"),
    "shuffled views": (lambda logits: torch.stack([shuffled(logits)[0], logits[0].flip(0)]), "in another order"),
    "rolled classes": (lambda logits: logits.roll(1, dims=-1), r"class_map \[1, 2, 3, 4, 5, 6, 7, 8, 9, 0\]"),
    "classes": (lambda logits: logits[..., PERMUTED], r"class_map \[1, 2, 3, 0, 4, 5, 9, 7, 8, 6\]"),
    "softmax": (lambda logits: (2 * logits).softmax(-1), "softmax was applied twice"),
}


@pytest.mark.parametrize("name", list(BY_LABELS))
def test_labels_alone_show_some_causes(name: str, tmp_path: Path) -> None:
    """Rows lie in the order of their class folders, so that a shift by one changes the label of 9 rows in 400 only."""
    change, message = BY_LABELS[name]
    logits = change(outputs(EVALUATION, "sorted"))
    data = ReplayedDataset(source("sorted"), EVALUATION if len(logits) == 1 else RANDOM)
    path = write(tmp_path / "t.h5", data, logits)
    with pytest.raises(CacheMismatchError, match=f"do not fit the labels .*likely .*{message}"):
        verify_cache(path, dataset=data)


@pytest.mark.slow
def test_no_right_cache_gives_an_alarm(tmp_path: Path) -> None:
    """20 right caches: five codecs, two recipes, and labels in random order or in that of folders."""
    for codec in ("float32", "float16", "int8", "topk", "lowrank"):
        for recipe in (EVALUATION, RANDOM):
            for order in ("mixed", "sorted"):
                data = ReplayedDataset(source(order), recipe)
                path = write(tmp_path / f"{codec}-{recipe.num_views}-{order}.h5", data, outputs(recipe, order), codec)
                report = verify_cache(path, teacher(), data, num_rows=32, seed=0)
                assert report.unexplained == 0
                assert report.labels is not None
                assert report.labels.cause is None
                assert report.labels.overall > 0.75


WEAK: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": torch.zeros_like,
    "almost nothing": lambda logits: 0.01 * logits,
    "noise": lambda logits: torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)),
    "much noise": lambda logits: logits + 3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)),
    "one class": lambda logits: logits + 20 * nn.functional.one_hot(torch.tensor(3), CLASSES),
    "eights are threes": lambda logits: logits.index_fill(-1, torch.tensor([8]), -9.0),
}


@pytest.mark.parametrize("name", list(WEAK))
def test_labels_give_no_alarm_for_a_weak_teacher(name: str, tmp_path: Path) -> None:
    data = ReplayedDataset(source("sorted"), EVALUATION)
    path = write(tmp_path / "t.h5", data, WEAK[name](outputs(EVALUATION, "sorted")))
    report = verify_cache(path, dataset=data)
    assert report.labels is not None
    assert report.labels.cause is None


def test_outputs_of_other_libraries_may_be_close_and_those_of_another_teacher_are_refused(tmp_path: Path) -> None:
    data, logits = ReplayedDataset(source(), EVALUATION), outputs(EVALUATION)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    for size, seeds in ((0.1, (0, 76)), (0.15, (6, 7)), (0.25, range(4))):  # of 400 outputs, one is nearer by chance
        close = write(tmp_path / f"{size}.h5", data, logits + size * noise)
        for seed in seeds:
            assert 0 < verify_cache(close, teacher(), data, seed=seed).unexplained < 0.05, (size, seed)
    other = write(tmp_path / "other.h5", data, logits + 3 * noise)
    with pytest.raises(CacheMismatchError, match="none of the known causes explains it: is it another teacher"):
        verify_cache(other, teacher(), data, seed=0)


@pytest.mark.parametrize("size", [0.0, 0.05, 0.25])
def test_rows_shuffled_within_their_class_are_found_in_noise(size: float, tmp_path: Path) -> None:
    data, logits = ReplayedDataset(source(), EVALUATION), outputs(EVALUATION)
    targets, draw, order = np.asarray(source().targets), np.random.default_rng(0), np.arange(COUNT)
    for label in range(CLASSES):
        rows = np.flatnonzero(targets == label)
        order[rows] = draw.permutation(rows)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    path = write(tmp_path / "t.h5", data, logits[:, order] + size * noise)
    with pytest.raises(CacheMismatchError, match="rows are in another order"):
        verify_cache(path, teacher(), data, seed=0)


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    data = ReplayedDataset(source(), EVALUATION)
    path = write(tmp_path / "t.h5", data, outputs(EVALUATION))
    with pytest.raises(ClassMismatchError, match=r"has 7 classes, the cache .* has 10"):
        verify_cache(path, Teacher(tiny_model(num_classes=7)), ReplayedDataset(_nameless(), EVALUATION))


def _nameless() -> ArraySource:
    plain = source()
    return ArraySource(plain.images, [-1] * COUNT, keys=plain.keys)


def test_a_build_of_kdkit_that_does_not_match_is_told_the_cause_too(tmp_path: Path) -> None:
    data, softer = ReplayedDataset(source(), RANDOM), copy.deepcopy(linear())
    report = build_cache(teacher(), data, tmp_path / "t.h5", BuildConfig(codec="float32", num_workers=0))
    for parameter in softer.parameters():
        parameter.data.div_(4)
    other = Teacher(softer, normalization=PLAIN, name="linear")
    with pytest.raises(CacheMismatchError, match=r"likely its outputs have temperature 0\.25"):
        verify_cache(report.path, other, data, seed=0, allow_mismatch={"teacher.weights_sha256"})


def test_the_command_prints_the_agreement_and_names_a_cause_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_digits(tmp_path / "data", 200)
    keys = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    labels = np.array([int(key[0]) for key in keys])
    logits = 8 * np.eye(CLASSES, dtype="f4")[labels]
    for name, array, code in (("right", logits, 0), ("wrong", np.roll(logits, 1, axis=0), 1)):
        np.savez(tmp_path / f"{name}.npz", logits=array, keys=keys)
        imported = ["cache", "import", "arrays", f"{tmp_path}/{name}.npz", str(images), "-o", f"{tmp_path}/{name}.h5"]
        assert main([*imported, "--size", "8"]) == 0
        ends = " ".join(capsys.readouterr().out.split())
        assert f"labels the top-1 of 200 images is their class folder for {'9' if code else '100.0%'}" in ends
        assert ("likely its rows are shifted by +1" in ends) == ("next: kdkit distill" not in ends) == bool(code)
        assert main(["cache", "verify", f"{tmp_path}/{name}.h5", str(images)]) == code
        printed = capsys.readouterr()
        if code:
            assert "likely its rows are shifted by +1" in printed.err
            assert printed.err.count("\n") == 1
        else:
            assert "labels: the top-1 of 200 images is their class folder for 100.0% (by chance 10." in printed.out


def test_a_shift_and_permuted_classes_are_both_named_where_folders_in_order_make_them_look_alike(
    tmp_path: Path,
) -> None:
    labels = np.repeat(np.arange(5), 40)
    images = ArraySource(np.zeros((200, 8, 8, 3), np.uint8), labels, class_names=list("abcde"))
    np.save(tmp_path / "x.npy", 8 * np.eye(5, dtype="f4")[(labels + 1) % 5])
    import_arrays(tmp_path / "x.npy", images, tmp_path / "t.h5", recipe=ViewRecipe.evaluation(8))
    with pytest.raises(CacheMismatchError, match=r"likely its (rows are shifted|classes are permuted).*, or its (r|c)"):
        verify_cache(tmp_path / "t.h5", dataset=open_dataset(images, cache=tmp_path / "t.h5"))


def test_rows_of_many_views_are_judged_in_two_of_them() -> None:
    chosen = choose_places([(view, 1000 - view) for view in range(100)])
    assert {view for view, _ in chosen} == {0, 99}
    assert len({row for _, row in chosen}) == len(chosen) == 50


def test_softmax_applied_twice_is_undone() -> None:
    probs = outputs(EVALUATION)[0].softmax(-1)
    torch.testing.assert_close(undo_softmax(probs.log_softmax(-1)), probs)
    assert not is_softmax_of_probabilities(outputs(EVALUATION)[0].log_softmax(-1), 0.01)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0, 20.0])
def test_a_temperature_is_found(temperature: float) -> None:
    log_probs = outputs(EVALUATION)[0].log_softmax(-1)
    found = fit_temperature(log_probs, (log_probs / temperature).log_softmax(-1), lambda values: values)
    assert math.isclose(found, temperature, rel_tol=1e-3)


def test_columns_without_any_mass_keep_their_place() -> None:
    log_probs = torch.full((6, 5), -30.0)
    log_probs[:, 0], log_probs[:, 3] = -0.1, torch.linspace(-3, -2, 6)
    assert match_columns(log_probs, log_probs[:, [3, 1, 2, 0, 4]]) == [3, 1, 2, 0, 4]


def test_what_a_model_sees_is_normalised_as_wanted() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    own, incoming = Normalization(), PLAIN
    for wanted in NORMALIZATIONS.values():
        given = as_model_sees(wanted, own, incoming)
        arrives = _normalized(pixels, given)
        restored = arrives * torch.tensor(incoming.std).view(3, 1, 1) + torch.tensor(incoming.mean).view(3, 1, 1)
        torch.testing.assert_close(_normalized(restored, own), _normalized(pixels, wanted), rtol=1e-4, atol=1e-3)


def _normalized(pixels: Tensor, by: Normalization) -> Tensor:
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (by.mean, by.std))
    return (pixels - mean) / std
