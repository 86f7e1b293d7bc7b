"""ShardEncoder: encodes the teacher's outputs while the teacher runs on its next batch.

Dimensions: B batch, R rows of a shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kdkit.building.teacher import check_encodable
from kdkit.cache.codecs import RowCodec
from kdkit.cache.encoding import encode_in_parts, measure_in_parts
from kdkit.cache.format.metadata import CacheMetadata, Shard
from kdkit.cache.shards.writer import ShardWriter
from kdkit.cache.types import Array
from kdkit.data import PixelBatch
from kdkit.runtime.background import Worker

_WAITING = 2  # batches that may wait to be encoded; bounds the memory, on the device too


@dataclass
class _OpenShard:
    """A shard of which some rows are encoded."""

    payloads: dict[str, Array]
    """Stream -> encoded rows, uint8 [R, row_bytes]."""
    fidelity: dict[str, list[Array]]
    """Stream -> fidelity of the measured rows, batch by batch."""
    rows_left: int
    pixels: list[int] = field(default_factory=list)
    """CRC-32 of the hashed rows."""


class ShardEncoder(Worker):
    """Encodes batches in order, copies them to the host and hands whole shards to a writer, in one thread.

    On a GPU it works on a side stream, which waits only for the teacher's output of the batch, and copies through
    page-locked memory, so that the teacher's next batch is not held up. Several shards may be open at a time. Fails as
    Background does; shards that a failure left incomplete are dropped.

    Args:
        metadata: tells on which rows fidelity is measured.
        codecs: stream -> its codec, fitted.
        writer: takes the shards.
        teacher: the teacher's name, for errors.
        keys: the keys of the dataset's samples, for errors.
        device: where the outputs are.
    """

    def __init__(
        self,
        metadata: CacheMetadata,
        codecs: Mapping[str, RowCodec],
        writer: ShardWriter,
        teacher: str,
        keys: Sequence[str],
        device: torch.device,
    ) -> None:
        super().__init__("kdkit-encoder", _WAITING)
        self._metadata = metadata
        self._codecs = codecs
        self._writer = writer
        self._teacher = teacher
        self._keys = keys
        # Of high priority, because its many small kernels would otherwise queue behind the teacher's large ones.
        self._side = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self._open: dict[Shard, _OpenShard] = {}

    def submit(self, shard: Shard, pixels: PixelBatch, outputs: Mapping[str, Tensor]) -> None:
        """Queues a batch of `shard`, and waits while too many are queued.

        Args:
            shard: the shard that the batch is part of.
            pixels: the batch.
            outputs: stream -> [B, ...]; the caller must not change them any more.
        """
        ready = None
        if self._side is not None:
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(self._side.device))
        self._thread.submit(partial(self._encode, shard, pixels, outputs, ready))

    def _encode(
        self, shard: Shard, pixels: PixelBatch, outputs: Mapping[str, Tensor], ready: torch.cuda.Event | None
    ) -> None:
        opened = self._open.get(shard) or self._begin(shard)
        rows = pixels.row.numpy() - shard.start
        with torch.no_grad(), self._after(ready):
            for stream, codec in self._codecs.items():
                check_encodable(outputs[stream], codec, stream, self._teacher, self._keys, pixels)
                encoded = encode_in_parts(codec, outputs[stream])
                opened.payloads[stream][rows] = self._to_host(encoded)
                if self._metadata.measures_views(stream):
                    opened.fidelity[stream].append(self._measure(stream, pixels, outputs[stream], encoded))
        opened.pixels += [crc32 for crc32 in pixels.pixel_crc32.tolist() if crc32 >= 0]
        opened.rows_left -= len(rows)
        if opened.rows_left == 0:
            del self._open[shard]
            fidelity = {stream: np.concatenate(pieces) for stream, pieces in opened.fidelity.items()}
            self._writer.submit(shard, opened.payloads, np.asarray(opened.pixels, dtype="<u4"), fidelity)

    def _begin(self, shard: Shard) -> _OpenShard:
        payloads = {
            stream: np.empty((shard.num_rows, codec.row_bytes), dtype=np.uint8)
            for stream, codec in self._codecs.items()
        }
        fidelity: dict[str, list[Array]] = {
            stream: [] for stream in self._codecs if self._metadata.measures_views(stream)
        }
        self._open[shard] = _OpenShard(payloads, fidelity, shard.num_rows)
        return self._open[shard]

    def _measure(self, stream: str, pixels: PixelBatch, values: Tensor, encoded: Tensor) -> Array:
        """Fidelity of the measured rows of the batch, float32 [rows, measures]."""
        first = int(pixels.row[0])
        measured = self._metadata.measured_rows(stream, first, first + len(pixels.row))
        here = slice(measured.start - first, None, measured.step)
        return measure_in_parts(self._codecs[stream], values[here], encoded[here])

    @contextmanager
    def _after(self, ready: torch.cuda.Event | None) -> Iterator[None]:
        """Puts the context's work on the side stream, after the teacher's output; does nothing on a CPU."""
        if self._side is None or ready is None:
            yield
            return
        with torch.cuda.stream(self._side):
            self._side.wait_event(ready)
            yield  # the caller holds the outputs until they are copied, so that their memory is not reused

    def _to_host(self, payload: Tensor) -> Array:
        if self._side is None:
            return payload.cpu().numpy()
        host = torch.empty(payload.shape, dtype=payload.dtype, pin_memory=True)
        host.copy_(payload, non_blocking=True)
        self._side.synchronize()
        return host.numpy()
