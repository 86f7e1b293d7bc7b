"""What a run does where its command says nothing: the views of a run without a cache, and the next command."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file
from support import tiny_model, write_digits

from kdkit.cli import main
from kdkit.config import TeacherConfig
from kdkit.errors import ClassMismatchError, ConfigError
from kdkit.recipe import ViewRecipe
from kdkit.training.components import choose_recipe
from kdkit.training.config import DistillConfig, TrainConfig
from kdkit.training.distill import distill

SHORT = ["--student", "test_resnet", "--batch-size", "10", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("defaults")
    write_digits(folder / "data", 20)
    save_file(tiny_model().state_dict(), folder / "t.safetensors")
    return folder


def printed_recipe(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object] | None:
    capsys.readouterr()
    assert main([*arguments, "--print_config"]) == 0
    recipe: dict[str, object] | None = yaml.safe_load(capsys.readouterr().out)["recipe"]
    return recipe


@pytest.mark.parametrize(
    ("flags", "views"),
    [
        (["--size", "32"], 7),
        (["--size", "32", "--views", "1"], 1),
        (["--views", "3"], 3),
        (["--recipe", "deit"], 7),
        (["--config", "size.yaml"], 7),
        (["--config", "one.yaml"], 1),
        (["--config", "none.yaml", "--size", "32"], 7),
        (["--size", "32", "--config", "one.yaml", "--views", "2"], 2),
        (["--teacher", "test_resnet", "--size", "32"], 7),
        (["--recipe.augment=false"], 1),
    ],
)
def test_without_a_cache_every_epoch_has_a_new_view_unless_views_are_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], views: int
) -> None:
    monkeypatch.chdir(folder)
    Path("size.yaml").write_text("recipe: {size: 64}\n")
    Path("none.yaml").write_text("recipe: null\n")
    Path("one.yaml").write_text("recipe: {size: 64, num_views: 1}\n")
    recipe = printed_recipe(["distill", "data", *SHORT, "--epochs", "7", "-o", "r", *flags], capsys)
    assert recipe is not None
    assert recipe["num_views"] == views


def test_a_run_on_labels_shows_a_new_view_in_each_epoch_and_a_cache_decides_for_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert printed_recipe(["distill", "data", *SHORT, "--cache", "c.h5", "-o", "r"], capsys) is None
    assert main(["distill", "data", *SHORT, "--size", "32", "--epochs", "3", "-o", "labels"]) == 0
    assert "3 per image, 32 pixels" in capsys.readouterr().err
    assert yaml.safe_load(Path("labels/config.yaml").read_text())["recipe"]["num_views"] == 3
    train = TrainConfig(epochs=2, batch_size=10, num_workers=0)
    distill(DistillConfig(data="data", output="python", student="test_resnet", device="cpu", train=train))
    assert '"num_views": 2' in Path("python/student.json").read_text()


def test_a_build_of_one_view_says_what_that_means(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    build = ["cache", "build", "data", "--teacher", "t.safetensors", "--arch", "test_resnet", "--size", "32"]
    assert main([*build, "-o", "one.h5"]) == 0
    assert "the same pixels in every epoch" in " ".join(capsys.readouterr().err.split())
    assert main([*build, "--views", "2", "-o", "two.h5"]) == 0
    assert "the same pixels" not in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("ema", [True, False])
def test_the_next_command_works_as_it_is_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], validated: bool, ema: bool
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    Path("own_student.py").write_text(
        "import timm\n\ndef make(**k):\n    return timm.create_model('test_resnet', **k)\n"
    )
    run = f"my run {validated} {ema}"
    options = ["--val", "data"] if validated else []
    options += ["--train.ema_decay", "0.5"] if ema else []
    train = ["--student", "own_student:make", "--size", "32", "--epochs", "1", "-o", run]
    assert main(["distill", "data", *SHORT, *train, *options]) == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("next: kdkit ")]
    command = shlex.split(line.removeprefix("next: kdkit ").replace(" DIR", f" {shlex.quote(run)}-out"))
    assert main([*command, "--device", "cpu"] if validated else command) == 0
    if validated:
        best = shown.split("best top-1 ")[1].split(" %")[0]
        assert f"top-1 {best}" in capsys.readouterr().out


def test_an_unreadable_image_is_skipped_by_the_evaluation_that_comes_next(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "val", 20)
    sorted((tmp_path / "val").rglob("*.png"))[7].write_bytes(b"no image")
    train = ["--size", "32", "--epochs", "1", "--val", "val", "-o", "r", "--unreadable", "skip"]
    assert main(["distill", str(folder / "data"), *SHORT, *train]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: kdkit ")]
    command = shlex.split(line.removeprefix("next: kdkit "))
    assert main([*command, "--device", "cpu", "--workers", "0"]) == 0
    assert "19 images, " in capsys.readouterr().out
    assert main([word for word in command if word not in ("--unreadable", "skip")]) == 1
    assert "--unreadable skip" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--preset", "resnet18_kd"], ["--size", "32"], []])
@pytest.mark.parametrize("command", ["distill", "cache build", "cache import"])
def test_options_are_printed_before_all_that_is_required_is_given(
    command: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    taken = [] if command == "cache import" and "--preset" in flags else flags
    assert main([*command.split(), *taken, "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert "output" in printed
    if flags:
        recipe = printed["recipe"]
        shown = {"distill": ("num_views", 100), "cache build": ("augment", True), "cache import": ("augment", False)}
        assert recipe is None or recipe[shown[command][0]] == shown[command][1]


@pytest.mark.parametrize("written", ["[]", '{"pretrained_cfg": {"input_size": [3, -4, -4]}}', "{"])
def test_a_damaged_export_as_teacher_is_one_line(
    written: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(written)
    build = ["cache", "build", str(folder / "data"), "--teacher", str(tmp_path / "teacher"), "--device", "cpu"]
    assert main([*build, "-o", str(tmp_path / "t.h5")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "teacher" in error


def test_a_student_with_more_classes_than_the_data_is_refused(folder: Path, tmp_path: Path) -> None:
    config = DistillConfig(
        data=str(folder / "data"), output=str(tmp_path), student="test_resnet", student_options={"num_classes": 20}
    )
    with pytest.raises(ClassMismatchError, match="leave out num_classes"):
        distill(config)


def test_gradients_are_compared_only_where_there_are_two_losses() -> None:
    with pytest.raises(ConfigError, match="log_gradients needs a teacher"):
        DistillConfig(data="d", output="o", student="s", train=TrainConfig(log_gradients=True))


def test_a_plateau_by_updates_is_refused_with_the_flag_that_helps(folder: Path, tmp_path: Path) -> None:
    train = TrainConfig(epochs=1, batch_size=10, num_workers=0, sched="plateau")
    config = DistillConfig(
        data=str(folder / "data"),
        output=str(tmp_path / "r"),
        student="test_resnet",
        validation=str(folder / "data"),
        device="cpu",
        train=train,
    )
    with pytest.raises(ConfigError, match=r"--train\.sched_unit epoch"):
        distill(config)


def test_a_run_and_its_export_as_teachers_give_the_size_of_the_views(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["distill", "data", *SHORT, "--size", "48", "--epochs", "1", "-o", "teacher"]) == 0
    assert main(["export", "teacher", "-o", "exported"]) == 0
    for teacher in ("teacher", "exported"):
        build = ["cache", "build", "data", "--teacher", teacher, "-o", f"{teacher}.h5"]
        for flags, expected in (
            ([], (48, 1)),
            (["--views", "2"], (48, 2)),
            (["--size", "32"], (32, 1)),
            (["--recipe", "deit"], (48, 1)),
        ):
            recipe = printed_recipe([*build, *flags], capsys)
            assert recipe is not None
            assert (recipe["size"], recipe["num_views"]) == expected
        recipe = printed_recipe(["distill", "data", *SHORT, "--teacher", teacher, "--epochs", "7", "-o", "r"], capsys)
        assert recipe is not None
        assert (recipe["size"], recipe["num_views"]) == (48, 7)
        config = DistillConfig(
            data="data", output="r", student="s", teacher=TeacherConfig(teacher), train=TrainConfig(epochs=7)
        )
        assert choose_recipe(config, None) == ViewRecipe(size=48, num_views=7)
    assert main(["cache", "build", "data", "--teacher", "teacher", "--views", "2", "-o", "own.h5"]) == 0
    assert main(["cache", "build", "data", "--like", "own.h5", "--teacher", "exported", "-o", "second.h5"]) == 0
    shown = capsys.readouterr().err
    assert shown.count("2 per image, 48 pixels\n") == 2
    assert shown.count("crops of 8 to 100 %, flips 0.5\n") == 2


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (ViewRecipe(), "crops of 8 to 100 %, flips 0.5"),
        (ViewRecipe(scale=(0.5, 1.0), hflip=0.0, erasing=0.25), "crops of 50 to 100 %, erasing 0.25"),
        (ViewRecipe(auto_augment="rand-m9", mixup_alpha=0.8), "crops of 8 to 100 %, rand-m9, flips 0.5, mixup 0.8"),
        (ViewRecipe(mixup_alpha=0.8, mix_prob=0.0), "crops of 8 to 100 %, flips 0.5"),
        (ViewRecipe(transform="mine.crop", cutmix_alpha=1.0), "mine.crop, cutmix 1"),
        (ViewRecipe.evaluation(32), "resized and cropped at the centre"),
    ],
)
def test_the_steps_of_a_recipe_are_described(recipe: ViewRecipe, expected: str) -> None:
    assert recipe.describe_steps() == expected


def test_a_cache_of_several_folders_names_them_to_who_opens_one_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    write_digits(folder / "all", 10)
    Path("unlabelled").mkdir()
    for number, path in enumerate(sorted(Path("all").rglob("*.png"))):
        path.rename(f"unlabelled/{number}.png")
    build = ["--teacher", "t.safetensors", "--arch", "test_resnet", "--size", "32", "--views", "2", "-o", "both.h5"]
    assert main(["cache", "build", "data", "unlabelled", *build]) == 0
    assert main(["distill", "unlabelled", *SHORT, "--cache", "both.h5", "-o", "r"]) == 1
    assert "it has 'unlabelled/0.png', so name the folders that it was built from" in capsys.readouterr().err


def test_what_is_done_and_what_is_not_there_is_told_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    build = ["cache", "build", "data", "--teacher", "t.safetensors", "--arch", "test_resnet", "--size", "32", "-o"]
    for told in ("built        20 images in", "built        it was complete"):
        assert main([*build, str(tmp_path / "t.h5"), "--views", "2", "--workers", "0", "--device", "cpu"]) == 0
        shown = capsys.readouterr().out
        assert told in shown or told.replace("20", "40") in shown
        assert "labels       the top-1 of 20 images, each the mean of 2 views, is their class folder" in shown
    train = ["distill", "data", *SHORT, "--cache", str(tmp_path / "t.h5"), "--epochs", "1", "-o", str(tmp_path / "r")]
    assert main(train) == 0
    assert "with a step, the process holds" in " ".join(capsys.readouterr().err.split())
    assert main(train) == 1
    assert "--resume to go on with it" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert main(["export", str(tmp_path / "r"), "-o", str(tmp_path / "full")]) == 1
    assert "--resume" not in capsys.readouterr().err
    for arguments in (["evaluate", "runs/none", "data"], [*build[:3], "--teacher", "runs/none", "-o", "u.h5"]):
        assert main(arguments) == 1
        assert "there is no file or folder of that name" in capsys.readouterr().err
