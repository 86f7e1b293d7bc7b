"""Checking a teacher: its top-1 on labelled images compared with the published one, and the order of its classes.

Dimensions: C classes of the images, K classes of the teacher.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.building.teacher import placed
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader, create_source, translate_worker_errors
from kdkit.errors import ClassMismatchError, DatasetError
from kdkit.evaluation.config import TeachersCheckConfig
from kdkit.recipe import Interpolation, ViewRecipe
from kdkit.resolve import card_of, describe_teacher, resolve_device, resolve_teacher
from kdkit.teachers import Teacher, TeacherCard, TeacherEnsemble
from kdkit.teachers.card import PublishedTop1
from kdkit.teachers.class_indices import check_indices_of_teacher, check_names_of_teacher
from kdkit.teachers.class_map import map_names
from kdkit.teachers.class_names import describe_count_mismatch
from kdkit.teachers.model_config import model_config
from kdkit.training.labels import check_labels

SLACK = 2.0
"""Percentage points that a top-1 may be below the published one, in addition to three standard errors of the sample:
decoders and resizing differ by that much."""
_CONSISTENT = 50.0
"""Percent of predictions that must agree under another order of classes, and more than twice the correct ones."""
_IMAGES_PER_CLASS = 4
"""Images per class, on average, below which agreement may be chance."""


@dataclass(frozen=True)
class CheckReport:
    """A teacher's predictions on labelled images, compared with its card."""

    teacher: str
    """Name of the teacher."""
    num_images: int
    """Labelled images that the teacher was run on."""
    num_available: int
    """Images of the dataset."""
    input_size: int
    """Side of the images, pixels."""
    top1: float
    """Top-1, percent."""
    consistency: float
    """Percent of images whose prediction is the most frequent one for their label: at least top1."""
    published: PublishedTop1 | None
    """The card's figure that is compared, or None."""
    warning: str | None
    """What is wrong, in a sentence, or None."""
    description: str = ""
    """The teacher's name, and whether its classes are mapped to those of the images."""


def check_named_teacher(config: TeachersCheckConfig) -> CheckReport:
    """Checks the teacher that `config` names, as `check_teacher` does, in the view of its card or of its model.

    A name that has a card is loaded as the card describes it, unless it is an ensemble.
    """
    card, device = card_of(config.teacher, config.card), resolve_device(config.device)
    source = create_source(config.data, **config.columns)
    own_card = None if config.teacher.ensemble or config.card is not None else card
    teacher = _in_order_of(source.class_names, resolve_teacher(config.teacher, device, card=own_card))
    dataset = ReplayedDataset(source, check_recipe(card, teacher, config.teacher.input_size))
    return check_teacher(
        teacher,
        dataset,
        card,
        limit=config.limit,
        batch_size=config.batch_size,
        num_workers=config.workers,
        device=device,
    )


@torch.no_grad()
@translate_worker_errors()
def check_teacher(
    teacher: Teacher,
    dataset: ReplayedDataset,
    card: TeacherCard | None = None,
    *,
    limit: int | None = None,
    batch_size: int = TeachersCheckConfig.batch_size,
    num_workers: int = 0,
    device: torch.device | str | None = None,
) -> CheckReport:
    """Runs `teacher` on labelled images, which finds a wrong normalisation, class order or head.

    Args:
        teacher: the teacher to check.
        dataset: labelled images in an evaluation view; `check_recipe` makes the view of a card's figure. Class folders
            that are named by synset are matched with the classes of an ImageNet teacher.
        card: the card whose published top-1 is compared; without one, only the order of the classes is judged.
        limit: number of images drawn from the dataset; all of them when None.
        batch_size: images per batch.
        num_workers: worker processes that load images.
        device: where the teacher runs; it is moved there. None leaves it where it is.

    Raises:
        ClassMismatchError: the images have other classes than the teacher.
        DatasetError: no image has a label, or a label is out of range (LabelError).
    """
    teacher, device = placed(teacher, device)
    classes = torch.tensor(_class_numbers(teacher, dataset))
    check_labels(dataset, len(classes), type(dataset.source).__name__)
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
    has_other_classes = card is not None and teacher.class_map is not None and card.num_classes != teacher.num_classes
    is_cited = card is not None and not has_other_classes and _shows_view_of(card, dataset.recipe)
    published = card.top1_at(dataset.recipe.size) if card is not None and is_cited else None
    judged = consistency if len(label) >= _IMAGES_PER_CLASS * len(label.unique()) else 0.0
    warning = _warning(teacher, top1, judged, len(label), published)
    size = dataset.recipe.size
    description = describe_teacher(teacher)
    if card is not None and not has_other_classes and not is_cited:
        description += f"; its card's figures are of other views ({card.crop_mode}, {card.interpolation})"
    return CheckReport(teacher.name, len(label), len(dataset), size, top1, consistency, published, warning, description)


