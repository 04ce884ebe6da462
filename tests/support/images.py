"""Small data sets, written as class folders."""

from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = ("disc", "square", "stripes")
TRAIN_DIGITS = 1500


def write_digits(folder: Path, side: int = 32) -> Path:
    """scikit-learn's 1,797 digits as `side` x `side` grey PNG: train/CLASS (the first 1,500) and val/CLASS."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for number, (values, label) in enumerate(zip(data.images, data.target, strict=True)):
        image = Image.fromarray((values * (255 / 16)).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
        _save(image, folder / ("train" if number < TRAIN_DIGITS else "val") / str(label) / f"{number:04d}.png")
    return folder


def write_shapes(folder: Path, train: int = 10, val: int = 4, size: tuple[int, int] = (48, 40)) -> Path:
    """Images of three classes that any model tells apart; `train` and `val` of each, `size` = (width, height)."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(SHAPES):
        for number in range(train + val):
            image = Image.fromarray(draw_shape(label, size, generator))
            _save(image, folder / ("train" if number < train else "val") / name / f"{number:02d}.png")
    return folder


def draw_shape(label: int, size: tuple[int, int], generator: np.random.Generator) -> "np.ndarray":
    """A uint8 array H x W x 3: a shape of random colour, place and size on a noisy ground."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    middle_y, middle_x = height * generator.uniform(0.35, 0.65), width * generator.uniform(0.35, 0.65)
    radius = min(size) * generator.uniform(0.25, 0.35)
    inside = (
        (y - middle_y) ** 2 + (x - middle_x) ** 2 < radius**2,
        np.maximum(abs(y - middle_y), abs(x - middle_x)) < radius * 0.8,
        (x + int(middle_x)) % 8 < 4,
    )[label]
    image = generator.integers(0, 80, (height, width, 3))
    image[inside] += generator.integers(100, 175, 3)
    return image.astype(np.uint8)


def _save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
