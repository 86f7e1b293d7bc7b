"""Several caches as one teacher, compared with the live ensemble and with a plain NumPy computation."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import CLASSES, RECIPE, digits, digits_dataset, tiny_model

from kdkit import LogitDistillationTask, TeacherEnsemble, build_cache, create_teacher, open_cache, open_dataset
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher, CacheReader, CacheSpec, CacheWriter, create_codec
from kdkit.data import ArraySource, ReplayedDataset, create_loader
from kdkit.errors import CacheMismatchError, CacheStreamError, ClassMismatchError, ConfigError
from kdkit.types import Batch, Normalization, TeacherOutput

EXACT = BuildConfig(codec="float32", num_workers=0, batch_size=64, feature_codec="float16")
COUNT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of two teachers on the same views: a.h5 with logits alone, b.h5 and c.h5 with a feature as well."""
    folder = tmp_path_factory.mktemp("mixture")
    for seed, name in enumerate("abc"):
        config = EXACT if name == "a" else dataclasses.replace(EXACT, streams=("logits", "pooled"))
        build_cache(create_teacher(tiny_model(seed=seed)), digits_dataset(COUNT), folder / f"{name}.h5", config)
    return folder


def a_batch(view: int = 1) -> Batch:
    """A batch of every third digit in another order, in the teachers' normalisation."""
    dataset, rows = digits_dataset(COUNT), torch.arange(COUNT - 1, -1, -3)
    images = torch.stack([dataset[row, view].image for row in rows.tolist()])
    return Batch((images.float() / 255 - 0.5) / 0.5, torch.zeros(len(rows), dtype=torch.int64), rows, view)


def probabilities(path: Path, batch: Batch) -> np.ndarray:
    """The softmax of a cache's rows, float64 [B, C]."""
    logits = open_cache(path, digits_dataset(COUNT))(batch).logits
    assert logits is not None
    return torch.softmax(logits.double(), dim=1).numpy()


def mixed(*arguments: object, **options: object) -> TeacherOutput:
    return open_cache(*arguments, digits_dataset(COUNT), **options)(a_batch())  # type: ignore[call-overload]


@pytest.mark.parametrize("weights", [None, [2, 1], [0.25, 1.75], [1, 0]])
def test_the_mix_of_two_caches_is_the_live_ensemble_of_their_teachers(
    folder: Path, weights: list[float] | None
) -> None:
    output = mixed([folder / "a.h5", folder / "b.h5"], weights=weights)
    ensemble = TeacherEnsemble([create_teacher(tiny_model(seed=seed)) for seed in (0, 1)], weights)
    torch.testing.assert_close(output.logits, ensemble(a_batch()).logits, rtol=0, atol=1e-6)


IMAGENET = Normalization()  # not that of the teachers
LIVE = [([2, 1], None), ([1, 3], [2, 0.5]), ([1, 0], None), ([0, 1], None)]


@pytest.mark.parametrize(("weights", "temperatures"), LIVE)
@pytest.mark.parametrize("chosen", [None, ["7", "2", "9"]])
def test_a_live_teacher_in_the_mix_gives_what_its_cache_would(
    folder: Path, weights: list[float], temperatures: list[float] | None, chosen: list[str] | None
) -> None:
    options: Any = {"weights": weights, "temperatures": temperatures, "class_names": chosen}
    runs: list[int] = []
    teacher = create_teacher(tiny_model(seed=1))
    teacher.register_forward_hook(lambda *given: runs.append(1))
    reader = open_cache([folder / "a.h5"], live=teacher, **options)
    twins = open_cache([folder / "a.h5", folder / "b.h5"], streams=["logits"], **options)
    names: Any = chosen or CLASSES
    data = open_dataset(digits(COUNT), recipe=RECIPE, class_names=names if chosen else None, cache=reader)
    rows = torch.arange(len(data))
    images = torch.stack([data[row, 1].image for row in rows.tolist()]).float() / 255
    twins.match(data)
    here, there = (Batch((images - mean) / std, torch.zeros(0), rows, 1) for mean, std in ((0.5, 0.5), (_MEAN, _STD)))
    expected = twins(here)
    found = reader(here), reader.for_input(IMAGENET)(there)
    for output in found:
        torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=2e-5)
        assert [member.weight for member in output.members] == [member.weight for member in expected.members]
    assert len(runs) == (1 if weights[1] else 0)  # for_input makes a teacher without the hook
    assert (reader.num_classes, list(reader.class_names or ())) == (len(names), names)
    assert reader.identity != twins.identity


