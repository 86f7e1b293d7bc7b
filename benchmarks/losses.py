"""Time and peak memory of every loss, forward and backward, relative to the plainest log_softmax + kl_div expression.

    python benchmarks/losses.py [--quick] [--repeats 15] [--only kl dkd]

Every loss and its baseline run in turns; the time is the median over the turns, the ratio the median of the
turns' own ratios. Peak memory is the largest sum of live tensor bytes that the torch profiler saw between the call and
the end of backward, inputs and parameters not counted. About 4 minutes on 2 CPU cores.
"""

import os
import statistics
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler

import torch
import torch.nn.functional as F
from _result import Report, parser, ratio, take_turns
from torch import Tensor

from kdkit import losses

Step = Callable[[], Tensor]
LOGIT_SIZES = ((1024, 1000), (256, 21841))


def plain(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The baseline: log_softmax twice and kl_div."""
    if temperature == 1.0:
        return F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), reduction="batchmean", log_target=True)
    log_s, log_t = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * temperature**2


def logit_steps(batch: int, classes: int) -> tuple[Tensor, dict[str, Step]]:
    """Every logit loss on one batch; the first is the baseline."""
    torch.manual_seed(0)
    z = (3 * torch.randn(batch, classes)).requires_grad_()
    t = 3 * torch.randn(batch, classes)
    y = torch.randint(0, classes, (batch,))
    mixed = 0.7 * F.one_hot(y, classes).float() + 0.3 * F.one_hot(y.flip(0), classes).float()
    sparse = losses.SparseLogits.from_logits(t, 16)
    steps: dict[str, Step] = {"plain": lambda: plain(z, t)}
    for name in losses.available():
        if losses.is_feature_loss(name):
            continue
        at_one = {"temperature": 1.0} if name == "dkd" else {}
        loss = losses.create(name, **at_one)
        if losses.needs_target(name):
            steps[name] = lambda loss=loss: loss(z, t, y)
            steps[f"{name}, soft labels"] = lambda loss=loss: loss(z, t, mixed)
        else:
            steps[name] = lambda loss=loss: loss(z, t)
    standardized = losses.create("kl", standardize=True)
    steps["kl, standardize"] = lambda: standardized(z, t)
    steps["kl, sparse top-16"] = lambda: losses.kl(z, sparse)
    steps["soft_ce, sparse top-16"] = lambda: losses.soft_ce(z, sparse)
    steps["dkd, sparse top-16"] = lambda: losses.dkd(z, sparse, y, temperature=1.0)
    steps["plain, T=4"] = lambda: plain(z, t, 4.0)
    steps["kl, T=4"] = lambda: losses.kl(z, t, temperature=4.0)
    steps["dkd, T=4"] = lambda: losses.dkd(z, t, y)
    return z, steps


def feature_steps(shape: tuple[int, ...]) -> tuple[Tensor, dict[str, Step]]:
    """Every feature function without parameters on one pair of features; the first is the mean squared error."""
    torch.manual_seed(0)
    f = torch.randn(shape).requires_grad_()
    t = torch.randn(shape)
    names = ["hint_mse", "hint_cosine", *(["attention"] if len(shape) > 2 else []), "similarity", "pkt", "rkd_distance"]
    names += ["rkd_angle"] if len(shape) == 2 else []
    steps: dict[str, Step] = {"plain": lambda: F.mse_loss(f, t)}
    for name in names:
        loss = losses.create(name)
        steps[name] = lambda loss=loss: loss(f, t)
    return f, steps


def vitkd_steps(batch: int = 16, tokens: int = 196) -> tuple[list[Tensor], dict[str, Step]]:
    """DeiT-Tiny (192 wide) from DeiT-Small (384): the first two blocks and the last; the first step is plain MSE."""
    torch.manual_seed(0)
    student = [torch.randn(batch, tokens, 192).requires_grad_() for _ in range(3)]
    wide = [torch.randn(batch, tokens, 384).requires_grad_() for _ in range(3)]
    teacher = [torch.randn(batch, tokens, 384) for _ in range(3)]
    module = losses.ViTKD([192] * 3, [384] * 3)
    steps: dict[str, Step] = {
        "plain": lambda: torch.stack([F.mse_loss(s, t) for s, t in zip(wide, teacher, strict=True)]).sum(),
        "vitkd": lambda: module(student, teacher),
    }
    return [*student, *wide, *module.parameters()], steps


def review_steps(batch: int = 8) -> tuple[list[Tensor], dict[str, Step]]:
    """ResNet-18 from ResNet-34 at 224 pixels: four stages and the pooled feature; the first step is plain MSE."""
    torch.manual_seed(0)
    widths = [64, 128, 256, 512, 512]
    shapes = [(batch, w, n, n) for w, n in zip(widths, (56, 28, 14, 7, 1), strict=True)]
    student = [torch.randn(shape).requires_grad_() for shape in shapes]
    teacher = [torch.randn(shape) for shape in shapes]
    module = losses.ReviewKD(widths, widths)
    exits = losses.OFAExits(widths[:4], 1000, eps=1.5)
    logits, target = 3 * torch.randn(batch, 1000), torch.randint(0, 1000, (batch,))
    steps: dict[str, Step] = {
        "plain": lambda: torch.stack([F.mse_loss(s, t) for s, t in zip(student, teacher, strict=True)]).sum(),
        "review": lambda: module(student, teacher),
        "ofa_exits": lambda: exits(student[:4], logits, target),
    }
    return [*student, *module.parameters(), *exits.parameters()], steps


def map_steps(batch: int = 16) -> tuple[list[Tensor], dict[str, Step]]:
    """ResNet-18 from ResNet-34 at 224 pixels: the last map, and for srrl a classifier of 1,000 classes."""
    torch.manual_seed(0)
    student, teacher = torch.randn(batch, 512, 7, 7).requires_grad_(), torch.randn(batch, 512, 7, 7)
    pooled = teacher.mean((2, 3))
    mgd, srrl = losses.MGD(512, 512), losses.SRRL(512, 512, torch.randn(1000, 512))
    steps: dict[str, Step] = {
        "plain": lambda: F.mse_loss(student, teacher),
        "mgd": lambda: mgd(student, teacher),
        "srrl": lambda: srrl(student, pooled),
    }
    return [student, *mgd.parameters(), *srrl.parameters()], steps


def crd_steps(batch: int = 64, rows: int = 50_000) -> tuple[list[Tensor], dict[str, Step]]:
    """Pooled features of ResNet-18 and ResNet-34, of as many samples as CIFAR-100 has; the first step is plain MSE."""
    torch.manual_seed(0)
    student, teacher = torch.randn(batch, 512).requires_grad_(), torch.randn(batch, 512)
    module, row = losses.CRD(512, 512, rows), torch.randperm(rows)[:batch]
    steps: dict[str, Step] = {
        "plain": lambda: F.mse_loss(student, teacher),
        "crd": lambda: module(student, teacher, row),
    }
    return [student, *module.parameters()], steps


def reset(leaves: list[Tensor]) -> None:
    for leaf in leaves:
        leaf.grad = None


def forward_and_backward(leaves: list[Tensor], step: Step) -> None:
    reset(leaves)
    step().backward()


def peak_bytes(leaves: list[Tensor], step: Step) -> int:
    reset(leaves)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step().backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def table(report: Report, title: str, leaves: list[Tensor], steps: dict[str, Step], repeats: int) -> None:
    """A table of time and memory, each relative to the plain expression at the same temperature."""
    if all(name.startswith("plain") for name in steps):
        return
    rows: list[list[object]] = []
    for name, step in steps.items():
        base = steps["plain, T=4" if name.endswith("T=4") else "plain"]
        sides = {
            "own": lambda step=step: forward_and_backward(leaves, step),
            "plain": lambda base=base: forward_and_backward(leaves, base),
        }
        times = take_turns(sides, repeats, warm_up=1)
        faster = report.figure(f"{title}: {name}: time", ratio(times["own"], times["plain"]))
        peak, base_peak = peak_bytes(leaves, step), peak_bytes(leaves, base)
        memory = report.figure(f"{title}: {name}: memory", peak / base_peak)
        report.figure(f"{title}: {name}: MiB", peak / 2**20)
        took = report.figure(f"{title}: {name}: ms", 1e3 * statistics.median(times["own"]))
        rows.append([name, f"{took:.1f}", faster, f"{peak / 2**20:.1f}", f"{memory:.2f}"])
        print(title, *rows[-1], flush=True)
    report.text(f"## {title}")
    report.table(["loss", "ms", "time ratio (quartiles)", "peak MiB", "memory ratio"], rows)


def chosen(steps: dict[str, Step], only: list[str]) -> dict[str, Step]:
    return {n: s for n, s in steps.items() if not only or n.split(",")[0] in ("plain", *only)}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--repeats", type=int, default=15)
    made.add_argument("--only", nargs="*", default=[])
    args = made.parse_args()
    torch.set_num_threads(1)
    report = Report("losses", "Losses: time and peak memory", args.quick)
    repeats = 2 if args.quick else args.repeats
    report.text(
        f"""Time is forward and backward, {repeats} turns, and its ratio is to the plainest log_softmax + kl_div
        expression at the same T. Memory is the peak of live tensor bytes beyond inputs and parameters. Ratios of
        equal code (`plain`, `kl`) show the noise of the machine. "soft labels" are [B, C] targets under the default
        policy."""
    )
    for batch, classes in LOGIT_SIZES[:1] if args.quick else LOGIT_SIZES:
        leaf, steps = logit_steps(batch, classes)
        table(report, f"Logits [{batch}, {classes}], float32", [leaf], chosen(steps, args.only), repeats)
    for shape in ((256, 512), (64, 256, 14, 14)):
        leaf, steps = feature_steps(shape)
        title = f"Features {list(shape)}, float32; plain is mse_loss"
        table(report, title, [leaf], chosen(steps, args.only), repeats)
    modules = (
        ("Tokens [16, 196, D], D 192 and 384, of 3 blocks, float32", vitkd_steps()),
        ("Maps [8, D, H, W] of ResNet-18 and ResNet-34, 4 stages and the pooled one, float32", review_steps()),
        ("The last map [16, 512, 7, 7] of ResNet-18 and ResNet-34, float32", map_steps()),
        ("Pooled [64, 512] of 50,000 samples, 16,384 negatives, float32", crd_steps()),
    )
    for title, (leaves, steps) in modules:
        table(report, f"{title}; plain is the sum of mse_loss", leaves, chosen(steps, args.only), repeats)
    report.write(args.output)


if __name__ == "__main__":
    main()
