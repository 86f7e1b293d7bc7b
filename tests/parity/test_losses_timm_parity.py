"""kl against timm's own distillation task, deit_soft against the DeiT script's formula written out.

Compared: the distillation term of timm.task.LogitDistillationTask, its value and a tiny student's gradients. Not
promised: equality of the task's total, whose weights kdkit states otherwise.
"""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.task import LogitDistillationTask

from kdkit import losses


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_equals_the_term_of_timms_logit_distillation_task(temperature):
    torch.manual_seed(0)
    student, teacher = (timm.create_model("test_resnet", num_classes=7) for _ in range(2))
    task = LogitDistillationTask(
        student, teacher, criterion=torch.nn.CrossEntropyLoss(), temperature=temperature, verbose=False
    ).eval()
    images, target = torch.randn(3, 3, 64, 64), torch.tensor([0, 3, 6])
    term = task(images, target)["kd_loss"]
    term.backward()
    expected = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    got = losses.kl(student(images), teacher(images), temperature=temperature)
    got.backward()
    torch.testing.assert_close(got, term)
    assert expected
    for name, parameter in student.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_deit_soft_equals_the_deit_scripts_formula(tau):
    outputs, teacher_outputs = torch.randn(2, 6, 11, dtype=torch.float64)
    log_p, log_q = F.log_softmax(outputs / tau, dim=1), F.log_softmax(teacher_outputs / tau, dim=1)
    summed = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    expected = summed * tau * tau / outputs.numel()
    torch.testing.assert_close(losses.deit_soft(outputs, teacher_outputs, temperature=tau), expected)
    batchmean = losses.kl(outputs, teacher_outputs, temperature=tau)
    torch.testing.assert_close(losses.deit_soft(outputs, teacher_outputs, temperature=tau) * 11, batchmean)
