"""Plain supervised training, so that students with and without a teacher run through one loop."""

from __future__ import annotations

from torch import Tensor

from kdkit.losses import to_compute_dtype
from kdkit.tasks.student_task import StudentTask


class ClassificationTask(StudentTask):
    """Trains a student from labels alone.

    Args:
        student_model: the model to train.
        criterion: loss of (logits [B, C], target) [], cross-entropy by default, which takes class indices [B] and soft
            labels [B, C]. It is computed in float32 at least, whatever the autocast, over the labelled samples.
        device, dtype, verbose: as for TrainingTask.
    """

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Computes one step: 'loss' [] and 'output' [B, C] for images [B, 3, H, W] and target.

        Target holds class indices [B], -1 for a sample without a label, or soft labels [B, C].
        """
        output = self._run_student(input)
        return {"loss": self._label_loss(to_compute_dtype(output), target), "output": output}
