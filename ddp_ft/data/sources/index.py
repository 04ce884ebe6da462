"""The stored index of a large folder, so that the next start reads a file instead of a million entries.

The files are in the user's cache folder: $DDP_FT_CACHE, or ddp_ft in $XDG_CACHE_HOME or ~/.cache; an empty DDP_FT_CACHE
turns them off. They may be deleted at any time: only the time of a start depends on them.
"""

import hashlib
import json
import os
import time
import zipfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddp_ft.config.user_cache import cache_folder
from ddp_ft.data.sources.file_kinds import FILE_KINDS, FileKind
from ddp_ft.data.sources.paths import Paths
from ddp_ft.data.sources.scan import THREADS, Listing, Stamp, find_files, size_of, stamp_of
from ddp_ft.errors import UserError
from ddp_ft.files import replacing

_FORMAT = 3
# A smaller folder is read as quickly as it is compared: 50,000 images in half a second.
WORTH_STORING = 50_000
# The number of images whose sizes are compared: a folder's times do not show a change of size.
_SAMPLED = 10_000
# A change within the same tick of a file system's clock leaves no trace; the coarsest (FAT) has ticks of 2 s.
SETTLED_SECONDS = 2.0
_KEPT = 8  # files, the newest ones
_ABANDONED_SECONDS = 3600.0


@dataclass
class Index:
    """The files of each role's folder, and the fingerprint of them all."""

    parts: dict[str, Listing]
    fingerprint: str


def load_index(root: Path, folders: Mapping[str, Path]) -> Index | None:
    """The stored index of these folders of `root`, if it still holds; else None.

    It holds if by the folders' times no entry was added, removed or renamed since, if folders that held runs and no
    images still do, and if 10,000 images, evenly spread and others at each start, have the same sizes. Not noticed: a
    single file that was overwritten in place, or that is the target of a link, unless it is among those 10,000; and
    entries that were added, removed or renamed on a file system that does not keep the times of folders.
    """
    file = _file_of(root, folders)
    if file is None:
        return None
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            index = _unpacked(arrays, folders)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):  # there is none, or it is damaged
        return None
    return index if all(_still_holds(root, part) for part in index.parts.values()) else None


def store_index(root: Path, folders: Mapping[str, Path], index: Index, begun: float) -> None:
    """Store what was read from `begun` on (seconds since 1970), if it is large and nobody was changing it.

    A cache that cannot be written is ignored. The file is complete or absent, so that runs that start at the same time
    may all write it.
    """
    count = sum(len(part.paths) for part in index.parts.values())
    newest = max((max(stamp) for part in index.parts.values() for stamp in part.stamps.values()), default=0)
    file = _file_of(root, folders)
    if file is None or count < WORTH_STORING or newest / 1e9 > begun - SETTLED_SECONDS:
        return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, durable=False, contested=True) as aside, aside.open("wb") as stream:
            np.savez(stream, **_packed(index))
        _tidy(file.parent)


def _file_of(root: Path, folders: Mapping[str, Path]) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    places = {role: str(each.absolute()) for role, each in sorted(folders.items())}
    what = json.dumps([_FORMAT, str(root.absolute()), places])
    return folder / f"index-{hashlib.blake2b(os.fsencode(what), digest_size=12).hexdigest()}.npz"


def _packed(index: Index) -> dict[str, Any]:
    facts: dict[str, Any] = {"fingerprint": index.fingerprint, "parts": {}}
    arrays: dict[str, Any] = {}
    for role, part in index.parts.items():
        outputs = [str(Path(each).absolute()) for each in part.outputs]
        facts["parts"][role] = {
            "classes": part.classes, "counts": part.counts, "others": part.others, "outputs": outputs,
            "kind": part.kind.name,
        }  # fmt: skip
        arrays |= {
            f"{role}.paths": part.paths.text,
            f"{role}.sizes": part.sizes,
            f"{role}.folders": Paths.of(str(Path(each).absolute()) for each in part.stamps).text,
            f"{role}.stamps": np.array(list(part.stamps.values()), np.int64),
        }
    return {**arrays, "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)}


def _unpacked(arrays: Mapping[str, Any], folders: Mapping[str, Path]) -> Index:
    facts = json.loads(arrays["facts"].tobytes())
    parts = {}
    for role, folder in folders.items():
        known, sizes = facts["parts"][role], arrays[f"{role}.sizes"]
        stamps: list[Stamp] = [(first, second) for first, second in arrays[f"{role}.stamps"].tolist()]
        parts[role] = Listing(
            Paths(arrays[f"{role}.paths"]), sizes, Counter(known["others"]),
            dict(zip(Paths(arrays[f"{role}.folders"]), stamps, strict=True)), known["outputs"],
            kind=FILE_KINDS[known["kind"]], folder=folder, classes=known["classes"], counts=known["counts"],
        )  # fmt: skip
        if not len(parts[role].paths) == len(sizes) == sum(known["counts"]):
            raise ValueError("a damaged index")
    return Index(parts, facts["fingerprint"])


def _still_holds(root: Path, part: Listing) -> bool:
    def has_size(row: int) -> bool:
        return size_of(f"{root}/{part.paths[row]}") == int(part.sizes[row])

    try:
        if any(stamp_of(folder) != stamp for folder, stamp in part.stamps.items()):
            return False
        if any(_has_samples(folder, part.kind) for folder in part.outputs):  # their times change with each run
            return False
    except UserError:  # a folder that is gone
        return False
    count = len(part.paths)
    every = max(1, -(-count // _SAMPLED))
    rows = range(int.from_bytes(os.urandom(4), "big") % every, count, every)
    with ThreadPoolExecutor(THREADS) as pool:
        # One task for each thread: a task for each image would take longer than the image.
        return all(pool.map(lambda first: all(map(has_size, rows[first::THREADS])), range(THREADS)))


def _has_samples(output: str, kind: FileKind) -> bool:
    found = find_files(Path(output), kind, named=False)
    return bool(found.paths) or not found.outputs


def _tidy(folder: Path) -> None:
    """Remove all but the newest files, and what killed processes left half written."""
    ages = sorted((time.time() - file.stat().st_mtime, file) for file in folder.glob("*index-*"))
    whole = [file for _, file in ages if file.suffix == ".npz"]
    abandoned = [file for age, file in ages if file.suffix == ".writing" and age > _ABANDONED_SECONDS]
    for file in whole[_KEPT:] + abandoned:
        file.unlink(missing_ok=True)
