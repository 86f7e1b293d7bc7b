"""The command line: what people type, what they read, and the exit code."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support import cache_contents, digits, tiny_model

from kdkit.building.config import CacheVerifyConfig
from kdkit.cache import open_cache
from kdkit.cli import COMMANDS, main
from kdkit.errors import ConfigError
from kdkit.resolve import load_teacher_of_cache
from kdkit.teachers import create_teacher

Streams = tuple[str, str]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 digits as an image folder, a ten-class teacher beside it, and its cache; no test writes here."""
    folder, source = tmp_path_factory.mktemp("cli"), digits(100)
    for index in range(100):
        image, target = source[index]
        place = folder / "images" / f"digit {target}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{index:03d}.png")
    save_file(tiny_model(seed=1).state_dict(), folder / "teacher.safetensors")
    assert main(build(folder)) == 0
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """The images and the teacher."""
    shutil.copytree(original / "images", tmp_path / "images")
    shutil.copy2(original / "teacher.safetensors", tmp_path)
    return tmp_path


@pytest.fixture
def built(original: Path, folder: Path) -> Path:
    """The images, the teacher and its cache, made by the command of `build`."""
    shutil.copy2(original / "t.h5", folder)
    return folder


def build(folder: Path, *more: str) -> list[str]:
    return [
        "cache", "build", str(folder / "images"), "-o", str(folder / "t.h5"),
        "--teacher", "test_resnet", "--teacher.checkpoint", str(folder / "teacher.safetensors"),
        "--size", "32", "--views", "2", "--workers", "0", *more,
    ]  # fmt: skip


def distill(folder: Path, *more: str) -> list[str]:
    return [
        "distill", str(folder / "images"), "--student", "test_efficientnet",
        "-o", str(folder / "run"), "--epochs", "2", "--batch-size", "25", "--workers", "0",
        *more,
    ]  # fmt: skip


