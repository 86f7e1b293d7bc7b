"""Building on a Ray cluster: actors, each with a teacher, seal the shards that the driver hands them.

The driver creates the cache and holds its lock; each actor joins it. Teacher and dataset go to the cluster's object
store once, and from there to each actor; a shard is handed over as three numbers. An actor that dies, alone or with its
node, loses its current shards, which another actor then builds. Output and images are on a file system that all nodes
share.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kdkit.building.groups import ShardGroup, group_shards, views_in_memory
from kdkit.building.plan import BuildPlan
from kdkit.building.shards import fill_shards
from kdkit.cache.format.metadata import Shard
from kdkit.cache.writer import CacheWriter
from kdkit.errors import CacheError, ConfigError, KdkitError, MissingDependencyError
from kdkit.runtime.install import install_command
from kdkit.runtime.progress import progress

_logger = logging.getLogger(__name__)
_GROUPS_PER_ACTOR = 2  # at least, so that no actor waits long for the last one
_MAX_DEATHS = 3  # of actors at the same shard, or while they start: then the node is not at fault


class ShardBuilder:
    """An actor: a teacher, its dataset and the cache, for as many shards as it is handed.

    Args:
        writer: the cache's writer, which has joined.
        plan: the teacher, data and settings of the build.
    """

    def __init__(self, writer: CacheWriter, plan: BuildPlan) -> None:
        self._writer = writer
        self._plan = plan

    def start(self) -> None:
        """Moves the teacher to its device; returns when the actor is ready."""
        self._plan.teacher.to(torch.device(self._plan.device))

    def fill(self, group: ShardGroup) -> None:
        """Builds and seals the shards of a group, except those that an actor that died since has sealed."""
        left = tuple(shard for shard in group.shards if not self._writer.is_sealed(shard))
        fill_shards(self._writer, [ShardGroup(left)] if left else [], self._plan, lambda images: None)


def fill_on_actors(
    writer: CacheWriter, missing: Sequence[Shard], plan: BuildPlan, *, actors: int, show_progress: bool
) -> int:
    """Builds and seals the missing shards on a Ray cluster: this process's cluster, else one on this machine.

    Args:
        writer: the writer that created the cache.
        missing: the shards to build.
        plan: the teacher, data and settings of the build; its device is that of each actor, "cuda" one GPU each.
        actors: number of actors that run at a time.
        show_progress: whether progress is shown on standard error.

    Returns:
        Images that the teacher was run on.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: there is no actor.
        CacheError: actors died repeatedly at the same shard.
        KdkitError: what an actor raised.
    """
    ray = _import_ray()
    if actors < 1:
        raise ConfigError(f"actors must be at least 1, got {actors}")
    if not ray.is_initialized():
        ray.init(logging_level="warning")
    device = torch.device(plan.device)
    plan.teacher.to("cpu")  # so that it can be read on nodes without a GPU, and by actors with another GPU
    try:
        stored = ray.put((writer, replace(plan, allow_mismatch=())))
    finally:
        plan.teacher.to(device)
    options = {"num_cpus": 1, "num_gpus": 1 if device.type == "cuda" else 0, "max_restarts": 0}
    remote = ray.remote(**options)(_StoredShardBuilder)
    views = min(views_in_memory(plan, writer.metadata), -(-len(missing) // (actors * _GROUPS_PER_ACTOR)))
    groups = group_shards(missing, views)
    pool = Pool(ray, lambda: remote.remote(stored), deque(groups))
    images = sum(group.num_images for group in groups)
    with progress(f"running {plan.teacher.name}", images, "images", enabled=show_progress) as advance:
        pool.run(min(actors, len(groups)), lambda group: advance(group.num_images))
    return images


class _StoredShardBuilder(ShardBuilder):
    """A ShardBuilder from the object store, which Ray reads when it starts the actor."""

    def __init__(self, stored: tuple[CacheWriter, BuildPlan]) -> None:
        super().__init__(*stored)


@dataclass
class Pool:
    """The actors and their current groups of shards; an actor that dies is replaced as soon as the cluster has room."""

    ray: Any
    create: Callable[[], Any]
    waiting: deque[ShardGroup]
    running: dict[Any, tuple[Any, ShardGroup | None]] = field(default_factory=dict)
    """Pending call -> its actor and the group, or None while the actor starts."""
    deaths: Counter[ShardGroup | None] = field(default_factory=Counter)

    def run(self, actors: int, done: Callable[[ShardGroup], None]) -> None:
        """Fills every group with a fixed number of actors."""
        try:
            for _ in range(actors):
                self._start()
            while self.waiting or any(group is not None for _, group in self.running.values()):
                (call,), _ = self.ray.wait(list(self.running), num_returns=1)
                self._collect(call, done)
        finally:
            for actor, _ in self.running.values():
                self.ray.kill(actor)

    def _start(self) -> None:
        actor = self.create()
        self.running[actor.start.remote()] = (actor, None)

    def _collect(self, call: Any, done: Callable[[ShardGroup], None]) -> None:
        """Takes the result of a call, and gives its actor, or the one in its place, the next group."""
        actor, group = self.running.pop(call)
        try:
            self.ray.get(call)
        except self.ray.exceptions.RayActorError as error:
            return self._replace(group, error)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, KdkitError) else error from None
        if group is not None:
            self.deaths.clear()
            done(group)
        if self.waiting:
            following = self.waiting.popleft()
            self.running[actor.fill.remote(following)] = (actor, following)
        return None

    def _replace(self, group: ShardGroup | None, error: Exception) -> None:
        self.deaths[group] += 1
        if self.deaths[group] >= _MAX_DEATHS:
            what = "while they started" if group is None else f"at {group}"
            reason = " ".join(str(error).split())[:200]
            raise CacheError(f"{_MAX_DEATHS} Ray actors died {what}: see Ray's logs; the last: {reason}") from error
        if group is not None:
            _logger.warning("a Ray actor died at %s: another actor builds it", group)
            self.waiting.appendleft(group)
        self._start()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(f"the engine 'ray' needs Ray: {install_command('ray')}") from error
    return ray
