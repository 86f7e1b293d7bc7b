"""Building a cache: the teacher is asked once for every view of every sample.

dataset[i] -> replayed view (i, v) -> teacher -> codec.encode -> shard of rows -> sealed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdkit.cache import durable
from kdkit.cache.codecs import Codec, create_codec
from kdkit.cache.format import (
    BLOCK_ROWS,
    DIGEST_NAME,
    KEYS_NAME,
    CacheMetadata,
    Shard,
    codec_array_name,
    hashed_rows,
)
from kdkit.cache.keys import key_digests, keys_sha256, pack_keys
from kdkit.cache.mismatch import refuse_mismatch
from kdkit.cache.pack import pack as pack_parts
from kdkit.cache.parts import Parts, parts_folder
from kdkit.cache.pixels import pixel_crc32
from kdkit.cache.reader import LOGITS, CachedTeacher
from kdkit.config import BuildConfig
from kdkit.data import PixelBatch, RangeSampler, ReplayedDataset, ReplayLoader
from kdkit.engine.progress import Advance, progress
from kdkit.errors import CacheError, ClassMismatchError, ConfigError, NonFiniteOutputError
from kdkit.teachers import Teacher

_NAMED_KEYS = 3


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
    """Images the teacher was asked about in this run; fewer than rows times views after a resume."""
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
    dataset and recipe; finished shards are kept. A cache that is complete already is left as it is.

    Args:
        teacher: who is asked.
        dataset: samples and recipe.
        path: the packed file to be; shards are kept in `path`.parts until all are sealed.
        config: codec, batch size and the like.
        device: where the teacher runs; it is moved there.
        show_progress: whether progress is shown on standard error.

    Raises:
        CacheMismatchError: what is at `path` was made with something else; names the field and both values.
        NonFiniteOutputError: the teacher said NaN or infinity, or what the codec cannot hold; names samples.
        CacheError: the folder cannot be written, or the disk is full.
    """
    config = config or BuildConfig()
    path = Path(path)
    begun = time.monotonic()
    check_writable(path)
    teacher = teacher.to(torch.device(device))
    if path.is_file():
        _refuse_other(CachedTeacher(path).metadata, _describe(teacher, dataset, config), path)
        shutil.rmtree(parts_folder(path), ignore_errors=True)  # left by a death between packing and removing
        return _report(path, images_built=0, begun=begun)
    parts = _resume(path, teacher, dataset, config) or _start(path, teacher, dataset, config)
    missing = parts.missing()
    images = sum(shard.num_rows for shard in missing)
    with progress(f"asking {teacher.name}", images, "images", enabled=show_progress) as advance:
        _fill(parts, missing, teacher, dataset, config, device, advance)
    build = {"seconds": round(time.monotonic() - begun, 3), "images": images, "device": str(device)}
    if config.pack:
        pack_parts(parts, path, json.dumps(build))
    return _report(path if config.pack else parts.folder, images_built=images, begun=begun)