def with_data(arguments: list[str], data: Path) -> list[str]:
    """The same command on other images; a second DATA would be taken together with the first."""
    return [str(data) if word.endswith("/images") else word for word in arguments]


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line of a command that must fail with exit code 1."""
    capsys.readouterr()
    assert main(arguments) == 1
    streams = capsys.readouterr()
    lines = [line for line in streams.err.splitlines() if line.startswith("kdkit: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in streams.err
    return lines[0]


def test_build_info_verify_distill_in_turn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(build(folder)) == 0
    assert "100 images x 2 views" in capsys.readouterr().out
    assert main(["cache", "info", "--cache", str(folder / "t.h5"), "--all", "--plot", str(folder / "t.png")]) == 0
    assert (folder / "t.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "test_resnet" in out
    assert "float16, 20 bytes per row" in out
    assert "(4,000 of rows; the rest is" in out
    assert main(["cache", "verify", "--cache", str(folder / "t.h5")]) == 0
    assert main(distill(folder, "--cache", str(folder / "t.h5"), "--validation", str(folder / "images"))) == 0
    assert "top-1" in capsys.readouterr().out
    with open(folder / "run" / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in metrics if record["kind"] == "epoch"]
    steps = [record for record in metrics if record["kind"] == "step"]
    assert [float(row["kd_loss"]) for row in rows] == [record["kd_loss"] for record in epochs]
    assert [record["step"] for record in steps] == list(range(8))
    for record in metrics:
        assert record["loss"] == pytest.approx(record["weighted_task_loss"] + record["weighted_kd_loss"])
        assert {"agreement_top1", "teacher_top1", "images_per_second", "lr"} <= set(record)
    assert all({"val_top1", "val_loss"} <= set(record) for record in epochs)


@pytest.mark.slow
def test_estimate_is_within_3_percent_of_what_is_built(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for codec, options in (("float32", "{}"), ("int8", "{}"), ("topk", "{k: 4}")):
        arguments = build(folder, "--codec", codec, "--build.codec_options", options, "--views", "20")
        output = folder / f"{codec}.h5"
        without_output = [a for i, a in enumerate(arguments) if "-o" not in arguments[max(0, i - 1) : i + 1]]
        assert main(["cache", "estimate", *without_output[2:]]) == 0
        found = capsys.readouterr().out
        (line,) = [line for line in found.splitlines() if line.startswith("bytes ")]
        assert main([*arguments, "--output", str(output)]) == 0
        assert int(line.split()[1].replace(",", "")) == pytest.approx(output.stat().st_size, rel=0.03)
        assert "images       2,000 (100 samples x 20 views)" in found


def test_verify_runs_the_teacher_again_and_catches_another(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ["--teacher.model", "test_resnet", "--teacher.checkpoint"]
    verify = ["cache", "verify", "--cache", str(built / "t.h5"), "--data", str(built / "images"), *teacher]
    capsys.readouterr()
    assert main([*verify, str(built / "teacher.safetensors")]) == 0
    assert "64 random rows match the teacher's outputs" in capsys.readouterr().out
    save_file(tiny_model(seed=2).state_dict(), built / "other.safetensors")
    assert "teacher.weights_sha256" in fails(capsys, [*verify, str(built / "other.safetensors")])


def test_extend_adds_views_and_its_rows_are_the_teachers_outputs(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = ["--data", str(built / "images"), "--teacher.model", "test_resnet", "--teacher.checkpoint"]
    extend = ["cache", "extend", "--cache", str(built / "t.h5"), "--num_workers", "0", *teacher]
    capsys.readouterr()
    assert main([*extend, str(built / "teacher.safetensors"), "--num_views", "3"]) == 0
    assert "100 images x 3 views" in capsys.readouterr().out
    verify = ["cache", "verify", "--cache", str(built / "t.h5"), *teacher]
    assert main([*verify, str(built / "teacher.safetensors")]) == 0
    save_file(tiny_model(seed=2).state_dict(), built / "other.safetensors")
    other = [*extend, str(built / "other.safetensors"), "--num_views", "4"]
    assert "teacher.weights_sha256" in fails(capsys, other)
    assert main([*other, "--allow-mismatch", "teacher.weights_sha256"]) == 0
    found = fails(capsys, [*verify, str(built / "teacher.safetensors")])
    assert "(view 3)" in found  # which another teacher made
    allowed = ["--allow-mismatch", "teacher.weights_sha256"]
    assert re.search(r"\(view [012]\)", fails(capsys, [*verify, str(built / "other.safetensors"), *allowed]))


def test_features_are_built_described_verified_and_exported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(build(folder, "--build.streams", "logits,pooled", "--build.feature_codec", "int8")) == 0
    capsys.readouterr()
    cache = ["--cache", str(folder / "t.h5")]
    assert main(["cache", "info", *cache]) == 0
    assert "  pooled     int8, 96 numbers, 104 bytes per row" in capsys.readouterr().out
    teacher = ["--teacher.model", "test_resnet", "--teacher.checkpoint", str(folder / "teacher.safetensors")]
    assert main(["cache", "verify", *cache, "--data", str(folder / "images"), *teacher]) == 0
    assert "pooled: 64 random rows match the teacher's outputs" in capsys.readouterr().out
    assert main(["cache", "export", *cache, "--stream", "pooled", "--output", str(folder / "p.safetensors")]) == 0
    assert load_file(folder / "p.safetensors")["pooled"].shape == (100, 96)
    assert "kdkit cache build ... --streams" in fails(
        capsys, ["cache", "export", *cache, "--stream", "tokens", "--output", str(folder / "t.npz")]
    )


def test_pack_and_export_write_what_the_cache_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(build(folder, "--no-pack")) == 0
    assert main(["cache", "pack", str(folder / "t.h5")]) == 0
    cache = open_cache(folder / "t.h5")
    expected = cache.codecs["logits"].decode(cache.read_encoded(np.arange(100), 1))
    for name in ("t.npz", "t.safetensors"):
        export = ["cache", "export", "--cache", str(folder / "t.h5"), "--view", "1", "--output", str(folder / name)]
        assert main(export) == 0
        assert "--overwrite" in fails(capsys, export)
    with np.load(folder / "t.npz") as arrays:
        assert arrays["keys"].tolist() == cache.keys()
        assert np.array_equal(arrays["log_probabilities"], expected.half().numpy())
    loaded = load_file(folder / "t.safetensors")["log_probabilities"]
    assert np.array_equal(loaded.numpy(), expected.half().numpy())
    assert ".npz or .safetensors" in fails(capsys, [*export[:-1], str(folder / "t.pickle")])


def test_live_and_cached_distillation_log_the_same_terms(folder: Path) -> None:
    assert main(build(folder, "--build.codec", "float32")) == 0
    recipe = ["--recipe.size", "32", "--recipe.num_views", "2", "--train.lr", "1e-4", "--train.opt", "sgd"]
    live = ["--teacher.model", "test_resnet", "--teacher.checkpoint", str(folder / "teacher.safetensors"), *recipe]
    cached = ["--cache", str(folder / "t.h5"), *recipe]
    records = []
    for way in (live, cached):
        assert main(distill(folder, *way, "--overwrite")) == 0
        records.append(json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1]))
    for term in ("loss", "task_loss", "kd_loss"):
        assert records[1][term] == pytest.approx(records[0][term], rel=1e-5)


def test_a_written_config_reads_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(build(folder, "--print_config")) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["recipe"]["num_views"] == 2
    (folder / "build.yaml").write_text(text)
    assert main(["cache", "build", "--config", str(folder / "build.yaml")]) == 0
    assert (folder / "t.h5").is_file()


def test_bad_input_is_a_one_line_error_with_advice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = ["--cache", str(folder / "t.h5")]
    found = fails(capsys, distill(folder, *cache))
    assert "no cache at" in found
    assert "kdkit cache build" in found
    assert main(build(folder)) == 0
    found = fails(capsys, [*build(folder)[:3], "--teacher", "resnet5O", "-o", str(folder / "u.h5")])
    assert "did you mean 'resnet50'" in found
    save_file(tiny_model(num_classes=12).state_dict(), folder / "twelve.safetensors")
    twelve = build(folder, "--output", str(folder / "u.h5"), "--teacher.checkpoint", str(folder / "twelve.safetensors"))
    found = fails(capsys, twelve)
    assert "12 classes, the data has 10" in found
    assert "class_map" in found
    shutil.copytree(folder / "images", folder / "others")
    (folder / "others" / "digit 3" / "003.png").rename(folder / "others" / "digit 3" / "new.png")
    found = fails(capsys, with_data(distill(folder, *cache), folder / "others"))
    assert "another dataset" in found
    assert "'digit 3/new.png'" in found
    (folder / "empty").mkdir()
    found = fails(capsys, with_data(build(folder), folder / "empty"))
    assert "holds no images" in found
    found = fails(capsys, [*distill(folder, *cache), "--student", "test_resnett"])
    assert "'test_resnet'" in found
    found = fails(capsys, [*distill(folder), "--loss", "dkd"])
    assert "distill_loss needs a teacher" in found
    assert "--cache FILE or --teacher NAME" in found
    assert main(distill(folder, *cache)) == 0
    found = fails(capsys, distill(folder, *cache))
    assert "--overwrite" in found
    other = [*distill(folder, *cache), "--recipe.size", "32", "--recipe.num_views", "2", "--recipe.hflip", "0.4"]
    assert "recipe.hflip = 0.5, this run has 0.4" in fails(capsys, [*other, "--overwrite"])
    found = fails(capsys, [*distill(folder, *cache), "--device", "cuda:99"])
    assert "'cuda:99'" in found


def test_an_unwritable_output_is_refused_before_the_teacher_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import kdkit.resolve as resolve

    monkeypatch.setattr(resolve, "create_teacher", lambda *a, **k: pytest.fail("the teacher was loaded"))
    (folder / "file").write_text("")
    found = fails(capsys, [*build(folder), "--output", str(folder / "file" / "t.h5")])
    assert "no cache can be written" in found


def test_a_teacher_from_a_card_gets_the_input_of_the_card(folder: Path) -> None:
    from kdkit.config import TeacherConfig
    from kdkit.errors import ClassMismatchError
    from kdkit.resolve import resolve_device, resolve_teacher

    card = {
        "name": "mine", "model": "test_efficientnet", "num_classes": 10, "input_size": [3, 64, 64],
        "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic", "crop_pct": 1.0,
        "weights": {"checkpoint": "mine.safetensors"},
    }  # fmt: skip
    save_file(tiny_model("test_efficientnet").state_dict(), folder / "mine.safetensors")
    (folder / "mine.yaml").write_text(yaml.safe_dump(card))
    teacher = resolve_teacher(TeacherConfig(str(folder / "mine.yaml")), resolve_device("cpu"))
    assert (teacher.name, teacher.input_size, teacher.num_classes) == ("mine", (64, 64), 10)
    assert teacher.normalization.mean == (0.1, 0.2, 0.3)
    assert teacher.normalization.std == (0.4, 0.5, 0.6)
    (folder / "mine.yaml").write_text(yaml.safe_dump({**card, "num_classes": 7}))
    with pytest.raises(ClassMismatchError, match="10 classes, expected 7"):
        resolve_teacher(TeacherConfig(str(folder / "mine.yaml")), resolve_device("cpu"))


@pytest.mark.slow
def test_a_teacher_runs_in_another_precision_and_order_of_classes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = ("--build.codec", "float32")
    assert main(build(folder, *exact)) == 0
    (folder / "map.json").write_text(json.dumps([*range(9, -1, -1)]))
    mapped = ("--teacher.class_map", str(folder / "map.json"), "--output", str(folder / "mapped.h5"))
    assert main(build(folder, *exact, *mapped)) == 0
    rows = [open_cache(folder / name).read_encoded(np.arange(100), 0).numpy() for name in ("t.h5", "mapped.h5")]
    plain, turned = (row.view(np.float32) for row in rows)
    np.testing.assert_array_equal(turned, plain[:, ::-1])
    low = ("--teacher.dtype", "bfloat16", "--output", str(folder / "low.h5"))
    assert main(build(folder, *exact, *low)) == 0
    assert open_cache(folder / "low.h5").metadata.teacher["dtype"] == "bfloat16"
    autocast = ("--teacher.autocast", "bfloat16", "--output", str(folder / "autocast.h5"))
    assert main(build(folder, *exact, *autocast)) == 0
    assert open_cache(folder / "autocast.h5").metadata.teacher["autocast"] == "bfloat16"
    found = fails(capsys, build(folder, "--teacher.class_map", str(folder / "none.json")))
    assert "there is no file" in found


@pytest.mark.slow
def test_with_three_seeds_a_float32_cache_teaches_step_by_step_what_the_live_teacher_does(folder: Path) -> None:
    """That distilled students beat labels alone is what CI's run of `kdkit demo` checks."""
    assert main(build(folder, "--build.codec", "float32")) == 0
    live = ("--teacher.model", "test_resnet", "--teacher.checkpoint", str(folder / "teacher.safetensors"))
    replayed = ("--recipe.size", "32", "--recipe.num_views", "2")
    sources = {"cached": ("--cache", str(folder / "t.h5")), "live": (*live, *replayed)}
    for seed in range(3):
        losses = []
        for name, source in sources.items():
            place = folder / f"{name} {seed}"
            assert main(distill(folder, *source, "--train.seed", str(seed), "--output", str(place))) == 0
            rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
            losses.append([row["kd_loss"] for row in rows if "kd_loss" in row])
        assert len(losses[0]) >= 8
        np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-5)