def check_recipe(
    card: TeacherCard | None = None, teacher: Teacher | None = None, input_size: int | None = None
) -> ViewRecipe:
    """The evaluation view of a card's own input, in which its first figure of that size was measured.

    Views are resized bicubically or bilinearly and cropped at the centre; where the card's figures are of others, such
    as squashed images, `check_teacher` compares with none.

    Args:
        card: the card; without one, timm's configuration of the teacher's model decides.
        teacher: the teacher to check; of an ensemble, its first member decides.
        input_size: side in pixels, instead of the card's.
    """
    if card is None:
        return _recipe_of(teacher, input_size)
    size = input_size or card.input_size[-1]
    published = card.top1_at(size)
    crop_pct = card.crop_pct if published is None or published.crop_pct is None else published.crop_pct
    return _evaluation(size, crop_pct, card.interpolation)


def _shows_view_of(card: TeacherCard, recipe: ViewRecipe) -> bool:
    """Whether the card's figures were measured on such views: some models squash images, or resize them otherwise."""
    return card.crop_mode == "center" and card.interpolation == recipe.interpolation


def _recipe_of(teacher: Teacher | None, input_size: int | None) -> ViewRecipe:
    first = teacher.members[0] if isinstance(teacher, TeacherEnsemble) else teacher
    config = {} if first is None else model_config(first.model)
    own = None if first is None or first.input_size is None else first.input_size[-1]
    size = input_size or own or (config.get("input_size") or (3, ViewRecipe.size))[-1]
    return _evaluation(size, config.get("crop_pct") or ViewRecipe.crop_pct, config.get("interpolation", ""))


def _evaluation(size: int, crop_pct: float, interpolation: str) -> ViewRecipe:
    known: Interpolation = "bilinear" if interpolation == "bilinear" else "bicubic"
    return ViewRecipe.evaluation(size, crop_pct=min(crop_pct, 1.0), interpolation=known)


def _in_order_of(names: Sequence[str] | None, teacher: Teacher) -> Teacher:
    """The teacher with its classes in the data's order; as it is if the data has a part of them: see _class_numbers."""
    known = None if names is None else teacher.names_like(names)
    if names is None or (known is not None and teacher.class_map is None and set(names) < set(known)):
        return teacher
    return teacher.for_classes(names)


def _class_numbers(teacher: Teacher, dataset: ReplayedDataset) -> list[int]:
    """The teacher's class [K] for each class of the dataset [C]."""
    names, subject = list(dataset.class_names or ()), f"the teacher {teacher.name!r}"
    check_names_of_teacher(teacher, names) if names else check_indices_of_teacher(teacher)
    known = teacher.names_like(names) if names else None
    if known is not None and teacher.class_map is None:
        return list(map_names(names, known, subject))
    if teacher.num_classes == 0 or (teacher.num_classes is not None and names and len(names) != teacher.num_classes):
        raise ClassMismatchError(describe_count_mismatch(subject, teacher.num_classes, names))
    return list(range(teacher.num_classes or len(names)))


def _consistency(label: Tensor, choice: Tensor) -> float:
    """Percent of images whose prediction is the most frequent one for their label; each label has a different one."""
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
            f"the teacher {teacher.name!r} has top-1 {top1:.1f} %, but its predictions fit the images under another "
            f"order of classes ({consistency:.1f} %): its class map, or the order of the class folders, is not that "
            "of its training"
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
