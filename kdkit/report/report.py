"""`kdkit report`: runs, their best student and a cache on one page, in one file that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from kdkit.cache import open_cache
from kdkit.config import StudentConfig
from kdkit.dataset import open_dataset
from kdkit.errors import KdkitError, MissingDependencyError
from kdkit.report.cache_page import CachePart, show_cache_part
from kdkit.report.chart import Chart, charts_html
from kdkit.report.class_charts import class_charts
from kdkit.report.comparison import best_first, metric_name, tabulate
from kdkit.report.config import ReportConfig
from kdkit.report.curves import curve_charts
from kdkit.report.page import asset, escape, make_page
from kdkit.report.predictions import spread
from kdkit.report.run_files import Run, read_runs
from kdkit.report.run_student import RunStudent
from kdkit.report.runs_section import runs_section
from kdkit.report.show import check_output
from kdkit.report.table import RunTable, common_folder
from kdkit.resolve import resolve_device
from kdkit.runtime import files
from kdkit.runtime.install import install_command

_STEPS = 500  # records of steps that are read of each run


@dataclass(frozen=True)
class ReportFile:
    """A report that was written."""

    output: Path
    """The page."""
    num_bytes: int
    """Its size."""
    table: RunTable
    """The runs on it."""
    problems: tuple[str, ...]
    """What could not be read or computed, one line each; the page lists these too."""


def write_report(config: ReportConfig) -> ReportFile:
    """Writes a page with runs side by side, their curves, the best run's student class by class, and a cache.

    Runs that are cut off or damaged, and a best student that cannot be loaded, are named on the page.

    Raises:
        MissingDependencyError: plotly is not installed.
        OutputExistsError: there is a file at the output already.
        CacheError: the cache cannot be read, or is not that of the images.
        KdkitError: the validation images that the configuration names cannot be read.
    """
    output = Path(config.output)
    check_output(output, overwrite=config.overwrite)
    plotly = _plotly()
    runs, problems = read_runs(config.runs, max_steps=_STEPS)
    runs = best_first(runs)
    table = tabulate(runs, problems)
    notes = [*table.problems]
    folder = common_folder([run.name for run in runs])
    charts = curve_charts(runs, [run.name.removeprefix(folder) for run in runs])
    parts = [runs_section(table.rows, charts, folder)]
    run, student = _best_student(config, runs, notes)
    if run is not None and student is not None:
        source, by_class = _class_part(config, run, student, notes)
        charts += by_class
        heading = f"<h2>Best run: {escape(run.name)}</h2>\n<p>{escape(source)}</p>\n"
        parts.append(f"{heading}{charts_html(by_class)}" if by_class else "")
    if config.cache is not None:
        cache: CachePart = show_cache_part(config, _taught_student(config, runs, student, notes), notes)
        charts += cache.charts
        parts.append(cache.html)
    listed = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes))
    parts.append(f'<h2>Could not be read or computed</h2>\n<ul class="problems">{listed}</ul>' if listed else "")
    title = f"{len(runs)} run{'s' * (len(runs) != 1)}" + (f" and {Path(config.cache).name}" if config.cache else "")
    page = make_page(
        title,
        "\n".join(parts),
        scripts=(plotly, asset("app.js")),
        data={"charts": [chart.to_dict() for chart in charts]},
    ).encode()
    files.write_bytes(output, page)
    return ReportFile(output, len(page), table, tuple(dict.fromkeys(notes)))


def _plotly() -> str:
    """The source of plotly.js, as the installed package has it."""
    try:
        return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except (ImportError, OSError) as error:
        raise MissingDependencyError(f"the report needs plotly: {install_command('report')}") from error


def _best_student(config: ReportConfig, runs: Sequence[Run], notes: list[str]) -> tuple[Run | None, RunStudent | None]:
    """The best run whose student can be loaded."""
    device = resolve_device(config.device)
    failures = []
    found: tuple[Run | None, RunStudent | None] = (None, None)
    for run in [run for run in runs if run.student and not run.context]:
        ema = metric_name(run).startswith("val_ema_")
        try:
            named = StudentConfig(student=str(run.folder), ema=ema, arch=config.arch)
            student = RunStudent(named, device=device, batch_size=config.batch_size, num_workers=config.workers)
            found = run, student
            break
        except KdkitError as error:
            failures.append(f"the student of {run.name!r} cannot be loaded: {error}")
    if failures:
        notes.append(failures[0] + (f" ({len(failures) - 1} more)" if len(failures) > 1 else ""))
    return found


def _taught_student(
    config: ReportConfig, runs: Sequence[Run], best: RunStudent | None, notes: list[str]
) -> RunStudent | None:
    """The student of the best run that learned from the cache; of the best run if none names the cache."""
    assert config.cache is not None
    identity = open_cache(config.cache).identity
    taught = [run for run in runs if identity in _cache_identities(run)]
    if not taught or (best is not None and str(taught[0].folder) == best.name):
        return best
    return _best_student(config, taught, notes)[1] or best


def _cache_identities(run: Run) -> list[str]:
    """Identities of the caches that a run's student names, whose file may be anything."""
    caches = run.student.get("caches")
    found = [cache.get("identity") for cache in caches if isinstance(cache, dict)] if isinstance(caches, list) else []
    return [identity for identity in found if isinstance(identity, str)]


def _columns_of(run: Run, config: ReportConfig) -> dict[str, object]:
    """The columns and labels that the run's own configuration names."""
    return {name: run.config.get(name, value) for name, value in config.columns.items()}


def _class_part(config: ReportConfig, run: Run, student: RunStudent, notes: list[str]) -> tuple[str, list[Chart]]:
    """The images that the best student was validated on, and its charts class by class on them."""
    folder = config.validation or run.config.get("validation")
    if metric_name(run).endswith("mAP"):
        notes.append(f"{run.name!r} has several labels per image: its student is not shown class by class")
        return "", []
    if not isinstance(folder, str):
        notes.append(f"{run.name!r} has no validation images: give --val DATA to see its student class by class")
        return "", []
    try:
        columns = config.columns if config.validation else _columns_of(run, config)
        dataset = open_dataset(folder, recipe=student.description.recipe, **columns)
        probabilities, labels = student.predict(dataset, spread(config.images, len(dataset)).tolist())
    except (KdkitError, OSError) as error:
        if config.validation is not None:
            raise
        notes.append(f"the validation images of {run.name!r} cannot be read: {error}")
        return "", []
    known = labels >= 0
    if not bool(known.any()):
        notes.append(f"the validation images {folder!r} have no labels")
        return "", []
    names = student.description.class_names or tuple(f"class {index}" for index in range(probabilities.shape[1]))
    source = f"Measured on {int(known.sum()):,} of the {len(dataset):,} images of {folder}."
    return source, class_charts(probabilities[known], labels[known], names)
