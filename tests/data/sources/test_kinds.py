"""The same small dataset in every kind of data: one meaning of its labels, or one refusal that names the sample."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import re
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset

import kdkit
from kdkit.cache import CachedTeacher
from kdkit.data import ArraySource, MappedSource, MultiLabelSource, ReplayedDataset, create_source
from kdkit.data.sources.classes import ClassesSource
from kdkit.data.sources.content import SampleContent
from kdkit.errors import ConfigError, DatasetError, KdkitError, LabelError
from kdkit.recipe import ViewRecipe

COUNT = 6
ROMAN = "\u2160"  # the numeral one, a letter of its own
IMAGES = [Image.new("RGB", (8, 8), (40 * row, 10, 200)) for row in range(COUNT)]
Labels = Sequence[Any]
datasets = pytest.importorskip("datasets", reason="not installed; the extra `test` has it")
parquet = pytest.importorskip("pyarrow.parquet", reason="not installed; the extra `test` has it")
pyarrow = pytest.importorskip("pyarrow")


def png(row: int) -> bytes:
    stream = io.BytesIO()
    IMAGES[row].save(stream, format="PNG")
    return stream.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_files(root: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    for name, content in members:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def in_folders(labels: Labels) -> list[tuple[str, bytes]]:
    return [(f"{label}/{row}.png", png(row)) for row, label in enumerate(labels)]


def folder(root: Path, labels: Labels) -> Path:
    return write_files(root / "folder", in_folders(labels))


def zipped(root: Path, labels: Labels) -> Path:
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        for name, content in in_folders(labels):
            archive.writestr(name, content)
    return root / "a.zip"


def tar(root: Path, labels: Labels) -> Path:
    return write_tar(root / "a.tar", in_folders(labels))


def tars(root: Path, labels: Labels) -> Path:
    for label in dict.fromkeys(labels):
        members = [(f"{row}.png", png(row)) for row, other in enumerate(labels) if other == label]
        write_tar(root / "tars" / f"{label}.tar", members)
    return root / "tars"


def tar_of_tars(root: Path, labels: Labels) -> Path:
    inner = tars(root, labels)
    with tarfile.open(root / "all.tar", "w") as archive:
        archive.add(inner, arcname="all")
    return root / "all.tar"


def shards_of_folders(root: Path, labels: Labels) -> Path:
    """Shards in whose class folders the images are."""
    members = in_folders(labels)
    write_tar(root / "shards" / "shard-000000.tar", members[:3])
    return write_tar(root / "shards" / "shard-000001.tar", members[3:]).parent


def webdataset(root: Path, labels: Labels, suffix: str) -> Path:
    members: list[tuple[str, bytes]] = []
    for row, label in enumerate(labels):
        text = json.dumps({"label": label}) if suffix == "json" else "" if label is None else str(label)
        members += [(f"{row:06d}.png", png(row)), (f"{row:06d}.{suffix}", text.encode())]
    write_tar(root / "shards" / "shard-000000.tar", members[:6])
    return write_tar(root / "shards" / "shard-000001.tar", members[6:]).parent


def hugging_face(root: Path, labels: Labels) -> Any:
    rows = {"image": [{"bytes": png(row), "path": f"{row}.png"} for row in range(COUNT)], "label": list(labels)}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def text_table(root: Path, labels: Labels, mark: str = ",", kind: str = "csv") -> Path:
    names = [f"images/{row}.png" for row in range(COUNT)]
    write_files(root, [(name, png(row)) for row, name in enumerate(names)])
    lines = [f"path{mark}label"]
    lines += [f"{name}{mark}{'' if label is None else label}" for name, label in zip(names, labels, strict=True)]
    (root / f"a.{kind}").write_text("\n".join(lines) + "\n")
    return root / f"a.{kind}"


def parquet_table(root: Path, labels: Labels) -> Path:
    text_table(root, labels)
    paths = [f"images/{row}.png" for row in range(COUNT)]
    parquet.write_table(pyarrow.table({"path": paths, "label": list(labels)}), root / "a.parquet")
    return root / "a.parquet"


def mapped(root: Path, labels: Labels) -> Any:
    return list(zip(IMAGES, labels, strict=True))


def mappings(root: Path, labels: Labels) -> Any:
    return [{"image": image, "label": label} for image, label in zip(IMAGES, labels, strict=True)]


def arrays(root: Path, labels: Labels) -> ArraySource:
    return ArraySource(np.stack([np.asarray(image) for image in IMAGES]), list(labels))


NAMED: dict[str, Callable[[Path, Labels], Any]] = {
    "folder": folder,
    "zip": zipped,
    "tar": tar,
    "folder of tars": tars,
    "tar of tars": tar_of_tars,
    "shards of class folders": shards_of_folders,
}
"""Kinds in which the name of a folder or tar is the class."""
VALUED: dict[str, Callable[[Path, Labels], Any]] = {
    "cls": lambda root, labels: webdataset(root, labels, "cls"),
    "json": lambda root, labels: webdataset(root, labels, "json"),
    "Hugging Face": hugging_face,
    "hfds": hugging_face,
    "csv": text_table,
    "tsv": lambda root, labels: text_table(root, labels, "\t", "tsv"),
    "parquet": parquet_table,
}
"""Kinds in which a label is a name or a class index."""
INDEXED: dict[str, Callable[[Path, Labels], Any]] = {"mapped": mapped, "mappings": mappings, "arrays": arrays}
"""Kinds in which a label is a class index."""
TEXTS = ("cls", "csv", "tsv")


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Writes labels as data of a kind and opens it; hfds/NAME answers with the Hugging Face dataset."""

    def open_kind(kind: str, content: Labels, **options: Any) -> Any:
        data = {**NAMED, **VALUED, **INDEXED}[kind](tmp_path, content)
        if kind == "hfds":
            monkeypatch.setattr("datasets.load_dataset", lambda name, split, table=data: table)
            data = "hfds/me/it:test"
        return create_source(data, **options)

    return open_kind


