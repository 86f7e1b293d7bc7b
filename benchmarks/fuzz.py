"""Damaged and hostile caches and documents: no wrong value, no untyped error, no hang, no memory without bound.

    python benchmarks/fuzz.py                             10,000 files, 2,000 documents, 2,000 rows; ten minutes
    python benchmarks/fuzz.py --quick                     some hundred
    python benchmarks/fuzz.py --only files --trial 4711   one trial again, with its traceback

A file is a packed cache, or a file of a folder of shards, of each codec; bytes of it are flipped, overwritten, moved,
cut, or taken from another cache. Whatever can then be read must be what was written. A document is the metadata or the
table of checksums of a cache (with a right checksum, as an attacker writes it), a manifest entry, a shard's identity, a
teacher card, a student's description, a class map or a run's configuration. Rows are encoded rows, or the arrays of a
fitted codec, as an attacker writes them, with right checksums; whatever they are, what is decoded must be finite. The
limits: 5 s of the processor, 60 s by the clock, and 512 MiB per trial.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import timm
import torch
import yaml
from _fuzz import HARMLESS, MAX_BYTES, Outcome, WrongValueError, mutate_bytes, mutate_document, mutate_text, run_trials
from _result import Report, parser

from kdkit import CacheSpec, CacheWriter, open_cache
from kdkit.cache import available_codecs, create_codec
from kdkit.cache.codecs import RowCodec
from kdkit.cache.codecs.record import RecordCodec
from kdkit.cache.codecs.registry import available_feature_codecs, create_feature_codec
from kdkit.cache.format.constants import RECORDS
from kdkit.cli._parse import parse_config
from kdkit.errors import KdkitError
from kdkit.recipe import ViewRecipe
from kdkit.report.run_files import read_runs
from kdkit.resolve import _read_class_map
from kdkit.student import Student
from kdkit.teachers import load_card
from kdkit.teachers.class_map import resolve_class_map
from kdkit.training.config import DistillConfig

ROWS, VIEWS, CLASSES, WIDTH = 1200, 2, 12, 8
MAX_MESSAGE = 3000
OPTIONS: dict[str, dict[str, Any]] = {"topk": {"k": 3}, "lowrank": {"row_bytes": 8}}
"""Options of codecs of logits; all that are registered are tried."""
RECORD_BYTES = 6
CARDS = Path(__file__).parents[1] / "teachers"


@dataclass
class Base:
    """A good cache, and what it holds."""

    files: dict[str, bytes]
    """Name below its folder -> content."""
    opens: str
    """Name that it is opened by."""
    rows: dict[tuple[int, str], np.ndarray[Any, Any]]
    """(view, stream) -> encoded rows."""
    keys: list[str]


def make_bases(folder: Path) -> list[Base]:
    """A packed file and a folder of shards of each codec, of logits, of features and of recorded views."""
    known = available_feature_codecs()
    return [
        _make_base(folder / f"{logits}-{features}-{packed}", logits, features, packed=packed)
        for number, logits in enumerate(available_codecs())
        for features in [known[number % len(known)]]
        for packed in (True, False)
    ]


def _make_base(folder: Path, logits: str, features: str, *, packed: bool) -> Base:
    head = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    embedded = torch.randn(VIEWS, ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
    values = embedded @ head.T
    records = torch.randint(256, (VIEWS, ROWS, RECORD_BYTES), generator=torch.Generator().manual_seed(2))
    outputs = {"logits": values, "pooled": embedded, RECORDS: records.to(torch.uint8)}
    codec = create_codec(logits, CLASSES, **OPTIONS.get(logits, {}))
    of_features = create_feature_codec(features, (WIDTH,)).suited_to(embedded[0])
    spec = CacheSpec(
        keys=[f"class/{row}.png" for row in range(ROWS)],
        num_views=VIEWS,
        codecs={
            "logits": codec.fit(values[0], head) if codec.needs_fit else codec,
            "pooled": of_features.fit(embedded[0]) if of_features.needs_fit else of_features,
            RECORDS: RecordCodec((RECORD_BYTES,)),
        },
        teacher={"name": "none", "dtype": "torch.float32", "weights_sha256": "0" * 64},
        recipe={**ViewRecipe(size=8).to_dict(), "num_views": VIEWS},
        class_names=[str(number) for number in range(CLASSES)],
        shard_rows=1000,
    )
    folder.mkdir(parents=True)
    with CacheWriter.create(folder / "t.h5", spec) as writer:
        for shard in writer.missing():
            rows = slice(shard.start, shard.stop)
            writer.write(shard, {stream: output[shard.view, rows] for stream, output in outputs.items()})
        place = writer.finish(pack=packed)
    cache = open_cache(place)
    everything = np.arange(ROWS)
    return Base(
        files={str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()},
        opens=place.name,
        rows={(v, s): cache.read_encoded(everything, v, s).numpy() for v in range(VIEWS) for s in outputs},
        keys=cache.keys(),
    )


def write_base(base: Base, folder: Path) -> Path:
    """The files of a base, fresh; returns the path to open."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in base.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / base.opens


