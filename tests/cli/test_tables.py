"""What a cache and a card are, in a few lines and as JSON, compared with a plain reading of their files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import yaml

from kdkit.cli import main

ROOT = Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "cache" / "golden").glob("v1-*.h5"))


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must succeed; returns what it printed."""

    def run(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_info_is_short_and_its_json_holds_what_the_file_does(path: Path, show: Any) -> None:
    with h5py.File(path, "r") as file:
        stored = json.loads(file.attrs["kdkit"])
    found = json.loads(show("cache", "info", str(path), "--json"))
    assert found["bytes"] == path.stat().st_size
    assert (found["images"], found["views"]) == (stored["num_rows"], stored["num_views"])
    assert {name: (each["codec"], each["row_bytes"]) for name, each in found["streams"].items()} == {
        name: (each["codec"], each["row_bytes"]) for name, each in stored["streams"].items()
    }
    for stream, each in found["streams"].items():
        assert each["fidelity"] == [] or len(each["fidelity"]) in (1, stored["num_views"])
        assert bool(each["fidelity"]) == (stream in stored.get("fidelity", {}))
    for name in ("teacher", "recipe"):
        assert found[name] == stored[name]
    short, whole = show("cache", "info", str(path)), show("cache", "info", str(path), "--all")
    assert len(short.splitlines()) < len(whole.splitlines())
    assert "SHA-256" in whole
    assert "SHA-256" not in short
    for text in (f"{path.stat().st_size:,} bytes", f"{stored['num_views']} per image", stored["teacher"]["name"]):
        assert text in short
    for stream, each in stored["streams"].items():
        assert f"{stream:<10} {each['codec']['name']}, " in short
        assert f"{each['row_bytes']} bytes per row" in short


def test_info_tells_the_worst_view(show: Any) -> None:
    path = ROOT / "cache" / "golden" / "v1-fidelity.h5"
    short = show("cache", "info", str(path))
    assert "KL 11 nats in the worst of 2 views" in short  # the views of this file have 1 and 11
    assert "relative error 11 (p90 12) in the worst of 2 views; about the mean -, cosine - in view 0" in short


def test_a_card_is_a_few_lines_in_a_terminal_and_a_document_elsewhere(
    show: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = show("teachers", "show", "resnet50.a1_in1k")
    card = yaml.safe_load(document)
    assert json.loads(show("teachers", "show", "resnet50.a1_in1k", "--json")) == card
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    short = show("teachers", "show", "resnet50.a1_in1k")
    assert show("teachers", "show", "resnet50.a1_in1k", "--all") == document
    assert len(short.splitlines()) < 15
    for text in ("224 x 224", "1,000", "0.485 0.456 0.406", "0.229 0.224 0.225", "timm/resnet50.a1_in1k", "--all"):
        assert text in short


@pytest.mark.parametrize("command", [["cache", "info", str(GOLDEN[0])], ["teachers", "show", "resnet50.a1_in1k"]])
def test_all_and_json_exclude_each_other(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--all", "--json"]) == 1
    assert "all and json exclude each other" in capsys.readouterr().err
