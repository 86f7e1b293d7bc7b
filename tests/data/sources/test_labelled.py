"""Sources with a label for each image: tables, WebDataset shards and Hugging Face datasets."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import digits
from torch.utils.data import Subset

from kdkit.data import MappedSource, TableSource, WebDatasetSource, create_source
from kdkit.data.sources.labels import index_labels
from kdkit.data.sources.left_out import skipped_of
from kdkit.errors import ConfigError, DatasetError, LabelError, MissingDependencyError
from kdkit.runtime.install import install_command

COUNT = 6
SHADES = [digits(COUNT)[row][0] for row in range(COUNT)]


def png(row: int) -> bytes:
    stream = io.BytesIO()
    SHADES[row].save(stream, format="PNG")
    return stream.getvalue()


def write_images(root: Path) -> list[str]:
    (root / "images").mkdir(parents=True)
    names = [f"images/{row}.png" for row in range(COUNT)]
    for row, name in enumerate(names):
        (root / name).write_bytes(png(row))
    return names


def write_table(root: Path, labels: Sequence[Any], kind: str = "csv", header: str = "path,label") -> Path:
    path, names = root / f"table.{kind}", write_images(root)
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="not installed; the extra `test` has it")
        pyarrow = pytest.importorskip("pyarrow")
        columns = dict(zip(header.split(","), (names, list(labels)), strict=True))
        parquet.write_table(pyarrow.table(columns), path)
        return path
    mark = "\t" if kind == "tsv" else ","
    rows = [header.replace(",", mark), *(f"{name}{mark}{label}" for name, label in zip(names, labels, strict=True))]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    return path


def write_shards(root: Path, files: Sequence[Sequence[tuple[str, bytes]]]) -> Path:
    root.mkdir(exist_ok=True)
    for number, members in enumerate(files):
        with tarfile.open(root / f"shard-{number:06d}.tar", "w") as archive:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return root


def shards_with(root: Path, labels: Sequence[Any], kind: str) -> Path:
    """Two shards of three samples each, with the label in .cls or in the field `label` of .json."""
    shards: list[list[tuple[str, bytes]]] = [[], []]
    for row, label in enumerate(labels):
        text = str(label) if kind == "cls" else json.dumps({"label": label})
        shards[row // 3] += [(f"{row:04d}.png", png(row)), (f"{row:04d}.{kind}", text.encode())]
    return write_shards(root, shards)


def hugging_face(labels: Sequence[Any], feature: Any = None) -> Any:
    datasets = pytest.importorskip("datasets", reason="not installed; the extra `test` has it")
    columns = {"image": datasets.Image(), "label": feature or datasets.Value("int64")}
    rows = {"image": [{"bytes": png(row), "path": f"{row}.png"} for row in range(COUNT)], "label": list(labels)}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(columns))


def targets(source: Any) -> list[int]:
    return [source[row][1] for row in range(len(source))]


def opened(kind: str, root: Path, labels: Sequence[Any]) -> Any:
    if kind in ("csv", "tsv", "parquet"):
        return create_source(write_table(root, labels, kind))
    if kind == "hfds":
        datasets = pytest.importorskip("datasets")
        return create_source(hugging_face(labels, datasets.Value("string" if isinstance(labels[0], str) else "int64")))
    return create_source(shards_with(root / "shards", labels, kind))


KINDS = ("csv", "tsv", "parquet", "cls", "json", "hfds")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("labels", "indices", "names"),
    [
        ([3, 0, 10, 2, -1, 1], [3, 0, 10, 2, -1, 1], None),
        (["dog", "cat", "a 10", "a 2", "cat", "Dog"], [4, 2, 1, 0, 2, 3], ["a 2", "a 10", "cat", "Dog", "dog"]),
    ],
)
def test_labels_are_indices_or_names_in_natural_order(
    tmp_path: Path, kind: str, labels: list[Any], indices: list[int], names: list[str] | None
) -> None:
    source = opened(kind, tmp_path, labels)
    assert targets(source) == indices
    assert source.class_names == names
    assert len(set(source.keys)) == COUNT
    for row, shade in enumerate(SHADES):
        assert np.array_equal(np.asarray(source[row][0]), np.asarray(shade))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [["1", "2", "cat", "3", "4", "5"], ["-2", "0", "0", "0", "0", "0"]])
def test_labels_that_are_neither_are_refused_with_the_sample(tmp_path: Path, kind: str, labels: list[str]) -> None:
    with pytest.raises(DatasetError, match=r"expected whole numbers from 0 .* or names for all") as caught:
        opened(kind, tmp_path, labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [1.0, True, [1, 2], "1.0", "01", "1e3", "+1"])
def test_a_label_that_only_looks_like_a_number_is_refused(label: object) -> None:
    with pytest.raises(DatasetError, match="the label of 'b' in it"):
        index_labels([0, label], ["a", "b"], "it")


LISTS = ["0 1", "[0, 1]", "[0]", "(0, 1)", "0,1", "0|1", "1; 2", "0.1 0.9", "0\n1", "['a', 'b']", '["cat"]', "[a, b]"]
NAMES = ["1,000", "12 monkeys", "2 of 3", "[unknown]", "[3D print]", "(2019 model)", "cat (tabby)", "tabby, cat", "0-1"]


@pytest.mark.parametrize("label", LISTS)
@pytest.mark.parametrize("kind", ["csv", "cls", "json"])
def test_a_list_is_no_class(tmp_path: Path, kind: str, label: str) -> None:
    field = '"' + label.replace('"', '""') + '"' if kind == "csv" else label
    with pytest.raises(
        LabelError, match=r"the label of '.*0.*' in .* expected one class: give several labels"
    ) as caught:
        opened(kind, tmp_path, [field, *"abcde"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", ["2147483648", "1000000000000", "9" * 5000])
def test_a_number_beyond_all_class_indices_is_named_as_such(label: str) -> None:
    with pytest.raises(LabelError, match=r"is '\d+.* beyond 2,147,483,647, the last class index: write") as caught:
        index_labels(["1", label], ["a", "b"], "it")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("label", NAMES)
def test_a_name_with_numbers_or_brackets_is_a_class(label: str) -> None:
    assert index_labels([label, "z"], ["a", "b"], "it") == ([0, 1], [label, "z"])


def test_a_number_with_zeros_before_it_is_asked_about() -> None:
    with pytest.raises(DatasetError, match="is '01', which may mean the class index 1 or a name: write"):
        index_labels(["01", "02"], ["a", "b"], "it")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_tables_keys_are_paths_as_written_and_an_empty_label_is_none(tmp_path: Path, kind: str) -> None:
    source = create_source(write_table(tmp_path, ["a", "" if kind == "csv" else None, "b", "a", "a", "b"], kind))
    assert list(source.keys) == [f"images/{row}.png" for row in range(COUNT)]
    assert targets(source) == [0, -1, 1, 0, 0, 1]
    assert repr(source) == f"TableSource('{tmp_path / f'table.{kind}'}': 6 images, 2 classes)"


def test_absolute_paths_of_a_table_are_keys_below_their_common_folder(tmp_path: Path) -> None:
    names = write_images(tmp_path)
    (tmp_path / "t.csv").write_text("image,label\n" + "".join(f"{tmp_path / name},0\n" for name in names))
    source = create_source(tmp_path / "t.csv")
    assert list(source.keys) == [f"{row}.png" for row in range(COUNT)]
    assert np.array_equal(np.asarray(source[2][0]), np.asarray(SHADES[2]))


def test_columns_are_named_where_they_have_other_names_and_suggested_where_misspelt(tmp_path: Path) -> None:
    table = write_table(tmp_path, list("abcabc"), header="file,class")
    with pytest.raises(DatasetError, match=r"no column 'path' or 'image' among .*file, class.*--image-column"):
        create_source(table)
    with pytest.raises(DatasetError, match="no column 'clas'; did you mean 'class'"):
        create_source(table, image_column="file", label_column="clas")
    with pytest.raises(DatasetError, match=r"no column 'label' among .*--label-column"):
        create_source(table, image_column="file")
    with pytest.raises(DatasetError, match="in one column, 'file': expected two"):
        create_source(table, image_column="file", label_column="file")
    assert targets(create_source(table, image_column="file", label_column="class")) == [0, 1, 2, 0, 1, 2]


def test_a_table_of_paths_alone_has_no_labels(tmp_path: Path) -> None:
    names = write_images(tmp_path)
    (tmp_path / "t.csv").write_text("\n".join(["path", *names]))
    source = create_source(tmp_path / "t.csv")
    assert (targets(source), source.class_names) == ([-1] * COUNT, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,0\nb.png\n", "line 3 of .* has 1 fields, expected 2"),
        ("path,label\na.png,0\n,1\n", "line 3 of .* has no path"),
        ("path,path\na.png,0\n", "must name each column once"),
        ("", "must name each column once"),
        ("path,label\n\n", "names its columns and has no rows"),
        ('"a\nb",path,label\n\nx,"a\n.png",0\nx,,1\n', "line 6 of .* has no path"),
        ('path,label\n"a.png,0\n', "cannot be read"),
        ("path,image,label\na,b,0\n", "'path' and 'image' among"),
        ("path;label\na.png;0\n", "is one field, 'path;label': write it with ',' between its fields instead of ';'"),
        ("path\tlabel\na.png\t0\n", r"name it \.tsv, or write it with ','"),
        ("a.png,0\nb.png,1\n", r"is that of the image 'a\.png': put a line with the names of the columns before it"),
        ("path,label\na\udcff.png,0\n", "save it as UTF-8"),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text, errors="surrogateescape")
    with pytest.raises(DatasetError, match=message) as caught:
        create_source(tmp_path / "t.csv")
    assert "\n" not in str(caught.value)


def test_a_table_that_is_missing_or_names_a_missing_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    for kind in ("csv", "parquet"):
        with pytest.raises(DatasetError, match=f"gone.{kind}"):
            TableSource(tmp_path / f"gone.{kind}")
    (tmp_path / "t.csv").write_text("path,label\ngone.png,0\n")
    with pytest.raises(DatasetError, match=r"gone\.png.* cannot be found \(No such file.*; --skip-missing leaves out"):
        create_source(tmp_path / "t.csv")[0]


@pytest.mark.parametrize(
    ("column", "targets", "classes"),
    [
        ("label", [1, 0, -1], ["a", "b"]),
        ("tags[|]", [[1, 1], [1, 0], [0, 0]], ["x", "y"]),
        ("sea,city", [[1, 0], [0, 1], [-1, 1]], ["sea", "city"]),
    ],
)
@pytest.mark.parametrize("top", ["", "/"])
def test_rows_without_a_file_are_skipped_and_recorded_on_request(
    tmp_path: Path, column: str, targets: Any, classes: list[str], top: str
) -> None:
    names, root = write_images(tmp_path), f"{tmp_path}/" if top else ""
    (tmp_path / "images" / "a.png").mkdir()
    rows = [
        f"{root}{names[0]},b,x|y,1,0",
        f"{root}gone.png,c,z,0,0",
        f"{root}{names[1]},a,x,0,1",
        f"{root}images/a.png,a,x,no number,1",
        f"{root}{names[2]},,,,1",
    ]
    (tmp_path / "t.csv").write_text("path,label,tags,sea,city\n" + "\n".join(rows) + "\n")
    source = create_source(tmp_path / "t.csv", label_column=column, skip_missing=True)
    assert list(source.keys) == names[:3]  # as with all rows
    assert source.class_names == classes
    assert [np.asarray(source[row][1]).tolist() for row in range(3)] == targets
    assert np.array_equal(np.asarray(source[1][0]), np.asarray(SHADES[1]))
    assert skipped_of(source) == [
        "the image 'gone.png' cannot be found (No such file or directory)",
        "the image 'images/a.png' is no regular file",
    ]
    for row in (1, 3):
        (tmp_path / "t.csv").write_text(f"path,label,tags,sea,city\n{rows[row]}\n")
        with pytest.raises(DatasetError, match="names no image that exists"):
            create_source(tmp_path / "t.csv", label_column=column, skip_missing=True)


def test_pyarrow_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("hfds"))):
        create_source(tmp_path / "t.parquet")


def test_a_key_of_a_shard_is_its_name_and_the_samples(tmp_path: Path) -> None:
    source = create_source(shards_with(tmp_path / "s", list(range(COUNT)), "cls"))
    assert isinstance(source, WebDatasetSource)
    assert list(source.keys) == [f"shard-00000{row // 3}.tar/{row:04d}" for row in range(COUNT)]
    (row,) = [row for row, key in enumerate(source.keys) if key.endswith("0004")]
    assert np.array_equal(np.asarray(source[row][0]), np.asarray(SHADES[4]))
    single = create_source(tmp_path / "s" / "shard-000001.tar")
    assert targets(single) == [3, 4, 5]


def test_samples_of_a_shard_are_grouped_by_name_up_to_the_first_dot(tmp_path: Path) -> None:
    members = [
        ("a/1.seg.json", b"{}"),
        ("a/1.png", png(0)),
        ("a/1.cls", b"4"),
        ("a/2.JPG", png(1)),
        ("a/2.cls", b"5\n"),
    ]
    source = create_source(write_shards(tmp_path / "s", [[*members, ("README.txt", b"x"), (".hidden.cls", b"1")]]))
    assert list(source.keys) == ["shard-000000.tar/a/1", "shard-000000.tar/a/2"]
    assert targets(source) == [4, 5]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([("2.png", png(0))], r"'shard-000000\.tar/2' has no label"),
        ([("2.cls", b"1")], "has no image that Pillow can decode"),
        ([("1.jpg", png(0))], "holds 2 images"),
        ([("1.cls", b"7")], "'1.cls' twice"),
        ([("2.png", png(0)), ("2.json", b'{"caption": 1}')], "the field 'label' of its .json .* --label-column"),
        ([("2.png", png(0)), ("2.json", b"{")], "the field 'label' of its .json"),
        ([("2.png", png(0)), ("2.cls", b"\xff")], "no label in its .cls"),
    ],
)
def test_a_sample_without_exactly_one_image_and_a_label_is_refused(
    tmp_path: Path, extra: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        create_source(write_shards(tmp_path / "s", [[("1.png", png(0)), ("1.cls", b"0"), *extra]]))


def test_another_field_of_the_json_is_named_by_label_column(tmp_path: Path) -> None:
    members = [("1.png", png(0)), ("1.json", b'{"kind": "cat"}')]
    source = create_source(write_shards(tmp_path / "s", [members]), label_column="kind")
    assert (targets(source), source.class_names) == ([0], ["cat"])


def test_the_name_of_a_numbered_shard_is_never_a_class(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="the name of a numbered shard is not a class"):
        create_source(write_shards(tmp_path / "s", [[("1.png", png(0))], [("2.png", png(1))]]))


def test_images_next_to_tars_are_refused(tmp_path: Path) -> None:
    shards = shards_with(tmp_path / "s", list(range(COUNT)), "cls")
    (shards / "stray.png").write_bytes(png(0))
    with pytest.raises(DatasetError, match=r"tars and images \('stray\.png'\)"):
        create_source(shards)


def test_a_hugging_face_dataset_has_its_features_names_and_its_paths_as_keys(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="not installed; the extra `test` has it")
    table = hugging_face([1, 0, 1, -1, 0, 1], datasets.ClassLabel(names=["x", "y"]))
    for source in (create_source(table), MappedSource(table), create_source(table.with_format("torch"))):
        assert source.class_names == ["x", "y"]
        assert targets(source) == [1, 0, 1, -1, 0, 1]
        assert list(source.keys) == [f"{row}.png" for row in range(COUNT)]
    part = MappedSource(Subset(table, [4, 1]))
    assert (list(part.keys), targets(part), part.class_names) == (["4.png", "1.png"], [0, 0], ["x", "y"])
    chosen = create_source(table.select([5, 3]))
    assert (list(chosen.keys), targets(chosen)) == (["5.png", "3.png"], [1, -1])


def test_the_columns_of_a_hugging_face_dataset_are_named_by_options(tmp_path: Path) -> None:
    table = hugging_face(range(COUNT)).rename_columns({"image": "picture", "label": "kind"})
    with pytest.raises(DatasetError, match=r"no column 'image' among .*picture, kind.*--image-column"):
        create_source(table)
    assert targets(create_source(table, image_column="picture", label_column="kind")) == list(range(COUNT))
    alone = create_source(table.remove_columns("kind"), image_column="picture")
    assert (targets(alone), alone.class_names) == ([-1] * COUNT, None)


def test_a_hugging_face_dataset_with_a_transform_or_several_splits_is_refused() -> None:
    datasets = pytest.importorskip("datasets", reason="not installed; the extra `test` has it")
    table = hugging_face(range(COUNT))
    with pytest.raises(DatasetError, match="has a transform"):
        create_source(table.with_transform(lambda rows: rows))
    with pytest.raises(DatasetError, match="DatasetDict of train, test: give one of these"):
        create_source(datasets.DatasetDict(train=table, test=table))


def test_a_hugging_face_images_orientation_is_not_applied() -> None:
    datasets = pytest.importorskip("datasets", reason="not installed; the extra `test` has it")
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (8, 4)).save(stream, format="JPEG", exif=exif)
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [{"bytes": stream.getvalue(), "path": None}]}, features=features)
    assert create_source(table)[0][0].size == (8, 4)


def test_a_source_or_a_torch_dataset_is_taken_as_it_is_and_columns_are_refused_where_there_are_none(
    tmp_path: Path,
) -> None:
    plain = digits(4)
    assert create_source(plain) is plain
    assert targets(create_source([(SHADES[0], 3), (SHADES[1], None)])) == [3, -1]
    named = create_source([{"picture": SHADES[0], "kind": 2}], image_column="picture", label_column="kind")
    assert targets(named) == [2]
    with pytest.raises(DatasetError, match="has no 'label' among picture, kind"):
        create_source([{"picture": SHADES[0], "kind": 2}], image_column="picture")[0]
    for data in (plain, tmp_path, tmp_path / "a.zip"):
        with pytest.raises(ConfigError, match=r"image_column and label_column came with .* no columns"):
            create_source(data, image_column="a", label_column="b")


def test_a_table_that_names_a_file_absolutely_and_relatively_is_refused_with_both_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    table = tmp_path / "t.csv"
    table.write_text(f"path,label\na.png,cat\n{tmp_path / 'b.png'},dog\n")
    assert len(create_source(table)) == 2
    table.write_text(f"path,label\na.png,cat\nb.png,dog\n{tmp_path / 'x' / '..' / 'a.png'},dog\n")
    with pytest.raises(
        DatasetError, match=r"^line 4 of .* names .*a\.png' of line 2 of .* again: give each image one row$"
    ):
        create_source(table)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="give each image one row"):
        create_source(Path("..", "t.csv"))