_MEAN, _STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))


def test_a_live_teacher_that_does_not_fit_is_refused(folder: Path) -> None:
    a, teacher = [folder / "a.h5"], create_teacher(tiny_model(seed=1))
    with pytest.raises(ClassMismatchError, match=r"the live teacher 'test_resnet' has 3 classes, the cache .* has 10"):
        open_cache(a, live=create_teacher(tiny_model(num_classes=3)))
    other = create_teacher(tiny_model(), class_names=CLASSES[::-1])
    with pytest.raises(
        ClassMismatchError, match=r"the live teacher 'test_resnet' and the cache .* have class 0 as '9'"
    ):
        open_cache(a, live=other)
    for weights in ([1], [1, 2, 3]):
        with pytest.raises(ConfigError, match="one finite number for each of 1 caches and for the live teacher, got"):
            open_cache(a, live=teacher, weights=weights)
    with pytest.raises(ConfigError, match="weights, temperatures and live are of a list of caches, got one path"):
        open_cache(a[0], live=teacher)  # type: ignore[call-overload]
    changed = create_teacher(tiny_model(seed=2))
    assert open_cache(a, live=teacher).identity != open_cache(a, live=changed).identity


def test_each_cache_is_softened_by_its_temperature_and_then_weighted(folder: Path) -> None:
    output = mixed([folder / "a.h5", folder / "b.h5"], weights=[3, 1], temperatures=[2, 0.5])
    softened = []
    for name, temperature in (("a.h5", 2), ("b.h5", 0.5)):
        power = probabilities(folder / name, a_batch()) ** (1 / temperature)
        softened.append(power / power.sum(axis=1, keepdims=True))
    expected = np.log(0.75 * softened[0] + 0.25 * softened[1])
    assert output.logits is not None
    np.testing.assert_allclose(output.logits.numpy(), expected, rtol=0, atol=1e-6)


