from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from scipy.stats import ks_2samp
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.transforms import v2

from ddp_ft.config.schema import AugmentConfig
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import draw_crop, eval_transform, train_transform
from ddp_ft.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTOS = ("coffee.png", "astronaut.png", "rocket.jpg", "motorcycle_left.png")


def preprocess(
    size: tuple[int, int] = (64, 64), interpolation: str = "bicubic", crop_pct: float = 0.875, mode="center"
):
    return Preprocess(size, MEAN, STD, interpolation, crop_pct, mode)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    folder = Path(skimage.__file__).parent / "data"
    opened = []
    for name in PHOTOS:
        with Image.open(folder / name) as image:
            opened.append(image.convert("RGB"))
    return [*opened, opened[0].resize((40, 300)), opened[1].resize((31, 29))]


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "crop_pct"), [((224, 224), 0.875), ((96, 96), 1.0), ((64, 112), 0.9), ((101, 101), 0.77), ((50, 50), 1.3)]
)
def test_eval_agrees_with_timm(photos, mode: str, interpolation: str, size: tuple[int, int], crop_pct: float) -> None:
    wanted = transforms_imagenet_eval(
        size, crop_pct=crop_pct, crop_mode=mode, interpolation=interpolation, mean=MEAN, std=STD, normalize=False
    )
    ours = eval_transform(preprocess(size, interpolation, crop_pct, mode))
    for photo in photos:
        given, expected = ours(to_tensor(photo)), wanted(photo)
        assert given.dtype == torch.uint8 and given.shape == expected.shape == (3, *size)
        difference = (given.float() - expected.float()).abs().mean()
        # Nearest is all or nothing where a sample falls between two pixels, and these photos are sharp.
        assert difference < (2.5 if interpolation == "nearest" else 0.5)


@pytest.mark.parametrize("interpolation", ["lanczos", "random"])
def test_names_that_stand_for_bicubic(photos, interpolation: str) -> None:
    given = eval_transform(preprocess(interpolation=interpolation))(to_tensor(photos[0]))
    assert torch.equal(given, eval_transform(preprocess())(to_tensor(photos[0])))
    train_transform(preprocess(interpolation=interpolation), AugmentConfig())


def test_eval_of_a_very_long_strip() -> None:
    strip = torch.zeros(3, 2, 60_000, dtype=torch.uint8)
    strip[:, :, 29_990:30_010] = 200  # only the middle is seen
    assert (eval_transform(preprocess())(strip) == 200).all()
    assert (eval_transform(preprocess())(strip.transpose(1, 2)) == 200).all()


def test_one_pixel() -> None:
    for transform in (eval_transform(preprocess()), train_transform(preprocess(), AugmentConfig())):
        assert (transform(torch.full((3, 1, 1), 77, dtype=torch.uint8)) == 77).all()


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"bicubik[\s\S]*bicubic"):
        eval_transform(preprocess(interpolation="bicubik"))
    with pytest.raises(UserError, match="bicubik"):
        train_transform(preprocess(interpolation="bicubik"), AugmentConfig())
    with pytest.raises(UserError, match="corner"):
        eval_transform(preprocess(mode="corner"))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_train_is_torchvisions_own_at_the_place_that_was_drawn(photos, interpolation: str) -> None:
    mode = v2.InterpolationMode({"nearest": "nearest-exact"}.get(interpolation, interpolation))
    flip = v2.RandomHorizontalFlip(0.5)
    ours = train_transform(preprocess((48, 64), interpolation), AugmentConfig(crop_min=0.35, flip=0.5))
    for seed, photo in enumerate(photos * 3):
        image = to_tensor(photo)
        torch.manual_seed(seed)
        box = draw_crop(*image.shape[1:], 0.35)
        expected = flip(v2.functional.resized_crop(image, *box, [48, 64], mode, antialias=True))
        torch.manual_seed(seed)
        assert torch.equal(ours(image), expected)


