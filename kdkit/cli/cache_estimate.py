"""kdkit cache estimate."""

from __future__ import annotations

from kdkit.cli._parse import parse_config
from kdkit.config import CacheEstimateConfig


def run(arguments: list[str]) -> None:
    """Prints what a cache would cost."""
    config = parse_config(CacheEstimateConfig, "cache estimate", arguments)
    from kdkit.engine.estimate import estimate_cache
    from kdkit.engine.resolve import resolve_dataset, resolve_device, resolve_teacher

    device = resolve_device(config.device)
    dataset = resolve_dataset(config.data, config.recipe)
    found = estimate_cache(resolve_teacher(config.teacher, device), dataset, config.build, device=device)
    print(f"bytes        {found.num_bytes:,} ({found.row_bytes} a row; twice as many while it is packed)")
    print(f"images       {found.images:,} ({len(dataset):,} samples x {dataset.recipe.num_views} views)")
    print(f"time         {found.seconds:,.0f} s at {found.images_per_second:,.0f} images/s")
    kl, top1 = found.fidelity["kl_mean_t1"], found.fidelity["top1_agreement"]
    print(f"fidelity     mean KL {kl:.2g} nats, top-1 kept {top1:.2%}")
