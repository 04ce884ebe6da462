"""JPEGs that a loader hands on undecoded: the same images in the end, whoever decodes them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddp_ft.config.loading import make_config
from ddp_ft.config.schema import AugmentConfig
from ddp_ft.contracts import BadSample
from ddp_ft.data.batch import cut
from ddp_ft.data.image.decode import open_image
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.image.mixup import Mixing
from ddp_ft.data.image.nvjpeg import JPEG, LENGTH, NVJPEG, EncodedTransform, check_nvjpeg
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.data.image.transforms import train_transform
from ddp_ft.data.open_sample import open_sample
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.data.sources.files import FileSource
from ddp_ft.errors import UserError
from ddp_ft.features.precompute import training_views
from tests.support.loading import train_loader
from tests.support.runs import train_here

PREPROCESS = Preprocess((32, 48), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bilinear", decoder="full")
AUGMENT = AugmentConfig("none", 0.4, 0.5, vertical_flip=0.5, right_angles=0.5)
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six images: JPEGs of several sizes, one grey, one that EXIF turns, and a PNG."""
    folder = tmp_path_factory.mktemp("images")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    for number, size in enumerate([(90, 70), (200, 120), (64, 128)]):
        photo.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=95 - 20 * number)
    photo.resize((80, 80)).convert("L").save(folder / "3.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.resize((100, 60)).save(folder / "4.jpg", exif=exif)
    photo.resize((50, 50)).save(folder / "5.png")
    return sorted(folder.iterdir())


def steps(files: list[Path], transform, micro_batch: int | None = None, mixing: Mixing | None = None):
    """The micro-batches of both steps of an epoch."""
    sampler = GlobalOrderSampler(len(files), 3, 1, 0, seed=5, pairs=mixing is not None)
    return list(train_loader(FileSource(files), transform, sampler, micro_batch, 0, 0, 2, mixing=mixing))


def test_views_of_features_are_decoded_by_the_loader(files):
    """They are computed once and kept, for runs with either decoder."""
    config = make_config({"data.decoder": NVJPEG, "freeze.views": 2})
    [_, (source, transform, _)] = training_views(FileSource(files), ImageProcessor(PREPROCESS), config)
    sample = transform(open_sample(source, 0))
    assert sample.keys() == {"image"} and sample["image"].shape == (3, *PREPROCESS.size) and sample["image"].any()


def prepared(steps, device: str = "cpu"):
    prepare = DeviceTransform(PREPROCESS, device, channels_last=True)
    return [[prepare(batch) for batch in batches] for batches in steps]


@pytest.mark.gpu
@NEEDS_CUDA
def test_decoding_waits_for_who_reads_the_memory_that_it_gets(files):
    """The sums of images that were freed while the device still had other things to do; decoded ones get their memory,
    which nvJPEG once overwrote before it was read."""
    [[batch], *_] = steps(files, EncodedTransform(PREPROCESS, AUGMENT))
    prepare = DeviceTransform(PREPROCESS, "cuda", channels_last=True)
    prepare(batch)
    for _ in range(5):
        images = [torch.ones(3, 200, 200, dtype=torch.uint8, device="cuda") for _ in range(64)]
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)  # a tenth of a second
        sums = [image.sum() for image in images]
        del images
        prepare(batch)
        assert {int(each) for each in sums} == {3 * 200 * 200}


@pytest.mark.parametrize("mixing", [None, Mixing(cutmix=1.0)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])])
def test_the_model_sees_the_same(files, device, mixing):
    encoded = steps(files, EncodedTransform(PREPROCESS, AUGMENT), mixing=mixing)
    assert sum(int((batch[LENGTH] > 0).sum()) for [batch] in encoded) == 4, "what EXIF turns and the PNG are decoded"
    expected = prepared(steps(files, train_transform(PREPROCESS, AUGMENT), mixing=mixing), device)
    for [found], [wanted] in zip(prepared(encoded, device), expected, strict=True):
        assert found.keys() == wanted.keys()
        assert torch.equal(found["index"], wanted["index"])
        # Half a grey level for another decoder on the CPU; on CUDA images are not rounded alike anywhere.
        levels = 255 * 0.2 * (found["image"] - wanted["image"]).abs()
        assert levels.mean() < (0.5 if device == "cpu" else 3)
        assert levels.max() < (3 if device == "cpu" else 40)


def test_grey_images_too(files):
    """And where more channels are asked for a JPEG is told at once."""
    grey = replace(PREPROCESS, mean=(0.5,), std=(0.2,), channels=1)
    for [found], [wanted] in zip(
        steps(files, EncodedTransform(grey, AUGMENT)), steps(files, train_transform(grey, AUGMENT)), strict=True
    ):
        seen = DeviceTransform(grey, "cpu", channels_last=True)(found)["image"]
        levels = 255 * 0.2 * (seen - DeviceTransform(grey, "cpu", channels_last=True)(wanted)["image"]).abs()
        assert seen.shape[1:] == (1, 32, 48) and levels.mean() < 0.5
    with pytest.raises(BadSample, match="3 channels where 5 are expected"):
        EncodedTransform(replace(PREPROCESS, mean=(0.5,) * 5, channels=5), AUGMENT)(open_image(files[0]))


def test_a_batch_is_left_as_it_is_and_can_be_cut(files):
    whole = steps(files, EncodedTransform(PREPROCESS, AUGMENT))
    before = [batch["image"].clone() for [batch] in whole]
    expected = prepared(whole)
    assert all(torch.equal(batch["image"], image) for [batch], image in zip(whole, before, strict=True))
    finer = steps(files, EncodedTransform(PREPROCESS, AUGMENT), micro_batch=2)
    joined = [cut(share, 3) for share in finer]  # of micro-batches whose longest files differ
    for parts in ([cut(share, 1) for share in whole], [cut(share, 1) for share in finer], joined):
        for found, [wanted] in zip(prepared(parts), expected, strict=True):
            assert torch.equal(torch.cat([part["image"] for part in found]), wanted["image"])


def test_what_nothing_decodes_is_told_by_its_number(files):
    [batch] = steps(files, EncodedTransform(PREPROCESS, AUGMENT))[0]
    row = int(batch[LENGTH].argmax())
    batch[JPEG][row, 200:] = 0
    with pytest.raises(UserError, match=rf"Image {int(batch['index'][row])} of the training set") as raised:
        DeviceTransform(PREPROCESS, "cpu", channels_last=True)(batch)
    assert "nvjpeg" in raised.value.hint


def test_where_it_cannot_be_had(shapes, tmp_path):
    with pytest.raises(UserError, match="computes on the cpu"):
        train_here(shapes, tmp_path / "r", "--set", "data.decoder=nvjpeg", "--device", "cpu")
    config = make_config({"data.decoder": NVJPEG, "augment.erasing": 0.5})
    with pytest.raises(UserError, match="erasing"):
        check_nvjpeg(config, PREPROCESS, torch.device("cuda"))
    check_nvjpeg(make_config({"data.decoder": NVJPEG}), PREPROCESS, torch.device("cuda"))


@pytest.mark.gpu
@NEEDS_CUDA
def test_a_run_decodes_on_the_gpu(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--set", "data.decoder=nvjpeg", "--device", "cuda")
