"""The engine "ray": actors on a cluster seal the shards, and the cache is the plain build's to the byte."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.exceptions
from commands import ROOT
from ray_cluster import CONFIG, SHARDS, teacher_and_dataset
from safetensors.torch import save_file
from support import Pixels, cache_contents, digits_dataset, tiny_model, write_digits

from kdkit import build_cache
from kdkit.building.build import BuildReport
from kdkit.building.config import BuildConfig, CacheBuildConfig
from kdkit.building.ray import Pool
from kdkit.cache.format.metadata import Shard
from kdkit.cli import cache_build
from kdkit.config.teacher import TeacherConfig
from kdkit.errors import CacheError, ConfigError, MissingDependencyError
from kdkit.runtime.install import install_command
from kdkit.teachers import Teacher


@pytest.mark.slow
def test_a_build_on_two_ray_nodes_of_which_one_is_killed_is_the_plain_build_to_the_byte(tmp_path: Path) -> None:
    here = ROOT / "tests"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here / "ray_cluster.py"), str(tmp_path / "ray.h5")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.search(rf"built 9000, killed a node after (\d+) of {SHARDS} shards", done.stdout)
    assert found is not None, done.stdout
    assert 3 <= int(found[1]) < SHARDS - 1
    assert "a Ray actor died at view" in done.stderr
    build_cache(*teacher_and_dataset(), tmp_path / "plain.h5", CONFIG)
    assert cache_contents(tmp_path / "ray.h5") == cache_contents(tmp_path / "plain.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.h5", "ray.h5"]


def test_a_missing_ray_is_an_error_that_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = BuildConfig(num_workers=0)
    with pytest.raises(
        MissingDependencyError, match=f"^the engine 'ray' needs Ray: {re.escape(install_command('ray'))}$"
    ):
        build_cache(Teacher(Pixels()), digits_dataset(8), tmp_path / "t.h5", config, engine="ray")


def test_the_command_gives_engine_and_actors_to_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    report = BuildReport(tmp_path / "t.h5", 20, 2, 1, 40, 1.0)
    monkeypatch.setattr("kdkit.building.build.build_cache", lambda *parts, **options: given.update(options) or report)
    monkeypatch.setattr("kdkit.cli._header.describe_built", lambda report, dataset: {"cache": str(report.path)})
    save_file(tiny_model().state_dict(), tmp_path / "teacher.safetensors")
    command = ["--data", str(write_digits(tmp_path / "images", 20)), "--output", str(tmp_path / "t.h5")]
    command += ["--teacher.model", "test_resnet", "--teacher.checkpoint", str(tmp_path / "teacher.safetensors")]
    cache_build.run([*command, "--engine", "ray", "--actors", "3"])
    assert (given["engine"], given["actors"]) == ("ray", 3)


def test_a_build_without_an_actor_is_refused() -> None:
    with pytest.raises(ConfigError, match="actors must be at least 1, got 0"):
        CacheBuildConfig(data="d", teacher=TeacherConfig("test_resnet"), output="t.h5", engine="ray", actors=0)


class DyingActors:
    """Stands in for the ray module: every actor starts, and dies at its first shard."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.calls: list[str] = []

    def create(self) -> Any:
        """An actor with Ray's calls, `actor.fill.remote(shard)`."""
        return SimpleNamespace(**{name: SimpleNamespace(remote=self._call(name)) for name in ("start", "fill")})

    def _call(self, name: str) -> Any:
        def remote(*shard: Shard) -> tuple[str, int]:
            self.calls.append(name)
            return name, len(self.calls)

        return remote

    def wait(self, pending: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return pending[:num_returns], pending[num_returns:]

    def get(self, call: tuple[str, int]) -> None:
        if call[0] == "fill":
            raise ray.exceptions.ActorDiedError

    def kill(self, actor: Any) -> None:
        self.calls.append("kill")


def test_a_shard_at_which_every_actor_dies_ends_the_build() -> None:
    cluster = DyingActors()
    pool = Pool(cluster, cluster.create, deque([Shard(0, 0, 1000), Shard(0, 1000, 2000)]))
    with pytest.raises(CacheError, match=r"^3 Ray actors died at view 0, rows 0 to 999: see Ray's logs; the last: "):
        pool.run(1, lambda shard: None)
    assert cluster.calls == ["start", "fill"] * 3
