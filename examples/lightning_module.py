"""A kdkit task inside a LightningModule, its teacher a cache.

    pip install lightning
    python examples/lightning_module.py

On one CPU core: 14 s; teacher 75.0 %, student 83.3 %.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import digits
import lightning
import timm
import torch

import kdkit
from kdkit.building.config import BuildConfig
from kdkit.cache import CachedTeacher
from kdkit.types import Batch


class Distillation(lightning.LightningModule):
    """The task computes the step; Lightning moves and wraps it as any module."""

    def __init__(self, task: kdkit.TrainingTask, teacher: CachedTeacher) -> None:
        super().__init__()
        self.task = task
        self.teacher = teacher

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        result = self.task(batch.input, batch.target, self.teacher(batch))
        self.log_dict({name: value.detach() for name, value in result.items() if value.ndim == 0}, batch_size=50)
        return result["loss"]

    def on_train_epoch_start(self) -> None:
        self.trainer.train_dataloader.set_epoch(self.current_epoch)  # chooses the view of the epoch

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.task.trainable_module.parameters(), lr=2e-3, weight_decay=0.05)


def main() -> float:
    """Returns the student's top-1 on held-out digits, percent."""
    teacher, training = digits.teacher(), digits.training()
    print(f"teacher: {digits.top1(teacher):.1f} % top-1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.h5"
        kdkit.build_cache(kdkit.create_teacher(teacher), training, path, BuildConfig(codec="float16", num_workers=0))
        torch.manual_seed(1)
        student = timm.create_model("test_efficientnet", num_classes=10)
        module = Distillation(kdkit.LogitDistillationTask(student), kdkit.open_cache(path, training))
        trainer = lightning.Trainer(
            max_epochs=5,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, digits.load(training, student))
    print(f"student: {digits.top1(student):.1f} % top-1")
    return digits.top1(student)


if __name__ == "__main__":
    main()
