"""Codecs: fixed bytes a row, encode and decode for whole batches on any device."""

from kdkit.cache.codecs.base import Codec
from kdkit.cache.codecs.dense import Float16Codec, Float32Codec, Int8Codec
from kdkit.cache.codecs.registry import available_codecs, create_codec, default_codec

__all__ = ["Codec", "Float16Codec", "Float32Codec", "Int8Codec", "available_codecs", "create_codec", "default_codec"]
