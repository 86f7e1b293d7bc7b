"""Time to encode with `lowrank`, before and after: the code of an older commit and of this tree, in turns.

    python benchmarks/encode_before.py                   version 970d0ad and this tree; two minutes on one core
    python benchmarks/encode_before.py --before HEAD~9   another version

Both fit the same rows of real logits and encode the same others (see codecs.py), each in a process of its own that has
one thread; the two processes encode one after the other, never at once.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _photographs import create_imagenet_model, teacher_logits
from _result import Report, parser, ratio

ROOT = Path(__file__).parents[1]
ROW_BYTES = (48, 96, 192)
ENCODED, TURNS = 256, 15
WORKER = """
import sys, time
import numpy as np, torch
import torch.nn.functional as F
from kdkit.cache.codecs import create_codec

torch.set_num_threads(1)
data = np.load(sys.argv[1])
fitted, rows, head = (torch.from_numpy(data[name]) for name in ("fitted", "rows", "head"))
codec = create_codec("lowrank", rows.shape[1], row_bytes=int(sys.argv[2])).fit(fitted, head)
p, q = (F.log_softmax(x.double(), dim=1) for x in (rows, codec.decode(codec.encode(rows))))
print((p.exp() * (p - q)).sum(dim=1).mean().item(), flush=True)
for _ in sys.stdin:
    begun = time.process_time()
    codec.encode(rows)
    print(time.process_time() - begun, flush=True)
"""


class Side:
    """The encoder of one checkout, in a process that waits for its turn."""

    def __init__(self, checkout: Path, data: Path, row_bytes: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", WORKER, str(data), str(row_bytes)]
        self.process = subprocess.Popen(
            command, env=environment, cwd=data.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.kl = self.answer()
        self.seconds: list[float] = []

    def answer(self) -> float:
        assert self.process.stdout
        return float(self.process.stdout.readline())

    def turn(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.seconds.append(self.answer())

    def close(self) -> None:
        self.process.communicate()


def compare(before: Path, data: Path, row_bytes: int, turns: int, report: Report) -> list[object]:
    """One line of the table: milliseconds a row of both, their ratio, and the ratio of their divergences."""
    sides = [Side(before, data, row_bytes), Side(ROOT, data, row_bytes)]
    for turn in range(turns):
        for side in sides if turn % 2 else reversed(sides):
            side.turn()
    for side in sides:
        side.close()
    old, new = sides
    times = [statistics.median(side.seconds) * 1e3 / ENCODED for side in sides]
    faster = report.figure(f"{row_bytes} bytes: time", ratio(new.seconds, old.seconds))
    report.figure(f"{row_bytes} bytes: ms per row", times[1])
    kl = report.figure(f"{row_bytes} bytes: KL", new.kl / old.kl)
    return [row_bytes, *(f"{time:.2f}" for time in times), faster, f"{old.kl:.4f}", f"{new.kl:.4f}", f"{kl:.3f}"]


def main() -> None:
    """Runs both versions and writes the dated result."""
    arguments = parser(__doc__)
    arguments.add_argument("--before", default="970d0ad", help="the version before")
    options = arguments.parse_args()
    report = Report("encode_before", "Encoding with lowrank, before and after", options.quick)
    logits, image, _ = teacher_logits(16 if options.quick else 64)
    held_out = image % 4 == 0
    rows = logits[held_out][torch.randperm(int(held_out.sum()), generator=torch.Generator().manual_seed(0))]
    head = create_imagenet_model().get_classifier().weight.detach()
    report.text(
        f"""Before is version {options.before}, now is this tree. {ENCODED} logits of 1,000 classes of
        tf_efficientnet_lite0 over crops of photographs, fitted to crops of other photographs; one thread each;
        {TURNS} turns; ratios are medians (quartiles)."""
    )
    with tempfile.TemporaryDirectory() as name:
        data, old = Path(name) / "logits.npz", Path(name) / "before"
        np.savez(data, fitted=logits[~held_out].numpy(), rows=rows[:ENCODED].numpy(), head=head.numpy())
        subprocess.run(["git", "worktree", "add", "--detach", str(old), options.before], cwd=ROOT, check=True)
        try:
            found = [compare(old, data, row_bytes, 3 if options.quick else TURNS, report) for row_bytes in ROW_BYTES]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
    header = ["bytes", "before, ms a row", "now, ms a row", "time over before", "KL before", "KL now", "KL over before"]
    report.table(header, found)
    report.write(options.output)


if __name__ == "__main__":
    main()
