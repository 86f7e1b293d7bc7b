"""The command that installs an optional package names the place that kdkit itself was installed from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdkit.runtime import install


class Installed:
    """A distribution, as importlib.metadata describes it."""

    def __init__(self, origin: dict[str, Any] | None) -> None:
        self.origin = origin
        self.requires = ["torch>=2.6", 'scikit-learn; extra == "demo"', "matplotlib>=3; extra == 'demo'"]

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, "pip install scikit-learn 'matplotlib>=3'"),
        ({"url": "file://{here}", "dir_info": {"editable": True}}, 'pip install -e "{here}[demo]"'),
        ({"url": "file://{here}", "dir_info": {}}, 'pip install "{here}[demo]"'),
        ({"url": "file:///gone/away", "dir_info": {}}, "pip install scikit-learn 'matplotlib>=3'"),
        ({"url": "file:///gone/kdkit.whl", "archive_info": {}}, "pip install scikit-learn 'matplotlib>=3'"),
        (
            {"url": "https://example.org/kdkit.git", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            'pip install "kdkit[demo] @ git+https://example.org/kdkit.git"',
        ),
        (
            {"url": "https://example.org/kdkit.whl", "archive_info": {}},
            'pip install "kdkit[demo] @ https://example.org/kdkit.whl"',
        ),
    ],
)
def test_the_command_names_where_kdkit_was_installed_from(
    origin: dict[str, Any] | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if origin is not None:
        origin = {**origin, "url": origin["url"].replace("{here}", str(tmp_path))}
    in_source_tree = Installed(None)  # what a build leaves there, found first where the tree is on the path
    monkeypatch.setattr(install, "distributions", lambda name: [in_source_tree, Installed(origin)])
    assert install.install_command("demo") == expected.replace("{here}", str(tmp_path))
