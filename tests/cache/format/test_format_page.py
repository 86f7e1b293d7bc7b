"""cache/FORMAT.md: a stranger's ten lines read what kdkit wrote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from support import digits_dataset, tiny_model

from kdkit import build_cache, create_teacher, open_cache
from kdkit.building.config import BuildConfig

PAGE = Path(__file__).parents[3] / "cache" / "FORMAT.md"


def test_the_pages_ten_lines_read_a_packed_float16_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = digits_dataset(12)
    build_cache(create_teacher(tiny_model()), dataset, tmp_path / "t.h5", BuildConfig(codec="float16", num_workers=0))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(code, found)
    cache = open_cache(tmp_path / "t.h5")
    decoded = cache.codecs["logits"].decode(cache.read_encoded(torch.tensor([0, 2, 5]), 0))
    torch.testing.assert_close(torch.from_numpy(found["log_p"]), decoded)
    assert capsys.readouterr().out.strip() == str(decoded.argmax(1).numpy())


def test_the_page_names_every_member_of_a_file(tmp_path: Path) -> None:
    import h5py

    build_cache(create_teacher(tiny_model()), digits_dataset(12), tmp_path / "t.h5", BuildConfig(num_workers=0))
    page = PAGE.read_text()
    with h5py.File(tmp_path / "t.h5") as file:
        members = [f"attribute `{name}`" for name in file.attrs]
        file.visititems(lambda name, item: members.append(name) if isinstance(item, h5py.Dataset) else None)
    for member in members:
        generic = re.sub(r"views/\d{4}", "views/VVVV", member).replace("/logits", "/STREAM")
        assert generic in page, member
