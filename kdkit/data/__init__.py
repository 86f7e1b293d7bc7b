"""Data: sources of images with keys, replayed views, samplers and loaders.

Where to look:
    sources/        folders, archives, tables and datasets of images; views/ renders the views of an image
    dataset.py      `ReplayedDataset`: (row, view) -> sample.py
    sampler.py      which (row, view) pairs make up each batch; the order depends only on seed and epoch
    loader.py       workers, batches and normalisation; factory.py makes the loader of a training loop
    batch.py        the batch that workers return, in memory from pages.py; prefetch.py copies the next one to the GPU
    worker.py       signals in worker processes
    ranks.py        compares the data of all ranks
"""

from kdkit.data.batch import PixelBatch
from kdkit.data.dataset import ReplayedDataset
from kdkit.data.factory import create_loader
from kdkit.data.loader import ReplayLoader, translate_worker_errors
from kdkit.data.sample import Sample
from kdkit.data.sampler import EpochSampler, RangeSampler
from kdkit.data.sources.array import ArraySource
from kdkit.data.sources.base import ImageSource
from kdkit.data.sources.create import create_source
from kdkit.data.sources.folder import FolderSource
from kdkit.data.sources.mapped import MappedSource
from kdkit.data.sources.multi_label import MultiLabelSource
from kdkit.data.sources.table import TableSource
from kdkit.data.sources.tar import TarSource
from kdkit.data.sources.webdataset import WebDatasetSource
from kdkit.data.sources.zip import ZipSource

__all__ = [
    "ArraySource",
    "EpochSampler",
    "FolderSource",
    "ImageSource",
    "MappedSource",
    "MultiLabelSource",
    "PixelBatch",
    "RangeSampler",
    "ReplayLoader",
    "ReplayedDataset",
    "Sample",
    "TableSource",
    "TarSource",
    "WebDatasetSource",
    "ZipSource",
    "create_loader",
    "create_source",
    "translate_worker_errors",
]