def found(source: Any) -> dict[int, Any]:
    """Row, told by the pixels, -> class name or, without names, class index."""
    rows = {}
    for index in range(len(source)):
        image, target = source[index]
        row = round(image.getpixel((0, 0))[0] / 40)
        rows[row] = target if source.class_names is None or target < 0 else source.class_names[target]
        if source.targets is not None:
            assert source.targets[index] == target
    return rows


@pytest.mark.parametrize("kind", [*NAMED, *VALUED])
def test_names_are_classes_in_one_natural_order(opened: Callable[..., Any], kind: str) -> None:
    labels = ["b x", "a", "A", "10²", "①", ROMAN]
    source = opened(kind, labels)
    assert list(source.class_names) == ["10²", "A", "a", "b x", ROMAN, "①"]
    assert found(source) == dict(enumerate(labels))


@pytest.mark.parametrize("kind", [*NAMED, *VALUED, *INDEXED])
def test_workers_of_every_start_method_read_the_content_of_files(opened: Callable[..., Any], kind: str) -> None:
    """Where processes do not fork, as on macOS and from Python 3.14 on, a worker gets its reader as a pickle."""
    content = SampleContent(opened(kind, [0, 1] * 3 if kind in INDEXED else ["a", "b"] * 3))
    sent = pickle.loads(pickle.dumps(content))
    assert [sent.read(row) for row in range(COUNT)] == [content.read(row) for row in range(COUNT)]


