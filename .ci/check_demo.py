"""Compares the demonstration with the README's claims: reads its summary.csv, exits with 1 if one is wrong."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from statistics import mean, stdev


def main(path: str) -> None:
    """Compares the last epochs of the three ways."""
    top1: dict[str, dict[str, float]] = defaultdict(dict)
    speed: dict[str, list[float]] = defaultdict(list)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            top1[row["way"]][row["seed"]] = float(row["val_top1"])  # later epochs overwrite earlier ones
            speed[row["way"]].append(float(row["images_per_second"]))
    last = {way: list(values.values()) for way, values in top1.items()}
    spread = max(stdev(values) for way, values in last.items() if way != "teacher")
    alone, live, cached = (mean(last[way]) for way in ("labels alone", "live teacher", "cached teacher"))
    checks = {
        "the live teacher's students beat labels alone by more than the spread": live - alone > spread,
        "the cached teacher's students beat labels alone by more than the spread": cached - alone > spread,
        "live and cached agree within the spread": abs(live - cached) <= max(spread, 0.5),
        "the cache is faster than the live teacher": mean(speed["cached teacher"]) > mean(speed["live teacher"]),
    }
    for claim, holds in checks.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    if not all(checks.values()):
        sys.exit(f"labels alone {alone:.2f}, live {live:.2f}, cached {cached:.2f}, spread {spread:.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
