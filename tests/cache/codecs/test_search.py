"""The search for codes: against coordinate descent written plainly, and within its memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdkit.cache.codecs.curvature import blocks, curvature_of
from kdkit.cache.codecs.search import Levels, TailObjective, chunk_rows


def problem(rank: int, scale: float = 3.0) -> tuple[TailObjective, Levels, Tensor]:
    """Five rows of 300 classes in float64, whose tails `rank` coefficients describe; `scale` spreads their logits."""
    draw = torch.Generator().manual_seed(rank)
    basis = torch.linalg.qr(torch.randn(300, rank, generator=draw, dtype=torch.float64))[0].T
    target = torch.randn(5, 300, generator=draw, dtype=torch.float64).mul(scale).log_softmax(dim=1)
    deviation = torch.linspace(3, 0.5, rank, dtype=torch.float64)
    half = (2.0 ** torch.linspace(5, 1, rank, dtype=torch.float64).round() - 1) / 2
    objective = TailObjective(target, target.topk(4, dim=1)[1], torch.zeros(300, dtype=torch.float64), basis, deviation)
    step = (torch.rand(5, 1, generator=draw, dtype=torch.float64) + 0.5) * deviation / 4
    return (
        objective,
        Levels(step, half, (2 * half).int().tolist()),
        torch.randn(5, rank, generator=draw, dtype=torch.float64) * deviation,
    )


def matrix_of(objective: TailObjective) -> Tensor:
    """The curvature [B, D, D]: column i is what solves to the unit vector i."""
    unit = torch.eye(len(objective.deviation), dtype=torch.float64)
    inverse = [objective.curvature.solve(row.expand(len(objective.target), -1)) for row in unit]
    return torch.stack(inverse, dim=2).inverse()


def descend_plainly(objective: TailObjective, levels: Levels, codes: Tensor) -> Tensor:
    """Each coefficient of each row in turn to its best level, the gradient of a quadratic form computed anew."""
    codes = codes.clone()
    first = levels.values(codes)
    slope, curvature = objective.gradient(first), matrix_of(objective)
    for row in range(len(codes)):
        for i, half in enumerate(levels.half.tolist()):
            values = (codes[row] - levels.half) * levels.step[row]
            here = slope[row, i] + curvature[row, i] @ (values - first[row])
            best = codes[row, i] - here / (curvature[row, i, i] * levels.step[row, i])
            codes[row, i] = min(max(round(float(best)), 0), 2 * half)
    return codes


@pytest.mark.parametrize("rank", [1, 31, 32, 33, 80, 200])
def test_coefficients_are_rounded_as_by_coordinate_descent_over_single_rows(rank: int) -> None:
    objective, levels, coefficients = problem(rank)
    expected = levels.nearest(coefficients)
    assert not torch.equal(expected, descend_plainly(objective, levels, expected))
    for _ in range(2):
        expected = descend_plainly(objective, levels, expected)
    assert torch.equal(objective.round(coefficients, levels), expected.to(torch.int64))


@pytest.mark.parametrize(("heavy", "rank"), [(3, 70), (69, 70), (70, 70), (90, 70), (5, 1)])
def test_a_curvature_is_the_product_of_its_rows_and_its_diagonal(heavy: int, rank: int) -> None:
    draw = torch.Generator().manual_seed(heavy)
    rows = torch.randn(2, heavy, rank, generator=draw, dtype=torch.float64)
    diagonal = torch.rand(2, rank, generator=draw, dtype=torch.float64) + 0.1
    matrix = rows.mT @ rows + torch.diag_embed(diagonal)
    right, change = torch.randn(2, 2, rank, generator=draw, dtype=torch.float64)
    curvature = curvature_of(rows, diagonal)
    torch.testing.assert_close(curvature.solve(right), torch.linalg.solve(matrix, right))
    carried = None
    for here in blocks(rank):
        torch.testing.assert_close(curvature.block(here), matrix[:, here, here])
        if carried is not None:
            moved = (matrix[:, here, : here.start] @ change[:, : here.start, None])[:, :, 0]
            torch.testing.assert_close(curvature.felt(carried, here), moved)
        carried = curvature.carry(carried, change[:, here], here)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("num_classes", "rank"), [(2, 1), (1000, 256), (1000, 512), (21_841, 512), (300_000, 512)])
def test_a_chunk_is_a_power_of_two_of_rows_whose_temporaries_stay_below_a_gibibyte(
    num_classes: int, rank: int, device: str
) -> None:
    rows = chunk_rows(num_classes, rank, torch.device(device))
    assert rows.bit_count() == 1
    heavy = min(num_classes, max(192, min(num_classes // 6, 2048)))
    assert rows * (3 * heavy * rank + 8 * num_classes + 2 * rank * rank) * 4 < 1 << 30


def objective_of(objective: TailObjective, coefficients: Tensor) -> Tensor:
    """The objective as the docstring of its class has it, up to a constant of each row, [B]."""
    logits = objective.mean + coefficients @ objective.basis
    weights, terms = [], []
    for temperature, share in ((1, 0.7), (2, 0.3)):
        weights.append(share * (objective.target / temperature).softmax(dim=1).scatter(1, objective.kept, 0.0))
        log_q = (logits / temperature).scatter(1, objective.kept, -torch.inf).log_softmax(dim=1)
        terms.append(temperature**2 * (weights[-1] * log_q.scatter(1, objective.kept, 0.0)).sum(dim=1))
    prior = 2.5e-5 * (coefficients / objective.deviation).square().sum(dim=1)
    return prior - (terms[0] + terms[1]) / (weights[0] + weights[1]).sum(dim=1)


@pytest.mark.parametrize(("scale", "left"), [(0.3, 0.001), (1, 0.005), (3, 0.15), (10, 0.8)])
@pytest.mark.parametrize("rank", [40, 150])
def test_the_search_approaches_the_minimum_and_runs_away_from_no_peaked_teacher(
    rank: int, scale: float, left: float
) -> None:
    objective, _, _ = problem(rank, scale)
    free = torch.zeros(5, rank, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective_of(objective, free).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    start, found, least = (
        objective_of(objective, c).detach() for c in (torch.zeros_like(free), objective.minimise(), free)
    )
    assert (least <= found + 1e-9).all()
    assert (found - least <= left * (start - least)).all()