@pytest.mark.parametrize("kind", [*NAMED, *VALUED])
def test_unicode_forms_of_one_name_are_one_class_and_a_line_says_so(
    opened: Callable[..., Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    composed, decomposed = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
    assert composed != decomposed
    source = opened(kind, ["f", decomposed, composed, decomposed, "z", "z"])
    assert caplog.text.count(f"the class {composed!r} is written in two forms of Unicode, which are one class") == 1
    assert list(source.class_names) == ["f", "z", composed]
    assert found(source) == dict(enumerate(["f", composed, composed, composed, "z", "z"]))


@pytest.mark.parametrize("kind", [*NAMED, *VALUED])
def test_names_that_differ_in_the_blanks_around_them_do_not_make_two_classes(
    opened: Callable[..., Any], kind: str
) -> None:
    labels = ["cat", " cat", "cat ", "dog", "dog", "dog"]
    if kind in NAMED:
        with pytest.raises(DatasetError, match="remove the blanks around the names"):
            opened(kind, labels)
    else:
        assert list(opened(kind, labels).class_names) == ["cat", "dog"]


@pytest.mark.parametrize("kind", [*VALUED, *INDEXED])
def test_whole_numbers_are_class_indices_and_minus_one_and_none_are_no_label(
    opened: Callable[..., Any], kind: str
) -> None:
    source = opened(kind, [3, 0, -1, None, 1, 0])
    assert source.class_names is None
    assert found(source) == {0: 3, 1: 0, 2: -1, 3: -1, 4: 1, 5: 0}


ODD: dict[str, Labels] = {
    "a float": [0, 1, 2, 1.7, 0, 1],
    "whole floats": [0.0, 1.0, 2.0, 0.0, 0.0, 1.0],
    "nan": [0.0, 1.0, float("nan"), 1.0, 0.0, 1.0],
    "below -1": [0, 1, -5, 0, 0, 1],
    "too large": [0, 1, 10**12, 0, 0, 1],
}


@pytest.mark.parametrize("kind", [*VALUED, *INDEXED])
@pytest.mark.parametrize("case", ODD)
def test_a_number_that_is_no_class_index_is_refused_with_the_sample(
    opened: Callable[..., Any], kind: str, case: str
) -> None:
    with pytest.raises(LabelError, match="whole number") as caught:
        found(opened(kind, ODD[case]))
    assert "the label of '" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", VALUED)
def test_bools_are_the_names_that_a_csv_has_for_them(opened: Callable[..., Any], kind: str) -> None:
    source = opened(kind, [True, False, True, True, False, None])
    assert source.class_names == ["False", "True"]
    assert found(source) == dict(enumerate(["True", "False", "True", "True", "False", -1]))


@pytest.mark.parametrize("kind", VALUED)
@pytest.mark.parametrize("mark", "|;")
def test_a_list_of_names_is_no_name_where_its_parts_are_names_and_is_told_where_they_are_not(
    opened: Callable[..., Any], kind: str, mark: str, caplog: pytest.LogCaptureFixture
) -> None:
    both = f"red{mark}big"
    with pytest.raises(LabelError, match=re.escape(f"'{both}'") + r".*--label-column 'NAME\[") as caught:
        opened(kind, ["red", both, "big", "red", None, "big"])
    assert "\n" not in str(caught.value)
    assert opened(kind, [both, f"blue{mark}big", both, None, both, both]).class_names == [f"blue{mark}big", both]
    assert "is taken for one class" in caplog.text


@pytest.mark.parametrize("kind", INDEXED)
def test_bools_are_no_class_indices(opened: Callable[..., Any], kind: str) -> None:
    with pytest.raises(LabelError, match=r"True \(bool"):
        found(opened(kind, [True, False, True, True, False, True]))


@pytest.mark.parametrize("kind", VALUED)
@pytest.mark.parametrize(
    "odd", ["01", "2.5", "1e3", "+1", "nan", "NaN", "None", "NULL", "N/A", "<NA>", "inf", "1_0", "\uff19"]
)
def test_a_text_that_is_a_number_or_a_missing_value_is_no_class_name(
    opened: Callable[..., Any], kind: str, odd: str
) -> None:
    with pytest.raises(LabelError, match=re.escape(f"'{odd}'")):
        opened(kind, ["a", "b", "c", "b", odd, "a"])


@pytest.mark.parametrize("kind", VALUED)
def test_numbers_among_names_are_refused(opened: Callable[..., Any], kind: str) -> None:
    with pytest.raises(LabelError, match="or names for all"):
        opened(kind, ["cat", "1", "2", "cat", "3", "1"])


@pytest.mark.parametrize("kind", [*NAMED, *VALUED, *INDEXED])
def test_labels_are_left_out_on_request(opened: Callable[..., Any], kind: str) -> None:
    source = opened(kind, [1, 0, 1, 2, 0, 1] if kind in INDEXED else list("abcabc"), labels="none")
    assert source.class_names is None
    assert found(source) == dict.fromkeys(range(COUNT), -1)
    assert ReplayedDataset(source, ViewRecipe(size=8)).is_unlabelled


@pytest.mark.parametrize("kind", [*NAMED, *VALUED, *INDEXED])
def test_a_label_beyond_the_students_classes_is_refused_with_key_and_label(
    opened: Callable[..., Any], kind: str
) -> None:
    source = opened(kind, list("abcabd") if kind in NAMED else [0, 1, 2, 0, 1, 9])
    dataset = ReplayedDataset(source, ViewRecipe(size=8))
    last = next(key for index, key in enumerate(source.keys) if found(source)[5] == _name(source, index))
    with pytest.raises(DatasetError) as caught:
        # before the first step: of labels that come only with their images before the step of the batch
        for _ in kdkit.create_loader(dataset, Student(), batch_size=COUNT, num_workers=0):
            pass
    label = 3 if kind in NAMED else 9
    assert f"the label of {last!r} is {label}: expected 0 to 2" in str(caught.value)


class Student(torch.nn.Linear):
    """A model of three classes."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__(1, 3)


def _name(source: Any, index: int) -> Any:
    target = source[index][1]
    return target if source.class_names is None else source.class_names[target]


@pytest.mark.parametrize("kind", ["mapped", "mappings"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_label_that_comes_with_its_image_is_never_skipped_as_unreadable(
    opened: Callable[..., Any], kind: str, workers: int
) -> None:
    source = opened(kind, [0, 1, 2, 0, 1, -7])
    dataset = ReplayedDataset(source, ViewRecipe(size=8)).skipping_unreadable()
    before = set(multiprocessing.active_children())
    loader = kdkit.create_loader(dataset, Student(), batch_size=3, num_workers=workers)
    for _ in range(2):  # an error ends the workers, and another pass can follow
        with pytest.raises(DatasetError, match=r"^the label of '5' is -7") as caught:
            list(loader)
        assert "\n" not in str(caught.value)
        assert set(multiprocessing.active_children()) <= before
        loader.set_epoch(0)


@pytest.mark.parametrize(
    ("label", "index"),
    [
        (np.int64(2), 2),
        (np.uint8(2), 2),
        (np.array(2), 2),
        (np.array([2]), 2),
        (torch.tensor(2), 2),
        (torch.tensor([2], dtype=torch.int32), 2),
        (torch.tensor(-1), -1),
    ],
)
def test_scalars_of_numpy_and_torch_are_class_indices(label: Any, index: int) -> None:
    assert MappedSource([(IMAGES[0], label)])[0][1] == index
    assert ArraySource(np.zeros((1, 8, 8), np.uint8), [label]).targets.tolist() == [index]


@pytest.mark.parametrize(
    "label",
    [
        np.float32(1), np.array(1.7), np.bool_(True), torch.tensor(1.7), torch.tensor(True), torch.tensor([0, 1]), "1",
        np.datetime64("1970-01-01T00:00:00.000000001"), np.array(["1970-01-02"], "datetime64[D]"),
        np.timedelta64(1, "D"), np.array(1, "timedelta64[s]"),
    ],
)  # fmt: skip
def test_other_scalars_and_vectors_are_refused(label: Any) -> None:
    with pytest.raises(LabelError, match="the label of '0' in"):
        MappedSource([(IMAGES[0], label)])[0]
    with pytest.raises(LabelError, match="the label of '0' in"):
        ArraySource(np.zeros((1, 8, 8), np.uint8), [label])


def test_a_label_below_minus_one_is_not_taken_for_no_label_in_mixed_views() -> None:
    recipe = ViewRecipe(size=8, mixup_alpha=0.5)
    images, keys = np.zeros((4, 8, 8), np.uint8), list("abcd")

    class Mine:
        """A custom source, with known targets or without."""

        class_names = None

        def __init__(self, targets: list[int] | None) -> None:
            self.keys = keys
            self.targets = targets

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.fromarray(images[index]).convert("RGB"), [0, 1, -5, 1][index]

    with pytest.raises(LabelError, match="the label of 'c' is -5"):
        ReplayedDataset(Mine([0, 1, -5, 1]), recipe, num_classes=2)
    dataset = ReplayedDataset(Mine(None), recipe, num_classes=2)
    with pytest.raises(DatasetError, match="the label of 'c' is -5: expected 0 to 1"):
        [dataset[row, 0] for row in range(4)]


def test_a_hugging_face_label_without_a_name_is_refused() -> None:
    table = hugging_face(Path(), [0, 1, 0, 1, 0, 0])
    names = datasets.ClassLabel(names=["x", "y"])
    assert create_source(table.cast_column("label", names)).class_names == ["x", "y"]
    three = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])})
    wide = hugging_face(Path(), [0, 1, 2, 1, 0, 0]).cast(three)
    wide = datasets.Dataset(wide.data, info=datasets.DatasetInfo(features=table.cast_column("label", names).features))
    with pytest.raises(LabelError, match=r"the label of '2\.png' is 2: expected 0 to 1"):
        create_source(wide)


@pytest.mark.parametrize("kind", [*VALUED, *INDEXED])
def test_a_rule_for_folders_is_refused_where_there_are_none(opened: Callable[..., Any], kind: str) -> None:
    if kind in ("cls", "json"):
        with pytest.raises(DatasetError, match="outside any class folder"):
            opened(kind, [0, 1, 2, 0, 1, 2], labels="folder")
    else:
        with pytest.raises(ConfigError, match="labels=folder came with"):
            opened(kind, [0, 1, 2, 0, 1, 2], labels="folder")


def test_a_rule_that_does_not_exist_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'folder'"):
        create_source(folder(tmp_path, list("abcabc")), labels="folders")  # type: ignore[arg-type]


def test_open_dataset_warns_of_labels_of_other_classes_than_the_caches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder(tmp_path, list("abcabc"))
    logits = np.random.default_rng(0).normal(size=(COUNT, 3)).astype("f4")
    keys = create_source(data).keys
    np.savez(tmp_path / "logits.npz", keys=np.array(keys), logits=logits)
    kdkit.importers.import_arrays(
        tmp_path / "logits.npz", data, tmp_path / "c.h5", recipe=ViewRecipe.evaluation(8), num_workers=0
    )
    dataset = kdkit.open_dataset(data, cache=tmp_path / "c.h5")  # as many classes as the data
    assert not dataset.is_unlabelled
    assert caplog.text == ""
    monkeypatch.setattr(CachedTeacher, "names_classes", property(lambda cache: False))  # as of a part of ImageNet
    dataset = kdkit.open_dataset(data, cache=tmp_path / "c.h5")
    assert [dataset[row, 0].target for row in range(COUNT)] == [0, 0, 1, 1, 2, 2]  # by key, in the order of the folder
    assert "the data's 3 classes are not the cache's 3 classes: give the loss on labels the weight 0" in caplog.text


def test_the_labels_of_a_torchvision_folder_are_those_of_its_items(tmp_path: Path) -> None:
    """`targets` is a copy, which nothing keeps equal to `samples`."""
    tree = torchvision.datasets.ImageFolder(folder(tmp_path, list("abcabc")))
    tree.samples = [(path, 2 - target) for path, target in tree.samples]
    source = create_source(tree)
    assert list(source.targets) == [source[row][1] for row in range(COUNT)] == [2, 2, 1, 1, 0, 0]


def test_a_source_whose_items_have_other_labels_than_it_lists_is_refused_with_the_sample() -> None:
    source = ArraySource(np.zeros((3, 8, 8), "u1"), [0, 1, 0], keys=["x", "y", "z"])
    dataset = ReplayedDataset(source, ViewRecipe(size=8))
    source.targets = [0, 1, 1]
    with pytest.raises(DatasetError, match=r"label of 'z' in ArraySource is 1, and 0 among its targets"):
        dataset[2, 0]


def test_a_tensor_with_its_channels_last_is_named_by_its_shape() -> None:
    pixels = torch.zeros(2, 8, 6, 3, dtype=torch.uint8)
    with pytest.raises(
        DatasetError, match=r"'0' in .* is a tensor \[8, 6, 3\], expected \[3, H, W\]: .*permute\(2, 0, 1"
    ):
        MappedSource(TensorDataset(pixels, torch.zeros(2).long()))[0]
    assert MappedSource(TensorDataset(pixels.permute(0, 3, 1, 2), torch.zeros(2).long()))[1][0].size == (6, 8)


def image_folder(root: Path, names: str) -> torchvision.datasets.ImageFolder:
    return torchvision.datasets.ImageFolder(folder(root, list(names)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("xa", r"index 1 is 'b' in the ImageFolder of '.*1/folder' and 'x' in .*2/folder'; .*open_dataset\(\[A, B\]"),
        ("ab", r"index 2 is 'c' in .* and no class in"),
        ("bcd", r"index 0 is 'a' in .* and 'b' in"),
    ],
)
def test_joined_datasets_of_other_classes_are_refused(tmp_path: Path, names: str, message: str) -> None:
    first, other = image_folder(tmp_path / "1", "abc"), image_folder(tmp_path / "2", names)
    joined = ConcatDataset([Subset(first, [0]), ConcatDataset([other])])
    for dataset in (joined, Subset(joined, [0])):
        with pytest.raises(DatasetError, match=message):
            MappedSource(dataset)
        with pytest.raises(DatasetError, match=message):
            MappedSource(dataset, class_names=["a", "b", "c"])
        assert MappedSource(dataset, labels="none").class_names is None


def test_joined_datasets_of_the_same_classes_keep_the_names(tmp_path: Path) -> None:
    first, other = image_folder(tmp_path / "1", "abc"), image_folder(tmp_path / "2", "cba")
    source = MappedSource(Subset(ConcatDataset([first, other]), [5, 0]))
    assert source.class_names == ["a", "b", "c"]
    assert [source[row][1] for row in range(2)] == [2, 0]
    with pytest.raises(DatasetError, match="a ImageFolder names its classes and a list has class indices alone"):
        MappedSource(ConcatDataset([first, PAIR]))
    assert MappedSource(ConcatDataset([first, PAIR]), class_names=["a", "b", "c"]).class_names == ["a", "b", "c"]
    assert MappedSource(ConcatDataset([first, MappedSource(PAIR, labels="none")])).class_names == ["a", "b", "c"]


class Turned(Subset[Any]):
    """A Subset whose items have other labels than those of the whole."""

    def __getitem__(self, index: int) -> Any:
        image, label = self.dataset[self.indices[index]]
        return image, 2 - label

    def __getitems__(self, indices: list[int]) -> Any:
        return [self[index] for index in indices]


def saved(root: Path, names: str) -> Any:
    """A datasets.Dataset of the classes of these names, an image each in this order."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(names)))
    rows = {"image": [{"bytes": png(row), "path": None} for row in range(len(names))], "label": range(len(names))}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", [saved, lambda root, names: create_source(saved(root, names))])
@pytest.mark.parametrize("wrap", [lambda part: part, lambda part: Subset(part, [2, 0])])
def test_parts_of_hugging_face_and_sources_keep_the_names_of_their_classes(
    tmp_path: Path, kind: Callable[..., Any], wrap: Callable[[Any], Any]
) -> None:
    same, other = (wrap(kind(tmp_path, names)) for names in ("abc", "cba"))
    source = create_source(ConcatDataset([same, same]))
    assert source.class_names == ["a", "b", "c"]
    assert {source.class_names[source[row][1]] for row in range(len(source))} <= set("abc")
    with pytest.raises(DatasetError, match=r"other classes: index 0 is 'a' in .* and 'c' in"):
        create_source(ConcatDataset([same, other]))
    assert create_source(wrap(kind(tmp_path, "abc"))).class_names == ["a", "b", "c"]


def test_the_items_of_a_subclass_of_subset_are_its_own(tmp_path: Path) -> None:
    whole = image_folder(tmp_path, "abc")
    for dataset in (Turned(whole, range(3)), Subset(Turned(whole, range(3)), [0, 1, 2])):
        source = create_source(dataset)
        assert [source[row][1] for row in range(3)] == [2, 1, 0]
        assert source.class_names is None


def test_names_and_indices_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    tree = image_folder(tmp_path, "abc")
    for names in ("bac", "cab"):
        for dataset in (tree, saved(tmp_path, "abc"), Subset(tree, [0])):
            with pytest.raises(DatasetError, match=f"call class 0 '{names[0]}', which is 'a' in"):
                MappedSource(dataset, class_names=list(names))
    assert MappedSource(tree, class_names=["x", "y", "z"]).class_names == ["x", "y", "z"]
    tree.class_to_idx = {"c": 0, "b": 1, "a": 2}
    with pytest.raises(DatasetError, match="class 'c' of the dataset ImageFolder is 0 in its class_to_idx, and 2"):
        create_source(tree)


@pytest.mark.parametrize("item", [(IMAGES[0], 5, 0), (IMAGES[0],), [IMAGES[0], 0, "x"]])
def test_an_item_that_is_no_pair_is_refused_because_its_label_may_be_any_part(item: Any) -> None:
    with pytest.raises(DatasetError, match=rf"'0' is a (tuple|list) of {len(item)}: expected \(image, label\)"):
        MappedSource([item])[0]


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_the_largest_number_of_an_unsigned_dtype_is_not_taken_for_a_class(dtype: str, tmp_path: Path) -> None:
    """It is -1 there, and marks pixels without a class."""
    labels, pixels = np.array([0, -1]).astype(dtype), np.zeros((2, 8, 8), "u1")
    parquet.write_table(pyarrow.table({"path": ["0.png", "1.png"], "label": labels}), tmp_path / "a.parquet")
    rows = {"image": [{"bytes": png(row), "path": None} for row in range(2)], "label": labels}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value(str(labels.dtype)))
    for data in (tmp_path / "a.parquet", datasets.Dataset.from_dict(rows, features=features)):
        with pytest.raises(LabelError, match="the largest uint"):
            create_source(data)
    with pytest.raises(LabelError, match=f"'1' in .* is {labels[1]}, the largest uint.*: give -1 for no label"):
        ArraySource(pixels, labels)
    with pytest.raises(LabelError, match="the largest uint"):
        MappedSource([(IMAGES[0], label) for label in labels])[1]
    assert ArraySource(pixels, labels.astype("i8")).targets.tolist() == [0, labels[1]]


def test_labels_from_one_on_and_classes_that_differ_in_case_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = [1, 2, 3, 1, 2, 3]
    for data in (text_table(tmp_path, labels), arrays(tmp_path, labels), webdataset(tmp_path, labels, "cls")):
        kdkit.open_dataset(data)
        assert "the labels are 1 to 3, and class indices begin with 0" in caplog.text
        caplog.clear()
    for labels in ([0, 1, 2] * 2, [1, 3, 5] * 2, [-1, 1, 1] * 2):
        kdkit.open_dataset(arrays(tmp_path, labels))
    create_source(folder(tmp_path, list("AaBbCc")))
    assert not caplog.records
    create_source(text_table(tmp_path, ["True", "true", "False"] * 2))
    assert "the classes 'True' and 'true' differ only in case" in caplog.text


def test_a_dataset_that_was_saved_to_disk_is_read_under_its_name(tmp_path: Path) -> None:
    whole = saved(tmp_path, "cba")
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole, test=whole.select([2])).save_to_disk(tmp_path / "splits")
    for name, count in (("one", 3), ("splits", 3), ("splits:test", 1)):
        source = create_source(f"hfds/{tmp_path / name}")
        assert (source.class_names, len(source)) == (["c", "b", "a"], count)
    with pytest.raises(DatasetError, match=f"save_to_disk .*: give it as hfds/{tmp_path}/one"):
        create_source(tmp_path / "one")
    for name, message in (("splits:val", "it has the splits train, test"), ("one:val", "leave out :val")):
        with pytest.raises(DatasetError, match=message):
            create_source(f"hfds/{tmp_path}/{name}")


