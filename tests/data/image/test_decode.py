import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from ddp_ft.contracts import BadSample
from ddp_ft.data.image.decode import decode
from ddp_ft.data.image.pillow import LIMIT_VARIABLE, known_formats
from ddp_ft.data.sources.files import FileSource, LabelledFileSource
from ddp_ft.data.survey import survey
from ddp_ft.errors import UserError
from tests.data.image.image_files import save_image

RAMP = np.linspace(0, 65535, 16 * 12).astype(np.uint16).reshape(12, 16)


def pixels(file: Path) -> np.ndarray:
    image = decode(file)
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def opened(file: Path) -> Image.Image:
    """The first frame as Pillow reads it, with the file closed."""
    with Image.open(file) as image:
        return image.copy()


def mode_of(file: Path) -> str:
    return opened(file).mode


def assert_grey(file: Path, expected: np.ndarray, atol: float = 1) -> None:
    result = pixels(file).astype(int)
    assert (result[..., 0] == result[..., 1]).all() and (result[..., 0] == result[..., 2]).all()
    np.testing.assert_allclose(result[..., 0], expected, atol=atol)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".TIFF", ".ppm"])
def test_lossless_rgb_is_exact(tmp_path: Path, suffix: str) -> None:
    file = save_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(pixels(file), np.asarray(opened(file)))
    assert decode(file).shape == (3, 16, 20)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".gif"])
def test_other_formats_match_pillow(tmp_path: Path, suffix: str) -> None:
    file = save_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(pixels(file), np.asarray(opened(file).convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"a{suffix}")
    assert_grey(tmp_path / f"a{suffix}", RAMP / 257)


def test_16_bit_big_endian_tiff(tmp_path: Path) -> None:
    Image.frombytes("I;16B", (16, 12), RAMP.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    assert_grey(tmp_path / "a.tif", RAMP / 257)


def test_12_bit_tiff_uses_its_own_range(tmp_path: Path) -> None:
    # Pillow reads 12 bits but cannot write them: 4 pixels 0, 0x555, 0xAAA, 0xFFF, two to three bytes.
    strip = bytes([0x00, 0x05, 0x55, 0xAA, 0xAF, 0xFF])
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(strip))]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip
    (tmp_path / "a.tif").write_bytes(head + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0")
    assert_grey(tmp_path / "a.tif", np.array([[0, 85, 170, 255]]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP.astype(np.int32), RAMP / 257),
        (RAMP.astype(np.int32) // 257, RAMP // 257),
        (RAMP.astype(np.int32) * 1000 - 5000, RAMP / 257),
        (RAMP.astype(np.float32) / 65535, RAMP / 257),
        (RAMP.astype(np.float32) / 257, RAMP / 257),
        (RAMP.astype(np.float32), RAMP / 257),
        (RAMP.astype(np.float32) - 1000, RAMP / 257),
    ],
    ids=["int16", "int8", "int32", "float 1", "float 255", "float 65535", "float negative"],
)
def test_32_bit_tiff_is_scaled_by_its_range(tmp_path: Path, values: np.ndarray, expected: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert_grey(tmp_path / "a.tif", expected)


def test_float_tiff_that_is_constant_or_not_finite(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), -3, np.float32)).save(tmp_path / "constant.tif")
    assert_grey(tmp_path / "constant.tif", np.zeros((4, 4)))
    Image.fromarray(np.array([[np.nan, 1.0], [np.inf, 0.5]], np.float32)).save(tmp_path / "nan.tif")
    assert_grey(tmp_path / "nan.tif", np.array([[0, 255], [0, 127.5]]))


def test_1_bit_and_8_bit_grey(tmp_path: Path) -> None:
    bits = RAMP > 30000
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert mode_of(tmp_path / "bits.png") == "1"
    assert_grey(tmp_path / "bits.png", bits * 255.0, atol=0)
    Image.fromarray((RAMP // 257).astype(np.uint8)).save(tmp_path / "grey.png")
    assert_grey(tmp_path / "grey.png", RAMP // 257, atol=0)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(tmp_path: Path, mode: str) -> None:
    image = opened(save_image(tmp_path / "rgb.png")).convert(mode[:-1])
    transparent = image.copy()
    transparent.putalpha(Image.new("L", image.size, 0))
    transparent.save(tmp_path / "a.png")
    assert mode_of(tmp_path / "a.png") == mode
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])], ids=["opaque", "one colour", "bytes"])
@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_palette(tmp_path: Path, transparency: int | bytes | None, suffix: str) -> None:
    if suffix == ".gif" and isinstance(transparency, bytes):
        pytest.skip("GIF has one transparent colour at most")
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([255, 0, 0, 0, 200, 0, 10, 20, 30])
    image.save(tmp_path / f"a{suffix}", **({} if transparency is None else {"transparency": transparency}))
    assert pixels(tmp_path / f"a{suffix}").tolist() == [[[255, 0, 0], [0, 200, 0], [10, 20, 30]]]


