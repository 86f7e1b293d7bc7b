"""Multi-label classification: losses, targets, metric, cache and training, against plain float64 computations."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from support import digits, loader_for, tiny_model, write_digits

from kdkit import LogitDistillationTask, build_cache, create_teacher, losses, open_cache, open_dataset, verify_cache
from kdkit.building.config import BuildConfig
from kdkit.cache.codecs import available_codecs, create_codec, multi_label_codec
from kdkit.cache.plot import plot_cache
from kdkit.data import ArraySource, FolderSource, MappedSource, MultiLabelSource, create_source
from kdkit.errors import ConfigError, DatasetError, KdkitError, LabelError, ShapeError
from kdkit.evaluation.config import EvaluateConfig
from kdkit.evaluation.student import evaluate_student
from kdkit.recipe import ViewRecipe
from kdkit.report import compare, write_report
from kdkit.report.config import ReportConfig
from kdkit.tasks import (
    ClassificationTask,
    MultiLabelClassificationTask,
    MultiLabelCrossEntropy,
    MultiLabelDistillationTask,
)
from kdkit.tasks.multi_label import MultiLabelEvaluator, mean_average_precision
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.distill import distill
from kdkit.training.train import train

COUNT, CLASSES = 40, 5
RECIPE = ViewRecipe(size=32, num_views=2, seed=3)
MIXED = ViewRecipe.preset("funmatch", size=32, num_views=2, seed=3)
CODECS = ["sigmoid_float32", "sigmoid_float16", "sigmoid_int8"]


def targets(count: int = COUNT, classes: int = CLASSES) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(0).random((count, classes)) < 0.4).astype(np.float32)


def source(count: int = COUNT) -> MultiLabelSource:
    return MultiLabelSource(digits(count), targets(count), class_names=list("abcde"))


def draw(*shape: int, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * scale


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sigmoid_kl_is_the_sum_of_the_divergences_of_all_classes(temperature: float) -> None:
    both = draw(2, 6, CLASSES)
    p, q = (1 / (1 + np.exp(-each.numpy() / temperature)) for each in (both[1], both[0]))
    expected = temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(1).mean()
    assert float(losses.sigmoid_kl(both[0], both[1], temperature=temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(losses.sigmoid_kl(both[1], both[1])) == 0


def test_sigmoid_kl_counts_0_log_0_as_0_where_the_teacher_is_certain() -> None:
    student = draw(3, CLASSES).requires_grad_()
    teacher = torch.where(draw(3, CLASSES) > 0, torch.inf, -torch.inf).double()
    loss = losses.sigmoid_kl(student, teacher)
    loss.backward()
    q = torch.sigmoid(student.detach())
    expected = -torch.where(teacher > 0, q.log(), (1 - q).log()).sum(1).mean()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-12)
    assert student.grad is not None
    assert torch.allclose(student.grad, (q - (teacher > 0).double()) / len(q))


def test_sigmoid_kl_stays_finite_where_the_teacher_is_certain_and_flows_into_the_student_alone() -> None:
    student, teacher = draw(3, 4).float().requires_grad_(), (draw(3, 4).sign() * 500).float().requires_grad_()
    loss = losses.sigmoid_kl(student, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert teacher.grad is None
    assert losses.loss_spec("sigmoid_kl").multi_label
    assert not losses.loss_spec("kl").multi_label


def test_the_loss_on_labels_is_torchs_with_weights_and_leaves_out_unknown_labels() -> None:
    logits, target = draw(8, CLASSES), torch.from_numpy(targets(8)).double()
    weight, pos_weight = torch.rand(CLASSES) + 0.5, torch.rand(CLASSES) + 0.5
    expected = torch.nn.BCEWithLogitsLoss(weight=weight.double(), pos_weight=pos_weight.double())(logits, target)
    found = MultiLabelCrossEntropy(weight, pos_weight)(logits, target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    unknown = target.clone()
    unknown[2], unknown[5, 1] = -1, -1
    kept = unknown >= 0
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(MultiLabelCrossEntropy()(logits, unknown), each[kept].mean())
    assert float(MultiLabelCrossEntropy()(logits, torch.full_like(target, -1))) == 0
    with pytest.raises(ShapeError, match=r"targets are \[B, C\] of 0 and 1, got \[8\].*need a ClassificationTask"):
        MultiLabelCrossEntropy()(logits, torch.zeros(8, dtype=torch.int64))


def test_an_evaluator_without_images_knows_neither_loss_nor_map() -> None:
    found = MultiLabelEvaluator().compute(distributed=True)  # as on a rank whose share is empty
    assert found.keys() == {"loss", "mAP"}
    assert all(np.isnan(value) for value in found.values())


def test_map_is_scikit_learns_also_with_ties_unknown_labels_and_classes_without_an_image() -> None:
    scores, target = draw(60, CLASSES).round().float(), torch.from_numpy(targets(60))  # rounded: many ties
    evaluator = MultiLabelEvaluator()
    for start in range(0, 60, 16):
        evaluator.update(scores[start : start + 16], target[start : start + 16])
    expected = np.mean([average_precision_score(target[:, c], scores[:, c]) for c in range(CLASSES)])
    assert evaluator.compute()["mAP"] == pytest.approx(100 * expected, abs=1e-9)
    target[:, 0], target[:30, 1] = 0, -1
    evaluator = MultiLabelEvaluator()
    evaluator.update(scores, target)
    known = [average_precision_score(target[30:, 1], scores[30:, 1])]
    known += [average_precision_score(target[:, c], scores[:, c]) for c in range(2, CLASSES)]
    assert evaluator.compute()["mAP"] == pytest.approx(100 * np.mean(known), abs=1e-9)


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_of_multi_label_logits_keeps_them_to_the_stated_precision(name: str) -> None:
    codec = create_codec(name, CLASSES)
    logits = torch.cat([draw(20, CLASSES).float(), torch.full((1, CLASSES), 3.0), torch.tensor([[50.0, -50, 0, 1, 2]])])
    decoded = codec.decode(codec.encode(logits))
    error = {"sigmoid_float32": 0.0, "sigmoid_float16": 2**-5, "sigmoid_int8": 40 / 255 / 2 + 1e-5}[name]
    kept = logits.clamp(-20, 20) if name == "sigmoid_int8" else logits
    assert (decoded - kept).abs().max() <= error
    assert codec.encode(logits).shape == (22, codec.row_bytes)
    assert codec.multi_label
    assert create_codec(**codec.to_dict()) == codec


@pytest.mark.parametrize("name", ["topk", "lowrank"])
def test_a_codec_that_cannot_keep_multi_label_logits_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"codec '{name}' keeps one distribution.*take sigmoid_float32"):
        multi_label_codec(name, CLASSES)
    assert [codec for codec in available_codecs() if create_codec(codec, 20).multi_label] == CODECS


@pytest.mark.parametrize("recipe", [RECIPE, MIXED])
@pytest.mark.parametrize("codec", ["float32", "sigmoid_float16", None])
def test_live_and_cached_training_have_the_same_losses(tmp_path: Path, recipe: ViewRecipe, codec: str | None) -> None:
    teacher, data = create_teacher(tiny_model(seed=1, num_classes=CLASSES)), source()
    dataset = open_dataset(data, recipe=recipe)
    build_cache(teacher, dataset, tmp_path / "t.h5", BuildConfig(codec=codec, num_workers=0))
    cache = open_cache(tmp_path / "t.h5", dataset)
    assert cache.is_multi_label
    assert cache.codecs["logits"].name == {"float32": CODECS[0]}.get(str(codec), CODECS[1])
    found = []
    for source_of_outputs in (None, cache):
        live = teacher if source_of_outputs is None else None
        task = MultiLabelDistillationTask(tiny_model(num_classes=CLASSES), live)
        loading = loader_for(dataset, task, batch_size=10)
        report = train(task, loading, TrainConfig(epochs=2), teacher_source=source_of_outputs)
        found.append([(epoch["loss"], epoch["kd_loss"], epoch["task_loss"]) for epoch in report.epochs])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5 if codec == "float32" else 2e-2)
    assert verify_cache(tmp_path / "t.h5", teacher, dataset).rows_compared == 64
    kept = cache.metadata.fidelity["logits"]
    assert 0 <= kept["kl_mean_t1"] < 1e-3
    with pytest.raises(ConfigError, match="is multi-label, so it cannot be averaged"):
        open_cache([tmp_path / "t.h5", tmp_path / "t.h5"])


def test_a_task_refuses_the_other_kind_of_targets_loss_or_cache_in_one_line(tmp_path: Path) -> None:
    many, one = open_dataset(source(), recipe=RECIPE), open_dataset(digits(COUNT), recipe=RECIPE)
    student = tiny_model(num_classes=10)
    for task in (ClassificationTask(student), LogitDistillationTask(student, tiny_model(seed=1))):
        with pytest.raises(ConfigError, match=r"several labels per image, which .*Task does not take: use MultiLabel"):
            train(task, loader_for(many, student), TrainConfig(epochs=1))
    with pytest.raises(ConfigError, match="takes several labels per image, the data has one class index"):
        train(MultiLabelClassificationTask(student), loader_for(one, student), TrainConfig(epochs=1))
    with pytest.raises(ConfigError, match=r"the loss 'kl' compares one distribution over the classes.*take sigmoid_kl"):
        MultiLabelDistillationTask(student, distill_loss="kl")
    build_cache(create_teacher(tiny_model(seed=1)), one, tmp_path / "t.h5", BuildConfig(codec="float16", num_workers=0))
    cache = open_cache(tmp_path / "t.h5", one)
    (batch, *_) = loader_for(one, student)
    task = LogitDistillationTask(student, distill_loss="sigmoid_kl")
    with pytest.raises(ConfigError, match="needs multi-label logits, this cache holds normalised log-probabilities"):
        task(batch.input, batch.target, cache(batch))
    with pytest.raises(ConfigError, match="multi-label logits have codecs of one size"):
        build_cache(create_teacher(tiny_model(num_classes=5)), many, tmp_path / "m.h5", BuildConfig(row_bytes=9))


def test_targets_come_from_arrays_datasets_and_tables_alike(tmp_path: Path) -> None:
    wanted = targets()
    images = write_digits(tmp_path / "images", COUNT)
    rows = sorted(images.rglob("*.png"), key=lambda file: file.name)
    for name, header in (("columns.csv", ["path", *"abcde"]), ("tags.csv", ["path", "tags"])):
        with open(images / name, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(header)
            for image, row in zip(rows, wanted, strict=True):
                tags = "|".join(tag for tag, is_there in zip("abcde", row, strict=True) if is_there)
                labels = [tags] if name == "tags.csv" else [int(value) for value in row]
                table.writerow([image.relative_to(images).as_posix(), *labels])
    pairs = [(digits(COUNT)[row][0], torch.from_numpy(wanted[row])) for row in range(COUNT)]
    opened = [
        open_dataset(images / "columns.csv", label_column="a,b,c,d,e"),
        open_dataset(images / "tags.csv", label_column="tags[|]"),
        open_dataset(source()),
        open_dataset(MultiLabelSource(pairs, class_names=list("abcde"))),
    ]
    for dataset in opened:
        assert dataset.is_multi_label
        assert dataset.class_names == list("abcde")
        assert dataset.num_classes == CLASSES
        (batch,) = loader_for(dataset, tiny_model(), batch_size=COUNT)
        assert torch.equal(batch.target[batch.row.argsort()], torch.from_numpy(wanted))
    left = opened[0].without(list(opened[0].keys[:3]))
    assert left.is_multi_label
    assert torch.equal(torch.as_tensor(left[0, 0].target), torch.from_numpy(wanted[3]))


@pytest.mark.parametrize(
    ("open_it", "message"),
    [
        (
            lambda: MappedSource([(digits(1)[0][0], 3.7)])[0],
            "is 3.7 .*numbers with a fraction, as for regression, are not",
        ),
        (lambda: MappedSource([(digits(1)[0][0], [0, 1])])[0], "is a vector of 2 numbers.*MultiLabelSource"),
        (
            lambda: ArraySource(digits(2).images, [0.5, 1.0]),
            "is 0.5 .*numbers with a fraction, as for regression, are not",
        ),
        (lambda: ArraySource(digits(2).images, [[0, 1], [1, 0]]), "is a vector of 2 numbers.*MultiLabelSource"),
        (lambda: MultiLabelSource(digits(2), [[0, 0.5], [1, 0]]), "is 0.5: multi-label targets are 0 and 1"),
        (lambda: MultiLabelSource(digits(2), [[0, 1]]), r"one vector per image, \[2, C\], got \[1, 2\]"),
        (lambda: MultiLabelSource(digits(2), [[0], [1]], class_names=["a", "b"]), "1 classes came with 2 class_names"),
        (lambda: MultiLabelSource([(digits(1)[0][0], 3)]), "is 3, expected a vector of 0 and 1"),
    ],
)
def test_targets_of_another_kind_are_refused_in_one_line(open_it: Any, message: str) -> None:
    with pytest.raises(KdkitError, match=message) as raised:
        open_it()
    assert "\n" not in str(raised.value)


def test_a_table_with_a_missing_column_or_another_value_is_refused(tmp_path: Path) -> None:
    images = write_digits(tmp_path / "images", 2)
    with open(images / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "a", "b"], ["0/000.png", 1, 2], ["1/001.png", 0, 0]])
    with pytest.raises(DatasetError, match="has no column 'c'; it has path, a, b"):
        open_dataset(images / "list.csv", label_column="a,c")
    with pytest.raises(DatasetError, match=r"line 2 of .* has '2' in the label column 'b': expected 0 or 1"):
        open_dataset(images / "list.csv", label_column="a,b")


@pytest.mark.parametrize("way", ["labels", "cache"])
def test_the_command_trains_and_validates_by_map(tmp_path: Path, way: str) -> None:
    images = write_digits(tmp_path / "images", COUNT)
    with open(images / "list.csv", "w", newline="") as file:
        keys = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
        rows = [[key, int(key[0]) % 2, int(int(key[0]) > 4)] for key in keys]
        csv.writer(file).writerows([["path", "odd", "large"], *rows])
    data, options = str(images / "list.csv"), {}
    if way == "cache":
        dataset = open_dataset(data, label_column="odd,large", recipe=RECIPE)
        teacher = create_teacher(tiny_model(seed=1, num_classes=2))
        build_cache(teacher, dataset, tmp_path / "t.h5", BuildConfig(num_workers=0))
        options = {"cache": str(tmp_path / "t.h5"), "distill_loss": "sigmoid_kl"}
    config = DistillConfig(
        data=data,
        validation=data,
        label_column="odd,large",
        output=str(tmp_path / "run"),
        student="test_resnet",
        recipe=None if way == "cache" else RECIPE,
        train=TrainConfig(epochs=2, batch_size=10, num_workers=0, ema_decay=0.9),
        **options,
    )
    report = distill(config)
    best = report.training.best
    assert best is not None
    assert best[1] == max(epoch["val_ema_mAP"] for epoch in report.training.epochs)
    assert 0 < best[1] <= 100
    assert report.weights.name == "model_best.pth.tar"
    found = evaluate_student(
        EvaluateConfig(student=config.output, data=data, label_column="odd,large", num_workers=0, ema=True)
    )
    assert found.top1 is None
    assert found.mean_ap == pytest.approx(max(epoch["val_ema_mAP"] for epoch in report.training.epochs), abs=1e-6)
    table = compare([tmp_path / "run"])
    (row,) = table.rows
    assert (row["best_map"], row["best_epoch"]) == (best[1], best[0])
    assert row["last_map"] == report.training.epochs[-1]["val_ema_mAP"]
    assert (row["best_top1"], row["best_top5"]) == (None, None)
    assert "mAP (epoch)" in str(table)
    assert "top-1" not in str(table)
    if way == "cache":
        kept = open_cache(tmp_path / "t.h5").summary()["logits kept"]
        assert kept.startswith("KL in nats, summed over the labels, ")
        assert "top-1" not in kept
        assert plot_cache(open_cache(tmp_path / "t.h5"), tmp_path / "t.png").stat().st_size > 0
        pytest.importorskip("plotly", reason="not installed; the extra `test` has it")
        options = {"cache": str(tmp_path / "t.h5"), "output": str(tmp_path / "r.html")}
        report_file = write_report(ReportConfig(runs=(str(tmp_path / "run"),), num_workers=0, **options))
        page = report_file.output.read_text()
        assert "Mean average precision" in page
        assert "top-1 kept" not in page


@pytest.mark.parametrize("odd", [torch.nan, 2.0, -0.5, -2.0])
def test_a_target_that_is_no_share_is_no_mark_for_unknown_and_reaches_the_loss(odd: float) -> None:
    logits, target = torch.randn(4, 3), torch.zeros(4, 3)
    target[1, 2] = odd
    assert MultiLabelCrossEntropy()(logits, target).isnan()
    logits[0, 0], target[0, 0], target[1, 2] = torch.inf, -1, 0
    assert MultiLabelCrossEntropy()(logits, target).isfinite()
    with pytest.raises(ConfigError, match="label_smoothing is a share"):
        MultiLabelCrossEntropy(label_smoothing=3.0)


def test_map_of_scores_that_are_nan_is_nan_whatever_their_order() -> None:
    target = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]])
    scores = torch.rand(4, 2)
    scores[2, 1] = torch.nan
    assert np.isnan(mean_average_precision(scores, target))


@pytest.mark.parametrize(
    ("field", "problem"),
    [("a|nan", "line 3 of .* has the label 'nan'"), ("NULL", "has the label 'NULL'")],
)
def test_a_missing_value_is_no_tag(tmp_path: Path, field: str, problem: str) -> None:
    path = table_of_tags(tmp_path, ["a", field])
    with pytest.raises(DatasetError, match=problem):
        create_source(path, label_column="tags[|]")


def test_unicode_forms_of_a_tag_are_one_class_and_labels_can_be_left_out(tmp_path: Path) -> None:
    path = table_of_tags(tmp_path, ["e\u0301|b", "\u00e9"])
    source = create_source(path, label_column="tags[|]")
    assert source.class_names == ["b", "\u00e9"]
    assert [source[row][1].tolist() for row in range(2)] == [[1, 1], [0, 1]]
    assert create_source(path, label_column="tags[|]", labels="none").class_names is None


def test_lists_in_a_column_of_tags_and_a_column_named_twice_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    lists = pyarrow.table({"image": ["0.png"], "tags": [["a", "b"]], "a": [1]})
    pytest.importorskip("pyarrow.parquet").write_table(lists, tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match="has labels in a list: expected a text"):
        create_source(tmp_path / "t.parquet", label_column="tags[|]")
    with pytest.raises(DatasetError, match="must have each class once"):
        create_source(tmp_path / "t.parquet", label_column="a,a")


@pytest.mark.parametrize("targets", [[], [[0, 1], [1]], [["x"], ["y"]], [[], []]])
def test_targets_that_are_no_table_of_numbers_are_an_error_of_kdkit(targets: object) -> None:
    with pytest.raises((ShapeError, DatasetError)):
        MultiLabelSource(digits(2), targets)  # type: ignore[arg-type]


def test_targets_of_any_dtype_of_torch_are_taken() -> None:
    wanted = torch.tensor([[0, 1], [1, 0]])
    for target in (wanted.bfloat16(), wanted.float().requires_grad_(), wanted.bool()):
        assert torch.equal(MultiLabelSource(digits(2), target)[1][1], wanted[1].float())


def test_the_names_of_classes_are_those_of_the_targets_and_not_of_other_labels(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    folder, values = FolderSource(tmp_path), [[0, 1], [1, 0]]
    table = pandas.DataFrame(values, columns=["indoor", "night"])
    assert MultiLabelSource(folder, table).class_names == ["indoor", "night"]
    assert MultiLabelSource(folder, table, class_names=["in", "dark"]).class_names == ["in", "dark"]
    assert MultiLabelSource(folder, np.array(values)).class_names is None
    assert MultiLabelSource(folder, pandas.DataFrame(values)).class_names is None
    assert MultiLabelSource(folder, values, class_names=["a", "b"]).class_names == ["a", "b"]
    with pytest.raises(DatasetError, match=r"columns of .* another order: 'indoor' came where 'night' was expected"):
        MultiLabelSource(folder, table, class_names=["night", "indoor"])
    with pytest.raises(DatasetError, match=r"rows of .* 'dog/0\.png' came where 'cat/0\.png' was expected"):
        MultiLabelSource(folder, table.set_axis(list(folder.keys)[::-1]))
    with pytest.raises(DatasetError, match="the columns of multi-label targets must have each class once"):
        MultiLabelSource(folder, pandas.DataFrame(values, columns=["a", "a"]))


def test_a_dataset_of_vectors_keeps_its_names() -> None:
    class Pairs(list[Any]):
        classes = ("a", "b")

    pairs = Pairs([(digits(2)[row][0], target) for row, target in enumerate([[0, 1], [1, 0]])])
    assert MultiLabelSource(pairs).class_names == ["a", "b"]
    assert MultiLabelSource(pairs, [[0, 1], [1, 0]]).class_names is None


@pytest.mark.parametrize("data", ["photos", Path("photos")])
def test_a_path_in_place_of_a_dataset_is_refused_by_what_it_is(data: Any) -> None:
    with pytest.raises(DatasetError, match=r"the dataset is the .* open it first, kdkit\.data\.create_source"):
        MultiLabelSource(data, [[0, 1]])


def table_of_tags(folder: Path, fields: list[str]) -> Path:
    for row in range(len(fields)):
        Image.new("RGB", (8, 8)).save(folder / f"{row}.png")
    rows = "".join(f"{row}.png,{field}\n" for row, field in enumerate(fields))
    (folder / "t.csv").write_text(f"image,tags\n{rows}", encoding="utf-8")
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("fields", "separator"), [(["cat;dog", "cat", "owl"], "|"), (["cat|dog", "dog"], ";"), (["cat|dog", "dog"], "; ")]
)
def test_tags_with_another_separator_than_the_given_one_are_refused(
    tmp_path: Path, fields: list[str], separator: str
) -> None:
    with pytest.raises(LabelError, match=r"has the label 'cat.dog', and a part of it as a label by itself"):
        create_source(table_of_tags(tmp_path, fields), label_column=f"tags[{separator}]")


def test_the_evaluator_follows_timms_protocol() -> None:
    task = MultiLabelClassificationTask(tiny_model(num_classes=3))
    evaluator = task.create_evaluator(device="cpu", max_samples=3)
    output, target = torch.randn(4, 3), torch.eye(4, 3)
    for part in (slice(0, 2), slice(2, 4)):
        evaluator.update(output[part], target[part])
    whole = MultiLabelEvaluator()
    whole.update(output[:3], target[:3])
    assert evaluator.compute() == evaluator.summary() == whole.compute()
    assert evaluator.default_metric in evaluator.metric_names
    assert set(evaluator.metric_names) == set(evaluator.compute())
    evaluator.reset()
    evaluator.update(output[3:], target[3:])
    assert len(evaluator._outputs) == 1
