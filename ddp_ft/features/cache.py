"""A table of float32 rows on disk: written chunk by chunk by any number of processes, read through a memory map.

A folder contains the rows of all chunks in sequence (`rows.f32`), and a journal of each process with the chunks that it
completed. A chunk is valid if a journal has it and its rows have the checksum given there. So a killed process, a full
disk or a damaged file costs only the chunks concerned, and never returns wrong rows.
"""

import json
import math
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROWS, JOURNALS = "rows.f32", "done-*.jsonl"


class ChunkStore:
    """The table of `samples` rows in `folder`, in chunks of `chunk` rows; the last one may have fewer.

    Two processes may write the same chunk, since they write the same bytes: the folder's name is a hash of all that the
    rows depend on. `shape` of a row: None while no chunk is known. `error`: why a row could not be stored; else empty.
    """

    def __init__(self, folder: Path, samples: int, chunk: int) -> None:
        self.folder = folder
        self.samples = samples
        self.chunk = chunk
        self.error = ""
        self.damaged = 0
        self._rows: int | None = None
        self._journal: int | None = None
        self.shape, self._sums = self._read_journals()

    @property
    def known(self) -> int:
        """How many chunks are complete according to the journals."""
        return len(self._sums)

    def holds(self, chunk: int) -> bool:
        """Return whether the chunk is there, and as it was written; reads it."""
        return self.read(chunk) is not None

    def read(self, chunk: int) -> Tensor | None:
        """Return the rows of a chunk; None if they are not there or damaged."""
        sums = self._sums.get(chunk)
        if not sums:
            return None
        size = self._bytes_of(self._length(chunk))
        try:
            with (self.folder / ROWS).open("rb") as stream:
                stream.seek(self._bytes_of(chunk * self.chunk))
                content = bytearray(stream.read(size))
        except OSError:
            content = bytearray()
        if len(content) != size or zlib.crc32(content) not in sums:
            self.damaged += 1
            return None
        return torch.frombuffer(content, dtype=torch.float32).view(self._length(chunk), *self._row_shape)

    def write(self, chunk: int, rows: Tensor, lasting: bool = True) -> bool:
        """Store the rows of a chunk (float32, on the CPU); return False if that fails, or has failed before. Unless it
        is `lasting`, the chunk is valid for this start alone."""
        if self.error:
            return False
        self.shape = tuple(rows.shape[1:])
        content = rows.contiguous().numpy().tobytes()
        try:
            self._put(self._bytes_of(chunk * self.chunk), content)
            if lasting:
                self._note({"chunk": chunk, "shape": self.shape, "crc": zlib.crc32(content)})
            self._sums.setdefault(chunk, set()).add(zlib.crc32(content))
        except OSError as error:
            self.error = error.strerror or str(error)
            return False
        return True

    def finish(self) -> None:
        """End writing; `error` then has what a network file system reports only now."""
        opened = [descriptor for descriptor in (self._rows, self._journal) if descriptor is not None]
        self._rows = self._journal = None
        for descriptor in opened:
            try:
                os.close(descriptor)
            except OSError as error:
                self.error = error.strerror or str(error)

    def mapped(self, shape: tuple[int, ...]) -> Tensor:
        """Return all rows, each of that shape, read from the disk when they are used; processes of a machine share the
        memory. Call it when all chunks are written. Changes to the tensor stay in this process."""
        table = np.memmap(self.folder / ROWS, np.float32, "c", shape=(self.samples, *shape))
        return torch.from_numpy(table)

    @property
    def _row_shape(self) -> tuple[int, ...]:
        assert self.shape is not None, "no chunk is known yet"
        return self.shape

    def _length(self, chunk: int) -> int:
        return min(self.chunk, self.samples - chunk * self.chunk)

    def _bytes_of(self, rows: int) -> int:
        return 4 * rows * math.prod(self._row_shape)

    def _put(self, offset: int, content: bytes) -> None:
        # Not through a memory map: on a full disk that would kill the process.
        if self._rows is None:
            self._rows = os.open(self.folder / ROWS, os.O_WRONLY | os.O_CREAT, 0o666)
        left = memoryview(content)
        while left:
            written = os.pwrite(self._rows, left, offset)
            left, offset = left[written:], offset + written

    def _note(self, entry: dict[str, Any]) -> None:
        """After the rows, add a line to this process's own journal, so that no other process's line is torn."""
        if self._journal is None:
            file = self.folder / JOURNALS.replace("*", secrets.token_hex(8))
            self._journal = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.write(self._journal, (json.dumps(entry) + "\n").encode())

    def _read_journals(self) -> tuple[tuple[int, ...] | None, dict[int, set[int]]]:
        shape: tuple[int, ...] | None = None
        sums: dict[int, set[int]] = {}
        for entry in self._entries():
            shape = shape or tuple(entry["shape"])
            if tuple(entry["shape"]) == shape:
                sums.setdefault(entry["chunk"], set()).add(entry["crc"])
        return shape, sums

    def _entries(self) -> Iterator[dict[str, Any]]:
        for file in sorted(self.folder.glob(JOURNALS)):
            for line in file.read_bytes().splitlines():
                with suppress(ValueError):  # the line at which a process was killed, or a damaged one
                    entry = json.loads(line)
                    if self._is_sound(entry):
                        yield entry

    def _is_sound(self, entry: Any) -> bool:
        if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
            return False
        numbers = [entry.get("chunk"), entry.get("crc"), *entry["shape"]]
        whole = all(isinstance(number, int) and number >= 0 for number in numbers)
        return whole and entry["chunk"] * self.chunk < self.samples
