"""Fault 30, contents: a checkpoint that loads but is not a run's gives way to the one before, or is one error."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_model

from kdkit import ClassificationTask
from kdkit.errors import CheckpointError, KdkitError
from kdkit.training.checkpoint import LAST, PREVIOUS, Checkpoints
from kdkit.training.checkpoint_file import load_checkpoint
from kdkit.training.logger import FILES, METRICS, RunLogger
from kdkit.training.state import Position, RunState

Content = dict[str, Any]


def without(content: Content, name: str) -> Content:
    return {field: value for field, value in content.items() if field != name}


def with_own(content: Content, **fields: Any) -> Content:
    return {**content, "kdkit": {**content["kdkit"], **fields}}


def with_position(content: Content, **fields: Any) -> Content:
    return with_own(content, position={**content["kdkit"]["position"], **fields})


ODD_CONTENTS: dict[str, tuple[Callable[[Content], Any], str]] = {
    "a tensor": (lambda content: torch.ones(3), "it holds a Tensor, not a dict"),
    "a list": (lambda content: [content], "it holds a list, not a dict"),
    "a state dict": (lambda content: content["state_dict"], "is not a checkpoint of a kdkit run"),
    "numbers as names": (lambda content: {1: 2, "a": 3}, "is not a checkpoint of a kdkit run"),
    "a weight that is a number": (lambda content: {**content, "state_dict": {"a": 1}}, "its state_dict is a dict"),
    "no weights": (lambda content: {**content, "state_dict": None}, "its state_dict is None"),
    "no state_dict": (lambda content: without(content, "state_dict"), "its state_dict is missing"),
    "an EMA of None": (lambda content: {**content, "state_dict_ema": None}, "its state_dict_ema is None"),
    "a task state": (lambda content: {**content, "task_state": [1]}, "its task_state is a list"),
    "no optimiser": (lambda content: {**content, "optimizer": {}}, "its optimizer is an empty dict"),
    "a scaler of 1": (lambda content: {**content, "amp_scaler": 1}, "its amp_scaler is 1"),
    "kdkit: None": (lambda content: {**content, "kdkit": None}, "its kdkit is None"),
    "kdkit: {}": (lambda content: {**content, "kdkit": {}}, "its kdkit.config is missing"),
    "config: None": (lambda content: with_own(content, config=None), "its kdkit.config is None"),
    "position: []": (lambda content: with_own(content, position=[]), "its kdkit.position is an empty list"),
    "epoch: x": (lambda content: with_position(content, epoch="x"), "its kdkit.position is a dict"),
    "batch: -1": (lambda content: with_position(content, batch=-1), "its kdkit.position is a dict"),
    "another position": (lambda content: with_position(content, step=1), "its kdkit.position is a dict"),
    "scheduler: 1": (lambda content: with_own(content, scheduler=1), "its kdkit.scheduler is 1"),
    "random: []": (lambda content: with_own(content, random=[]), "its kdkit.random is an empty list"),
    "random: [{}]": (lambda content: with_own(content, random=[{}]), "its kdkit.random is a list"),
    "sums: text": (lambda content: with_own(content, sums={"loss": "x"}), "its kdkit.sums is a dict"),
    "records: {}": (lambda content: with_own(content, records={}), "its kdkit.records is an empty dict"),
    "best: text": (lambda content: with_own(content, best="x" * 99), f"its kdkit.best is '{'x' * 39}..."),
    "log: {}": (lambda content: with_own(content, log={}), "its kdkit.log is an empty dict"),
}


def new_state(update: int = 0) -> RunState:
    """The state of a run with momentum after so many updates, its weights drawn from a seed."""
    task = ClassificationTask(tiny_model("test_vit", seed=update))
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler(enabled=False)
    log = {"bytes": 10 * update, "step": update}
    return RunState(task, optimizer, None, scaler, torch.device("cpu"), Position(0, update, update), log=log)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that stopped after its fourth update, with the checkpoints of the third and the fourth."""
    folder = tmp_path_factory.mktemp("stopped")
    checkpoints = Checkpoints(folder)
    for update in (3, 4):
        checkpoints.save(new_state(update))
    return folder


NO_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an empty file": (Path.touch, "cannot be read: EOFError"),
    "a pipe": (os.mkfifo, "is a pipe, expected a regular file"),
    "a folder": (Path.mkdir, "is a folder, expected a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a regular file"),
}


@pytest.mark.parametrize("kind", [*ODD_CONTENTS, *NO_FILES])
def test_fault_30_an_odd_checkpoint_gives_way_to_the_one_before_with_one_line_or_is_one_error(
    tmp_path: Path, stopped: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    last, previous = folder / LAST, folder / PREVIOUS
    if kind in NO_FILES:
        make, problem = NO_FILES[kind]
        last.unlink()
        make(last)
    else:
        change, problem = ODD_CONTENTS[kind]
        torch.save(change(load_checkpoint(last)), last)
    capsys.readouterr()
    checkpoints = Checkpoints(folder, resume=True)
    state, before = new_state(), new_state(3)
    assert checkpoints.restore(state, with_log=True)
    assert (state.position, state.log) == (before.position, before.log)
    for ours, saved in zip(state.task.parameters(), before.task.parameters(), strict=True):
        assert torch.equal(ours, saved)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kdkit: '{last}' ")
    assert problem in line
    assert line.endswith("; resuming from the one before, previous.pth.tar")
    previous.unlink()
    with pytest.raises(CheckpointError, match=re.escape(problem)) as error:
        checkpoints.restore(new_state(), with_log=True)
    assert len(str(error.value).splitlines()) == 1


def test_fault_30_a_run_without_a_logger_resumes_without_the_position_of_one(stopped: Path, tmp_path: Path) -> None:
    torch.save(with_own(load_checkpoint(stopped / LAST), log={}), tmp_path / LAST)
    state = new_state()
    assert Checkpoints(tmp_path, resume=True).restore(state)
    assert state.position.update == 4


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"kind": 3}', "\0", "[" * 99 + "]" * 99, '{"kind": "epoch", "kind": 1}']
)
def test_fault_30_a_log_that_was_changed_is_one_line_that_names_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / METRICS
    path.write_text(f'{{"kind": "step", "step": 0}}\n{line}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl', line 2,") as error:
        RunLogger(tmp_path).rewind({"bytes": path.stat().st_size, "step": 1})
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["a pipe", "a folder"])
@pytest.mark.parametrize("name", FILES)
def test_fault_33_a_log_that_is_no_file_never_waits(tmp_path: Path, name: str, make: Callable[[Path], Any]) -> None:
    record = '{"kind": "epoch", "epoch": 0}\n'
    (tmp_path / METRICS).write_text(record)
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    try:
        RunLogger(tmp_path).rewind({"bytes": 0 if name == METRICS else len(record), "step": 1})
    except KdkitError as error:
        assert name in str(error)  # noqa: PT017 -- a pipe in the place of a summary is replaced, a folder refused
