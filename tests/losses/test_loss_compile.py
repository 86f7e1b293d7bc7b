"""torch.compile takes every loss as one graph, and computes the same."""

import pytest
import torch
import torch.nn.functional as F

from kdkit import losses

torch_compile = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def make_cases():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 10, generator=generator)
    target = torch.randint(0, 10, (4,), generator=generator)
    soft = 0.8 * F.one_hot(target, 10) + 0.02
    sparse = losses.SparseLogits.from_logits(teacher, 3)
    maps_s, maps_t = torch.randn(2, 4, 6, 4, 4, generator=generator)
    cases = {}
    for name in losses.available():
        if isinstance(losses.loss_spec(name).loss, type):
            continue
        if losses.needs_target(name):
            cases[name] = (losses.create(name), student, (teacher, target))
            cases[f"{name} on soft labels"] = (losses.create(name), student, (teacher, soft))
        elif not losses.is_feature_loss(name):
            cases[name] = (losses.create(name), student, (teacher,))
        else:
            cases[name] = (losses.create(name), maps_s, (maps_t,))
    cases["kl standardised"] = (losses.create("kl", standardize=True, temperature=2.0), student, (teacher,))
    cases["kl sparse"] = (losses.kl, student, (sparse,))
    cases["dkd sparse"] = (losses.dkd, student, (sparse, target))
    cases["two teachers"] = (losses.multi_teacher(losses.kl), student, ([teacher, teacher.flip(0)],))
    cases["hint projected"] = (losses.create("hint_mse", student_width=6, teacher_width=3), maps_s, (maps_t[:, :3],))
    return cases


CASES = make_cases()


def value_and_slope(loss, leaf, rest):
    leaf = leaf.clone().requires_grad_()
    value = loss(leaf, *rest)
    value.backward()
    return value.detach(), leaf.grad


@pytest.mark.slow
@torch_compile
@pytest.mark.parametrize("case", CASES)
def test_a_loss_is_one_graph_and_computes_the_same(case):
    loss, leaf, rest = CASES[case]
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_slope(compiled, leaf, rest), value_and_slope(loss, leaf, rest))


@torch_compile
@pytest.mark.slow
@pytest.mark.parametrize("case", ["dkd on soft labels", "dist", "dkd sparse"])
def test_generated_code_computes_the_same(case):
    loss, leaf, rest = CASES[case]
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(value_and_slope(compiled, leaf, rest), value_and_slope(loss, leaf, rest))


@pytest.mark.slow
@torch_compile
@pytest.mark.parametrize("case", ["dist", "js", "mlkd", "reverse_kl", "dkd on soft labels", "nkd on soft labels"])
def test_a_loss_is_compiled_again_with_other_options(case):
    """The compiler makes variables of numbers that differ from those of the first time, as in a second run."""
    _, leaf, rest = CASES[case]
    torch.compiler.reset()
    name = case.split()[0]
    numbers = {"beta": (1.0, 3.0), "gamma": (1.0, 0.5), "temperature": (1.0, 4.0)}
    if name == "js":
        numbers["beta"] = (0.5, 0.2)
    known = {option: values for option, values in numbers.items() if option in losses.loss_spec(name).options}
    for number in (0, 1):
        loss = losses.create(name, **{option: values[number] for option, values in known.items()})
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(value_and_slope(compiled, leaf, rest), value_and_slope(loss, leaf, rest))


@pytest.mark.slow
@torch_compile
@pytest.mark.parametrize("name", ["review", "vitkd", "mgd", "srrl", "crd", "ofa_exits"])
def test_a_loss_with_parameters_is_one_graph_too(name):
    torch.manual_seed(0)
    torch.compiler.reset()
    if name == "review":
        module = losses.ReviewKD([3, 4], [4, 5])
        sides = [[torch.randn(2, w, n, n) for w, n in zip(widths, (4, 2), strict=True)] for widths in ([3, 4], [4, 5])]
    elif name in ("mgd", "srrl"):
        module = losses.MGD(3, 4) if name == "mgd" else losses.SRRL(3, 4, torch.randn(5, 4))
        rest = (torch.ones(2, 1, 4, 4),) if name == "mgd" else ()
        sides = [torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4), *rest]
    elif name == "ofa_exits":
        module = losses.OFAExits([3, 5], 4, eps=1.5)
        sides = [[torch.randn(2, 3, 4, 4), torch.randn(2, 9, 5)], torch.randn(2, 4), torch.tensor([3, 1])]
    elif name == "crd":
        module = losses.CRD(3, 4, 9, width=5, negatives=6).eval()
        row = torch.tensor([2, 8])
        sides = [torch.randn(2, 3), torch.randn(2, 4), row, module.draw(row)]
    else:
        module = losses.ViTKD([3] * 3, [4] * 3)
        sides = [*([torch.randn(2, 9, w) for _ in range(3)] for w in (3, 4)), torch.ones(2, 9)]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*sides), module(*sides))
