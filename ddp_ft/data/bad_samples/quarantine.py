"""The record of damaged images that a run goes on without: counted over the whole job, one line an image."""

import math
from collections.abc import Mapping
from pathlib import Path

from ddp_ft.contracts import Say
from ddp_ft.data.roles import TRAIN
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError, listed, printable

FILE = "quarantine.txt"

Key = tuple[str, str]  # split, path


class Quarantine:
    """Damaged images of a run, told by any rank with `report`, brought together by `settle`.

    The file has a line "path, split, reason" for each, with tabs between; the path is as in split.json. Rank 0 alone
    writes it, since appending from several nodes tears lines on network file systems. Images are counted by their
    path, over all ranks, epochs and starts, so the step in which they become too many is the same however the run is
    divided and interrupted.

    `sizes` are the numbers of images of the splits; more than `max_share` of one, and more than one, are too many.
    """

    def __init__(self, sizes: Mapping[str, int], max_share: float) -> None:
        self.limits = {split: max(1, math.floor(max_share * size + 1e-9)) for split, size in sizes.items()}
        self.sizes = dict(sizes)
        self.max_share = max_share
        self.known: dict[Key, str] = {}  # on rank 0: those of all ranks and starts
        self._news: dict[Key, str] = {}
        self._told: set[Key] = set()
        self._file: Path | None = None

    @property
    def has_news(self) -> bool:
        """Whether this rank has found something since the last `settle`."""
        return bool(self._news)

    def report(self, split: str, path: str, reason: str) -> None:
        """Tell of a damaged image, in the process that trains; again and again does no harm."""
        key = (split, printable(path))
        if key not in self._told:
            self._told.add(key)
            self._news[key] = printable(reason)

    def open(self, folder: Path) -> None:
        """On rank 0: write to that run folder from now on, and know what an earlier start wrote there."""
        self._file = folder / FILE
        text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # the start before was killed while it wrote
            self._file.write_text(whole, encoding="utf-8")
        for line in whole.splitlines():
            path, split, reason = line.split("\t", 2)
            self.known[split, path] = reason

    def settle(self, world: World, say: Say) -> None:
        """Bring together what the ranks have found, on all ranks at once; write it down and say it, once each.

        Raises UserError, on all ranks alike, when a split has too many.
        """
        gathered = world.gather(self._news)
        self._news = {}
        world.from_main(lambda: self._take_in(gathered or [], say))

    def _take_in(self, gathered: list[dict[Key, str]], say: Say) -> None:
        found = {key: reason for part in gathered for key, reason in part.items() if key not in self.known}
        found = dict(sorted(found.items()))
        self.known |= found
        if self._file is not None and found:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write("".join(f"{path}\t{split}\t{reason}\n" for (split, path), reason in found.items()))
        for (split, path), reason in found.items():
            if split == TRAIN:  # those of other splits are told of when the data is opened
                say(f"Damaged, another image takes its place: {path}: {reason}")
        self.check()

    def check(self) -> None:
        """UserError if more images of a split are damaged than may be."""
        everything = {**self.known, **self._news}
        for split, limit in self.limits.items():
            bad = [f"{path}: {reason}" for (of, path), reason in everything.items() if of == split]
            if len(bad) > limit:
                hint = "\n".join([*listed(bad), "Mend or remove them, or allow more: --set data.max_damaged=SHARE."])
                count = f"{len(bad)} of {self.sizes[split]} {split} images cannot be read"
                raise UserError(f"{count}; data.max_damaged = {self.max_share:g} allows {limit}:", hint)
