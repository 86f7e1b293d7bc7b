"""Arrays of anyone's, in every layout: the cache holds what a plain softmax says, row by key."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_caches import TRAIN, Keys, photographs
from PIL import Image
from safetensors.numpy import save_file
from torchvision.datasets import ImageFolder

from kdkit.cache import open_cache
from kdkit.cache.export import FORMATS, export_cache
from kdkit.data import ArraySource, MappedSource, create_source
from kdkit.dataset import open_dataset
from kdkit.errors import ClassMismatchError, ConfigError, DatasetError
from kdkit.importers import import_arrays
from kdkit.recipe import ViewRecipe

KEYS = ["b/2.png", "b/10.png", "a/1.png", "c/0.png"]
CLASSES, VIEWS = 7, 3
SHUFFLED = [KEYS[2], KEYS[0], KEYS[3], KEYS[1]]
RRC = ViewRecipe(size=32)


def logits(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape, scale=3).astype("f4")


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values.astype(np.float64))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def check(path: Path, expected: np.ndarray, tolerance: float = 1e-3) -> None:
    """Compares a cache with probabilities [N, V, C] in the order of KEYS."""
    cache = open_cache(path)
    assert cache.keys() == KEYS
    assert cache.num_views == expected.shape[1]
    for view in range(cache.num_views):
        found = cache.codecs["logits"].decode(cache.read_encoded(np.arange(len(KEYS)), view)).exp().numpy()
        assert abs(found - expected[:, view]).sum(axis=1).max() / 2 < tolerance


def in_order(array: np.ndarray, names: list[str]) -> np.ndarray:
    """From rows in the order of `names` to rows in the order of KEYS."""
    return array[[names.index(key) for key in KEYS]]


@pytest.mark.parametrize("kind", ["logits", "probs"])
def test_npy_rows_are_in_the_order_of_the_data_and_told_apart_by_their_sums(kind: str, tmp_path: Path) -> None:
    array = logits(4, CLASSES)
    expected = softmax(array)[:, None]
    np.save(tmp_path / "x.npy", array if kind == "logits" else softmax(array).astype("f4"))
    import_arrays(tmp_path / "x.npy", Keys(KEYS), tmp_path / "teacher.h5")
    check(tmp_path / "teacher.h5", expected)
    assert open_cache(tmp_path / "teacher.h5").recipe == ViewRecipe.evaluation(224)


@pytest.mark.parametrize("suffix", ["npz", "compressed", "safetensors"])
def test_rows_are_found_by_their_keys(suffix: str, tmp_path: Path) -> None:
    array = logits(4, VIEWS, CLASSES)
    path = tmp_path / f"x.{'safetensors' if suffix == 'safetensors' else 'npz'}"
    if suffix == "safetensors":
        save_file({"logits": array}, path, {"keys": json.dumps(SHUFFLED)})
    else:
        save = np.savez if suffix == "npz" else np.savez_compressed
        save(path, logits=array, keys=np.array(SHUFFLED))
    import_arrays(path, Keys(KEYS), tmp_path / "teacher.h5", recipe=RRC, codec="float32")
    check(tmp_path / "teacher.h5", in_order(softmax(array), SHUFFLED), 1e-6)
    assert open_cache(tmp_path / "teacher.h5").recipe == ViewRecipe(size=32, num_views=VIEWS)


def test_rows_without_keys_are_in_the_order_of_torchvisions_image_folder(tmp_path: Path) -> None:
    for key in ("a-b/2.png", "a/10.png", "a/2.png", "a/x/0.png", "10/0.png", "2/0.png"):
        (tmp_path / "train" / key).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / key)
    theirs = [str(Path(path).relative_to(tmp_path / "train")) for path, _ in ImageFolder(tmp_path / "train").samples]
    array = logits(6, 4)
    np.save(tmp_path / "x.npy", array)
    import_arrays(tmp_path / "x.npy", tmp_path / "train", tmp_path / "t.h5", codec="float32")
    cache = open_cache(tmp_path / "t.h5")
    keys, found = cache.keys(), cache.codecs["logits"].decode(cache.read_encoded(np.arange(6), 0)).exp().numpy()
    np.testing.assert_allclose(found, softmax(array)[[theirs.index(key) for key in keys]], atol=1e-6)


@pytest.mark.parametrize("suffix", ["npz", "bytes", "safetensors"])
@pytest.mark.parametrize("more", [[], ["d"]])
def test_columns_are_found_by_the_names_of_their_classes(suffix: str, more: list[str], tmp_path: Path) -> None:
    names = ["c", *more, "a", "b"]
    array = logits(4, len(names))
    if suffix == "safetensors":
        path = tmp_path / "x.safetensors"
        save_file({"logits": array}, path, {"keys": json.dumps(SHUFFLED), "class_names": json.dumps(names)})
    else:
        path = tmp_path / "x.npz"
        np.savez(path, logits=array, keys=SHUFFLED, class_names=np.array(names, "S" if suffix == "bytes" else None))
    import_arrays(path, Keys(KEYS, ["a", "b", "c"]), tmp_path / "teacher.h5", codec="float32")
    expected = softmax(array[:, [names.index(name) for name in ("a", "b", "c")]])[:, None]
    check(tmp_path / "teacher.h5", in_order(expected, SHUFFLED), 1e-6)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "x"], r"of the classes \['a', 'b', 'x'\], the data also has 'c'"),
        (["a", "b", "b"], "3 class_names, 2 of them different, expected 3"),
        (["a", "b"], "2 class_names, 2 of them different, expected 3"),
        (["a", "b", "b", "c"], "4 class_names, 3 of them different, expected 3"),
        (["e\u0301", "\xe9", "b"], "3 class_names, 2 of them different, expected 3"),
        ([b"a", b"\xe9", b"c"], "class_names are bytes that are not UTF-8"),
        ([0, 1, 2], "class_names are int64"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(names: list[Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", logits=logits(4, 3), keys=KEYS, class_names=names)
    with pytest.raises((ClassMismatchError, DatasetError), match=message):
        import_arrays(tmp_path / "x.npz", Keys(KEYS, ["a", "b", "c"]), tmp_path / "teacher.h5")


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_export_names_its_classes_and_is_imported_in_another_order_of_them(suffix: str, tmp_path: Path) -> None:
    array = logits(4, 3)
    np.savez(tmp_path / "x.npz", logits=array, keys=KEYS)
    import_arrays(tmp_path / "x.npz", Keys(KEYS, ["a", "b", "c"]), tmp_path / "teacher.h5", codec="float32")
    exported = export_cache(tmp_path / "teacher.h5", tmp_path / f"exported{suffix}")
    import_arrays(exported, Keys(KEYS, ["c", "a", "b"]), tmp_path / "again.h5", codec="float32")
    check(tmp_path / "again.h5", softmax(array[:, [2, 0, 1]])[:, None])


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_a_cache_exports_is_imported_again(suffix: str, tmp_path: Path) -> None:
    array = logits(4, CLASSES)
    np.savez(tmp_path / "x.npz", logits=array, keys=np.array(SHUFFLED))
    import_arrays(tmp_path / "x.npz", Keys(KEYS), tmp_path / "teacher.h5", codec="float32")
    exported = export_cache(tmp_path / "teacher.h5", tmp_path / f"exported{suffix}")
    import_arrays(exported, Keys(KEYS), tmp_path / "again.h5", codec="float32")
    check(tmp_path / "again.h5", in_order(softmax(array)[:, None], SHUFFLED))


def test_a_keys_file_names_the_rows(tmp_path: Path) -> None:
    array = logits(4, CLASSES).astype("f2")
    np.save(tmp_path / "x.npy", array)
    (tmp_path / "keys.txt").write_text("\n".join(SHUFFLED))
    import_arrays(tmp_path / "x.npy", Keys(KEYS), tmp_path / "teacher.h5", keys_file=tmp_path / "keys.txt")
    check(tmp_path / "teacher.h5", in_order(softmax(array)[:, None], SHUFFLED))


def test_views_may_come_first(tmp_path: Path) -> None:
    array = logits(VIEWS, 4, CLASSES)
    np.save(tmp_path / "x.npy", np.asfortranarray(array))
    import_arrays(tmp_path / "x.npy", Keys(KEYS), tmp_path / "teacher.h5", recipe=RRC)
    check(tmp_path / "teacher.h5", softmax(array).swapaxes(0, 1))


def test_sparse_labels_spread_their_rest_evenly(tmp_path: Path) -> None:
    ids = np.stack([np.random.default_rng(row).permutation(CLASSES)[:2] for row in range(8)]).reshape(4, 2, 2)
    probs = np.random.default_rng(0).uniform(0.25, 0.45, (4, 2, 2))
    expected = np.broadcast_to((1 - probs.sum(-1, keepdims=True)) / (CLASSES - 2), (4, 2, CLASSES)).copy()
    np.put_along_axis(expected, ids, probs, axis=-1)
    np.savez(tmp_path / "x.npz", ids=ids, probs=probs, keys=KEYS)
    options: dict[str, Any] = {"recipe": RRC, "num_classes": CLASSES}
    import_arrays(tmp_path / "x.npz", Keys(KEYS), tmp_path / "f.h5", codec="float16", **options)
    check(tmp_path / "f.h5", expected)
    import_arrays(tmp_path / "x.npz", Keys(KEYS), tmp_path / "t.h5", **options)
    check(tmp_path / "t.h5", expected, 0.03)
    assert open_cache(tmp_path / "t.h5").codecs["logits"].to_dict()["k"] == 2


def test_boxes_and_flips_become_recorded_views(tmp_path: Path) -> None:
    from torchvision.transforms.functional import hflip, pil_to_tensor, resized_crop

    source = photographs()
    boxes = np.array([[[10, 5, 60, 80], [0, 0, 90, 90]]] * 6)
    flips = np.array([[True, False]] * 6)
    np.savez(
        tmp_path / "x.npz",
        logits=logits(6, 2, len(source.class_names)),
        keys=list(source.keys),
        boxes=boxes,
        flips=flips,
    )
    import_arrays(tmp_path / "x.npz", source, tmp_path / "teacher.h5", recipe=ViewRecipe(size=48))
    dataset = open_dataset(TRAIN, cache=tmp_path / "teacher.h5")
    for row in range(6):
        for view in range(2):
            shown = resized_crop(source[row][0], *boxes[row, view].tolist(), [48, 48])
            shown = hflip(shown) if flips[row, view] else shown
            assert torch.equal(dataset[row, view].image, pil_to_tensor(shown))


def test_a_fitted_codec_is_fitted_to_the_arrays(tmp_path: Path) -> None:
    keys = [f"a/{row}.png" for row in range(300)]
    low = logits(300, 6) @ np.random.default_rng(1).normal(size=(6, 64)).astype("f4")
    np.savez(tmp_path / "x.npz", logits=low, keys=keys)
    import_arrays(tmp_path / "x.npz", Keys(keys), tmp_path / "teacher.h5", codec="lowrank")
    cache = open_cache(tmp_path / "teacher.h5")
    found = cache.codecs["logits"].decode(cache.read_encoded(np.arange(300), 0)).double()
    target = torch.from_numpy(low).double().log_softmax(1)
    assert (target.exp() * (target - found)).sum(1).mean() < 0.05


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": logits(4, CLASSES), "keys": [*KEYS[:3], "x/0.png"]}, r"lacks 1 images \('c/0\.png'\)"),
        ({"logits": logits(5, CLASSES), "keys": [*KEYS, "x/0.png"]}, r"no image: 1 images \('x/0\.png'\)"),
        ({"logits": logits(4, CLASSES), "keys": [*KEYS[:3], KEYS[0]]}, r"names 'b/2\.png' twice"),
        ({"logits": logits(5, CLASSES)}, r"labels \[5, 7\], expected \[4, C\]"),
        ({"logits": logits(4)}, r"labels \[4\]"),
        ({"scores": logits(4, CLASSES)}, "holds scores: expected logits"),
        ({"logits": logits(4, CLASSES), "probs": logits(4, CLASSES)}, "expected logits, log_probabilities or probs"),
        ({"probs": logits(4, CLASSES)}, "image 'b/2.png' has probabilities that do not sum to 1"),
        ({"logits": np.full((4, CLASSES), np.nan, "f4")}, "image 'b/2.png' has NaN or infinity"),
        ({"logits": logits(4, CLASSES), "boxes": np.zeros((4, 1, 4))}, "only boxes or only flips"),
        ({"logits": logits(4, CLASSES), "boxes": np.zeros((4, 4)), "flips": np.zeros((4, 1))}, r"boxes \[4, 4\]"),
        (
            {"logits": logits(4, CLASSES), "boxes": np.full((4, 1, 4), -1), "flips": np.zeros((4, 1))},
            "from 0 to 65,535",
        ),
        ({"logits": logits(4, CLASSES), "boxes": np.full((4, 1, 4), 0.5), "flips": np.zeros((4, 1))}, "must be whole"),
        ({"logits": logits(4, CLASSES), "boxes": np.full((4, 1, 4), np.nan), "flips": np.zeros((4, 1))}, "whole"),
        ({"logits": logits(4, CLASSES), "boxes": np.zeros((4, 1, 4)), "flips": np.zeros((4, 1))}, "height or width 0"),
        ({"logits": logits(4, CLASSES), "boxes": np.ones((4, 1, 4)), "flips": np.full((4, 1), 0.5)}, "flips must be"),
        ({"logits": logits(4, CLASSES).astype(complex)}, "labels of dtype complex128, expected numbers"),
        ({"logits": np.full((4, CLASSES), "1")}, "labels of dtype <U1, expected numbers"),
        ({"logits": np.full((4, CLASSES), 1e300)}, "has NaN or infinity"),
        ({"logits": np.broadcast_to(np.float32(0), (4, 200_000))}, "number of classes must be .* 131,072"),
        ({"logits": logits(4, CLASSES), "keys": np.arange(4)}, "expected a list of texts"),
    ],
)
def test_arrays_of_another_shape_or_other_images_are_refused_by_name(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DatasetError, match=message) as error:
        import_arrays(tmp_path / "x.npz", Keys(KEYS), tmp_path / "teacher.h5")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "teacher.h5").exists()


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "views.npz", logits=logits(4, VIEWS, CLASSES))
    with pytest.raises(ConfigError, match="3 views, the evaluation recipe has one"):
        import_arrays(tmp_path / "views.npz", Keys(KEYS), tmp_path / "teacher.h5")
    np.savez(tmp_path / "ids.npz", probs=np.full((4, 1, 2), 0.5), ids=np.zeros((4, 1, 2), int))
    with pytest.raises(ConfigError, match="give num_classes"):
        import_arrays(tmp_path / "ids.npz", Keys(KEYS), tmp_path / "teacher.h5")
    np.savez(tmp_path / "ids.npz", probs=np.full((4, 1, 2), 0.5), ids=np.full((4, 1, 2), 0.5))
    for num_classes, message in ((5, "ids must be whole numbers"), (10**12, "number of classes must be")):
        with pytest.raises(DatasetError, match=message):
            import_arrays(tmp_path / "ids.npz", Keys(KEYS), tmp_path / "teacher.h5", num_classes=num_classes)


def test_python_objects_and_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", logits=np.array([[{}]] * 4, dtype=object))
    np.save(tmp_path / "objects.npy", np.array([[{}]] * 4, dtype=object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "objects.npz").read_bytes()[:50])
    (tmp_path / "odd.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "odd.txt").write_text("1 2 3")
    for name in ("objects.npz", "objects.npy", "cut.npz", "odd.safetensors", "odd.txt", "none.npy"):
        with pytest.raises(DatasetError, match=name.replace(".", r"\.")) as error:
            import_arrays(tmp_path / name, Keys(KEYS), tmp_path / "teacher.h5")
        assert "\n" not in str(error.value)


def test_arrays_of_another_number_of_classes_than_the_data_are_refused_with_both_numbers(tmp_path: Path) -> None:
    source = photographs()
    np.savez(tmp_path / "x.npz", logits=logits(6, 7), keys=list(source.keys))
    with pytest.raises(ClassMismatchError, match=r"x.npz has 7 classes, the data 4 class folders"):
        import_arrays(tmp_path / "x.npz", source, tmp_path / "teacher.h5")
    assert not (tmp_path / "teacher.h5.parts").exists()


def test_names_and_keys_in_another_form_of_unicode_are_found(tmp_path: Path) -> None:
    forms = [[unicodedata.normalize(form, text) for text in ("caf\xe9/1.png", "b/1.png")] for form in ("NFC", "NFD")]
    array = logits(2, 2)
    for keys, named in (forms, forms[::-1]):
        np.savez(tmp_path / "x.npz", logits=array, keys=named, class_names=[key.split("/")[0] for key in named])
        import_arrays(
            tmp_path / "x.npz", Keys(keys, ["b", "caf\xe9"]), tmp_path / f"{keys == forms[0]}.h5", codec="float32"
        )
        cache = open_cache(tmp_path / f"{keys == forms[0]}.h5")
        found = cache.codecs["logits"].decode(cache.read_encoded(np.arange(2), 0)).exp().numpy()
        np.testing.assert_allclose(found, softmax(array)[:, ::-1], atol=1e-6)


def test_images_without_labels_take_the_classes_that_the_file_names_in_natural_order(tmp_path: Path) -> None:
    array = logits(4, 3)
    np.savez(tmp_path / "x.npz", logits=array, keys=KEYS, class_names=["10", "9", "a"])
    import_arrays(tmp_path / "x.npz", Keys(KEYS), tmp_path / "teacher.h5", codec="float32")
    check(tmp_path / "teacher.h5", softmax(array[:, [1, 0, 2]])[:, None], 1e-6)
    assert open_cache(tmp_path / "teacher.h5").class_names == ["9", "10", "a"]


@pytest.mark.parametrize("kind", ["table", "dataset", "arrays"])
def test_rows_of_a_table_or_a_dataset_are_in_its_own_order(kind: str, tmp_path: Path) -> None:
    """Twelve images, so that texts would be sorted otherwise: 0, 1, 10, 11, 2."""
    images = [Image.new("RGB", (8, 8), (20 * number, 0, 0)) for number in range(12)]
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "images" / f"{number}.png")
    lines = [f"images/{number}.png,{'ab'[number % 2]}" for number in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines]))
    data: Any = {
        "table": tmp_path / "t.csv",
        "dataset": [(image, number % 2) for number, image in enumerate(images)],
        "arrays": ArraySource(np.stack([np.asarray(image) for image in images]), [0, 1] * 6, class_names=["a", "b"]),
    }[kind]
    data = MappedSource(data, class_names=["a", "b"]) if kind == "dataset" else data
    array = np.arange(24, dtype="f4").reshape(12, 2) ** 0.5 * [[1, -1]]
    np.save(tmp_path / "x.npy", array.astype("f4"))
    import_arrays(tmp_path / "x.npy", data, tmp_path / "teacher.h5", codec="float32")
    cache, source = open_cache(tmp_path / "teacher.h5"), create_source(data)
    found = cache.codecs["logits"].decode(cache.read_encoded(np.arange(12), 0)).exp().numpy()
    shown = [source[row][0].getpixel((0, 0))[0] // 20 for row in range(12)]
    np.testing.assert_allclose(found, softmax(array[shown]), atol=1e-5)


def test_labels_of_several_classes_per_image_are_kept_as_such(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "t.csv").write_text(
        "path,sea,city\n" + "".join(f"{number}.png,1,{number % 2}\n" for number in range(4))
    )
    array = logits(4, 2)
    np.save(tmp_path / "x.npy", array)
    source = create_source(tmp_path / "t.csv", label_column="sea,city")
    import_arrays(tmp_path / "x.npy", source, tmp_path / "teacher.h5")
    cache = open_cache(tmp_path / "teacher.h5")
    assert cache.is_multi_label
    found = cache.codecs["logits"].decode(cache.read_encoded(np.arange(4), 0)).numpy()
    np.testing.assert_allclose(found, array, atol=1e-2)
    np.save(tmp_path / "shares.npy", 1 / (1 + np.exp(-array)))
    np.savez(tmp_path / "log.npz", log_probabilities=np.log(softmax(array)), keys=list(source.keys))
    np.savez(tmp_path / "ids.npz", probs=softmax(array)[:, None], ids=[[[0, 1]]] * 4, keys=list(source.keys))
    for name, options in (("shares.npy", {}), ("log.npz", {}), ("ids.npz", {"num_classes": 2})):
        with pytest.raises(ConfigError, match="has probabilities, and images of the data several labels: give logits"):
            import_arrays(tmp_path / name, source, tmp_path / f"{name}.h5", **options)


def test_a_single_class_is_refused_as_such(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", logits=logits(1, 2), keys=["a/1.png"], class_names=["a", "b"])
    with pytest.raises(ClassMismatchError, match="the data has the class 'a' alone"):
        import_arrays(tmp_path / "x.npz", Keys(["a/1.png"], ["a"]), tmp_path / "t.h5")
