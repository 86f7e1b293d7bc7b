"""What tells one transform of the user's own from another: each single change of its code or of what that refers to."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from kdkit.data.views.fingerprint import transform_identity

PLACES = {
    "a class attribute": "class Own:\n    angle = {}\n    def __call__(self, image): return image.rotate(self.angle)",
    "an attribute of a base": "class Base:\n    angle = {}\nclass Own(Base):\n    def __call__(self, i): return i",
    "an attribute of a class within": "class Own:\n    class In:\n        angle = {}\n    def __call__(self): pass",
    "a static method": "class Own:\n    @staticmethod\n    def turn(i): return {}\n    def __call__(self, i): pass",
    "a class method": "class Own:\n    @classmethod\n    def turn(cls): return {}\n    def __call__(self, i): pass",
    "a property": "class Own:\n    @property\n    def angle(self): return {}\n    def __call__(self, i): pass",
    "a property's setter": (
        "class Own:\n    @property\n    def angle(self): return 1\n"
        "    @angle.setter\n    def angle(self, to): self.a = to + {}"
    ),
    "a cached property": (
        "import functools\nclass Own:\n    @functools.cached_property\n    def angle(self): return {}"
    ),
    "a cached method": ("import functools\nclass Own:\n    @functools.lru_cache\n    def angle(self): return {}"),
    "a slot": "class Own:\n    __slots__ = ('_Own__angle',)\n    def __init__(self): self._Own__angle = {}",
    "a private slot": "class Own:\n    __slots__ = ('__angle',)\n    def __init__(self): self.__angle = {}",
    "a default of a dataclass": "import dataclasses\n@dataclasses.dataclass\nclass Own:\n    angle: int = {}",
    "a field of a named tuple": "import typing\nclass Two(typing.NamedTuple):\n    a: int\nclass Own:\n    a = Two({})",
    "an enumeration": "import enum\nclass Turn(enum.Enum):\n    SOME = {}\nclass Own:\n    turn = Turn.SOME",
    "an enumeration's class": "import enum\nclass Turn(enum.Enum):\n    SOME = {}\ndef own(i): return Turn['SOME']",
    "a list's own attribute": ("class Steps(list): pass\nclass Own:\n    steps = Steps()\nOwn.steps.angle = {}"),
    "a global of a function": "A = {}\ndef own(image): return image.rotate(A)",
    "a global of a function within": "A = {}\ndef own(image):\n    def turn(): return A\n    return turn()",
    "a global of a lambda within": "A = {}\ndef own(image): return (lambda: image.rotate(A))()",
    "a global of a comprehension": "A = {}\ndef own(image): return [image.rotate(A * i) for i in range(3)][-1]",
    "a global of a class within": "A = {}\ndef own(image):\n    class In:\n        a = A\n    return In.a",
    "a function called by a lambda": "def turn(i): return i.rotate({})\ndef own(i): return (lambda: turn(i))()",
    "a class attribute of a global": "class Turn:\n    angle = {}\ndef own(image): return image.rotate(Turn.angle)",
    "a default argument": "def own(image, angle={}): return image.rotate(angle)",
    "a keyword's default": "def own(image, *, angle={}): return image.rotate(angle)",
    "an attribute of a function": "def own(image): return image.rotate(own.angle)\nown.angle = {}",
    "what is closed over": "def make(angle):\n    def own(image): return angle\n    return own\nown = make({})",
    "a decorator": (
        "import functools\ndef turned(f):\n    @functools.wraps(f)\n    def g(i): return f(i + {})\n    return g\n"
        "@turned\ndef own(image): return image"
    ),
    "what a decorator of torch's wraps": "import torch\n@torch.no_grad()\ndef own(image): return image.rotate({})",
    "a partial's argument": "import functools\ndef turn(i, angle): return i\nown = functools.partial(turn, angle={})",
    "which lambda of a line": "turns = (lambda i: i.rotate(1), lambda i: i.rotate(2))\nown = turns[{} - 1]",
    "the order of named steps": (
        "from torch import nn\nown = nn.ModuleDict({{n: nn.Identity() for n in ('ab' if {} == 1 else 'ba')}})"
    ),
    "one of a set": "import functools\nown = functools.partial(print, {{'a', 'b', 'c', 'd', frozenset('efgh'), {}}})",
    "a compiled pattern": "import re, functools\nown = functools.partial(print, re.compile('a' * 300 + '{}'))",
    "a range": "import functools\nown = functools.partial(print, range({}))",
    "a queue": "import collections\nclass Own:\n    angles = collections.deque([1, {}])",
    "a queue's length": "import collections\nclass Own:\n    angles = collections.deque([], {})",
    "a method of a dictionary": "class Own:\n    def __init__(self): self.angle = {{1: {}}}.get",
    "a path": "import functools, pathlib\nown = functools.partial(print, pathlib.Path('a') / 'b{}')",
    "code without text": "exec('def own(image): return (lambda: image.rotate({}))()')",
}


def load(folder: Path, text: str, name: str = "mine_of_kdkits_tests") -> types.ModuleType:
    """The module `name` with that text."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(text + "\n")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def identity(module: types.ModuleType) -> str:
    return transform_identity(module.own if hasattr(module, "own") else module.Own())


