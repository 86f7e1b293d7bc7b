"""Fault 48: ranks whose data or settings differ are refused before the first step, with rank and difference named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from processes import run_ranks
from safetensors.torch import save_file
from support import tiny_model, write_digits

pytestmark = pytest.mark.xdist_group("agreement")  # they share what takes long to set up


COUNT = 24
RANK_1 = "rank 1 has other data than rank 0: "


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str | None]]:
    """For each of two ranks, the error by what differs."""
    output = tmp_path_factory.mktemp("agreement") / "errors.json"
    run_ranks("distributed/agreement.py", str(output), ranks=2)
    found: list[dict[str, str | None]] = json.loads(output.read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("count", RANK_1 + "it has 11 images, rank 0 has 12, and 'digit-11' is on rank 0 only"),
        ("key", RANK_1 + "it has 12 images, rank 0 has 12, and 'other' is on rank 1 only"),
        ("order of keys", RANK_1 + "image 0 is 'digit-11', and 'digit-0' on rank 0"),
        ("label", RANK_1 + "the label of 'digit-5' is 9, and 5 on rank 0"),
        ("no label", RANK_1 + "the label of 'digit-0' is -1, and 0 on rank 0"),
        ("several labels", RANK_1 + "the label of 'digit-11' is '1 1 0', and '1 0 0' on rank 0"),
        ("class order", RANK_1 + "class 0 is '9', and '0' on rank 0"),
        ("class count", RANK_1 + "it has 11 classes, rank 0 has 10"),
        ("no class names", RANK_1 + "class names are known on rank 0, and not on rank 1"),
        ("recipe", RANK_1 + "recipe.seed is 8, and 7 on rank 0"),
        ("settings", "rank 1 has other settings than rank 0: train.lr is 0.2, and 0.1 on rank 0"),
        ("teacher", "rank 1 has other settings than rank 0: teacher.weights_sha256 is"),
    ],
)
def test_fault_48_every_rank_names_the_odd_one_and_the_first_difference(
    errors: list[dict[str, str | None]], what: str, expected: str
) -> None:
    for rank in errors:
        assert expected in str(rank[what])
        assert "\n" not in str(rank[what])


@pytest.mark.slow
def test_ranks_with_the_same_data_and_settings_agree(errors: list[dict[str, str | None]]) -> None:
    assert [rank[what] for rank in errors for what in ("nothing", "loaded", "same settings")] == [None] * 6


@pytest.mark.slow
def test_a_rank_that_cannot_open_its_data_is_named_by_the_others(errors: list[dict[str, str | None]]) -> None:
    assert errors[1]["cannot be opened"] == "DatasetError: there is no image folder here"
    assert errors[0]["cannot be opened"] == "OtherRankError: rank 1 failed: there is no image folder here"


def copies(folder: Path) -> None:
    """The same digits for each of two ranks, as a folder and as a table of labels."""
    for rank in (0, 1):
        root = folder / f"rank{rank}"
        paths = sorted(path.relative_to(root) for path in write_digits(root / "images", COUNT).rglob("*.png"))
        (root / "table.csv").write_text("path,label\n" + "".join(f"{path},class {path.parts[1]}\n" for path in paths))


def remove_an_image(folder: Path) -> None:
    next((folder / "rank1" / "images" / "3").iterdir()).unlink()


def change_a_label(folder: Path) -> None:
    table = folder / "rank1" / "table.csv"
    table.write_text(table.read_text().replace(",class 3\n", ",class 4\n", 1))


COMMANDS = {
    "distill": "distill {data} --student test_resnet --recipe.size {size} --epochs 1 --batch-size 4 {common}",
    "cache build": "cache build {data} --teacher test_resnet --size {size} --teacher.checkpoint {weights} {common}",
}
CASES = {
    "count": ("rank{rank}/images", "32", remove_an_image, {}, "is on rank 0 only"),
    "label": ("rank{rank}/table.csv", "32", change_a_label, {}, "is 4, and 3 on rank 0"),
    "class order": ("rank{rank}/images", "32", None, {"REVERSED": "1"}, "class 0 is '9', and '0' on rank 0"),
    "recipe": ("rank{rank}/images", "3{rank}", None, {}, "recipe.size is 31, and 30 on rank 0"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "case"),
    [
        ("distill", "count"),
        ("distill", "label"),
        ("distill", "class order"),
        ("cache build", "label"),
        ("cache build", "recipe"),
    ],
)
def test_fault_48_commands_on_ranks_with_local_copies_that_differ_end_at_once_and_leave_no_process(
    tmp_path: Path, command: str, case: str
) -> None:
    data, size, change, environment, expected = CASES[case]
    copies(tmp_path)
    if change is not None:
        change(tmp_path)
    save_file(tiny_model().state_dict(), tmp_path / "weights.safetensors")
    arguments = COMMANDS[command].format(
        data=tmp_path / data,
        size=size,
        common=f"--workers 0 -o {tmp_path / 'out'}",
        weights=tmp_path / "weights.safetensors",
    )
    run, seconds, left = torchrun_command(arguments.split(), environment)
    assert run.returncode != 0
    assert expected in run.stderr, run.stderr[-3000:]
    assert "kdkit: error: rank 1 has other data than rank 0: " in run.stderr
    assert seconds < 60  # alone on two cores it is about 12
    assert left == []
    assert not list(tmp_path.glob("out*"))


def torchrun_command(
    arguments: list[str], environment: dict[str, str]
) -> tuple[subprocess.CompletedProcess[str], float, list[str]]:
    """A kdkit command on two ranks; how long it took, and which of its processes are left."""
    here, mark = Path(__file__).parent, uuid.uuid4().hex
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    everything = {**os.environ, **environment, "OMP_NUM_THREADS": "1", "RUN_MARK": mark}
    everything["PYTHONPATH"] = os.pathsep.join([str(here.parent), *sys.path])
    begun = time.monotonic()
    run = subprocess.run(
        [*command, str(here / "own_copy.py"), *arguments], env=everything, capture_output=True, text=True, timeout=200
    )
    return run, time.monotonic() - begun, marked_processes(mark)


def marked_processes(mark: str) -> list[str]:
    """Ids of the processes that have `mark` in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            content = place.read_bytes()
        except OSError:  # it ended, or is another user's
            continue
        if f"RUN_MARK={mark}".encode() in content:
            found.append(place.parent.name)
    return found