def test_labels_of_shards_that_are_not_their_folders_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [(f"{name}/{row}.png", png(row)) for row, name in enumerate(["cat", "cat", "dog"])]
    for labels, is_told in (("001", False), ("000", True), ("011", True)):
        sidecars = [
            (name.replace("png", "cls"), label.encode()) for (name, _), label in zip(members, labels, strict=True)
        ]
        data = write_tar(tmp_path / "a.tar", [*members, *sidecars])
        assert create_source(data).targets == list(map(int, labels))
        assert ("not the folders 'cat', 'dog'" in caplog.text) is is_told
        assert create_source(data, labels="folder").class_names == ["cat", "dog"]
        caplog.clear()
    for other, is_told in ((0, False), ("cat", False), (1, True)):
        label = json.dumps({"label": other}).encode()
        create_source(write_tar(tmp_path / "c.tar", [("0.png", png(0)), ("0.cls", b"0"), ("0.json", label)]))
        assert ("is '0' in its .cls, which is taken, and '1' in its .json" in caplog.text) is is_told
    with pytest.raises(DatasetError, match=r"holds 'a\.b\.cls': .* first dot, so take the other dots out"):
        create_source(write_tar(tmp_path / "b.tar", [("a.b.png", png(0)), ("a.b.cls", b"0")]))


