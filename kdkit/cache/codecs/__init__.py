"""Codecs: fixed bytes per row, encode and decode for whole batches on any device."""

from kdkit.cache.codecs.base import Codec, RowCodec
from kdkit.cache.codecs.compact import CompactFeature
from kdkit.cache.codecs.dense import Float16Codec, Float32Codec, Int8Codec
from kdkit.cache.codecs.dense_feature import DenseFeature
from kdkit.cache.codecs.feature import FeatureCodec, Float16Feature, Float32Feature, Int8Feature
from kdkit.cache.codecs.head import HeadCodec
from kdkit.cache.codecs.lowrank import LowRankCodec
from kdkit.cache.codecs.registry import (
    available_codecs,
    available_feature_codecs,
    codec_from_dict,
    codec_of_size,
    create_codec,
    create_feature_codec,
    default_codec,
    feature_codec_for,
    known_codecs,
    multi_label_codec,
    register_codec,
)
from kdkit.cache.codecs.sparse import SparseFeature
from kdkit.cache.codecs.topk import TopKCodec

__all__ = [
    "Codec",
    "CompactFeature",
    "DenseFeature",
    "FeatureCodec",
    "Float16Codec",
    "Float16Feature",
    "Float32Codec",
    "Float32Feature",
    "HeadCodec",
    "Int8Codec",
    "Int8Feature",
    "LowRankCodec",
    "RowCodec",
    "SparseFeature",
    "TopKCodec",
    "available_codecs",
    "available_feature_codecs",
    "codec_from_dict",
    "codec_of_size",
    "create_codec",
    "create_feature_codec",
    "default_codec",
    "feature_codec_for",
    "known_codecs",
    "multi_label_codec",
    "register_codec",
]