def check_writable(path: str | Path) -> None:
    """Refuses an output folder that cannot be written, before any work is done.

    Raises:
        CacheError: the folder of `path` cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CacheError(f"no cache can be written at {str(path)!r}: {error.strerror}") from error


def _describe(teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig) -> CacheMetadata:
    """What the cache will be; equal builds have equal descriptions."""
    codec = _create_codec(teacher, dataset, config)
    return CacheMetadata(
        num_rows=len(dataset),
        num_views=dataset.recipe.num_views,
        shard_rows=-(-config.shard_rows // BLOCK_ROWS) * BLOCK_ROWS,
        streams={LOGITS: {"codec": codec.to_dict(), "row_bytes": codec.row_bytes}},
        teacher=teacher.fingerprint(),
        recipe=dataset.recipe.to_dict(),
        dataset={
            "keys_sha256": keys_sha256(dataset.keys),
            "class_names": None if dataset.class_names is None else list(dataset.class_names),
        },
    )


def _create_codec(teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig) -> Codec:
    if teacher.num_classes is None:
        raise ConfigError(f"the teacher {teacher.name!r} does not tell its number of classes: give it a num_classes")
    names = dataset.class_names
    if names is not None and len(names) != teacher.num_classes:
        raise ClassMismatchError(
            f"the teacher {teacher.name!r} has {teacher.num_classes} classes, the dataset {len(names)}: "
            "give the teacher a class_map, or use a teacher trained on those classes"
        )
    return create_codec(config.codec, teacher.num_classes)


def _start(path: Path, teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig) -> Parts:
    metadata = _describe(teacher, dataset, config)
    codec = create_codec(**metadata.streams[LOGITS]["codec"])
    arrays = {DIGEST_NAME: key_digests(dataset.keys), KEYS_NAME: pack_keys(dataset.keys)}
    arrays |= {codec_array_name(LOGITS, name): array for name, array in codec.arrays.items()}
    return Parts.create(parts_folder(path), metadata, arrays)


def _resume(path: Path, teacher: Teacher, dataset: ReplayedDataset, config: BuildConfig) -> Parts | None:
    """The parts of a build that was stopped, or None if none was begun."""
    folder = parts_folder(path)
    if not (folder / "index.h5").is_file():
        return None
    parts = Parts.open(folder)
    _refuse_other(parts.metadata, _describe(teacher, dataset, config), folder)
    durable.remove_leftovers(folder)
    return parts


def _refuse_other(stored: CacheMetadata, current: CacheMetadata, origin: Path) -> None:
    """Compares all that the two were made with; how the rows are cut into shards may differ."""
    then, now = asdict(stored), json.loads(current.to_json())
    for name in ("teacher", "recipe", "dataset", "streams"):
        refuse_mismatch(name, then[name], now[name], f"the cache at {str(origin)!r}")


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
    codec = create_codec(**parts.metadata.streams[LOGITS]["codec"])
    loader = ReplayLoader(
        dataset,
        RangeSampler([(shard.view, shard.start, shard.stop) for shard in missing], config.batch_size),
        teacher.input_normalization,
        device=device,
        num_workers=config.num_workers,
    )
    batches = loader.pixel_batches()
    for shard in missing:
        payload = np.empty((shard.num_rows, codec.row_bytes), dtype=np.uint8)
        pixels: list[int] = []
        for pixel_batch in _batches_of(shard, batches):
            first = int(pixel_batch.row[0]) - shard.start
            payload[first : first + len(pixel_batch.row)] = _encode(teacher, codec, loader, pixel_batch)
            pixels += _hash_pixels(pixel_batch, shard)
            advance(len(pixel_batch.row))
        parts.seal(shard, {LOGITS: payload}, np.asarray(pixels, dtype="<u4"))


def _batches_of(shard: Shard, batches: Iterator[PixelBatch]) -> Iterator[PixelBatch]:
    """The next batches, up to the shard's last row."""
    rows = 0
    while rows < shard.num_rows:
        batch = next(batches)
        rows += len(batch.row)
        yield batch


def _encode(
    teacher: Teacher, codec: Codec, loader: ReplayLoader, pixel_batch: PixelBatch
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The teacher's encoded answers, uint8 [B, row_bytes]."""
    logits = teacher(loader.to_batch(pixel_batch)).logits
    held = codec.can_hold(logits)
    if not held.all():
        bad = [loader.dataset.keys[int(row)] for row in pixel_batch.row[~held.cpu()]]
        raise NonFiniteOutputError(
            f"the teacher {teacher.name!r} said NaN, infinity or what codec {codec.name!r} cannot hold about "
            f"{len(bad)} samples of view {pixel_batch.view}: {', '.join(map(repr, bad[:_NAMED_KEYS]))}"
        )
    encoded: np.ndarray[Any, np.dtype[np.uint8]] = codec.encode(logits).cpu().numpy()
    return encoded


def _hash_pixels(batch: PixelBatch, shard: Shard) -> list[int]:
    """CRC-32 of the pixels of the batch's rows that are to be hashed, in row order."""
    first = int(batch.row[0])
    return [pixel_crc32(batch.images[row - first]) for row in hashed_rows(first, first + len(batch.row))]


def _report(path: Path, *, images_built: int, begun: float) -> BuildReport:
    cache = CachedTeacher(path)
    return BuildReport(path, cache.num_rows, cache.num_views, cache.num_bytes, images_built, time.monotonic() - begun)