def test_a_fixed_size_student_is_made_for_the_views(built: Path) -> None:
    assert main(distill(built, "--cache", str(built / "t.h5"), "--student", "test_vit")) == 0


def test_a_run_that_failed_at_once_can_be_started_again(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = distill(built, "--cache", str(built / "t.h5"))
    assert "'adamw'" in fails(capsys, [*arguments, "--train.opt", "adamww"])
    assert main(arguments) == 0


def test_debug_shows_the_traceback(folder: Path) -> None:
    from kdkit.errors import CacheNotFoundError

    with pytest.raises(CacheNotFoundError):
        main(["cache", "info", "--cache", str(folder / "nothing.h5"), "--debug"])


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["foo", "--help"], ["cahce"], ["cache", "inof"], ["demo", "--seedz", "1"], ["cache", "info"]):
        assert main(arguments) == 2, arguments
    capsys.readouterr()
    assert main(["cache", "inof"]) == 2
    assert "did you mean 'cache info'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["cache", "--help"], ["cache"], ["--version"]])
def test_asking_for_help_is_no_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "kdkit" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_describes_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert f"usage: kdkit {command}" in capsys.readouterr().out


def test_cards_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "list"]) == 0
    out = capsys.readouterr().out
    assert "tf_efficientnet_lite2.in1k" in out
    assert "81.21 at 288" in out  # resnet50.a1_in1k, whose card also has a lower figure at its own 224
    assert main(["teachers", "show", "resnet50.a1_in1k"]) == 0
    card = yaml.safe_load(capsys.readouterr().out)
    assert card["num_classes"] == 1000
    assert all(source["cite"] for source in card["sources"])
    assert main(["teachers", "show", "resnet5O.a1_in1k"]) == 1
    assert "'resnet50.a1_in1k'" in capsys.readouterr().err


