"""The samples that are in a folder, from its directories and the files' sizes; only files of odd names are opened."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddp_ft.data.roles import TRAIN
from ddp_ft.data.sources.file_kinds import FILE_KINDS, IMAGES, FileKind, suffix_of
from ddp_ft.data.sources.paths import Paths
from ddp_ft.data.sources.scan_watch import ScanWatch
from ddp_ft.data.sources.unicode_forms import KnownNames
from ddp_ft.errors import UserError
from ddp_ft.run_folder.recognise import is_output, may_be_data

# A network file system takes a fraction of a millisecond for each request, and threads send theirs at the same time. On
# a local disk more threads are neither quicker nor slower, because Python's own work takes most of the time.
THREADS = 16
_BLOCK = 1 << 16  # rows of the fingerprint that are text at a time

# Folders of the system; of the latter not even what is below them holds images.
_SYSTEM = frozenset(
    map(Path, ("/", "/bin", "/boot", "/etc", "/lib", "/lib64", "/run", "/sbin", "/usr", "/var", "/System", "/Library"))
)
_NO_FILES = frozenset(map(Path, ("/dev", "/proc", "/sys")))

Identity = tuple[int, int]  # device and inode
Stamp = tuple[int, int]  # st_mtime_ns and st_ctime_ns of a folder; the latter changes even if the former is set back


@dataclass
class Found:
    """The files of one kind in a folder: relative posix paths in sorted order and their sizes in bytes (int64).

    `others` counts the other files, by suffix; `spare` are those among them, with their sizes, that are samples where
    there are no others. `stamps` are the times of the last change of each folder's entries, taken before it was read.
    `outputs` are the folders that were not looked into, since they hold runs, models or the like. Arrays and no object
    for each file, because a data set may have millions.
    """

    paths: Paths = field(default_factory=lambda: Paths.of([]))
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    others: Counter[str] = field(default_factory=Counter)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    spare: list[tuple[str, int]] = field(default_factory=list)
    kind: FileKind = IMAGES

    def take_spare(self) -> None:
        """Make the spare files the samples; there are no others."""
        self.spare.sort()
        self.paths = Paths.of([path for path, _ in self.spare])
        self.sizes = np.array([size for _, size in self.spare], np.int64)
        del self.others[self.kind.spare]


def check_scannable(folder: Path, given: str) -> None:
    """UserError for a folder of the system, which `given` names; a data set may lie below most of them."""
    real = folder.resolve()
    is_memory = real.is_relative_to("/dev/shm") and real != Path("/dev/shm")
    if real in _SYSTEM or (not _NO_FILES.isdisjoint((real, *real.parents)) and not is_memory):
        hint = "Name the folder of the data set itself, for example ~/pets."
        raise UserError(f"{given} is a folder of the system, and not of a data set.", hint)


def find_files(folder: Path, kind: FileKind = IMAGES, prefix: str = "", named: bool = True) -> Found:
    """All files of the kind below the folder; `prefix` is put before each path.

    Hidden files and folders are left out, and so are the folders of `run_folder.recognise`, but for a run's folder that
    the user has `named`; of that, only what the run wrote. Symbolic links are followed, but not to a folder that the
    link is in. A broken link with such a file's name counts as one, so that it is noticed. UserError if a folder cannot
    be read. What takes long is reported. Where there are no others, spare files are samples.
    """
    found = _find(_Place(str(folder), prefix, _ancestors(folder), named, ScanWatch(folder)), kind)
    if not found.paths:
        found.take_spare()
    return found


def _find(place: "_Place", kind: FileKind) -> Found:
    found = Found(kind=kind)
    entries = sorted(_walk(place, found))
    found.paths = Paths.of([path for path, _ in entries])
    found.sizes = np.array([size for _, size in entries], np.int64)
    return found


def subfolders(folder: Path) -> list[str]:
    """Names of the folders directly in this one that may hold data, sorted; links to a folder above are left out."""
    above = _ancestors(folder)
    names = [entry.name for entry in _visible(str(folder)) or () if _is_folder(entry)]
    return sorted(name for name in names if _identity(str(folder / name)) not in above)


def loose_samples(folder: Path, kind: FileKind = IMAGES) -> int:
    """How many visible files of the kind are directly in the folder, by their names."""
    return sum(kind.has_name(entry.name) for entry in _visible(str(folder)) or () if not _is_folder(entry))


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
        elif found.kind.has_name(entry.name) or found.kind.begins(entry.path):
            yield prefix + entry.name, size_of(entry.path)
        else:
            suffix = suffix_of(entry.name)
            found.others[suffix or "no suffix"] += 1
            if suffix and suffix == found.kind.spare:
                found.spare.append((prefix + entry.name, size_of(entry.path)))


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
    """The size of a file in bytes; 0 for a broken link, which reading will report, and for what is gone."""
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


@dataclass(kw_only=True)
class Listing(Found):
    """The samples in the class folders of `folder`, in the order of their whole paths.

    `counts` are the samples of each of `classes` (sorted); the rest is as in `Found`, for all folders.
    """

    folder: Path
    classes: list[str]
    counts: list[int]

    def labels(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """The class of each sample, by its place in `classes`, int64; all of this folder's are among them."""
        numbers, order = KnownNames(classes), _by_path(self.classes)
        known = np.array([numbers.place(self.classes[label]) for label in order], np.int64)
        return np.repeat(known, [self.counts[label] for label in order])


def list_classes(folder: Path, prefix: str = "", kind: FileKind = IMAGES) -> Listing:
    """Read all class folders in `folder`, as `find_files` does. One that has no such files but holds runs or the like
    is no class, and is one of the `outputs`. Spare files are samples where no class has others."""
    stamps = {str(folder): stamp_of(str(folder))}
    names = subfolders(folder)
    ordered = [names[label] for label in _by_path(names)]
    found = dict(zip(ordered, _read_all(folder, prefix, ordered, kind), strict=True))
    if not any(part.paths for part in found.values()):
        for part in found.values():
            part.take_spare()
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
    return Listing(
        paths, sizes, others, stamps, sorted(outputs), kind=kind, folder=folder, classes=sorted(classes), counts=counts
    )


def list_roles(folders: Mapping[str, Path], root: Path) -> dict[str, Listing]:
    """`list_classes` of each role's folder ("train", ...): of images; if there are none and several classes have files
    of another kind to train on, of these. Paths are relative to `root`."""
    prefixes = {role: "" if at == root else f"{at.relative_to(root).as_posix()}/" for role, at in folders.items()}

    def listed(kind: FileKind) -> dict[str, Listing]:
        return {role: list_classes(folder, prefixes[role], kind) for role, folder in folders.items()}

    images = listed(IMAGES)
    if not any(part.paths for part in images.values()):
        for kind in FILE_KINDS.values():
            if kind != IMAGES and sum(map(bool, (found := listed(kind))[TRAIN].counts)) > 1:
                return found
    return images


def _read_all(folder: Path, prefix: str, names: Sequence[str], kind: FileKind) -> list[Found]:
    watch = ScanWatch(folder)

    def read(name: str) -> Found:
        inner = folder / name
        return _find(_Place(str(inner), f"{prefix}{name}/", _ancestors(inner), False, watch), kind)

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            return list(pool.map(read, names))
        finally:
            watch.is_over = True  # after an error or Ctrl-C: the pool waits for its threads


def _by_path(classes: Sequence[str]) -> list[int]:
    """The classes in the order of their files' paths: "a b/" comes before "a/", though "a" is before "a b"."""
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
