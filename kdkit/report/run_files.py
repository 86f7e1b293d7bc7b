"""The files of a run's folder, read as far as they go: a run may be old, cut off in the middle, or another tool's."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdkit.errors import ConfigError
from kdkit.runtime.reading import open_regular, read_json, read_yaml

Record = dict[str, Any]

METRICS, SUMMARY, CONFIG, STUDENT = "metrics.jsonl", "summary.csv", "config.yaml", "student.json"
TIMM_CONFIG = "args.yaml"
_MARKS = (METRICS, SUMMARY, CONFIG, STUDENT, TIMM_CONFIG)
_TIMM_COLUMNS = {"train_loss": "loss", "eval_loss": "val_loss", "eval_top1": "val_top1", "eval_top5": "val_top5"}
_TIMM_OPTIONS = {"model": "student", "data_dir": "data"}
_CONTEXT = "seed"  # of a folder that holds several runs: their number; besides, every field of text tells them apart
_MAX_JSON_BYTES, _MAX_ALIASES = 16 << 20, 1000
_STEP = '"kind": "step"'


@dataclass
class Run:
    """One run, as its files describe it."""

    folder: Path
    """Folder of the files."""
    context: tuple[str, ...] = ()
    """What tells this run from the others of the same folder; empty if it is the only one."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The run's configuration; empty if there is none to read."""
    student: Mapping[str, Any] = field(default_factory=dict)
    """How its student is made; empty if there is none to read."""
    epochs: list[Record] = field(default_factory=list)
    """One record per epoch, in order."""
    steps: list[Record] = field(default_factory=list)
    """Records of steps, evenly thinned; empty if `max_steps` is 0."""
    problems: list[str] = field(default_factory=list)
    """What could not be read, one line each."""

    @property
    def name(self) -> str:
        """The folder, and what tells this run from the others in it."""
        return f"{self.folder} [{', '.join(self.context)}]" if self.context else str(self.folder)


def read_runs(paths: Sequence[str | Path], *, max_steps: int = 0) -> tuple[list[Run], list[str]]:
    """The runs at `paths`, and one line for each path that holds none.

    Args:
        paths: folders of runs, or folders of such folders.
        max_steps: records of steps that are kept of each run, evenly spread.

    Raises:
        ConfigError: none of the paths holds a run.
    """
    runs, problems = [], []
    seen: set[Path] = set()
    for path in map(Path, paths):
        folders = _find_folders(path)
        if not folders:
            expected = "a folder" if not path.is_dir() else f"{METRICS} or {SUMMARY}, as kdkit distill leaves them"
            found = "does not exist" if not path.exists() else "is not a run"
            problems.append(f"{str(path)!r} {found}: expected {expected}")
        for folder in folders:
            if (place := folder.resolve()) in seen:  # named twice, e.g. by itself and by the folder that holds it
                continue
            seen.add(place)
            runs += _read_folder(folder, max_steps)
    if problems and not seen:
        raise ConfigError(problems[0])
    return runs, problems


def _find_folders(path: Path) -> list[Path]:
    if _is_run(path):
        return [path]
    return sorted(folder for folder in path.iterdir() if _is_run(folder)) if path.is_dir() else []


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _MARKS)


def _read_folder(folder: Path, max_steps: int) -> list[Run]:
    """The run of a folder, or each of those that it holds."""
    problems: list[str] = []
    epochs, steps = _read_metrics(folder / METRICS, max_steps, problems)
    if not epochs:
        epochs = _read_csv(folder / SUMMARY, problems)
    config = _read_document(folder / CONFIG, problems)
    if not config:
        timm = _read_document(folder / TIMM_CONFIG, problems)
        config = {_TIMM_OPTIONS.get(name, name): value for name, value in timm.items()}
    student = _read_document(folder / STUDENT, problems)
    if not epochs:
        problems.append(f"{str(folder)!r} has no finished epoch")
    contexts = list(dict.fromkeys(map(_context, [*epochs, *steps]))) or [()]
    shared: dict[str, Any] = {"folder": folder, "config": config, "student": student, "problems": problems}
    if len(contexts) == 1:
        return [Run(epochs=_in_order(epochs), steps=steps, **shared)]
    return [
        Run(
            context=context,
            epochs=_in_order([record for record in epochs if _context(record) == context]),
            steps=[record for record in steps if _context(record) == context],
            **shared,
        )
        for context in contexts
    ]


