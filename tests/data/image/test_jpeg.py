"""JPEGs decoded in part and shrunk: the same whoever decodes them, and near to what whole images give."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import resize_image

from ddp_ft.config.schema import AugmentConfig
from ddp_ft.contracts import BadSample
from ddp_ft.data.image import jpeg
from ddp_ft.data.image.decode import JpegFile, decode, open_image
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import eval_transform, train_transform
from ddp_ft.data.image.undecoded import Box, cut, whole
from ddp_ft.data.open_sample import open_sample
from ddp_ft.data.sources.files import FileSource

KINDS = {
    "usual": {"subsampling": 2},
    "half": {"subsampling": 1},
    "full": {"subsampling": 0},
    "progressive": {"progressive": True},
}


def photo(width: int, height: int) -> Image.Image:
    """Smooth shapes with some grain, as photos are."""
    rows, columns = np.mgrid[0:height, 0:width] / 40
    grain = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    waves = np.stack([np.sin(rows + columns), np.cos(rows * 1.3), np.sin(columns * 0.7)], -1)
    return Image.fromarray((127 + 90 * waves + grain).clip(0, 255).astype(np.uint8))


def write_jpeg(file: Path, image: Image.Image, orientation: int = 1, **options) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(file, "JPEG", quality=90, exif=exif, **options)
    return file


@pytest.mark.parametrize("size", [(333, 250), (127, 99), (64, 64)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_from_both_decoders(monkeypatch, size, mode: str, kind: str) -> None:
    pytest.importorskip("simplejpeg")
    stream = io.BytesIO()
    photo(*size).convert(mode).save(stream, "JPEG", quality=88, **KINDS[kind])
    data = stream.getvalue()
    results = []
    for module in (jpeg.simplejpeg, None):
        monkeypatch.setattr(jpeg, "simplejpeg", module)
        header = jpeg.read_header(data)
        assert header == (size[1], size[0], 1, mode == "L")
        results.append([jpeg.decode_jpeg(data, header, shrink) for shrink in (1, 2, 4, 8)])
    for one, other, shrink in zip(*results, (1, 2, 4, 8), strict=True):
        assert one.shape == (-(-size[1] // shrink), -(-size[0] // shrink), 3)
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(results[0][0], np.asarray(Image.open(stream).convert("RGB")))
    if mode == "L":
        assert all((jpeg.decode_jpeg(data, header, 4, 1) == one).all() for one in results[0][2:3])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("without", [False, True])
def test_upright_as_pillow_turns_it(tmp_path: Path, monkeypatch, orientation: int, without: bool) -> None:
    if without:
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    file = write_jpeg(tmp_path / "a.jpg", photo(60, 40), orientation)
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode(file).permute(1, 2, 0).numpy(), expected)
    image = open_image(file)
    assert isinstance(image, JpegFile) and image.size == expected.shape[:2]
    part = cut(image, Box(3, 5, 20, 30), (20, 30))
    np.testing.assert_array_equal(part.permute(1, 2, 0).numpy(), expected[3:23, 5:35])


def test_upright_where_only_xmp_says_how(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    photo(60, 40).save(tmp_path / "a.jpg", xmp=xmp)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape[:2] == (60, 40)
    np.testing.assert_array_equal(decode(tmp_path / "a.jpg").permute(1, 2, 0).numpy(), expected)


def preprocess(side: int) -> Preprocess:
    return Preprocess((side, side), (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_images_are_shrunk_and_look_the_same(tmp_path: Path, orientation: int) -> None:
    file = write_jpeg(tmp_path / "a.jpg", photo(1210, 907), orientation)
    image = open_image(file)
    assert cut(image, Box(0, 0, *image.size), (112, 112)).shape[-1] <= 1210 // 4 + 1  # decoded as a quarter
    shown = [eval_transform(preprocess(96))(image).float() for image in (image, decode(file))]
    # These waves rise by 19 grey levels a pixel, and the sides of the shrunk image are rounded up.
    assert (shown[0] - shown[1]).abs().mean() < 2.0
    assert shown[0].std() > 30


def test_a_part_of_a_large_image_is_the_same_part_when_it_is_shrunk(tmp_path: Path) -> None:
    """Up to half a pixel of the shrunk image; none here, where the box begins at whole ones."""
    file = write_jpeg(tmp_path / "a.jpg", photo(1208, 904))
    parts = [cut(image, Box(16, 80, 856, 1072), (96, 96)) for image in (open_image(file), decode(file))]
    assert [part.shape for part in parts] == [(3, 214, 268), (3, 856, 1072)]
    shown = [resize_image(part, [96, 96], antialias=True).float() for part in parts]
    assert (shown[0] - shown[1]).abs().mean() < 1.0


def test_images_near_the_needed_size_are_not_shrunk(tmp_path: Path) -> None:
    file = write_jpeg(tmp_path / "a.jpg", photo(500, 375))
    for transform in (eval_transform(preprocess(128)), train_transform(preprocess(128), AugmentConfig())):
        shown = []
        for image in (open_image(file), decode(file)):
            torch.manual_seed(3)
            shown.append(transform(image))
        assert torch.equal(*shown)


@pytest.mark.parametrize("shrink", [1, 4])
def test_damage_is_named_when_it_is_met(tmp_path: Path, shrink: int) -> None:
    file = write_jpeg(tmp_path / "a.jpg", photo(500, 375))
    file.write_bytes(file.read_bytes()[:9000])
    image = open_sample(FileSource([file]), 0)["image"]
    with pytest.raises(BadSample, match=rf"^{file}: .*truncated"):
        image.pixels(shrink)
    with pytest.raises(BadSample, match="truncated"):
        decode(file)


def test_an_oddity_is_no_damage(tmp_path: Path) -> None:
    """Bytes behind a marker, which libjpeg warns of and Pillow takes."""
    file = write_jpeg(tmp_path / "a.jpg", photo(80, 60))
    whole, data = decode(file), file.read_bytes()
    file.write_bytes(data[:-2] + b"\x00" * 40 + data[-2:])
    assert torch.equal(decode(file), whole)


def test_more_pixels_than_pillow_allows(tmp_path: Path, monkeypatch) -> None:
    file = write_jpeg(tmp_path / "a.jpg", photo(80, 60), orientation=6)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    image = open_image(file)  # 4,800 pixels, of which a quarter is too much
    assert isinstance(image, JpegFile) and sorted(image.size) == [60, 80]
    assert whole(image).shape == (3, image.size[0] // 4, image.size[1] // 4) == decode(file).shape
    assert cut(image, Box(0, 0, *image.size), (8, 8), "full").shape[0] == 3
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(BadSample, match="4800 pixels, more than the limit of 700; DDP_FT_MAX_MEGAPIXELS="):
        open_image(file)
