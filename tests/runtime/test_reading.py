"""Faults 33 and 41, files and documents of any origin: whatever is not a bounded regular file is one typed line."""

from __future__ import annotations

import json
import os
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import within

from kdkit.errors import CheckpointError, ConfigError, KdkitError, printable
from kdkit.runtime.documents import parse_json, parse_yaml
from kdkit.runtime.reading import open_regular, read_bytes, read_json, read_text, read_yaml


def open_and_read(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


READERS: dict[str, Callable[[Path], Any]] = {
    "open_regular": open_and_read,
    "read_bytes": lambda path: read_bytes(path, limit=100),
    "read_text": lambda path: read_text(path, limit=100),
    "read_json": lambda path: read_json(path, limit=100),
    "read_yaml": lambda path: read_yaml(path, limit=100),
}


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipe": (os.mkfifo, "is a pipe, expected a regular file"),
    "a folder": (Path.mkdir, "is a folder, expected a regular file"),
    "a socket": (_socket, "cannot be read: No such device or address"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a regular file"),
    "nothing": (lambda path: None, "there is no file"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "there is no file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels"),
    "a pointer of git-lfs": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is a pointer of git-lfs, not the file itself: run git lfs pull",
    ),
    "a web page": (lambda path: path.write_text("\n<!DOCTYPE html>"), "is a web page: download the file itself"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_fault_33_whatever_is_not_the_file_that_is_meant_is_refused_without_waiting(
    tmp_path: Path, kind: str, reader: str
) -> None:
    make, expected = KINDS[kind]
    make(tmp_path / "it")
    with within(60), pytest.raises(ConfigError, match=expected) as caught:
        READERS[reader](tmp_path / "it")
    assert "it'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fault_33_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="no file has such a name"):
        read_bytes("a\0b", limit=1)
    with pytest.raises(ConfigError, match="File name too long"):
        read_bytes("a" * 5000, limit=1)


def test_the_error_has_the_class_that_its_caller_names(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        read_json(tmp_path / "student.json", error=CheckpointError)


def test_a_regular_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("[1]")
    (tmp_path / "link").symlink_to("it")
    assert read_bytes(tmp_path / "it", limit=3) == b"[1]"
    assert read_json(tmp_path / "link", limit=3) == read_yaml(tmp_path / "link", limit=3) == [1]
    with pytest.raises(ConfigError, match="has 3 bytes, expected at most 2"):
        read_bytes(tmp_path / "it", limit=2)
    with pytest.raises(ConfigError, match="cannot be read"), open_regular(tmp_path / "link", follow_links=False):
        """A folder of shards holds no link."""


def test_text_with_the_mark_of_windows_is_read_and_of_another_encoding_refused(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"\xef\xbb\xbf[1]\r\n")
    assert read_json(tmp_path / "it") == read_yaml(tmp_path / "it") == [1]
    assert read_text(tmp_path / "it", limit=100) == "[1]\r\n"
    (tmp_path / "it").write_text("[1]", encoding="utf-16")
    for read in (read_json, lambda path: read_text(path, limit=100)):
        with pytest.raises(ConfigError, match=r"not text in UTF-8 .*: save it as UTF-8"):
            read(tmp_path / "it")


@pytest.mark.parametrize("path", ["/proc/kallsyms", "/proc/self/environ"])
def test_a_file_that_states_no_size_is_read_up_to_the_limit_only(path: str) -> None:
    if not Path(path).exists():
        pytest.skip("needs a proc file system")
    with pytest.raises(ConfigError, match="expected at most 4"):
        read_bytes(path, limit=4)


ALIASES = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
JSON: dict[str, str] = {
    "deep": "[" * 100_000,
    "deep and closed": "[" * 20 + "]" * 20,
    "a deep object": '{"a":' * 900 + "1" + "}" * 900,
    "5,000 digits": "[" + "9" * 5000 + "]",
    "30 digits": '{"num_rows": ' + "9" * 30 + "}",
    "beyond int64": str(1 << 63),
    "a name twice": '{"a": 1, "a": 2}',
    "a name twice within": '[{"a": {"b": 1, "b": 1}}]',
    "too many items": "[" + "0," * (1 << 20) + "0]",
    "too many empty lists": "[" + "[]," * (1 << 20) + "0]",
    "no JSON": "\x00",
    "nothing": "",
    "cut off": '{"a": [1,',
    "half a surrogate and more": '"\\ud800',
}
YAML: dict[str, str] = {
    "deep": "[" * 60_000,
    "deep and closed": "[" * 20 + "]" * 20,
    "deep blocks": "- " * 20_000 + "a",
    "5,000 digits": "a: " + "9" * 5000,
    "5,000 hexadecimal digits": "a: 0x" + "f" * 5000,
    "a sexagesimal number without end": "a: 1" + ":1" * 5000,
    "a name twice": "a: 1\na: 2",
    "a name twice within": "b: [{a: 1, a: 1}]",
    "one alias": "a: &a [b]\nb: *a",
    "a list that holds itself": "a: &a [*a]",
    "aliases of aliases": ALIASES,
    "a list as a name": "[b]: c",
    "a Python object": "a: !!python/object:os.system {}",
    "month 13": "a: 2026-13-01",
    "a control character": "a: \x00",
    "a tab": "\ta: b",
    "two documents": "a: 1\n---\nb: 2",
}


@pytest.mark.parametrize("name", JSON)
def test_fault_41_json_beyond_the_bounds_is_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "it.json").write_text(JSON[name])
    with within(60), pytest.raises(ConfigError, match=r"it\.json' is not JSON that kdkit can read: \S") as caught:
        read_json(tmp_path / "it.json", limit=16 << 20)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


@pytest.mark.parametrize("name", YAML)
def test_fault_41_yaml_beyond_the_bounds_is_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "it.yaml").write_text(YAML[name])
    with within(60), pytest.raises(ConfigError, match=r"it\.yaml'(, line \d+)?: \S") as caught:
        read_yaml(tmp_path / "it.yaml")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_what_is_within_the_bounds_is_what_the_plain_parser_reads(parse: Callable[..., Any]) -> None:
    document = {"a": [1, -(1 << 63), (1 << 63) - 1, 1.5e300, True, None, 'é, [{ \\ "'], "b": {"c": [[[]]]}, "d": ""}
    assert parse(json.dumps(document), "it") == document
    assert parse(json.dumps(document).encode(), "it") == document


def test_commas_and_brackets_in_texts_are_no_items() -> None:
    document = ["a,b[{" * 100] * 10
    assert parse_json(json.dumps(document), "it", max_items=20) == document
    with pytest.raises(ConfigError, match="more than 9 items"):
        parse_json(json.dumps(document), "it", max_items=9)


def test_aliases_are_read_up_to_their_cap_and_counted_each_time() -> None:
    shared = "a: &a [x, y]\nb: *a\nc: *a\n"
    assert parse_yaml(shared, "it", max_aliases=2) == {"a": ["x", "y"], "b": ["x", "y"], "c": ["x", "y"]}
    with pytest.raises(ConfigError, match=r"it, line 1: an alias"):
        parse_yaml(shared, "it", max_aliases=1)
    with within(60), pytest.raises(ConfigError, match="more than"):
        parse_yaml(ALIASES, "it", max_aliases=1000)


def test_fault_41_a_document_takes_no_more_memory_than_a_few_times_its_size() -> None:
    text = "[" + "[]," * ((16 << 20) // 3 - 1) + "[]]"
    tracemalloc.start()
    with pytest.raises(ConfigError, match="more than"):
        parse_json(text, "it")
    assert tracemalloc.get_traced_memory()[1] < 3 * len(text)
    tracemalloc.stop()


def test_fault_44_an_error_shows_escape_sequences_and_never_sends_them() -> None:
    shown = str(KdkitError("the class \x1b[31mred\x1b[0m\u202e \x9b2J\r of 'café 日本\u3000'"))
    assert shown == "the class \\x1b[31mred\\x1b[0m\\u202e \\x9b2J\\r of 'café 日本\u3000'"
    assert printable("two\nlines\tand a tab") == "two\nlines\tand a tab"


def test_fault_41_an_error_that_names_what_a_file_holds_stays_short() -> None:
    shown = str(KdkitError("the class '" + "9" * 5000 + "' is unknown: leave it out"))
    assert len(shown) < 2000
    assert shown.startswith("the class '999")
    assert shown.endswith("9' is unknown: leave it out")
