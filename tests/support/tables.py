"""Small tables of images, as CSV and Parquet files."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.images import SHAPES, draw_shape


def write_csv(file: Path, columns: Mapping[str, Sequence[Any]], delimiter: str = ",") -> Path:
    """The columns with a header, and a stand-in (not decodable) for each image of "image" that is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    _touch(file, columns)
    return file


def write_parquet(file: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """As `write_csv`, with the values' own types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), file)
    _touch(file, columns)
    return file


def _touch(file: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    for path in columns.get("image", ()):
        image = file.parent / str(path)
        if path and not image.exists():
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(str(path).encode())


def write_shape_table(file: Path, each: int = 12, size: tuple[int, int] = (48, 40)) -> Path:
    """A CSV table of drawn shapes of three classes, `each` of every one.

    Columns: image, label (a class), tags ("big" and the class, joined by ;), area (a number with a fraction),
    patient (three images each), w (1 or 2), part (train; every fourth val).
    """
    generator = np.random.default_rng(0)
    rows = []
    for number in range(3 * each):
        label = number % 3
        image = draw_shape(label, size, generator)
        path = f"images/{number:03d}.png"
        (file.parent / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file.parent / path)
        area = round(float((image > 80).mean()), 4)
        tags = SHAPES[label] if number % 2 else f"{SHAPES[label]};big"
        part = "val" if number // 9 % 4 == 3 else "train"
        rows.append([path, SHAPES[label], tags, area, f"p{number // 3}", 1 + number % 2, part])
    names = ["image", "label", "tags", "area", "patient", "w", "part"]
    return write_csv(file, dict(zip(names, zip(*rows, strict=True), strict=True)))
