"""Hugging Face datasets by name, as timm writes it: hfds/NAME or hfds/NAME:SPLIT."""

from __future__ import annotations

from typing import Any

from kdkit.data.sources.base import ImageSource, SourceOptions
from kdkit.data.sources.mapped import MappedSource
from kdkit.errors import DatasetError, MissingDependencyError
from kdkit.runtime.install import install_command


def create(name: str, options: SourceOptions) -> ImageSource | None:
    """The images of hfds/NAME or hfds/NAME:SPLIT (train by default); None for anything else."""
    if not name.lower().startswith("hfds/"):
        return None
    path, _, split = name[len("hfds/") :].partition(":")
    try:
        import datasets

        dataset: Any = datasets.load_dataset(path, split=split or "train")
    except ImportError as error:
        raise MissingDependencyError(f"{name!r} needs the package datasets: {install_command('hfds')}") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"the dataset {name!r} cannot be loaded: {reason}") from error
    options.check_rule("a Hugging Face dataset")
    return MappedSource(
        dataset, image_column=options.image_column, label_column=options.label_column, labels=options.labels
    )
