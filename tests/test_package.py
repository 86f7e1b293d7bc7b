"""The package as a whole: quick to import, and what its top level exports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kdkit

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "statement", ["import kdkit", "import kdkit.config", "import kdkit.cli", "import kdkit.errors"]
)
def test_importing_loads_no_torch(statement: str) -> None:
    heavy = "('torch', 'timm', 'h5py', 'jsonargparse')"
    assert run(f"{statement}; import sys; print([name for name in {heavy} if name in sys.modules])") == "[]\n"


def test_help_loads_no_torch() -> None:
    code = "import sys; from kdkit.cli import main; main(['--help']); print('torch' in sys.modules)"
    assert run(code).splitlines()[-1] == "False"


def test_the_citation_has_the_version_of_the_package() -> None:
    assert f"\nversion: {kdkit.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.slow
def test_reading_a_cache_without_data_loads_neither_timm_nor_torchvision(tmp_path: Path) -> None:
    """Together they take as long to load as torch."""
    golden, rows = ROOT / "cache/golden/v1-topk.h5", tmp_path / "rows.npz"
    commands = [["cache", "info", str(golden)], ["cache", "export", str(golden), "-o", str(rows)]]
    code = f"import sys; from kdkit.cli import main; print([main(command) for command in {commands}])"
    shown = run(f"{code}; print([name for name in ('timm', 'torchvision') if name in sys.modules])")
    assert shown.splitlines()[-2:] == ["[0, 0]", "[]"]


def test_every_exported_name_is_there() -> None:
    for name in kdkit.__all__:
        assert getattr(kdkit, name) is not None
    assert dir(kdkit) == sorted(set(kdkit.__all__) - {"__version__"})
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kdkit.nothing  # noqa: B018
