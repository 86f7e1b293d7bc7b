"""Run by test_ray: builds a cache on two Ray nodes of this machine, and kills one of them in the middle.

python ray_cluster.py OUTPUT
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from support import CountingDigits, tiny_model

from kdkit import build_cache, create_teacher
from kdkit.building.config import BuildConfig
from kdkit.data import ReplayedDataset
from kdkit.recipe import ViewRecipe
from kdkit.teachers import Teacher

CONFIG = BuildConfig(
    streams=("logits", "pooled"), codec="int8", batch_size=32, num_workers=0, shard_rows=1000, unreadable="skip"
)
SHARDS = 12


def teacher_and_dataset() -> tuple[Teacher, ReplayedDataset]:
    """1,500 digits in 6 views, two shards per view, and two more that cannot be read."""
    dataset = ReplayedDataset(CountingDigits(1502, (3, 1200)), ViewRecipe(size=32, num_views=6, seed=7))
    return create_teacher(tiny_model(seed=1)), dataset


def sealed(output: Path) -> int:
    return len(list(output.with_name(output.name + ".parts").glob("v*.json")))


def main(output: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    doomed = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    killed: list[int] = []

    def kill() -> None:
        while sealed(output) < 3:  # both nodes are at work
            time.sleep(0.01)
        killed.append(sealed(output))
        cluster.remove_node(doomed, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    report = build_cache(*teacher_and_dataset(), output, CONFIG, engine="ray", actors=2)
    killer.join(timeout=60)
    print(f"built {report.images_built}, killed a node after {killed[0]} of {SHARDS} shards")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
