"""kdkit cache import."""

from __future__ import annotations

from shlex import quote

from kdkit.cli._defaults import of_import
from kdkit.cli._parse import parse_config
from kdkit.config import name_data
from kdkit.importers.config import CacheImportConfig


def run(arguments: list[str]) -> None:
    """Imports another project's cache, or arrays of labels; resumes an import that was stopped."""
    positionals = {"FORMAT": "format", "SOURCE": "source", "DATA": "data"}
    config = parse_config(CacheImportConfig, "cache import", arguments, positionals, defaults=of_import)
    from importlib import import_module

    from kdkit.cli._header import describe_agreement, find_agreement
    from kdkit.data import create_source
    from kdkit.dataset import open_dataset
    from kdkit.importers import IMPORTERS
    from kdkit.runtime.hardware import choose_workers
    from kdkit.runtime.layout import print_labelled, print_wrapped

    module, function = IMPORTERS[config.format]
    importer = getattr(import_module(module), function)
    source = create_source(config.data, **config.columns)
    report = importer(
        config.source,
        source,
        config.output,
        codec=config.codec,
        num_workers=choose_workers(config.num_workers),
        show_progress=True,
        **config.options_of(importer),
    )
    print_wrapped(str(report))
    dataset = open_dataset(source, cache=report.path)
    agreement = find_agreement(report.path, report.num_rows, dataset)
    print_labelled(describe_agreement(agreement))
    if agreement is not None and agreement.cause is not None:
        return  # nothing to train from
    loss = " --loss sigmoid_kl" if dataset.is_multi_label else ""
    flags = f"{config.data_flags} --cache {quote(str(report.path))}{loss} --student resnet18 -o runs/resnet18"
    print(f"next: kdkit distill {name_data(config.data)}{flags}")
