"""The one scanner: which images lie in a folder. It reads directories and sizes and opens no file."""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddp_ft.data.sources.paths import Paths
from ddp_ft.errors import UserError

# On a network file system a question takes a fraction of a millisecond, and as many as there are threads are asked at a
# time. On a local disk more threads are neither quicker nor slower, as Python's own work takes most of it.
THREADS = 16
_BLOCK = 1 << 16  # rows of the fingerprint that are text at a time

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"])

Identity = tuple[int, int]  # device and inode
Stamp = tuple[int, int]  # st_mtime_ns and st_ctime_ns of a folder; the latter moves also where the former is set back


@dataclass
class Found:
    """The images of a folder: relative posix paths in sorted order and their sizes in bytes.

    `others` counts the files that are no images, by suffix. `stamps` says of each folder that was read, before it
    was, when its entries were last changed. Plain values, and no object for each image, because a data set may have
    millions.
    """

    paths: list[str] = field(default_factory=list)
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    others: Counter[str] = field(default_factory=Counter)
    stamps: dict[str, Stamp] = field(default_factory=dict)


def is_image(name: str) -> bool:
    """Whether the name ends as an image's does; upper and lower case alike."""
    return _suffix(name) in SUFFIXES


def find_images(folder: Path, prefix: str = "") -> Found:
    """All images below the folder; `prefix` is put before each path.

    Hidden files and folders are left out; symbolic links are followed, but not to a folder that the link lies
    in. A broken link with an image's name counts as an image, so that it is noticed. Raises UserError for a
    folder that cannot be read.
    """
    found = Found()
    entries = sorted(_walk(str(folder), prefix, _ancestors(folder), found))
    found.paths = [path for path, _ in entries]
    found.sizes = array("q", (size for _, size in entries))
    return found


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders directly in this one, sorted; links to a folder above are left out."""
    above = _ancestors(folder)
    names = [entry.name for entry in _visible(str(folder)) if _is_folder(entry)]
    return sorted(name for name in names if _identity(str(folder / name)) not in above)


def loose_files(folder: Path) -> Counter[str]:
    """How many visible files lie directly in the folder, by suffix."""
    return Counter(_suffix(entry.name) or "no suffix" for entry in _visible(str(folder)) if not _is_folder(entry))


def suffix_list() -> str:
    """The suffixes of images, for messages."""
    return ", ".join(sorted(SUFFIXES))


def _walk(folder: str, prefix: str, above: frozenset[Identity], found: Found) -> Iterator[tuple[str, int]]:
    found.stamps[folder] = stamp_of(folder)
    for entry in _visible(folder):
        if _is_folder(entry):
            identity = _identity(entry.path)
            if identity not in above:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {identity}, found)
        elif is_image(entry.name):
            yield prefix + entry.name, _size(entry)
        else:
            found.others[_suffix(entry.name) or "no suffix"] += 1


def stamp_of(folder: str) -> Stamp:
    """When entries of the folder were last added, removed or renamed. UserError if it cannot be read."""
    try:
        status = os.stat(folder)  # noqa: PTH116  (a Path for each takes longer)
    except OSError as error:
        raise _unreadable(folder, error) from None
    return status.st_mtime_ns, status.st_ctime_ns


def _unreadable(folder: str, error: OSError) -> UserError:
    return UserError(f"Folder {folder} cannot be read: {error.strerror}.")


def _visible(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise _unreadable(folder, error) from None


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a broken link; reading it will say so
        return 0


def size_of(file: str) -> int:
    """The size of an image in bytes; 0 for a broken link and for what is gone."""
    try:
        return os.stat(file).st_size  # noqa: PTH116  (as above)
    except OSError:
        return 0


def _identity(path: str) -> Identity:
    status = Path(path).stat()
    return status.st_dev, status.st_ino


def _ancestors(folder: Path) -> frozenset[Identity]:
    """The folder and all that it lies in: a link to one of them would be a loop."""
    real = folder.resolve()
    return frozenset(_identity(str(path)) for path in (real, *real.parents))


def _suffix(name: str) -> str:
    """In lower case; empty if there is none. os.path.splitext takes three times as long."""
    place = name.rfind(".")
    return name[place:].lower() if place > 0 else ""


@dataclass
class Listing:
    """The images in the class folders of `folder`, in the order of their whole paths.

    `counts` says how many each of `classes` (sorted) has, `labels` (int64) is an image's place in `classes`, `sizes`
    (int64) are bytes. `others` counts files that are no images, by suffix; `stamps` are those of `Found`, for every
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
        """The class of each image."""
        order = _by_path(self.classes)
        return np.repeat(np.array(order, np.int64), [self.counts[label] for label in order])


@dataclass
class _Class:
    paths: Paths
    sizes: NDArray[np.int64]
    others: Counter[str]
    stamps: dict[str, Stamp]


def list_classes(folder: Path, prefix: str = "") -> Listing:
    """Read all class folders in `folder`; `prefix` is put before each path. Raises UserError as find_images does."""
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
    found = find_images(folder / name, f"{prefix}{name}/")
    return _Class(Paths.of(found.paths), np.array(found.sizes, np.int64), found.others, found.stamps)


def _by_path(classes: Sequence[str]) -> list[int]:
    """The classes in the order of their images' paths: "a b/" comes before "a/", though "a" is before "a b"."""
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
