"""Importers: other projects' caches, and anyone's arrays, as kdkit caches. One importer a file, one line here."""

from kdkit.importers._write import ImportReport
from kdkit.importers.arrays import import_arrays
from kdkit.importers.fkd import import_fkd
from kdkit.importers.ml_dr import import_mldr

__all__ = ["IMPORTERS", "ImportReport", "import_arrays", "import_fkd", "import_mldr"]

IMPORTERS = {"ml-dr": import_mldr, "fkd": import_fkd, "arrays": import_arrays}
"""What `kdkit cache import` takes as its first argument -> the function that it calls."""
