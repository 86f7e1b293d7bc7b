"""Cache files made to harm: each starts as a good packed cache or parts folder and is then changed with plain h5py."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from synthetic import Synthetic

CACHE = Synthetic(num_rows=40, num_views=2)
ROWS = "views/0000/logits"
SHAPE = (40, 24)
UNKNOWN_FILTER = 4242

Change = Callable[[h5py.File, Path], None]
"""Changes an open good file; the path is a file that nobody may open."""


def set_document(file: h5py.File, name: str, text: str) -> None:
    """A root document with its right checksum, as kdkit writes it."""
    for attribute in (name, f"{name}_crc32"):
        if attribute in file.attrs:
            del file.attrs[attribute]
    content = text.encode()
    file.attrs.create(name, np.array(content, dtype=h5py.string_dtype("utf-8", len(content))))
    file.attrs.create(f"{name}_crc32", np.uint32(zlib.crc32(content)))


def _replaced(name: str, make: Callable[[h5py.File, Path], Any]) -> Change:
    """The member `name` replaced by what `make` makes in its place."""

    def change(file: h5py.File, bait: Path) -> None:
        del file[name]
        made = make(file, bait)
        if made is not None:
            file[name] = made

    return change


def _dataset(name: str = ROWS, **options: Any) -> Change:
    return _replaced(name, lambda file, bait: file.create_dataset(name, **options) and None)


def _external_storage(file: h5py.File, bait: Path) -> None:
    del file[ROWS]
    file.create_dataset(ROWS, SHAPE, "u1", external=[(str(bait), 0, 960)])


def _external_offset(file: h5py.File, bait: Path) -> None:
    """Many small pieces of foreign files."""
    del file["rows/key_digest"]
    file.create_dataset("rows/key_digest", (40, 16), "u1", external=[(str(bait), 16 * i, 16) for i in range(40)])


def _virtual(file: h5py.File, bait: Path) -> None:
    del file[ROWS]
    layout = h5py.VirtualLayout(SHAPE, "u1")
    layout[:] = h5py.VirtualSource(str(bait), "rows", SHAPE)
    file.create_virtual_dataset(ROWS, layout)


def _bomb(file: h5py.File, bait: Path) -> None:
    """Gigabytes of zeros that a filter would make of a few bytes."""
    del file["rows/keys_zlib"]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1 << 30,))
    plist.set_deflate(9)
    space = h5py.h5s.create_simple((1 << 40,))
    made = h5py.h5d.create(file["rows"].id, b"keys_zlib", h5py.h5t.NATIVE_UINT8, space, plist)
    made.write_direct_chunk((0,), zlib.compress(bytes(1 << 20)))


def _zlib_bomb(file: h5py.File, bait: Path) -> None:
    """Keys that unpack to a gigabyte; its checksum is right."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()
    del file["rows/keys_zlib"]
    _contiguous(file, "rows/keys_zlib", np.frombuffer(packed, "u1"))
    set_sum(file, "rows/keys_zlib", zlib.crc32(packed))


def set_sum(file: h5py.File, name: str, crc: int) -> None:
    """Makes the file state this CRC-32 of an array."""
    sums = json.loads(file.attrs["kdkit_arrays"])
    set_document(file, "kdkit_arrays", json.dumps({**sums, name: crc}))


def _contiguous(file: h5py.File, name: str, values: Any) -> None:
    file.create_dataset(name, data=values, track_times=False)


def _unknown_filter(file: h5py.File, bait: Path) -> None:
    del file[ROWS]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(SHAPE)
    plist.set_filter(UNKNOWN_FILTER, h5py.h5z.FLAG_OPTIONAL, (1,))
    made = h5py.h5d.create(file["views/0000"].id, b"logits", h5py.h5t.STD_U8LE, h5py.h5s.create_simple(SHAPE), plist)
    made.write_direct_chunk((0, 0), bytes(960))


def _compact(file: h5py.File, bait: Path) -> None:
    del file[ROWS]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file["views/0000"].id, b"logits", h5py.h5t.STD_U8LE, h5py.h5s.create_simple(SHAPE), plist)