@pytest.mark.parametrize(
    ("height", "width", "least_area"),
    [(375, 500, 0.08), (375, 500, 0.6), (90, 200, 0.35), (300, 300, 0.9), (40, 9, 0.5)],
)
def test_crops_are_spread_as_torchvisions(height: int, width: int, least_area: float) -> None:
    torch.manual_seed(0)
    ours = torch.tensor([draw_crop(height, width, least_area) for _ in range(3000)])
    crop, blank = v2.RandomResizedCrop((8, 8), (least_area, 1.0)), torch.empty(3, height, width)
    theirs = torch.tensor([list(crop.make_params([blank]).values()) for _ in range(3000)])
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= torch.tensor([height, width])).all()
    for column, name in enumerate(["top", "left", "height", "width"]):
        # Of two samples of 3,000 from one distribution, 1 pair in 100,000 is further apart (Smirnov).
        distance = ks_2samp(ours[:, column], theirs[:, column]).statistic
        assert distance < 0.064, name


@pytest.mark.parametrize(("height", "width", "expected"), [(1, 50, (0, 24, 1, 1)), (500, 10, (243, 0, 13, 10))])
def test_what_no_crop_fits_is_cut_from_the_middle(height: int, width: int, expected: tuple[int, ...]) -> None:
    assert draw_crop(height, width, 0.6) == expected


def test_flip_is_honoured() -> None:
    image = torch.arange(64, dtype=torch.uint8).repeat(3, 64, 1)

    def flipped(probability: float) -> int:
        transform = train_transform(preprocess(), AugmentConfig(crop_min=1.0, flip=probability))
        return sum(bool(image[0, 0, 0] > image[0, 0, -1]) for image in (transform(image) for _ in range(200)))

    torch.manual_seed(0)
    assert flipped(0.0) == 0
    assert flipped(1.0) == 200
    assert 20 < flipped(0.2) < 70


def test_crop_min_is_honoured() -> None:
    # In a ramp from 0 to 250 over both sides, the values' span tells the crop's width and height.
    ramp = torch.arange(0, 251, dtype=torch.uint8)
    image = torch.stack([ramp.repeat(251, 1), ramp.repeat(251, 1).T, ramp.repeat(251, 1)])

    def smallest_area(crop_min: float) -> float:
        transform = train_transform(preprocess(interpolation="nearest"), AugmentConfig(crop_min=crop_min, flip=0))
        spans = [[int(c.max()) - int(c.min()) for c in transform(image)[:2]] for _ in range(300)]
        return min(width * height for width, height in spans) / 250**2

    torch.manual_seed(0)
    assert 0.05 < smallest_area(0.08) < 0.2
    assert 0.45 < smallest_area(0.5) < 0.6
    assert smallest_area(0.95) > 0.88


@pytest.mark.parametrize("channels_last", [True, False])
def test_device_transform_normalises(channels_last: bool) -> None:
    image = torch.randint(0, 256, (5, 3, 6, 7), dtype=torch.uint8)
    batch = {"image": image.clone(), "target": torch.arange(5), "weight": torch.ones(5)}
    moved = DeviceTransform(preprocess(), "cpu", channels_last)(batch)
    expected = (image.float() / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    torch.testing.assert_close(moved["image"], expected, atol=1e-5, rtol=1e-5)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert moved["image"].is_contiguous(memory_format=wanted) and moved["image"].dtype == torch.float32
    assert torch.equal(batch["image"], image) and set(moved) == set(batch)
    assert torch.equal(moved["target"], batch["target"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_transform_on_cuda() -> None:
    batch = {"image": torch.randint(0, 256, (5, 3, 6, 7), dtype=torch.uint8).pin_memory(), "target": torch.arange(5)}
    moved = DeviceTransform(preprocess(), "cuda", True)(batch)
    assert {tensor.device.type for tensor in moved.values()} == {"cuda"}
    torch.testing.assert_close(moved["image"].cpu(), DeviceTransform(preprocess(), "cpu", True)(batch)["image"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_travel_while_the_device_computes() -> None:
    prepare = DeviceTransform(preprocess(), "cuda", channels_last=True)
    batch = {"image": torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8), "label": torch.arange(8)}
    pinned = {name: tensor.pin_memory() for name, tensor in batch.items()}
    expected = prepare(pinned)["image"].cpu()
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    moved = prepare(pinned)
    prepare.copies.synchronize()
    assert not torch.cuda.current_stream().query(), "the device was to be computing still"
    assert torch.equal(moved["image"].cpu(), expected)