def read_everything(path: Path, base: Base, draw: random.Random) -> str:
    """Opens a cache and uses all of it; every part is compared with the base, or refused."""
    refused = 0
    with _typed() as opened:
        cache = open_cache(path)
    if opened.refused:
        return "refused"
    uses: list[Callable[[], object]] = [
        cache.summary,
        cache.verify,
        lambda: ViewRecipe.from_dict(cache.metadata.recipe),
    ]
    uses += [lambda: _check(cache.keys() == base.keys, "keys"), lambda: cache.match_keys(base.keys)]
    for view, stream in base.rows:
        if view < cache.num_views and stream in (*cache.streams, RECORDS):
            uses.append(lambda v=view, s=stream: _check_rows(cache, base, v, s, draw))
    draw.shuffle(uses)
    for use in uses:
        with _typed() as used:
            use()
        refused += used.refused
    return "refused" if refused else "same"


def _check_rows(cache: Any, base: Base, view: int, stream: str, draw: random.Random) -> None:
    expected = base.rows[view, stream]
    wanted = np.array([draw.randrange(min(cache.num_rows, ROWS)) for _ in range(4)] + [min(cache.num_rows, ROWS) - 1])
    found = cache.read_encoded(wanted, view, stream)
    _check(np.array_equal(found.numpy(), expected[wanted]), f"rows of {stream} in view {view}")
    if stream == RECORDS:
        return
    decoded = cache.codecs[stream].decode(found)
    _check(bool(torch.isfinite(decoded).all()), f"decoded {stream} not finite")


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise WrongValueError(what)


@dataclass
class _Typed:
    refused: int = 0


@contextmanager
def _typed() -> Iterator[_Typed]:
    """Lets KdkitError of one line pass, and no other error."""
    state = _Typed()
    try:
        yield state
    except KdkitError as error:
        if "\n" in str(error) or not str(error).isprintable() or len(str(error)) > 3000:
            raise AssertionError(
                f"an error of {len(str(error))} characters, or not of one line: {error!r:.300}"
            ) from None
        state.refused = 1


class FileTrials:
    """Mutations of packed files and of the files of shards."""

    def __init__(self, folder: Path) -> None:
        self.bases = make_bases(folder / "bases")
        self.place = folder / "trial"
        self.others = [content for base in self.bases for name, content in base.files.items() if name.endswith(".h5")]

    def __call__(self, number: int) -> str:
        draw = random.Random(number)
        base = self.bases[draw.randrange(len(self.bases))]
        path = write_base(base, self.place)
        name = draw.choice(sorted(base.files))
        if draw.random() < 0.02:
            (self.place / name).unlink()
        else:
            (self.place / name).write_bytes(mutate_bytes(base.files[name], draw, self.others))
        return read_everything(path, base, draw)


