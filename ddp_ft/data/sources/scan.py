"""The images that are in a folder, from its directories and the files' sizes; only files of odd names are opened."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddp_ft.data.sources.paths import Paths
from ddp_ft.data.sources.scan_watch import ScanWatch
from ddp_ft.data.sources.unicode_forms import KnownNames
from ddp_ft.errors import UserError
from ddp_ft.run_folder.recognise import is_output, may_be_data

# A network file system takes a fraction of a millisecond for each request, and threads send theirs at the same time. On
# a local disk more threads are neither quicker nor slower, because Python's own work takes most of the time.
THREADS = 16
_BLOCK = 1 << 16  # rows of the fingerprint that are text at a time

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".avif", ".avifs",
     ".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm")
)  # fmt: skip
# NumPy's arrays, which often lie beside images: they are images only where there are no others.
ARRAY = ".npy"
# Those that messages name.
_USUAL = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".avif", ".tif", ".jp2", ".ppm")
# Suffixes of files that lie beside images: they are not opened to look for what their names do not tell.
_OTHERS = frozenset(
    (".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".parquet", ".yaml", ".yml", ".md", ".html", ".htm", ".log",
     ".ini", ".cfg", ".toml", ".py", ".ipynb", ".sh", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".pkl", ".h5",
     ".mat", ".zip", ".gz", ".tar", ".pdf", ".svg", ".db", ".lock", ".mp4", ".dng", ".nef", ".cr2")
)  # fmt: skip
# How images begin; of a file without a suffix also a TIFF, since the raw files of cameras begin as it does.
_STARTS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|....ftypavi[fs]|\0\0\0\x0cjP  |\xff\x4f\xff\x51"
    rb"|BM....\0\0\0\0", re.DOTALL
)  # fmt: skip
_STARTS_OF_TIFF = (b"II*\0", b"MM\0*")

# Folders of the system; of the latter not even what is below them holds images.
_SYSTEM = frozenset(
    map(Path, ("/", "/bin", "/boot", "/etc", "/lib", "/lib64", "/run", "/sbin", "/usr", "/var", "/System", "/Library"))
)
_NO_FILES = frozenset(map(Path, ("/dev", "/proc", "/sys")))

Identity = tuple[int, int]  # device and inode
Stamp = tuple[int, int]  # st_mtime_ns and st_ctime_ns of a folder; the latter changes even if the former is set back


@dataclass
class Found:
    """The images of a folder: relative posix paths in sorted order and their sizes in bytes (int64).

    `others` counts the files that are no images, by suffix; `arrays` are the .npy among them, with their sizes, which
    are images where there are no others. `stamps` are the times of the last change of each folder's
    entries, taken before it was read. `outputs` are the folders that were not looked into, since they hold runs, models
    or the like. Arrays and no object for each image, because a data set may have millions.
    """

    paths: Paths = field(default_factory=lambda: Paths.of([]))
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    others: Counter[str] = field(default_factory=Counter)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    arrays: list[tuple[str, int]] = field(default_factory=list)

    def take_arrays(self) -> None:
        """Make the arrays the images; there are no others."""
        self.arrays.sort()
        self.paths = Paths.of([path for path, _ in self.arrays])
        self.sizes = np.array([size for _, size in self.arrays], np.int64)
        del self.others[ARRAY]


def check_scannable(folder: Path, given: str) -> None:
    """UserError for a folder of the system, which `given` names; a data set may lie below most of them."""
    real = folder.resolve()
    is_memory = real.is_relative_to("/dev/shm") and real != Path("/dev/shm")
    if real in _SYSTEM or (not _NO_FILES.isdisjoint((real, *real.parents)) and not is_memory):
        hint = "Name the folder of the data set itself, for example ~/pets."
        raise UserError(f"{given} is a folder of the system, and not of a data set.", hint)


def is_image(name: str) -> bool:
    """Whether the name has an image's suffix, in any case."""
    return _suffix(name) in SUFFIXES


