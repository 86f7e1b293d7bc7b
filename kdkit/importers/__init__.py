"""Importers: other projects' caches, and anyone's arrays, as kdkit caches. Each is one file, and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdkit._lazy import lazy_exports

IMPORTERS = {
    "ml-dr": ("kdkit.importers.ml_dr", "import_mldr"),
    "fkd": ("kdkit.importers.fkd", "import_fkd"),
    "arrays": ("kdkit.importers.arrays", "import_arrays"),
}
"""Format, as `kdkit cache import` takes it -> module and function. The functions are names of this package."""

if TYPE_CHECKING:
    from kdkit.importers._write import ImportReport as ImportReport

__getattr__, __dir__ = lazy_exports(
    __name__,
    {function: module for module, function in IMPORTERS.values()} | {"ImportReport": "kdkit.importers._write"},
)
