"""How many views are enough? Accuracy on digits of students that see few views often, or new ones in each epoch.

    python benchmarks/views_digits.py                          (about 12 minutes beside other work)

A teacher is trained on 600 of scikit-learn's digits and cached in 1, 2, 4, 10 and 30 views, and in as many as a student
has epochs, which is what it sees from a live teacher. Students of another architecture learn from each cache alone, for
the same number of epochs. Three seeds each; the seed sets the student's weights and the order.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from _digits import BATCH, HELD_OUT, SEEDS, SEEN, cached, compare, student_top1, top1, trained_teacher
from _result import Report, parser


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    epochs, seeds = (4, SEEDS[:1]) if options.quick else (60, SEEDS)
    several = [views for views in (1, 2, 4, 10, 30) if views < epochs] + [epochs]
    report = Report("views_digits", "How many views are enough", quick=options.quick)
    teacher = trained_teacher(2 if options.quick else 16)
    report.text(
        f"test_resnet ({report.figure('teacher top-1, %', round(top1(teacher), 2))} % on held-out digits) cached in V "
        f"views of {SEEN} digits; test_efficientnet learns from the cache alone for {epochs} epochs in batches of",
        f"{BATCH}, in which each view is seen {epochs} / V times; top-1 on {HELD_OUT} held-out digits.",
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = {views: cached(teacher, views, Path(folder)) for views in several}
        compare(report, "V", several, lambda views, seed: student_top1(paths[views], views, seed, epochs), seeds)
    report.write(options.output)


if __name__ == "__main__":
    main()