PAIR = [(IMAGES[0], 0), (IMAGES[1], 1)]
GIVEN: dict[str, Callable[[Any], Any]] = {
    "arrays": lambda names: ArraySource(np.zeros((2, 8, 8), "u1"), [0, 1], class_names=names),
    "mapped": lambda names: MappedSource(PAIR, class_names=names),
    "several labels": lambda names: MultiLabelSource(MappedSource(PAIR), [[0, 1], [1, 0]], class_names=names),
    "some classes": lambda names: ClassesSource(GIVEN["arrays"](["a", "b"]), names),
}
"""Sources that are given the names of their classes."""


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("names", ["ab", [7, 8], {"a", "b"}, {"b": 1, "a": 0}, 5])
def test_class_names_are_texts_in_an_order(kind: str, names: Any) -> None:
    with pytest.raises(ValueError, match="must be a list of texts"):
        GIVEN[kind](names)


@pytest.mark.parametrize("kind", GIVEN)
def test_a_class_has_one_name_in_whatever_form_of_unicode(kind: str) -> None:
    for twice in (["a", "a"], ["\u00e9", "e\u0301"]):
        with pytest.raises(ValueError, match="must have each class once"):
            GIVEN[kind](twice)
    if kind != "some classes":
        assert GIVEN[kind](np.array(["b", "e\u0301"])).class_names == ["b", "\u00e9"]


