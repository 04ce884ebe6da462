"""Batches come from workers with the same bytes and strides, and hold no file open."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from ddp_ft.data.transfer import FILES_PER_WORKER, opened_files, pack
from tests.data.image.image_files import NumberSource
from tests.data.test_loader import CENTRE
from tests.support.loading import eval_loader

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files in memory are Linux's")

IMAGES = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
BATCH = {
    "channels_last": IMAGES.contiguous(memory_format=torch.channels_last),
    "contiguous": IMAGES,
    "half": torch.ones(3).bfloat16(),
    "truth": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "part": torch.arange(12).view(3, 4)[:, 1:3],
    "expanded": torch.ones(1, 3).expand(4, 3),
}


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def assert_same(found, batch=BATCH):
    assert list(found) == list(batch)
    for name, tensor in batch.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert found["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert found["contiguous"].is_contiguous()


def test_the_same_values_and_strides_through_files_and_pipes():
    with opened_files(1) as [files]:
        parcels = [pack(BATCH, files) for _ in range(FILES_PER_WORKER + 1)]
        assert [parcel.file for parcel in parcels] == [*files, None]  # without a free file: in the message itself
        for parcel in parcels:
            assert_same(parcel.unpacked())
        longer = BATCH | {"more": torch.arange(10_000)}
        assert_same(pack(longer, files).unpacked(), longer)
        late = pack(BATCH, files)
    with opened_files(1) as [others]:
        assert late.file.descriptor in [other.descriptor for other in others]
        parcels = [pack(BATCH, others) for _ in others]
        with pytest.raises(EOFError):  # and not the batch of another loader, whose file has that number now
            late.unpacked()
        for parcel in parcels:
            assert_same(parcel.unpacked())


def test_a_batch_for_which_memory_has_no_room_goes_through_the_pipe():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened_files(1) as [files]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            parcel = pack(BATCH, files)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert parcel.file is None
        assert_same(parcel.unpacked())
        assert pack(BATCH, files).file == files[0]


def test_batches_that_are_kept_hold_no_file():
    kept, opened = [], []
    for batch in eval_loader(NumberSource(60), CENTRE, 1, workers=1):
        kept.append(batch)
        opened.append(open_files())
    assert len(kept) == 60 and opened[-1] <= opened[0] + 8
