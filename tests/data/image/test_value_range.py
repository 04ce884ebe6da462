"""Which values of images of more than 8 bits become black and white: measured on the set, and kept with the model."""

import json
import struct
import zlib
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ddp_ft
from ddp_ft.config.data import DataConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.data.image.decode import open_image
from ddp_ft.data.image.pillow import deep_values, scaled
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor, preprocess_of
from ddp_ft.data.image.transforms import eval_transform
from ddp_ft.data.image.undecoded import whole
from ddp_ft.data.image.value_range import levels_used, measure, range_of, sample_values
from ddp_ft.data.sources.files import FileSource
from ddp_ft.diagnostics.images import grey_levels
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.models.libraries.base import call_with_images
from ddp_ft.training.plan import Plan
from ddp_ft.training.recipe import fit_inputs
from tests.support.runs import read, train_here

PLAIN = Preprocess((8, 8), (0.0,) * 3, (1.0,) * 3, crop_pct=1.0)


def ramp(low: float, high: float, kind: type) -> np.ndarray:
    return np.linspace(low, high, 64).reshape(8, 8).astype(kind)


def source_of(folder: Path, *images: np.ndarray, suffix: str = ".tif") -> FileSource:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}{suffix}" for number in range(len(images))]
    for path, values in zip(paths, images, strict=True):
        Image.fromarray(values).save(path)
    return FileSource(paths)


def save_grey_tiff(file: Path, values: np.ndarray) -> None:
    """A TIFF of 8 x 8 whole numbers, in kinds that Pillow does not write."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    bits, sign = 8 * values.dtype.itemsize, 2 if values.dtype.kind == "i" else 1
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: len(data), 339: sign}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    file.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)


def save_colour_png(file: Path, values: np.ndarray) -> Path:
    """A PNG of 16 bits, H x W x 2 to 4, which Pillow cannot write."""
    height, width, channels = values.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return file


@pytest.mark.parametrize(
    ("low", "high", "kind", "expected"),
    [
        (0, 4000, np.uint16, (0, 4095)),
        (10, 16000, np.uint16, (0, 16383)),
        (0, 200, np.uint16, (0, 255)),
        (21000, 25000, np.uint16, (21000, 25000)),
        (-1000, 3000, np.int32, (-1000, 3000)),
        (0, 1, np.float32, (0, 1)),
        (0, 200.5, np.float32, (0, 255)),
        (0, 1e6, np.float32, (0, 1e6)),
        (-0.5, 0.5, np.float32, (-0.5, 0.5)),
    ],
)
def test_ranges(tmp_path: Path, low: float, high: float, kind: type, expected: tuple[float, float]) -> None:
    halves = ramp(low, (low + high) / 2, kind), ramp((low + high) / 2, high, kind)
    assert measure(None, source_of(tmp_path, *halves))["value_range"] == pytest.approx(expected)


def test_nothing_changes_where_the_formats_range_is_right(tmp_path: Path) -> None:
    found = measure(None, source_of(tmp_path / "full", ramp(0, 60000, np.uint16), suffix=".png"))
    assert "value_range" not in found and "65535" in found["note"]
    assert measure(None, source_of(tmp_path / "8", ramp(0, 90, np.uint8), suffix=".png")) == {}
    assert measure(None, source_of(tmp_path / "black", ramp(0, 0, np.uint16), suffix=".png")) == {}
    assert "value_range" not in PLAIN.to_mapping()


def test_a_few_dead_pixels_do_not_count(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (300, 300)).astype(np.uint16)
    values[7, 7] = 65535
    assert measure(None, source_of(tmp_path, values, suffix=".png"))["value_range"] == [0, 4095]


@pytest.mark.parametrize("fill", [-9999, -32768, -3.4028235e38, 1e38])
def test_what_stands_for_no_value_does_not_count(tmp_path: Path, fill: float) -> None:
    """As in satellites' images, of which it may be half; it becomes black or white."""
    images = [np.where(np.eye(8) > 0, fill, ramp(0, 1000 + number, np.float32)) for number in range(4)]
    source = source_of(tmp_path, *(image.astype(np.float32) for image in images))
    [least, most] = measure(None, source)["value_range"]
    assert 0 <= least < 20 and 980 < most < 1010
    kept = source_of(tmp_path / "own", ramp(-9999, 0, np.float32))
    assert measure(None, kept)["value_range"] == [-9999, 0]


@pytest.mark.parametrize(("kind", "low", "high"), [("u4", 0, 4e9), ("i1", -100, 100), ("i2", -1000, 3000)])
def test_a_tiff_has_the_signs_that_it_is_written_with(tmp_path: Path, kind: str, low: float, high: float) -> None:
    values = ramp(low, high, np.dtype(kind))
    save_grey_tiff(tmp_path / "0.tif", values)
    assert np.array_equal(deep_values(tmp_path / "0.tif"), values)
    [least, most] = measure(None, FileSource([tmp_path / "0.tif"]))["value_range"]
    pixels = whole(open_image(tmp_path / "0.tif").asked(3, (least, most)))
    assert (pixels[0].flatten().diff() >= 0).all() and pixels.max() - pixels.min() > 200


