"""The student of a run or an export, which predicts.

Dimensions: B batch, C classes, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.config import StudentConfig
from kdkit.data import EpochSampler, ReplayedDataset, ReplayLoader, Sample, translate_worker_errors
from kdkit.errors import ClassMismatchError
from kdkit.report.config import ReportConfig
from kdkit.runtime.model_errors import logits_of, model_errors
from kdkit.student import load_student
from kdkit.types import Normalization


class RunStudent:
    """A student, which predicts.

    Args:
        config: the folder of its run or export, and which of its weights are taken.
        device: where it runs.
        batch_size: images per batch.
        num_workers: processes that load images.
        is_multi_label: whether each class is predicted by itself.

    Raises:
        CheckpointError: there are no such weights, or they do not fit.
    """

    def __init__(
        self,
        config: StudentConfig,
        *,
        device: torch.device,
        batch_size: int = ReportConfig.batch_size,
        num_workers: int = 0,
        is_multi_label: bool = False,
    ) -> None:
        model, self.description = load_student(config)
        self._model: Any = model.to(device)
        self.name, self._subject = config.student, f"the student {config.student!r}"
        self._normalization = Normalization.of(model)
        self._device, self._batch_size, self._num_workers = device, batch_size, num_workers
        self._is_multi_label = is_multi_label

    @translate_worker_errors()
    def predict(self, dataset: ReplayedDataset, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Probabilities [N, C] and labels [N], -1 if there is none, of view 0 of some rows; on the CPU.

        Raises:
            ClassMismatchError: the images have other classes than the student.
        """
        self.check_classes(dataset.class_names)
        sampler = EpochSampler(rows, self._batch_size, num_views=dataset.recipe.num_views, shuffle=False)
        loader = ReplayLoader(dataset, sampler, self._normalization, device=self._device, num_workers=self._num_workers)
        probabilities, labels = [], []
        for batch in loader:
            probabilities.append(self._run(batch.input))
            labels.append(batch.target.cpu())
        return torch.cat(probabilities), torch.cat(labels)

    def predict_samples(self, samples: Sequence[Sample]) -> Tensor:
        """Probabilities [B, C] of some samples as they are."""
        parts = (self._normalization.mean, self._normalization.std)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in parts)
        images = torch.stack([(sample.image.float() / 255 - mean) / std for sample in samples])
        return self._run(images.to(self._device))

    def check_classes(self, class_names: Sequence[str] | None, num_classes: int | None = None) -> None:
        """Raises ClassMismatchError if the images have other classes than the student, or another number of them."""
        names = self.description.class_names
        if names is not None and num_classes not in (None, len(names)):
            raise ClassMismatchError(
                f"there are {num_classes} classes, and the student {self.description.model!r} has {len(names)}"
            )
        if names is not None and class_names is not None and tuple(class_names) != tuple(names):
            raise ClassMismatchError(
                f"the images have {len(class_names)} classes from {class_names[0]!r} on, the student "
                f"{self.description.model!r} {len(names)} from {names[0]!r} on: name images of its classes"
            )

    @torch.no_grad()
    def _run(self, images: Tensor) -> Tensor:
        with model_errors(self._subject, images):
            logits = logits_of(self._model(images), self._subject).float().cpu()
        return logits.sigmoid() if self._is_multi_label else logits.softmax(dim=1)
