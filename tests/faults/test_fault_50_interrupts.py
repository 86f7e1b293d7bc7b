"""Fault 50: Ctrl-C at any moment: one line says what is kept and which command continues; that command then works.

Real processes in a session of their own; SIGINT goes to all of them, as a terminal sends it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support import cache_contents, tiny_model, write_digits

from kdkit.cli import main
from kdkit.cli._stopped import Interrupt, describe_stop, note_config
from kdkit.training.config import DistillConfig

ROOT = Path(__file__).parents[2]
MOMENTS = (0.6, 2.3, 5.5)  # seconds, over import, loading and work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and a teacher in a run's folder."""
    root = tmp_path_factory.mktemp("interrupts")
    write_digits(root / "train", 80)
    run = root / "teacher"
    run.mkdir()
    torch.save({"state_dict": tiny_model(seed=1).state_dict()}, run / "last.pth.tar")
    description = {
        "model": "test_resnet", "model_args": {"num_classes": 10}, "input_size": 32, "crop_pct": 1.0,
        "interpolation": "bilinear", "class_names": [str(digit) for digit in range(10)],
    }  # fmt: skip
    (run / "student.json").write_text(json.dumps(description))
    return root


def kdkit(*arguments: str, cwd: Path, interrupt_after: float | None = None) -> tuple[int, str]:
    """Exit code and standard error of a command, which gets SIGINT after so many seconds, with all its processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "kdkit", *arguments],
        cwd=cwd, env=environment, start_new_session=True, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where the tests run in the background
    )  # fmt: skip
    try:
        if interrupt_after is not None:
            time.sleep(interrupt_after)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, error


BUILD = ("cache", "build", "train", "--teacher", "teacher", "--size", "32", "--views", "8", "--device", "cpu")
TRAIN = ("distill", "train", "--student", "test_vit", "--teacher", "teacher", "--size", "32", "--batch-size", "8")
TRAIN += ("--epochs", "2", "--device", "cpu", "--train.checkpoint_every", "5")
COMMANDS: dict[str, tuple[Sequence[str], str]] = {
    "build": ((*BUILD, "--workers", "2", "--build.batch_size", "4", "--build.shard_rows", "1000"), "same command"),
    "distill": ((*TRAIN, "--workers", "2"), "the same command with --resume"),
    "verify": (("cache", "verify", "whole.h5", "train", "--teacher", "teacher", "--device", "cpu"), "nothing was"),
}


def check_stopped(code: int, error: str, continues: str) -> None:
    """A stopped command ends with its one line, and shows no traceback; one that was quicker has ended well."""
    assert "Traceback" not in error, error
    # Python ends by the signal if it came within exec(), or before kdkit's first line; shells show that as 130.
    assert code in (0, 130, -signal.SIGINT), error
    if code != 0 and (error or code != -signal.SIGINT):
        last = error.splitlines()[-1]
        assert last.startswith("kdkit: stopped: "), error
        assert continues in last or "run the same command again" in last


def check_every_moment(name: str, folder: Path, moments: Sequence[float], tmp_path: Path) -> None:
    arguments, continues = COMMANDS[name]
    output = tmp_path / "out"
    for seconds in moments:
        again = ("--resume",) if name == "distill" else ()
        if name != "verify":
            again += ("-o", str(output))
        code, error = kdkit(*arguments, *again, cwd=folder, interrupt_after=seconds)
        check_stopped(code, error, continues)
    if name == "verify":
        return
    code, error = kdkit(*arguments, *again, cwd=folder)
    assert code == 0, error


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An undisturbed build."""
    code, error = kdkit(*COMMANDS["build"][0], "-o", "whole.h5", cwd=folder)
    assert code == 0, error
    return folder / "whole.h5"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_fault_50_ctrl_c_at_many_moments_says_what_is_kept_and_the_named_command_continues(
    name: str, folder: Path, whole: Path, tmp_path: Path
) -> None:
    check_every_moment(name, folder, MOMENTS, tmp_path)
    if name == "build":
        stopped, plain = cache_contents(tmp_path / "out"), cache_contents(whole)
        assert all(plain[key] == stopped[key] for key in plain if key.startswith("views/"))


def test_fault_50_ctrl_c_after_the_last_line_leaves_a_finished_command_finished(tmp_path: Path) -> None:
    code = (
        "import atexit, os, signal, sys; from kdkit.cli import main; sys.argv[1:] = ['--version']; "
        "atexit.register(os.kill, os.getpid(), signal.SIGINT); code = main(); "
        "os.kill(os.getpid(), signal.SIGINT); sys.exit(code)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, text=True,
        capture_output=True, check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith("kdkit ")


@pytest.mark.parametrize(
    ("command", "files", "expected"),
    [
        ("distill", (), "there is no checkpoint yet; the same command with --resume starts from the beginning"),
        ("distill", ("out/last.pth.tar",), "last.pth.tar' is kept; the same command with --resume continues"),
        ("distill", ("out/previous.pth.tar",), "previous.pth.tar' is kept; the same command with --resume continues"),
        ("cache build", (), "no shard is finished yet; the same command resumes the build"),
        ("cache build", ("out.parts/v0000-r0000000000.h5",), "1 finished shard is kept in"),
        ("cache import", ("out.parts/v0.h5", "out.parts/v1.h5"), "2 finished shards are kept in"),
        ("demo", (), "kdkit demo --overwrite starts again"),
        ("evaluate", (), "nothing was changed; run the same command again"),
        ("report", (), "nothing was changed; run the same command again"),
    ],
)
def test_fault_50_what_is_kept_is_read_from_the_output(
    command: str, files: Sequence[str], expected: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    note_config(DistillConfig(data="x", output=str(tmp_path / "out"), student="resnet18"))
    assert expected in describe_stop(command)


def test_fault_50_an_interrupt_that_another_package_turns_into_its_own_error_is_still_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(name: object, **_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("a library could not be loaded") from None

    monkeypatch.setattr("kdkit.dataset.open_dataset", load)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    try:
        code = main(["cache", "build", str(tmp_path), "--teacher", "resnet18", "-o", str(tmp_path / "t.h5")])
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "kdkit: stopped: no shard is finished yet; the same command resumes the build"


def test_fault_50_an_interrupt_while_torch_loads_ends_the_process_at_once_because_an_exception_would_abort_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class LeftError(BaseException):
        pass

    def leave(code: int) -> None:
        raise LeftError(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(torch.__spec__, "_initializing", True)  # as importlib marks it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    try:
        Interrupt("cache build", ends_process=True)
        with pytest.raises(LeftError, match="130"):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "kdkit: stopped: nothing was changed; run the same command again\n"


def test_fault_50_a_thread_that_finds_a_worker_gone_before_the_interrupt_is_known_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(error: Exception) -> None:  # as multiprocessing's thread that hands tensors to workers
        sys.excepthook(type(error), error, error.__traceback__)

    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    try:
        Interrupt("cache build", ends_process=True)
    finally:
        signal.signal(signal.SIGINT, before)
    for error in (ConnectionResetError(104, "reset by peer"), EOFError(), ValueError("a real fault")):
        thread = threading.Thread(target=serve, args=(error,))
        thread.start()
        thread.join()
    assert capsys.readouterr().err == "ValueError: a real fault\n"
    sys.excepthook(OSError, OSError("of the main thread"), None)
    assert capsys.readouterr().err == "OSError: of the main thread\n"
