"""Hugging Face datasets by name, as timm writes it: hfds/NAME or hfds/NAME:SPLIT.

NAME may be a folder, also one that `save_to_disk` of a datasets.Dataset or DatasetDict wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdkit.data.sources.base import ImageSource, SourceOptions
from kdkit.data.sources.mapped import MappedSource
from kdkit.errors import DatasetError, MissingDependencyError
from kdkit.runtime.install import install_command

_STATE, _SPLITS = "state.json", "dataset_dict.json"
"""Files that `save_to_disk` writes for a datasets.Dataset, and for a DatasetDict."""


def create(name: str, options: SourceOptions) -> ImageSource | None:
    """The images of hfds/NAME or hfds/NAME:SPLIT (train by default); None for anything else."""
    if not name.lower().startswith("hfds/"):
        return None
    path, _, split = name[len("hfds/") :].partition(":")
    try:
        import datasets

        dataset: Any = _saved(path, split) if Path(path).is_dir() else None
        if dataset is None:
            dataset = datasets.load_dataset(path, split=split or "train")
    except ImportError as error:
        raise MissingDependencyError(f"{name!r} needs the package datasets: {install_command('hfds')}") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"the dataset {name!r} cannot be loaded: {reason}") from error
    options.check_rule("a Hugging Face dataset")
    return MappedSource(
        dataset, image_column=options.image_column, label_column=options.label_column, labels=options.labels
    )


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in (_STATE, _SPLITS))


def _saved(path: str, split: str) -> Any:
    """The dataset in a folder that `save_to_disk` wrote; None for any other folder."""
    if not is_saved(Path(path)):
        return None
    import datasets

    found: Any = datasets.load_from_disk(path)
    if isinstance(found, datasets.DatasetDict):
        if (split or "train") not in found:
            raise ValueError(f"it has the splits {', '.join(found)}: name one, hfds/PATH:SPLIT")
        return found[split or "train"]
    if split and str(found.split) != split:
        raise ValueError(f"it is one dataset, of the split {found.split}: leave out :{split}")
    return found
