"""A file system that can lose power: records the calls of a real run, and shows what any crash would have left.

The model is harsher than any real file system: a write, a size, a new name, a rename or a removal that was not fsynced
may be lost or kept each on its own, a write page by page. A file's fsync keeps its content, not its name; its folder's
fsync keeps the names in it.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kdkit.cache.shards.lock import LOCK_NAME

_PAGE = 4096
Event = tuple[Any, ...]
O_TMPFILE = getattr(os, "O_TMPFILE", -1)  # a file without a name: no crash leaves anything of it
FOLDER = -1  # stands for an inode where a name is a folder's


@dataclass
class Recorder:
    """The events of one run under `root`, in order."""

    root: Path
    events: list[Event] = field(default_factory=list)
    _disk: Disk = field(default_factory=lambda: Disk())
    _open: dict[int, int | str] = field(default_factory=dict)

    def note(self, *event: Any) -> None:
        self.events.append(event)
        self._disk.apply(event)

    @contextmanager
    def recording(self, *, sync_files: bool = True, sync_folders: bool = True) -> Iterator[None]:
        """Records every call that changes files below the root; a kind of fsync may be stubbed out."""
        real = {name: getattr(os, name) for name in ("open", "close", "pwrite", "posix_fallocate", "ftruncate")}
        real |= {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "mkdir", "rmdir")}

        def open_(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            leaves_nothing = Path(os.fsdecode(path)).name == LOCK_NAME or flags & O_TMPFILE == O_TMPFILE
            inside = None if leaves_nothing else self._relative(path)
            new = inside is not None and bool(flags & os.O_CREAT) and not os.path.lexists(path)
            descriptor = int(real["open"](path, flags, *arguments, **options))
            if inside is not None:
                if new:
                    self.note("create", inside, len(self.events))
                is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
                self._open[descriptor] = inside if is_folder else self._disk.inode(inside)
            return descriptor

        def close(descriptor: int) -> None:
            self._open.pop(descriptor, None)
            real["close"](descriptor)

        def pwrite(descriptor: int, content: Any, offset: int) -> int:
            count = int(real["pwrite"](descriptor, content, offset))
            self._on_file("write", descriptor, offset, bytes(content[:count]))
            return count

        def resize(name: str, size_at: int) -> Callable[..., None]:
            def call(descriptor: int, *arguments: int) -> None:
                real[name](descriptor, *arguments)
                self._on_file("size", descriptor, arguments[size_at])

            return call

        def fsync(descriptor: int) -> None:
            place = self._open.get(descriptor)
            if isinstance(place, str) and sync_folders:
                self.note("fsync folder", place)
            elif isinstance(place, int) and sync_files:
                self.note("fsync", place)

        def named(name: str, kind: str) -> Callable[..., None]:
            def call(*paths: Any, **options: Any) -> None:
                real[name](*paths, **options)
                inside = [self._relative(path) for path in paths[: 2 if name == "replace" else 1]]
                if None not in inside:
                    self.note(kind, *inside)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name, stand_in in {
                "open": open_,
                "close": close,
                "pwrite": pwrite,
                "posix_fallocate": resize("posix_fallocate", 1),
                "ftruncate": resize("ftruncate", 0),
                "fsync": fsync,
                "replace": named("replace", "rename"),
                "unlink": named("unlink", "remove"),
                "mkdir": named("mkdir", "mkdir"),
                "rmdir": named("rmdir", "remove"),
            }.items():
                patch.setattr(os, name, stand_in)
            yield

    def assert_complete(self) -> None:
        """The recorded events must lead to what is really on the disk: else a call went past the recorder."""
        shown = {
            str(path.relative_to(self.root)): None if path.is_dir() else path.read_bytes()
            for path in self.root.rglob("*")
            if path.name != LOCK_NAME  # holds nothing that a crash could take
        }
        assert self._disk.tree() == shown

    def _on_file(self, kind: str, descriptor: int, *values: Any) -> None:
        if isinstance(self._open.get(descriptor), int):
            self.note(kind, self._open[descriptor], *values)

    def _relative(self, path: Any) -> str | None:
        try:
            relative = str(Path(os.fsdecode(path)).relative_to(self.root))
        except (TypeError, ValueError):
            return None
        return "" if relative == "." else relative


@dataclass
class Disk:
    """What processes see, what a power loss is sure to leave, and what it may or may not leave."""

    names: dict[str, int] = field(default_factory=dict)
    content: dict[int, bytearray] = field(default_factory=dict)
    safe_names: dict[str, int] = field(default_factory=dict)
    safe_content: dict[int, bytearray] = field(default_factory=dict)
    waiting_names: list[tuple[str, dict[str, int | None]]] = field(default_factory=list)
    waiting_content: dict[int, list[Event]] = field(default_factory=dict)

    def inode(self, name: str) -> int:
        return self.names[name]

    def apply(self, event: Event) -> None:
        kind, *values = event
        if kind in ("write", "size"):
            inode = values[0]
            for piece in _pages(event):
                _change(self.content[inode], piece)
                self.waiting_content[inode].append(piece)
        elif kind == "fsync":
            self.safe_content[values[0]] = bytearray(self.content[values[0]])
            self.waiting_content[values[0]].clear()
        elif kind == "fsync folder":
            for folder, change in self.waiting_names:
                if folder == values[0]:
                    _rename(self.safe_names, change)
            self.waiting_names = [(folder, change) for folder, change in self.waiting_names if folder != values[0]]
        elif kind in ("create", "mkdir", "rename", "remove"):
            self._change_names(kind, *values)

    def _change_names(self, kind: str, name: str, other: Any = None) -> None:
        if kind == "create":
            self.content[other], self.safe_content[other], self.waiting_content[other] = bytearray(), bytearray(), []
            change: dict[str, int | None] = {name: other}
        elif kind == "mkdir":
            change = {name: FOLDER}
        elif kind == "rename":
            change = {name: None, other: self.names[name]}
        else:
            change = {name: None}
        _rename(self.names, change)
        self.waiting_names.append((str(Path(name).parent).removeprefix("."), change))

    def tree(self) -> dict[str, bytes | None]:
        """name -> content, None for a folder: what a crash of the process alone leaves."""
        return {name: None if i == FOLDER else bytes(self.content[i]) for name, i in self.names.items()}

    def tree_after_power_loss(self, draw: random.Random) -> dict[str, bytes | None]:
        """name -> content: what is safe, and of the rest each change kept or lost by lot."""
        chance = draw.choice([0.1, 0.5, 0.9])
        names = dict(self.safe_names)
        for _, change in self.waiting_names:
            if draw.random() < chance:
                _rename(names, change)
        content = {inode: bytearray(safe) for inode, safe in self.safe_content.items()}
        for inode, waiting in self.waiting_content.items():
            for piece in waiting:
                if draw.random() < chance:
                    _change(content[inode], piece)
        return {name: None if i == FOLDER else bytes(content[i]) for name, i in names.items()}


def write_tree(tree: dict[str, bytes | None], root: Path) -> None:
    """Makes the files; those whose folder was lost are lost with it."""
    root.mkdir()
    for name, content in sorted(tree.items()):
        if (root / name).parent.is_dir():
            if content is None:
                (root / name).mkdir()
            else:
                (root / name).write_bytes(content)


def _pages(event: Event) -> Iterator[Event]:
    """The event cut where the disk may cut it."""
    kind, inode, *values = event
    if kind == "size":
        yield event
        return
    offset, content = values
    while content:
        count = _PAGE - offset % _PAGE
        yield "write", inode, offset, content[:count]
        offset, content = offset + count, content[count:]


def _change(content: bytearray, event: Event) -> None:
    kind, _, first, *rest = event
    end = first if kind == "size" else first + len(rest[0])
    if end > len(content):
        content.extend(bytes(end - len(content)))
    if kind == "write":
        content[first:end] = rest[0]


def _rename(names: dict[str, int], change: dict[str, int | None]) -> None:
    for name, inode in change.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode
