"""Errors come from Python functions and name fields as Python does; the command line adds the flags."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import write_digits

from kdkit.cli import main
from kdkit.cli._flag_names import note_flags, with_flags

FLAGS = {
    "teacher.class_map": "--teacher.class_map",
    "recipe.num_views": "--views",
    "data": "DATA",
    "columns": "--columns",
}
TEXTS = {
    "give a class_map, or take another": "give a class_map, or take another (class_map is --teacher.class_map)",
    "num_views=3 and class_map": "num_views=3 and class_map (num_views is --views, class_map is --teacher.class_map)",
    "num_views: give --views": "num_views: give --views",
    "recipe.num_views = 2": "recipe.num_views = 2",
    "'num_views/a.png' in my_num_views": "'num_views/a.png' in my_num_views",
    "the data and their columns": "the data and their columns",
}


def test_a_flag_of_the_fields_own_name_needs_no_mention_of_another_ones() -> None:
    note_flags({**FLAGS, "class_map": "--class-map"})
    assert with_flags("give a class_map, or take another") == "give a class_map, or take another"


@pytest.mark.parametrize("text", TEXTS)
def test_a_field_is_followed_by_its_flag_where_the_flag_is_called_otherwise(text: str) -> None:
    note_flags(FLAGS)
    assert with_flags(text) == TEXTS[text]
    note_flags({})
    assert with_flags(text) == text


def test_a_command_names_the_flag_of_a_class_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "cache",
        "build",
        str(write_digits(tmp_path / "d", 10)),
        "--teacher",
        "resnet18",
        "-o",
        str(tmp_path / "t"),
    ]
    assert main([*command, "--teacher.missing_classes", "min_logit"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs a class_map" in line
    assert line.endswith("(class_map is --teacher.class_map)") or "class_map is --teacher.class_map" in line