class DocumentTrials:
    """Mutations of documents, in turn of each kind."""

    def __init__(self, folder: Path) -> None:
        self.bases = make_bases(folder / "bases")
        self.place = folder / "trial"
        self.model = timm.create_model("test_resnet", num_classes=10)
        self.kinds: tuple[Callable[[random.Random], str], ...] = (
            lambda draw: self.in_cache(draw, "kdkit"),
            lambda draw: self.in_cache(draw, "kdkit_arrays"),
            self.of_shard,
            self.card,
            self.student,
            self.class_map,
            self.config,
        )

    def __call__(self, number: int) -> str:
        draw = random.Random(number)
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        return self.kinds[number % len(self.kinds)](draw)

    def in_cache(self, draw: random.Random, name: str) -> str:
        """A document of a cache, with its right checksum."""
        base = draw.choice(self.bases)
        path = write_base(base, self.place)
        with h5py.File(path / "index.h5" if path.is_dir() else path, "r+") as file:
            _set_attribute(file, name, _mutated(file.attrs[name].decode(), draw))
        return read_everything(path, base, draw)

    def of_shard(self, draw: random.Random) -> str:
        """A manifest entry, or the identity of a shard."""
        base = draw.choice([base for base in self.bases if base.opens.endswith(".parts")])
        path = write_base(base, self.place)
        shard = draw.choice(sorted(path.glob("v*.h5")))
        if draw.random() < 0.7:
            entry = shard.with_suffix(".json")
            entry.write_text(_mutated(entry.read_text(), draw), encoding="utf-8", errors="surrogatepass")
        else:
            with h5py.File(shard, "r+") as file:
                _set_attribute(file, "kdkit_shard", _mutated(file.attrs["kdkit_shard"].decode(), draw))
        return read_everything(path, base, draw)

    def card(self, draw: random.Random) -> str:
        """A teacher card."""
        text = draw.choice(sorted(CARDS.glob("*.yaml"))).read_text(encoding="utf-8")
        return self._used(load_card, "card.yaml", _mutated(text, draw, is_yaml=True))

    def student(self, draw: random.Random) -> str:
        """The description of a student, read by those who resume it and by the report."""
        Student("test_resnet", {}, 32, 0.9, "bicubic", tuple("abc"), 1000, 2).write(self.place)
        text = _mutated((self.place / "student.json").read_text(), draw)
        return self._used(lambda path: (read_runs([path.parent]), Student.read(path.parent)), "student.json", text)

    def class_map(self, draw: random.Random) -> str:
        """A class map of a small teacher."""
        text = json.dumps(draw.choice([list(range(10)), [f"n{number:08}" for number in range(10)]]))

        def use(path: Path) -> None:
            resolve_class_map(_read_class_map(str(path)), self.model, "test_resnet", [f"n{n:08}" for n in range(10)])

        return self._used(use, "map.json", _mutated(text, draw))

    def config(self, draw: random.Random) -> str:
        """A run's configuration, read by --config and by the report."""
        values = {
            "data": "d",
            "output": "o",
            "student": "test_resnet",
            "train": {"epochs": 3, "opt": "adamw", "lr": 0.1},
        }
        text = _mutated(
            yaml.safe_dump({**values, "tags": [1, 2]} if draw.random() < 0.1 else values), draw, is_yaml=True
        )

        def use(path: Path) -> None:
            read_runs([path.parent])
            with redirect_stderr(StringIO()):
                parse_config(DistillConfig, "distill", ["--config", str(path)], {"[DATA]": "data"})

        return self._used(use, "config.yaml", text)

    def _used(self, use: Callable[[Path], object], name: str, text: str) -> str:
        path = self.place / name
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with _typed() as state:
            use(path)
        return "refused" if state.refused else "same"


def _mutated(text: str, draw: random.Random, *, is_yaml: bool = False) -> str:
    """The text of a document, changed as text or as the values that it holds."""
    if draw.random() < 0.5:
        return mutate_text(text, draw)
    value = mutate_document(copy.deepcopy(yaml.safe_load(text) if is_yaml else json.loads(text)), draw)
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return yaml.safe_dump(value) if is_yaml else json.dumps(value)
    finally:
        sys.set_int_max_str_digits(limit)


def _set_attribute(file: h5py.File, name: str, text: str) -> None:
    content = text.encode("utf-8", "surrogatepass") or b" "
    for attribute in (name, f"{name}_crc32"):
        del file.attrs[attribute]
    file.attrs.create(name, np.array(content, dtype=h5py.string_dtype("utf-8", len(content))))
    file.attrs.create(f"{name}_crc32", np.uint32(zlib.crc32(content)))


CODED = ("topk", "lowrank", "head", "sparse", "dense")
"""Codecs whose rows are codes; the others hold numbers as they are, which are not finite where a row says so."""
SHAPES = ((64,), (5, 12), (6, 4, 3), (1, 7), (1,))
"""Shapes of rows of features."""


