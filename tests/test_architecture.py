"""The architecture of decision 0001, read from the code itself: which room imports which, sizes, names and words."""

from __future__ import annotations

import ast
import builtins
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from kdkit import errors
from kdkit.cli import COMMANDS

ROOT = Path(__file__).parents[1]

# From the roof to the ground floor. A room imports rooms of lower floors only, and none of its own floor.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("report", "demo", "evaluation", "importers"),
    ("building", "training"),
    ("dataset", "precision", "resolve"),
    ("tasks", "cache"),
    ("student",),
    ("teachers", "data", "config", "presets"),
    ("runtime", "losses", "recipe"),
    ("types", "bounds"),
    ("errors", "_lazy", "_version"),
)
HEIGHT = {room: -number for number, floor in enumerate(FLOORS) for room in floor}

# Packages whose docstring lists their modules under "Where to look".
GUIDED = (
    *("building", "cache", "cli", "data", "data/sources", "data/views", "evaluation", "losses", "runtime", "tasks"),
    *("teachers", "training"),
)

MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_MEDIAN_LINES = 250, 60, 8

# Words that the project's own dialect had in place of the field's terms (CONTRIBUTING.md).
DIALECT = ("said", "asked", "whom", "gone on", "made anew", "no harm", "of one's own")
MAX_DIALECT = 10

# What only the cache's own code may name: all others make a cache through CacheWriter.
PRIVATE_TO_THE_CACHE = ("CacheMetadata(", "ShardFolder")
USERS_OF_THE_WRITER = (
    *("kdkit/building/build.py", "kdkit/building/extend.py", "cache/golden/make.py"),
    *("examples/**/*.py", "benchmarks/*.py"),
)


@dataclass(frozen=True)
class Module:
    """One file of kdkit/: its dotted name and its syntax tree."""

    name: str
    path: Path

    @property
    def room(self) -> str:
        """The first part of the name below kdkit; "" for kdkit itself, the front door."""
        return self.name.split(".")[1] if "." in self.name else ""

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)


