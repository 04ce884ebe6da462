"""The record of damaged images that a run continues without: counted over the whole job, one line for each image."""

import math
from collections.abc import Mapping
from pathlib import Path

from ddp_ft.contracts import Log
from ddp_ft.data.roles import TRAIN
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError, listed, printable

FILE = "quarantine.txt"

Key = tuple[str, str]  # split, path


def read_quarantine(run: Path) -> list[list[str]]:
    """[path, split, reason] of each line of a run's file; lines of another form are left out."""
    file = run / FILE
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return [parts for line in text.splitlines() if len(parts := line.split("\t", 2)) == 3]


class Quarantine:
    """Damaged images of a run: any rank reports them, and `settle` gathers them.

    The file has a line "path, split, reason" for each, separated by tabs; the path is as in split.json. Only rank 0
    writes it, since appending from several nodes tears lines on network file systems. Images are counted by their
    path, over all ranks, epochs and starts, so the step in which they become too many does not depend on ranks or
    interruptions.

    `sizes` are the numbers of images of the splits; more than `max_share` of one, and more than one, are too many.
    """

    def __init__(self, sizes: Mapping[str, int], max_share: float) -> None:
        self.limits = {split: max(1, math.floor(max_share * size + 1e-9)) for split, size in sizes.items()}
        self.sizes = dict(sizes)
        self.max_share = max_share
        self.known: dict[Key, str] = {}  # on rank 0: those of all ranks and starts
        self._news: dict[Key, str] = {}
        self._reported: set[Key] = set()
        self._file: Path | None = None

    @property
    def has_news(self) -> bool:
        """Whether this rank has found something since the last `settle`."""
        return bool(self._news)

    def report(self, split: str, path: str, reason: str) -> None:
        """Report a damaged image, in the process that trains; repeated reports change nothing."""
        key = (split, printable(path))
        if key not in self._reported:
            self._reported.add(key)
            self._news[key] = printable(reason)

    def open(self, folder: Path) -> None:
        """On rank 0: read what an earlier start wrote in that run folder, and write to it from now on."""
        self._file = folder / FILE
        content = self._file.read_bytes() if self._file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # the start before was killed while it wrote
            self._file.write_bytes(whole)
        for path, split, reason in read_quarantine(folder):
            self.known[split, path] = reason

    def settle(self, world: World, log: Log) -> None:
        """Gather what all ranks have found, a collective; record and print each image once.

        Raises UserError, on all ranks alike, if a split has too many.
        """
        gathered = world.gather(self._news)
        self._news = {}
        world.from_main(lambda: self._take_in(gathered or [], log))

    def _take_in(self, gathered: list[dict[Key, str]], log: Log) -> None:
        found = {key: reason for part in gathered for key, reason in part.items() if key not in self.known}
        found = dict(sorted(found.items()))
        self.known |= found
        if self._file is not None and found:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write("".join(f"{path}\t{split}\t{reason}\n" for (split, path), reason in found.items()))
        for (split, path), reason in found.items():
            if split == TRAIN:  # those of other splits are printed when the data is opened
                log(f"Damaged, another image takes its place: {path}: {reason}")
        self.check()

    def check(self) -> None:
        """Raise UserError if more images of a split are damaged than `max_share` allows."""
        everything = {**self.known, **self._news}
        for split, limit in self.limits.items():
            bad = [f"{path}: {reason}" for (of, path), reason in everything.items() if of == split]
            if len(bad) > limit:
                hint = "\n".join([*listed(bad), "Mend or remove them, or allow more: --set data.max_damaged=SHARE."])
                count = f"{len(bad)} of {self.sizes[split]} {split} images cannot be read"
                raise UserError(f"{count}; data.max_damaged = {self.max_share:g} allows {limit}:", hint)