def begins_as_image(path: str) -> bool:
    """Whether a file without an image's suffix, and without that of something else, begins as an image does."""
    suffix = _suffix(path[path.rfind("/") + 1 :])
    if suffix in _OTHERS or not os.path.isfile(path):  # noqa: PTH113  (a pipe might never end)
        return False
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (a Path for each takes longer)
            start = file.read(16)
    except OSError:
        return False
    return bool(_STARTS.match(start)) or (not suffix and start.startswith(_STARTS_OF_TIFF))


def find_images(folder: Path, prefix: str = "", named: bool = True, watch: ScanWatch | None = None) -> Found:
    """All images below the folder; `prefix` is put before each path.

    Hidden files and folders are left out, and so are the folders of `run_folder.recognise`, but for a run's folder that
    the user has `named`; of that, only what the run wrote. Symbolic links are followed, but not to a folder that the
    link is in. A broken link with an image's name counts as an image, so that it is noticed. UserError if a folder
    cannot be read. What takes long is reported by `watch`. Where there are no images, arrays (.npy) are images.
    """
    found = _find(folder, prefix, named, watch)
    if not found.paths:
        found.take_arrays()
    return found


def _find(folder: Path, prefix: str, named: bool, watch: ScanWatch | None) -> Found:
    found = Found()
    entries = sorted(_walk(_Place(str(folder), prefix, _ancestors(folder), named, watch or ScanWatch(folder)), found))
    found.paths = Paths.of([path for path, _ in entries])
    found.sizes = np.array([size for _, size in entries], np.int64)
    return found


def subfolders(folder: Path) -> list[str]:
    """Names of the folders directly in this one that may hold data, sorted; links to a folder above are left out."""
    above = _ancestors(folder)
    names = [entry.name for entry in _visible(str(folder)) or () if _is_folder(entry)]
    return sorted(name for name in names if _identity(str(folder / name)) not in above)


def loose_files(folder: Path) -> Counter[str]:
    """How many visible files are directly in the folder, by suffix."""
    return Counter(_suffix(entry.name) or "no suffix" for entry in _visible(str(folder)) or () if not _is_folder(entry))


def suffix_list() -> str:
    """The usual suffixes of images, for messages."""
    return ", ".join(_USUAL)


class _Place(NamedTuple):
    """A folder on the walk: what is put before its entries' names, it and the folders above, whether the user has named
    it, and who looks on."""

    folder: str
    prefix: str
    above: frozenset[Identity]
    named: bool
    watch: ScanWatch


def _walk(place: _Place, found: Found) -> Iterator[tuple[str, int]]:
    folder, prefix, above, named, watch = place
    stamp = stamp_of(folder)
    entries = _visible(folder, named)
    if entries is None:
        found.outputs.append(folder)
        return
    watch.at(folder, len(entries))
    found.stamps[folder] = stamp
    for entry in entries:
        if _is_folder(entry):
            identity = _identity(entry.path)
            if identity not in above:
                inner = _Place(entry.path, f"{prefix}{entry.name}/", above | {identity}, False, watch)
                yield from _walk(inner, found)
        elif is_image(entry.name) or begins_as_image(entry.path):
            yield prefix + entry.name, size_of(entry.path)
        else:
            suffix = _suffix(entry.name)
            found.others[suffix or "no suffix"] += 1
            if suffix == ARRAY:
                found.arrays.append((prefix + entry.name, size_of(entry.path)))


def stamp_of(folder: str) -> Stamp:
    """The times at which entries of the folder were last added, removed or renamed. UserError if it cannot be read."""
    try:
        status = os.stat(folder)  # noqa: PTH116  (a Path for each takes longer)
    except OSError as error:
        raise _unreadable(folder, error) from None
    return status.st_mtime_ns, status.st_ctime_ns


def _unreadable(folder: str, error: OSError) -> UserError:
    return UserError(f"Folder {folder} cannot be read: {error.strerror}.")


