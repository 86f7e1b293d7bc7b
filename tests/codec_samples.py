"""Logits for the codec tests: some like a teacher's, some as awkward as they come."""

from __future__ import annotations

import torch
from torch import Tensor


def teacher_like(rows: int, classes: int, seed: int = 0, scale: float = 2.5) -> Tensor:
    """[rows, classes]: a linear head on 64 features of falling strength, as a network's last layer gives them."""
    head = torch.randn(64, classes, generator=torch.Generator().manual_seed(1))
    strength = torch.arange(1, 65) ** -0.7
    features = torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed)) * strength
    return scale * features @ head / strength.norm()


def awkward(classes: int) -> Tensor:
    """[12, classes]: flat, tied, very confident, very spread and shifted rows."""
    noise = torch.randn(3, classes, generator=torch.Generator().manual_seed(2))
    one = torch.zeros(2, classes)
    one[:, classes // 2] = torch.tensor([1e4, 30.0])
    two = torch.zeros(1, classes)
    two[:, :2] = 1e4
    ramp = -torch.linspace(0, 1e4, classes)[None]
    tied = noise[:1].round()
    return torch.cat([torch.zeros(1, classes), one, two, ramp, tied, noise, noise[:1] * 1e3, noise[:1] + 1e4, -one[:1]])


def kl(teacher: Tensor, decoded: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || decoded) of each row in nats, float64 [B]."""
    log_p, log_q = (torch.log_softmax(x.double() / temperature, dim=1) for x in (teacher, decoded))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def even_spread_cost(teacher: Tensor, kept: int) -> Tensor:
    """What spreading all but the `kept` likeliest classes evenly costs: m (log(C - K) - H), nats, float64 [B]."""
    log_p = torch.log_softmax(teacher.double(), dim=1).sort(dim=1, descending=True).values[:, kept:]
    mass = log_p.exp().sum(dim=1)
    entropy_part = (log_p.exp() * log_p).sum(dim=1) - torch.special.xlogy(mass, mass)
    return mass * torch.tensor(float(log_p.shape[1])).log() + entropy_part


def is_likeliest(teacher: Tensor, decoded: Tensor) -> Tensor:
    """Whether the decoded top-1 is a class that the teacher finds likeliest, to float32 precision; bool [B]."""
    log_p = torch.log_softmax(teacher.float(), dim=1)
    chosen = log_p.gather(1, decoded.argmax(dim=1, keepdim=True))[:, 0]
    return chosen >= log_p.amax(dim=1) - 1e-6
