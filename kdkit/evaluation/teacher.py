"""Checking a teacher: its top-1 on labelled images beside the published one, and whether its classes are in order.

Dimensions: C classes of the folder, K classes that the teacher answers with.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from timm.data import infer_imagenet_subset
from torch import Tensor

from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader, translate_worker_errors
from kdkit.errors import ClassMismatchError, DatasetError
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher, TeacherCard, TeacherEnsemble
from kdkit.teachers.card import PublishedTop1
from kdkit.teachers.class_map import are_synsets, map_names, synsets
from kdkit.teachers.model_config import model_config

SLACK = 2.0
"""Percentage points that a top-1 may lie below the published one, beside three standard errors of the sample: decoders
and resizing differ that much."""
_CONSISTENT = 50.0
"""Percent of answers that must agree under another order of classes, and more than twice as many as are right."""
_IMAGES_A_CLASS = 4
"""Images a class, on average, below which agreement may be chance."""


@dataclass(frozen=True)
class CheckReport:
    """What a teacher said about labelled images."""

    teacher: str
    """Its name."""
    num_images: int
    """Images that it was asked about."""
    top1: float
    """Percent of them whose label it chose."""
    consistency: float
    """Percent of them for which it chose what it most often chooses for that label: as large as top1, or larger."""
    published: PublishedTop1 | None
    """The card's figure that is compared, or None."""
    warning: str | None
    """What is wrong, in a sentence, or None."""


@torch.no_grad()
@translate_worker_errors()
def check_teacher(
    teacher: Teacher,
    dataset: ReplayedDataset,
    card: TeacherCard | None = None,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> CheckReport:
    """Asks `teacher` about labelled images, which finds a wrong normalisation, class order or head.

    Args:
        teacher: who is checked.
        dataset: labelled images in an evaluation view; `check_recipe` makes the one that a card's figure was taken at.
            Class folders called by their synset are matched with the classes of an ImageNet teacher by these.
        card: whose published top-1 is compared; without it, only the order of the classes is judged.
        limit: images that are drawn from the dataset; all of them when None.
        batch_size: images that the teacher is given at once.
        num_workers: processes that load images.
        device: where it runs; it is moved there.

    Raises:
        ClassMismatchError: the images have other classes than the teacher.
        DatasetError: no image has a label.
    """
    teacher = teacher.to(torch.device(device))
    classes = torch.tensor(_class_numbers(teacher, dataset))
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:limit].tolist()
    loader = ReplayLoader(
        dataset,
        EpochSampler(rows, batch_size, shuffle=False),
        teacher.input_normalization,
        device=device,
        num_workers=num_workers,
    )
    labels, choices = [], []
    for batch in loader:
        logits = teacher(batch).logits
        assert logits is not None
        labels.append(batch.target.cpu())
        choices.append(logits.argmax(dim=1).cpu())
    label, choice = torch.cat(labels), torch.cat(choices)
    label, choice = classes[label[label >= 0]], choice[label >= 0]
    if len(label) == 0:
        raise DatasetError("no image to check the teacher on has a label: give a folder of class folders")
    top1, consistency = _percent(label == choice), _consistency(label, choice)
    asked_otherwise = card is not None and teacher.class_map is not None and card.num_classes != teacher.num_classes
    published = None if card is None or asked_otherwise else card.top1_at(dataset.recipe.size)
    judged = consistency if len(label) >= _IMAGES_A_CLASS * len(label.unique()) else 0.0
    warning = _warning(teacher, top1, judged, len(label), published)
    return CheckReport(teacher.name, len(label), top1, consistency, published, warning)


def check_recipe(
    card: TeacherCard | None = None, teacher: Teacher | None = None, input_size: int | None = None
) -> ViewRecipe:
    """The evaluation view of a card's own input, at which its first figure of that size was taken.

    Args:
        card: whose; where there is none, what timm says of `teacher`'s model.
        teacher: who is checked, an ensemble as its first member is.
        input_size: side in pixels in place of that.
    """
    if card is None:
        return _recipe_of(teacher, input_size)
    size = input_size or card.input_size[-1]
    published = card.top1_at(size)
    crop_pct = card.crop_pct if published is None or published.crop_pct is None else published.crop_pct
    return _evaluation(size, crop_pct, card.interpolation)


def _recipe_of(teacher: Teacher | None, input_size: int | None) -> ViewRecipe:
    first = teacher.members[0] if isinstance(teacher, TeacherEnsemble) else teacher
    config = {} if first is None else model_config(first.model)
    own = None if first is None or first.input_size is None else first.input_size[-1]
    size = input_size or own or (config.get("input_size") or (3, ViewRecipe.size))[-1]
    return _evaluation(size, config.get("crop_pct") or ViewRecipe.crop_pct, config.get("interpolation", ""))


def _evaluation(size: int, crop_pct: float, interpolation: str) -> ViewRecipe:
    known = interpolation if interpolation in ("bilinear", "bicubic") else "bicubic"
    return ViewRecipe.evaluation(size, crop_pct=min(crop_pct, 1.0), interpolation=known)


def _class_numbers(teacher: Teacher, dataset: ReplayedDataset) -> list[int]:
    """The teacher's class [K] for each class of the dataset [C]."""
    names = list(dataset.class_names or ())
    family = infer_imagenet_subset({"num_classes": teacher.num_classes})
    if family is not None and are_synsets(names):
        return list(map_names(names, synsets(family), f"the teacher {teacher.name!r}"))
    if teacher.num_classes is not None and names and len(names) != teacher.num_classes:
        raise ClassMismatchError(
            f"the teacher {teacher.name!r} answers with {teacher.num_classes} classes, the images have {len(names)}: "
            "give images of its classes, or name their folders by synset if it is an ImageNet teacher"
        )
    return list(range(teacher.num_classes or len(names)))


def _consistency(label: Tensor, choice: Tensor) -> float:
    """Percent of images whose choice is the commonest one for their label, no two labels sharing one."""
    pairs = Counter(zip(label.tolist(), choice.tolist(), strict=True))
    named: dict[int, int] = {}
    taken: set[int] = set()
    for (of, chosen), _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0][0] != item[0][1], item[0])):
        if of not in named and chosen not in taken:
            named[of] = chosen
            taken.add(chosen)
    agreeing = sum(count for (of, chosen), count in pairs.items() if named.get(of) == chosen)
    return max(100 * agreeing / len(label), _percent(label == choice))


def _warning(
    teacher: Teacher, top1: float, consistency: float, num_images: int, published: PublishedTop1 | None
) -> str | None:
    expected = None if published is None else published.percent
    error = 0.0 if expected is None else 300 * math.sqrt(expected / 100 * (1 - expected / 100) / num_images)
    if expected is not None and top1 >= expected - SLACK - error:
        return None
    if consistency > max(_CONSISTENT, 2 * top1):
        return (
            f"the teacher {teacher.name!r} has top-1 {top1:.1f} %, but its answers fit the images under another order "
            f"of classes ({consistency:.1f} %): its class map, or the order of the class folders, is not what it was "
            "trained with"
        )
    if expected is None:
        return None
    return (
        f"the teacher {teacher.name!r} has top-1 {top1:.1f} %, {expected - top1:.1f} points below the published "
        f"{expected:.1f} %, where up to {SLACK + error:.1f} are chance with {num_images} images: is its normalisation, "
        "its input size, its head or its checkpoint another one, or are these images of another kind?"
    )


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())
