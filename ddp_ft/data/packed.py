"""Samples as their processor made them, once and for all: in a few arrays, kept in files and read through memory maps.

Of each part of a set there is one file for each array (`HASH.NAME.npy`) and then, as a sign that they are complete,
`HASH.json` with their checksums. A part is named by the hash of its samples, its folder by all else that it depends on:
so nothing in it is ever stale, what was interrupted goes on with the next part, and it may be deleted at any time.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from ddp_ft.contracts import BadSample, Batch, LabelledSource, Packing, Sample
from ddp_ft.data.batch import LENGTH
from ddp_ft.data.open_sample import open_sample
from ddp_ft.files import remove, replacing, to_json, write_text

# Samples of a part: few enough that their texts fit into memory, and enough for one call of a tokenizer.
PART = 4096


@dataclass(frozen=True)
class Part:
    """A part's arrays by name. NAME with a NAME_length (int32, one for each sample) has the values of all samples in
    sequence; other arrays have a row for each sample. `damaged`: the places of samples that could not be read, whose
    values mean nothing."""

    arrays: Mapping[str, NDArray[Any]]
    damaged: frozenset[int]
    ends: Mapping[str, NDArray[np.int64]] = field(init=False)

    def __post_init__(self) -> None:
        ends = {name: np.cumsum(self.arrays[name + LENGTH], dtype=np.int64) for name in self._uneven()}
        object.__setattr__(self, "ends", ends)

    def _uneven(self) -> list[str]:
        return [name for name in self.arrays if name + LENGTH in self.arrays]

    def sample(self, place: int) -> Batch:
        """The tensors (int64) of one of its samples."""
        return {name: torch.tensor(self._values(name, place), dtype=torch.int64) for name in self.arrays}

    def _values(self, name: str, place: int) -> NDArray[Any]:
        values = self.arrays[name]
        if name not in self.ends:
            return np.asarray(values[place])
        ends = self.ends[name]
        return np.array(values[ends[place - 1] if place else 0 : ends[place]])


def read_samples(source: LabelledSource, packing: Packing, places: range) -> list[Sample | None]:
    """What the packing reads of the samples at these places; None for those that cannot be read."""
    # Labels are left out where a source can, since to make tensors of them takes longer than the rest.
    opened = getattr(source, "unlabelled", partial(open_sample, source))
    found: list[Sample | None] = []
    for index in places:
        try:
            found.append(packing.abridged(opened(index)))
        except BadSample:
            found.append(None)
    return found


def digest_of(packing: Packing, samples: Iterable[Sample | None]) -> str:
    """A name for the samples: 32 digits of their hash."""
    digest = hashlib.sha256()
    for sample in samples:
        content = b"" if sample is None else packing.content(sample)
        digest.update(b"%d:" % (-1 if sample is None else len(content)))
        digest.update(content)
    return digest.hexdigest()[:32]


def pack(packing: Packing, samples: Sequence[Sample | None]) -> Part:
    """The samples' part, in memory."""
    damaged = frozenset(place for place, sample in enumerate(samples) if sample is None)
    return Part(packing.pack(samples), damaged)


def keep(folder: Path, name: str, part: Part) -> None:
    """Write a part's files. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for array, values in part.arrays.items():
        with replacing(_file(folder, name, array), durable=False) as aside, aside.open("wb") as stream:
            np.save(stream, values)
    sums = {array: zlib.crc32(np.ascontiguousarray(values).data) for array, values in part.arrays.items()}
    write_text(end_of(folder, name), to_json({"crc": sums, "damaged": sorted(part.damaged)}), durable=False)


def load(folder: Path, name: str, check: bool) -> Part | None:
    """The part of that name, through memory maps; None if it is not there or, if that is to be checked, damaged."""
    with suppress(Exception):  # numpy raises whatever a damaged header makes of it
        described = json.loads(end_of(folder, name).read_text(encoding="utf-8"))
        sums = described["crc"]
        arrays = {array: open_memmap(_file(folder, name, array), mode="r") for array in sums}
        if arrays and (not check or all(zlib.crc32(values.data) == sums[array] for array, values in arrays.items())):
            return Part(arrays, frozenset(described["damaged"]))
    return None


def end_of(folder: Path, name: str) -> Path:
    """The file of that part that is written last."""
    return folder / f"{name}.json"


def remove_others(folder: Path, names: Iterable[str]) -> None:
    """Remove the files of other parts than these from the folder, and what else is beside it: other packings' parts."""
    known = set(names)
    for other in folder.parent.glob("*"):
        if other != folder:
            remove(other)
    for file in folder.glob("*"):
        if file.name.partition(".")[0] not in known:
            remove(file)


def _file(folder: Path, name: str, array: str) -> Path:
    return folder / f"{name}.{array}.npy"
