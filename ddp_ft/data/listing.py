"""All pictures of a folder of class folders, in arrays; and the hash that says whether two data sets are the same."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddp_ft.data.sources.paths import Paths
from ddp_ft.data.sources.scan import Stamp, find_pictures, stamp_of, subfolders

# On a network file system a question takes a fraction of a millisecond, and as many as there are threads are asked at a
# time. On a local disk more threads are neither quicker nor slower, as Python's own work takes most of it.
THREADS = 16
_BLOCK = 1 << 16  # rows of the fingerprint that are text at a time


@dataclass
class Listing:
    """The pictures in the class folders of `folder`, in the order of their whole paths.

    `counts` says how many each of `classes` (sorted) has, `labels` (int64) is a picture's place in `classes`, `sizes`
    (int64) are bytes. `others` counts files that are no pictures, by suffix; `stamps` are those of `Found`, for every
    folder.
    """

    folder: Path
    classes: list[str]
    counts: list[int]
    paths: Paths
    sizes: NDArray[np.int64]
    others: Counter[str] = field(default_factory=Counter)
    stamps: dict[str, Stamp] = field(default_factory=dict)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each picture."""
        order = _by_path(self.classes)
        return np.repeat(np.array(order, np.int64), [self.counts[label] for label in order])


@dataclass
class _Class:
    paths: Paths
    sizes: NDArray[np.int64]
    others: Counter[str]
    stamps: dict[str, Stamp]


def list_classes(folder: Path, prefix: str = "") -> Listing:
    """Read all class folders in `folder`; `prefix` is put before each path. Raises UserError as find_pictures does."""
    stamps = {str(folder): stamp_of(str(folder))}
    names = subfolders(folder)
    order = _by_path(names)
    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(lambda label: _read_class(folder, prefix, names[label]), order))
    counts = [0] * len(names)
    others: Counter[str] = Counter()
    for label, part in zip(order, parts, strict=True):
        counts[label] = len(part.paths)
        others += part.others
        stamps |= part.stamps
    sizes = np.concatenate([np.empty(0, np.int64), *(part.sizes for part in parts)])
    return Listing(folder, names, counts, Paths.joined([part.paths for part in parts]), sizes, others, stamps)


def _read_class(folder: Path, prefix: str, name: str) -> _Class:
    """In arrays at once, so that strings of few classes alone are held."""
    found = find_pictures(folder / name, f"{prefix}{name}/")
    return _Class(Paths.of(found.paths), np.array(found.sizes, np.int64), found.others, found.stamps)


def _by_path(classes: Sequence[str]) -> list[int]:
    """The classes in the order of their pictures' paths: "a b/" comes before "a/", though "a" is before "a b"."""
    return sorted(range(len(classes)), key=lambda label: f"{classes[label]}/")


def fingerprint(parts: Mapping[str, Listing], classes: Sequence[str]) -> str:
    """A hash of all (path, size, label) in the order of paths; labels are places in `classes`."""
    numbers = {name: number for number, name in enumerate(classes)}
    digest = hashlib.blake2b(digest_size=16)
    # Paths begin with the names of their parts' folders if there are several.
    for part in sorted(parts.values(), key=lambda part: f"{part.folder.name}/"):
        translated = np.array([numbers[name] for name in part.classes], np.int64)[part.labels]
        rows = zip(part.paths, part.sizes.tolist(), translated.tolist(), strict=True)
        while block := [f"{path}\0{size}\0{label}\n" for path, size, label in islice(rows, _BLOCK)]:
            digest.update("".join(block).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
