"""The outputs of a cache do not change within an autocast, where a training loop may read it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import digits_dataset, loader_for, tiny_model

from kdkit import build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "topk", "lowrank"])
def test_autocast_changes_nothing_that_is_decoded(codec: str, tmp_path: Path) -> None:
    dataset = digits_dataset(64)
    options = {"k": 4} if codec == "topk" else {"row_bytes": 12} if codec == "lowrank" else {}
    config = BuildConfig(codec=codec, codec_options=options, num_workers=0)
    build_cache(create_teacher(tiny_model()), dataset, tmp_path / "t.h5", config)
    cache = open_cache(tmp_path / "t.h5", dataset)
    batch = next(iter(loader_for(dataset, tiny_model())))
    expected = cache(batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        logits = cache(batch).logits
    assert logits is not None
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)
