"""Several ranks build one cache; ranks and batch size may change between runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from processes import run_ranks
from support import cache_contents

from kdkit import open_cache


@pytest.mark.slow
def test_two_ranks_build_and_extend_to_the_bytes_of_one(tmp_path: Path) -> None:
    for ranks in (1, 2):
        run_ranks("distributed/build.py", str(tmp_path / f"{ranks}.h5"), "100", "0", ranks=ranks)
    run_ranks("distributed/extend.py", str(tmp_path / "extended.h5"), "100", ranks=2)
    assert cache_contents(tmp_path / "1.h5") == cache_contents(tmp_path / "2.h5")
    assert open_cache(tmp_path / "2.h5").absent_keys == ["digit-1200", "digit-3"]  # images that cannot be read
    assert cache_contents(tmp_path / "1.h5") == cache_contents(tmp_path / "extended.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.h5", "2.h5", "extended.h5"]


@pytest.mark.slow
def test_fault_13_a_build_resumes_with_other_world_and_batch_sizes(tmp_path: Path) -> None:
    run_ranks("distributed/build.py", str(tmp_path / "plain.h5"), "1000", "0", ranks=1)
    changing, sealed = str(tmp_path / "changing.h5"), [0]
    # With 1 MiB of memory, batches of this size are built view by view, so that shards are sealed one at a time.
    for ranks, batch_size, die_after in ((1, 1000, 1500), (2, 700, 900)):
        run_ranks("distributed/build.py", changing, str(batch_size), str(die_after), ranks=ranks, succeeds=False)
        assert not Path(changing).exists()
        sealed.append(len(list(Path(changing + ".parts").glob("v*.json"))))
    assert 0 < sealed[1] < sealed[2] < 4, sealed  # each run kept what was there, and added to it
    run_ranks("distributed/build.py", changing, "640", "0", ranks=1)
    mine, plain = cache_contents(Path(changing)), cache_contents(tmp_path / "plain.h5")
    assert set(mine) == set(plain)
    for name, content in plain.items():
        if name.endswith("logits"):
            np.testing.assert_allclose(
                np.frombuffer(mine[name], "<f4"), np.frombuffer(content, "<f4"), rtol=1e-4, atol=1e-5
            )
        elif name.endswith("logits_fidelity"):
            np.testing.assert_allclose(np.frombuffer(mine[name], "<f4"), np.frombuffer(content, "<f4"), atol=1e-6)
        elif not name.endswith(("logits_crc32", "metadata")):  # the fidelity was measured in other batches too
            assert mine[name] == content, name