def test_doctor_names_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("torch", "timm", "hdf5", "cuda devices"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_build_exits_with_the_signals_code_and_resumes(folder: Path, number: int, code: int) -> None:
    arguments = build(folder, "--recipe.num_views", "12", "--build.batch_size", "10", "--memory", "1")
    # A shell's background job, such as a CI's, hands down an ignored SIGINT, for which Python then has no handler.
    heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heard}; from kdkit.cli import main; sys.exit(main(sys.argv[1:]))", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while len(list((folder / "t.h5.parts").glob("v*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in err
    assert not list((folder / "t.h5.parts").glob(".*.tmp"))
    stopped = cache_contents_after(arguments, folder / "t.h5")
    assert stopped == cache_contents_after(arguments, folder / "t.h5")


def cache_contents_after(arguments: list[str], path: Path) -> dict[str, bytes]:
    """What a build leaves, which is taken away."""
    assert main(arguments) == 0
    found = cache_contents(path)
    path.unlink()
    return found


def test_a_cache_of_a_runs_teacher_is_verified_without_it_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[object] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **options: reached.append(address))
    assert main(build(folder)) == 0
    cache, images = str(folder / "t.h5"), str(folder / "images")
    capsys.readouterr()
    assert main(["cache", "verify", cache, images]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "images are those of the build" in shown
    assert "teacher: not run again, so its outputs are not compared" in shown
    advice = "cannot be loaded again from only the cache's record: give --teacher, the run, export or weights file"
    assert advice in shown
    assert main(["cache", "extend", cache, images, "--views", "4"]) == 1
    assert advice in capsys.readouterr().err
    assert reached == []  # no file makes kdkit ask a hub


def test_the_teacher_of_a_cache_is_loaded_from_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[object] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **options: reached.append(address))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    weights = tmp_path / "models--timm--test_resnet.r160_in1k" / "snapshots" / ("0" * 40) / "model.safetensors"
    weights.parent.mkdir(parents=True)
    (tmp_path / "models--timm--test_resnet.r160_in1k" / "refs").mkdir()
    (tmp_path / "models--timm--test_resnet.r160_in1k" / "refs" / "main").write_text("0" * 40)
    made_with, device = {"name": "test_resnet", "weights_sha256": "0" * 64}, torch.device("cpu")
    with pytest.raises(ConfigError, match="whose weights are not on this machine: give --teacher test_resnet"):
        load_teacher_of_cache(made_with, device)
    save_file(tiny_model(num_classes=1000).state_dict(), weights)
    with pytest.raises(ConfigError, match="timm's weights are not those that it had: give --teacher, the run"):
        load_teacher_of_cache(made_with, device)
    expected = create_teacher("test_resnet", checkpoint=weights).fingerprint()
    assert load_teacher_of_cache(expected, device).fingerprint()["weights_sha256"] == expected["weights_sha256"]
    for other in (
        {"name": "legacy_senet154.in1k"},  # from elsewhere than the hub
        {"name": "test_resnet.no_such_tag"},
        {"num_classes": 3},  # a run of that model
    ):
        with pytest.raises(ConfigError, match=r"cannot be loaded again from only the cache's record: give --teacher"):
            load_teacher_of_cache({**expected, **other}, device)
    assert reached == []


def test_the_next_command_repeats_how_the_data_is_read() -> None:
    config = CacheVerifyConfig(cache="c", label_column="tags[|]", labels="none", skip_missing=True)
    assert config.data_flags == " --label-column 'tags[|]' --labels none --skip-missing"
    assert CacheVerifyConfig(cache="c").data_flags == ""
