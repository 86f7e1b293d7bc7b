"""Seeds that make a random view of a sample the same whenever and wherever it is drawn.

A 64-bit seed is hashed from the recipe's seed, the sample's key and the view's number. While one view is drawn it seeds
Python, NumPy and torch, and their states are restored afterwards. Any transform that
draws from these generators is therefore reproducible, and nothing is stored.

Saving and restoring the states takes five times as long as seeding, so it is done once for all views of a batch. NumPy
takes most of the time of seeding, so its generator is not seeded for transforms that do not draw from it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

_MASK_64 = (1 << 64) - 1


def view_seed(seed: int, key: str, view: int) -> int:
    """The 64-bit seed of view `view` of the sample `key` (BLAKE2b over the three)."""
    digest = hashlib.blake2b(digest_size=8, person=b"kdkit-view")
    digest.update((seed & _MASK_64).to_bytes(8, "little"))
    digest.update((int(view) & _MASK_64).to_bytes(8, "little"))  # a NumPy integer would overflow
    digest.update(key.encode("utf-8", "surrogateescape"))
    return int.from_bytes(digest.digest(), "little")


def seed_all(seed: int, *, numpy: bool = True) -> None:
    """Seeds `random`, NumPy's legacy generator and torch's CPU generator. Call it inside `preserve_rng_state`.

    Args:
        seed: 64 bits.
        numpy: whether NumPy's generator is seeded as well.
    """
    random.seed(seed)
    if numpy:
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002  transforms draw from the legacy generator
    torch.default_generator.manual_seed(seed)


@contextmanager
def preserve_rng_state() -> Iterator[Callable[[], bool]]:
    """Restores the states of the three generators at the end of the context.

    Within it, torch's default dtype is float32 and its default device the CPU, because draws depend on both.

    Yields:
        Tells whether the state of NumPy's generator has changed since the context began.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    python_state = random.getstate()
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    torch_state = torch.default_generator.get_state()

    def numpy_has_changed() -> bool:
        now: Any = np.random.get_state()  # noqa: NPY002
        return bool(now[2:] != numpy_state[2:] or (now[1] != numpy_state[1]).any())

    try:
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            yield numpy_has_changed
    finally:
        torch.set_default_dtype(dtype)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.default_generator.set_state(torch_state)