def test_what_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    source = source_of(tmp_path, ramp(0, 4000, np.uint16), suffix=".png")
    (tmp_path / "junk.png").write_text("junk")
    (tmp_path / "cut.png").write_bytes((tmp_path / "000.png").read_bytes()[:60])
    both = FileSource([*source.paths, tmp_path / "junk.png", tmp_path / "cut.png", tmp_path / "gone.png"])
    assert measure(None, both)["value_range"] == [0, 4095]


@pytest.mark.parametrize("given", [(5, 3), (1,), (1, 2, 3), (2, 2)])
def test_a_range_that_is_none(tmp_path: Path, given: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"data\.range = .* is not LOW,HIGH"):
        measure(given, source_of(tmp_path))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_keep_the_lower_ones(tmp_path: Path, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (8, 8, channels)).astype(np.uint16)
    file = save_colour_png(tmp_path / "a.png", values)
    seen = values[..., :3] if channels > 2 else values[..., :1].repeat(3, axis=2)
    np.testing.assert_array_equal(deep_values(file), seen)
    upper = whole(open_image(file)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(upper, seen >> 8)  # without a range: as Pillow and torchvision read it
    assert measure(None, FileSource([file]))["value_range"] == [0, 4095]


def test_colour_tiff_of_16_bits(tmp_path: Path) -> None:
    values = np.arange(4 * 4 * 3, dtype=np.uint16).reshape(4, 4, 3) * 85
    data, place = values.tobytes(), 8 + 2 + 9 * 12 + 4
    tags = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 3, place), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, place + 6)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, len(data))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(head + struct.pack("<HHH", 16, 16, 16) + data)
    np.testing.assert_array_equal(deep_values(tmp_path / "a.tif"), values)


def test_transforms_scale_and_cut_off(tmp_path: Path) -> None:
    values = np.array([[0, 100], [300, 65535]], np.uint16).repeat(4, 0).repeat(4, 1)
    [path] = source_of(tmp_path, values, suffix=".png").paths
    processor = ImageProcessor(PLAIN).fitted({"value_range": [100, 300]})
    again = ImageProcessor.from_mapping(json.loads(json.dumps(processor.to_mapping())))
    image = eval_transform(again.preprocess)(open_image(path))
    assert image[0, ::4, ::4].tolist() == [[0, 0], [255, 255]] and (image[0] == image[2]).all()
    assert scaled(np.array([np.nan, np.inf, 0.25]), (0, 1)).tolist() == [0, 255, 64]


def test_the_doctor_warns_of_few_grey_levels(tmp_path: Path) -> None:
    source = source_of(tmp_path, ramp(0, 4000, np.uint16), suffix=".png")
    [finding] = grey_levels(source, (0, 65535))
    assert finding.verdict == "warning" and "16 of 256" in finding.text and "data.range=" in finding.remedy
    [finding] = grey_levels(source, None)
    assert finding.verdict == "ok"
    values = sample_values(source)
    assert values is not None and (ends := range_of(values)) is not None and levels_used(values, ends) > 200


def test_an_old_run_keeps_its_numbers(tmp_path: Path) -> None:
    built = BuiltModel(nn.Identity(), ImageProcessor(PLAIN), call_with_images, {}, frozenset())
    source, world = source_of(tmp_path, ramp(0, 4000, np.uint16), suffix=".png"), World(0, 1, 0, torch.device("cpu"))
    stored = {each.name: None for each in fields(Plan) if each.default is MISSING and each.default_factory is MISSING}
    for earlier, expected in ((None, (0, 4095)), (Plan.from_mapping(stored), None)):
        fitted, _ = fit_inputs(built, DataConfig(), source, earlier, world)
        assert preprocess_of(fitted.processor).value_range == expected


def test_a_run_and_what_is_made_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10):
        source_of(tmp_path / "data" / "ab"[number % 2] / str(number), ramp(0, 3000, np.uint16), suffix=".png")
    train_here(tmp_path / "data", tmp_path / "run", "--recipe", "full", "--set", "data.range=100,3000")
    assert "black is 100 and white 3000 (data.range)" in capsys.readouterr().out
    assert read(tmp_path / "run", "plan.json")["inputs"]["value_range"] == [100, 3000]
    assert read(tmp_path / "run" / "best", "model.json")["preprocessing"]["value_range"] == [100, 3000]
    model, file = ddp_ft.load(tmp_path / "run", "cpu"), next((tmp_path / "data").rglob("*.png"))
    pixels = [model.preprocess(image) for image in (file, Image.open(file))]
    assert (pixels[0] == pixels[1]).all() and float(pixels[0].max() - pixels[0].min()) > 3