@pytest.mark.parametrize("place", PLACES)
def test_a_change_in_one_place_is_another_identity(tmp_path: Path, place: str) -> None:
    one, same, other = (
        identity(load(tmp_path / folder, PLACES[place].format(value)))
        for folder, value in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == same
    assert one != other


def test_functions_of_a_module_of_the_users_count_where_they_are_used(tmp_path: Path) -> None:
    own = "import mine_of_kdkits_tools as tools\ndef own(image): return (lambda: tools.turn(image))()"
    tools = "A = {}\ndef turn(image): return image.rotate(A)\ndef unused(): return {}"
    seen = []
    for angle, unused in ((1, 1), (1, 2), (2, 1)):
        load(tmp_path / f"{angle}{unused}", tools.format(angle, unused), "mine_of_kdkits_tools")
        seen.append(identity(load(tmp_path / "own", own)))
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


def test_what_refers_to_each_other_comes_to_an_end(tmp_path: Path) -> None:
    names = [f"f{i}" for i in range(30)]
    text = "\n".join(f"def {name}(i):\n    return [{', '.join(names)}, Own]" for name in names)
    text += "\nclass Own:\n    def __call__(self, i): return [f0, Own, self]\nOwn.one = Own()\nOwn.all = [Own.one]"
    assert identity(load(tmp_path, text)) == identity(load(tmp_path, text))


def test_the_order_of_a_dictionary_counts_and_that_of_attributes_does_not(tmp_path: Path) -> None:
    module = load(tmp_path, "class Own:\n    def __call__(self, image): return image")
    seen = []
    for attributes in ({"a": 1, "b": {1: 2, 3: 4}}, {"b": {1: 2, 3: 4}, "a": 1}, {"a": 1, "b": {3: 4, 1: 2}}):
        own = module.Own()
        own.__dict__.update(attributes)
        seen.append(transform_identity(own))
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


@pytest.mark.slow
def test_equal_transforms_have_one_identity_in_processes_that_hash_otherwise(tmp_path: Path) -> None:
    texts = {f"mine_{number}": text.format(1) for number, text in enumerate(PLACES.values())}
    here = [identity(load(tmp_path, text, name)) for name, text in texts.items()]
    code = f"import sys, {', '.join(texts)}\nfrom kdkit.data.views.fingerprint import transform_identity as identity\n"
    code += (
        "for name in sys.argv[1:]:\n    own = vars(sys.modules[name]); print(identity(own.get('own') or own['Own']()))"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", code, *texts]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.splitlines() == here
