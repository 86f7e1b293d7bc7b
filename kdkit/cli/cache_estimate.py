"""kdkit cache estimate."""

from __future__ import annotations

from kdkit.building.config import CacheEstimateConfig
from kdkit.cli import _defaults
from kdkit.cli._parse import parse_config


def run(arguments: list[str]) -> None:
    """Prints what a cache would cost."""
    config = parse_config(CacheEstimateConfig, "cache estimate", arguments, {"DATA": "data"}, _defaults.of_build)
    from kdkit.building.estimate import describe_break_even, estimate_cache
    from kdkit.cache.format.constants import LOGITS
    from kdkit.cache.summary import describe_bytes, describe_fidelity
    from kdkit.dataset import open_dataset
    from kdkit.precision import choose_autocast
    from kdkit.resolve import resolve_device, resolve_teacher
    from kdkit.runtime.layout import format_rate, print_labelled

    device = resolve_device(config.device)
    dataset = open_dataset(config.data, recipe=config.recipe, **config.columns)
    teacher = resolve_teacher(config.teacher, device, dataset.class_names, needs_logits=LOGITS in config.build.streams)
    if config.teacher.takes_any_precision:
        teacher, _ = choose_autocast(
            teacher, dataset, config.build.streams, device, is_exact=config.build.codec == "float32"
        )
    found = estimate_cache(teacher, dataset, config.build, device=device, show_progress=True)
    made_of = describe_bytes(found.images * found.row_bytes)
    speeds, views = found.speeds, dataset.recipe.num_views
    workers = f"{config.build.workers} loader worker{'' if config.build.workers == 1 else 's'}"
    lines = {
        "bytes": f"{found.num_bytes:,} ({made_of}; twice as many while it is packed)",
        "images": f"{found.images:,} ({len(dataset):,} samples x {dataset.recipe.num_views} views)",
        "time": f"{found.seconds:,.0f} s at {format_rate(found.images_per_second)} images/s",
    }
    lines |= {
        "an image": f"decode {1e3 * speeds.decode:.2g} ms, transform {1e3 * speeds.transform:.2g} ms, teacher "
        f"{1e3 * speeds.teacher:.2g} ms, encode {1e3 * speeds.encode:.2g} ms, one at a time",
        "disk": f"writes {speeds.write / 2**20:,.0f} MiB/s, reads {speeds.read / 2**20:,.0f} MiB/s here",
        "limit": f"{found.limit}, with {workers} and one decode for {found.views_per_decode} of {views} views",
        "break-even": describe_break_even(found, views),
        "how many": "50 views were as good as 400 for ResNet-50d over 150 epochs on ImageNet (apple/ml-dr)",
    }
    several = dataset.is_multi_label
    print_labelled(
        lines | {name: describe_fidelity(kept, multi_label=several) for name, kept in found.fidelity.items()}
    )
