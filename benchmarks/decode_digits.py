"""What several views of an image in one batch do to a student: accuracy on digits at equal samples.

    python benchmarks/decode_digits.py                         (about 10 minutes on 2 calm cores)

A teacher is trained on 600 of scikit-learn's digits and cached in 8 views. Students of another architecture learn from
that cache with k = 1, 2, 4 and 8 views per decode: the same pairs of image and view, the same number of steps, the same
schedule; only which of them share a batch differs. Three seeds each; the seed sets the student's weights and the order.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from _digits import BATCH, HELD_OUT, SEEDS, SEEN, cached, compare, student_top1, top1, trained_teacher
from _result import Report, parser

VIEWS, PER_DECODE = 8, (1, 2, 4, 8)


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    epochs, seeds = (VIEWS, SEEDS[:1]) if options.quick else (2 * VIEWS, SEEDS)
    report = Report("decode_digits", "Several views of an image in one batch", quick=options.quick)
    teacher = trained_teacher(2 if options.quick else VIEWS)
    report.text(
        f"test_resnet ({report.figure('teacher top-1, %', round(top1(teacher), 2))} % on held-out digits) cached in "
        f"{VIEWS} views of {SEEN} digits; test_efficientnet learns from the cache alone for {epochs} epochs in batches",
        f"of {BATCH}, so in {epochs * (SEEN // BATCH)} steps, whatever k; top-1 on {HELD_OUT} held-out digits.",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = cached(teacher, VIEWS, Path(folder))
        compare(report, "k", PER_DECODE, lambda k, seed: student_top1(path, VIEWS, seed, epochs, k), seeds)
    report.write(options.output)


if __name__ == "__main__":
    main()
