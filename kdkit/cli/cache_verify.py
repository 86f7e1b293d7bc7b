"""kdkit cache verify."""

from __future__ import annotations

from kdkit.building.config import CacheVerifyConfig
from kdkit.cli._parse import parse_config
from kdkit.config import name_data


def run(arguments: list[str]) -> None:
    """Compares every checksum, and rows with the teacher's outputs."""
    config = parse_config(CacheVerifyConfig, "cache verify", arguments, {"FILE": "cache", "[DATA]": "data"})
    from kdkit.building.verify import verify_cache
    from kdkit.cache import open_cache
    from kdkit.dataset import open_dataset
    from kdkit.errors import ConfigError
    from kdkit.resolve import as_made, describe_teacher, load_teacher_of_cache, resolve_device, resolve_teacher
    from kdkit.runtime.layout import print_wrapped

    teacher, dataset, device, reason = None, None, resolve_device(config.device), None
    if config.data is not None:
        cache = open_cache(config.cache)
        dataset = open_dataset(config.data, recipe=cache.recipe, records=cache, **config.columns)
        if config.teacher is not None:
            needs_logits = "logits" in cache.codecs
            names = dataset.class_names if cache.names_classes else None
            named = as_made(config.teacher, cache.teacher)
            teacher = resolve_teacher(named, device, names, needs_logits=needs_logits)
        else:
            try:
                teacher = load_teacher_of_cache(cache.teacher, device)
            except ConfigError as error:
                reason = str(error)
    report = verify_cache(
        config.cache, teacher, dataset, num_rows=config.rows, device=device, allow_mismatch=config.allow_mismatch
    )
    print_wrapped(f"{config.cache}: all checksums of {report.num_rows:,} rows x {report.num_views} views match")
    if config.data is not None and not report.num_files:
        print_wrapped(
            f"{name_data(config.data)}: images not compared, because the cache has no records of such content"
        )
    elif config.data is not None:
        print_wrapped(f"{name_data(config.data)}: all {report.num_files:,} images are those of the build")
    if report.labels is not None:
        print_wrapped(f"labels: {report.labels.describe()}")
    if teacher is not None:
        print_wrapped(f"teacher: {describe_teacher(teacher)}")
    elif reason is not None:
        print_wrapped(f"teacher: not run again, so its outputs are not compared: {reason}")
    if report.unexplained:
        print_wrapped(
            f"logits: close to the teacher's outputs, but not within its precision ({report.unexplained:.2%} of what "
            "images differ by); no known fault explains the difference"
        )
    for stream, difference in report.differences.items():
        if report.unexplained and stream == "logits":
            continue
        unit = "nats" if stream == "logits" else "of their size"
        text = (
            f"{report.rows_compared} random rows match the teacher's outputs within {difference:.2g} {unit} on average"
        )
        print_wrapped(f"{stream}: {text}")
    for view, divergence in report.divergence.items():
        print(f"view {view}: mean KL(teacher || cache) {divergence:.2g} nats")
