"""Teacher cards: those that ship agree with timm and cite their facts; a wrong one is refused in one line."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml

from kdkit.errors import ConfigError, UnknownNameError
from kdkit.teachers.card import SHIPPED, PublishedTop1, Source, TeacherCard, Weights, list_cards, load_card

README = Path(__file__).parents[2] / "teachers" / "README.md"
NAMES = sorted(file.name.removesuffix(".yaml") for file in SHIPPED.glob("*.yaml"))

BIRDS = """\
name: birds
model: resnet50
num_classes: 200
input_size: [3, 224, 224]
mean: [0.485, 0.456, 0.406]
std: [0.229, 0.224, 0.225]
interpolation: bicubic
crop_pct: 0.95
"""


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    """An empty working directory, so that ./teachers is what a test puts there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, file: str = "birds.yaml") -> Path:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# The cards that ship


def test_the_cards_that_ship_include_small_classic_and_strong_teachers():
    assert {"tf_efficientnet_lite0.in1k", "resnet50.a1_in1k", "regnety_160.deit_in1k"} <= set(NAMES)
    assert [card.name for card in list_cards()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_card_states_the_evaluation_input_that_timm_states(name):
    card, cfg = load_card(name), timm.get_pretrained_cfg(name)
    assert cfg is not None
    for field in ("num_classes", "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "license"):
        assert getattr(card, field) == getattr(cfg, field), field
    assert card.timm_name == name
    assert card.weights.hub_id == cfg.hf_hub_id


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_card_states_the_parameters_of_the_model_that_timm_builds(name):
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    assert load_card(name).params_m == round(sum(p.numel() for p in model.parameters()) / 1e6, 2)


@pytest.mark.parametrize("name", NAMES)
def test_every_fact_of_a_shipped_card_has_a_source_with_an_address(name):
    card = load_card(name)
    stated = set(yaml.safe_load((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))) - {"name", "sources"}
    assert stated <= {fact for source in card.sources for fact in source.supports}
    assert all(source.url and source.url.startswith("https://") for source in card.sources)
    sources = {source.key: source for source in card.sources}
    assert card.published_top1
    assert all(top1.source and "published_top1" in sources[top1.source].supports for top1 in card.published_top1)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_card_publishes_a_top1_at_its_own_input_size(name):
    card = load_card(name)
    assert card.top1_at(card.input_size[1]) is card.published_top1[0]
    assert card.top1_at(7) is None


# The schema


def test_the_readme_documents_every_field_and_no_other():
    documented = re.findall(r"^\| (`.+?`) \|", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    documented = [name for cell in documented for name in re.findall(r"`(\w+)`", cell)]
    fields = [f.name for cls in (TeacherCard, PublishedTop1, Weights, Source) for f in dataclasses.fields(cls)]
    assert sorted(documented) == sorted(name for name in fields if name != "path")


def test_the_card_in_the_readme_is_read_as_it_stands():
    example = re.search(r"```yaml\n(.+?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert example is not None
    card = load_card(write(example[1]))
    assert (card.timm_name, card.num_classes) == ("resnet50", 200)
    assert card.checkpoint == Path("birds.safetensors")


def test_a_card_holds_the_values_of_the_file_and_is_immutable():
    card = load_card(
        write(
            BIRDS
            + "params_m: 24\n"
            + "training_data: [imagenet-1k, cub-200]\n"
            + "published_top1: [{percent: 88, input_size: 224, source: me}]\n"
            + "sources: [{key: me, cite: measured by hand, supports: [published_top1]}]\n"
        )
    )
    assert card.params_m == 24.0
    assert isinstance(card.params_m, float)
    assert card.training_data == ("imagenet-1k", "cub-200")
    assert card.published_top1 == (PublishedTop1(88.0, 224, None, "me"),)
    assert card.sources == (Source("me", "measured by hand", ("published_top1",)),)
    assert card.license is None
    assert card.weights == Weights()
    assert card.checkpoint is None
    hash(card)
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.name = "fish"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("crop_pct", "crop_pc", "crop_pc: no such field; did you mean 'crop_pct'"),
        ("crop_pct: 0.95", "zzz: 1", "zzz: no such field; known: name, num_classes"),
        ("name: birds", "1: birds", "1: no such field"),
        ("name: birds", "path: birds", "path: no such field"),
        ("crop_pct: 0.95\n", "", "crop_pct: missing, and required"),
        ("name: birds", "name: 12", "name: expected text, got 12"),
        ("name: birds", "name: ''", "name: expected text, got ''"),
        ("name: birds", "name:", "name: expected text, got None"),
        ("200", "many", "num_classes: expected a whole number, got 'many'"),
        ("200", "200.0", "num_classes: expected a whole number, got 200.0"),
        ("200", "true", "num_classes: expected a whole number, got True"),
        ("200", "1", "num_classes: expected at least 2, got 1"),
        ("[3, 224, 224]", "224", "input_size: expected a list, got 224"),
        ("[3, 224, 224]", "[224, 224]", "input_size: expected 3 items, got 2: [224, 224]"),
        ("[3, 224, 224]", "[3, 224, 224.5]", "input_size[2]: expected a whole number, got 224.5"),
        ("[3, 224, 224]", "[3, 0, 224]", "input_size: expected above 0, got [3, 0, 224]"),
        ("0.485", ".nan", "mean[0]: expected a number, got nan"),
        ("0.229", "-0.229", "std: expected above 0, got [-0.229, 0.224, 0.225]"),
        ("0.95", "95", "crop_pct: expected a fraction above 0, such as 0.95, got 95.0"),
        (
            "bicubic",
            "bicubik",
            "interpolation: 'bicubik' is none of bicubic, bilinear, nearest, lanczos, box, hamming; did",
        ),
        ("name: birds", "name: birds\ncrop_mode: centre", "crop_mode: 'centre' is none of center, squash, border; did"),
        ("name: birds", "name: birds\nparams_m: 0", "params_m: expected above 0, got 0.0"),
        ("name: birds", "name: birds\nweights: hub", "weights: expected fields with values, got 'hub'"),
        ("name: birds", "name: birds\nweights: {hub: x}", "weights.hub: no such field; did you mean 'hub_id'?"),
        ("name: birds", "name: birds\nsources: [{key: a, cite: b}]", "sources[0].supports: missing, and required"),
        (
            "name: birds",
            "name: birds\nsources: [{key: a, cite: b, supports: [licence]}]",
            "sources[0].supports: 'licence' is none of",
        ),
        (
            "name: birds",
            "name: birds\nsources: [{key: a, cite: b, supports: []}, {key: a, cite: c, supports: []}]",
            "sources[1].key: expected a key of its own, got 'a'",
        ),
        (
            "name: birds",
            "name: birds\npublished_top1: [{percent: 101, input_size: 224}]",
            "published_top1[0].percent: expected above 0 and at most 100, got 101.0",
        ),
        (
            "name: birds",
            "name: birds\npublished_top1: [{percent: 80, input_size: 224, source: a}]",
            "published_top1[0].source: 'a' is none of (none)",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_file_in_one_line(old, new, complaint):
    assert old in BIRDS
    with pytest.raises(ConfigError, match=re.escape(f"birds.yaml: {complaint}")) as error:
        load_card(write(BIRDS.replace(old, new)))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "birds.yaml: expected fields with values, got None"),
        ("- name", "birds.yaml: expected fields with values, got ['name']"),
        ("name: [", "birds.yaml', line 1: not valid YAML: "),
        ("name: birds\nname: fish", "birds.yaml', line 2: 'name' is given twice"),
        ("weights: {pypi: a, pypi: b}", "birds.yaml', line 1: 'pypi' is given twice"),
        ("name: &a [b]\nmean: *a", "birds.yaml', line 1: an alias (*)"),
        ("name: &a [*a]", "birds.yaml', line 1: an alias (*)"),
        ("[b]: c", "birds.yaml', line 1: not valid YAML: found unhashable key"),
        ('"a\\nb": 1', r"birds.yaml: 'a\nb': no such field"),
        ("name: 2026-13-01", "birds.yaml': not valid YAML: month must be in 1..12"),
        (
            "name: !!python/object/apply:os.getcwd []",
            "birds.yaml', line 1: not valid YAML: could not determine a constr",
        ),
        ("num_classes: 0x" + "f" * 9000, "birds.yaml', line 1: a number of 9002 characters"),
        ("[" * 20_000, "birds.yaml': not valid YAML: it is nested too deeply"),
        ("name: \x00", "birds.yaml': not valid YAML: "),
        ("name: birds\n" * 10_000, "birds.yaml' has 120,000 bytes, expected at most 65,536"),
    ],
)
def test_a_file_that_is_no_card_is_refused_in_one_line(text, complaint):
    with pytest.raises(ConfigError, match=re.escape(complaint)) as error:
        load_card(write(text))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text_is_refused(workdir):
    (workdir / "birds.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=r"birds\.yaml': not valid YAML: it is not text in UTF-8"):
        load_card("birds.yaml")


# Where cards are found


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'resnet50\.a2_in1k'.+did you mean 'resnet50\.a1_in1k'"):
        load_card("resnet50.a2_in1k")
    with pytest.raises(UnknownNameError, match="known: convnext_base"):
        load_card("")


def test_a_missing_file_is_named(workdir):
    with pytest.raises(ConfigError, match=r"there is no file 'nowhere\.yaml'"):
        load_card("nowhere.yaml")
    with pytest.raises(ConfigError, match="is a folder, expected a regular file"):
        load_card(workdir)
    with pytest.raises(ConfigError, match="no file has such a name"):
        load_card("a\0.yaml")
    with pytest.raises(ConfigError, match="there is no file"):
        load_card("~no-such-user/a.yaml")


def test_a_card_is_read_by_path_whatever_the_file_is_called():
    path = write(BIRDS, "deep/down/other.yml")
    assert load_card(str(path)) == load_card(path)
    assert load_card(path).path == path


def test_a_checkpoint_is_found_from_the_folder_of_its_card():
    assert load_card(write(BIRDS + "weights: {checkpoint: w/b.pt}\n", "deep/b.yaml")).checkpoint == Path("deep/w/b.pt")
    assert load_card(write(BIRDS + "weights: {checkpoint: /w/b.pt}\n", "deep/b.yaml")).checkpoint == Path("/w/b.pt")


def test_cards_in_the_teachers_folder_are_found_by_name_and_listed():
    write(BIRDS, "teachers/birds.yaml")
    write("not a card", "teachers/notes.txt")
    assert load_card("birds").num_classes == 200
    assert [card.name for card in list_cards()] == sorted([*NAMES, "birds"])


def test_a_card_of_ones_own_stands_in_for_the_shipped_one_of_its_name():
    write(BIRDS.replace("name: birds", "name: resnet50.a1_in1k"), "teachers/resnet50.a1_in1k.yaml")
    assert load_card("resnet50.a1_in1k").num_classes == 200
    assert [card.name for card in list_cards()] == NAMES


def test_a_card_in_the_teachers_folder_must_have_the_name_of_its_file():
    write(BIRDS, "teachers/fish.yaml")
    for look in (list_cards, lambda: load_card("fish")):
        with pytest.raises(ConfigError, match=r"fish\.yaml: name: is 'birds', but the file is called 'fish'"):
            look()


def test_a_wrong_card_in_the_teachers_folder_does_not_hide_the_others():
    write("name: [", "teachers/birds.yaml")
    assert load_card("resnet50.a1_in1k").num_classes == 1000
    with pytest.raises(ConfigError, match=r"birds\.yaml', line 1"):
        list_cards()


def test_reading_cards_loads_neither_torch_nor_timm():
    code = "import sys, kdkit.teachers.card as c; c.list_cards(); print({'torch', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