def _committed(file: h5py.File, bait: Path) -> None:
    del file[ROWS]
    kind = h5py.h5t.STD_U8LE.copy()
    kind.commit(file.id, b"kind")
    h5py.h5d.create(file["views/0000"].id, b"logits", kind, h5py.h5s.create_simple(SHAPE))


def _member_is_a_type(file: h5py.File, bait: Path) -> None:
    del file[ROWS]
    h5py.h5t.STD_U8LE.copy().commit(file["views/0000"].id, b"logits")


def _attribute(value: Any, dtype: Any = None) -> Change:
    def change(file: h5py.File, bait: Path) -> None:
        del file.attrs["kdkit"]
        file.attrs.create("kdkit", value, dtype=dtype)

    return change


def _committed_attribute(file: h5py.File, bait: Path) -> None:
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(file.attrs["kdkit"]))
    kind.commit(file.id, b"kind")
    del file.attrs["kdkit"]
    h5py.h5a.create(file.id, b"kdkit", kind, h5py.h5s.create(h5py.h5s.SCALAR))


def metadata(**changes: Any) -> Change:
    """The metadata document with some fields changed (None removes one) and a right checksum."""

    def change(file: h5py.File, bait: Path) -> None:
        document = {**json.loads(file.attrs["kdkit"]), **changes}
        document = {name: value for name, value in document.items() if value is not None}
        set_document(file, "kdkit", json.dumps(document))

    return change


def _stream(name: str = "logits", row_bytes: Any = 24, **codec: Any) -> Change:
    described = {"name": "float32", "num_classes": 6, **codec}
    return metadata(streams={name: {"codec": described, "row_bytes": row_bytes}})


def _feature(row_bytes: Any = 24, **codec: Any) -> Change:
    """A cache of features in place of logits."""
    return metadata(streams={"pooled": {"codec": {"name": "float16", **codec}, "row_bytes": row_bytes}})


def _document(text: str) -> Change:
    return lambda file, bait: set_document(file, "kdkit", text)


def _two_names(file: h5py.File, bait: Path) -> None:
    """One set of bytes under two names."""
    del file["views/0001/logits"]
    file["views/0001/logits"] = file[ROWS]


def _extra(file: h5py.File, bait: Path) -> None:
    file["views/0000/more"] = h5py.ExternalLink(str(bait), "/")


def _name_through_link(file: h5py.File, bait: Path) -> None:
    """A name in the table of checksums that leads through an external link."""
    file["codecs/logits/x"] = h5py.ExternalLink(str(bait), "/")
    set_sum(file, "codecs/logits/x/y", 0)


def _sum(name: str) -> Change:
    """A name more in the table of checksums."""
    return lambda file, bait: set_sum(file, name, 0)


def set_keys(file: h5py.File, joined: bytes) -> None:
    """The keys, joined by NUL, with a right checksum."""
    packed = zlib.compress(joined, 9)
    del file["rows/keys_zlib"]
    _contiguous(file, "rows/keys_zlib", np.frombuffer(packed, "u1"))
    set_sum(file, "rows/keys_zlib", zlib.crc32(packed))


def _huge_everywhere(file: h5py.File, bait: Path) -> None:
    metadata(num_rows=1 << 36)(file, bait)
    _dataset(shape=(1 << 36, 24), dtype="u1")(file, bait)