def test_keys_and_the_names_of_a_custom_source_are_texts_in_an_order() -> None:
    for keys in ("ab", {"a", "b"}, [0, 1]):
        with pytest.raises(DatasetError, match="keys must be a list of texts"):
            ArraySource(np.zeros((2, 8, 8), "u1"), [0, 1], keys=keys)  # type: ignore[arg-type]
        with pytest.raises(DatasetError, match="keys must be a list of texts"):
            MappedSource(PAIR, keys=keys)  # type: ignore[arg-type]
    source = ArraySource(np.zeros((2, 8, 8), "u1"), [0, 1])
    for names in ("ab", [7, 8], {"a", "b"}):
        source.class_names = names  # type: ignore[assignment]
        with pytest.raises(DatasetError, match="class_names must be a list of texts"):
            ReplayedDataset(source, ViewRecipe(size=8))


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_file_under_two_names_is_two_samples(tmp_path: Path, kind: str) -> None:
    write_files(tmp_path / "all", [("a/0.png", png(0)), ("b/1.png", png(1))])
    (tmp_path / "all" / "b" / "same.png").symlink_to("../a/0.png")
    data = tmp_path / "all"
    if kind == "csv":
        data = tmp_path / "t.csv"
        data.write_text("path,label\nall/a/0.png,a\nall/b/1.png,b\nall/b/same.png,b\n")
    source = create_source(data)
    assert [Path(key).name for key in source.keys] == ["0.png", "1.png", "same.png"]
    assert [source[row][1] for row in range(3)] == [0, 1, 1]
    assert SampleContent(source).read(2) == png(0)


