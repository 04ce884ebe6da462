"""What rank 0 has found reaches all ranks; large arrays in it not through the store."""

import numpy as np
import pytest

from ddp_ft.contracts import LABEL, Schema
from ddp_ft.data.sources.files import LabelledFileSource
from ddp_ft.data.sources.paths import Paths
from ddp_ft.data.splits.open import Splits
from tests.support.ranks import run_ranks

COUNT = 150_000


def open_large(world):
    def work():
        names = [f"n{k % 10:08d}/{k:08d}.JPEG" for k in range(COUNT)]
        source = LabelledFileSource("/data", Paths.of(names), np.arange(COUNT) % 10)
        few = LabelledFileSource("/data", ["a/1.jpg"], np.array([3]))
        return Splits(source, few, None, Schema(LABEL, ("a", "b")), "f", {"train": names})

    splits = world.from_main(work)
    through_store = len(world.store.get("from_main/0")) if world.size > 1 else 0
    splits.train.targets[0] += 1  # each rank has its own, to write to if it likes
    train = splits.train
    seen = (train.name(0), train.name(COUNT - 1), len(set(train.paths)), train.targets[[0, -1]].tolist())
    return seen, splits.val.name(0), splits.val.targets.tolist(), splits.fingerprint, bool(splits.record), through_store


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_splits_reach_every_rank(world_size):
    results = run_ranks(world_size, open_large)
    seen = ("/data/n00000000/00000000.JPEG", "/data/n00000009/00149999.JPEG", COUNT, [1, 9])
    assert [result[:4] for result in results] == [(seen, "/data/a/1.jpg", [3], "f")] * world_size
    assert [result[4] for result in results] == [True] + [False] * (world_size - 1)  # rank 0 alone writes the record
    assert all(result[5] < 10_000 for result in results)  # the paths alone are 3.4 MB, the targets 1.2 MB
