"""Mean and deviation of the channels: measured on the training set, always on the same images, or given."""

from pathlib import Path

import numpy as np
import pytest

from ddp_ft.config.data import DataConfig
from ddp_ft.data.image.measured import measure_inputs
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.data.sources.files import FileSource
from ddp_ft.errors import UserError

FOUR = Preprocess((8, 8), (0.5,) * 4, (0.2,) * 4, "nearest", 1.0, channels=4)


def source_of(folder: Path, values: np.ndarray) -> FileSource:
    for number, each in enumerate(values):
        np.save(folder / f"{number:03}.npy", each)
    return FileSource(sorted(folder.iterdir()))


@pytest.fixture
def values() -> np.ndarray:
    values = np.random.default_rng(1).integers(0, 4096, (6, 8, 8, 4)).astype(np.uint16)
    values[..., 3] = 4095
    return values


def test_what_is_measured(tmp_path: Path, values: np.ndarray) -> None:
    source = source_of(tmp_path, values)
    found = measure_inputs(FOUR, DataConfig(channels=4), source)
    levels = np.round(values / 4095 * 255) / 255
    assert found["value_range"] == [0, 4095]
    assert found["mean"] == pytest.approx(levels.mean((0, 1, 2)), abs=6e-5)
    assert found["std"][:3] == pytest.approx(levels.std((0, 1, 2))[:3], abs=6e-5)
    assert found["std"][3] == 1.0, "a channel of one value"
    fitted = ImageProcessor(FOUR).fitted(found)
    assert ImageProcessor.from_mapping(fitted.to_mapping()) == fitted
    assert "measured" in found["note"] and "4095" in found["note"]
    (tmp_path / "001.npy").write_bytes(b"")  # left out here, and found by training
    assert measure_inputs(FOUR, DataConfig(channels=4), source)["mean"] != found["mean"]


def test_what_is_given_is_taken(tmp_path: Path, values: np.ndarray) -> None:
    source, given = source_of(tmp_path, values), (0.1, 0.2, 0.3, 0.4)
    found = measure_inputs(FOUR, DataConfig(channels=4, mean=given, std="train"), source)
    fitted = ImageProcessor(FOUR).fitted(found).preprocess
    assert fitted.mean == given and fitted.std == tuple(found["std"]) != FOUR.std
    with pytest.raises(UserError, match=r"data.std has 1 numbers, and images have 4"):
        measure_inputs(FOUR, DataConfig(channels=4, std=(0.5,)), source)


def test_photos_keep_the_models_own(tmp_path: Path, values: np.ndarray) -> None:
    source = source_of(tmp_path, (values[..., :3] >> 4).astype(np.uint8))
    three = Preprocess((8, 8), (0.1, 0.2, 0.3), (0.2,) * 3, "nearest", 1.0)
    assert measure_inputs(three, DataConfig(), source) == {}
    assert measure_inputs(three, DataConfig(mean="train"), source).keys() == {"mean", "note"}


def test_images_of_other_channels_are_told_at_the_start(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"000.npy: 4 channels where 3 .*auto\).*\n--set data.channels=4"):
        measure_inputs(Preprocess((8, 8), (0.5,) * 3, (0.2,) * 3), DataConfig(), source_of(tmp_path, values))
