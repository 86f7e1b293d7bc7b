"""Checkpoints as people have them: the weights are found in their container, freed of prefixes, and fitted."""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from support import tiny_model
from torch import Tensor, nn

from kdkit import create_teacher
from kdkit.errors import CheckpointError
from kdkit.teachers.model_config import model_config
from kdkit.teachers.weights import read_checkpoint

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
State = dict[str, Tensor]


def model() -> nn.Module:
    return tiny_model(seed=4).eval()


def below(prefix: str) -> Callable[[State], Any]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def wrapped_blocks(wrapper: str) -> Callable[[State], State]:
    """As torch.compile, FSDP and activation checkpointing of a submodule leave them."""
    return lambda state: {name.replace("layer1.", f"layer1.{wrapper}"): value for name, value in state.items()}


FORMS: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda state: state, ""),
    "state_dict": (lambda state: {"epoch": 3, "state_dict": state}, ""),
    "model": (lambda state: {"model": state, "optimizer": {"lr": 0.1}}, "'model'"),
    "model_state_dict": (lambda state: {"model_state_dict": state}, "'model_state_dict'"),
    "net": (lambda state: {"net": state, "acc": 93.5, "epoch": 1}, "'net'"),
    "module of DeepSpeed": (lambda state: {"module": state, "ds_version": "0.1"}, "'module'"),
    "ema": (lambda state: {"model": below("")({n: v * 0 for n, v in state.items()}), "ema": state}, "'ema'"),
    "ema of a container": (lambda state: {"ema": {"module": state, "decay": 0.9}}, "'ema.module'"),
    "state_dict_ema": (lambda state: {"state_dict": {n: v * 0 for n, v in state.items()}, "state_dict_ema": state}, ""),
    "module.": (below("module."), "'module.'"),
    "model.": (below("model."), "'model.'"),
    "_orig_mod.": (below("_orig_mod."), ""),
    "module._orig_mod.": (below("module._orig_mod."), "'module.'"),
    "_orig_mod.module.": (below("_orig_mod.module."), "'module.'"),
    "compiled blocks": (wrapped_blocks("_orig_mod."), ""),
    "blocks of FSDP": (wrapped_blocks("_fsdp_wrapped_module._checkpoint_wrapped_module."), ""),
    "module.student. with the rest of a task": (
        lambda state: {"state_dict": below("module.student.")(state) | {"module.projection.weight": torch.zeros(3)}},
        "'module.student.'; 1 others",
    ),
    "Lightning": (
        lambda state: {
            "state_dict": below("model.")(state) | {"criterion.weight": torch.ones(10)},
            "pytorch-lightning_version": "2",
        },
        "'model.'; 1 others",
    ),
    "Lightning with an average": (
        lambda state: below("model.")({n: v * 0 for n, v in state.items()}) | below("model_ema.")(state),
        "'model_ema.'",
    ),
    "student beside teacher": (
        lambda state: below("student.")(state) | below("teacher.")({n: v * 0 for n, v in state.items()}),
        "'student.'",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_in_any_usual_form_and_what_was_taken_is_logged(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, logged = FORMS[form]
    plain = model()
    torch.save(make(plain.state_dict()), tmp_path / "weights.pth")
    with caplog.at_level(logging.WARNING), torch.no_grad():
        teacher = create_teacher("test_resnet", checkpoint=tmp_path / "weights.pth")
        assert torch.equal(teacher.model(IMAGES), plain(IMAGES))
    assert [logged in line for line in caplog.messages] == [True] * bool(logged)


def test_a_moving_average_alone_is_read_also_where_none_is_wanted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"state_dict_ema": below("module.")(model().state_dict())}, tmp_path / "weights.pth")
    found = read_checkpoint(tmp_path / "weights.pth", ema=False)
    assert (found.container, str(found)) == ("state_dict_ema", f"'{tmp_path}/weights.pth', moving average")


