"""kdkit cache build."""

from __future__ import annotations

import sys
from shlex import quote

from kdkit.building.config import CacheBuildConfig
from kdkit.cli import _defaults
from kdkit.cli._parse import parse_config
from kdkit.config import name_data


def run(arguments: list[str]) -> None:
    """Builds a cache, or resumes a build that was stopped."""
    config = parse_config(CacheBuildConfig, "cache build", arguments, {"DATA": "data"}, _defaults.of_build)
    from kdkit.building.build import build_cache
    from kdkit.building.like import open_like
    from kdkit.building.shards import RANK_TIMEOUT
    from kdkit.cache.format.constants import LOGITS
    from kdkit.cache.places import check_writable
    from kdkit.cli._header import describe_build, describe_built
    from kdkit.data.ranks import open_on_all_ranks
    from kdkit.dataset import open_dataset
    from kdkit.precision import choose_autocast
    from kdkit.resolve import resolve_device, resolve_teacher
    from kdkit.runtime import distributed
    from kdkit.runtime.layout import print_labelled

    with distributed.process_group(config.device, timeout=RANK_TIMEOUT):
        device = resolve_device(config.device)
        check_writable(config.output)  # before the teacher is loaded
        like = config.like
        dataset = open_on_all_ranks(
            lambda: (
                open_dataset(config.data, recipe=config.recipe, **config.columns)
                if like is None
                else open_like(config.data, like, **config.columns)
            )
        )
        wanted, needs_logits = dataset.class_names, LOGITS in config.build.streams
        teacher = distributed.run_on_all_ranks(
            lambda: resolve_teacher(config.teacher, device, wanted, needs_logits=needs_logits)
        )
        if config.teacher.takes_any_precision:
            teacher, precision = choose_autocast(
                teacher, dataset, config.build.streams, device, is_exact=config.build.codec == "float32"
            )
        else:
            precision = config.teacher.autocast or config.teacher.dtype or "float32"
        if distributed.rank() == 0:
            header = describe_build(
                teacher, precision, dataset, name_data(config.data), config.build, device, config.output
            )
            print_labelled(header, file=sys.stderr)
        report = build_cache(
            teacher,
            dataset,
            config.output,
            config.build,
            device=device,
            allow_mismatch=config.allow_mismatch,
            show_progress=True,
            engine=config.engine,
            actors=config.actors,
        )
        if distributed.rank() != 0:
            return
    print_labelled(describe_built(report, None if config.allow_mismatch else dataset))
    loss = " --loss sigmoid_kl" if dataset.is_multi_label else "" if needs_logits else " --loss hint_mse"
    flags = f"{config.data_flags} --cache {quote(str(report.path))}{loss} --student resnet18 -o runs/r18"
    print(f"next: kdkit distill {name_data(config.data)}{flags}")
