"""Every command on the pages of docs/ runs unchanged on a small folder; options "on ImageNet" are parsed.

A `sh` block runs line by line through the entry point of the command line, in the order of the page. A `bash` block
needs weights and images that no test has, so only its options are parsed.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import ROOT, blocks, lines, run_line
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from support import tiny_model

import kdkit

PAGES = sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.md"))


def commands(page: str, language: str) -> list[str]:
    return [line for block in blocks(page, language=language) for line in lines(block)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """birds/train and birds/val, crops of photographs in ten classes; birds/train without labels as `unlabelled`.

    birds.yaml is a card of a small teacher, birds.npy its kind of output: logits [40, 10], in the order of the keys.
    """
    folder = tmp_path_factory.mktemp("docs")
    draw = np.random.default_rng(0)
    pictures = [data.astronaut(), data.chelsea(), data.coffee()]
    for split, count in (("train", 4), ("val", 2)):
        for index in range(10 * count):
            picture = pictures[index % 3]
            top, left = draw.integers(0, 200), draw.integers(0, 200)
            place = folder / "birds" / split / f"bird-{index % 10}" / f"{index}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture[top : top + 100, left : left + 100]).save(place)
    (folder / "unlabelled").mkdir()
    for image in (folder / "birds" / "train").rglob("*.jpg"):
        shutil.copy(image, folder / "unlabelled")
    np.save(folder / "birds.npy", draw.normal(size=(40, 10)).astype(np.float32))
    save_file(tiny_model(seed=1).state_dict(), folder / "birds.safetensors")
    card = {
        "name": "birds", "model": "test_resnet", "num_classes": 10, "input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 1.0,
        "weights": {"checkpoint": "birds.safetensors"},
    }  # fmt: skip
    (folder / "birds.yaml").write_text(yaml.safe_dump(card))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page, "sh")])
def test_the_commands_of_a_page_run_as_they_stand(
    page: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for line in commands(page, "sh"):
        run_line(line, capsys)


JOBS = [line for line in (ROOT / "docs" / "jobs.md").read_text().splitlines() if "`kdkit " in line and line[0] == "|"]
STANDS_FOR = {
    "UNLABELLED": "unlabelled",
    "LABELLED": "birds/val",
    "DATA": "birds/train",
    "--pretrained": "--student-checkpoint birds.safetensors",  # which no test can download
    "--student NAME": "--student test_resnet --batch-size 10 --epochs 1",
    "--teacher NAME": "--teacher birds.yaml --views 1 --size 64",
    "--teacher RUN": "--teacher runs/job --views 1 --size 64",
    "--teacher FILE --arch NAME": "--teacher birds.safetensors --arch test_resnet --views 1 --size 64",
    "SOURCE": "birds.npy --size 64",
    "...": "--student test_resnet --batch-size 10 --epochs 1 -o runs/student",
    "-o RUN": "-o runs/job",
}
"""What a reader puts in -> what stands for it here."""
FINE_TUNING = "kdkit distill DATA --student NAME --pretrained -o RUN"


@pytest.mark.slow
@pytest.mark.parametrize("row", JOBS)
def test_every_job_of_the_table_is_done_by_its_commands(
    row: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    commands = re.findall("`(kdkit [^`]+)`", row)
    if "--teacher RUN" in row and FINE_TUNING not in commands:
        commands.insert(0, FINE_TUNING)
    for command in commands:
        line = command
        for name, value in STANDS_FOR.items():
            line = line.replace(name, value)
        run_line(line, capsys)
        assert Path(line.rpartition("-o ")[2]).exists()


READ = [*PAGES, "README.md", "examples/imagenet/README.md"]


@pytest.mark.parametrize("page", [page for page in READ if commands(page, "bash")])
def test_the_commands_for_imagenet_are_accepted(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in commands(page, "bash"):
        if page in PAGES or line.startswith("kdkit "):  # the README also installs, and runs tests
            run_line(line, capsys, "--print_config")


def test_every_shell_block_of_the_pages_is_run_or_parsed_or_a_file_of_the_examples() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        fences = [line.removeprefix("```") for line in text.splitlines() if line.startswith("```") and line != "```"]
        assert {fence for fence in fences if not fence.startswith("{")} <= {"sh", "bash", "shell", "python", "yaml"}, (
            page
        )
        assert text.count("```shell\n") == len(
            re.findall(r"^<!-- examples/\S+ from line \d+ -->\n\n```shell\n", text, re.MULTILINE)
        ), page
        assert "kdkit" in " ".join(commands(page, "sh")) or "```sh" not in text, page


def test_every_public_name_stands_on_the_page_of_the_api() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in kdkit.__all__ if f"kdkit.{name}" not in page] == ["__version__"]


@pytest.mark.parametrize("page", ["docs/quickstart.md", "docs/own_cache.md"])
def test_a_page_shows_the_example_that_it_names(page: str) -> None:
    """In the page itself, because GitHub shows no page of another file's lines."""
    named = re.findall(r"<!-- (\S+) from line (\d+) -->\n\n```\w+\n(.*?)\n```\n", (ROOT / page).read_text(), re.DOTALL)
    assert len(named) == 1
    for file, first, shown in named:
        assert shown.splitlines() == (ROOT / file).read_text().splitlines()[int(first) - 1 :]


def test_no_page_shows_lines_of_another_file_by_a_directive_that_only_the_site_knows() -> None:
    assert [page for page in PAGES if "{literalinclude}" in (ROOT / page).read_text()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if "```{include}" in (ROOT / page).read_text()])
def test_what_a_page_includes_of_another_begins_and_ends_where_it_says(page: str) -> None:
    for file, options in re.findall(r"```\{include\} (\S+)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        included = ((ROOT / page).parent / file).read_text()
        for place in re.findall(r':(?:start-after|end-before): "(.*)"', options):
            assert included.count(place) >= 1, (file, place)
