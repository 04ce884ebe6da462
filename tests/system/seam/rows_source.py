"""Toy data: a file with a row of numbers and a row of marks, 0 or 1 for each of them, in each line."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_ft.config.data import DataConfig
from ddp_ft.contracts import BadSample, Batch, Schema
from ddp_ft.data.splits.record import SplitRequest, Splits, divide_pool
from ddp_ft.data.splits.stratify import Pool
from ddp_ft.data.targets.base import TargetColumns, TargetKind

SCHEMA = Schema("marks", ("falls", "rises"))


class Marks(TargetKind):
    """A mark for each number of a row, padded with -1 to the longest row."""

    name = "marks"

    def describe(self, names: Sequence[str]) -> str:
        return "a mark for each number"

    def read(self, columns: TargetColumns) -> tuple[tuple[str, ...], NDArray[Any]]:
        raise NotImplementedError

    def read_known(self, columns: TargetColumns, names: tuple[str, ...]) -> NDArray[Any]:
        raise NotImplementedError


class RowsSource:
    kind = "rows"

    def __init__(self, path: Path, lines: Sequence[tuple[str, str]], numbers: Sequence[int]) -> None:
        self.path = path
        self.lines = lines
        self.numbers = numbers
        self.targets = _padded([marks for _, marks in lines])
        self.weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def name(self, index: int) -> str:
        return f"{self.path}:{self.numbers[index] + 1}"

    def read(self, index: int) -> Batch:
        numbers, marks = self.lines[index]
        try:
            row = torch.tensor([float(each) for each in numbers.split()])
        except ValueError as error:
            raise BadSample(f"{self.name(index)}: {error}") from None
        length = torch.tensor(len(row))
        target = torch.tensor([int(mark) for mark in marks.split()], dtype=torch.int64)
        return {"numbers": row, "numbers_length": length, "marks": target, "marks_length": torch.tensor(len(target))}


def _padded(rows: Sequence[str]) -> NDArray[np.int64]:
    found = np.full((len(rows), max(len(row.split()) for row in rows)), -1, np.int64)
    for place, row in enumerate(rows):
        marks = [int(mark) for mark in row.split()]
        found[place, : len(marks)] = marks
    return found


def _lines(path: Path) -> list[tuple[str, str]]:
    cells = [line.split("|") for line in path.read_text().splitlines()]
    return [(first, rest[0] if rest else "") for first, *rest in cells]


def takes(path: Path) -> bool:
    return path.suffix == ".rows"


def open_splits(request: SplitRequest, path: Path, task: str) -> Splits:
    lines = _lines(path)
    names = [f"{number:04d}" for number in range(len(lines))]
    seen = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    division = divide_pool(request, Pool(names, SCHEMA.kind, _padded([m for _, m in lines])), path, False, seen)
    parts = [
        RowsSource(path, [lines[k] for k in chosen], chosen)
        for chosen in (np.flatnonzero(mask).tolist() for mask in (division.train, division.val))
    ]
    division.record["counts"] = {"train": len(parts[0]), "val": len(parts[1])}
    return Splits(parts[0], parts[1], None, SCHEMA, seen, division.record)


def target_kind(kinds: Sequence[str]) -> str:
    return SCHEMA.kind


def config_for(config: DataConfig, path: Path, schema: Schema) -> DataConfig:
    return config


def open_part(config: DataConfig, path: Path, schema: Schema, split: str | None) -> tuple[str, RowsSource]:
    lines = _lines(path)
    return "all", RowsSource(path, lines, range(len(lines)))


def open_inputs(inputs: Sequence[str], column: str | None) -> RowsSource:
    [given] = inputs
    return open_part(DataConfig(), Path(given), SCHEMA, None)[1]
