"""The one scanner: which pictures lie in a folder. It reads directories and sizes and opens no file."""

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ddp_ft.errors import UserError

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"])

Identity = tuple[int, int]  # device and inode
Stamp = tuple[int, int]  # st_mtime_ns and st_ctime_ns of a folder; the latter moves also where the former is set back


@dataclass
class Found:
    """The pictures of a folder: relative posix paths in sorted order and their sizes in bytes.

    `others` counts the files that are no pictures, by suffix. `stamps` says of each folder that was read, before it
    was, when its entries were last changed. Plain values, and no object for each picture, because a data set may have
    millions.
    """

    paths: list[str] = field(default_factory=list)
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    others: Counter[str] = field(default_factory=Counter)
    stamps: dict[str, Stamp] = field(default_factory=dict)


def is_picture(name: str) -> bool:
    """Whether the name ends as a picture's does; upper and lower case alike."""
    return _suffix(name) in SUFFIXES


def find_pictures(folder: Path, prefix: str = "") -> Found:
    """All pictures below the folder; `prefix` is put before each path.

    Hidden files and folders are left out; symbolic links are followed, but not to a folder that the link lies
    in. A broken link with a picture's name counts as a picture, so that it is noticed. Raises UserError for a
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
    """The suffixes of pictures, for messages."""
    return ", ".join(sorted(SUFFIXES))


def _walk(folder: str, prefix: str, above: frozenset[Identity], found: Found) -> Iterator[tuple[str, int]]:
    found.stamps[folder] = stamp_of(folder)
    for entry in _visible(folder):
        if _is_folder(entry):
            identity = _identity(entry.path)
            if identity not in above:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {identity}, found)
        elif is_picture(entry.name):
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
    """The size of a picture in bytes; 0 for a broken link and for what is gone."""
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
