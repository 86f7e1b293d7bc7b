"""Every command as people type it, over a small folder of images, in a terminal of 80 columns."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import pty
import re
import resource
import select
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from processes import forked
from safetensors.torch import save_file
from support import tiny_model, write_digits
from timm.models import save_for_hf

from kdkit.cache import open_cache
from kdkit.cli import COMMANDS, main
from kdkit.cli._parse import parse_config
from kdkit.errors import ConfigError
from kdkit.training.config import DistillConfig

pytestmark = pytest.mark.xdist_group("page")  # they share what takes long to set up


ROOT = Path(__file__).parents[2]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 digits as `data`, the same as `val` and without labels as `flat`, and the weights of a ten-class teacher."""
    folder = tmp_path_factory.mktemp("page")
    write_digits(folder / "data", 40)
    write_digits(folder / "val", 40)
    (folder / "flat").mkdir()
    for number, image in enumerate(sorted((folder / "data").rglob("*.png"))):
        shutil.copy(image, folder / "flat" / f"{number:03d}.png")
    save_file(tiny_model(seed=1).state_dict(), folder / "teacher.safetensors")
    card = {
        "name": "mine", "model": "test_resnet", "num_classes": 10, "input_size": [3, 32, 32], "mean": [0.5] * 3,
        "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0,
        "weights": {"checkpoint": "../teacher.safetensors"},
    }  # fmt: skip
    (folder / "teachers").mkdir()
    (folder / "teachers" / "mine.yaml").write_text(yaml.safe_dump(card))
    run_in(folder, BUILD)
    run_in(folder, f"kdkit distill data --cache teacher.h5 --student test_resnet --val val {SHORT} -o runs/r18")
    return folder


TEACHER = "--teacher teacher.safetensors --arch test_resnet"
BUILD = f"kdkit cache build data {TEACHER} --views 2 --size 32 --recipe deit --bytes 96 -o teacher.h5"
SHORT = "--epochs 2 --batch-size 20 --lr 1e-3"


