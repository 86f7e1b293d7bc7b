"""Data: sources of images with keys, replayed views, samplers and loaders."""

from kdkit.data.archive import TarSource, ZipSource
from kdkit.data.batch import PixelBatch
from kdkit.data.dataset import ReplayedDataset, Sample
from kdkit.data.folder import FolderSource
from kdkit.data.loader import ReplayLoader, naming_dead_workers
from kdkit.data.mapped import MappedSource
from kdkit.data.named import create_source
from kdkit.data.sampler import EpochSampler, RangeSampler
from kdkit.data.source import ArraySource, ImageSource

__all__ = [
    "ArraySource",
    "EpochSampler",
    "FolderSource",
    "ImageSource",
    "MappedSource",
    "PixelBatch",
    "RangeSampler",
    "ReplayLoader",
    "ReplayedDataset",
    "Sample",
    "TarSource",
    "ZipSource",
    "create_source",
    "naming_dead_workers",
]
