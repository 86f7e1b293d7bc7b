"""Sphinx's configuration: MyST pages, the API from the docstrings.

sphinx-build -W -b html docs docs/_build
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

from sphinx.application import Sphinx

from kdkit import __version__
from kdkit.cli import COMMANDS, main

project = "kdkit"
copyright = "The kdkit authors, Apache-2.0"
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
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
_INCLUDED = {
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
    "cache/CODECS.md": "codecs.md",
    "cache/FORMAT.md": "format.md",
}
"""File of the repository -> the page here that includes it."""


def _mend_links(text: str, place: Path, page: Path) -> str:
    """The text of the file at `place`, its relative links as `page` has them: to pages, and of other files the name.

    Raises:
        FileNotFoundError: a link leads nowhere.
    """
    docs = Path(__file__).parent

    def shown(link: re.Match[str]) -> str:
        name, target, anchor = link.groups()
        found = (place.parent / target).resolve()
        if not found.exists():
            raise FileNotFoundError(f"{place} links to {target}, which is not there")
        inside = found.relative_to(docs.parent).as_posix()
        found = docs / _INCLUDED.get(inside, found)
        if found.is_relative_to(docs) and found.suffix == ".md":
            return f"[{name}]({os.path.relpath(found, page.parent)}{anchor or ''})"
        return f"`{inside}`" if name in (inside, f"`{inside}`") else f"{name} (`{inside}`)"

    return _LINK.sub(shown, text)


def _mend_page(app: Sphinx, page: str, source: list[str]) -> None:
    place = Path(app.srcdir) / f"{page}.md"
    source[0] = _mend_links(source[0], place, place)


def _mend_included(app: Sphinx, place: Path, page: str, source: list[str]) -> None:
    docs = Path(app.srcdir)
    source[0] = _mend_links(source[0], (docs / place).resolve(), docs / f"{page}.md")


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
    app.connect("source-read", _mend_page)
    app.connect("include-read", _mend_included)
    app.connect("source-read", _add_help)
    app.connect("autodoc-process-docstring", _show_stars, priority=100)  # before napoleon, which escapes *args itself
