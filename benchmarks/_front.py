"""The README's tables, made from the newest results: `python benchmarks/run.py --readme` rewrites them.

Each table is in the README between `<!-- figures: NAME -->` and `<!-- end -->`. A test compares them with the results.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from _claims import verdicts
from _result import RESULTS, latest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
BUDGETS = (48, 64, 96, 128, 192)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(row) + " |\n" for row in (header, ["---"] * len(header), *rows))


def ratios(folder: Path) -> str:
    """Targets and measurements."""
    met = {True: "yes", False: "**no**", None: ""}
    rows = [(v.claim.text, v.claim.target, v.shown, met[v.met], v.result) for v in verdicts(folder)]
    return _table(("what", "target", "measured, median (quartiles)", "met", "result"), rows)


def codecs(folder: Path) -> str:
    """Divergence at equal bytes."""
    figures = latest("codecs", folder)["figures"]

    def at_most(prefix: str, budget: int) -> str:
        """KL of the largest format of that name within the budget."""
        fitting = [f for name, f in figures.items() if name.startswith(prefix) and f["bytes"] <= budget]
        return f"{max(fitting, key=lambda f: f['bytes'])['kl']:.3f}"

    rows = [
        ("`lowrank`, the default", *(f"{figures[f'lowrank {budget}']['kl']:.3f}" for budget in BUDGETS)),
        ("`topk`, bit-packed", *(at_most("topk k=", budget) for budget in BUDGETS)),
        ("top-k as float16 value and 16-bit id", *(at_most("published top-", budget) for budget in BUDGETS)),
    ]
    table = _table(("bytes per row (1,000 classes)", *map(str, BUDGETS)), rows)
    exact = " ".join(
        f"`{n}` ({figures[n]['bytes']:,} bytes) loses {figures[n]['kl']:.1e} nats," for n in ("int8", "float16")
    )
    return f"{table}\n{exact} `float32` is exact.\n"


def reading(folder: Path) -> str:
    """Rows per second and bytes per row of each way to store rows."""
    figures = latest("read", folder)["figures"]
    names = [name.removesuffix(": rows/s") for name in figures if name.endswith(": rows/s")]
    rows = []
    for name in names:
        on_disk = figures[f"{name}: bytes a row"]
        rows.append((name, f"{figures[f'{name}: rows/s']:,}", f"{on_disk:,}" if on_disk else "in memory"))
    return _table(("256 random rows of 1,004 bytes, page cache warm", "rows/s", "bytes per row on disk"), rows)


def story(folder: Path) -> str:
    """Scores of the students trained from each cache format."""
    figures = latest("story", folder)["figures"]
    rows = []
    for name, scores in figures.items():
        scored = [f"{scores[f'{part}_{key}']:{form}}" for part in HELD_OUT for key, form in SCORES]
        rows.append((NAMES.get(name, name), f"{scores['bytes']:,.0f}" if "bytes" in scores else "", *scored))
    header = (
        "trained from",
        "bytes",
        *(f"{part}: {score}" for part in HELD_OUT.values() for score in ("KL", "top-1, %")),
    )
    return _table(header, rows)


HELD_OUT = {"new_crop": "new crops", "other_half": "other halves", "held_out": "other photographs"}
NAMES = {
    "untaught": "nothing: initial weights",
    "the taught crops' mean answer": "constant: mean prediction on the training crops",
}
SCORES = (("kl", ".3f"), ("top1", ".1f"))
TABLES: dict[str, Callable[[Path], str]] = {"ratios": ratios, "codecs": codecs, "reading": reading, "story": story}


def fill(text: str, folder: Path = RESULTS) -> str:
    """The README's text with every table as the newest results in `folder` have it."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{_made(match[2], folder)}\n{match[3]}", text)


def _made(name: str, folder: Path) -> str:
    try:
        return TABLES[name](folder)
    except FileNotFoundError as error:
        return f"*Not measured yet: {error}.*\n"


def write() -> None:
    """Rewrites the README's tables."""
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8")
