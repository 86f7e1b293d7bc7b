"""Data: sources of images with keys, replayed views, samplers and loaders."""

from kdkit.data.batch import PixelBatch
from kdkit.data.dataset import ReplayedDataset, Sample
from kdkit.data.loader import ReplayLoader, translate_worker_errors
from kdkit.data.sampler import EpochSampler, RangeSampler
from kdkit.data.sources.archive import TarSource, ZipSource
from kdkit.data.sources.base import ArraySource, ImageSource
from kdkit.data.sources.create import create_source
from kdkit.data.sources.folder import FolderSource
from kdkit.data.sources.mapped import MappedSource

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
    "translate_worker_errors",
]