def test_a_path_of_a_table_leads_where_the_file_system_says(tmp_path: Path) -> None:
    """`link/../0.png` is beside the folder that the link leads to, not beside the link."""
    write_files(tmp_path, [("0.png", png(0)), ("elsewhere/0.png", png(1)), ("elsewhere/inner/1.png", png(2))])
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "inner")
    (tmp_path / "t.csv").write_text("path,label\nlink/../0.png,3\n")
    source = create_source(tmp_path / "t.csv", skip_missing=True)
    assert list(source.keys) == ["0.png"]
    assert found(source) == {1: 3}
    assert SampleContent(source).read(0) == png(1)


def test_a_column_that_python_has_no_value_for_is_one_line(tmp_path: Path) -> None:
    dates = pyarrow.array([9 * 10**17], pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table({"path": ["a.png"], "label": [0], "when": dates}), tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=r"t\.parquet' cannot be read: ") as raised:
        create_source(tmp_path / "t.parquet")
    assert "\n" not in str(raised.value)


def test_a_student_without_a_head_takes_every_label(tmp_path: Path) -> None:
    student = timm.create_model("test_resnet", num_classes=0)
    dataset = ReplayedDataset(create_source(mapped(tmp_path, range(COUNT))), ViewRecipe(size=8))
    loader = kdkit.create_loader(dataset, student, batch_size=COUNT, num_workers=0)
    assert sorted(next(iter(loader)).target.tolist()) == list(range(COUNT))


def test_every_refusal_of_a_label_is_an_error_of_kdkit_and_of_python() -> None:
    assert issubclass(LabelError, (KdkitError, ValueError))
