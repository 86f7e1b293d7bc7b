"""Sphinx's configuration: MyST pages, the API from the docstrings.

sphinx-build -W -b html docs docs/_build
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from sphinx.application import Sphinx

from kdkit import __version__
from kdkit.cli import COMMANDS, main

project = "kdkit"
release = version = __version__
html_theme = "furo"
html_title = "kdkit"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]  # $$ is what GitHub draws as a formula, too
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True

_STAR = re.compile(r"(?<![\w*`\\])\*(?=\w)")
_LINK = re.compile(r"\[([^\]]+)\]\((\.\.?/[^)#\s]+)(?:#[^)]*)?\)")


def _name_files_outside(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to files of the repository that are not pages here become their names; a missing file is an error."""
    root = Path(app.srcdir)

    def shown(link: re.Match[str]) -> str:
        text, target = link.groups()
        place = (root / page).parent.joinpath(target).resolve()
        if not place.exists():
            raise FileNotFoundError(f"{page} links to {target}, which is not there")
        inside = place.is_relative_to(root) and place.suffix == ".md"
        return link[0] if inside else f"{text} (`{place.relative_to(root.parent)}`)"

    source[0] = _LINK.sub(shown, source[0])


def _add_help(app: Sphinx, page: str, source: list[str]) -> None:
    """The page of the commands has the help text of each."""
    if page != "commands":
        return
    for command in COMMANDS:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            main([*command.split(), "--help"])
        source[0] += f"\n## kdkit {command}\n\n```text\n{shown.getvalue().strip()}\n```\n"


def _show_stars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings emphasise nothing: the star of [B, *shape] is a star."""
    lines[:] = [_STAR.sub(r"\*", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", _name_files_outside)
    app.connect("source-read", _add_help)
    app.connect("autodoc-process-docstring", _show_stars, priority=100)  # before napoleon, which escapes *args itself