@cache
def modules() -> dict[str, Module]:
    found = {}
    for path in sorted((ROOT / "kdkit").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = Module(name, path)
    return found


def imported(module: Module) -> Iterator[str]:
    """The full name of each import of a module, wherever it stands: also within a function or for types alone."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str | None:
    """The module of kdkit that an imported name is or stands in; None for other packages."""
    parts = name.split(".")
    return next((known for n in (len(parts), len(parts) - 1) if (known := ".".join(parts[:n])) in modules()), None)


@cache
def arrows() -> dict[str, set[str]]:
    """Module -> the modules of kdkit that it imports."""
    return {
        name: {target for each in imported(module) if (target := module_of(each)) and target != name}
        for name, module in modules().items()
    }


def room_arrows() -> set[tuple[str, str, str]]:
    """(importing module, its room, the other room that it imports), without the front door, which exports from all."""
    return {
        (name, modules()[name].room, modules()[target].room)
        for name, targets in arrows().items()
        for target in targets
        if name != "kdkit" and modules()[name].room != modules()[target].room
    }


def test_every_file_of_kdkit_is_in_a_room_with_a_floor() -> None:
    assert {module.room for module in modules().values()} - {""} <= set(HEIGHT)


def test_arrows_run_downward_only() -> None:
    wrong = [
        f"{name} imports {below or 'the front door'}"
        for name, room, below in sorted(room_arrows())
        if not below or HEIGHT[below] >= HEIGHT[room]
    ]
    assert wrong == []


def test_teachers_data_and_cache_do_not_import_each_other() -> None:
    apart = {"teachers", "data", "cache"}
    assert [arrow for arrow in room_arrows() if {arrow[1], arrow[2]} <= apart] == []


def test_tasks_know_nothing_of_caches_and_datasets() -> None:
    assert [arrow for arrow in room_arrows() if arrow[1] == "tasks" and arrow[2] in {"cache", "data"}] == []


def test_losses_need_torch_alone() -> None:
    needed = {
        ".".join((module_of(each) or each.split(".")[0]).split(".")[:2])
        for module in modules().values()
        if module.room == "losses"
        for each in imported(module)
    }
    assert needed - set(sys.stdlib_module_names) <= {"torch", "einops", "kdkit.errors", "kdkit.types", "kdkit.losses"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_no_module_is_longer_than_a_reader_takes_in_at_once() -> None:
    lines = {module.name: len(module.text.splitlines()) for module in modules().values()}
    assert {name: count for name, count in lines.items() if count > MAX_MODULE_LINES} == {}


def functions() -> Iterator[tuple[str, int]]:
    """Name and number of lines, signature and docstring included, of each function and method."""
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield f"{module.name}.{node.name}", node.end_lineno - node.lineno + 1


def test_functions_are_short() -> None:
    assert [found for found in functions() if found[1] > MAX_FUNCTION_LINES] == []
    assert statistics.median(lines for _, lines in functions()) <= MAX_MEDIAN_LINES


def test_a_function_that_checks_is_called_check() -> None:
    assert [name for name, _ in functions() if re.match(r"_?refuse_", name.rpartition(".")[2])] == []


def test_every_error_class_is_defined_in_errors() -> None:
    """A class counts as an error if it derives from one of kdkit's or Python's errors, by name."""
    known = {name for name, value in vars(builtins).items() if _is_error(value)}
    known |= {name for name, value in vars(errors).items() if _is_error(value)}
    elsewhere = [
        f"{module.name}.{node.name}"
        for module in modules().values()
        if module.name != "kdkit.errors"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).rpartition(".")[2] in known for base in node.bases)
    ]
    assert elsewhere == []


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def test_every_error_is_a_kdkit_error_and_a_built_in_one() -> None:
    for error in (value for value in vars(errors).values() if _is_error(value) and value is not errors.KdkitError):
        assert issubclass(error, errors.KdkitError), error
        assert any(parent.__module__ == "builtins" and parent is not Exception for parent in _parents(error)), error


def _parents(error: type) -> list[type]:
    return [parent for parent in error.__mro__ if issubclass(parent, Exception)]


def texts() -> Iterator[Path]:
    """The files whose words a reader meets: code, pages and examples."""
    yield ROOT / "README.md"
    for folder in ("kdkit", "docs", "examples"):
        yield from (
            path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in {".py", ".md", ".sh", ".yaml"}
        )


def test_the_words_are_those_of_the_field() -> None:
    words = re.compile(rf"\b({'|'.join(DIALECT)})\b", re.IGNORECASE)
    found = [f"{path.relative_to(ROOT)}: {word}" for path in texts() for word in words.findall(path.read_text("utf-8"))]
    assert len(found) <= MAX_DIALECT, "\n".join(found)


def test_flags_have_dashes_as_the_short_ones_have() -> None:
    """Underscores are accepted as well; long flags (`--train.ema_decay`) are the names of YAML fields."""
    flags = re.compile(r"(?<![\w-])--(?!print_config)[a-z]+(?:_[a-z]+)+")
    assert [
        f"{path.relative_to(ROOT)}: {flag}" for path in texts() for flag in flags.findall(path.read_text("utf-8"))
    ] == []


def guide_of(package: str) -> set[str]:
    """The files and folders that a package's docstring names, as paths below kdkit/."""
    text = ast.get_docstring(ast.parse((ROOT / "kdkit" / package / "__init__.py").read_text("utf-8"))) or ""
    _, heading, guide = text.partition("Where to look:\n")
    assert heading, package
    found = re.findall(r"[\w/]+\.py\b|\b\w+/(?=[ ,;\n])", guide)
    return {name.removeprefix("kdkit/") if name.startswith("kdkit/") else f"{package}/{name}" for name in found}


@pytest.mark.parametrize("package", GUIDED)
def test_a_package_names_each_of_its_modules_and_no_other(package: str) -> None:
    folder = ROOT / "kdkit" / package
    named = guide_of(package)
    assert [name for name in sorted(named) if not (ROOT / "kdkit" / name).exists()] == []
    present = {f"{package}/{path.name}" for path in folder.glob("*.py") if path.name != "__init__.py"}
    present |= {f"{package}/{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    if package == "cli":  # each command is listed in COMMANDS
        present -= {f"cli/{command.replace(' ', '_')}.py" for command in COMMANDS}
    assert sorted(present - named) == []


@pytest.mark.parametrize("private", PRIVATE_TO_THE_CACHE)
def test_caches_are_made_through_their_writer_alone(private: str) -> None:
    users = [path for pattern in USERS_OF_THE_WRITER for path in ROOT.glob(pattern)]
    assert len(users) > len(USERS_OF_THE_WRITER)
    assert [str(path.relative_to(ROOT)) for path in users if private in path.read_text("utf-8")] == []
