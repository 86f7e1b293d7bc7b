"""How to install an optional package beside the kdkit that is running, from wherever that one was installed."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


def install_command(extra: str) -> str:
    """The pip command that installs the packages of an extra of kdkit, e.g. `pip install -e "/home/me/kdkit[demo]"`.

    kdkit is named by the place that it was installed from (a folder, a repository or a file), as pip recorded it, and
    where that is gone the packages of the extra are named instead, because kdkit itself may be on no index.

    Args:
        extra: e.g. "demo".
    """
    every = list(distributions(name="kdkit"))
    if not every:  # run from a folder that is on the path
        return f'pip install "kdkit[{extra}]"'
    # A source tree that is on the path holds a record of its own, which does not tell how kdkit was installed.
    found = next((one for one in every if _origin(one) is not None), every[0])
    origin = _origin(found)
    if origin is None:
        return f"pip install {' '.join(map(shlex.quote, _packages(found, extra)))}"
    place = Path(unquote(urlsplit(str(origin["url"])).path))
    if "dir_info" in origin and place.is_dir():
        flag = " -e" if origin["dir_info"].get("editable") else ""
        return f'pip install{flag} "{place}[{extra}]"'
    if "vcs_info" in origin:
        return f'pip install "kdkit[{extra}] @ {origin["vcs_info"].get("vcs", "git")}+{origin["url"]}"'
    if "archive_info" in origin and (place.is_file() or not str(origin["url"]).startswith("file:")):
        return f'pip install "kdkit[{extra}] @ {origin["url"]}"'
    return f"pip install {' '.join(map(shlex.quote, _packages(found, extra)))}"


def _origin(found: Distribution) -> dict[str, Any] | None:
    """pip's record of the place that kdkit was installed from; None from an index."""
    text = found.read_text("direct_url.json")
    record: dict[str, Any] | None = None if text is None else json.loads(text)
    return record


def _packages(found: Distribution, extra: str) -> list[str]:
    """The packages of an extra."""
    named = [text.partition(";") for text in found.requires or ()]
    packages = [name.strip() for name, _, marker in named if f'extra == "{extra}"' in marker.replace("'", '"')]
    return packages or [f"kdkit[{extra}]"]