PACKED: dict[str, Change] = {
    "external storage": _external_storage,
    "external storage in pieces": _external_offset,
    "external link to the rows": _replaced(ROWS, lambda f, bait: h5py.ExternalLink(str(bait), "rows")),
    "external link as the views": _replaced("views", lambda f, bait: h5py.ExternalLink(str(bait), "/views")),
    "external link as one view": _replaced("views/0001", lambda f, bait: h5py.ExternalLink(str(bait), "/views/0001")),
    "external link as an extra member": _extra,
    "a name that leads through an external link": _name_through_link,
    "'..' in a name": _sum("codecs/logits/.."),
    "'../' in a name": _sum("codecs/logits/../../rows"),
    "an absolute name": _sum("/views/0000/logits"),
    "an empty name": _sum(""),
    "a name of one component": _sum("x"),
    "NUL in a name": _sum("codecs/logits/a\0b"),
    "a hundred thousand empty keys": lambda file, bait: set_keys(file, bytes(100_000)),
    "soft link to the rows": _replaced(ROWS, lambda f, bait: h5py.SoftLink("/views/0001/logits")),
    "soft link as a group": _replaced("views/0001", lambda f, bait: h5py.SoftLink("/views/0000")),
    "virtual dataset": _virtual,
    "huge declared shape": _dataset(shape=(1 << 50, 24), dtype="u1"),
    "huge declared shape in every place": _huge_everywhere,
    "shape whose size overflows": _dataset(shape=(1 << 60, 1 << 60), dtype="u1", chunks=(1, 1)),
    "compressed bomb": _bomb,
    "zlib bomb of keys": _zlib_bomb,
    "compressed rows": _dataset(data=np.zeros(SHAPE, "u1"), compression="gzip"),
    "chunked rows": _dataset(data=np.zeros(SHAPE, "u1"), chunks=(10, 24)),
    "compact rows": _compact,
    "unknown filter": _unknown_filter,
    "rows never allocated": _dataset(shape=SHAPE, dtype="u1"),
    "variable-length rows": _dataset(shape=(40,), dtype=h5py.vlen_dtype(np.uint8)),
    "variable-length texts": _dataset(shape=SHAPE, dtype=h5py.string_dtype()),
    "object references": _dataset(shape=SHAPE, dtype=h5py.ref_dtype),
    "region references": _dataset(shape=SHAPE, dtype=h5py.regionref_dtype),
    "compound rows": _dataset(data=np.zeros(SHAPE, [("a", "u1")])),
    "enum rows": _dataset(data=np.zeros(SHAPE, h5py.enum_dtype({"a": 0}, "u1"))),
    "big-endian checksums": _dataset("views/0000/logits_crc32", data=np.zeros(1, ">u4")),
    "another width": _dataset(data=np.zeros((40, 23), "u1")),
    "scalar rows": _dataset(data=np.uint8(1)),
    "empty dataspace": _dataset(data=h5py.Empty("u1")),
    "committed datatype": _committed,
    "datatype in place of rows": _member_is_a_type,
    "group in place of rows": _replaced(ROWS, lambda f, bait: f.create_group(ROWS) and None),
    "dataset in place of a group": _dataset("views/0001", data=np.zeros(3, "u1")),
    "two names for the same bytes": _two_names,
    "view missing": lambda file, bait: file.__delitem__("views/0001"),
    "group more": lambda file, bait: file.create_group("more") and None,
    "a million extra views": lambda file, bait: metadata(num_views=10_000)(file, bait),
    "oversized attribute": _attribute(np.array(b"x" * (17 << 20), dtype=h5py.string_dtype("utf-8", 17 << 20))),
    "attribute of variable length": _attribute("{}"),
    "attribute that is an array": _attribute(np.array([b"{}", b"{}"], dtype="S2")),
    "attribute that is a number": _attribute(5),
    "attribute that is a reference": _attribute(h5py.Reference(), h5py.ref_dtype),
    "attribute of a committed type": _committed_attribute,
    "checksum that is a text": lambda file, bait: file.attrs.create("kdkit_crc32", "5"),
    "deep JSON": _document("[" * 100_000),
    "deep JSON that closes": _document('{"a":' * 900 + "1" + "}" * 900),
    "deep JSON within a field": metadata(recipe={"a": json.loads("[" * 40 + "]" * 40)}),
    "a number of many digits": _document('{"version": ' + "9" * 100_000 + "}"),
    "too many items": metadata(recipe={"a": [0] * ((1 << 20) + 1)}),
    "a name twice": _document('{"format": "kdkit teacher cache", "format": "kdkit teacher cache"}'),
    "no object": _document("[1]"),
    "no JSON": _document("\x00"),
    "'../' in a stream's name": _stream("../../rows"),
    "absolute stream name": _stream("/views"),
    "stream called like a checksum": _stream("logits_crc32"),
    "rows as text": metadata(num_rows="40"),
    "rows below zero": metadata(num_rows=-1),
    "rows as a fraction": metadata(num_rows=40.0),
    "rows as a boolean": metadata(num_rows=True),
    "too many rows": metadata(num_rows=1 << 62),
    "no views": metadata(num_views=0),
    "shards that cut a block": metadata(shard_rows=1500),
    "too many shards": metadata(num_rows=1 << 40, num_views=10_000),
    "a field missing": metadata(teacher=None),
    "an unknown field": metadata(more=1),
    "a teacher that is a list": metadata(teacher=[1]),
    "classes that are numbers": metadata(dataset={"keys_sha256": "", "class_names": [1, 2]}),
    "codec of other row size": _stream(num_classes=5),
    "codec of a trillion classes": _stream(num_classes=10**12),
    "codec with a class count as text": _stream(num_classes="6"),
    "codec with an unknown option": _stream(evil=1),
    "codec of one class": _stream(num_classes=1, row_bytes=4),
    "row size as text": _stream(row_bytes="24"),
    "no stream at all": metadata(streams={}),
    "a feature without a shape": _feature(),
    "a feature of no side": _feature(shape=[]),
    "a feature of four sides": _feature(shape=[3, 2, 2, 1]),
    "a feature's side as text": _feature(shape=["12"]),
    "a feature's side as a boolean": _feature(shape=[True, 12]),
    "a feature's side below one": _feature(shape=[-12]),
    "a feature larger than a row": _feature(shape=[1 << 24, 1 << 24, 1 << 24]),
    "a feature of other row size": _feature(shape=[13]),
    "a feature with a class count": _feature(shape=[12], num_classes=6),
    "a feature in a codec of logits": _feature(shape=[6], name="float32"),
    "a feature that is not in the file": _feature(shape=[12]),
    "a feature more than there is": metadata(
        streams={
            "logits": {"codec": {"name": "float32", "num_classes": 6}, "row_bytes": 24},
            "pooled": {"codec": {"name": "float16", "shape": [12]}, "row_bytes": 24},
        }
    ),
}


