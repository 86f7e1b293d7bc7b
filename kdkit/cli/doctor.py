"""kdkit doctor."""

from __future__ import annotations

import json
from dataclasses import dataclass

from kdkit.cli._parse import parse_config


@dataclass(frozen=True)
class _DoctorConfig:
    """How the findings are printed."""

    json: bool = False
    """Print the findings as one JSON object."""


def run(arguments: list[str]) -> None:
    """Prints versions and devices, and which optional packages are missing."""
    config = parse_config(_DoctorConfig, "doctor", arguments)
    from kdkit.runtime.doctor import doctor
    from kdkit.runtime.layout import print_labelled

    findings = doctor()
    if config.json:
        print(json.dumps(findings, indent=2))
    else:
        print_labelled(findings)
