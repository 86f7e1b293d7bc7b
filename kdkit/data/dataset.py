"""ReplayedDataset: the images of a source in the views of a recipe, indexed by (row, view)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import Self

from kdkit.data.sample import Sample, Unreadable, check_indices
from kdkit.data.sources.base import ImageSource, Targets, targets_of
from kdkit.data.sources.checked import CheckedSource, check_source
from kdkit.data.sources.content import SampleContent
from kdkit.data.sources.multi_label import num_labels_of
from kdkit.data.sources.selection import SelectedSource, Unlabelled
from kdkit.data.views.custom import check_replayable
from kdkit.data.views.mixing import NOT_MIXED, Pairing, draw_mix
from kdkit.data.views.recorded import RecordStore, open_records
from kdkit.data.views.renderer import create_renderer, with_identity
from kdkit.data.views.seed import preserve_rng_state, seed_all, view_seed
from kdkit.errors import DatasetError, LabelError, UnreadableError
from kdkit.recipe import ViewRecipe

Index = tuple[int, int]
_ADVICE = "repair or remove it (kdkit cache build, distill and evaluate skip such images with --unreadable skip)"
Load = Callable[[int], tuple[Any, int]]


class ReplayedDataset(Dataset[Sample]):
    """The images of a source in reproducible views.

    View v of a sample depends only on the recipe, the sample's key and v; a mixed view depends also on the key of the
    partner.

    Args:
        source: where the images come from.
        recipe: the settings of the views.
        transform: a custom transform instead of the recipe's crop, flip, colours and erasing: a callable like those of
            torchvision, timm or albumentations, from an RGB image to uint8 pixels of the recipe's size. It must draw
            from `random`, numpy.random or torch's default generator, or have a method set_random_seed(seed).
        transform_id: identifies the transform in the recipe, instead of its name and repr; change it when the
            transform changes. It is required if the repr contains a memory address, e.g. for a function. A
            change that neither shows is found by the pixel hashes of a cache (see
            `kdkit.data.views.identity.transform_identity`).
        num_classes: number of classes of mixed labels; the number of the source's class names by default.
        records: the open cache with the parameters of the views, if the recipe is for recorded views.

    Attributes:
        absent: keys of the samples that `without` left out.
        is_multi_label: whether a target is a vector float32 [C] of 0 and 1.
        recorded: the parameters of the views, if they are recorded; None if they are drawn.

    Raises:
        DatasetError: the source is empty, two samples share a key, or it returns another image each time.
        LabelError: a label is not a class index; labels that come with their images are checked on loading them.
        ConfigError: the recipe was made for another transform, or the transform cannot be replayed or identified.
    """

    def __init__(
        self,
        source: ImageSource,
        recipe: ViewRecipe,
        *,
        transform: Callable[..., Any] | None = None,
        transform_id: str | None = None,
        num_classes: int | None = None,
        records: RecordStore | None = None,
    ) -> None:
        check_source(source)
        self.source = source
        self.recipe = recipe if transform is None else with_identity(recipe, transform, transform_id)
        self.keys: Sequence[str] = source.keys
        self.class_names: Sequence[str] | None = source.class_names
        num_labels = num_labels_of(source)
        self.is_multi_label = num_labels is not None
        self.num_classes = num_classes or num_labels or len(self.class_names or ()) or None
        self._load = CheckedSource(source, self.num_classes)
        self._pairing = Pairing.of(self.keys, recipe)
        self._records = records
        self.recorded = open_records(self.recipe, records, self.keys)
        self._student = self._teacher = create_renderer(self.recipe, recipe.size, transform)
        if recipe.teacher_size is not None:
            self._teacher = create_renderer(self.recipe, recipe.teacher_size, transform)
        self._shown: tuple[Any, ...] = (self._student,)
        self._seeds_numpy = transform is not None or recipe.auto_augment is not None  # no other step draws from NumPy
        self.skips_unreadable = False
        self.absent: frozenset[str] = frozenset()
        if recipe.mixes and self.num_classes is None and not self.is_unlabelled:
            raise DatasetError("mixed labels need to know how many classes there are: give num_classes")
        if transform is not None:
            with preserve_rng_state():
                check_replayable(lambda view: self._views(self.source.__getitem__, 0, view)[0])

    @property
    def targets(self) -> Targets | None:
        """Class index of each sample [N], -1 for no label; None if labels are known only after loading."""
        return targets_of(self.source)

    @property
    def is_unlabelled(self) -> bool:
        """Whether no sample has a label, as in a folder without class folders."""
        return self.targets is not None and bool((self.targets < 0).all())

    @property
    def content(self) -> SampleContent:
        """The files of the samples, or what stands for them."""
        return SampleContent(self.source)

    def for_teacher(self) -> Self:
        """The same views at the recipe's teacher_size, as the teacher sees them."""
        return self._with(_shown=(self._teacher,))

    def with_teacher_view(self) -> Self:
        """The same views at the student's size, each with the teacher's in `teacher_image`."""
        return self if self.recipe.teacher_size is None else self._with(_shown=(self._student, self._teacher))

    def skipping_unreadable(self) -> Self:
        """The same views; a sample that cannot be read is left out of its batch, and the loader reports its key."""
        return self._with(skips_unreadable=True)

    def without(self, keys: Collection[str]) -> Self:
        """The same views of all samples but these, such as the ones that a cache has no rows for.

        Mixed views pair the remaining samples alone. Keys that no sample has are noted as absent too.
        """
        if not keys:
            return self
        absent = self.absent.union(keys)
        other = self.selecting([row for row, key in enumerate(self.keys) if key not in absent])
        other.absent = absent
        return other

    def selecting(self, rows: Sequence[int]) -> Self:
        """The same views of some samples, in the order of `rows`; mixed views pair these alone."""
        other = copy.copy(self)
        other.source = SelectedSource(self.source, rows)
        other.keys = other.source.keys
        other._load = CheckedSource(other.source, self._load.num_classes)
        other._pairing = Pairing.of(other.keys, self.recipe)
        other.recorded = open_records(self.recipe, self._records, other.keys)
        return other

    def without_labels(self) -> Self:
        """The same views of unlabelled samples: target -1, no class names."""
        other = copy.copy(self)
        other.source, other.class_names, other.num_classes = Unlabelled(self.source), None, None
        other.is_multi_label, other._load = False, CheckedSource(other.source, None)
        return other

    def for_classes(self, num_classes: int) -> Self:
        """The same views for a model with `num_classes` classes; every label must be below that.

        Labels that are known before their images are loaded are compared at once, others when they are loaded.

        Raises:
            LabelError: a label is out of range; names the sample.
        """
        known = self.num_classes if self.is_multi_label or self.num_classes is None else num_classes
        return self._with(num_classes=known, _load=CheckedSource(self.source, num_classes))

    def partners(self, view: int) -> Tensor | None:
        """The row of each sample's partner in `view`, int64 [N], itself if unpaired; None without mixing."""
        return None if self._pairing is None else self._pairing.partners(view)

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        source = repr(self.source) if type(self.source).__repr__ is not object.__repr__ else type(self.source).__name__
        return f"ReplayedDataset({source}, {self.recipe.describe()})"

    def __getitem__(self, index: Index) -> Sample:
        """The sample at `index` = (row, view), as in dataset[0, 3].

        Raises:
            DatasetError: the index names no view, or the sample cannot be loaded; names it.
        """
        sample = self.__getitems__([index])[0]
        if isinstance(sample, Unreadable):
            raise DatasetError(sample.reason)
        return sample

    def __getitems__(self, indices: Sequence[Index]) -> list[Sample | Unreadable]:
        """The samples of a batch. Adjacent views of an image, or of a pair that is mixed, share one decode.

        Raises:
            DatasetError: an index names no view, or a sample cannot be loaded and such samples are not skipped.
        """
        check_indices(indices, len(self.keys), self.recipe.num_views)
        kept = 1 if self._pairing is None else 2  # decoded images: those of adjacent views, or of a pair
        if self.recorded is not None and self.recorded.steps.mixing:
            kept = len(indices) * 2  # partners are anywhere in a batch
        load = lru_cache(maxsize=kept)(self._load)
        drawn = load if self.recorded is not None else lru_cache(maxsize=None)(partial(self._views, load))
        with preserve_rng_state() as numpy_has_changed:
            samples = [self._sample_or_reason(row, view, drawn) for row, view in indices]
            if self._seeds_numpy or not numpy_has_changed():
                return samples
        self._seeds_numpy = True  # a step of another timm, or a source, does draw from NumPy
        return self.__getitems__(indices)

    def _sample_or_reason(self, row: int, view: int, drawn: Callable[..., tuple[Any, ...]]) -> Sample | Unreadable:
        try:
            return self._sample(row, view, drawn)
        except LabelError as error:  # never skipped: the image is readable
            raise DatasetError(str(error)) from error
        except Exception as error:  # a custom source or transform may raise anything
            reason = str(error)
            if not isinstance(error, DatasetError):
                reason = f"view {view} of {self.keys[row]!r} could not be loaded: {type(error).__name__}: {error}"
            if self.skips_unreadable:
                return Unreadable(row, reason)
            if isinstance(error, UnreadableError):
                reason = f"{reason}: {_ADVICE}"
            raise UnreadableError(reason) from error

    def _sample(self, row: int, view: int, drawn: Callable[..., tuple[Any, ...]]) -> Sample:
        if self.recorded is not None:
            images, target, partner_target, share = self.recorded.render(row, view, drawn, self._shown)
            return Sample(images[0], target, row, view, partner_target, share, *images[1:])
        *images, target = drawn(row, view)
        if self._pairing is None:
            return Sample(images[0], target, row, view, None, 1.0, *images[1:])
        partner = int(self._pairing.partners(view)[row])
        mix = NOT_MIXED if partner == row else draw_mix(self.recipe, self.keys[row], self.keys[partner], view)
        *others, partner_target = (*images, target) if mix is NOT_MIXED else drawn(partner, view)
        mixed = [mix.pixels(own, other) for own, other in zip(images, others, strict=True)]
        return Sample(mixed[0], target, row, view, partner_target, mix.share, *mixed[1:])

    def _views(self, load: Load, row: int, view: int) -> tuple[Any, ...]:
        """A view before mixing, uint8 [3, H, W] at each size, and the sample's target."""
        image, target = load(row)
        seed = view_seed(self.recipe.seed, self.keys[row], view)
        images = []
        for transform in self._shown:
            seed_all(seed, numpy=self._seeds_numpy)
            images.append(transform(image))
        return (*images, target)

    def _with(self, **changed: Any) -> Self:
        """A copy with some attributes changed."""
        other = copy.copy(self)
        vars(other).update(changed)
        return other
