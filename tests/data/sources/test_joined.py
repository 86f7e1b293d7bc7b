"""Several DATA as one: labelled and unlabelled folders, archives and tables, in Python and in every command."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file
from support import tiny_model, write_digits

import kdkit
from kdkit.cli import main
from kdkit.cli._flags import Grammar
from kdkit.data import ArraySource, MappedSource, MultiLabelSource, create_source
from kdkit.data.sources.content import SampleContent
from kdkit.data.sources.joined import JoinedSource
from kdkit.errors import KdkitError
from kdkit.training.config import DistillConfig


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """20 labelled digits, ten of them once more as `pool` without labels, some as a zip and as a table, a teacher."""
    for place in write_digits(tmp_path / "labelled", 20).iterdir():
        place.rename(place.with_name(f"c{place.name}"))
    (tmp_path / "pool").mkdir()
    for path in sorted((tmp_path / "labelled").rglob("*.png"))[:10]:
        shutil.copy(path, tmp_path / "pool" / f"p{path.name}")
    shutil.copytree(tmp_path / "labelled" / "c7", tmp_path / "sevens" / "c7")
    shutil.make_archive(str(tmp_path / "more"), "zip", tmp_path / "labelled")
    images = (tmp_path / "labelled").rglob("*.png")
    rows = [f"labelled/{path.parent.name}/{path.name},{path.parent.name}\n" for path in images]
    (tmp_path / "table.csv").write_text("file,digit\n" + "".join(rows))
    save_file(tiny_model(seed=1).state_dict(), tmp_path / "t.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


OTHERS: dict[str, tuple[str, dict[str, str]]] = {
    "a flat folder": ("pool", {}),
    "a part of the classes": ("sevens", {}),
    "a zip": ("more.zip", {}),
    "a table, whose columns the folder lacks": ("table.csv", {"image_column": "file", "label_column": "digit"}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_samples_of_all_data_follow_each_other_with_their_labels_and_content(folder: Path, kind: str) -> None:
    name, options = OTHERS[kind]
    first, second = create_source("labelled"), create_source(name, **options)
    joined = create_source(["labelled", name], **options)
    assert list(joined.keys) == [*first.keys, *(f"{name}/{key}" for key in second.keys)]
    assert joined.class_names == first.class_names
    content, alone = SampleContent(joined), [SampleContent(first), SampleContent(second)]
    assert content.kind == "files"
    sizes = content.stat().sizes
    for row, key in enumerate(joined.keys):
        part, inner = (0, row) if row < 20 else (1, row - 20)
        image, label = joined[row]
        expected, own = (first, second)[part][inner]
        assert np.array_equal(np.asarray(image), np.asarray(expected)), key
        names = (first, second)[part].class_names
        assert label == joined.targets[row] == (-1 if names is None else first.class_names.index(names[own])), key
        assert content.read(row) == alone[part].read(inner)
        assert sizes is not None
        assert sizes[row] == len(content.read(row))


REFUSED: dict[str, tuple[Sequence[str], str]] = {
    "twice": (["labelled", "./labelled"], "the same data is given twice"),
    "two of one name": (["sevens", "pool", "elsewhere/pool"], "two of the data are called 'pool'"),
    "an unknown class": (
        ["sevens", "labelled"],
        "'labelled' has the class 'c0', which the first data with",
    ),
    "a key twice": (
        ["sevens", "sevens/c7"],
        r"two samples have the key '(c7/(\S+))': '\1' of 'sevens', and '\2' of 'sevens/c7', whose name stands before",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_data_that_do_not_go_together_are_refused_with_the_reason(folder: Path, why: str) -> None:
    shutil.copytree("pool", "elsewhere/pool")
    names, reason = REFUSED[why]
    with pytest.raises(KdkitError, match=reason):
        kdkit.open_dataset(names)


def test_class_indices_and_names_are_not_mixed_and_several_labels_are_not_joined() -> None:
    images = np.zeros((2, 8, 8), dtype=np.uint8)
    named, indices = ArraySource(images, [0, 1], class_names=["a", "b"]), ArraySource(images, [0, 1])
    assert list(JoinedSource([indices, indices], ["x", "y"]).targets or ()) == [0, 1, 0, 1]
    with pytest.raises(KdkitError, match="'y' has class indices without names"):
        JoinedSource([named, indices], ["x", "y"])
    with pytest.raises(KdkitError, match="'y' has several labels per image"):
        JoinedSource([named, MultiLabelSource(indices, [[0, 1], [1, 0]])], ["x", "y"])


def test_of_classes_with_two_of_one_name_none_is_found_by_name() -> None:
    images = np.zeros((3, 8, 8), dtype=np.uint8)
    cranes = MappedSource(Named(list(zip(images, range(3), strict=True)), ["crane", "crane", "owl"]))
    owls = ArraySource(images, [0, 0, 0], class_names=["owl"])
    assert list(JoinedSource([cranes, cranes], ["x", "y"]).targets or ()) == []
    assert [JoinedSource([cranes, cranes], ["x", "y"])[row][1] for row in range(6)] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(
        KdkitError, match="two classes are called 'crane', so the classes of 'y' cannot be found by name"
    ):
        JoinedSource([cranes, owls], ["x", "y"])


class Named(list[Any]):
    """Pairs of image and class index, with names of classes."""

    def __init__(self, pairs: Sequence[Any], classes: Sequence[str]) -> None:
        super().__init__(pairs)
        self.classes = classes


TEACHER = ["--teacher", "t.safetensors", "--arch", "test_resnet"]
QUICK = ["--workers", "0", "--batch-size", "10"]
STUDENT = ["--student", "test_vit", "--epochs", "1", *QUICK]
COMMANDS: dict[str, list[str]] = {
    "estimate": ["cache", "estimate", "labelled", "pool", *TEACHER, "--size", "32", *QUICK],
    "verify": ["cache", "verify", "both.h5", "labelled", "pool", *TEACHER],
    "show": ["cache", "show", "both.h5", "labelled", "pool", "-o", "views.png"],
    "distill": ["distill", "labelled", "pool", "--cache", "both.h5", *STUDENT],
    "distill from a part": ["distill", "labelled", "--cache", "both.h5", *STUDENT],
    "two caches after two data": ["distill", "labelled", "pool", "--cache", "both.h5", "again.h5", *STUDENT],
    "extend": ["cache", "extend", "first.h5", "labelled", "pool", *TEACHER],
    "prune": ["cache", "prune", "again.h5", "labelled"],
}


def test_every_command_takes_data_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["cache", "build", "labelled", "pool", *TEACHER, "--size", "32", "--codec", "float32", *QUICK]
    assert main([*build, "-o", "both.h5"]) == 0
    assert "next: kdkit distill labelled pool --cache both.h5" in capsys.readouterr().out
    shutil.copy("both.h5", "again.h5")
    assert main([*build[:3], *build[4:], "-o", "first.h5"]) == 0
    for name, command in COMMANDS.items():
        output = ["-o", f"runs/{name}"] if "distill" in command else []
        capsys.readouterr()
        assert main([*command, *output]) == 0, name
        out = capsys.readouterr()
        if name == "distill":
            assert "10 without a label, labelled pool" in " ".join(out.err.split())
        if name == "verify":
            assert "labelled pool: all 30 images are those of the build" in out.out
    whole, part = kdkit.open_cache("both.h5"), kdkit.open_cache("first.h5")
    assert part.num_rows == whole.num_rows == 30, "extended"
    assert kdkit.open_cache("again.h5").keys() == whole.keys()[:20]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["A", "--cache", "x", "y"], {"data": "A", "cache": '["x", "y"]'}),
        (["A", "B", "--cache", "x", "y"], {"data": '["A", "B"]', "cache": '["x", "y"]'}),
        (["--cache", "x", "A", "B"], {"data": '["A", "B"]', "cache": "x"}),
        (["--data", "A", "--cache", "x", "y"], {"data": "A", "cache": '["x", "y"]'}),
        (["--data", "A", "B", "--cache", "x"], {"data": '["A", "B"]', "cache": "x"}),
        (["A,1", "B"], {"data": '["A,1", "B"]'}),
        (["123"], {"data": '["123"]'}),
    ],
)
def test_a_list_of_caches_and_a_list_of_data_are_kept_apart(arguments: list[str], expected: dict[str, Any]) -> None:
    given = Grammar("distill", DistillConfig, {"DATA": "data"}).to_long_forms(arguments)
    found = dict(word.removeprefix("--").split("=", 1) for word in given)
    assert {name: found[name] for name in ("data", "cache") if name in found} == expected