def test_each_loss_is_summed_over_the_teachers_and_each_teacher_is_logged_apart(folder: Path) -> None:
    weights, temperatures = [3, 1], [2.0, 0.5]
    output, batch = mixed([folder / "a.h5", folder / "b.h5"], weights=weights, temperatures=temperatures), a_batch()
    target = torch.tensor([digits(COUNT).targets[row] for row in batch.row.tolist()])  # type: ignore[union-attr]
    student = tiny_model(seed=9).eval()
    expected = 0.0
    for name, weight, temperature in zip(("a.h5", "b.h5"), (0.75, 0.25), temperatures, strict=True):
        power = probabilities(folder / name, batch) ** (1 / temperature)
        teacher = power / power.sum(axis=1, keepdims=True)
        log_student = student(batch.input).double().log_softmax(1).detach().numpy()
        expected += weight * (teacher * (np.log(teacher) - log_student)).sum(axis=1).mean()
    task = LogitDistillationTask(student, distill_loss="kl", temperature=1.0, combine="losses").eval()
    with torch.no_grad():
        result = task(batch.input, target, output)
        mix = LogitDistillationTask(student, temperature=1.0).eval()(batch.input, target, output)
    assert float(result["kd_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(mix["kd_loss"]) < expected  # the KL is convex in the teacher
    for number, name in enumerate(("a.h5", "b.h5")):
        choice = probabilities(folder / name, batch).argmax(axis=1)
        own = student(batch.input).argmax(1).numpy()
        assert float(result[f"teacher_top1_{number}"]) == pytest.approx(100 * (choice == target.numpy()).mean())
        assert float(result[f"agreement_top1_{number}"]) == pytest.approx(100 * (choice == own).mean())
    with pytest.raises(ConfigError, match="combine must be one of probabilities, losses, got 'mean'"):
        LogitDistillationTask(student, combine="mean")  # type: ignore[arg-type]


def test_a_mix_of_two_trains_in_a_loop_as_one_cache_does(folder: Path) -> None:
    dataset = open_dataset(digits(COUNT), cache=[folder / "a.h5", folder / "b.h5"])
    cache = open_cache([folder / "a.h5", folder / "b.h5"], dataset)
    reader: CacheReader = cache
    assert (reader.num_classes, reader.recipe, list(reader.class_names or ())) == (10, RECIPE, CLASSES)
    for batch in create_loader(dataset, tiny_model(), batch_size=20, num_workers=0):
        logits = cache(batch).logits
        assert logits is not None
        torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(20))


def test_a_feature_keeps_its_name_where_one_cache_alone_has_it(folder: Path) -> None:
    output = mixed([folder / "a.h5", folder / "b.h5"])
    alone = open_cache(folder / "b.h5", digits_dataset(COUNT))(a_batch())
    assert list(output.features) == ["pooled"]
    assert torch.equal(output.features["pooled"], alone.features["pooled"])


def test_a_feature_of_two_caches_is_named_by_the_number_of_the_cache(folder: Path) -> None:
    cache = open_cache([folder / "b.h5", folder / "c.h5"], digits_dataset(COUNT))
    assert cache.streams == ("logits", "0:pooled", "1:pooled")
    assert cache.feature_widths == {"0:pooled": 96, "1:pooled": 96}
    for number, name in enumerate("bc"):
        alone = open_cache(folder / f"{name}.h5", digits_dataset(COUNT))(a_batch())
        assert torch.equal(cache(a_batch()).features[f"{number}:pooled"], alone.features["pooled"])
    with pytest.raises(CacheStreamError, match=r"b\.h5.* and .*c\.h5.*'0:pooled' or '1:pooled'"):
        cache.check_exists("pooled")
    with pytest.raises(CacheStreamError, match=r"no stream 'tokens' in .*a\.h5.*: they hold logits, pooled"):
        open_cache([folder / "a.h5", folder / "b.h5"], streams=["tokens"])


def test_only_what_is_wanted_is_read(folder: Path) -> None:
    cache = open_cache([folder / "b.h5", folder / "c.h5"], digits_dataset(COUNT), streams=["1:pooled"])
    output = cache(a_batch())
    assert output.logits is None
    assert list(output.features) == ["1:pooled"]
    assert cache.caches[0].streams == ()
    without = open_cache([folder / "a.h5", folder / "b.h5"], weights=[0, 1])
    assert without.caches[0].streams == ()


def test_a_cache_without_logits_gives_its_features_alone(folder: Path, tmp_path: Path) -> None:
    features = dataclasses.replace(EXACT, streams=("pooled",))
    build_cache(create_teacher(tiny_model(seed=5)), digits_dataset(COUNT), tmp_path / "f.h5", features)
    paths = [tmp_path / "f.h5", folder / "a.h5"]
    output, alone = mixed(paths), mixed(folder / "a.h5")
    torch.testing.assert_close(output.logits, torch.log_softmax(alone.logits, dim=1))  # type: ignore[arg-type]
    assert list(output.features) == ["pooled"]
    with pytest.raises(ConfigError, match=r"f\.h5' has no logits to average, but the weight 1: give it 0"):
        open_cache(paths, weights=[1, 1])


def test_each_cache_is_matched_with_the_dataset_by_itself(folder: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(RECIPE, seed=8)
    build_cache(create_teacher(tiny_model()), digits_dataset(COUNT, other), tmp_path / "other.h5", EXACT)
    with pytest.raises(CacheMismatchError, match=r"other\.h5.*recipe\.seed"):
        open_cache([folder / "a.h5", tmp_path / "other.h5"], digits_dataset(COUNT))
    source = digits(COUNT)
    order = list(reversed(range(COUNT)))
    reversed_source = ArraySource(
        source.images[order], source.targets[order], keys=[source.keys[row] for row in order], class_names=CLASSES
    )
    build_cache(create_teacher(tiny_model(seed=1)), ReplayedDataset(reversed_source, RECIPE), tmp_path / "r.h5", EXACT)
    torch.testing.assert_close(
        mixed([folder / "a.h5", tmp_path / "r.h5"]).logits,
        mixed([folder / "a.h5", folder / "b.h5"]).logits,
        rtol=0,
        atol=1e-6,
    )


def made_up(path: Path, class_names: list[str] | None, num_classes: int) -> Path:
    """A cache of random logits of a single row."""
    spec = CacheSpec(
        keys=["one"], num_views=1, codecs={"logits": create_codec("float32", num_classes)}, class_names=class_names
    )
    with CacheWriter.create(path, spec) as writer:
        for shard in writer.missing():
            writer.write(shard, {"logits": torch.randn(1, num_classes)})
        writer.finish()
    return path


def test_caches_of_other_classes_are_refused(tmp_path: Path) -> None:
    two, three = made_up(tmp_path / "two.h5", None, 2), made_up(tmp_path / "three.h5", None, 3)
    with pytest.raises(ClassMismatchError, match=r"three\.h5' has 3 classes, .*two\.h5' has 2"):
        open_cache([two, three])
    ab, ba = made_up(tmp_path / "ab.h5", ["a", "b"], 2), made_up(tmp_path / "ba.h5", ["b", "a"], 2)
    with pytest.raises(ClassMismatchError, match=r"ba\.h5' and .*ab\.h5' have class 0 as 'b' and 'a'"):
        open_cache([ab, ba])
    assert open_cache([two, ab]).class_names == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": [1]}, "weights must hold one finite number for each of 2 caches"),
        ({"weights": [1, float("nan")]}, "weights must hold one finite number"),
        ({"weights": [0, 0]}, "not all 0"),
        ({"weights": [2, -1]}, "weights must be 0 or more"),
        ({"temperatures": [1, 0]}, "temperatures must be above 0"),
        ({"temperatures": [1, 2, 3]}, "temperatures must hold one finite number for each of 2 caches"),
        ({"weights": 1.0}, r"weights must hold one finite number for each of 2 caches, got 1\.0"),
        ({"weights": ["a", "b"]}, r"weights must hold one finite number for each of 2 caches, got \['a', 'b'\]"),
        ({"weights": "12"}, "weights must hold one finite number for each of 2 caches, got '12'"),
        ({"weights": [1, None]}, "weights must hold one finite number for each of 2 caches"),
        ({"weights": [1, 10**400]}, "weights must hold one finite number for each of 2 caches"),
        ({"weights": [1e308, 1e308]}, "weights must have a finite sum"),
        ({"temperatures": 2}, "temperatures must hold one finite number for each of 2 caches, got 2"),
        ({"temperatures": [1, 1e-320]}, "temperatures must be above 0, from 1e-6 to 1e6"),
        ({"temperatures": [1, 1e308]}, "temperatures must be above 0, from 1e-6 to 1e6"),
        ({"sparse": True}, "sparse rows of several caches cannot be averaged"),
    ],
)
def test_weights_and_temperatures_that_do_not_fit_are_refused(
    folder: Path, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_cache([folder / "a.h5", folder / "b.h5"], **options)  # type: ignore[call-overload]


def test_one_path_takes_no_weights_and_a_list_is_not_empty(folder: Path) -> None:
    with pytest.raises(ConfigError, match="weights, temperatures and live are of a list of caches"):
        open_cache(folder / "a.h5", weights=[1.0])  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="an empty list"):
        open_cache([])
    assert isinstance(open_cache(folder / "a.h5"), CachedTeacher)


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_the_coldest_and_the_hottest_temperature_leave_finite_logits(folder: Path, temperature: float) -> None:
    logits = mixed([folder / "a.h5", folder / "b.h5"], temperatures=[temperature, temperature]).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (None, "open_cache takes the path of a cache or a list of them, got None"),
        (3, "open_cache takes the path of a cache or a list of them, got 3"),
        ([1, None], r"open_cache takes a list of paths, got 1 as number 0 of \[1, None\]"),
        (["a.h5", None], r"open_cache takes a list of paths, got None as number 1 of \['a\.h5', None\]"),
        (b"a.h5", "open_cache takes a list of paths, got 97"),
    ],
)
def test_what_is_no_path_and_no_list_of_paths_is_refused(path: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_cache(path)


def test_the_identity_changes_with_caches_weights_and_temperatures(folder: Path) -> None:
    a, b, c = (folder / f"{name}.h5" for name in "abc")
    readers = [
        open_cache([a, b]),
        open_cache([a, c]),
        open_cache([a, b], weights=[2, 1]),
        open_cache([a, b], temperatures=[2, 1]),
    ]
    assert len({reader.identity for reader in readers}) == len(readers)
    assert open_cache([a, b], weights=[1, 1]).identity == open_cache([a, b]).identity
    assert "0.667 test_resnet + 0.333 test_resnet at T=2" in repr(
        open_cache([a, b], weights=[2, 1], temperatures=[1, 2])
    )


def test_a_mix_pickles(folder: Path) -> None:
    cache = open_cache([folder / "a.h5", folder / "b.h5"], digits_dataset(COUNT), weights=[2, 1])
    twin = pickle.loads(pickle.dumps(cache))
    assert torch.equal(twin(a_batch()).logits, cache(a_batch()).logits)