class RowTrials:
    """Mutations of encoded rows, and of the arrays of fitted codecs."""

    def __init__(self, folder: Path) -> None:
        draw = torch.Generator().manual_seed(0)
        head = torch.randn(CLASSES, WIDTH, generator=draw)
        logits = torch.randn(40, WIDTH, generator=draw).relu() @ head.T
        self.given: list[tuple[RowCodec, torch.Tensor]] = []
        for name in CODED[:3]:
            codec = create_codec(name, CLASSES, **OPTIONS.get(name, {})).fit(logits, head)
            self.given.append((codec, codec.encode(logits)))
        for name in CODED[3:]:
            for shape in SHAPES:
                rows = torch.randn(40, *shape, generator=draw)
                made = create_feature_codec(name, shape).suited_to(rows).fit(rows)
                self.given.append((made, made.encode(rows)))

    def __call__(self, number: int) -> str:
        draw = random.Random(number)
        codec, rows = draw.choice(self.given)
        content = _same_length(rows.numpy().tobytes(), draw)
        if codec.arrays and draw.random() < 0.5:
            arrays = dict(codec.arrays)
            name = draw.choice(sorted(arrays))
            changed = np.frombuffer(_same_length(arrays[name].tobytes(), draw), arrays[name].dtype)
            with _typed() as state:
                codec = codec.with_arrays({**arrays, name: changed.reshape(arrays[name].shape).copy()})
            if state.refused:
                return "refused"
        mutated = np.frombuffer(content, np.uint8).reshape(rows.shape).copy()
        decoded = codec.decode(torch.from_numpy(mutated))
        _check(bool(decoded.isfinite().all()), f"{codec} decodes numbers that are not finite")
        return "same" if np.array_equal(mutated, rows) else "decoded"


def _same_length(content: bytes, draw: random.Random) -> bytes:
    """The content with a mutation, or all of it anew, of the same length."""
    if draw.random() < 0.3:
        return draw.choice([draw.randbytes(len(content)), b"\xff" * len(content), bytes(len(content))])
    found = mutate_bytes(content, draw, [content])[: len(content)]
    return found + content[len(found) :]


TRIALS: dict[str, Callable[[Path], Callable[[int], str]]] = {
    "files": FileTrials,
    "documents": DocumentTrials,
    "rows": RowTrials,
}


def fuzz(kind: str, num_trials: int, *, first: int = 0) -> Outcome:
    """Runs trials `first` ... of a kind, one of TRIALS."""
    torch.set_num_threads(1)  # the pool of threads does not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        trial = TRIALS[kind](Path(folder))
        return run_trials(trial, range(first, first + num_trials))


def main() -> None:
    """Runs all kinds and writes the dated result."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", choices=TRIALS, help="one kind of trials; all by default")
    arguments.add_argument("--trial", type=int, help="number of a single trial, run in this process")
    arguments.add_argument("--files", type=int, default=10_000, help="number of mutations of files")
    arguments.add_argument("--documents", type=int, default=2_000, help="number of mutations of documents")
    arguments.add_argument("--rows", type=int, default=2_000, help="number of mutations of encoded rows and arrays")
    options = arguments.parse_args()
    if options.trial is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(TRIALS[options.only or "files"](Path(folder))(options.trial))
        return
    report = Report("fuzz", "Mutated caches and documents", options.quick)
    report.text(
        "Each trial mutates one file, document or codec's rows, then opens and uses it. It may be the same as before, "
        "or refused by a kdkit error of one line; mutated rows may decode to finite numbers. All else is a failure: a "
        "value that was not written, another error, more than "
        f"5 s of the processor, a death by a signal, or more than {MAX_BYTES >> 20} MiB of memory."
    )
    failures: list[tuple[str, int, str]] = []
    rows = []
    for kind in TRIALS:
        count: int = getattr(options, kind)
        if options.only in (None, kind):
            outcome = fuzz(kind, count // 50 if options.quick else count)
            failures += [(kind, *failure) for failure in outcome.failures]
            found = [outcome.num_trials, *(outcome.counts.get(what, 0) for what in HARMLESS)]
            num_failures = report.figure(f"{kind}_failures", len(outcome.failures))
            rows.append([kind, *found, num_failures, f"{outcome.peak_bytes >> 20} MiB"])
    report.table(
        ["of", "trials", "the same", "refused", "decoded", "failures", "most memory of a process beyond its start"],
        rows,
    )
    if failures:
        report.table(["of", "trial", "failure"], failures[:50])
    report.write(options.output)
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
