"""Building a cache: the teacher is asked once for every view of every sample.

dataset[i] -> replayed view (i, v) -> teacher -> codec.encode -> shard of rows -> sealed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdkit.cache import durable
from kdkit.cache.codecs import Codec, create_codec, default_codec
from kdkit.cache.format import (
    BLOCK_ROWS,
    DIGEST_NAME,
    KEYS_NAME,
    CacheMetadata,
    Shard,
    codec_array_name,
    hashed_rows,
)
from kdkit.cache.hdf5 import Array
from kdkit.cache.keys import key_digests, keys_sha256, pack_keys, refuse_other_samples
from kdkit.cache.lock import writer_lock
from kdkit.cache.mismatch import refuse_mismatch
from kdkit.cache.opening import open_index
from kdkit.cache.pack import pack as pack_parts
from kdkit.cache.parts import INDEX_NAME, Parts, parts_folder
from kdkit.cache.pixels import check_pixels, pixel_crc32
from kdkit.cache.reader import LOGITS, CachedTeacher, shard_pixel_crc32, stored_keys
from kdkit.cache.writer import ShardWriter
from kdkit.config import BuildConfig
from kdkit.data import PixelBatch, RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.engine import ranks
from kdkit.engine.ask import ask
from kdkit.engine.probe import fit_and_measure
from kdkit.engine.progress import Advance, progress
from kdkit.errors import CacheError, ClassMismatchError, ConfigError
from kdkit.teachers import Teacher

_SHARDS_REPLAYED, _ROWS_REPLAYED = 16, 4  # of the sealed shards and of each of them, when a build goes on


@dataclass(frozen=True)
class BuildReport:
    """What a build did."""

    path: Path
    """The packed file, or the parts folder."""
    num_rows: int
    """Samples in the cache."""
    num_views: int
    """Views of each."""
    num_bytes: int
    """Bytes on disk."""
    images_built: int
    """Images that the teacher was asked about in this run, on all ranks; fewer than rows times views after a resume."""
    seconds: float
    """Wall time of this run."""


def build_cache(
    teacher: Teacher,
    dataset: ReplayedDataset,
    path: str | Path,
    config: BuildConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    show_progress: bool = False,
) -> BuildReport:
    """Asks `teacher` about every view of every sample and keeps the answers in a cache at `path`.

    A build that was stopped, in whatever way, goes on where it stopped when it is called again with the same teacher,
    dataset and recipe; finished shards are kept. A cache that is complete already is left as it is. In a run of several
    ranks (torch.distributed is initialised) each rank asks about a share of the shards; the number of ranks and the
    batch size may change from run to run.

    Args:
        teacher: who is asked.
        dataset: samples and recipe.
        path: the packed file to be; shards are kept in `path`.parts until all are sealed.
        config: codec, batch size and the like.
        device: where the teacher runs; it is moved there.
        show_progress: whether progress is shown on standard error, by rank 0.

    Raises:
        CacheMismatchError: what is at `path` was made with something else; names the field and both values.
        CacheLockedError: another process is building it.
        NonFiniteOutputError: the teacher said NaN or infinity, or what the codec cannot hold; names samples.
        CacheError: the folder cannot be written, or the disk is full.
    """
    config = config or BuildConfig()
    path = Path(path)
    begun = time.monotonic()
    teacher = teacher.to(torch.device(device))
    folder = parts_folder(path)
    with ExitStack() as held:

        def begin() -> Parts | None:
            """On rank 0: takes the lock and finds out what is to do; None where all is done."""
            if path.is_file():
                _refuse_other(path, CachedTeacher(path).metadata, teacher, dataset, config)
                _remove_remains(folder)
                return None
            check_writable(path)
            durable.make_folder(folder)
            held.enter_context(writer_lock(folder))
            return _resume_or_start(path, teacher, dataset, config, device)

        parts = ranks.on_rank_zero(begin)
        if parts is None:
            return _report(path, images_built=0, begun=begun)
        missing = ranks.on_rank_zero(parts.missing)
        mine = missing[ranks.rank() :: ranks.world_size()]
        images = sum(shard.num_rows for shard in mine)
        shown = show_progress and ranks.rank() == 0
        with progress(f"asking {teacher.name}", images, "images", enabled=shown) as advance:
            ranks.together(lambda: _fill(parts, mine, teacher, dataset, config, device, advance))
        images_built = sum(shard.num_rows for shard in missing)
        if config.pack:
            build = {"seconds": round(time.monotonic() - begun, 3), "images": images_built, "device": str(device)}
            ranks.on_rank_zero(lambda: pack_parts(parts, path, json.dumps(build)))
    return _report(path if config.pack else folder, images_built=images_built, begun=begun)


def pack_cache(path: str | Path) -> Path:
    """Packs the finished shards in `path`.parts into one file at `path`, and returns that.

    Raises:
        CacheNotFoundError: there are no shards.
        CacheIncompleteError: some are missing.
        CacheLockedError: they are being written.
    """
    path = Path(path)
    folder = parts_folder(path)
    parts = Parts.open(folder)
    with writer_lock(folder):
        pack_parts(parts, path)
    return path


def check_writable(path: str | Path) -> None:
    """Refuses an output folder that cannot be written, before any work is done.

    Raises:
        CacheError: the folder of `path` cannot be made or written.
    """
    path = Path(path)
    if path.is_dir():
        raise CacheError(f"no cache can be written at {str(path)!r}: it is a folder; name a file, such as teacher.h5")
    if parts_folder(path).is_file():
        raise CacheError(f"no cache can be written at {str(path)!r}: {str(parts_folder(path))!r} is in the way")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.probe(path.parent)
    except OSError as error:
        raise CacheError(f"no cache can be written at {str(path)!r}: {error.strerror}") from error


def _remove_remains(folder: Path) -> None:
    """Removes shards whose packing died between renaming the file and removing them; leaves what cannot be removed."""
    if folder.is_dir():
        with suppress(CacheError, OSError), writer_lock(folder):
            durable.remove_folder(folder)


def _resume_or_start(
    path: Path, teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig, device: torch.device | str
) -> Parts:
    """The parts of a build that was stopped, or those of a new one."""
    folder = parts_folder(path)
    durable.remove_leftovers(folder)
    durable.remove_leftovers(path.parent, path.name)
    if (folder / INDEX_NAME).is_file():
        parts = Parts.open(folder)
        _refuse_other(folder, parts.metadata, teacher, dataset, config)
        _refuse_other_pixels(parts, dataset)
        return parts
    return Parts.create(folder, *plan_cache(teacher, dataset, config, device))


def plan_cache(
    teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig, device: torch.device | str
) -> tuple[CacheMetadata, dict[str, Array]]:
    """What a cache will be, its codec fitted and measured: its metadata, and the arrays of its index."""
    codec, fidelity = fit_and_measure(choose_codec(teacher, dataset, config), teacher, dataset, config, device)
    metadata = CacheMetadata(
        num_rows=len(dataset),
        num_views=dataset.recipe.num_views,
        shard_rows=-(-config.shard_rows // BLOCK_ROWS) * BLOCK_ROWS,
        fidelity={LOGITS: fidelity},
        **_made_with(teacher, dataset, codec),
    )
    arrays = {DIGEST_NAME: key_digests(dataset.keys), KEYS_NAME: pack_keys(dataset.keys)}
    return metadata, arrays | {codec_array_name(LOGITS, name): array for name, array in codec.arrays.items()}


def choose_codec(teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig) -> Codec:
    """The codec, not fitted yet, for as many classes as teacher and dataset agree on."""
    if teacher.num_classes is None:
        raise ConfigError(f"the teacher {teacher.name!r} does not tell how many classes it has: set model.num_classes")
    names = dataset.class_names
    if names is not None and len(names) != teacher.num_classes:
        raise ClassMismatchError(
            f"the teacher {teacher.name!r} has {teacher.num_classes} classes, the dataset {len(names)}: "
            "give the teacher a class_map, or use a teacher trained on those classes"
        )
    if config.codec is None:
        return default_codec(teacher.num_classes)
    return create_codec(config.codec, teacher.num_classes, **config.codec_options)


def _made_with(teacher: Teacher, dataset: ReplayedDataset, codec: Codec) -> dict[str, Any]:
    """The part of the metadata that a resumed build, or another run at the same path, must have in common."""
    return {
        "streams": {LOGITS: {"codec": codec.to_dict(), "row_bytes": codec.row_bytes}},
        "teacher": teacher.fingerprint(),
        "recipe": dataset.recipe.to_dict(),
        "dataset": {
            "keys_sha256": keys_sha256(dataset.keys),
            "class_names": None if dataset.class_names is None else list(dataset.class_names),
        },
    }


def _refuse_other(
    origin: Path, stored: CacheMetadata, teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig
) -> None:
    """Compares all that a cache was made with to what it would be made with now."""
    shown = f"the cache at {str(origin)!r}"
    made_with, now = asdict(stored), _made_with(teacher, dataset, choose_codec(teacher, dataset, config))
    for name in ("teacher", "recipe", "streams"):
        refuse_mismatch(name, made_with[name], now[name], shown)
    if made_with["dataset"]["keys_sha256"] != now["dataset"]["keys_sha256"]:
        refuse_other_samples(stored_keys(origin, stored.num_rows), dataset.keys, shown)
    refuse_mismatch("dataset", made_with["dataset"], now["dataset"], shown)


def _refuse_other_pixels(parts: Parts, dataset: ReplayedDataset) -> None:
    """Replays some rows of the sealed shards: a build must not go on with other images or another library."""
    sealed = [shard for shard in parts.metadata.shards() if parts.is_sealed(shard)]
    for shard in sealed[:: max(1, len(sealed) // _SHARDS_REPLAYED)]:
        hashes = {shard.view: shard_pixel_crc32(parts.shard_path(shard), shard)}
        check_pixels(dataset, np.arange(len(dataset)), hashes, f"the cache at {str(parts.folder)!r}", _ROWS_REPLAYED)


def _fill(
    parts: Parts,
    missing: Sequence[Shard],
    teacher: Teacher,
    dataset: ReplayedDataset,
    config: BuildConfig,
    device: torch.device | str,
    advance: Advance,
) -> None:
    """Builds and seals the missing shards, one after the other, with one loader that never drains between them."""
    codec = open_index(parts)[LOGITS]
    loader = ReplayLoader(
        dataset,
        RangeSampler([(shard.view, shard.start, shard.stop) for shard in missing], config.batch_size),
        teacher.input_normalization,
        device=device,
        num_workers=config.num_workers if missing else 0,
    )
    batches = loader.pixel_batches()
    with ShardWriter(parts) as writer:
        for shard in missing:
            payload = np.empty((shard.num_rows, codec.row_bytes), dtype=np.uint8)
            pixels: list[int] = []
            for pixel_batch in _batches_of(shard, batches):
                first, count = int(pixel_batch.row[0]) - shard.start, len(pixel_batch.row)
                payload[first : first + count] = codec.encode(ask(teacher, codec, loader, pixel_batch)).cpu().numpy()
                pixels += _hash_pixels(pixel_batch)
                advance(count)
            writer.submit(shard, {LOGITS: payload}, np.asarray(pixels, dtype="<u4"))


def _batches_of(shard: Shard, batches: Iterator[PixelBatch]) -> Iterator[PixelBatch]:
    """The next batches, up to the shard's last row."""
    rows = 0
    while rows < shard.num_rows:
        batch = next(batches)
        rows += len(batch.row)
        yield batch


def _hash_pixels(batch: PixelBatch) -> list[int]:
    """CRC-32 of the pixels of the batch's rows that are to be hashed, in row order."""
    first = int(batch.row[0])
    return [pixel_crc32(batch.images[row - first]) for row in hashed_rows(first, first + len(batch.row))]


def _report(path: Path, *, images_built: int, begun: float) -> BuildReport:
    cache = CachedTeacher(path)
    return BuildReport(path, cache.num_rows, cache.num_views, cache.num_bytes, images_built, time.monotonic() - begun)
