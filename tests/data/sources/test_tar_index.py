"""The index of a large tar: an opening does not list the tar again, and a stale or damaged index is never believed."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from kdkit.data import create_source
from kdkit.data.sources import tar_index, tar_listing
from kdkit.data.sources.member import Member
from kdkit.errors import DatasetError

ODD = ["a b", "new\nline", "back\\slash\\n", "e\u0301", "\u00e9", "bytes\udcff", "x" * 150]


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def shard(path: Path, first: int = 0, count: int = 12) -> Path:
    with tarfile.open(path, "w") as archive:
        for number in range(first, first + count):
            add(archive, f"{number:06d}.png", png(number))
            add(archive, f"{number:06d}.cls", str(number % 3).encode())
    return path


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, in which tars of any size and age get an index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tar_index, "_WORTH", 1)
    monkeypatch.setattr(tar_index, "_SETTLED", -60.0)
    return tmp_path / "cache" / "kdkit" / "tars"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tars whose headers are read."""
    names: list[str] = []
    list_one = tar_listing._list_one

    def noting(file: Path, tars: tuple[str, ...]) -> list[Member]:
        names.append(file.name)
        return list_one(file, tars)

    monkeypatch.setattr(tar_listing, "_list_one", noting)
    return names


def test_members_of_any_name_and_depth_come_back_from_the_index_as_they_were_listed(
    tmp_path: Path, listed: list[str]
) -> None:
    inner = shard(tmp_path / "inner.tar")
    (tmp_path / "data").mkdir()
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "data" / f"{kind}.tar", "w", format=kind) as archive:
            for name in ODD:
                add(archive, f"./{name}/0.png", png(1))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "a b"
            archive.addfile(link)
            add(archive, f"{ODD[1]}/inner.tar", inner.read_bytes())
    for path in (tmp_path / "data", tmp_path / "data" / f"{tarfile.PAX_FORMAT}.tar"):
        first = tar_listing.list_members(path)
        assert {member.kind for member in first} == {"file", "folder", "link"}
        assert max(len(member.tars) for member in first) == (2 if path.is_dir() else 1)
        listed.clear()
        assert tar_listing.list_members(path) == first
        assert listed == []
        assert all(member.read() == first[place].read() for place, member in enumerate(first) if member.kind == "file")


def test_only_a_shard_that_is_another_one_is_listed_again(tmp_path: Path, listed: list[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        shard(data / f"a-{number:06d}.tar", 12 * number)
    first = create_source(data)
    listed.clear()
    replaced = data / "a-000001.tar"
    before = replaced.stat()
    with tarfile.open(replaced, "w") as archive:
        for number in range(12, 24):
            add(archive, f"{number if number > 12 else 99:06d}.png", png(number))
            add(archive, f"{number if number > 12 else 99:06d}.cls", str(number % 3).encode())
    os.utime(replaced, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert replaced.stat().st_size == before.st_size
    second = create_source(data)
    assert listed == ["a-000001.tar"]
    assert set(second.keys) ^ set(first.keys) == {"a-000001.tar/000012", "a-000001.tar/000099"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
        lambda content: content[:5] + b"X" + content[6:],
        lambda content: tar_index._FORMAT + b"\0\0\0\0",
    ],
)
def test_a_damaged_index_is_made_again(
    tmp_path: Path, places: Path, listed: list[str], damage: Callable[[bytes], bytes]
) -> None:
    path = shard(tmp_path / "a-000000.tar")
    first = tar_listing.list_members(path)
    (index,) = places.iterdir()
    whole = index.read_bytes()
    index.write_bytes(damage(whole))
    listed.clear()
    assert tar_listing.list_members(path) == first
    assert listed == [path.name]
    assert index.read_bytes() == whole


def test_a_folder_in_which_nothing_can_be_written_or_an_unfinished_tar_gets_no_index(
    tmp_path: Path, places: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(tmp_path / "a-000000.tar")
    monkeypatch.setattr(tar_index, "_SETTLED", 2.0)  # its times may still be those of its next change
    tar_listing.list_members(path)
    assert not places.exists()
    monkeypatch.setattr(tar_index, "_SETTLED", -60.0)
    places.parent.parent.write_text("a file in place of the folder")
    assert len(create_source(path)) == 12
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # is ignored
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as of a user without a home
    monkeypatch.chdir(tmp_path)
    os.utime(path, ns=(-5, -5))
    assert len(create_source(path)) == 12
    assert listed == [path.name] * 3
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name, "cache"]


def test_a_tar_from_before_1970_gets_an_index_too(tmp_path: Path, listed: list[str]) -> None:
    path = shard(tmp_path / "a-000000.tar")
    os.utime(path, ns=(-5, -5))
    assert tar_listing.list_members(path) == tar_listing.list_members(path)
    assert listed == [path.name]


def test_a_tar_that_is_packed_again_after_it_was_listed_gives_no_other_image(tmp_path: Path) -> None:
    path = shard(tmp_path / "a-000000.tar")
    source = create_source(path)
    with tarfile.open(path, "w") as archive:
        for number in reversed(range(12)):
            add(archive, f"{number:06d}.png", png(number))
            add(archive, f"{number:06d}.cls", b"0")
    with pytest.raises(DatasetError, match=r"'a-000000\.tar/000003' .* has changed since it was listed"):
        source[3]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DatasetError, match="has changed since it was listed"):
        source[11]


def test_a_sparse_member_whose_bytes_are_not_its_content_is_refused(tmp_path: Path) -> None:
    content = bytearray(shard(tmp_path / "a-000000.tar", count=1).read_bytes())
    content[156:157] = tarfile.GNUTYPE_SPARSE
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (tmp_path / "a-000000.tar").write_bytes(content)
    with pytest.raises(DatasetError, match=r"'000000\.png' in the tar .* is a sparse file"):
        create_source(tmp_path / "a-000000.tar")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, None], ids=["GNU", "PAX", "PAX global"])
@pytest.mark.parametrize("names", [["é", "è"], ["a" * 100 + "1", "a" * 100 + "2"]], ids=["Unicode", "long"])
@pytest.mark.parametrize("nested", [False, True])
def test_members_that_change_places_in_an_open_tar_are_found_where_the_names_differ_in_extended_headers_alone(
    tmp_path: Path, names: list[str], form: int | None, nested: bool
) -> None:
    path = tmp_path / "a.tar"

    def pack(order: list[str]) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
            for name in order:
                member = f"cat/{name}.png"
                if form is None:
                    assert archive.fileobj is not None
                    archive.fileobj.write(tarfile.TarInfo.create_pax_global_header({"path": member}))
                add(archive, member if form else "any", png(1 + names.index(name)))
        if nested:
            outer = io.BytesIO()
            with tarfile.open(fileobj=outer, mode="w") as archive:
                add(archive, "inner.tar", packed.getvalue())
            packed = outer
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(packed.getvalue())

    pack(names)
    size = path.stat().st_size
    source = create_source(path, labels="folder")
    assert [source[row][0].getpixel((0, 0))[0] for row in range(2)] == [
        1 + names.index(Path(key).stem) for key in source.keys
    ]
    pack(names[::-1])
    assert path.stat().st_size == size
    for row in range(2):
        with pytest.raises(DatasetError, match="has changed since it was listed"):
            source[row]
