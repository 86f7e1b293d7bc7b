"""Losses of the Kullback-Leibler family: the student's whole distribution against the teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._checks import soften, to_logit_pair
from kdkit.losses.registry import logit_loss
from kdkit.losses.sparse import sparse_kl
from kdkit.types import SparseLogits


@logit_loss()
def kl(student_logits: Tensor, teacher_logits: Tensor | SparseLogits, *, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence KL(teacher || student), both softened by the temperature.

    T^2 * mean_b sum_c p_t log(p_t / p_s), with p = softmax(z / T): reduction "batchmean", T^2 applied.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C], or sparse; log-probabilities from a cache serve as well. No gradient flows into them.
        temperature: T > 0; 1 for strong students, 4 in the classic CIFAR tables.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network";
        megvii-research/mdistiller mdistiller/distillers/KD.py.
    """
    if isinstance(teacher_logits, SparseLogits):
        return sparse_kl(student_logits, teacher_logits, temperature, entropy=True)
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    log_p_student = F.log_softmax(soften(student, temperature), dim=1)
    log_p_teacher = F.log_softmax(soften(teacher, temperature), dim=1)
    return F.kl_div(log_p_student, log_p_teacher, reduction="batchmean", log_target=True) * temperature**2


@logit_loss()
def soft_ce(student_logits: Tensor, teacher_logits: Tensor | SparseLogits, *, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the student under the teacher's distribution (function matching): kl plus the teacher's entropy.

    -T^2 * mean_b sum_c p_t log p_s, with p = softmax(z / T): reduction "batchmean", T^2 applied. Its gradient is kl's.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C], or sparse; no gradient flows into them.
        temperature: T > 0.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent" (KL form);
        google-research/big_vision big_vision/evaluators/proj/distill/distance.py (which reports the KL form).
    """
    if isinstance(teacher_logits, SparseLogits):
        return sparse_kl(student_logits, teacher_logits, temperature, entropy=False)
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    p_teacher = F.softmax(soften(teacher, temperature), dim=1)
    return F.cross_entropy(soften(student, temperature), p_teacher) * temperature**2


@logit_loss()
def deit_soft(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The DeiT training script's soft distillation: kl at another scale.

    T^2 / (B C) * sum_b sum_c p_t log(p_t / p_s), with p = softmax(z / T): reduction "numel", T^2 applied. It is kl / C:
    weights published for that script mean something only at this scale.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        temperature: T > 0.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Touvron et al. 2021, "Training data-efficient image transformers" (soft distillation; its reduction
        is not stated);
        facebookresearch/deit losses.py.
    """
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    return kl(student, teacher, temperature=temperature) / student.shape[1]
