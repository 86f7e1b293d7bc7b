"""The figures of the README, docs/benchmarks.md and docs/losses, from the newest results.

Each is between `<!-- figures: NAME -->` and `<!-- end -->`; `python benchmarks/run.py --readme` writes them, and a test
compares them with the results.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _claims import verdicts
from _result import RESULTS, latest

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md", *sorted((ROOT / "docs" / "losses").glob("*.md")))
BLOCK = re.compile(r"(<!-- figures: (\w+)(?: (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)
BUDGETS = (48, 64, 96, 128, 192)
WAYS = ("labels alone", "live teacher", "cached teacher")
_IMAGENET, _DIGITS = 1_281_167, 1_347  # training images, of the digits those of the demonstration
WIDTH = 150  # characters of a line


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(row) + " |\n" for row in (header, ["---"] * len(header), *rows))


def ratios(folder: Path) -> str:
    """Targets and measurements."""
    met = {True: "yes", False: "**no**", None: ""}
    rows = [(v.claim.text, v.claim.target, v.shown, met[v.met], v.result) for v in verdicts(folder)]
    return _table(("what", "target", "measured, median (quartiles)", "met", "result"), rows)


def _at_most(figures: Mapping[str, Any], prefix: str, budget: int) -> Mapping[str, Any]:
    """The largest format of that name within the budget of bytes."""
    fitting = [f for name, f in figures.items() if name.startswith(prefix) and f["bytes"] <= budget]
    return max(fitting, key=lambda f: f["bytes"])


def codecs(folder: Path) -> str:
    """Divergence at equal bytes."""
    figures = latest("codecs", folder)["figures"]

    rows = [
        ("`lowrank`, the default", *(f"{figures[f'lowrank {budget}']['kl']:.3f}" for budget in BUDGETS)),
        ("`topk`, bit-packed", *(f"{_at_most(figures, 'topk k=', budget)['kl']:.3f}" for budget in BUDGETS)),
        (
            "top-k as float16 value and 16-bit id",
            *(f"{_at_most(figures, 'published top-', budget)['kl']:.3f}" for budget in BUDGETS),
        ),
        (
            "product quantisation, fitted like `lowrank`",
            *(f"{figures[f'product quantised {budget}']['kl']:.3f}" for budget in BUDGETS),
        ),
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
    return _students(latest("story", folder)["figures"])


def imported(folder: Path) -> str:
    """Scores of the students trained from imported labels and from one's own cache."""
    return _students(latest("imported_students", folder)["figures"])


def _students(figures: Mapping[str, Any]) -> str:
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


def demo(folder: Path) -> str:
    """The result of the demonstration in a paragraph."""
    result = latest("demo", folder)
    found = result["figures"]
    top1 = {way: f"{found[way]['top1']} ± {found[way]['spread']} %" for way in WAYS}
    seconds = {way: f"{found[way]['seconds']:.0f}\N{NO-BREAK SPACE}s" for way in WAYS}
    sentences = (
        f"In the demonstration, with scikit-learn's digits, a small student that has {found['labels']} labels reaches",
        f"{top1['labels alone']}. Trained also on the teacher's outputs for all {_DIGITS:,} images, it reaches",
        f"{top1['live teacher']} with the teacher running and {top1['cached teacher']} from the cache (the teacher had",
        "all labels). A student takes",
        f"{seconds['live teacher']} live and {seconds['cached teacher']} from the cache, whose one build took",
        f"{found['build: seconds']:.0f} s",
        f"({found['seeds']} seeds, {result['date']}).",
    )
    return textwrap.fill(" ".join(sentences), WIDTH).replace("\N{NO-BREAK SPACE}", " ") + "\n"


def points(folder: Path) -> str:
    """What the newest results say of size and speed, as points of a list."""
    codecs, step, build = (latest(name, folder)["figures"] for name in ("codecs", "step", "build"))
    row, same = codecs["lowrank 96"], _at_most(codecs, "topk k=", 96)
    steps = _range(step, "cache over cross-entropy")
    builds = _range(build, "build over bare loop")
    found = (
        f"**Small.** 1,000 classes in {row['bytes']} bytes per view by default: 10 views of ImageNet in "
        f"{_IMAGENET * 10 * row['bytes'] / 1e9:.1f} GB, with a KL of {row['kl']:.3f} nats to the teacher, where top-k "
        f"of the same bytes has {same['kl']:.3f} (EfficientNet-Lite0, crops of 19 photographs; "
        "[benchmarks](docs/benchmarks.md)).",
        f"**Fast.** On two CPU cores, a step of resnet18 or vit_tiny from the cache takes {steps} times as long as one "
        f"on labels alone; a build runs at {builds} times the speed of a bare loop of the teacher.",
    )
    return "".join(textwrap.fill(f"- {point}", WIDTH, subsequent_indent="  ") + "\n" for point in found)


def _range(figures: Mapping[str, Any], ending: str) -> str:
    """The smallest and the largest median of the ratios with this ending, as far as two digits tell them apart."""
    medians = [f"{figure['median']:.2f}" for name, figure in figures.items() if name.endswith(ending)]
    return " to ".join(sorted({min(medians), max(medians)}))


HELD_OUT = {"new_crop": "new crops", "other_half": "other halves", "held_out": "other photographs"}
NAMES = {
    "untaught": "nothing: initial weights",
    "the taught crops' mean answer": "constant: mean prediction on the training crops",
}
SCORES = (("kl", ".3f"), ("top1", ".1f"))


def cost(folder: Path, loss: str) -> str:
    """Time and memory of a loss, alone and with each of its options that was measured."""
    result, rows, plain = latest("losses", folder), [], "`log_softmax` twice and `kl_div`"
    figures = result["figures"]
    for figure in (name for name in figures if name.endswith(": ms")):
        shape, name = figure.removesuffix(": ms").rsplit(": ", 1)
        if loss in (part.split()[0] for part in name.split(", ")):
            values = [figures[f"{shape}: {name}: {column}"] for column in ("ms", "time", "MiB", "memory")]
            values[1] = values[1]["median"]
            inputs, _, baseline = shape.partition("; plain is ")
            plain = baseline.replace("mse_loss", "`mse_loss`") or plain
            rows.append((name, inputs.removesuffix(", float32"), *(_three_digits(value) for value in values)))
    link = f"[{result['date']}](../../benchmarks/results/{result['date']}-losses.md)"
    lead = f"""Forward and backward on one CPU thread in float32, beyond inputs and parameters; the ratios are to
        {plain} ({link}, `python benchmarks/losses.py`)."""
    table = _table(("loss", "input", "ms", "time ratio", "MiB", "memory ratio"), rows)
    return f"{textwrap.fill(' '.join(lead.split()), WIDTH)}\n\n{table}"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


FIGURES: dict[str, Callable[..., str]] = {
    "cost": cost,
    "demo": demo,
    "points": points,
    "ratios": ratios,
    "codecs": codecs,
    "reading": reading,
    "story": story,
    "imported": imported,
}


def fill(text: str, folder: Path = RESULTS) -> str:
    """The text of a page with every figure as the newest results in `folder` have it."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{_made(match[2], match[3], folder)}\n{match[4]}", text)


def _made(name: str, of: str | None, folder: Path) -> str:
    try:
        return FIGURES[name](folder, *([of] if of else []))
    except FileNotFoundError as error:
        return f"*Not measured yet: {error}.*\n"


def write() -> None:
    """Rewrites the figures of the pages."""
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
