"""The k likeliest classes of a row; the remaining mass is spread evenly.

Dimensions: B batch, C classes, K entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdkit.cache.codecs.base import Codec, check_logits, check_payload
from kdkit.cache.codecs.bits import BitFields
from kdkit.cache.codecs.entries import EntryFormat
from kdkit.errors import ConfigError
from kdkit.types import SparseLogits

_VALUE_BITS = 8


@dataclass(frozen=True)
class TopKCodec(Codec):
    """K class ids of ceil(log2 C) bits and K + 1 log-probabilities of 8 bits: 24 bytes for k=10 of 1,000 classes.

    KL(teacher || decoded) <= 0.003 + m (log(C - k) - H) for every row, in nats: m is the mass that the teacher gives to
    the other classes and H the entropy of how it spreads that mass.
    """

    name: ClassVar[str] = "topk"
    k: int = 10  # classes kept, 1 to num_classes

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.num_classes:
            raise ConfigError(f"topk keeps 1 to num_classes={self.num_classes} classes, got k={self.k}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return self._fields.num_bytes

    @cached_property
    def _format(self) -> EntryFormat:
        return EntryFormat(self.num_classes, self.k, _VALUE_BITS)

    @cached_property
    def _fields(self) -> BitFields:
        return BitFields(self._format.widths)

    def encode(self, logits: Tensor) -> Tensor:
        """[B, C] float -> uint8 [B, row_bytes]."""
        check_logits(self, logits)
        entries = self._format.quantise(F.log_softmax(logits.float(), dim=1))
        return self._fields.pack(entries.as_fields(), self.row_bytes)

    def decode(self, payload: Tensor) -> Tensor:
        """Uint8 [B, row_bytes] -> log-probabilities [B, C]."""
        ids, kept, rest = self._decode(payload)
        each = rest - math.log(max(1, self._format.others))
        return each.expand(-1, self.num_classes).scatter(1, ids, kept)

    def decode_sparse(self, payload: Tensor) -> SparseLogits:
        """Uint8 [B, row_bytes] -> the same distribution without a tensor [B, C]."""
        ids, kept, rest = self._decode(payload)
        return SparseLogits(ids, kept, self.num_classes, rest.squeeze(1))

    def _decode(self, payload: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class ids and their log-probabilities [B, K], and the log of the remaining mass [B, 1]."""
        check_payload(self, payload)
        entries = self._format.from_fields(self._fields.unpack(payload))
        return entries.ids, *self._format.log_probabilities(entries)
