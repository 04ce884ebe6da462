"""Features where each process has a disk of its own: ranks exchange what they computed, and find it again."""

import numpy as np
import pytest
import torch

from ddp_ft.data.image.processor import ImageTransform
from ddp_ft.features.cache import ChunkStore
from ddp_ft.features.extractor import Extractor
from ddp_ft.models.libraries.base import call_with_images
from tests.support import nets
from tests.support.ranks import run_ranks

SAMPLES, CHUNK = 22, 4


class Images:
    """Noise."""

    targets = np.arange(SAMPLES) % 3
    weights = None

    def __len__(self):
        return SAMPLES

    def name(self, index):
        return str(index)

    def read(self, index):
        return {"image": nets.images(1, seed=index)[0], "target": torch.tensor(index % 3)}


def _extract(world, folder, common):
    """Features, and how many images this rank's backbone saw."""
    torch.manual_seed(0)
    net, seen = nets.plain(), []
    net[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    extractor = Extractor(
        net, "6", call_with_images, lambda batch: {"image": batch["image"] / 255}, world, "fp32",
        threads=1, workers=0, in_rounds=lambda items, _: iter(items), chunk=CHUNK,
    )  # fmt: skip
    store = ChunkStore(folder if common else folder / f"node{world.rank}", SAMPLES, CHUNK)
    store.folder.mkdir(parents=True, exist_ok=True)
    world.barrier()
    found = extractor.extract(Images(), ImageTransform(lambda image: image), store, common)
    assert torch.equal(found.chosen, torch.arange(SAMPLES)) and not found.error
    return found.features, sum(seen)


@pytest.mark.parametrize("common", [False, True])
def test_ranks_without_a_common_disk_exchange_their_rows(tmp_path, common):
    [(alone, count)] = run_ranks(1, _extract, tmp_path / "alone", True)
    assert count == SAMPLES and alone.shape == (SAMPLES, 16) and len(alone.unique(dim=0)) == SAMPLES
    for start in range(2):
        results = run_ranks(3, _extract, tmp_path / "three", common)
        assert all(torch.equal(features, alone) for features, _ in results)
        assert sum(count for _, count in results) == (0 if start else SAMPLES)
    again = run_ranks(2, _extract, tmp_path / "three", common)
    assert all(torch.equal(features, alone) for features, _ in again)
    # On other disks a rank has chunks of another number of ranks, and computes what it lacks.
    assert sum(count for _, count in again) == (0 if common else 14)
