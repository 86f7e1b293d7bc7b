"""Regression on logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._checks import to_logit_pair
from kdkit.losses.registry import logit_loss


@logit_loss()
def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean squared error of the logits, each row's mean subtracted.

    mean_{b,c} ((z_s - mean_c z_s) - (z_t - mean_c z_t))^2: reduction "mean" over all B * C elements, no temperature.
    Half of it is the limit of kl for a high temperature.

    Without the means the published loss would also teach the student the offset of the teacher's rows. No probability
    depends on it, and a cache or an ensemble, which give log-probabilities, have lost it.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C], or log-probabilities; no gradient flows into them.

    Returns:
        Scalar of shape [], float32 (float64 for float64 inputs).

    Source: Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", equation 1; Kim et al. 2021, "Comparing
        Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation";
        jhoon-oh/kd_data code/image_classfication/tools/losses.py.
    """
    student, teacher = to_logit_pair(student_logits, teacher_logits)
    return F.mse_loss(student - student.mean(dim=1, keepdim=True), teacher - teacher.mean(dim=1, keepdim=True))