def sharded(folder: Path, state: State) -> Path:
    """As accelerate saves a model that is larger than its limit."""
    names, place = list(state), {name: f"model-0000{1 + number % 2}.safetensors" for number, name in enumerate(state)}
    for shard in set(place.values()):
        save_file({name: state[name] for name in names if place[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    return folder


def alone(folder: Path, state: State) -> Path:
    save_file(state, folder / "model.safetensors")
    torch.save({}, folder / "optimizer.bin")
    return folder


@pytest.mark.parametrize("make", [sharded, alone])
def test_a_folder_of_weights_as_accelerate_saves_it_is_read(
    make: Callable[[Path, State], Path], tmp_path: Path
) -> None:
    plain = model()
    teacher = create_teacher("test_resnet", checkpoint=make(tmp_path, plain.state_dict()))
    with torch.no_grad():
        assert torch.equal(teacher.model(IMAGES), plain(IMAGES))


INDICES: dict[str, tuple[Any, str]] = {
    "another folder": ({"weight_map": {"fc.bias": "../x.safetensors"}}, "files of its own folder"),
    "nothing": ({"weight_map": {}}, "is no index of shards"),
    "a list": ([1], "is no index of shards"),
    "a missing shard": ({"weight_map": {"fc.bias": "x.safetensors"}}, "there is no checkpoint at .*x.safetensors"),
    "a missing weight": ({"weight_map": {"other": "model-00001.safetensors"}}, "lists 'other', which is not in"),
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_of_shards_that_does_not_fit_its_folder_is_one_line(name: str, tmp_path: Path) -> None:
    content, text = INDICES[name]
    (sharded(tmp_path, model().state_dict()) / "model.safetensors.index.json").write_text(json.dumps(content))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        with pytest.raises(CheckpointError, match=text):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("file", "text"),
    [(".metadata", "dcp_to_torch .* weights.pth"), ("zero_to_fp32.py", "DeepSpeed: python"), ("x", "without weights")],
)
def test_a_folder_of_another_kind_names_what_makes_weights_of_it(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).touch()
    with pytest.raises(CheckpointError, match=text):
        read_checkpoint(tmp_path)


def test_weights_that_are_nan_are_refused(tmp_path: Path) -> None:
    torch.save(model().state_dict() | {"fc.bias": torch.full((10,), torch.nan)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"holds NaN in fc\.bias"):
        create_teacher("test_resnet", checkpoint=tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"crop_pct": float("nan")}, "crop_pct is nan, expected a number"),
        ({"img_size": 10**9}, "input_size must be from 1 to 4,096 pixels, got 1000000000"),
        ({"mean": ["a", "b", "c"]}, r"mean is \('a', 'b', 'c'\), expected three numbers"),
    ],
)
def test_timms_arguments_that_claim_the_absurd_name_the_file(args: dict[str, Any], text: str, tmp_path: Path) -> None:
    torch.save({"state_dict": model().state_dict(), "args": argparse.Namespace(**args)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"weights.pth': of the arguments of its training, .*{text}"):
        create_teacher("test_resnet", checkpoint=tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "content",
    [
        lambda state: {"state_dict": state, "metric": np.float64(0.5), "log": defaultdict(list)},
        lambda state: {"model": model()},
        lambda state: model(),
    ],
)
def test_the_advice_about_a_pickle_makes_a_file_that_is_read(
    content: Callable[[State], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(content(model().state_dict()), tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(tmp_path / "x.pth")
    monkeypatch.chdir(tmp_path)
    exec(str(refused.value).split('python -c "')[1].removesuffix('"'), {})
    assert set(read_checkpoint("weights.pth").state) == set(model().state_dict())


@pytest.mark.parametrize("name", ["weights.pth", "pytorch_model.bin", "weights.safetensors"])
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_a_file_is_read_by_its_bytes_whatever_it_is_called(name: str, kind: str, tmp_path: Path) -> None:
    plain = model()
    (torch.save if kind == "torch" else save_file)(plain.state_dict(), tmp_path / name)
    with torch.no_grad():
        assert torch.equal(create_teacher("test_resnet", checkpoint=tmp_path / name).model(IMAGES), plain(IMAGES))


def test_a_position_embedding_of_another_size_gives_the_model_its_size(tmp_path: Path) -> None:
    torch.manual_seed(1)
    plain = timm.create_model("test_vit", img_size=64, num_classes=10).eval()
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    teacher = create_teacher("test_vit", checkpoint=tmp_path / "weights.pth")
    images = torch.randn(2, 3, 64, 64)
    assert model_config(teacher.model)["input_size"] == (3, 64, 64)
    with torch.no_grad():
        assert torch.equal(teacher.model(images), plain(images))


def test_weights_of_another_size_are_resized_as_timm_does_where_the_model_is_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = timm.create_model("test_vit", img_size=64, num_classes=10)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    theirs = timm.create_model(
        "test_vit", img_size=32, num_classes=10, pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth"), "num_classes": 10},
    ).eval()  # fmt: skip
    ours = timm.create_model("test_vit", img_size=32, num_classes=10)
    teacher = create_teacher(ours, checkpoint=tmp_path / "weights.pth")
    with torch.no_grad():
        assert torch.equal(teacher.model(IMAGES), theirs(IMAGES))
    assert any("converted to the model as timm does it, because pos_embed is [" in line for line in caplog.messages)


def test_timms_arguments_in_a_checkpoint_give_size_crop_and_normalisation(tmp_path: Path) -> None:
    args = argparse.Namespace(
        model="test_resnet", input_size=[3, 48, 48], crop_pct=0.9, mean=[0.1, 0.2, 0.3], std=None, img_size=None,
        interpolation="random",
    )  # fmt: skip
    torch.save({"state_dict": model().state_dict(), "args": args}, tmp_path / "weights.pth")
    teacher = create_teacher("test_resnet", checkpoint=tmp_path / "weights.pth")
    found = model_config(teacher.model)
    assert (found["input_size"], found["crop_pct"]) == ((3, 48, 48), 0.9)
    assert teacher.normalization.mean == (0.1, 0.2, 0.3)
    assert teacher.normalization.std == model_config(model())["std"]
    assert found["interpolation"] == model_config(model())["interpolation"]


class Whole(nn.Linear):
    """A module that is pickled whole."""


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def cut(path: Path) -> None:
    torch.save(model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])


def arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(2))


def tarred(path: Path) -> None:
    torch.save(model().state_dict(), path.with_name("inner"))
    with tarfile.open(path, "w") as archive:
        archive.add(path.with_name("inner"), "inner")


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/readme.txt", "none")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 102530333\n"
STRANGERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (written(b""), "is empty"),
    "a pointer of git-lfs": (written(LFS), "git lfs pull"),
    "a web page": (written(b"\n<!DOCTYPE html><html><head><title>404</title></head></html>"), "is a web page"),
    "an error of a server": (written(b"<?xml version='1.0'?><Error>NoSuchKey</Error>"), "is a web page"),
    "HDF5": (written(b"\x89HDF\r\n\x1a\n" + bytes(600)), "is an HDF5 file: a cache"),
    "gzip": (written(b"\x1f\x8b\x08" + bytes(60)), "is compressed"),
    "cut off": (cut, "is cut off after 5,000 bytes"),
    "cut safetensors": (
        lambda path: (save_file(model().state_dict(), path), path.write_bytes(path.read_bytes()[:-9])),
        "weights file",
    ),
    "arrays of NumPy": (arrays, "NumPy arrays"),
    "a number of NumPy": (
        lambda path: torch.save({"state_dict": model().state_dict(), "metric": np.float64(0.5)}, path),
        r"values of NumPy \(numpy.*python -c",
    ),
    "a whole module": (lambda path: torch.save(Whole(2, 2), path), r"whole module \(.*Whole\).*'state_dict'"),
    "a whole module in a container": (
        lambda path: torch.save({"model": Whole(2, 2)}, path),
        r"x.get\('state_dict', x.get\('model'",
    ),
    "a list": (lambda path: torch.save([1, 2], path), "holds no state dict"),
    "no tensor": (lambda path: torch.save({"epoch": 3}, path), "it holds epoch"),
    "an empty state dict": (lambda path: torch.save({"state_dict": OrderedDict()}, path), "it holds state_dict"),
    "a tar": (tarred, "is a tar archive: unpack it first"),
    "a zip": (zipped, "is an archive that torch.save did not write: unpack it first"),
    "noise": (written(bytes(range(1, 200)) * 9), "is no weights file, it begins with"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), r"kdkit will read \(Unsupported operand 149"),
    "a text": (written(b"just a text, with no weights in it at all, really none"), "weights file"),
    "a call": (lambda path: path.write_bytes(pickle.dumps(os.getcwd, protocol=2)), "it calls"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_file_that_holds_no_weights_is_named_as_what_it_is(kind: str, tmp_path: Path) -> None:
    make, text = STRANGERS[kind]
    make(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=text) as raised:
        create_teacher("test_resnet", checkpoint=tmp_path / "weights.pth")
    assert "\n" not in str(raised.value)
    assert "weights.pth" in str(raised.value)
    assert "Re-running" not in str(raised.value)  # torch's advice would run the code of whatever file it is


def test_a_misfit_names_what_lacks_what_is_too_much_and_the_shapes(tmp_path: Path) -> None:
    state = model().state_dict()
    state["fc.weight"] = torch.zeros(1)
    del state["fc.bias"]
    torch.save(state | {"extra": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(
        CheckpointError,
        match=r"does not fit test_resnet: it lacks fc.bias; the model has no extra; fc.weight is \[1\], expected \[1, ",
    ):
        create_teacher("test_resnet", checkpoint=tmp_path / "weights.pth")