def _in_child(folder: Path, arguments: Sequence[str], terminal: str) -> None:
    """Makes `terminal` this process's own, and runs a command in it."""
    multiprocessing.set_start_method(None, force=True)  # the command's own workers start as they do elsewhere
    os.setsid()
    end = os.open(terminal, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(end, standard)
    os.chdir(folder)
    os.environ.update(COLUMNS="80", TERM="xterm")
    sys.exit(main(arguments))


def in_terminal(folder: Path, command: str) -> tuple[int, str]:
    """Exit code of a command line, and what a terminal of 80 columns showed, without its control sequences."""
    main_end, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    program, *arguments = command.split()
    assert program == "kdkit"
    process = forked().Process(target=_in_child, args=(folder, arguments, os.ttyname(other_end)))
    process.start()
    shown = bytearray()
    while process.is_alive() or select.select([main_end], [], [], 0)[0]:
        if select.select([main_end], [], [], 0.05)[0]:
            shown += os.read(main_end, 1 << 16)
    os.close(main_end)
    os.close(other_end)
    process.join()
    assert process.exitcode is not None
    return process.exitcode, CONTROL.sub("", shown.decode())


def run_in(folder: Path, command: str) -> str:
    """What a command that must succeed showed, each line at most 80 columns wide, but for documents with addresses."""
    code, shown = in_terminal(folder, command)
    assert code == 0, shown
    lines = [line for printed in shown.splitlines() for line in printed.split("\r")]
    if " show " not in command:
        assert [line for line in lines if len(line) > 80] == []
    return "\n".join(lines)


def line_of(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must be refused as wrong usage."""
    capsys.readouterr()
    assert main(list(command)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kdkit: error: ")
    assert "usage:" not in line
    return line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "first"),
    [
        ("kdkit", "Knowledge distillation"),
        ("kdkit cache", "Knowledge distillation"),
        ("kdkit doctor", "kdkit"),
        ("kdkit doctor --json", "{"),
        ("kdkit teachers list", "name "),
        ("kdkit teachers show resnet50.a1_in1k", "name         resnet50.a1_in1k"),
        ("kdkit teachers check mine data --workers 0", "teacher      mine"),
        (f"kdkit cache estimate data {TEACHER} --views 10 --size 32", "bytes "),
        (f"kdkit cache build data {TEACHER} --size 32 -o own.h5", "teacher      test_resnet, "),
        ("kdkit cache build data --teacher runs/r18 --size 32 -o run.h5", "teacher      test_resnet, "),
        ("kdkit cache info teacher.h5", "cache        teacher.h5, "),
        ("kdkit cache verify teacher.h5", "teacher.h5: all checksums"),
        (f"kdkit cache verify teacher.h5 data {TEACHER}", "teacher.h5: all checksums"),
        ("kdkit cache export teacher.h5 -o rows.npz", "rows.npz: "),
        (
            f"kdkit distill data --teacher runs/r18 --size 32 --student test_vit {SHORT} -o runs/live",
            "student      test_vit, ",
        ),
        (f"kdkit distill data --size 32 --student test_resnet {SHORT} -o runs/baseline", "student      test_resnet"),
        ("kdkit evaluate runs/r18 val", "runs/r18: top-1 "),
        ("kdkit export runs/r18 -o exported", "weights: 'runs/r18/model_best.pth.tar'"),
        ("kdkit compare runs/r18", "run "),
        ("kdkit cache show teacher.h5 data --sort entropy -o sheet.png", "sheet.png: 16 views of 8 images"),
        ("kdkit report runs/r18 --cache teacher.h5 --data data -o report.html", "report.html: 1 run, "),
        ("kdkit presets list", "deit_tiny_hard "),
        ("kdkit presets show resnet18_kd", "# ResNet-34 teaches ResNet-18"),
    ],
)
def test_a_line_of_the_page_works_as_it_stands(folder: Path, command: str, first: str) -> None:
    shown = run_in(folder, command)
    printed = [line for line in shown.splitlines() if line.strip()]
    has_bar = " evaluate " in command or " estimate " in command  # which a terminal shows before
    assert any(line.startswith(first) for line in printed[: None if has_bar else 1]), shown


@pytest.mark.slow
def test_a_run_is_described_before_it_and_its_best_weights_are_named_after_it(folder: Path) -> None:
    command = f"kdkit distill data --cache teacher.h5 --student test_resnet --val val {SHORT} -o runs/described"
    shown = run_in(folder, command)
    labels = ("student", "images", "validation", "teacher", "loss", "views", "recipe", "epochs", "device", "output")
    found = [line.split(" ")[0] for line in shown.splitlines()]
    assert [label for label in found if label][: len(labels)] == list(labels)  # a long value continues on a line
    assert "test_resnet, from the cache teacher.h5" in shown
    assert "2 per image, 32 pixels" in shown
    assert re.search(r"best top-1 \d+\.\d\d % in epoch [12]", shown)
    assert "weights: runs/described/model_best.pth.tar" in shown
    assert shown.splitlines()[-1] == "next: kdkit evaluate runs/described val"


@pytest.mark.slow
def test_a_build_is_described_before_it_and_its_next_command_is_named_after_it(folder: Path) -> None:
    shown = run_in(folder, BUILD.replace("-o teacher.h5", "-o described.h5"))
    labels = ("teacher", "precision", "images", "views", "recipe", "streams", "device", "output")
    found = [line.split(" ")[0] for line in shown.splitlines()]
    assert [label for label in found if label][: len(labels)] == list(labels)  # a long value continues on a line
    millions = sum(weight.numel() for weight in tiny_model().parameters()) / 1e6
    assert f"test_resnet, {millions:.1f} M parameters" in shown
    for text in ("bytes/row", "logits kept", "next: kdkit distill data --cache described.h5"):
        assert text in shown


@pytest.mark.slow
def test_features_are_stored_and_their_task_follows_from_the_loss(folder: Path) -> None:
    run_in(folder, f"kdkit cache build data {TEACHER} --size 32 --streams logits,pooled -o feats.h5")
    loss = "--loss hint_mse --student test_vit"
    assert "hint_mse (task feature)" in run_in(folder, f"kdkit distill data --cache feats.h5 {loss} {SHORT} -o runs/f")


@pytest.mark.slow
def test_a_folder_of_shards_is_packed(folder: Path) -> None:
    run_in(folder, f"kdkit cache build data {TEACHER} --size 32 --no-pack -o shards.h5")
    assert run_in(folder, "kdkit cache pack shards.h5").startswith("shards.h5: ")


@pytest.mark.slow
def test_an_extension_finds_its_data_and_adds_views(folder: Path) -> None:
    run_in(folder, f"kdkit cache build data {TEACHER} --size 32 -o grown.h5")
    assert "40 images x 2 views" in run_in(folder, f"kdkit cache extend grown.h5 data --views 2 {TEACHER}")


@pytest.mark.slow
def test_another_teacher_is_run_on_the_same_views_and_both_teach_one_student(folder: Path) -> None:
    save_file(tiny_model(seed=2).state_dict(), folder / "second.safetensors")
    second = "--teacher second.safetensors --arch test_resnet"
    assert "2 per image, 32 pixels" in run_in(folder, f"kdkit cache build data --like teacher.h5 {second} -o second.h5")
    for flag in ("--views 2", "--size 32", "--recipe deit"):
        code, shown = in_terminal(folder, f"kdkit cache build data --like teacher.h5 {flag} {second} -o third.h5")
        assert (code, "like takes the recipe of its cache" in " ".join(shown.split())) == (1, True)
    mix = "--cache teacher.h5 second.h5 --student test_resnet -o runs/mix"
    shown = run_in(folder, f"kdkit distill data {mix} {SHORT} --cache-weights 2 1 --cache-temperatures 1 2")
    text = " ".join(shown.split())
    assert "0.667 test_resnet + 0.333 test_resnet at T=2, from the caches teacher.h5, second.h5" in text
    code, shown = in_terminal(folder, f"kdkit distill data {mix} {SHORT} --cache-weights 1 1 --resume")
    assert code == 1
    assert "was made with cache_" in " ".join(shown.split())
    run_in(folder, f"kdkit distill data {mix} {SHORT} --cache-weights 2,1 --cache-temperatures 1,2 --resume")


@pytest.mark.slow
def test_a_folder_without_class_folders_is_cached_and_teaches(folder: Path) -> None:
    run_in(folder, "kdkit cache build flat --teacher runs/r18 --views 2 --size 32 --recipe deit -o flat.h5")
    shown = run_in(folder, f"kdkit distill flat --cache flat.h5 --student test_resnet --val val {SHORT} -o runs/u")
    assert "40 of 10 classes, all without a label, flat" in shown
    assert "no labels + 1 x kl" in shown
    assert "chance" not in shown
    assert "best top-1" in shown
    code, shown = in_terminal(folder, f"kdkit distill flat --student test_resnet {SHORT} -o runs/nothing")
    assert code == 1
    assert "no image of 'flat' has a label, and there is no teacher" in " ".join(shown.split())


@pytest.mark.slow
def test_a_teacher_that_knows_its_class_names_is_mapped_and_the_mapping_is_shown(folder: Path) -> None:
    names = [str(digit) for digit in reversed(range(10))]
    save_for_hf(tiny_model(seed=1), folder / "named", model_config={"label_names": names}, safe_serialization=True)
    teacher, mapped = "--teacher local-dir:named", "its classes mapped to the data's"
    commands = (
        f"kdkit cache build data {teacher} --size 32 -o named.h5",
        f"kdkit cache verify named.h5 data {teacher}",
        "kdkit teachers check local-dir:named data --workers 0",
        f"kdkit distill data {teacher} --size 32 --student test_resnet {SHORT} -o runs/named",
    )
    for command in commands:
        assert mapped in " ".join(run_in(folder, command).split())
    save_for_hf(tiny_model(seed=1), folder / "other", model_config={"label_names": [*names[:9], "x"]})
    for command in commands[1:3]:
        other = command.replace("local-dir:named", "local-dir:other").replace("-o named", "-o other")
        code, shown = in_terminal(folder, other.replace("-o runs/named", "-o runs/other"))
        assert (code, "has no class '0', which the data has" in " ".join(shown.split())) == (1, True)


@pytest.mark.slow
def test_a_cache_grows_and_shrinks_by_images_and_is_merged_and_recoded(folder: Path) -> None:
    run_in(folder, f"kdkit cache build data {TEACHER} --size 32 --codec float16 -o base.h5")
    shutil.copytree(folder / "data", folder / "more")
    shutil.copy(folder / "data" / "0" / "000.png", folder / "more" / "0" / "999.png")
    code, shown = in_terminal(folder, "kdkit distill more --cache base.h5 --student test_resnet -o runs/more")
    assert (code, "add them with `kdkit cache extend base.h5 DATA`" in " ".join(shown.split())) == (1, True)
    assert "41 images x 1 views" in run_in(folder, f"kdkit cache extend base.h5 more {TEACHER}")
    assert "41 images x 3 views" in run_in(folder, f"kdkit cache extend base.h5 more --views 3 {TEACHER}")
    assert "1 of 41 images" in run_in(folder, "kdkit cache prune base.h5 data")
    assert "40 images x 2 views" in run_in(folder, "kdkit cache recode base.h5 --codec lowrank --bytes 12 --views 2")
    assert open_cache(folder / "base.lowrank-12-2-views.h5").codecs["logits"].row_bytes == 12
    (folder / "single" / "0").mkdir(parents=True)
    for name in range(1, 10):
        (folder / "single" / str(name)).mkdir()
        shutil.copy(next((folder / "data" / str(name)).iterdir()), folder / "single" / str(name) / "new.png")
    shutil.copy(folder / "data" / "0" / "000.png", folder / "single" / "0" / "999.png")
    run_in(folder, f"kdkit cache build single {TEACHER} --size 32 --views 3 --codec float16 -o single.h5")
    assert "50 images x 3 views" in run_in(folder, "kdkit cache merge base.h5 single.h5 -o both.h5")


def test_lists_of_caches_and_numbers_are_given_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["distill", "data", "--student", "s", "-o", "o", "--print_config", "--cache"]
    for files in (["a,b.h5"], ["a.h5", "b [1]: c.h5"]):
        numbers = [] if len(files) == 1 else ["--cache-weights", "2", "1", "--cache_temperatures=1,0.5"]
        assert main([*base, *files, *numbers]) == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert shown["cache"] == (files[0] if len(files) == 1 else files)
        assert shown["cache_weights"] == ([2.0, 1.0] if numbers else None)
        assert shown["cache_temperatures"] == ([1.0, 0.5] if numbers else None)
    for given in (["1", "02", "null", "1e3"], ["1,02,null,1e3"], ["[1, 02, null, 1e3]"]):
        assert main([*base, "a.h5", "--class-names", *given]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["class_names"] == ["1", "02", "null", "1e3"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--recipe.scale", "0.5,1"],
        ["--recipe.scale", "0.5", "1"],
        ["--recipe.scale=[0.5, 1.0]"],
        ["--recipe.scale", "(.5,1.)"],
        ["--recipe.scale", "0.3,1", "--recipe.scale", "0.5,1"],
        ["--recipe.scale", "0.3", "1", "--recipe.scale=0.5,1"],
    ],
)
def test_a_pair_of_numbers_is_typed_in_any_way_and_the_last_one_counts(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", "data", "--student", "s", "-o", "o", *flags, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["recipe"]["scale"] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ("--recipe.scale 0.5", "recipe.scale cannot be [0.5]: it takes 2 numbers"),
        ("--recipe.scale 0.1,0.5,1", "cannot be [0.1, 0.5, 1]: it takes 2 numbers"),
        ("--recipe.scale a,b", "--recipe.scale takes 2 numbers, got 'a,b'"),
        ("--recipe.scale 0.5 -1", "scale must be an increasing pair"),
        ("--recipe.scale -0.5,1", "scale must be an increasing pair"),
        ("--recipe.scale null", "--recipe.scale takes 2 numbers, got 'null'"),
    ],
)
def test_what_is_no_pair_of_numbers_is_refused(flags: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "data", "--student", "s", "-o", "o", *flags.split()]) != 0
    assert hint in capsys.readouterr().err


def test_a_list_of_numbers_may_be_none(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["distill", "data", "--student", "s", "-o", "o", "--cache", "a.h5", "--print_config"]
    assert main([*base, "--cache-weights", "null"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["cache_weights"] is None


@pytest.mark.parametrize(
    "name", ["[x]", "null", "None", "~", "true", "10", "1e3", "{a: b}", '"q"', "a b.h5", "a [1], b: c.h5", "#a", "é.h5"]
)
def test_one_cache_is_named_as_it_is_typed_whatever_yaml_makes_of_it(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["distill", "data", "--student", "s", "-o", "o", "--cache"]
    assert parse_config(DistillConfig, "distill", [*base[1:], name], {"DATA": "data"}).caches == (name,)
    assert main([*base, name, "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["cache"]
    assert shown in (name, [name])


@pytest.fixture
def ten_digits(tmp_path: Path) -> Path:
    write_digits(tmp_path / "data", 10)
    torch.save({"a": torch.ones(300)}, tmp_path / "w.pth")
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "code", "problem"),
    [
        ("--train.seed=-1", 1, "seed must be at least 0 and below 2147483648, got -1"),
        (f"--train.seed={10**23}", 1, f"below 2147483648, got {10**23}"),
        ("--student test_resnet.nope", 1, "has no student 'test_resnet.nope'; it has test_resnet.r160_in1k"),
        ("--config w.pth", 2, "--config names no configuration that can be read: 'w.pth': not valid YAML"),
        ("--cache=", 2, "--cache needs a value, got an empty one"),
        ("--val=", 2, "--val needs a value, got an empty one"),
        ("--train.lr=1e400", 1, "lr must be a finite number, got inf"),
        ("--cache null", 1, "there is no cache at 'null'"),
    ],
)
def test_a_value_that_cannot_work_is_one_line_before_the_first_step(
    ten_digits: Path,
    flags: str,
    code: int,
    problem: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ten_digits)
    assert main(["distill", "data", "--student", "test_resnet", "--epochs", "1", "-o", "out", *flags.split()]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kdkit: error: ")
    assert problem in line


def test_an_empty_object_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert "DATA is empty" in line_of(["distill", "", "--student", "s", "-o", "o"], capsys)


@pytest.mark.parametrize("cache", ["", ("a.h5", "")])
def test_an_empty_name_of_a_cache_is_an_error_in_python_too(cache: str | tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="a cache's name is empty"):
        DistillConfig(data="d", output="o", student="s", cache=cache)


@pytest.mark.slow
def test_an_export_is_a_teacher_and_onnx_is_written(folder: Path) -> None:
    assert "onnx/model.onnx: " in run_in(folder, "kdkit export runs/r18 -o onnx --onnx")
    run_in(folder, "kdkit cache build data --teacher onnx --size 32 --codec float32 -o export.h5")
    run_in(folder, "kdkit cache build data --teacher runs/r18 --size 32 --codec float32 -o run32.h5")
    made_with = [open_cache(folder / name).metadata.teacher["weights_sha256"] for name in ("export.h5", "run32.h5")]
    assert made_with[0] == made_with[1]


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("cache build data --viewz 3", "no flag --viewz; did you mean '--views'"),
        ("cache build data --batch_sizes 3", "'--batch-size'"),
        ("cache build --teacher t -o o", "DATA is missing"),
        ("cache build data", "--teacher and --output are missing"),
        ("evaluate run data more", "unexpected argument 'more': this command takes RUN DATA"),
        ("cache build data --teacher t -o o --views many", "--views takes a whole number, got 'many'"),
        ("cache build data --teacher t -o o --recipe diet", "did you mean 'deit'"),
        ("cache build data --teacher t -o o --workers some", "--workers takes a whole number or auto, got 'some'"),
        ("cache build data --teacher t -o", "-o needs a value"),
        ("cache build data --teacher.dtype bfloat61 --teacher t -o o", "did you mean 'bfloat16'"),
        ("distill data --student s -o o --task logitt", "did you mean 'logit'"),
        ("distill data --student s -o o --overwrite true", "--overwrite takes no value"),
        ("distill data --student s -o o --teacher.arch a", "--teacher is missing"),
        ("distill data --student s -o o --cache a b --cache-weights 1 two", "--cache-weights takes numbers, got 'two'"),
        ("evaluate runs/r18", "DATA is missing"),
        ("teachers show", "NAME is missing"),
        ("cache inof f", "did you mean 'cache info'"),
        ("distil", "did you mean 'distill'"),
    ],
)
def test_wrong_usage_is_one_line_with_the_nearest_right_one(
    command: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hint in line_of(command.split(), capsys)


def test_dashes_underscores_and_equals_signs_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["distill", "data", "--student", "s", "-o", "o", "--print_config"]
    configs = []
    for flags in (
        ["--batch-size", "8", "--allow-mismatch", "a", "--no-preflight", "--train.ema-decay", "0.5"],
        ["--batch_size=8", "--allow_mismatch=a", "--preflight=false", "--train.ema_decay=0.5"],
        ["--train.batch_size", "8", "--allow_mismatch", "[a]", "--no_preflight", "--train.ema_decay", "0.5"],
    ):
        assert main([*base, *flags]) == 0
        configs.append(yaml.safe_load(capsys.readouterr().out))
    assert configs[0] == configs[1] == configs[2]
    assert configs[0]["train"]["batch_size"] == 8
    assert configs[0]["preflight"] is False


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns_and_names_every_flag_once(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    flags = re.findall(r"^  (?:-o, )?(--[\w.-]+)", shown, flags=re.MULTILINE)
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize(
    ("codec", "row_bytes", "expected"),
    [
        (None, 96, ("float16", 20)),
        (None, 12, ("lowrank", 12)),
        ("topk", 8, ("topk", 8)),
        ("lowrank", 12, ("lowrank", 12)),
    ],
)
def test_bytes_are_what_a_row_takes_at_most(codec: str | None, row_bytes: int, expected: tuple[str, int]) -> None:
    from kdkit.cache.codecs import codec_of_size

    found = codec_of_size(codec, 10, row_bytes)
    assert found.name == expected[0]
    assert found.row_bytes <= expected[1]


def test_bytes_of_a_codec_without_a_size_are_refused() -> None:
    from kdkit.cache.codecs import codec_of_size
    from kdkit.errors import ConfigError

    with pytest.raises(ConfigError, match="'int8' has no option for its size"):
        codec_of_size("int8", 10, 96)


def test_a_pretrained_student_starts_from_its_weights(folder_of_weights: Path) -> None:
    from kdkit.dataset import open_dataset
    from kdkit.recipe import ViewRecipe
    from kdkit.training.components import make_task
    from kdkit.training.config import DistillConfig

    overlay = {"pretrained_cfg_overlay": {"file": str(folder_of_weights / "student.safetensors"), "num_classes": 7}}
    config = DistillConfig(
        data=str(folder_of_weights / "data"),
        output="o",
        student="test_resnet",
        pretrained=True,
        student_options=overlay,
    )
    task = make_task(config, open_dataset(config.data, recipe=ViewRecipe(size=32)), None, torch.device("cpu"))
    expected = tiny_model(seed=3, num_classes=7).state_dict()
    found = task.get_eval_model().state_dict()
    first = next(iter(expected))
    assert torch.equal(found[first], expected[first])
    assert found["fc.weight"].shape[0] == 10


@pytest.fixture
def folder_of_weights(tmp_path: Path) -> Path:
    """Ten classes of images, and the weights of a seven-class student."""
    write_digits(tmp_path / "data", 20)
    save_file(tiny_model(seed=3, num_classes=7).state_dict(), tmp_path / "student.safetensors")
    return tmp_path


def test_a_teacher_of_kdkits_own_is_matched_with_the_data_by_class_names(tmp_path: Path) -> None:
    from kdkit.config import TeacherConfig
    from kdkit.errors import ClassMismatchError
    from kdkit.resolve import resolve_teacher

    model = tiny_model(seed=1, num_classes=3)
    (tmp_path / "student.json").write_text(
        json.dumps(
            {
                "model": "test_resnet", "model_args": {"num_classes": 3}, "input_size": 32, "crop_pct": 1.0,
                "interpolation": "bicubic", "class_names": ["a", "b", "c"],
            }
        )
    )  # fmt: skip
    torch.save({"state_dict": model.state_dict()}, tmp_path / "last.pth.tar")
    config, device = TeacherConfig(str(tmp_path)), torch.device("cpu")
    assert resolve_teacher(config, device, ["a", "b", "c"]).class_map is None
    assert resolve_teacher(config, device, ["c", "a", "b"]).class_map == (2, 0, 1)
    with pytest.raises(ClassMismatchError, match="d"):
        resolve_teacher(config, device, ["a", "b", "d"])


def test_the_list_of_commands_costs_less_than_0_3_seconds_of_cpu() -> None:
    """CPU time of the child process, not wall time, so that a busy machine changes nothing."""
    command = [sys.executable, "-m", "kdkit", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3
