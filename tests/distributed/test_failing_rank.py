"""Fault 47: one rank fails while another waits in a collective operation; under gloo, and without torchrun's help."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file
from support import tiny_model, write_digits

_FAIL = """
import os
if os.environ.get("RANK") == "1":
    import kdkit.{module} as module
    original, calls = module.{name}, []

    def failing(*arguments, **options):
        calls.append(0)
        if len(calls) > {calls}:
            from kdkit.errors import DatasetError
            raise {error}
        return original(*arguments, **options)

    module.{name} = failing
"""

DISTILL = "distill {data} --student test_resnet --size 32 --epochs 3 --workers 0 --batch-size 4 -o {out}"
BUILD = "cache build {data} --teacher test_resnet --teacher.checkpoint {weights} --size 32 --views 2 -o {out}"
PLACES = {
    "a step": (DISTILL, "training.step", "forward", 4, 'DatasetError("this image cannot be read")'),
    "a step, by a bug": (DISTILL, "training.step", "forward", 4, 'RuntimeError("this image cannot be read")'),
    "the opening": (DISTILL, "training.distill", "open_dataset", 0, 'DatasetError("this image cannot be read")'),
    "a shard": (BUILD, "building.shards", "run_teacher", 0, 'DatasetError("this image cannot be read")'),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_fault_47_its_error_comes_first_and_all_ranks_end_by_themselves(tmp_path: Path, place: str) -> None:
    command, module, name, calls, error = PLACES[place]
    write_digits(tmp_path / "images", 24)
    save_file(tiny_model().state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "sitecustomize.py").write_text(_FAIL.format(module=module, name=name, calls=calls, error=error))
    arguments = command.format(
        data=tmp_path / "images", out=tmp_path / "out.h5", weights=tmp_path / "weights.safetensors"
    )
    codes, log = run_two_ranks(arguments.split(), tmp_path)
    assert codes == [1, 1], log
    errors = [line for line in log.splitlines() if re.match(r"kdkit: error:|(\[rank1\]: )?RuntimeError:", line)]
    assert len(errors) == 2, log
    assert "this image cannot be read" in errors[0], log
    assert any("rank 1 failed: this image cannot be read" in e or "rank 0 lost another one" in e for e in errors), log


@pytest.mark.slow
def test_one_image_per_rank_with_batch_normalisation_is_one_line_on_every_rank(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", 24)
    command = DISTILL.format(data=tmp_path / "images", out=tmp_path / "out").replace("--batch-size 4", "--batch-size 1")
    codes, log = run_two_ranks([*command.split(), "--no-preflight"], tmp_path)
    assert codes == [1, 1], log
    errors = [line for line in log.splitlines() if line.startswith("kdkit: error:")]
    assert len(errors) == 2, log
    assert "normalises over the batch, and a batch of 1 image" in errors[0], log
    assert "batch size of 2 or more per rank" in errors[0], log


def run_two_ranks(arguments: list[str], folder: Path) -> tuple[list[int], str]:
    """Exit codes of two ranks, the second at most a minute after the first, and what both wrote, in order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "0"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    shared["PYTHONPATH"] = os.pathsep.join([str(folder), *sys.path])
    with open(folder / "log", "a") as log:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "kdkit", *arguments],
                env={**shared, "RANK": rank, "LOCAL_RANK": rank},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            for rank in ("0", "1")
        ]
        try:
            deadline = time.monotonic() + 200
            while all(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
                time.sleep(0.05)
            codes = [rank.wait(timeout=60) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    return codes, (folder / "log").read_text()