def _context(record: Record) -> tuple[str, ...]:
    seed = record.get(_CONTEXT)
    number = () if seed is None or isinstance(seed, (str, list, dict)) else (f"{seed:g}",)
    return (*(value for value in record.values() if _is_text(value)), *number)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _in_order(epochs: list[Record]) -> list[Record]:
    """By number; of an epoch that was logged twice, the later record."""
    return [record for _, record in sorted({record["epoch"]: record for record in epochs}.items())]


def _read_metrics(path: Path, max_steps: int, problems: list[str]) -> tuple[list[Record], list[Record]]:
    epochs: list[Record] = []
    steps = _Thinned(max_steps)
    damaged = 0
    for line in _lines(path, problems):
        is_step = _STEP in line[:40]
        if not line.strip() or (is_step and not steps.wants_next()):
            continue
        record = _parse(line)
        if record is None or not _is_counted(record, "epoch"):
            damaged += 1
        elif record.pop("kind", "epoch") != "step":
            epochs.append(record)
        elif _is_counted(record, "step"):
            steps.add(record)
    if damaged:
        problems.append(f"{str(path)!r}: {damaged} line{'s' * (damaged > 1)} cut off or damaged; the others are read")
    return epochs, steps.kept


def _is_counted(record: Record, name: str) -> bool:
    """Whether a record has the number of its epoch or step, from 0."""
    number = record.get(name)
    return isinstance(number, (int, float)) and not isinstance(number, bool) and number >= 0


class _Thinned:
    """At most twice `limit` records, every 1st, 2nd, 4th ... of those that came."""

    def __init__(self, limit: int) -> None:
        self.kept: list[Record] = []
        self._limit, self._stride, self._seen = limit, 1, 0

    def wants_next(self) -> bool:
        self._seen += 1
        return self._limit > 0 and (self._seen - 1) % self._stride == 0

    def add(self, record: Record) -> None:
        self.kept.append(record)
        if len(self.kept) >= 2 * self._limit:
            self.kept = self.kept[::2]
            self._stride *= 2


def _read_csv(path: Path, problems: list[str]) -> list[Record]:
    """The epochs of a summary.csv of kdkit's or of timm's train.py."""
    try:
        rows = [
            {_TIMM_COLUMNS.get(name, name): _number(text) for name, text in row.items() if name and _is_text(text)}
            for row in csv.DictReader(_lines(path, problems))
        ]
    except csv.Error as error:
        problems.append(f"{str(path)!r} cannot be read ({error})")
        return []
    found = [row for row in rows if _is_counted(row, "epoch")]
    if rows and not found:
        columns = ", ".join(list(rows[0])[:5])
        problems.append(f"{str(path)!r} has the columns {columns}: expected one called epoch, as kdkit and timm write")
    return found


def _read_document(path: Path, problems: list[str]) -> dict[str, Any]:
    """A YAML or JSON file with one mapping; empty if there is none to read."""
    if not path.exists():
        return {}
    try:
        is_json = path.suffix == ".json"
        found = read_json(path, limit=_MAX_JSON_BYTES) if is_json else read_yaml(path, max_aliases=_MAX_ALIASES)
    except ConfigError as error:
        problems.append(f"{str(path)!r} cannot be read ({error})")
        return {}
    if isinstance(found, dict):
        return {str(name): value for name, value in found.items()}
    if found is not None:
        problems.append(f"{str(path)!r} holds no named values: expected what kdkit distill leaves there")
    return {}


def _lines(path: Path, problems: list[str]) -> Iterator[str]:
    """The lines of a file; none if it is missing."""
    if not path.exists():
        return
    try:
        with open_regular(path) as file, io.TextIOWrapper(file, "utf-8", "replace", newline="") as lines:
            yield from lines
    except ConfigError as error:
        problems.append(str(error))


def _parse(line: str) -> Record | None:
    """One record; None for what is none. A number that is not finite is None, as in strict JSON."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in record.items()}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
