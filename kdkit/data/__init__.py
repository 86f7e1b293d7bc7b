"""Data: sources of images with keys, replayed views, samplers and loaders."""

from kdkit.data.dataset import ReplayedDataset, Sample
from kdkit.data.loader import PixelBatch, ReplayLoader
from kdkit.data.sampler import EpochSampler, RangeSampler
from kdkit.data.source import ArraySource, FolderSource, ImageSource

__all__ = [
    "ArraySource",
    "EpochSampler",
    "FolderSource",
    "ImageSource",
    "PixelBatch",
    "RangeSampler",
    "ReplayLoader",
    "ReplayedDataset",
    "Sample",
]
