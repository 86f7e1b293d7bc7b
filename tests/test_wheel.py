"""The built wheel, outside the source tree: it contains everything that an installed kdkit needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("kdkit", "teachers", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
pytestmark = pytest.mark.slow

WITH_THE_WHEEL_ALONE = """
import sys
from pathlib import Path
import kdkit
from kdkit.cli import main

installed, golden = Path(sys.argv[1]), sys.argv[2]
assert Path(kdkit.__file__).is_relative_to(installed), kdkit.__file__
for command in (
    ["teachers", "list"],
    ["teachers", "show", "resnet50.a1_in1k"],
    ["presets", "list"],
    ["cache", "info", "--cache", golden],
    ["demo", "--print_config"],
):
    assert main(command) == 0, command
cache = kdkit.open_cache(golden)
print("decoded", tuple(cache.codecs["logits"].decode(cache.read_encoded([0, 1], 0)).shape), cache.num_classes)
"""


def run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without network from a copy of the sources, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "sources" / name, **({"symlinks": True} if copy is shutil.copytree else {}))
    run([*PIP, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", "..", "."], folder / "sources")
    [built] = folder.glob("kdkit-*.whl")
    return built


PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def test_the_wheel_holds_all_that_is_no_code(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    cards = sorted(path.name for path in (ROOT / "teachers").glob("*.yaml"))
    presets = sorted(path.name for path in (ROOT / "kdkit" / "presets").glob("*.yaml"))
    assert "kdkit/py.typed" in names
    assert cards == sorted(Path(name).name for name in names if name.startswith("kdkit/teachers/cards/"))
    assert presets == sorted(Path(name).name for name in names if name.startswith("kdkit/presets/") and "yaml" in name)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"kdkit"}


def test_demo_cards_presets_and_golden_files_work_with_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    run([*PIP, "install", "--no-deps", "--no-index", "--target", str(installed), str(wheel)], tmp_path)
    golden = str(ROOT / "cache" / "golden" / "v1-topk.h5")
    # Only the target folder is on the path; what kdkit depends on comes from this interpreter.
    printed = run(
        [sys.executable, "-c", WITH_THE_WHEEL_ALONE, str(installed), golden], tmp_path, PYTHONPATH=str(installed)
    )
    assert "resnet50.a1_in1k" in printed
    assert "topk" in printed
    assert "decoded (2, " in printed
    assert (installed / "bin" / "kdkit").is_file()
