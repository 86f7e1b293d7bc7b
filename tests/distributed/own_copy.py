"""Run by torchrun: a kdkit command in which {rank} in an argument is the number of the rank, so that each has a copy.

With REVERSED in the environment, rank 1 lists the classes in the reverse order.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import kdkit.dataset
from kdkit.cli import main


def reverse_classes() -> None:
    create = kdkit.dataset.create_source

    def reversed_source(*arguments: Any, **options: Any) -> Any:
        source = create(*arguments, **options)
        source.class_names = list(source.class_names)[::-1]
        source.targets = [len(source.class_names) - 1 - target for target in source.targets]
        return source

    kdkit.dataset.create_source = reversed_source


if __name__ == "__main__":
    if "REVERSED" in os.environ and os.environ["RANK"] == "1":
        reverse_classes()
    sys.exit(main([argument.replace("{rank}", os.environ["RANK"]) for argument in sys.argv[1:]]))
