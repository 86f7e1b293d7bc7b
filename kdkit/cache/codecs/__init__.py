"""Codecs: fixed bytes a row, encode and decode for whole batches on any device."""

from kdkit.cache.codecs.base import Codec
from kdkit.cache.codecs.dense import Float16Codec, Float32Codec, Int8Codec
from kdkit.cache.codecs.lowrank import LowRankCodec
from kdkit.cache.codecs.registry import available_codecs, create_codec, default_codec
from kdkit.cache.codecs.topk import TopKCodec

__all__ = [
    "Codec",
    "Float16Codec",
    "Float32Codec",
    "Int8Codec",
    "LowRankCodec",
    "TopKCodec",
    "available_codecs",
    "create_codec",
    "default_codec",
]
