"""kdkit teachers check."""

from __future__ import annotations

import sys

from kdkit.cli._parse import parse_config
from kdkit.evaluation.config import TeachersCheckConfig


def run(arguments: list[str]) -> None:
    """Prints a teacher's top-1 on labelled images beside its card's."""
    config = parse_config(TeachersCheckConfig, "teachers check", arguments)
    from kdkit.evaluation.teacher import check_recipe, check_teacher
    from kdkit.resolve import card_of, resolve_card, resolve_dataset, resolve_device, resolve_teacher

    card, device = card_of(config), resolve_device(config.device)
    if config.teacher is not None:
        teacher, input_size = resolve_teacher(config.teacher, device), config.teacher.input_size
    else:
        assert card is not None
        teacher, input_size = resolve_card(card, device, checkpoint=config.checkpoint), None
    dataset = resolve_dataset(config.data, check_recipe(card, teacher, input_size))
    report = check_teacher(
        teacher,
        dataset,
        card,
        limit=config.limit,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        device=device,
    )
    print(f"teacher      {report.teacher}")
    print(f"images       {report.num_images:,} of {len(dataset):,}, {dataset.recipe.size} pixels")
    print(f"top-1        {report.top1:.2f} %")
    if report.published is not None:
        print(f"published    {report.published.percent:.2f} % at {report.published.input_size} pixels")
    if report.warning is not None:
        print(f"kdkit: warning: {report.warning}", file=sys.stderr)