def make_packed(folder: Path, bait: Path, *only: str) -> dict[str, Path]:
    """One file for each change, or for the changes that are named."""
    good = CACHE.build(folder / "good.h5").read_bytes()
    made = {}
    for number, name in enumerate(only or PACKED):
        made[name] = folder / f"{number:03d}.h5"
        made[name].write_bytes(good)
        with h5py.File(made[name], "r+", libver="v110") as file:
            PACKED[name](file, bait)
    return made


def _link(name: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, bait: Path) -> None:
        moved = folder.with_name(f"moved-{name}-{folder.name}")
        (folder / name).rename(moved)
        (folder / name).symlink_to(moved)

    return change


def _entry(**changes: Any) -> Callable[[Path, Path], None]:
    def change(folder: Path, bait: Path) -> None:
        path = folder / "v0001-r0000000000.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _text(text: str) -> Callable[[Path, Path], None]:
    return lambda folder, bait: (folder / "v0001-r0000000000.json").write_text(text) and None


def _pipe(name: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, bait: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def _other_shard(folder: Path, bait: Path) -> None:
    """View 0 in the place of view 1: the same size, but not the shard that the entry names."""
    (folder / "v0001-r0000000000.h5").write_bytes((folder / "v0000-r0000000000.h5").read_bytes())


PARTS: dict[str, Callable[[Path, Path], None]] = {
    "symlinked shard": _link("v0001-r0000000000.h5"),
    "symlinked index": _link("index.h5"),
    "symlinked entry": _link("v0001-r0000000000.json"),
    "'../' in an entry": _entry(file="../bait.h5"),
    "absolute name in an entry": _entry(file="/etc/passwd"),
    "entry of another shard": _entry(view=0),
    "size as text": _entry(bytes="1"),
    "size as a fraction": _entry(bytes=1.0),
    "deep entry": _text("[" * 3000),
    "huge entry": _text(" " * (1 << 20) + "{}"),
    "entry that is no text": lambda folder, bait: (folder / "v0001-r0000000000.json").write_bytes(b"\xff\xfe") and None,
    "shard that is a pipe": _pipe("v0001-r0000000000.h5"),
    "entry that is a pipe": _pipe("v0001-r0000000000.json"),
    "index that is a pipe": _pipe("index.h5"),
    "shard of another view": _other_shard,
}


def make_parts(folder: Path, bait: Path) -> dict[str, Path]:
    """One parts folder for each change."""
    made = {}
    for number, (name, change) in enumerate(PARTS.items()):
        made[name] = CACHE.build(folder / f"{number:03d}", packed=False)
        change(made[name], bait)
    return made