def test_grey_and_rgb_with_a_transparent_colour(tmp_path: Path) -> None:
    for mode, colour, key in (("L", 7, 7), ("RGB", (7, 8, 9), (7, 8, 9))):
        Image.new(mode, (2, 2), colour).save(tmp_path / "a.png", transparency=key)
        assert (pixels(tmp_path / "a.png") == np.array(colour)).all()


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    # Pillow writes CMYK as Adobe does, inverted and marked so.
    for colour in ((255, 0, 0), (30, 200, 90), (250, 250, 250)):
        Image.new("RGB", (16, 16), colour).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
        assert mode_of(tmp_path / "a.jpg") == "CMYK"
        np.testing.assert_allclose(pixels(tmp_path / "a.jpg")[8, 8], colour, atol=4)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    file = save_image(tmp_path / f"plain{suffix}")
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened(file).save(tmp_path / f"a{suffix}", exif=exif)
    with Image.open(tmp_path / f"a{suffix}") as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape[:2] == ((20, 16) if orientation >= 5 else (16, 20))
    np.testing.assert_array_equal(pixels(tmp_path / f"a{suffix}"), expected)


def test_garbled_exif_does_not_spoil_the_image(tmp_path: Path) -> None:
    opened(save_image(tmp_path / "a.png")).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(tmp_path / "a.jpg").shape == (3, 16, 20)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    red, blue = Image.new("RGB", (9, 8), (255, 0, 0)), Image.new("RGB", (9, 8), (0, 0, 255))
    red.save(tmp_path / f"a{suffix}", save_all=True, append_images=[blue], duration=50)
    np.testing.assert_allclose(pixels(tmp_path / f"a{suffix}")[4, 4], (255, 0, 0), atol=6)


def truncated(file: Path) -> None:
    whole = save_image(file, size=(200, 200)).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".tif", ".bmp", ".webp"])
def test_truncated_file(tmp_path: Path, suffix: str) -> None:
    truncated(tmp_path / f"a{suffix}")
    with pytest.raises(BadSample, match=rf"a\{suffix}: \S") as caught:
        decode(tmp_path / f"a{suffix}")
    assert "\n" not in str(caught.value)


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    for name, reason in (
        ("text", "not an image"),
        ("empty", "the file is empty"),
        ("phone", "HEIF or video, which is not read; convert it to JPEG or PNG"),
        ("link", "No such file or directory"),
        ("absent", "No such file or directory"),
    ):
        with pytest.raises(BadSample) as caught:
            decode(tmp_path / f"{name}.jpg")
        assert str(caught.value) == f"{tmp_path / name}.jpg: {reason}"


@pytest.mark.parametrize("limit", [300, 100])
def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    # Pillow warns above its limit and refuses above twice as much; both count as damaged here.
    file = save_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BadSample, match=rf"a\.png: 320 pixels, more than the limit of {limit}; DDP_FT_MAX_MEGA"):
            decode(file)


def test_the_environment_moves_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setenv(LIMIT_VARIABLE, "0.001")
    known_formats.cache_clear()
    assert decode(file).shape == (3, 16, 20)
    monkeypatch.setenv(LIMIT_VARIABLE, "many")
    known_formats.cache_clear()
    with pytest.raises(UserError, match="many"):
        decode(file)
    monkeypatch.delenv(LIMIT_VARIABLE)
    known_formats.cache_clear()


@pytest.mark.parametrize("kind", ["text", "profile", "torn"])
def test_large_texts_and_profiles_of_a_png_do_not_matter(tmp_path: Path, kind: str) -> None:
    image, texts = opened(save_image(tmp_path / "plain.png")), PngInfo()
    texts.add_text("parameters", "a" * 2**21 if kind == "text" else "short", zip=True)
    image.save(tmp_path / "a.png", pnginfo=texts, icc_profile=bytes(2**21) if kind == "profile" else b"")
    if kind == "torn":
        data = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(data.replace(b"zTXtparam", b"zTXtwrong"))  # the chunk's sum does not fit now
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.asarray(image))
    source = LabelledFileSource(tmp_path, ["a.png", "plain.png"], np.array([0, 1]))
    assert survey({"train": source}, processes=1).damaged == {}


def test_a_damaged_file_larger_than_the_memory_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.tif").open("wb") as file:
        file.truncate(2**40)  # it takes no room
    with pytest.raises(BadSample, match="not an image"):
        decode(tmp_path / "a.tif")


def tiff(channels: int, bits: int) -> bytes:
    size = 4 * 4 * channels * bits // 8
    tags = [(256, 4), (257, 4), (258, bits), (259, 1), (262, 1), (273, 8), (277, channels), (278, 4), (279, size)]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + size) + bytes(size) + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(("channels", "bits"), [(13, 8), (13, 16), (1, 64)])
def test_what_a_tiff_has_is_named(tmp_path: Path, channels: int, bits: int, capfd, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as where tifffile is not installed
    (tmp_path / "a.tif").write_bytes(tiff(channels, bits))
    with pytest.raises(BadSample, match=f"{channels} channels? of {bits} bits, which is not read: .* 'ddp_ft.tiff.'"):
        decode(tmp_path / "a.tif")
    assert capfd.readouterr() == ("", "")  # Pillow logs it too


def test_file_source_names_paths_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    source = FileSource(["a.png", tmp_path / "a.png"])
    assert (len(source), source.name(0), source.name(1)) == (2, "a.png", str(tmp_path / "a.png"))
    assert set(source.read(0)) == {"image"}