def _visible(folder: str, named: bool = True) -> "list[os.DirEntry[str]] | None":
    """The entries that may be data; None for a run's folder and the like, unless the user has `named` it."""
    try:
        with os.scandir(folder) as entries:
            known = {entry.name: entry for entry in entries}
    except OSError as error:
        raise _unreadable(folder, error) from None
    in_run = is_output(known.keys())
    if in_run and not named:
        return None
    wanted = may_be_data(known, in_run)
    return [entry for name, entry in known.items() if name in wanted]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def size_of(file: str) -> int:
    """The size of an image in bytes; 0 for a broken link, which reading will report, and for what is gone."""
    try:
        return os.stat(file).st_size  # noqa: PTH116  (as above)
    except OSError:
        return 0


def _identity(path: str) -> Identity:
    status = Path(path).stat()
    return status.st_dev, status.st_ino


def _ancestors(folder: Path) -> frozenset[Identity]:
    """The folder and all above it: a link to one of them would be a loop."""
    real = folder.resolve()
    return frozenset(_identity(str(path)) for path in (real, *real.parents))


def _suffix(name: str) -> str:
    """In lower case; empty if there is none. os.path.splitext takes three times as long."""
    place = name.rfind(".")
    return name[place:].lower() if place > 0 else ""


@dataclass(kw_only=True)
class Listing(Found):
    """The images in the class folders of `folder`, in the order of their whole paths.

    `counts` are the images of each of `classes` (sorted); the rest is as in `Found`, for all folders.
    """

    folder: Path
    classes: list[str]
    counts: list[int]

    def labels(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """The class of each image, by its place in `classes`, int64; all of this folder's are among them."""
        numbers, order = KnownNames(classes), _by_path(self.classes)
        known = np.array([numbers.place(self.classes[label]) for label in order], np.int64)
        return np.repeat(known, [self.counts[label] for label in order])


def list_classes(folder: Path, prefix: str = "") -> Listing:
    """Read all class folders in `folder`, as `find_images` does. One that has no images but holds runs or the like is
    no class, and is one of the `outputs`. Arrays are images where no class has others."""
    stamps = {str(folder): stamp_of(str(folder))}
    names = subfolders(folder)
    order = _by_path(names)
    found = dict(zip((names[label] for label in order), _read_all(folder, prefix, names, order), strict=True))
    if not any(part.paths for part in found.values()):
        for part in found.values():
            part.take_arrays()
    outputs = [str(folder / name) for name, part in found.items() if part.outputs and not part.paths]
    classes = {name: part for name, part in found.items() if not part.outputs or part.paths}
    others: Counter[str] = Counter()
    for part in classes.values():
        others += part.others
        stamps |= part.stamps
        outputs += part.outputs
    sizes = np.concatenate([np.empty(0, np.int64), *(part.sizes for part in classes.values())])
    paths = Paths.joined([part.paths for part in classes.values()])
    counts = [len(classes[name].paths) for name in sorted(classes)]
    return Listing(paths, sizes, others, stamps, sorted(outputs), folder=folder, classes=sorted(classes), counts=counts)


def _read_all(folder: Path, prefix: str, names: Sequence[str], order: Sequence[int]) -> list[Found]:
    watch = ScanWatch(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            return list(
                pool.map(lambda each: _find(folder / names[each], f"{prefix}{names[each]}/", False, watch), order)
            )
        finally:
            watch.is_over = True  # after an error or Ctrl-C: the pool waits for its threads


def _by_path(classes: Sequence[str]) -> list[int]:
    """The classes in the order of their images' paths: "a b/" comes before "a/", though "a" is before "a b"."""
    return sorted(range(len(classes)), key=lambda label: f"{classes[label]}/")


def fingerprint(parts: Mapping[str, Listing], classes: Sequence[str]) -> str:
    """A hash of all (path, size, label) in the order of paths; labels are places in `classes`."""
    digest = hashlib.blake2b(digest_size=16)
    # Paths begin with the names of their parts' folders if there are several.
    for part in sorted(parts.values(), key=lambda part: next(iter(part.paths), "")):
        rows = zip(part.paths, part.sizes.tolist(), part.labels(classes).tolist(), strict=True)
        while block := [f"{path}\0{size}\0{label}\n" for path, size, label in islice(rows, _BLOCK)]:
            digest.update("".join(block).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
