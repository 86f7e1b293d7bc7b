"""The package as a whole: quick to import, and what its top level exports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kdkit


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


def test_every_exported_name_is_there() -> None:
    for name in kdkit.__all__:
        assert getattr(kdkit, name) is not None
    assert dir(kdkit) == sorted(set(kdkit.__all__) - {"__version__"})
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kdkit.nothing  # noqa: B018
