"""Sample keys in a cache: 128-bit digests to find rows by, and the keys themselves to name what is missing.

Dimensions: R rows of the cache, N samples of a dataset.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from kdkit.cache.types import Array
from kdkit.errors import CacheCorruptError, CacheMismatchError, DatasetError

_SEPARATOR = "\0"
_SHOWN = 1024  # characters of a key in an error; names of files are shorter
_PIECE = 1 << 20
_NAMED = 3  # number of samples that an error names
_MAX_KEYS_BYTES, _MAX_MEAN_KEY_BYTES = 4 << 30, 4096  # limits of a reader: all keys together, and their mean
MAX_ABSENT_BYTES = 64 << 20
"""Limit of the keys of absent samples, whose number no other part of a file bounds."""


def key_digests(keys: Sequence[str]) -> Array:
    """BLAKE2b digests of the keys, uint8 [N, 16]."""
    joined = b"".join(hashlib.blake2b(_encode(key), digest_size=16).digest() for key in keys)
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(keys), 16)


def keys_sha256(keys: Sequence[str]) -> str:
    """SHA-256 of all keys in their order."""
    return hashlib.sha256(_encode(_SEPARATOR.join(keys))).hexdigest()


def check_unique_keys(keys: Sequence[str]) -> None:
    """Checks that no key occurs twice, since a dataset's samples are matched with rows by their keys.

    Raises:
        DatasetError: names the repeated keys.
    """
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twice = [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        raise DatasetError(f"{len(twice)} sample keys occur twice ({list_keys(twice)}): give each sample its own key")


def pack_keys(keys: Sequence[str], max_bytes: int = _MAX_KEYS_BYTES) -> Array:
    """All keys, joined by NUL and zlib-compressed, uint8 [bytes]; unpacked they may take `max_bytes`.

    Raises:
        DatasetError: a key holds NUL, or the keys are longer than a reader accepts.
    """
    for key in keys:
        if _SEPARATOR in key:
            raise DatasetError(f"the sample key {key!r} holds a NUL character, which no key may")
    joined = _encode(_SEPARATOR.join(keys))
    if len(joined) > (most := _most_bytes(len(keys), max_bytes)):
        raise DatasetError(
            f"the {len(keys)} sample keys take {len(joined)} bytes, a cache holds up to {most} "
            f"({_MAX_MEAN_KEY_BYTES} a key on average): shorten them, first {max(keys, key=len)[:80]!r}"
        )
    return np.frombuffer(zlib.compress(joined, 6), dtype=np.uint8)


def unpack_keys(packed: Array, num_rows: int, origin: str = "the cache", max_bytes: int = _MAX_KEYS_BYTES) -> list[str]:
    """Inverse of `pack_keys`; raises CacheCorruptError, which names `origin`, unless there are `num_rows` keys."""
    joined = _unpack(packed, num_rows, origin, max_bytes)
    return joined.decode("utf-8", "surrogateescape").split(_SEPARATOR) if num_rows else []


def _unpack(packed: Array, num_rows: int, origin: str, max_bytes: int) -> bytes:
    """The joined keys, unpacked piece by piece and counted, so that no more is unpacked than `num_rows` keys take."""
    decompressor, pieces = zlib.decompressobj(), []
    num_bytes, num_keys, waiting = 0, min(num_rows, 1), packed.tobytes()
    most = _most_bytes(num_rows, max_bytes)
    try:
        while not decompressor.eof and num_bytes <= most and num_keys <= num_rows:
            piece = decompressor.decompress(waiting, _PIECE)
            waiting = decompressor.unconsumed_tail
            if not piece and not waiting:
                break
            pieces.append(piece)
            num_bytes += len(piece)
            num_keys += piece.count(_SEPARATOR.encode())
    except zlib.error as error:
        raise CacheCorruptError(f"{origin}: the keys cannot be unpacked: {error}") from None
    if not decompressor.eof or num_keys != num_rows or num_bytes > most:
        raise CacheCorruptError(f"{origin} does not hold the expected {num_rows} keys")
    return b"".join(pieces)


def _most_bytes(num_rows: int, max_bytes: int) -> int:
    return min(max_bytes, _MAX_MEAN_KEY_BYTES * max(1, num_rows))


def match_rows(cache_digests: Array, dataset_digests: Array) -> Array:
    """For each dataset sample the first cache row with its digest, or -1: int64 [N], from uint8 [R, 16] and [N, 16]."""
    words = np.concatenate([cache_digests, dataset_digests]).view("<u8")
    order = np.lexsort((words[:, 1], words[:, 0]))  # stable: of equal digests the cache's come first
    ordered = words[order]
    begins = np.ones(len(order), dtype=bool)  # of a run of equal digests
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    rows = np.empty(len(order), dtype=np.int64)
    rows[order] = order[begins][begins.cumsum() - 1]  # the first of its run
    rows[rows >= len(cache_digests)] = -1
    return rows[len(cache_digests) :]


def check_same_samples(cached: Sequence[str], current: Sequence[str], origin: str) -> None:
    """Raises CacheMismatchError that names the samples which only the cache or only the dataset has, if any."""
    for these, those, what in ((current, cached, "not in it"), (cached, current, "missing now")):
        known = set(those)
        odd = [key for key in these if key not in known]
        if odd:
            raise CacheMismatchError(
                f"{origin} was made from another dataset: {len(odd)} of {len(these)} samples are {what} "
                f"({list_keys(odd)}): use the same images, or build another cache"
            )


def list_keys(keys: Sequence[str], number: int | None = None) -> str:
    """The first keys of `number` (by default of all), for an error."""
    listed = ", ".join(repr(key) if len(key) <= _SHOWN else f"{key[:_SHOWN]!r}..." for key in keys[:_NAMED])
    more = (len(keys) if number is None else number) - _NAMED
    return f"{listed} and {more} more" if more > 0 else listed


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
